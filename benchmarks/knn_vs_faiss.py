"""Exact nearest neighbours: macula against faiss.IndexFlatIP on the same data, threads and machine.

Both search the same seeded clustered features (unit rows, as frozen features are), turn about, so that a machine that
slows down slows both. Prints wall and CPU times, their ratios and how far the neighbours agree. On a busy machine the
CPU time with one thread says most: threads that wait for each other in a spin are counted as CPU time too.

    cargo build --release --workspace --example bench_knn
    python benchmarks/knn_vs_faiss.py [--queries 10000 --database 60000 --dim 384 --k 200 --threads 2 --reps 5]

Needs numpy and faiss-cpu.
"""

import argparse
import os
import pathlib
import subprocess
import tempfile
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--database", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--reps", type=int, default=5)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).parent.parent / "target"))
    parser.add_argument("--binary", type=pathlib.Path, default=target / "release/examples/bench_knn")
    return parser.parse_args()


def clustered(np, rng, centres, rows):
    """Unit rows around the centres, about as far apart as the classes of frozen features."""
    noise = rng.standard_normal((rows, centres.shape[1]), dtype=np.float32)
    values = centres[rng.integers(len(centres), size=rows)] + noise
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def cpu_seconds(pid):
    """CPU seconds of all threads of a process so far (Linux)."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    args = arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    import faiss
    import numpy as np

    faiss.omp_set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((100, args.dim), dtype=np.float32)
    database = clustered(np, rng, centres, args.database)
    queries = clustered(np, rng, centres, args.queries)
    index = faiss.IndexFlatIP(args.dim)
    index.add(database)

    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("queries.f32", "database.f32", "found.u32")]
        queries.tofile(paths[0])
        database.tofile(paths[1])
        command = [str(args.binary), paths[0], paths[1], str(args.dim), str(args.k), str(args.threads), paths[2]]
        ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def search_ours():
            before = cpu_seconds(ours.pid)
            ours.stdin.write("go\n")
            ours.stdin.flush()
            wall = float(ours.stdout.readline())
            return wall, cpu_seconds(ours.pid) - before

        def search_faiss():
            start, before = time.perf_counter(), time.process_time()
            search_faiss.found = index.search(queries, args.k)
            return time.perf_counter() - start, time.process_time() - before

        search_ours(), search_faiss()  # warm-up, not counted
        times = [(search_ours(), search_faiss()) for _ in range(args.reps)]
        ours.stdin.close()
        if ours.wait() != 0:
            raise SystemExit(f"bench_knn ended with {ours.returncode}")
        found = np.fromfile(paths[2], dtype=np.uint32).reshape(args.queries, args.k)

    similarities, theirs = search_faiss.found
    missing = [(q, set(theirs[q]) ^ set(found[q].tolist())) for q in range(args.queries)]
    differing = sum(len(s) // 2 for _, s in missing)
    # Where the sets differ, the similarities must be those of the k-th place, up to the rounding of f32.
    worst = max(
        (abs(float(database[i] @ queries[q]) - similarities[q, -1]) for q, s in missing for i in s), default=0.0
    )
    flops = 2.0 * args.queries * args.database * args.dim
    print(f"faiss {faiss.__version__}; {args.queries} x {args.database} x {args.dim}, k {args.k}, threads {args.threads}")
    for place, (mine, other) in enumerate(times):
        print(f"rep {place}: macula {mine[0]:.3f} s (CPU {mine[1]:.2f}), faiss {other[0]:.3f} s (CPU {other[1]:.2f})")
    for kind, name in ((0, "wall"), (1, "CPU")):
        mine, other = (sorted(t[side][kind] for t in times) for side in (0, 1))
        ratios = sorted(t[0][kind] / t[1][kind] for t in times)
        rates = [flops / values[0] / 1e9 for values in (mine, other)]
        print(
            f"{name}: best macula {mine[0]:.3f} s ({rates[0]:.0f} GFLOP/s), faiss {other[0]:.3f} s ({rates[1]:.0f} GFLOP/s); "
            f"ratio macula / faiss: median {ratios[len(ratios) // 2]:.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
    print(f"neighbours that differ: {differing} of {found.size}, at most {worst:.1e} from the k-th similarity")
    if worst > 1e-5:
        raise SystemExit("the neighbour sets disagree")


if __name__ == "__main__":
    main()
