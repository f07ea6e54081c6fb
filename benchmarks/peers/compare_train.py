#!/usr/bin/env python3
"""Compares one training step of macula with PyTorch's or lightly-train's, turn about on one machine.

    compare_train.py MACULA [--geometry a|b|c|d] [--batch N] [--recipe dinov2|dino|ibot|moco] [--repetitions 5] [--threads N] [--steps 10]
                     [--device cpu|cuda] [--compile] [--dtype f32|bf16] [--python PYTHON] [--json]
                     [--peer torch|lightly] [--data FOLDER] [--allocators glibc,kept,jemalloc] [--macula-result FILE]

MACULA is the built command. Each repetition runs `macula bench train --json` and `torch_step.py --json` once each, as
processes of their own and with the same geometry and threads; the order changes with each repetition. The table gives
each side's best and median, and the ratio macula / PyTorch within repetitions (median, smallest, largest): above 1 in
images a second, macula is faster; below 1 in memory, it needs less. --compile concerns PyTorch alone.

--peer lightly is lightly-train's pretraining at geometry b (lightly_step.py): its own losses, crops and loader, whose images macula
then reads and crops beside the steps too where --data names them; without --data they are small made ones, and macula's are
noise. With --data the time of decoding and augmentation counts on both sides, as in real runs.

--allocators runs PyTorch once a repetition with each of: glibc, as it comes; kept, glibc told by MALLOC_MMAP_THRESHOLD_ and
MALLOC_TRIM_THRESHOLD_ to keep what is freed; jemalloc, preloaded, with the settings of PyTorch's tuning guide. macula's own allocator
(mimalloc) keeps freed pages too, so `kept` and jemalloc are the equal comparison, and a table is printed for each.

--macula-result is what `macula bench train --json` of the same settings has printed before, which then is not run again.

The recipe dinov2 is macula's `dinov2-small`, which has one head for CLS and patches; PyTorch gets the same. Both sides
report how many weights they train, and different networks are an error. Exit code 0: compared. 1: a run failed, or the
networks differ. 2: bad arguments. Needs: Python 3.9; PYTHON (default: this one) needs torch, or
lightly-train.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

MACULA_RECIPE = {"dinov2": "dinov2-small", "dino": "dino", "ibot": "ibot", "moco": "moco"}
QUANTITIES = [
    ("images_per_second", "images/s", 1, max),
    ("step_seconds", "s a step", 1, min),
    ("peak_rss_bytes", "peak memory, MiB", 2**20, min),
]
ON_A_GPU = ("cuda_peak_bytes", "peak memory of tensors on the GPU, MiB", 2**20, min)
# PyTorch's environment by the allocator that it is given; `--jemalloc` says where that library is.
ALLOCATORS = {
    "glibc": {},
    "kept": {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**28)},
    "jemalloc": {"MALLOC_CONF": "oversize_threshold:1,background_thread:true,metadata_thp:auto,dirty_decay_ms:9000000000,muzzy_decay_ms:9000000000"},
}
PARAMETERS = 0.001  # relative; a mask token that never trains may be counted or not


class Failure(Exception):
    """A run that gave no result; the message is one line."""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--geometry", choices=["a", "b", "c", "d"], default="a")
    parser.add_argument("--batch", type=int, help="images a step, in place of the geometry's")
    parser.add_argument("--recipe", choices=MACULA_RECIPE, default="dinov2")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed in each run")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="what products are computed in, on both sides")
    parser.add_argument("--compile", action="store_true", help="PyTorch's step through torch.compile")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--peer", choices=["torch", "lightly"], default="torch")
    parser.add_argument("--data", type=pathlib.Path, help="a folder of images, for --peer lightly")
    parser.add_argument("--allocators", type=lambda text: text.split(","), default=["glibc"], help="PyTorch's, in turn")
    parser.add_argument("--jemalloc", default="libjemalloc.so.2", help="the library for --allocators jemalloc")
    parser.add_argument("--macula-result", type=pathlib.Path, help="printed before by `macula bench train --json`")
    parser.add_argument("--json", action="store_true", help="one JSON object with every run")
    given = parser.parse_args()
    if not given.macula.is_file():
        parser.error(f"{given.macula}: expected macula's binary, found no such file")
    if given.peer == "lightly" and (given.geometry, given.recipe, given.device) != ("b", "dinov2", "cpu"):
        parser.error("--peer lightly is for --geometry b with the recipe dinov2 on the CPU")
    if given.data and given.peer != "lightly":
        parser.error("--data is for --peer lightly; torch_step.py has crops of noise")
    if unknown := [name for name in given.allocators if name not in ALLOCATORS]:
        parser.error(f"--allocators: expected {', '.join(ALLOCATORS)}, found {unknown[0]}")
    if given.allocators != ["glibc"] and given.peer != "torch":
        parser.error("--allocators is for --peer torch")
    if min(given.repetitions, given.threads, given.steps) < 1:
        parser.error("repetitions, threads and steps must be at least 1")
    return given


def commands(given):
    """The command lines and what each adds to the environment, by name."""
    shared = ["--geometry", given.geometry, "--threads", str(given.threads), "--steps", str(given.steps)]
    shared += ["--device", given.device, "--json"]
    macula = [str(given.macula.resolve()), "bench", "train", "--recipe", MACULA_RECIPE[given.recipe], *shared]
    macula += ["--set", f"compute={given.dtype}"]
    macula += ["--set", f"batch_size={given.batch}"] if given.batch else []
    folder = pathlib.Path(__file__).resolve().parent
    if given.peer == "lightly":
        precision = {"f32": "32-true", "bf16": "bf16-mixed"}[given.dtype]
        lightly = [given.python, str(folder / "lightly_step.py"), "--precision", precision]
        lightly += ["--batch", str(given.batch)] if given.batch else []
        lightly += ["--threads", str(given.threads), "--steps", str(given.steps)]
        data = ["--data", str(given.data.resolve())] if given.data else []
        return {"macula": (macula + data, {}), "lightly-train": (lightly + data, {})}
    script = folder / "torch_step.py"
    torch = [given.python, str(script), "--recipe", given.recipe, "--dtype", given.dtype, *shared]
    torch += ["--batch", str(given.batch)] if given.batch else []
    torch += ["--compile"] if given.compile else []
    torch += ["--shared-head"] if given.recipe == "dinov2" else []
    sides = {"macula": (macula, {})}
    for allocator in given.allocators:
        environment = dict(ALLOCATORS[allocator])
        if allocator == "jemalloc":
            environment["LD_PRELOAD"] = given.jemalloc
        sides["PyTorch" if allocator == "glibc" else f"PyTorch ({allocator})"] = (torch, environment)
    return sides


def measured(name, command, environment):
    """What one run printed, or printed before where the command is a file."""
    if isinstance(command, pathlib.Path):
        try:
            return checked(name, command.read_text())
        except OSError as error:
            raise Failure(f"{command}: {error.strerror}") from error
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    except OSError as error:
        raise Failure(f"{name}: {command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "nothing was printed").splitlines()
        # PyTorch's own advice follows its error.
        said = next((line for line in reversed(lines) if "out of memory" in line.lower()), lines[-1])
        raise Failure(f"{name} ended with code {done.returncode}: {said}")
    return checked(name, done.stdout)


def checked(name, text):
    """The result that `text` is."""
    try:
        result = json.loads(text)
    except ValueError as error:
        raise Failure(f"{name}: expected JSON on stdout, found: {text.strip()[:200]!r}") from error
    for key in [key for key, *_ in QUANTITIES]:
        value = result.get(key)
        if not isinstance(value, (int, float)) or value <= 0:
            raise Failure(f"{name}: `{key}`: expected a number above 0, found {value!r}")
    return result


def check_networks(runs):
    """All must train the same network."""
    macula = runs["macula"][0].get("parameters")
    for name, results in runs.items():
        found = results[0].get("parameters")
        if not macula or not found or abs(macula - found) > PARAMETERS * found:
            raise Failure(f"the networks differ: macula trains {macula} weights, {name} {found}")


def table(runs, peer):
    """Lines of Markdown: a quantity a row."""
    lines = [
        f"| | macula, best | median | {peer}, best | median | macula / {peer}, median (range) |",
        "|---|---|---|---|---|---|",
    ]
    sides = {name: runs[name] for name in ["macula", peer]}
    on_a_gpu = all(run.get(ON_A_GPU[0]) for results in sides.values() for run in results)
    for key, title, unit, best in [*QUANTITIES[:2], ON_A_GPU if on_a_gpu else QUANTITIES[2]]:
        values = {name: [run[key] / unit for run in results] for name, results in sides.items()}
        ratios = [ours / theirs for ours, theirs in zip(values["macula"], values[peer])]
        cells = [number(of(values[name])) for name in ["macula", peer] for of in [best, statistics.median]]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {title} | {' | '.join(cells)} | {spread} |")
    return lines


def number(value):
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def compare(given):
    """Runs both in turn; the order changes, so that neither always follows the other's heat and caches."""
    turn = list(commands(given).items())
    if given.macula_result:
        turn = [(name, (given.macula_result, {}) if name == "macula" else side) for name, side in turn]
    runs = {name: [] for name, _ in turn}
    for repetition in range(given.repetitions):
        for name, (command, environment) in turn:
            result = measured(name, command, environment)
            if "jemalloc" in name and not result.get("jemalloc", True):
                raise Failure(f"{name}: expected the library of --jemalloc in the process, found glibc's allocator alone")
            runs[name].append(result)
            rate, seconds = result["images_per_second"], result["step_seconds"]
            print(f"{repetition + 1} {name}: {rate:.1f} images/s, {seconds:.3f} s a step", file=sys.stderr)
        if repetition == 0 and given.peer == "torch":
            check_networks(runs)
        turn.reverse()
    return runs


def main():
    given = arguments()
    try:
        runs = compare(given)
    except Failure as failure:
        print(f"compare_train.py: {failure}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps(runs))
    else:
        print("\n\n".join("\n".join(table(runs, peer)) for peer in runs if peer != "macula"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
