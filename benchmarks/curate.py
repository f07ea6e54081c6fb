"""Curation on pools whose answer is known: planted copies, a skewed pool, planted test images, and scale.

    python benchmarks/curate.py copies  --data FASHION --model m.onnx [--work DIR]
    python benchmarks/curate.py copies  --emoji EMOJI --columns pixels [--work DIR]
    python benchmarks/curate.py overlap --data FASHION --model m.onnx [--work DIR]
    python benchmarks/curate.py balance --data FASHION --model m.onnx [--work DIR]
    python benchmarks/curate.py scale [--rows 10000,100000,1000000] [--steps dedup,sample] [--threads 2] [--work DIR]
    python benchmarks/curate.py ranks [--rows 1000000] [--steps dedup,sample] [--mpiexec "mpiexec -n 2"] [--work DIR]

FASHION is the folder of Fashion-MNIST's IDX files, m.onnx a trained export, EMOJI the folder that benchmarks/emoji_data.py filled,
whose 1,892 images are made 28 x 28 and grey: the thresholds of `--pixels hash` were set on copies from FASHION, not on these. Each prints the table that BENCHMARKS.md
shows. Needs numpy, polars and Pillow, and `macula` on the path or in MACULA.
"""

import argparse
import gzip
import io
import json
import os
import pathlib
import shutil
import subprocess
import time

import numpy as np
import polars as pl

MACULA = os.environ.get("MACULA", "macula")
KINDS = ["recompressed", "resized", "cropped", "brightened", "flipped"]


