#!/usr/bin/env python3
"""The recipes on equal time, beside an untrained network and raw pixels: one table.

    recipes.py MACULA --train idx:FOLDER#train --test idx:FOLDER#test --minutes 20
    recipes.py MACULA --train .. --test .. --minutes 20 --recipes dino,ibot --seeds 0,1,2 --lanes 2
    recipes.py MACULA --train idx:FOLDER#train --test idx:FOLDER#test --steps 1000 --recipes dino --counts 500,2000,10000,60000
    recipes.py MACULA --folds EMOJI --minutes 30 --recipes dinov2-small --background 255,255,255

Each recipe's rate on all threads is measured first, the median of three short runs on a machine that should be idle then; a recipe trains for
as many steps as the minutes hold at that rate. With --lanes so many runs train at once, each on its part of the threads and for as many steps:
longer by the clock each, sooner together. --steps sets their number instead, and --counts trains on the first so many images of IDX files
alone. The teacher is exported and evaluated: k-NN (k = 20) and linear probe of
its class token, and the best head of DINOv2's grid, which may have the mean patch token beside it, on --test, or with --folds (a folder
made by emoji_data.py) the mean of k-NN over its five folds; training sees all images and never a label. Every command is printed before
it runs. A run that stands in --work already is evaluated again, not trained again.
"""

import argparse
import concurrent.futures
import gzip
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tomllib

RATE_STEPS = 40
RATE_RUNS = 3
K = 20

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
parser.add_argument("--train")
parser.add_argument("--test")
parser.add_argument("--folds", type=pathlib.Path)
parser.add_argument("--recipes", type=lambda text: text.split(","), default=["dinov2-small", "dino", "ibot", "moco"])
parser.add_argument("--minutes", type=float, default=20)
parser.add_argument("--steps", type=int)
parser.add_argument("--counts", type=lambda text: [int(count) for count in text.split(",")], default=[None])
parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--lanes", type=int, default=1)
parser.add_argument("--background", help="colour under transparent pixels, in training and evaluation")
parser.add_argument("--set", action="append", default=[], help="as in macula train, for every recipe")
parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("recipes-work"))
arguments = parser.parse_args()
if (arguments.folds is None) == (arguments.train is None or arguments.test is None):
    parser.error("expected --train and --test, or --folds")


