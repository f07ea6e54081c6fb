#!/usr/bin/env python3
"""Makes image lists of the same emoji as two vendors draw them, from npm's `emoji-datasource-google` and `emoji-datasource-twitter`.

    npm install --prefix FOLDER emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    python3 benchmarks/emoji_vendors.py FOLDER

FOLDER gets vendors_google.csv and vendors_twitter.csv, with one row for each emoji that both have (skin tones are left out; 1,911 of
version 16.0.0) and its code as label, and vendors.csv with the rows of both, to train on without labels. Whether a network knows
a drawing again in another style is the accuracy of one nearest neighbour:

    macula eval knn --k 1 --model MODEL --background 255,255,255 --train-data FOLDER/vendors_twitter.csv --test-data FOLDER/vendors_google.csv

Needs only Python's standard library.
"""

import argparse
import json
import pathlib
import sys

from emoji_data import write

VENDORS = ["google", "twitter"]


def package(vendor):
    return pathlib.PurePosixPath(f"node_modules/emoji-datasource-{vendor}")


def rows(folder):
    """For each vendor the pairs (path relative to `folder`, code) of emoji that both have."""
    table = folder / package(VENDORS[0]) / "emoji.json"
    if not table.is_file():
        raise SystemExit(f"{table}: not found; install both packages with npm first (--help says how)")
    shared = [
        emoji for emoji in json.loads(table.read_text(encoding="utf-8")) if all(emoji[f"has_img_{vendor}"] for vendor in VENDORS)
    ]
    listed = {}
    for vendor in VENDORS:
        paths = [(package(vendor) / "img" / vendor / "64" / emoji["image"], emoji["unified"]) for emoji in shared]
        for path, _ in paths:
            if not (folder / path).is_file():
                raise SystemExit(f"{folder / path}: listed in emoji.json, but not in the package")
        listed[vendor] = [(str(path), code) for path, code in paths]
    return listed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="the folder given to npm as --prefix")
    arguments = parser.parse_args()
    listed = rows(arguments.folder)
    for vendor in VENDORS:
        write(arguments.folder / f"vendors_{vendor}.csv", listed[vendor])
    write(arguments.folder / "vendors.csv", [row for vendor in VENDORS for row in listed[vendor]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
