#!/usr/bin/env python3
"""Makes the bundled sample (src/data/sample) from the Fashion-MNIST IDX files.

    python3 benchmarks/make_sample.py IDX_FOLDER OUT_FOLDER

Takes the first 600 training and the first 100 test images of each of the ten classes, in the order of the file, and
writes them as gzipped IDX pairs. The same input gives the same bytes. Needs only Python's standard library.
"""

import gzip
import pathlib
import struct
import sys

PER_CLASS = {"train": 600, "t10k": 100}
CLASSES = 10


def read(folder: pathlib.Path, name: str) -> bytes:
    """The bytes of an IDX file, gzipped or not."""
    plain = folder / name
    if plain.exists():
        return plain.read_bytes()
    return gzip.decompress((folder / f"{name}.gz").read_bytes())


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes `data` gzipped, without a time stamp or a file name, so that the bytes depend on the data alone."""
    path.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))
    print(f"{path}: {path.stat().st_size} bytes")


def choose(labels: bytes, per_class: int) -> list[int]:
    """The rows of the first `per_class` images of each class, ascending."""
    taken = [0] * CLASSES
    rows = []
    for row, label in enumerate(labels):
        if taken[label] < per_class:
            taken[label] += 1
            rows.append(row)
    if taken != [per_class] * CLASSES:
        raise SystemExit(f"expected {per_class} images of each class, found {taken}")
    return rows


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    source, out = map(pathlib.Path, sys.argv[1:])
    for split, per_class in PER_CLASS.items():
        images = read(source, f"{split}-images-idx3-ubyte")
        labels = read(source, f"{split}-labels-idx1-ubyte")
        magic, count, height, width = struct.unpack(">IIII", images[:16])
        label_magic, label_count = struct.unpack(">II", labels[:8])
        if (magic, label_magic) != (0x803, 0x801) or count != label_count:
            raise SystemExit(f"{split}: not a pair of IDX files of the same length")
        size = height * width
        rows = choose(labels[8:], per_class)
        head = struct.pack(">IIII", 0x803, len(rows), height, width)
        body = b"".join(images[16 + row * size : 16 + (row + 1) * size] for row in rows)
        write(out / f"{split}-images-idx3-ubyte.gz", head + body)
        chosen = bytes(labels[8 + row] for row in rows)
        write(out / f"{split}-labels-idx1-ubyte.gz", struct.pack(">II", 0x801, len(rows)) + chosen)


if __name__ == "__main__":
    main()