def run(*parts, threads=arguments.threads):
    command = [str(arguments.macula), *map(str, parts), "--threads", str(threads)]
    print("$", " ".join(command), file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def first_images(count):
    """The source of the first images of --train, IDX files."""
    folder = pathlib.Path(arguments.train.removeprefix("idx:").removesuffix("#train"))
    out = arguments.work / f"first-{count}"
    out.mkdir(exist_ok=True)
    for name, header, size in [("train-images-idx3-ubyte", 16, 28 * 28), ("train-labels-idx1-ubyte", 8, 1)]:
        path = folder / name
        data = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
        # Magic number, count, sides; all big-endian.
        (out / name).write_bytes(data[:4] + count.to_bytes(4, "big") + data[8:header] + data[header : header + count * size])
    return f"idx:{out}#train"


def train(recipe, out, steps, seed=0, count=None, threads=arguments.threads):
    source = first_images(count) if count else arguments.train or arguments.folds / "list.csv"
    settings = [f"steps={steps}", *arguments.set]
    if arguments.background:
        settings.append(f"data.loader.background=[{arguments.background}]")
    flags = [part for setting in settings for part in ("--set", setting)]
    flags += ["--seed", str(seed)]
    # The meters of collapse come with the online k-NN.
    run("train", "--recipe", recipe, "--data", source, "--knn-data", source, "--out", out, "--force", *flags, threads=threads)


def last_line(out):
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def steps_in_budget(recipe):
    """Steps that the minutes hold, at the rate of short runs; all rates are measured before the first training."""
    if arguments.steps:
        return arguments.steps
    rates = []
    for number in range(RATE_RUNS):
        out = arguments.work / f"{recipe}-rate-{number}"
        if not (out / "teacher.safetensors").exists():
            train(recipe, out, RATE_STEPS)
        rates.append(last_line(out)["images_per_second"])
    batch = tomllib.loads((out / "config.toml").read_text())["batch_size"]
    return round(arguments.minutes * 60 * statistics.median(rates) / batch)


def name_of(recipe, seed, count):
    parts = [recipe, str(seed) if arguments.seeds != [0] else "", f"{count}-images" if count else ""]
    return "-".join(filter(None, parts))


def trained(recipe, seed, count, steps):
    """The run of a recipe: its folder, and what its last line of metrics says."""
    out = arguments.work / name_of(recipe, seed, count)
    if not (out / "teacher.safetensors").exists():
        train(recipe, out, steps, seed, count, max(1, arguments.threads // arguments.lanes))
    return out, last_line(out)


def features(model, source, out, *flags):
    flags += ("--background", arguments.background) if arguments.background else ()
    run("extract", "--model", model, "--data", source, "--out", out, "--force", *flags)
    return out


def knn(train_folder, test_folder):
    result = json.loads(run("eval", "knn", "--train", train_folder, "--test", test_folder, "--k", K, "--json"))
    return result["rows"][0]


def probe(train_folder, test_folder):
    """The head that was chosen on a part of train, of those that the folders' columns allow."""
    result = json.loads(run("eval", "linear-probe", "--train", train_folder, "--test", test_folder, "--json"))
    return next(row for row in result["rows"] if row.get("top1") is not None)


def interval(row):
    return f"{row['top1']:.4f} ({row['top1_low']:.4f} to {row['top1_high']:.4f})"


def evaluate(name, model):
    """Cells of the table: k-NN and linear probe, or k-NN over folds."""
    place = arguments.work / f"features-{name}"
    if arguments.folds:
        scores = []
        for fold in range(5):
            pair = [
                features(model, arguments.folds / f"list_fold{fold}_{part}.csv", place / f"{fold}-{part}")
                for part in ("train", "test")
            ]
            scores.append(knn(*pair)["top1"])
        return [f"{sum(scores) / 5:.4f} ({min(scores):.4f} to {max(scores):.4f})"]
    pair = [features(model, source, place / part) for part, source in (("train", arguments.train), ("test", arguments.test))]
    if name == "pixels":
        return [interval(knn(*pair)), "", ""]
    sources = [("all-train", arguments.train), ("all-test", arguments.test)]
    both = [features(model, source, place / part, "--output", "cls,patch_mean") for part, source in sources]
    return [interval(knn(*pair)), interval(probe(*pair)), interval(probe(*both))]


def main():
    arguments.work.mkdir(parents=True, exist_ok=True)
    heading = ["features", "minutes", "steps", "images/s", "rank"]
    heading += ["k-NN over five folds, mean (least to most)"] if arguments.folds else ["k-NN, k = 20", "linear probe", "best head"]
    rows = [heading, ["---"] * len(heading)]
    steps = {recipe: steps_in_budget(recipe) for recipe in arguments.recipes}
    for recipe, count in steps.items():
        print(f"{recipe}: {count} steps", file=sys.stderr, flush=True)
    runs = list(itertools.product(arguments.recipes, arguments.seeds, arguments.counts))
    with concurrent.futures.ThreadPoolExecutor(arguments.lanes) as lanes:
        done = list(lanes.map(lambda chosen: trained(*chosen, steps[chosen[0]]), runs))
    for chosen, (out, last) in zip(runs, done):
        name = name_of(*chosen)
        model = arguments.work / f"{name}.onnx"
        run("export", out, "--out", model, "--force")
        rank = last.get("effective_rank")
        told = [f"{last['minutes']:.1f}", str(last["step"]), f"{last['images_per_second']:.0f}", f"{rank:.0f}" if rank else ""]
        rows.append([name, *told, *evaluate(name, model)])
    untrained = arguments.work / "untrained"
    if not (untrained / "teacher.safetensors").exists():
        train(arguments.recipes[0], untrained, 1)
    model = arguments.work / "untrained.onnx"
    run("export", untrained, "--out", model, "--force")
    rows.append(["untrained", "", "", "", "", *evaluate("untrained", model)])
    rows.append(["raw pixels", "", "", "", "", *evaluate("pixels", "pixels")])
    for row in rows:
        print("| " + " | ".join(row) + " |")


main()
