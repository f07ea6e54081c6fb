#!/usr/bin/env python3
"""macula's HNSW beside hnswlib's, faiss's and usearch's on the same vectors, one thread each.

    cargo build --release --workspace --locked --example bench_hnsw
    hnsw_vs_peers.py target/release/examples/bench_hnsw [--data fashion|features|FOLDER] [--peers hnswlib,faiss,...]

`fashion` is Fashion-MNIST's 60,000 x 784 pixels with 2,000 of its test images as queries, from the folder --idx; `features` is made
here: 100,000 x 384 in 1,000 clusters, with a spectrum that falls as that of learned features does and a mean that is not zero; a
folder holds database.f32 and queries.f32, whose width --dim tells. Rows have unit length. Every index has M links (2 M at the
bottom) and is built with the same width of the walk; cosine similarity, that is the inner product. Recall@10 is the share of the 10
exact neighbours found, ties counted by similarity for all alike. Times are those that the thread ran. All indexes are built first,
then searched in turn, width by width; a rate is the best of the rounds. Prints one table, and queries a second at recalls of 0.95,
0.99 and 0.999, interpolated between widths.

faiss's SQ8 and usearch's i8 and f16 compare in as few bits as macula's walks do; what usearch and SQ8 answer is not compared again.

Needs: numpy, hnswlib, faiss-cpu; usearch where it is asked for.
"""

import argparse
import gzip
import os
import pathlib
import subprocess
import tempfile
import time

for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]:
    os.environ[name] = "1"

import faiss  # noqa: E402: the number of threads is read at import
import hnswlib  # noqa: E402
import numpy as np  # noqa: E402

WIDTHS = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
RECALLS = [0.95, 0.99, 0.999]
K = 10


def unit(rows):
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def fashion(folder):
    def images(name):
        raw = gzip.open(folder / f"{name}-images-idx3-ubyte.gz").read()
        return unit(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784).astype(np.float32))

    return images("train"), images("t10k")[::5]


def features(rows=100_000, queries=2_000, dim=384, clusters=1_000):
    random = np.random.default_rng(0)
    spread = np.arange(1, dim + 1) ** -0.5
    turn = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)
    mean = 0.7 * random.standard_normal(dim) * spread
    centres = random.standard_normal((clusters, dim)) * spread
    own = centres[random.integers(0, clusters, rows + queries)]
    made = mean + 0.8 * own + 0.6 * random.standard_normal((rows + queries, dim)) * spread
    made = unit(made.astype(np.float32) @ turn)
    return made[:rows], made[rows:]


def folder(path, dim):
    return tuple(np.fromfile(path / f"{name}.f32", np.float32).reshape(-1, dim) for name in ("database", "queries"))


class Macula:
    name = "macula"

    def __init__(self, arguments, base, queries, work):
        for name, rows in (("database", base), ("queries", queries)):
            rows.tofile(work / f"{name}.f32")
        self.out, self.shape = work / "found.u32", (len(queries), K)
        command = [arguments.bench, work / "queries.f32", work / "database.f32", base.shape[1], arguments.m,
                   arguments.ef_construction, K, self.out]
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds = self.answer()

    def answer(self):
        return float(self.process.stdout.readline().split()[0])

    def search(self, width):
        self.process.stdin.write(f"{width}\n")
        self.process.stdin.flush()
        seconds = self.answer()
        return np.fromfile(self.out, np.uint32).reshape(self.shape).astype(np.int64), seconds


class Peer:
    """An index of a Python package: `make` and `find(index, queries, width)`."""

    def __init__(self, name, make, find, base, queries):
        start = time.process_time()
        self.name, self.find, self.queries, self.index = name, find, queries, make(base)
        self.seconds = time.process_time() - start

    def search(self, width):
        start = time.process_time()
        rows = self.find(self.index, self.queries, width)
        return rows, time.process_time() - start


