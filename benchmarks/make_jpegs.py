#!/usr/bin/env python3
"""Writes JPEGs of mixed sizes from real images: enlarged emoji on the textures of clothes, as photographs stand for here.

    make_jpegs.py EMOJI_FOLDER IDX_FOLDER OUT [--count 2000] [--seed 0]

EMOJI_FOLDER holds PNGs (npm's `emoji-datasource-google`, `img/google/64` or any other set), IDX_FOLDER Fashion-MNIST's IDX
files (Debian's `dataset-fashion-mnist`). Sides lie between 160 and 1,024 pixels, qualities between 75 and 95, one in ten is grey.

Needs: numpy, pillow.
"""

import argparse
import gzip
import pathlib

import numpy as np
from PIL import Image


def clothes(folder):
    data = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji", type=pathlib.Path)
    parser.add_argument("idx", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    emoji = sorted(arguments.emoji.rglob("*.png"))
    textures = clothes(arguments.idx)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.count):
        size = tuple(int(side) for side in rng.integers(160, 1025, 2))
        tint = rng.integers(64, 256, 3)
        texture = textures[rng.integers(len(textures))][..., None] / 255.0 * tint
        image = Image.fromarray(texture.astype(np.uint8)).resize(size, Image.BICUBIC)
        for _ in range(3):
            cut_out = Image.open(emoji[rng.integers(len(emoji))]).convert("RGBA")
            side = int(min(size) * rng.uniform(0.3, 0.8))
            cut_out = cut_out.resize((side, side), Image.BICUBIC)
            place = (int(rng.integers(0, size[0] - side + 1)), int(rng.integers(0, size[1] - side + 1)))
            image.paste(cut_out, place, cut_out)
        noise = rng.normal(0, 4, (size[1], size[0], 1))
        image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
        if number % 10 == 9:
            image = image.convert("L")
        image.save(arguments.out / f"{number:05d}.jpg", quality=int(rng.integers(75, 96)))
    print(f"{arguments.count} JPEGs in {arguments.out}")


if __name__ == "__main__":
    main()
