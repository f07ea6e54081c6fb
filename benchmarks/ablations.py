#!/usr/bin/env python3
"""One factor at a time: runs of equal length that differ in one setting from a recipe, and their curves.

    ablations.py MACULA PLAN.toml --data idx:FOLDER#train --work ablations-work

A plan has what all runs share, and the variants:

    recipe = "dino"
    steps = 2000
    seeds = [0, 1, 2]
    set = ["batch_size=64"]          # every run, the first variant too
    [[variant]]
    name = "as it is"
    [[variant]]
    name = "conv stem"
    set = ["backbone.patch_size=4", "backbone.stem=[{channels=64,stride=2}]"]

The online k-NN and the effective rank of the images of --data themselves are read ten times a run; test images are never opened. The
table has the mean and the range over the seeds at half and at the end, seconds of a step, and the images seen. A run that stands in
--work already, with the same settings, is not made again, so that a plan may grow and be interrupted.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tomllib

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
parser.add_argument("plan", type=pathlib.Path)
parser.add_argument("--data", required=True)
parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("ablations-work"))
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--knn-images", type=int, default=12_000, help="bank and queries together")
arguments = parser.parse_args()
plan = tomllib.loads(arguments.plan.read_text())
unknown = set(plan) - {"recipe", "steps", "seeds", "set", "variant"}
if unknown:
    parser.error(f"{arguments.plan}: unknown {sorted(unknown)}")


def settings(variant):
    steps = variant.get("steps", plan["steps"])
    every = [f"steps={steps}", f"monitor.knn.max_images={arguments.knn_images}"]
    return every + plan.get("set", []) + variant.get("set", [])


def trained(variant, seed):
    """The lines of metrics of one run, which is made where it is not there."""
    name = "".join(letter if letter.isalnum() else "-" for letter in variant["name"])
    out = arguments.work / f"{name}-{seed}"
    record = {"recipe": variant.get("recipe", plan["recipe"]), "set": settings(variant), "seed": seed, "data": arguments.data}
    done = out / "ablation.json"
    if not (done.exists() and json.loads(done.read_text()) == record):
        flags = [part for setting in record["set"] for part in ("--set", setting)]
        command = [
            arguments.macula, "train", "--recipe", record["recipe"], "--data", arguments.data, "--knn-data", arguments.data,
            "--knn-every", max(1, plan["steps"] // 10), "--seed", seed, "--threads", arguments.threads, "--out", out, "--force", *flags,
        ]
        print("$", *command, file=sys.stderr, flush=True)
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        done.write_text(json.dumps(record))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    batch = tomllib.loads((out / "config.toml").read_text())["batch_size"]
    return [line for line in lines if "knn_top1" in line], batch


def spread(values):
    mean = sum(values) / len(values)
    return f"{mean:.4f}" if len(values) == 1 else f"{mean:.4f} ({min(values):.4f} to {max(values):.4f})"


print("| variant | images seen | k-NN at half | k-NN | effective rank | loss | s a step |")
print("|---|---|---|---|---|---|---|")
for variant in plan["variant"]:
    runs = [trained(variant, seed) for seed in plan.get("seeds", [0])]
    halves = [lines[len(lines) // 2 - 1]["knn_top1"] for lines, _ in runs]
    ends = [lines[-1] for lines, _ in runs]
    batch = runs[0][1]
    rate = [batch / line["images_per_second"] for line in ends]
    cells = [
        variant["name"], f"{ends[0]['step'] * batch:,}", spread(halves), spread([line["knn_top1"] for line in ends]),
        spread([line["effective_rank"] for line in ends]), spread([line["loss"] for line in ends]), f"{sum(rate) / len(rate):.3f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)
