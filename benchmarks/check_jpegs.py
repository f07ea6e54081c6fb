#!/usr/bin/env python3
"""Holds macula's pixels of JPEGs against Pillow's, to the bit: files of every kind, and damaged ones.

    check_jpegs.py MACULA FOLDER [--cjpeg PROGRAM] [--damaged 1500] [--seed 2] [--more GLOB ...]

Files are made in FOLDER by `jpeg_files.py`: sampling factors, qualities, progressive and arithmetic coding, restart intervals,
scan scripts, colour spaces, sizes from 1x1. Without `cjpeg` (Debian: libjpeg-turbo-progs) there is no arithmetic coding and no
scan script. `--more` adds files of one's own. What Pillow reads must be equal, what it refuses must be refused; then, what
`--fast-decode` gives at several sizes must equal Pillow's `draft`, resized and cropped.

Exit code 0: no difference. 1: some. Needs: numpy, pillow 11 or later, pyarrow.
"""

import argparse
import collections
import glob
import io
import pathlib
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pyarrow.parquet
from PIL import Image

import jpeg_files

SIDES = (16, 64, 128, 512)


def pillow(data, side=None):
    """Pixels [H, W, 3], or None where Pillow refuses the file."""
    try:
        image = Image.open(io.BytesIO(data))
        if side:
            image.draft("RGB", (side, side))
        image = image.convert("RGB")
    except Exception:
        return None
    if side:
        scale = side / min(image.size)
        size = [side if length == min(image.size) else int(side * length / min(image.size)) for length in image.size]
        image = image.resize(size, Image.BICUBIC) if tuple(size) != image.size else image
        left, top = (int(round((length - side) / 2)) for length in image.size)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def extract(macula, folder, files, arguments):
    """macula's pixels [H, W, 3] of each file, None where it refuses it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for number, (_, data) in enumerate(files):
        (folder / f"{number:05d}.jpg").write_bytes(data)
    out = folder / "out"
    command = [macula, "extract", "--model", "pixels:rgb", "--data", folder, "--out", out, "--on-error", "null", "--mean", "0,0,0", "--std", "1,1,1"]
    done = subprocess.run([str(part) for part in command + arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    rows = {}
    for part in sorted(out.glob("part-*.parquet")):
        table = pyarrow.parquet.read_table(part, columns=["path", "pixels"])
        for path, pixels in zip(table["path"].to_pylist(), table["pixels"]):
            values = pixels.values
            if values is None or pixels.as_py() is None:
                rows[pathlib.Path(path).name] = None
                continue
            while hasattr(values, "values"):
                values = values.values
            side = int(round((len(values) / 3) ** 0.5))
            levels = np.rint(np.asarray(values, np.float32) * 255).astype(np.uint8)
            rows[pathlib.Path(path).name] = levels.reshape(3, side, side).transpose(1, 2, 0)
    return [rows[f"{number:05d}.jpg"] for number in range(len(files))]


def compare(macula, folder, files, counts):
    """Prints and counts differences. A square of black is laid around what macula returns."""
    expected = [pillow(data) for _, data in files]
    groups = collections.defaultdict(list)
    for at, pixels in enumerate(expected):
        longest = 1 if pixels is None else max(pixels.shape)
        groups[next(side for side in SIDES if side >= longest)].append(at)
    for side, places in groups.items():
        found = extract(macula, folder / f"side_{side}", [files[at] for at in places], ["--resize", "0", "--crop", str(side)])
        for at, pixels in zip(places, found):
            wanted = expected[at]
            if wanted is not None:
                height, width = wanted.shape[:2]
                square = np.zeros((side, side, 3), np.uint8)
                top, left = (side - height) // 2, (side - width) // 2
                square[top : top + height, left : left + width] = wanted
                wanted = square
            note(files[at][0], wanted, pixels, counts)


def note(name, wanted, found, counts):
    counts["files"] += 1
    counts["refused by Pillow"] += wanted is None
    if (wanted is None) != (found is None):
        counts["differences"] += 1
        print(f"{name}: {'Pillow' if wanted is None else 'macula'} refuses it")
    elif wanted is not None and not np.array_equal(wanted, found):
        counts["differences"] += 1
        print(f"{name}: by up to {np.abs(wanted.astype(int) - found).max()} levels")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--cjpeg")
    parser.add_argument("--damaged", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--more", nargs="*", default=[])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    files = list(jpeg_files.own_files()) + list(jpeg_files.pillow_files())
    if arguments.cjpeg:
        files += list(jpeg_files.cjpeg_files(arguments.cjpeg))
    for pattern in arguments.more:
        files += [(path, pathlib.Path(path).read_bytes()) for path in sorted(glob.glob(pattern))]
    total = 0
    # Lossless files are exact when they are whole; Pillow cannot draft them.
    lossy = [file for file in files if "lossless" not in file[0]]
    damaged = [file for file in jpeg_files.damaged(lossy, arguments.seed, arguments.damaged) if file[1].startswith(b"\xff\xd8\xff")]
    for title, chosen in [("files of every kind", files), ("damaged files", damaged)]:
        counts = collections.Counter()
        compare(arguments.macula, arguments.folder, chosen, counts)
        print(f"{title}: {counts['files']}, refused by Pillow {counts['refused by Pillow']}, differences {counts['differences']}")
        total += counts["differences"]
    for side in (3, 10, 33):
        counts = collections.Counter()
        readable = [file for file in lossy if pillow(file[1]) is not None]
        found = extract(arguments.macula, arguments.folder / f"fast_{side}", readable, ["--fast-decode", "--resize", str(side), "--crop", str(side)])
        for (name, data), pixels in zip(readable, found):
            note(name, pillow(data, side), pixels, counts)
        print(f"--fast-decode to {side} pixels: {counts['files']}, differences {counts['differences']}")
        total += counts["differences"]
    sys.exit(int(total > 0))


if __name__ == "__main__":
    main()
