"""k-means: macula against faiss.Kmeans on the same clustered data, iterations, threads and machine, turn about.

Prints wall and CPU times and the objective (sum of squared distances) of each. faiss starts from random rows, macula from greedy
k-means++ over `--seeding-rows` of them, whose time is counted.

    cargo build --release --workspace --example bench_kmeans
    python benchmarks/kmeans_vs_faiss.py [--rows 100000 --dim 384 --k 1000 --iterations 25 --threads 2 --reps 3]

Needs numpy and faiss-cpu.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from knn_vs_faiss import cpu_seconds


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in [("rows", 100_000), ("dim", 384), ("k", 1000), ("iterations", 25), ("reps", 3)]:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seeding-rows", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).parent.parent / "target"))
    parser.add_argument("--binary", type=pathlib.Path, default=target / "release/examples/bench_kmeans")
    return parser.parse_args()


def main():
    args = arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    import faiss
    import numpy as np

    faiss.omp_set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3000, args.dim), dtype=np.float32)
    data = centres[rng.integers(len(centres), size=args.rows)]
    data = data + rng.standard_normal((args.rows, args.dim), dtype=np.float32)
    data /= np.linalg.norm(data, axis=1, keepdims=True)

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "data.f32")
        data.tofile(path)
        numbers = (args.dim, args.k, args.iterations, args.seeding_rows, args.threads)
        command = [str(args.binary), path, *map(str, numbers)]
        ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ratios = []
        for seed in range(args.reps):
            before = cpu_seconds(ours.pid)
            ours.stdin.write("go\n")
            ours.stdin.flush()
            seconds, objective = map(float, ours.stdout.readline().split())
            cpu = cpu_seconds(ours.pid) - before
            start, before = time.perf_counter(), time.process_time()
            theirs = faiss.Kmeans(
                args.dim, args.k, niter=args.iterations, seed=seed, max_points_per_centroid=args.rows, verbose=False
            )
            theirs.train(data)
            faiss_seconds, faiss_cpu = time.perf_counter() - start, time.process_time() - before
            # The objective that faiss reports is that before the last update; both are measured on the final centroids.
            distances, _ = theirs.index.search(data, 1)
            faiss_objective = float(distances.astype(np.float64).sum())
            ratios.append(seconds / faiss_seconds)
            print(
                f"seed {seed}: macula {seconds:.2f} s ({cpu:.1f} s CPU), objective {objective:.1f}; faiss "
                f"{faiss_seconds:.2f} s ({faiss_cpu:.1f} s CPU), objective {faiss_objective:.1f}; ratio {ratios[-1]:.2f}",
                flush=True,
            )
        ours.stdin.close()
        ours.wait()
    print(f"macula / faiss {faiss.__version__}: median {statistics.median(ratios):.2f} of wall time")


if __name__ == "__main__":
    main()
