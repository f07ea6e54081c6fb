#!/usr/bin/env python3
"""lightly-train's DINOv2 pretraining step at geometry b, on images of a folder: images a second.

    lightly_step.py [--batch 64] [--steps 8] [--precision 32-true] [--threads 2] [--data FOLDER] [--work FOLDER]

ViT-S/14 with random weights, 2 globals of 56 pixels and 6 locals of 28, K = 65,536, Sinkhorn-Knopp: its own losses, optimizer and
augmentation, started as its users start it. The clock runs between the ends of steps; the first two are left out. Workers load
images beside the step, as everywhere. Without --data the images are small ones that it makes, which cost next to nothing to
read. A folder with fewer images than the steps need is gone through again. Needs: lightly-train, numpy, pillow, and their own environment.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--precision", default="32-true")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--data", type=pathlib.Path)
parser.add_argument("--work", type=pathlib.Path)
arguments = parser.parse_args()
WARMUP = 2


def images(folder, count):
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.BICUBIC).save(folder / f"{number}.png")


def main():
    import resource

    import lightly_train
    import torch
    from lightly_train._models.dinov2_vit.dinov2_vit_src.configs import MODELS

    torch.set_num_threads(arguments.threads)
    MODELS["vits14-noreg"]["url"] = ""  # initial weights instead of a download
    ends = []
    step = torch.optim.AdamW.step

    def clock(self, *rest, **named):
        loss = step(self, *rest, **named)  # the forward and backward pass run inside
        ends.append(time.perf_counter())
        return loss

    torch.optim.AdamW.step = clock
    with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
        work = pathlib.Path(temporary)
        count = arguments.batch * (arguments.steps + WARMUP + 1)
        data, epochs = arguments.data or work / "images", 1
        if arguments.data:
            found = sum(1 for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
            epochs = -(-count // max(1, found - found % arguments.batch))
        else:
            images(data, count)
        with contextlib.redirect_stdout(sys.stderr):  # its own words, so that stdout is the JSON alone
            lightly_train.pretrain(
                out=work / "out", data=data, model="dinov2/vits14-noreg", method="dinov2", epochs=epochs, batch_size=arguments.batch,
                num_workers=1, accelerator="cpu", devices=1, precision=arguments.precision, model_args={"drop_path_rate": 0.0},
                method_args={"output_dim": 65536, "center_method": "sinkhorn_knopp", "student_freeze_backbone_steps": 0},
                transform_args={"image_size": (56, 56), "local_view": {"num_views": 6, "view_size": (28, 28)}})
    steps = [b - a for a, b in zip(ends[WARMUP:], ends[WARMUP + 1:])][:arguments.steps]
    step = statistics.median(steps)
    print(json.dumps({
        "images_per_second": arguments.batch / step, "step_seconds": step, "steps": len(steps), "precision": arguments.precision,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
