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
import pathlib
import sys

from emoji_data import catalogue, image, write

VENDORS = ["google", "twitter"]


def rows(folder):
    """For each vendor the pairs (path relative to `folder`, code) of emoji that both have."""
    shared = [emoji for emoji in catalogue(folder) if all(emoji[f"has_img_{vendor}"] for vendor in VENDORS)]
    return {vendor: [(image(folder, vendor, emoji), emoji["unified"]) for emoji in shared] for vendor in VENDORS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="the folder given to npm as --prefix")
    arguments = parser.parse_args()
    by_vendor = rows(arguments.folder)
    for vendor in VENDORS:
        write(arguments.folder / f"vendors_{vendor}.csv", by_vendor[vendor])
    write(arguments.folder / "vendors.csv", [row for vendor in VENDORS for row in by_vendor[vendor]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
