#!/usr/bin/env python3
"""The paper's sweep over 45 values of C, macula's beside scikit-learn's on the same rows, each fit started from the one before.

    c_sweep_vs_sklearn.py BENCH_LOGISTIC TRAIN_FEATURES [--column NAME] [--rows 60000] [--threads 2] [--tolerance 1e-6]
                          [--values N] [--solver lbfgs|newton-cholesky] [--standardise]

BENCH_LOGISTIC is `cargo build --release -p macula-eval --example bench_logistic`. TRAIN_FEATURES is a labelled feature folder;
a tenth of its rows, drawn with seed 0, chooses C. macula runs at tolerance 1e-9 (a promised relative decrease); scikit-learn
(lbfgs, or --solver newton-cholesky, f64, at most 5,000 iterations) at a gradient tolerance that ends within 1e-6 of the same objective, which the table shows.
--values N takes every (45 / N)th value for scikit-learn, which is slow: times are then compared on those values. CPU seconds of
all threads, since the machine may be shared. --standardise brings the columns of both sides to mean 0 and deviation 1, which suits
lbfgs.

Needs: numpy, polars, scikit-learn.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import tempfile
import time
import warnings

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("bench", type=pathlib.Path)
parser.add_argument("features", type=pathlib.Path)
parser.add_argument("--column", default="cls")
parser.add_argument("--rows", type=int, default=60_000)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--tolerance", type=float, default=1e-6)
parser.add_argument("--values", type=int, default=45)
parser.add_argument("--solver", choices=["lbfgs", "newton-cholesky"], default="lbfgs")
parser.add_argument("--standardise", action="store_true")
arguments = parser.parse_args()
for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"]:
    os.environ[name] = str(arguments.threads)

import numpy as np  # noqa: E402: the number of threads is read at import
import polars  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402


def load():
    parts = sorted(arguments.features.glob("part-*.parquet"))
    frame = polars.concat([polars.read_parquet(part, columns=["label", arguments.column]) for part in parts])
    x = np.ascontiguousarray(frame[arguments.column].to_numpy(), np.float32).reshape(frame.height, -1)
    names = sorted(set(frame["label"]))
    y = np.array([names.index(label) for label in frame["label"]], np.int64)
    order = np.random.default_rng(0).permutation(len(y))[: arguments.rows]
    held_out = len(order) // 10
    return x[order[held_out:]], y[order[held_out:]], x[order[:held_out]], y[order[:held_out]], len(names)


def cpu(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def main():
    x, y, val, y_val, classes = load()
    if arguments.standardise:
        mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        deviation[deviation == 0] = 1
        x, val = (((rows - mean) / deviation).astype(np.float32) for rows in (x, val))
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for name, values in (("x", x), ("y", y.astype(np.uint32)), ("v", val), ("w", y_val.astype(np.uint32))):
            (folder / name).write_bytes(np.ascontiguousarray(values).tobytes())
        before, start = cpu(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [arguments.bench, "sweep", *(folder / name for name in "xyvw"), x.shape[1], classes, 1e-9]
        out = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
        ours_seconds, ours_cpu = time.perf_counter() - start, cpu(resource.RUSAGE_CHILDREN) - before
    ours = [json.loads(line) for line in out.splitlines()]
    print(f"{x.shape[0]} x {x.shape[1]}, {classes} classes, {len(val)} rows held out, {arguments.threads} threads, "
          f"{arguments.solver}, columns {'standardised' if arguments.standardise else 'as they are'}")
    print(f"macula: 45 values in {ours_seconds:.1f} s, {ours_cpu:.1f} s of CPU, reading the files included", flush=True)
    wide, wide_val = x.astype(np.float64), val.astype(np.float64)
    model = LogisticRegression(tol=arguments.tolerance, max_iter=5000, warm_start=True, solver=arguments.solver)
    step = max(1, 45 // arguments.values)
    before, start, theirs = cpu(resource.RUSAGE_SELF), time.perf_counter(), {}
    print("| C | macula objective | scikit-learn, relative | iterations | val macula | val scikit-learn |")
    print("|---|---|---|---|---|---|")
    for row in ours[::step]:
        model.set_params(C=row["c"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(wide, y)
        z = wide @ model.coef_.T + model.intercept_
        top = z.max(axis=1)
        loss = (np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(y)), y]).sum()
        objective = 0.5 * (model.coef_**2).sum() + row["c"] * loss
        theirs[row["c"]] = float((model.predict(wide_val) == y_val).mean())
        print(f"| {row['c']:.2e} | {row['objective']:.6f} | {objective / row['objective'] - 1:+.1e} | {row['iterations']} and "
              f"{int(model.n_iter_[0])} | {row['val_top1']:.4f} | {theirs[row['c']]:.4f} |", flush=True)
    seconds, used = time.perf_counter() - start, cpu(resource.RUSAGE_SELF) - before
    print(f"scikit-learn: {len(theirs)} values in {seconds:.1f} s, {used:.1f} s of CPU")
    of_values = {row["c"]: row["val_top1"] for row in ours if row["c"] in theirs}
    best = lambda scores: max(scores, key=lambda c: (scores[c], -c))
    print(f"chosen C: macula {best(of_values):.2e}, scikit-learn {best(theirs):.2e}")
    print(f"CPU: {used / ours_cpu * 45 / len(theirs):.1f} times macula's" + (", from the values tried" if step > 1 else ""))


if __name__ == "__main__":
    main()