def makers(m, ef_construction):
    """How each peer is built and searched."""

    def make_hnswlib(rows):
        index = hnswlib.Index(space="ip", dim=rows.shape[1])
        index.init_index(max_elements=len(rows), M=m, ef_construction=ef_construction, random_seed=1)
        index.set_num_threads(1)
        index.add_items(rows)
        return index

    def find_hnswlib(index, rows, width):
        index.set_ef(width)
        return index.knn_query(rows, k=K, num_threads=1)[0].astype(np.int64)

    def make_faiss(kind):
        def make(rows):
            metric = faiss.METRIC_INNER_PRODUCT
            if kind == "flat":
                index = faiss.IndexHNSWFlat(rows.shape[1], m, metric)
            else:
                index = faiss.IndexHNSWSQ(rows.shape[1], faiss.ScalarQuantizer.QT_8bit, m, metric)
            index.hnsw.efConstruction = ef_construction
            index.train(rows)
            index.add(rows)
            return index

        return make

    def find_faiss(index, rows, width):
        index.hnsw.efSearch = width
        return index.search(rows, K)[1]

    def make_usearch(kind):
        def make(rows):
            from usearch.index import Index

            index = Index(ndim=rows.shape[1], metric="ip", dtype=kind, connectivity=m, expansion_add=ef_construction)
            print(f"usearch {kind}: {index.hardware_acceleration}")
            index.add(np.arange(len(rows)), rows, threads=1)
            return index

        return make

    def find_usearch(index, rows, width):
        index.expansion_search = width
        return index.search(rows, K, threads=1).keys.astype(np.int64)

    return {
        "hnswlib": (make_hnswlib, find_hnswlib),
        "faiss": (make_faiss("flat"), find_faiss),
        "faiss-sq8": (make_faiss("sq8"), find_faiss),
        "usearch-i8": (make_usearch("i8"), find_usearch),
        "usearch-f16": (make_usearch("f16"), find_usearch),
    }


def recall(rows, base, queries, least):
    known = np.clip(rows, 0, len(base) - 1)
    similarities = np.einsum("qkd,qd->qk", base[known], queries)
    return float(((similarities >= least[:, None] - 1e-6) & (known == rows)).mean())


def at_recall(rows, wanted):
    """Queries a second at a recall, between the two widths around it; none where it is not reached."""
    before = None
    for width in sorted(rows):
        found, rate = rows[width]
        if found >= wanted:
            if before is None or found == before[0]:
                return rate
            share = (wanted - before[0]) / (found - before[0])
            return before[1] + share * (rate - before[1])
        before = (found, rate)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--idx", type=pathlib.Path, default=pathlib.Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--peers", default="hnswlib,faiss,faiss-sq8")
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--ef-construction", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    print(f"faiss {faiss.__version__}: {faiss.get_compile_options().strip()}")
    if arguments.data == "fashion":
        base, queries = fashion(arguments.idx)
    elif arguments.data == "features":
        base, queries = features()
    else:
        base, queries = folder(pathlib.Path(arguments.data), arguments.dim)
    exact = faiss.IndexFlatIP(base.shape[1])
    exact.add(base)
    least = exact.search(queries, K)[0][:, -1]
    del exact
    known = makers(arguments.m, arguments.ef_construction)
    with tempfile.TemporaryDirectory() as work:
        indexes = [Macula(arguments, base, queries, pathlib.Path(work))]
        print(f"built macula in {indexes[0].seconds:.1f} s", flush=True)
        for name in filter(None, arguments.peers.split(",")):
            indexes.append(Peer(name, *known[name], base, queries))
            print(f"built {name} in {indexes[-1].seconds:.1f} s", flush=True)
        results = {index.name: {} for index in indexes}
        for _ in range(arguments.rounds):
            for width in WIDTHS:
                for index in indexes:
                    rows, seconds = index.search(width)
                    before = results[index.name].get(width, (0, 0))[1]
                    rate = max(before, len(queries) / seconds)
                    results[index.name][width] = (recall(rows, base, queries, least), rate)
    print(f"{len(base)} x {base.shape[1]}, {len(queries)} queries, M {arguments.m}, efConstruction {arguments.ef_construction}")
    print("| index | build s | " + " | ".join(f"ef {width}" for width in WIDTHS) + " |")
    print("|---|---|" + "---|" * len(WIDTHS))
    for index in indexes:
        cells = [f"{found:.4f}, {rate:.0f}/s" for found, rate in results[index.name].values()]
        print(f"| {index.name} | {index.seconds:.1f} | " + " | ".join(cells) + " |")
    print("| index | build s | " + " | ".join(f"queries/s at recall {wanted}" for wanted in RECALLS) + " |")
    print("|---|---|" + "---|" * len(RECALLS))
    for index in indexes:
        rates = [at_recall(results[index.name], wanted) for wanted in RECALLS]
        cells = ["not reached" if rate is None else f"{rate:,.0f}" for rate in rates]
        print(f"| {index.name} | {index.seconds:.1f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
