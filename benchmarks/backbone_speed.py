#!/usr/bin/env python3
"""Compares how long one thread computes for ONNX files of networks of one size.

    macula export untrained --arch vit-small/14 --image-size 224 --outputs cls,patch --out plain.onnx
    macula export untrained --arch vit-small/14-rope --image-size 224 --outputs cls,patch --out rotary.onnx
    python benchmarks/backbone_speed.py --seconds 420 plain.onnx rotary.onnx

Files run in turn on one image; the clock is the thread's own, so that other programs disturb it less. Prints the least and the median
time, and both in proportion to the first file's (the median of what each round gave). Needs: numpy, onnxruntime.
"""

import argparse
import statistics
import time

import numpy
import onnxruntime


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    sessions = [session(path) for path in arguments.files]
    pixels = numpy.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(numpy.float32)
    times = [[] for _ in sessions]
    end = time.time() + arguments.seconds
    while time.time() < end:
        for run, taken in zip(sessions, times):
            start = time.thread_time()
            run.run(["cls"], {run.get_inputs()[0].name: pixels})
            taken.append(time.thread_time() - start)
    first = times[0]
    for path, taken in zip(arguments.files, times):
        paired = statistics.median(own / of_first for own, of_first in zip(taken, first))
        print(
            f"{path}: {len(taken)} rounds, least {min(taken):.4f} s, median {statistics.median(taken):.4f} s; "
            f"of the first file's: least {min(taken) / min(first):.3f}, median of rounds {paired:.3f}"
        )


if __name__ == "__main__":
    main()
