#!/usr/bin/env python3
"""The matrix products of `macula bench products` by PyTorch (MKL and oneDNN) and numpy (OpenBLAS): GFLOP/s by shape.

    products.py MACULA [--threads 2] [--repetitions 5]

Forward, gradient of the input and gradient of the weight of a linear layer, f32 and bf16; the fastest repetition counts. macula
runs right before each library, on as many threads. Needs: torch, numpy.
"""

import argparse
import json
import os
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("macula")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repetitions", type=int, default=5)
parser.add_argument("--library", help=argparse.SUPPRESS)
arguments = parser.parse_args()


def macula(compute):
    command = [arguments.macula, "bench", "products", "--compute", compute, "--threads", str(arguments.threads), "--device", "cpu"]
    table = json.loads(subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {
        (row["rows"], row["outputs"], row["inputs"]): [row[f"{name}_gflops"] for name in ("forward", "input_gradient", "weight_gradient")]
        for row in table["rows"]
    }


def fastest(work):
    best = float("inf")
    for _ in range(arguments.repetitions + 1):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def rates(size, matrix):
    rows, outputs, inputs = size
    x, weight, dy = matrix(rows, inputs), matrix(outputs, inputs), matrix(rows, outputs)
    products = [lambda: x @ weight.T, lambda: dy @ weight, lambda: dy.T @ x]
    return [2e-9 * rows * outputs * inputs / fastest(product) for product in products]


def library(name, sizes):
    """Rates of a library, in a process of its own: two would fight over threads."""
    os.environ["OPENBLAS_NUM_THREADS"] = str(arguments.threads)
    if name == "numpy":
        import numpy

        random = numpy.random.default_rng(0)
        return [rates(size, lambda *shape: random.standard_normal(shape, numpy.float32)) for size in sizes]
    import torch

    torch.set_num_threads(arguments.threads)
    dtype = torch.bfloat16 if name == "torch bf16" else torch.float32
    return [rates(size, lambda *shape: torch.randn(shape).to(dtype)) for size in sizes]


def main():
    if arguments.library:
        print(json.dumps(library(arguments.library, json.load(sys.stdin))))
        return
    columns = {}
    for compute, names in (("f32", ["torch f32", "numpy"]), ("bf16", ["torch bf16"])):
        for name in names:
            columns[f"macula {compute}" + (", again" if name == "numpy" else "")] = own = macula(compute)
            command = [sys.executable, __file__, *sys.argv[1:], "--library", name]
            found = subprocess.run(command, input=json.dumps(list(own)), check=True, stdout=subprocess.PIPE, text=True).stdout
            columns[name] = dict(zip(own, json.loads(found)))
    print("| rows x outputs x inputs | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for size in own:
        cells = [", ".join(f"{rate:.0f}" for rate in column[size]) for column in columns.values()]
        print("| " + " x ".join(map(str, size)) + " | " + " | ".join(cells) + " |")


main()
