#!/usr/bin/env python3
"""Makes a labelled image list and five folds of it from Google's emoji, as npm's `emoji-datasource-google` ships them.

    npm install --prefix FOLDER emoji-datasource-google@16.0.0
    python3 benchmarks/emoji_data.py FOLDER

The images are PNGs of 64 x 64 pixels with their alpha channel, left where npm put them; the label is the emoji's
category (`Food & Drink`, `Flags`, ...). FOLDER gets

    list.csv                                path,label; paths are relative to FOLDER
    list_fold0_train.csv, list_fold0_test.csv, ... list_fold4_train.csv, list_fold4_test.csv

Each image is in the test list of exactly one fold, and a category's images are spread over the folds as evenly as their
number allows. Left out: skin tones and files equal to an earlier one, such as the flags of some islands (they would sit
in train and test at once), and the category `Component`, five swatches of skin and hair. The same package and seed give
the same bytes. Needs only Python's standard library.
"""

import argparse
import csv
import hashlib
import io
import json
import pathlib
import sys

FOLDS = 5
LEFT_OUT = {"Component"}


def package(vendor):
    return pathlib.PurePosixPath(f"node_modules/emoji-datasource-{vendor}")


def catalogue(folder):
    """The emoji of Google's package below `folder`."""
    table = folder / package("google") / "emoji.json"
    if not table.is_file():
        raise SystemExit(f"{table}: not found; install with npm first (--help says how)")
    return json.loads(table.read_text(encoding="utf-8"))


def image(folder, vendor, emoji):
    """The path of a vendor's image of an emoji, relative to `folder`."""
    path = package(vendor) / "img" / vendor / "64" / emoji["image"]
    if not (folder / path).is_file():
        raise SystemExit(f"{folder / path}: listed in emoji.json, but not in the package")
    return str(path)


def rows(folder):
    """The pairs (path relative to `folder`, category), ordered by path."""
    found = []
    for emoji in catalogue(folder):
        if not emoji["has_img_google"] or emoji["category"] in LEFT_OUT:
            continue
        found.append((image(folder, "google", emoji), emoji["category"]))
    first = {}
    for path, category in sorted(found):
        first.setdefault(hashlib.sha256((folder / path).read_bytes()).digest(), (path, category))
    return list(first.values())


def folds(listed, seed):
    """The fold of each row. Each category is ordered by a hash of seed and path and dealt out in turn, the next one
    going on where it stopped, so that the folds differ by at most one image, in whole and in each category. A hash
    rather than `random`, whose sequence Python does not promise to keep."""
    order = sorted(listed, key=lambda row: (row[1], hashlib.sha256(f"{seed} {row[0]}".encode()).digest()))
    return {path: turn % FOLDS for turn, (path, _) in enumerate(order)}


def write(path, listed):
    """Writes a list beside its name, then renames it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label"])
    table.writerows(listed)
    beside = path.with_suffix(".part")
    beside.write_text(text.getvalue(), encoding="utf-8")
    beside.replace(path)
    print(f"{path}: {len(listed)} images")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="the folder given to npm as --prefix")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    listed = rows(arguments.folder)
    fold_of = folds(listed, arguments.seed)
    write(arguments.folder / "list.csv", listed)
    for fold in range(FOLDS):
        for split in ["train", "test"]:
            chosen = [row for row in listed if (fold_of[row[0]] == fold) == (split == "test")]
            write(arguments.folder / f"list_fold{fold}_{split}.csv", chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
