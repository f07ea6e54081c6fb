#!/usr/bin/env python3
"""Cuts photographs into small squares that do not overlap: train.csv and test.csv, whose label is the photograph.

    apt-get download plasma-workspace-wallpapers mate-backgrounds gnome-backgrounds ukui-wallpapers \\
        lomiri-wallpapers lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    for package in *.deb; do dpkg -x $package wallpapers; done
    python3 benchmarks/photo_crops.py wallpapers FOLDER

Reads every JPEG below the first folder that is at least 1,280 x 720 pixels large and not one of the drawn ones, which it knows; of the same
picture in several sizes (one folder, or one name) the largest. Each is scaled to a width of 12 squares of --side pixels, all whole rows of
squares are cut from it, and every fourth square (by a fixed shuffle of each photograph's) is for test. Squares are PNG files below
FOLDER/squares. Needs Pillow.
"""

import argparse
import pathlib
import random
import re
import sys

from PIL import Image

from emoji_data import write

COLUMNS = 12
LEAST = (1280, 720)
TEST_SHARE = 4
# Pictures of these packages that are drawn, by the name of their file or folder.
DRAWN = {
    "2004default", "Fossa_by_Jasper_Roks", "Infinite-Sea_by_Aury88", "Painting-Colors_by__herobrine7gamer", "analogpattern_by_Peter_Nerlich",
    "firstgeneration", "Elephants_5640x3172", "GreenTraditional", "rhythm", "string", "the-mouse", "umang_by_Abhishek_Mudgal", "Autumn", "Flow",
    "Honeywave", "PastelHills", "SafeLanding", "Shell",
}


def photographs(folder):
    """One path for each picture, the largest of its sizes, ordered by name."""
    largest = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg") or path.stem == "screenshot":
            continue
        if DRAWN.intersection([path.stem, *path.relative_to(folder).parts]):
            continue
        with Image.open(path) as image:
            size = image.size
        if size[0] < LEAST[0] or size[1] < LEAST[1]:
            continue
        # A folder of sizes, or a name that ends in one.
        sizes = re.fullmatch(r"\d+x\d+", path.stem)
        name = str(path.parent if sizes else path.with_name(re.sub(r"[_-]?\d+x\d+$", "", path.stem)))
        if name not in largest or size > largest[name][0]:
            largest[name] = (size, path)
    return [path for _, (_, path) in sorted(largest.items())]


def squares(path, side):
    """The squares of a photograph, row by row."""
    with Image.open(path) as image:
        width = COLUMNS * side
        height = round(image.height * width / image.width)
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    rows = height // side
    return [small.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)) for y in range(rows) for x in range(COLUMNS)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--side", type=int, default=64)
    arguments = parser.parse_args()
    found = photographs(arguments.photographs)
    if not found:
        raise SystemExit(f"{arguments.photographs}: no JPEG of at least {LEAST[0]} x {LEAST[1]} pixels")
    folder = arguments.out / "squares"
    folder.mkdir(parents=True, exist_ok=True)
    lists = {"train": [], "test": []}
    for number, path in enumerate(found):
        cut = squares(path, arguments.side)
        places = list(range(len(cut)))
        random.Random(number).shuffle(places)
        for order, place in enumerate(places):
            name = f"{number:03}-{place:03}.png"
            cut[place].save(folder / name)
            lists["test" if order % TEST_SHARE == 0 else "train"].append((f"squares/{name}", f"{number:03}"))
    for part, rows in lists.items():
        write(arguments.out / f"{part}.csv", sorted(rows))
    print(f"{len(found)} photographs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
