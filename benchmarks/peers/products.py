#!/usr/bin/env python3
"""The matrix products of `macula bench products` by PyTorch (MKL and oneDNN), numpy (OpenBLAS) and BLIS: GFLOP/s by shape.

    products.py MACULA [--threads 2] [--repetitions 5]

Forward, gradient of the input and gradient of the weight of a linear layer, f32 and bf16; the fastest repetition counts. macula
runs right before each library, on as many threads. Needs: torch, numpy; BLIS where the system has it (Debian's
libblis4-pthread).
"""

import argparse
import ctypes
import ctypes.util
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


class BlisMatrix:
    """A matrix of numpy's whose products are BLIS's."""

    calls = None

    def __init__(self, values, transposed=False):
        self.values, self.transposed = values, transposed

    @property
    def T(self):
        return BlisMatrix(self.values, not self.transposed)

    def __matmul__(self, other):
        import numpy

        shape = lambda matrix: matrix.values.shape[::-1] if matrix.transposed else matrix.values.shape
        (rows, inner), (_, columns) = shape(self), shape(other)
        out = numpy.empty((rows, columns), numpy.float32)
        ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112
        form = lambda matrix: TRANSPOSED if matrix.transposed else PLAIN
        at = lambda values: values.ctypes.data_as(ctypes.c_void_p)
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        BlisMatrix.calls.cblas_sgemm(
            ROW_MAJOR, form(self), form(other), rows, columns, inner, one, at(self.values), self.values.shape[1],
            at(other.values), other.values.shape[1], zero, at(out), columns)
        return out


def library(name, sizes):
    """Rates of a library, in a process of its own: two would fight over threads."""
    os.environ["OPENBLAS_NUM_THREADS"] = str(arguments.threads)
    os.environ["BLIS_NUM_THREADS"] = str(arguments.threads)
    if name in ("numpy", "BLIS"):
        import numpy

        kind = numpy.asarray
        if name == "BLIS":
            BlisMatrix.calls, kind = ctypes.CDLL(ctypes.util.find_library("blis")), BlisMatrix
            check = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
            assert numpy.array_equal(kind(check) @ kind(check).T, check @ check.T)
        random = numpy.random.default_rng(0)
        return [rates(size, lambda *shape: kind(random.standard_normal(shape, numpy.float32))) for size in sizes]
    import torch

    torch.set_num_threads(arguments.threads)
    dtype = torch.bfloat16 if name == "torch bf16" else torch.float32
    return [rates(size, lambda *shape: torch.randn(shape).to(dtype)) for size in sizes]


def main():
    if arguments.library:
        print(json.dumps(library(arguments.library, json.load(sys.stdin))))
        return
    columns = {}
    for compute, names in (("f32", ["torch f32", "numpy", *(["BLIS"] if ctypes.util.find_library("blis") else [])]), ("bf16", ["torch bf16"])):
        for name in names:
            columns[f"macula {compute}" + {"numpy": ", again", "BLIS": ", a third time"}.get(name, "")] = own = macula(compute)
            command = [sys.executable, __file__, *sys.argv[1:], "--library", name]
            found = subprocess.run(command, input=json.dumps(list(own)), check=True, stdout=subprocess.PIPE, text=True).stdout
            columns[name] = dict(zip(own, json.loads(found)))
    print("| rows x outputs x inputs | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for size in own:
        cells = [", ".join(f"{rate:.0f}" for rate in column[size]) for column in columns.values()]
        print("| " + " x ".join(map(str, size)) + " | " + " | ".join(cells) + " |")


main()