def macula(*words):
    """Runs the command; gives the JSON it prints."""
    run = subprocess.run([MACULA, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout) if run.stdout.startswith("{") else run.stdout


def read_idx(path):
    opened = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
    with opened as file:
        data = file.read()
    sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


def fashion(folder, prefix):
    def find(kind):
        (found,) = [path for path in pathlib.Path(folder).iterdir() if path.name.startswith(f"{prefix}-{kind}")]
        return read_idx(found)

    return find("images"), find("labels")


def emoji(folder):
    """The images of the folder's list over white, 28 x 28 and grey, and the numbers of their classes."""
    from PIL import Image

    folder = pathlib.Path(folder)
    table = pl.read_csv(folder / "list.csv")
    pictures = []
    for path in table["path"]:
        picture = Image.open(folder / path).convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        grey = Image.alpha_composite(white, picture).convert("L")
        pictures.append(np.asarray(grey.resize((28, 28), Image.Resampling.BICUBIC)))
    return np.stack(pictures), table["label"].rank("dense").to_numpy() - 1


def write_idx(folder, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in [("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)]:
        header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
        (folder / name).write_bytes(header + np.ascontiguousarray(array, np.uint8).tobytes())
    return f"idx:{folder}#train"


def changed(image, kind, rng):
    """A 28 x 28 grey image after one change."""
    from PIL import Image

    picture = Image.fromarray(image)
    if kind == "recompressed":
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=50)
        picture = Image.open(file)
    elif kind == "resized":
        picture = picture.resize((20, 20), Image.Resampling.BICUBIC).resize((28, 28), Image.Resampling.BICUBIC)
    elif kind == "cropped":
        left, top = rng.integers(0, 7, 2)
        picture = picture.crop((left, top, left + 22, top + 22)).resize((28, 28), Image.Resampling.BICUBIC)
    elif kind == "brightened":
        picture = Image.fromarray(np.clip(image * 1.3, 0, 255).astype(np.uint8))
    elif kind == "flipped":
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture.convert("L"))


def features(args, spec, name):
    """Feature folders of a source by the trained network and by its pixels."""
    for model, column in [(args.model, "cls"), ("pixels", "pixels")]:
        if column not in args.columns:
            continue
        out = args.work / f"{name}-{column}"
        if not out.exists():
            macula("extract", "--model", model, "--data", spec, "--out", out, "--batch", 256)
        yield column, out


def copies(args):
    """Recall of planted copies by kind of change, and how many rows go for another reason."""
    rng = np.random.default_rng(0)
    images, labels = emoji(args.emoji) if args.emoji else fashion(args.data, "train")
    images, labels = images[:20_000], labels[:20_000]
    pool = len(images)
    originals = rng.choice(pool, min(1000, pool // 2), replace=False)
    kinds = [KINDS[i % len(KINDS)] for i in range(len(originals))]
    planted = np.stack([changed(images[o], kind, rng) for o, kind in zip(originals, kinds)])
    spec = write_idx(args.work / "copies", np.concatenate([images, planted]), np.concatenate([labels, labels[originals]]))

    print(f"{'search':28} {'precision':>9} " + " ".join(f"{kind:>12}" for kind in KINDS) + f" {'removed':>8} {'largest':>8}")
    for column, folder in features(args, spec, "copies"):
        runs = [(f"{column} > {t}", ["--threshold", t]) for t in args.thresholds]
        if column == "pixels":
            runs += [("equal pixels", ["--threshold", 1, "--pixels", "bytes"])]
            runs += [("hash and correlation", ["--threshold", 1, "--pixels", "hash"])]
        for name, flags in runs:
            out = args.work / "copies-out"
            json_ = macula("curate", "dedup", "--features", folder, "--out", out, "--force", "--json", *flags)
            found = pl.read_parquet(out / "list.parquet").sort("row")
            component, kept = found["component"].to_numpy(), found["kept"].to_numpy()
            together = component[originals] == component[pool + np.arange(len(originals))]
            recall = [together[[k == kind for k in kinds]].mean() for kind in KINDS]
            # A row that left rightly has the original or the copy of it in its component.
            pairs = {int(o): pool + i for i, o in enumerate(originals)}
            pairs |= {copy: original for original, copy in pairs.items()}
            removed = np.flatnonzero(~kept)
            right = sum(int(row) in pairs and component[pairs[int(row)]] == component[row] for row in removed)
            precision = right / len(removed) if len(removed) else float("nan")
            cells = " ".join(f"{value:12.3f}" for value in recall)
            print(f"{name:28} {precision:9.3f} {cells} {len(removed):8} {json_['counts']['largest_component']:8}", flush=True)


def overlap(args):
    """Planted test images in a pool of training images: are all found, and what else is named?"""
    rng = np.random.default_rng(1)
    images, labels = fashion(args.data, "train")
    test_images, test_labels = fashion(args.data, "t10k")
    chosen = rng.choice(len(test_images), 200, replace=False)
    pool = np.concatenate([images[:20_000], test_images[chosen]])
    spec = write_idx(args.work / "pool", pool, np.concatenate([labels[:20_000], test_labels[chosen]]))
    test = dict(features(args, f"idx:{args.data}#test", "test"))
    for column, folder in features(args, spec, "pool"):
        for threshold in args.thresholds:
            out = args.work / f"overlap-{column}-{threshold}"
            words = ["--features", folder, "--against", test[column], "--threshold", threshold, "--component-threshold", 1]
            counts = macula("curate", "overlap", *words, "--out", out, "--force", "--json")["counts"]
            found = pl.read_parquet(out / "list.parquet").sort("row")
            gone = ~found["kept"].to_numpy()
            pairs = set(pl.read_parquet(out / "pairs.parquet")["row"].to_list())
            unshown = sum(int(row) not in pairs for row in np.flatnonzero(gone))
            print(
                f"{column} > {threshold}: {gone[20_000:].sum()} of {len(chosen)} planted found, {gone[:20_000].sum()} others "
                f"named, {unshown} of them without a pair; {counts['pairs']} pairs",
                flush=True,
            )


def balance(args):
    """Class entropy of a pool skewed 100 to 1, and of 20 % of it."""
    images, labels = fashion(args.data, "train")
    rng = np.random.default_rng(2)
    wanted = [round(6000 * 100 ** (-c / 9)) for c in range(10)]
    rows = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(wanted)])
    rows = rng.permutation(rows)
    spec = write_idx(args.work / "skewed", images[rows], labels[rows])
    print(f"{len(rows)} rows, by class {wanted}")
    for column, folder in features(args, spec, "skewed"):
        for method in ["random", "flat", "hierarchical"]:
            entropies = []
            for seed in range(3):
                out = args.work / f"balance-{column}-{method}-{seed}"
                words = ["--features", folder, "--size", 0.2, "--method", method, "--seed", seed]
                counts = macula("curate", "sample", *words, "--out", out, "--force", "--json")["counts"]
                entropies.append(counts["label_entropy_after"])
            table = pl.read_parquet(out / "list.parquet").filter("kept")["label"].value_counts().sort("label")
            print(
                f"{column} {method}: entropy {counts['label_entropy_before']:.4f} to "
                f"{np.mean(entropies):.4f} ({min(entropies):.4f} to {max(entropies):.4f}), by class {table['count'].to_list()}",
                flush=True,
            )


def synthetic(folder, rows, dim=384, part=50_000):
    """A feature folder of unit rows: topics, sub-topics within them, and 10 % near-copies (cosine about 0.9)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(rows)
    topics = rng.standard_normal((1000, dim), dtype=np.float32)
    weights = 1 / np.arange(1, 1001)
    for number, first in enumerate(range(0, rows, part)):
        n = min(part, rows - first)
        x = topics[rng.choice(1000, n, p=weights / weights.sum())] + rng.standard_normal((n, dim), dtype=np.float32)
        copied = n // 10
        x[:copied] = x[n - copied :] + 0.6 * rng.standard_normal((copied, dim), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        frame = pl.DataFrame(
            {"row": np.arange(first, first + n, dtype=np.uint64), "path": [f"{i}.png" for i in range(first, first + n)]}
        ).with_columns(pl.lit(None, pl.String).alias("label"), pl.Series("cls", x, pl.Array(pl.Float32, dim)))
        frame.write_parquet(folder / f"part-{number:05}.parquet", compression="uncompressed", statistics=False)
    meta = {
        "format_version": 1, "tool_version": "synthetic", "model": {"kind": "synthetic"}, "preprocess": {},
        "outputs": [{"name": "cls", "shape": [dim]}], "source": {"kind": "synthetic"}, "n_rows": rows,
        "shard": {"index": 0, "count": 1}, "part_rows": part, "on_error": "fail", "n_written": rows, "n_failed": 0,
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "errors.csv").write_text("row,path,error\n")
    (folder / "_SUCCESS").write_text("")


def measured(*words):
    """Wall seconds, peak memory in GB, and the JSON of a run."""
    start = time.perf_counter()
    run = subprocess.Popen([MACULA, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    text = run.stdout.read()
    _, status, usage = os.wait4(run.pid, 0)
    assert status == 0, words
    return time.perf_counter() - start, usage.ru_maxrss / 2**20, usage.ru_utime + usage.ru_stime, json.loads(text)


def scaled_steps(args):
    """Rows, name and command of dedup and of a hierarchy of 4 levels on synthetic features."""
    for rows in args.rows:
        folder = args.work / f"synthetic-{rows}"
        if not (folder / "_SUCCESS").exists():
            synthetic(folder, rows)
        levels = ",".join(str(rows // by) for by in (50, 500, 2500, 5000))
        for step, flags in [
            ("dedup", ["--threshold", 0.8]),
            ("sample", ["--size", 0.1, "--levels", levels, "--iterations", 25]),
        ]:
            if step in args.steps:
                yield rows, step, ["curate", step, "--features", folder, *flags, "--json", "--force"]


def scale(args):
    """Time and peak memory of the steps."""
    print(f"{'rows':>9} {'step':8} {'wall s':>8} {'cpu s':>8} {'peak GB':>8}  result")
    for rows, step, words in scaled_steps(args):
        out = args.work / f"scale-{rows}-{step}"
        wall, peak, cpu, json_ = measured(*words, "--threads", args.threads, "--out", out)
        counts = {k: v for k, v in json_["counts"].items() if k in ("kept", "edges", "search", "edge_recall", "clusters")}
        print(f"{rows:9} {step:8} {wall:8.1f} {cpu:8.1f} {peak:8.2f}  {counts}", flush=True)


def ranks(args):
    """The steps on one process and on ranks, each of one thread: time, the memory of each, and whether the lists are the same."""
    print(f"{'rows':>9} {'step':8} {'launcher':16} {'wall s':>8}  memory in GB")
    for rows, step, words in scaled_steps(args):
        lists = []
        for launcher in ["", args.mpiexec]:
            out = args.work / f"ranks-{rows}-{step}-{len(launcher.split())}"
            start = time.perf_counter()
            command = [*launcher.split(), MACULA, *map(str, words), "--threads", "1", "--out", str(out)]
            run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            said = run.stderr.read()
            _, status, usage = os.wait4(run.pid, 0)
            assert status == 0, (command, said)
            told = [line.split("at most: ")[1] for line in said.splitlines() if "memory of ranks" in line]
            memory = told[0] if told else f"{usage.ru_maxrss * 1024 / 1e9:.2f} GB"
            print(f"{rows:9} {step:8} {launcher:16} {time.perf_counter() - start:8.1f}  {memory}", flush=True)
            lists.append((out / "list.parquet").read_bytes())
        print(f"{rows:9} {step:8} the lists are {'the same' if lists[0] == lists[1] else 'NOT THE SAME'}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["copies", "overlap", "balance", "scale", "ranks"])
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--emoji", type=pathlib.Path)
    parser.add_argument("--model")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("curate-work"))
    parser.add_argument("--thresholds", type=lambda t: [float(v) for v in t.split(",")], default=[0.8, 0.9, 0.95, 0.98, 0.99, 0.995])
    parser.add_argument("--columns", type=lambda t: t.split(","), default=["cls", "pixels"])
    parser.add_argument("--rows", type=lambda t: [int(v) for v in t.split(",")], default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=lambda t: t.split(","), default=["dedup", "sample"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--mpiexec", default="mpiexec -n 2")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    globals()[args.what](args)


if __name__ == "__main__":
    main()
