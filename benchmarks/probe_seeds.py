#!/usr/bin/env python3
"""How much a linear probe's accuracy depends on which rows its learning rate is chosen on, beside logistic regression's.

    probe_seeds.py MACULA TRAIN TEST [--column cls] [--seeds 8]

TRAIN and TEST are feature folders. For every seed, which draws the held-out rows: the probe as it is by default, with 10 epochs, with three
tenths of the rows held out, and `eval logreg`. A line a protocol: mean, least and largest top-1, and the mean difference to the default with
its standard error.
"""

import argparse
import json
import math
import statistics
import subprocess

PROTOCOLS = ["linear-probe", "linear-probe --epochs 10", "linear-probe --val-fraction 0.3", "logreg"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula")
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--column", default="cls")
    parser.add_argument("--seeds", type=int, default=8)
    given = parser.parse_args()

    def top1(protocol, seed):
        places = ["--train", given.train, "--test", given.test, "--column", given.column, "--seed", str(seed)]
        words = [given.macula, "eval", *protocol.split(), *places, "--bootstrap-resamples", "0", "--json"]
        return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)["rows"][0]["top1"]

    found = {protocol: [top1(protocol, seed) for seed in range(given.seeds)] for protocol in PROTOCOLS}
    for protocol, values in found.items():
        beyond = [value - default for value, default in zip(values, found[PROTOCOLS[0]])]
        error = statistics.stdev(beyond) / math.sqrt(len(beyond))
        spread = f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"
        print(f"{protocol:32} {spread}  {statistics.mean(beyond):+.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
