#!/usr/bin/env python3
"""Holds features of JPEGs, by an ONNX file that macula exported, against torch's with Pillow and torchvision.

    check_jpeg_features.py MACULA FOLDER [--threads 2] [--least 0.999999]

FOLDER holds JPEGs (`jpeg_files.py FOLDER` writes 400). The network is timm's `vit_small_patch14_dinov2` at 224 pixels with random
weights (seed 0), its class token and mean patch in f32; images are resized to 256 (bicubic) and cropped to 224 on both sides.

Exit code 0: no cosine is below `--least`. 1: some is. Needs: numpy, pillow, pyarrow, safetensors, torch, torchvision, timm.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow.parquet
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms


def network():
    torch.manual_seed(0)
    made = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224)
    # LayerScale starts at 1e-5, which would hide the blocks.
    made.load_state_dict({name: value + 1 if name.endswith("gamma") else value for name, value in made.state_dict().items()})
    return made.eval()


def by_torch(made, paths):
    transform = transforms.Compose([
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    found = {"cls": [], "patch_mean": []}
    with torch.inference_mode():
        for start in range(0, len(paths), 16):
            images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[start : start + 16]])
            tokens = made.forward_features(images)
            found["cls"] += list(tokens[:, 0].numpy().astype(np.float64))
            found["patch_mean"] += list(tokens[:, 1:].mean(1).numpy().astype(np.float64))
    return found


def by_macula(macula, made, folder, threads, work):
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, work / "vit.safetensors")
    export = [macula, "export", work / "vit.safetensors", "--heads", "6", "--image-size", "224", "--outputs", "cls,patch_mean", "--out", work / "vit.onnx"]
    extract = [macula, "extract", "--model", work / "vit.onnx", "--data", folder, "--output", "cls,patch_mean", "--resize", "256", "--crop", "224",
               "--device", "cpu", "--out", work / "features", "--threads", str(threads)]
    for command in (export, extract):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)
    rows = {}
    for part in sorted((work / "features").glob("part-*.parquet")):
        for row in pyarrow.parquet.read_table(part, columns=["path", "cls", "patch_mean"]).to_pylist():
            rows[pathlib.Path(row["path"]).name] = row
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--least", type=float, default=0.999999)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    paths = sorted(arguments.folder.glob("*.jpg"))
    made = network()
    with tempfile.TemporaryDirectory() as work:
        found = by_macula(arguments.macula.resolve(), made, arguments.folder.resolve(), arguments.threads, pathlib.Path(work))
    well = len(paths) > 0
    for name, expected in by_torch(made, paths).items():
        cosines = []
        for path, features in zip(paths, expected):
            ours = np.asarray(found[path.name][name], np.float64)
            cosines.append(float(features @ ours / np.linalg.norm(features) / np.linalg.norm(ours)))
        print(f"{name} of {len(cosines)} JPEGs: cosine {np.mean(cosines):.9f} in the mean, {min(cosines):.9f} at least")
        well &= min(cosines) >= arguments.least
    sys.exit(int(not well))


if __name__ == "__main__":
    main()
