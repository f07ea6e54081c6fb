#!/usr/bin/env python3
"""How long the methods that linfa carries take: mixtures of Gaussians, DBSCAN, support vector machines, t-SNE.

    python benchmarks/classic_methods.py MACULA [--rows 20000] [--threads 2]

Writes feature folders of 384 values in 10 classes (a centre each, deviation 1 around it) and prints the wall and CPU seconds of each
command. Needs numpy and pyarrow.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WIDTH, CLASSES = 384, 10


def features(folder, rows, seed):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    centres = 0.12 * np.random.default_rng(0).standard_normal((CLASSES, WIDTH), dtype=np.float32)
    labels = rng.integers(CLASSES, size=rows)
    values = centres[labels] + rng.standard_normal((rows, WIDTH), dtype=np.float32)
    table = pa.table({
        "row": pa.array(np.arange(rows, dtype=np.uint64)), "path": [f"{row}.png" for row in range(rows)],
        "label": [str(label) for label in labels], "cls": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), WIDTH),
    })  # fmt: skip
    pq.write_table(table, folder / "part-00000.parquet")
    meta = {
        "format_version": 1, "tool_version": "synthetic", "model": {"kind": "synthetic"}, "preprocess": {},
        "outputs": [{"name": "cls", "shape": [WIDTH]}], "source": {"kind": "synthetic"}, "n_rows": rows,
        "shard": {"index": 0, "count": 1}, "part_rows": rows, "on_error": "fail", "n_written": rows, "n_failed": 0,
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "errors.csv").write_text("row,path,error\n")
    (folder / "_SUCCESS").write_text("")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    macula = arguments.macula.resolve()
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        features(place / "f", arguments.rows, 1)
        features(place / "test", 10_000, 2)
        features(place / "small", 2_000, 3)
        rows = f"--max-rows {arguments.rows}"
        for command in [
            "eval cluster --features f --k 10",
            f"eval cluster --features f --method gmm --k 10 {rows}",
            "viz map --features small --method tsne --out map.png",
            f"eval cluster --features f --method dbscan {rows}",
            "eval svm --train f --test test",
            "eval svm --train f --test test --n-per-class 16 --cost 0.01,0.1,1,10",
        ]:
            before, start = os.times(), time.perf_counter()
            words = [str(macula), *command.split(), "--threads", str(arguments.threads)]
            ran = subprocess.run(words, cwd=place, capture_output=True, text=True)
            wall, after = time.perf_counter() - start, os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            print(f"{wall:8.1f} s wall {cpu:8.1f} s CPU  macula {command}", flush=True)
            print((ran.stdout if ran.returncode == 0 else ran.stderr).strip(), flush=True)


main()
