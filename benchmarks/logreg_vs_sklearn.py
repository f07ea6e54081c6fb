"""Logistic regression of macula beside scikit-learn's, at the same objective and the same number of threads.

Usage: logreg_vs_sklearn.py BENCH_LOGISTIC [--threads N] [--repetitions N] [--spectrum RATIO] [--fashion-mnist FOLDER]
                            [--solvers lbfgs,newton-cholesky] [--columns given,standardised] [--rows N]

BENCH_LOGISTIC is the built example `cargo build --release -p macula-eval --example bench_logistic`. Each side uses the
loosest of its tolerances that ends within 1e-6 (relative) of the minimum, which is what macula finds at its tightest
(a lower one would show as a negative gap); repetitions are interleaved and the smallest time of each counts. On a
machine that does other work too, CPU seconds (of all threads; macula's include reading the file) say more than the
clock. Objectives are computed here in f64 from the weights of both.

scikit-learn runs with `lbfgs` in f32 and f64 and with `newton-cholesky`, which is made for many more rows than columns, in f64.
Columns of one deviation suit `lbfgs`; they make another problem, as the penalty is on other weights, so both sides solve it
("standardised"), to its own minimum.
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
parser.add_argument("--rows", type=int, default=60_000, help="training rows, the first ones")
parser.add_argument("--solvers", type=lambda text: text.split(","), default=["lbfgs", "newton-cholesky"])
parser.add_argument("--columns", type=lambda text: text.split(","), default=["given", "standardised"])
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


def evaluate(problem, weights, biases):
    z = problem.wide @ weights.T + biases
    top = z.max(axis=1)
    losses = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(problem.y)), problem.y]
    predicted = (problem.x_test.astype(np.float64) @ weights.T + biases).argmax(axis=1)
    return 0.5 * (weights**2).sum() + arguments.c * losses.sum(), float((predicted == problem.y_test).mean())


class Problem:
    """Rows of one kind of columns, with their labels."""

    def __init__(self, columns):
        (self.x, self.y), (self.x_test, self.y_test) = load()
        self.x, self.y = self.x[: arguments.rows], self.y[: arguments.rows]
        if columns == "standardised":
            mean, deviation = self.x.mean(axis=0, dtype=np.float64), self.x.std(axis=0, dtype=np.float64)
            deviation[deviation == 0] = 1
            self.x, self.x_test = (((rows - mean) / deviation).astype(np.float32) for rows in (self.x, self.x_test))
        self.wide = self.x.astype(np.float64)
        self.classes = int(self.y.max()) + 1


def cpu(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def ours(problem, folder):
    def run(tolerance):
        before = cpu(resource.RUSAGE_CHILDREN)
        words = [problem.x.shape[1], problem.classes, arguments.c, tolerance]
        command = [arguments.bench, folder / "x", folder / "y", *map(str, words)]
        out = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        parameters = np.array(out["parameters"])
        weights, biases = parameters[: -problem.classes].reshape(problem.classes, -1), parameters[-problem.classes :]
        used = cpu(resource.RUSAGE_CHILDREN) - before
        return out["seconds"], used, out["iterations"], *evaluate(problem, weights, biases)

    return run


def theirs(problem, solver, features):
    def run(tolerance):
        model = LogisticRegression(C=arguments.c, tol=tolerance, max_iter=2000, solver=solver)
        before, start = cpu(resource.RUSAGE_SELF), time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features, problem.y)
        seconds, used = time.perf_counter() - start, cpu(resource.RUSAGE_SELF) - before
        weights, biases = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
        return seconds, used, int(model.n_iter_[0]), *evaluate(problem, weights, biases)

    return run


def compare(problem, columns, folder):
    (folder / "x").write_bytes(problem.x.tobytes())
    (folder / "y").write_bytes(problem.y.astype(np.uint32).tobytes())
    sides = {"macula": (ours(problem, folder), OURS)}
    for solver in arguments.solvers:
        if solver == "lbfgs":
            sides["lbfgs f32"] = (theirs(problem, solver, problem.x), THEIRS)
        sides[f"{solver} f64"] = (theirs(problem, solver, problem.wide), THEIRS)
    minimum = ours(problem, folder)(1e-12)[3]
    print(f"{len(problem.x)} x {problem.x.shape[1]}, columns {columns}, {problem.classes} classes, C = {arguments.c}, "
          f"{arguments.threads} threads, scikit-learn {sklearn.__version__}; minimum {minimum:.6f}", flush=True)
    chosen = {}
    for name, (run, tolerances) in sides.items():
        for tolerance in tolerances:
            seconds, used, iterations, objective, _ = run(tolerance)
            gap = objective / minimum - 1
            print(f"{name:19} tolerance {tolerance:.0e}  {iterations:5} iterations  {seconds:7.2f} s  "
                  f"{used:7.2f} CPU s  gap {gap:+.1e}", flush=True)
            if gap <= 1e-6:
                chosen[name] = tolerance
                break
        else:
            print(f"{name:19} never within 1e-6 of the minimum")
    runs = {name: [] for name in chosen}
    for _ in range(arguments.repetitions):
        for name, tolerance in chosen.items():
            runs[name].append(sides[name][0](tolerance))
    for name, results in runs.items():
        clock, used = sorted(r[0] for r in results), min(r[1] for r in results)
        _, _, iterations, objective, accuracy = results[0]
        print(f"{name:19} tolerance {chosen[name]:.0e}  {iterations:4} iterations  min {clock[0]:.2f} s  median "
              f"{clock[len(clock) // 2]:.2f} s  {used:.2f} CPU s  objective {objective:.6f}  test accuracy {accuracy:.4f}",
              flush=True)


for columns in arguments.columns:
    with tempfile.TemporaryDirectory() as folder:
        compare(Problem(columns), columns, pathlib.Path(folder))
