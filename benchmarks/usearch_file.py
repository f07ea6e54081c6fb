#!/usr/bin/env python3
"""The file of `macula index build --kind usearch`, opened by usearch itself.

    cargo build --release --locked --features usearch
    python3 -m venv venv && venv/bin/pip install usearch polars
    venv/bin/python benchmarks/usearch_file.py target/release/macula

usearch maps the file of an index over the bundled sample, and what it finds by itself is compared with `macula index query` and with exact
search, for each type of stored numbers. Prints one line a question and fails when an answer is wrong.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import polars
import usearch
from usearch.index import Index, MetricKind

K = 10
WIDTH = 128
wrong = 0


def say(question, good, answer):
    global wrong
    wrong += not good
    print(f"{'ok   ' if good else 'WRONG'} {question}: {answer}", flush=True)


def run(macula, *words):
    done = subprocess.run([macula, *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"macula {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def unit_rows(folder, column):
    parts = polars.concat([polars.read_parquet(part) for part in sorted(folder.glob("part-*.parquet"))])
    vectors = np.array(parts[column].to_list(), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def check(macula, work, scalar, apart):
    out, hits = work / scalar, work / f"{scalar}.parquet"
    built = json.loads(run(macula, "index", "build", "--features", work / "pool", "--out", out, "--kind", "usearch", "--scalar", scalar, "--json"))
    run(macula, "index", "query", "--index", out, "--features", work / "queries", "--k", K, "--ef", WIDTH, "--out", hits)
    pool, queries = unit_rows(work / "pool", built["column"]), unit_rows(work / "queries", built["column"])
    rows = polars.read_parquet(out / "rows.parquet")

    index = Index.restore(str(out / "index.usearch"), view=True)
    facts = (len(index), index.ndim, index.metric_kind, index.connectivity)
    say(f"{scalar}: rows, width, metric, links", facts == (built["count"], built["dim"], MetricKind.Cos, 16), facts)
    kept = np.array([index.get(key) for key in range(0, len(index), 7)], np.float32)
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    worst = float((1 - (kept * pool[::7]).sum(axis=1)).max())
    say(f"{scalar}: keys are places of rows", worst < apart, f"cosines to the features within {worst:.1e} of 1")

    index.expansion_search = WIDTH
    found = index.search(queries, K)
    mine = polars.read_parquet(hits).sort("query", "rank")
    same = np.mean([
        len(set(rows["row"].gather(theirs.astype(np.uint32))) & set(ours["row"])) / K
        for theirs, (_, ours) in zip(found.keys, mine.group_by("query", maintain_order=True), strict=True)
    ])
    near = float(np.abs(np.sort(1 - found.distances)[:, ::-1].ravel() - mine["similarity"].to_numpy()).max())
    say(f"{scalar}: usearch finds what macula finds", same > 0.99 and near < apart, f"{same:.2%} of rows, similarities within {near:.1e}")
    truth = np.argsort(-(queries @ pool.T), axis=1)[:, :K]
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found.keys, truth, strict=True)])
    say(f"{scalar}: and what exact search finds", recall > 0.9, f"{recall:.2%} of rows, {(out / 'index.usearch').stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
    arguments = parser.parse_args()
    print(f"usearch {usearch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        for name, data in [("pool", "sample:train"), ("queries", "sample:test")]:
            run(arguments.macula, "extract", "--model", "hog", "--data", data, "--out", work / name)
        for scalar, apart in [("f32", 1e-5), ("f16", 1e-3), ("i8", 2e-2)]:
            check(arguments.macula, work, scalar, apart)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
