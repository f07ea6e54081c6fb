#!/usr/bin/env python3
"""How time and memory of a training step grow: one table of `macula bench train`, one setting at a time from geometry a.

    growth.py MACULA [--threads 2] [--steps 3] [--compute f32]
"""

import argparse
import json
import subprocess

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("macula")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--compute", default="f32")
arguments = parser.parse_args()

HEAD = "loss.head={{hidden=2048, bottleneck=256, prototypes={}, train_gain=true}}"
CASES = [
    ("geometry a: batch 64, 50 tokens, width 192, K 4,096", []),
    ("batch 16", ["batch_size=16"]),
    ("batch 32", ["batch_size=32"]),
    ("batch 128", ["batch_size=128"]),
    ("batch 128 in two parts", ["batch_size=128", "accumulate=2"]),
    ("batch 128 in four parts", ["batch_size=128", "accumulate=4"]),
    ("batch 128, gradient checkpointing", ["batch_size=128", "gradient_checkpointing=true"]),
    ("197 tokens a global crop (56 px)", ["image_size=56"]),
    ("width 384", ["backbone.embed_dim=384", "backbone.num_heads=6"]),
    ("12 blocks", ["backbone.depth=12"]),
    ("K 16,384", [HEAD.format(16384)]),
    ("K 65,536", [HEAD.format(65536)]),
]

print("| | s a step | images/s | memory, MB | weights |")
print("|---|---|---|---|---|")
for name, settings in CASES:
    command = [arguments.macula, "bench", "train", "--geometry", "a", "--threads", str(arguments.threads), "--steps", str(arguments.steps)]
    for setting in [f"compute={arguments.compute}", *settings]:
        command += ["--set", setting]
    found = json.loads(subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"| {name} | {found['step_seconds']:.2f} | {found['images_per_second']:.1f} | {found['peak_rss_bytes'] / 1e6:,.0f} | "
          f"{found['parameters'] / 1e6:.1f} M |", flush=True)
