#!/usr/bin/env python3
"""The linear probe beside logistic regression, macula's and scikit-learn's, on the same frozen features.

    probe_vs_sklearn.py MACULA --demo DEMO [--emoji EMOJI] [--idx FOLDER] [--work DIR] [--seed N] [--only WORD]

MACULA is the binary, DEMO the folder of `macula demo --out DEMO`: its features of raw pixels, of the untrained and of the trained
network on 6,000 and 1,000 images of Fashion-MNIST. --emoji takes the folder that benchmarks/emoji_data.py filled: its first fold
(1,513 and 379 images, nine categories, over white) goes through the demo's trained network. --idx takes Fashion-MNIST's IDX files:
raw pixels of all 60,000 and 10,000 images, without scikit-learn, which takes an hour there.

A row a feature set, top-1 on its test images:

    10 epochs   eval linear-probe --epochs 10
    default     eval linear-probe, with its steps and epochs, the learning rate chosen, and its user CPU seconds
    logreg      eval logreg, C chosen among 45 values
    sklearn     LogisticRegression (f64), C chosen among 17 values, 1e-4 to 1e4; newton-cholesky, or lbfgs with up to 20,000
                iterations where classes times columns are above 4,000 and the Newton step's matrix too large

C, the learning rate and the head are chosen on a tenth of the training rows (each program draws its own), then all training rows
are fitted again and the test rows scored once.

Needs: numpy, pyarrow, scikit-learn.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import tempfile
import warnings

import numpy as np
import pyarrow.parquet as parquet
from sklearn.linear_model import LogisticRegression

C_VALUES = np.logspace(-4, 4, 17)


def run(macula, *words):
    """What `macula eval` prints with --json, and the user CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([str(word) for word in (macula, *words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr.strip().splitlines()[-1]}")
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    return (json.loads(done.stdout) if "--json" in words else None), seconds


def load(folder, column):
    tables = [parquet.read_table(part, columns=["label", column]) for part in sorted(folder.glob("part-*.parquet"))]
    x = [np.asarray(table[column].combine_chunks().flatten(), dtype=np.float32).reshape(len(table), -1) for table in tables]
    y = [label for table in tables for label in table["label"].to_pylist()]
    return np.concatenate(x).astype(np.float64), np.array(y)


def fit(c, x, y):
    solver = "newton-cholesky" if x.shape[1] * len(np.unique(y)) <= 4000 else "lbfgs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=c, solver=solver, max_iter=20_000, tol=1e-4).fit(x, y)


def sklearn_top1(train, test, column, seed):
    """Test accuracy of scikit-learn's, and the C that was chosen."""
    x, y = load(train, column)
    order = np.random.default_rng(seed).permutation(len(y))
    held_out, rest = order[: len(y) // 10], order[len(y) // 10 :]
    scores = [fit(c, x[rest], y[rest]).score(x[held_out], y[held_out]) for c in C_VALUES]
    c = C_VALUES[int(np.argmax(scores))]
    return fit(c, x, y).score(*load(test, column)), c


def row(name, macula, train, test, column, seed, with_sklearn=True):
    places = ["--train", train, "--test", test, "--column", column, "--seed", seed, "--json"]
    short, _ = run(macula, "eval", "linear-probe", "--epochs", 10, *places)
    probe, cpu = run(macula, "eval", "linear-probe", *places)
    logreg, _ = run(macula, "eval", "logreg", *places)
    best, settings = probe["rows"][0], probe["settings"]
    rate = best["head"].split("_lr_")[1]
    sklearn = "not run"
    if with_sklearn:
        top1, c = sklearn_top1(train, test, column, seed)
        sklearn = f"{top1:.4f} (C {c:.2g})"
    first = logreg["rows"][0]
    print(
        f"| {name} | {probe['n_train']} / {probe['n_test']} | {short['rows'][0]['top1']:.4f} | {best['top1']:.4f} "
        f"({best['top1_low']:.4f} to {best['top1_high']:.4f}) | {settings['steps']} ({settings['epochs']:.0f}) | {rate} | {cpu:.0f} "
        f"| {first['top1']:.4f} (C {first['c']:.2g}) | {sklearn} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=pathlib.Path)
    parser.add_argument("--demo", type=pathlib.Path, required=True)
    parser.add_argument("--emoji", type=pathlib.Path)
    parser.add_argument("--idx", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, help="where features are kept; a temporary folder by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="rows whose names hold this word")
    arguments = parser.parse_args()
    macula = arguments.macula.resolve()
    print("| features | train / test | 10 epochs | default | steps (epochs) | learning rate | CPU s | logreg | scikit-learn |")
    print("|---|---|---|---|---|---|---|---|---|")
    features = arguments.demo / "features"
    for name, kind, column in [
        ("Fashion-MNIST sample, raw pixels", "pixels", "pixels"),
        ("Fashion-MNIST sample, untrained ViT", "untrained", "cls"),
        ("Fashion-MNIST sample, the demo's ViT", "trained", "cls"),
    ]:
        if arguments.only in name:
            row(name, macula, features / kind / "train", features / kind / "test", column, arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or pathlib.Path(temporary)
        if arguments.emoji and arguments.only in "emoji, the demo's ViT":
            for split in ["train", "test"]:
                source = arguments.emoji / f"list_fold0_{split}.csv"
                model = ["--model", arguments.demo / "trained.onnx", "--background", "255,255,255"]
                run(macula, "extract", *model, "--data", source, "--out", work / f"emoji-{split}", "--force")
            row("emoji, the demo's ViT", macula, work / "emoji-train", work / "emoji-test", "cls", arguments.seed)
        if arguments.idx and arguments.only in "Fashion-MNIST, raw pixels":
            for split in ["train", "test"]:
                source = ["--model", "pixels", "--data", f"idx:{arguments.idx}#{split}"]
                run(macula, "extract", *source, "--out", work / f"idx-{split}", "--force")
            places = work / "idx-train", work / "idx-test"
            row("Fashion-MNIST, raw pixels", macula, *places, "pixels", arguments.seed, with_sklearn=False)


if __name__ == "__main__":
    main()
