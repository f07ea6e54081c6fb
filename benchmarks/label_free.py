#!/usr/bin/env python3
"""Do meters that need no labels order runs as k-NN does? One table of run folders, and Spearman's rank correlation.

    macula train .. --knn-data SRC --set monitor.label_free.every=N --out RUN
    label_free.py RUN RUN ..
    label_free.py --macula MACULA --images SRC --work DIR RUN RUN ..

Each run counts with its last line of metrics that has all of them: the online k-NN on labelled images (`knn_top1`), RankMe
(`effective_rank`), LiDAR (`lidar`) and the decay of the spectrum (`spectrum_decay`, negated: a flat spectrum decays slowly). Runs are compared
where they had the same images and the same online k-NN; of runs with the same figures the first counts. Intervals are percentiles of
2,000 samples of the runs with replacement. With --macula, which needs numpy, the features of one in twenty images of SRC (--share) come to it: the
agreement of a run is the share of an image's ten nearest neighbours that the other runs see too, as `macula tune` takes it. Runs on
other images than SRC are then left out.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tomllib

METERS = {"effective_rank": 1, "lidar": 1, "spectrum_decay": -1}
AGREEMENT = "agreement"
NEIGHBOURS = 10
SAMPLES = 2000

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--macula", type=pathlib.Path)
parser.add_argument("--images", help="images whose neighbours are compared, as --data of the runs")
parser.add_argument("--share", type=int, default=20, help="of --images, one in so many")
parser.add_argument("--background", help="colour under transparent pixels, as --background of the runs")
parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("label-free-work"))
parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN")
arguments = parser.parse_args()
if (arguments.macula is None) != (arguments.images is None):
    parser.error("expected --macula and --images, or neither")


def read(run):
    """The last line that has every meter, or None."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    complete = [line for line in lines if all(name in line for name in ["knn_top1", *METERS])]
    return complete[-1] if complete else None


def neighbours(run):
    """For each image which others are its nearest, as booleans [n, n]."""
    import numpy

    out = arguments.work / run.name
    if not list(out.glob("*/_SUCCESS")):
        flags = ["--shard", f"0/{arguments.share}", "--layout", "npy", "--force"]
        if arguments.background:
            flags += ["--background", arguments.background]
        command = [arguments.macula.resolve(), "extract", "--data", arguments.images, "--model", run, "--out", out, *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    features = numpy.load(next(out.glob("*/img_emb/img_emb_0.npy"))).astype(numpy.float32)
    features /= numpy.linalg.norm(features, axis=1, keepdims=True)
    cosines = features @ features.T
    numpy.fill_diagonal(cosines, -2)
    nearest = numpy.argpartition(-cosines, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    seen = numpy.zeros(cosines.shape, bool)
    numpy.put_along_axis(seen, nearest, True, axis=1)
    return seen


def agreements(runs):
    """For each run the mean share of its neighbours that the others see too."""
    graphs = [neighbours(run) for run in runs]
    together = sum(graph.astype("int32") for graph in graphs)
    return [(together[graph] - 1).mean() / (len(graphs) - 1) for graph in graphs]


def ranks(values):
    """Ranks from 0, the mean of theirs for equal values."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


def correlation(first, second):
    """Spearman's, or None where one side is constant."""
    first, second = ranks(first), ranks(second)
    middle = (len(first) - 1) / 2
    products = sum((a - middle) * (b - middle) for a, b in zip(first, second))
    squares = [sum((value - middle) ** 2 for value in side) for side in (first, second)]
    return products / (squares[0] * squares[1]) ** 0.5 if all(squares) else None


def interval(first, second):
    drawing = random.Random(0)
    found = []
    while len(found) < SAMPLES:
        rows = drawing.choices(range(len(first)), k=len(first))
        value = correlation([first[row] for row in rows], [second[row] for row in rows])
        if value is not None:
            found.append(value)
    found.sort()
    return found[SAMPLES // 40], found[-SAMPLES // 40]


def main():
    groups, seen = {}, set()
    for run in arguments.runs:
        last = read(run)
        if last is None:
            print(f"{run}: left out, no line of metrics has k-NN and every meter", file=sys.stderr)
            continue
        config = tomllib.loads((run / "config.toml").read_text())
        figures = (last["step"], last["loss"], last["knn_top1"], *(last[meter] for meter in METERS))
        if figures in seen:
            print(f"{run}: left out, another run has the same figures", file=sys.stderr)
            continue
        seen.add(figures)
        knn = config["monitor"]["knn"]
        same = (config["data"]["source"], knn["data"], knn["max_images"], knn["k"])
        groups.setdefault(same, []).append((run, config["recipe"], last))
    for (source, *_, images, k), runs in groups.items():
        signs = dict(METERS)
        if arguments.macula:
            if source != arguments.images or len(runs) < 2:
                continue
            signs[AGREEMENT] = 1
            for (*_, last), agreement in zip(runs, agreements([run for run, *_ in runs])):
                last[AGREEMENT] = agreement
        print(f"\n{source}: {len(runs)} runs, online k-NN of {images} images, k = {k}\n")
        print("| run | recipe | steps | k-NN | " + " | ".join(signs) + " |")
        print("|---" * (4 + len(signs)) + "|")
        for run, recipe, last in sorted(runs, key=lambda run: -run[2]["knn_top1"]):
            meters = " | ".join(f"{last[meter]:.3g}" for meter in signs)
            print(f"| {run.name} | {recipe} | {last['step']} | {last['knn_top1']:.4f} | {meters} |")
        print()
        top1 = [last["knn_top1"] for *_, last in runs]
        for meter, sign in signs.items():
            values = [sign * last[meter] for *_, last in runs]
            value = correlation(top1, values) if len(runs) > 2 else None
            if value is None:
                print(f"{meter}: no correlation of {len(runs)} runs")
                continue
            low, high = interval(top1, values)
            print(f"{meter}: rank correlation with k-NN {value:.2f} ({low:.2f} to {high:.2f})")


main()
