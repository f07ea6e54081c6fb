#!/usr/bin/env python3
"""macula's HNSW beside hnswlib's and faiss's on the same vectors, one thread each.

    hnsw_vs_peers.py MACULA TRAIN TEST [--queries 2000] [--m 16] [--ef-construction 200] [--work FOLDER]

TRAIN and TEST are sources of images, by default Fashion-MNIST's 60,000 x 784 pixels through `--model pixels:gray`. Every index
has M links (2 M at the bottom) and is built with the same width of the walk; cosine similarity, that is L2 or inner product of
unit vectors. Recall@10 is the share of the 10 exact neighbours found, ties counted by similarity for all alike. Queries a second
are the best of three rounds, in turn. Prints one table, and at recall 0.99 the ratio to hnswlib, interpolated between widths.

Needs: numpy, hnswlib, faiss-cpu.
"""

import argparse
import json
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

WIDTHS = [16, 24, 32, 48, 64, 96, 128, 192, 256]
K = 10
ROUNDS = 3


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def vectors(folder):
    """The first output of a feature folder written with --layout npy, rows of unit length."""
    parts = sorted((folder / "img_emb").glob("*.npy"), key=lambda path: int(path.stem.split("_")[-1]))
    all_rows = np.concatenate([np.load(part).astype(np.float32) for part in parts])
    return all_rows / np.linalg.norm(all_rows, axis=1, keepdims=True)


def truth(base, queries):
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    similarities, _ = index.search(queries, K)
    return similarities[:, -1]


def recall(labels, base, queries, least):
    similarities = np.einsum("qkd,qd->qk", base[labels], queries)
    return float((similarities >= least[:, None] - 1e-6).mean())


def macula(arguments, work, name, train, test):
    build = json.loads(run(arguments.macula, "index", "build", "--features", train, "--out", work / "index", "--kind", "hnsw",
                           "--m", arguments.m, "--ef-construction", arguments.ef_construction, "--threads", 1, "--force",
                           "--json"))
    rows = {}
    for _ in range(ROUNDS):
        score = json.loads(run(arguments.macula, "index", "score", "--index", work / "index", "--features", test, "--k", K,
                               "--ef", ",".join(map(str, WIDTHS)), "--threads", 1, "--json"))
        for row in score["rows"]:
            width = row.get("ef") or row.get("ef_search")
            known = rows.get(width, (0, 0))
            rows[width] = (row["recall"], max(known[1], row["queries_per_second"]))
    seconds = build.get("build_seconds") or score["rows"][0].get("build_seconds")
    return seconds, rows


def peer(build, search, base, queries, least):
    start = time.perf_counter()
    index = build(base)
    seconds = time.perf_counter() - start
    rows = {}
    for _ in range(ROUNDS):
        for width in WIDTHS:
            start = time.perf_counter()
            labels = search(index, queries, width)
            rate = len(queries) / (time.perf_counter() - start)
            found = recall(labels, base, queries, least)
            rows[width] = (found, max(rate, rows.get(width, (0, 0))[1]))
    return seconds, rows


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
    parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("train", nargs="?", default="idx:/usr/share/datasets/fashion-mnist#train")
    parser.add_argument("test", nargs="?", default="idx:/usr/share/datasets/fashion-mnist#test")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--ef-construction", type=int, default=200)
    parser.add_argument("--work", type=pathlib.Path)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or pathlib.Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        folders = {}
        shard = max(1, 10_000 // arguments.queries)
        for name, source in (("train", arguments.train), ("test", arguments.test)):
            folders[name] = work / name
            command = [arguments.macula, "extract", "--model", "pixels:gray", "--data", source, "--out", work / name,
                       "--layout", "npy", "--force"]
            if name == "test" and shard > 1:
                command += ["--shard", f"0/{shard}"]
                folders[name] = work / name / f"shard-00000-of-{shard:05d}"
            run(*command)
        base, queries = vectors(folders["train"]), vectors(folders["test"])
        least = truth(base, queries)

        def hnswlib_build(rows):
            index = hnswlib.Index(space="ip", dim=rows.shape[1])
            index.init_index(max_elements=len(rows), M=arguments.m, ef_construction=arguments.ef_construction, random_seed=1)
            index.set_num_threads(1)
            index.add_items(rows)
            return index

        def hnswlib_search(index, rows, width):
            index.set_ef(width)
            return index.knn_query(rows, k=K, num_threads=1)[0].astype(np.int64)

        def faiss_build(rows):
            index = faiss.IndexHNSWFlat(rows.shape[1], arguments.m, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = arguments.ef_construction
            index.add(rows)
            return index

        def faiss_search(index, rows, width):
            index.hnsw.efSearch = width
            return index.search(rows, K)[1]

        results = {
            "macula": macula(arguments, work, "macula", folders["train"], folders["test"]),
            "hnswlib": peer(hnswlib_build, hnswlib_search, base, queries, least),
            "faiss": peer(faiss_build, faiss_search, base, queries, least),
        }
    print(f"{len(base)} x {base.shape[1]}, {len(queries)} queries, M {arguments.m}, efConstruction {arguments.ef_construction}")
    print("| index | build s | " + " | ".join(f"ef {width}" for width in WIDTHS) + " |")
    print("|---|---|" + "---|" * len(WIDTHS))
    for name, (seconds, rows) in results.items():
        cells = [f"{rows[width][0]:.4f}, {rows[width][1]:.0f}/s" for width in WIDTHS]
        print(f"| {name} | {seconds:.1f} | " + " | ".join(cells) + " |")
    reference = at_recall(results["hnswlib"][1], 0.99)
    for name, (_, rows) in results.items():
        rate = at_recall(rows, 0.99)
        word = "not reached" if rate is None else f"{rate:.0f} queries/s, {rate / reference:.2f} of hnswlib's"
        print(f"recall 0.99, {name}: {word}")


if __name__ == "__main__":
    main()
