"""Logistic regression of macula beside scikit-learn's, at the same objective and the same number of threads.

Usage: logreg_vs_sklearn.py BENCH_LOGISTIC [--threads N] [--repetitions N] [--spectrum RATIO] [--fashion-mnist FOLDER]

BENCH_LOGISTIC is the built example `cargo build --release -p macula-eval --example bench_logistic`. Each side uses the
loosest of its tolerances that ends within 1e-6 (relative) of the minimum, which is what macula finds at its tightest
(a lower one would show as a negative gap); repetitions are interleaved and the smallest time of each counts. On a
machine that does other work too, CPU seconds (of all threads; macula's include reading the file) say more than the
clock. Objectives are computed here in f64 from the weights of both.
"""

import argparse
import gzip
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
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--repetitions", type=int, default=5)
parser.add_argument("--fashion-mnist", type=pathlib.Path, help="IDX files, gzipped: raw pixels instead of clusters")
parser.add_argument("--spectrum", type=float, default=10.0, help="largest over smallest deviation of a column")
parser.add_argument("--c", type=float, default=1.0)
arguments = parser.parse_args()
for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"]:
    os.environ[name] = str(arguments.threads)

import numpy as np  # noqa: E402: the number of threads is read at import
import sklearn  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

OURS = [1e-6, 1e-7, 1e-8, 1e-9, 1e-10]
THEIRS = [1e-4, 1e-5, 1e-6, 1e-7]


def clusters(n, seed):
    """Overlapping clusters, 384 wide, around the same centres for any seed; deviations from 1 down to 1 / spectrum."""
    scales = np.geomspace(1, 1 / arguments.spectrum, 384)
    centres = np.random.default_rng(0).normal(size=(10, 384)) * 0.15
    offset = np.random.default_rng(2).normal(size=384)
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, n)
    return ((centres[y] + rng.normal(size=(n, 384)) + offset) * scales).astype(np.float32), y


def idx(folder, name):
    raw = gzip.decompress((folder / f"{name}.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=16 if "images" in name else 8)


def load():
    folder = arguments.fashion_mnist
    if folder is None:
        return clusters(60_000, 3), clusters(10_000, 4)
    pixels = lambda name: (idx(folder, name).reshape(-1, 784) / 255.0).astype(np.float32)
    labels = lambda name: idx(folder, name).astype(np.int64)
    return (
        (pixels("train-images-idx3-ubyte"), labels("train-labels-idx1-ubyte")),
        (pixels("t10k-images-idx3-ubyte"), labels("t10k-labels-idx1-ubyte")),
    )


(x, y), (x_test, y_test) = load()
wide = x.astype(np.float64)


def evaluate(weights, biases):
    z = wide @ weights.T + biases
    top = z.max(axis=1)
    losses = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(y)), y]
    accuracy = float(((x_test.astype(np.float64) @ weights.T + biases).argmax(axis=1) == y_test).mean())
    return 0.5 * (weights**2).sum() + arguments.c * losses.sum(), accuracy


def cpu(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def ours(folder):
    def run(tolerance):
        before = cpu(resource.RUSAGE_CHILDREN)
        words = [x.shape[1], y.max() + 1, arguments.c, tolerance]
        command = [arguments.bench, folder / "x", folder / "y", *map(str, words)]
        out = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        parameters = np.array(out["parameters"])
        classes, biases = y.max() + 1, y.max() + 1
        weights = parameters[:-biases].reshape(classes, -1)
        used = cpu(resource.RUSAGE_CHILDREN) - before
        return out["seconds"], used, out["iterations"], *evaluate(weights, parameters[-biases:])

    return run


def theirs(features):
    def run(tolerance):
        model = LogisticRegression(C=arguments.c, tol=tolerance, max_iter=2000)
        before, start = cpu(resource.RUSAGE_SELF), time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features, y)
        seconds, used = time.perf_counter() - start, cpu(resource.RUSAGE_SELF) - before
        weights, biases = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
        return seconds, used, int(model.n_iter_[0]), *evaluate(weights, biases)

    return run


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "x").write_bytes(x.tobytes())
    (folder / "y").write_bytes(y.astype(np.uint32).tobytes())
    sides = {"macula": (ours(folder), OURS)}
    sides["scikit-learn f32"] = (theirs(x), THEIRS)
    sides["scikit-learn f64"] = (theirs(wide), THEIRS)
    minimum = ours(folder)(1e-12)[3]
    print(f"{len(x)} x {x.shape[1]}, {y.max() + 1} classes, C = {arguments.c}, {arguments.threads} threads, "
          f"scikit-learn {sklearn.__version__}; minimum {minimum:.6f}", flush=True)
    chosen = {}
    for name, (run, tolerances) in sides.items():
        for tolerance in tolerances:
            seconds, used, iterations, objective, _ = run(tolerance)
            gap = objective / minimum - 1
            print(f"{name:17} tolerance {tolerance:.0e}  {iterations:5} iterations  {seconds:7.2f} s  "
                  f"{used:7.2f} CPU s  gap {gap:+.1e}", flush=True)
            if gap <= 1e-6:
                chosen[name] = tolerance
                break
        else:
            print(f"{name:17} never within 1e-6 of the minimum")
    runs = {name: [] for name in chosen}
    for _ in range(arguments.repetitions):
        for name, tolerance in chosen.items():
            runs[name].append(sides[name][0](tolerance))
    for name, results in runs.items():
        clock, used = sorted(r[0] for r in results), min(r[1] for r in results)
        _, _, iterations, objective, accuracy = results[0]
        print(f"{name:17} tolerance {chosen[name]:.0e}  {iterations:4} iterations  min {clock[0]:.2f} s  median "
              f"{clock[len(clock) // 2]:.2f} s  {used:.2f} CPU s  objective {objective:.6f}  test accuracy {accuracy:.4f}")
