#!/usr/bin/env python3
"""Composes scenes with exact masks and depths from real cut-outs: emoji with alpha, pasted over textures.

    python3 benchmarks/emoji_data.py EMOJI          # says how to get the images; makes EMOJI/list.csv
    python3 benchmarks/make_scenes.py EMOJI SCENES --size 96 --train 600 --test 200 --unlabelled 4000

SCENES gets

    train.csv, test.csv            image,mask,depth; paths are relative to SCENES
    classes.txt                    one name a line: background, then the categories
    train/, test/                  images (RGB PNG), masks (8-bit PNG: class, 255 along edges), depths (16-bit PNG: mm)
    unlabelled/                    images alone, for pretraining

Every emoji is one metre tall and is seen at one of many distances: its height in pixels is a constant over its depth, and
so is the grain of the wall behind it, so that depth can be read from the image. Far ones are pasted before near ones.
Every scene has a light of its own colour. A category's emoji are divided: one in four appears in test scenes alone, so
that a model is scored on things it has not seen. Edges (alpha between 0.1 and 0.9) are labelled 255.

The same package, seed and versions of numpy and Pillow give the same bytes. Needs numpy and Pillow.
"""

import argparse
import csv
import hashlib
import io
import pathlib
import shutil
import sys

import numpy
from PIL import Image

CATEGORIES = ["Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Flags"]
VOID = 255
# Of an emoji, in metres, and of the wall.
NEAREST, FARTHEST = 1.0, 3.5
WALL_NEAREST, WALL_FARTHEST = 4.0, 8.0
# Height of an emoji at one metre, as a share of the scene's side.
HEIGHT_AT_ONE = 0.75


class Draw:
    """Numbers from 0 to 1 from a seed and a place; `random()` of PCG64 is a sequence that numpy keeps."""

    def __init__(self, *place):
        seed = hashlib.sha256(" ".join(map(str, place)).encode()).digest()
        self.generator = numpy.random.Generator(numpy.random.PCG64(int.from_bytes(seed, "little")))

    def number(self, low, high):
        return low + (high - low) * float(self.generator.random())

    def whole(self, low, high):
        """A whole number from low to high, both included."""
        return min(low + int(self.generator.random() * (high - low + 1)), high)

    def of(self, items):
        return items[self.whole(0, len(items) - 1)]

    def array(self, *shape):
        return self.generator.random(shape)


def cut_outs(folder, seed):
    """`{"train": [[image, ..] a category], "test": [..]}`: RGBA cut-outs, cropped to what is not transparent."""
    table = folder / "list.csv"
    if not table.is_file():
        raise SystemExit(f"{table}: not found; run benchmarks/emoji_data.py first")
    with table.open(encoding="utf-8") as lines:
        rows = [(row["path"], row["label"]) for row in csv.DictReader(lines)]
    found = {"train": [], "test": []}
    for category in CATEGORIES:
        paths = sorted(
            (path for path, label in rows if label == category),
            key=lambda path: hashlib.sha256(f"{seed} {path}".encode()).digest(),
        )
        if len(paths) < 8:
            raise SystemExit(f"{table}: expected at least 8 images of `{category}`, found {len(paths)}")
        quarter = len(paths) // 4
        for split, part in [("test", paths[:quarter]), ("train", paths[quarter:])]:
            images = [Image.open(folder / path).convert("RGBA") for path in part]
            found[split].append([image.crop(image.getchannel("A").getbbox()) for image in images])
    return found


def resized(values, size):
    """A float array [h, w] as [size, size], bicubic."""
    image = Image.fromarray(values.astype(numpy.float32), mode="F")
    return numpy.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def wall(draw, size, depth):
    """A textured wall [size, size, 3] from 0 to 1, its grain the finer the farther it is."""
    dark, light = draw.array(3), draw.array(3)
    cells = max(2, round(depth * size / 40))
    kind = draw.whole(0, 2)
    if kind == 0:  # clouds
        pattern = resized(draw.array(cells, cells), size)
    elif kind == 1:  # tiles
        pattern = numpy.kron(draw.array(cells, cells), numpy.ones((size // cells + 1, size // cells + 1)))[:size, :size]
    else:  # stripes
        angle = draw.number(0, numpy.pi)
        y, x = numpy.mgrid[0:size, 0:size] / size
        phase = (x * numpy.cos(angle) + y * numpy.sin(angle)) * cells * 2 * numpy.pi
        pattern = 0.5 + 0.5 * numpy.sin(phase + draw.number(0, 6))
    fine = draw.array(size, size) * 0.15
    pattern = numpy.clip(pattern * 0.85 + fine, 0, 1)[..., None]
    return dark * (1 - pattern) + light * pattern


def placed(cut_out, draw, height):
    """A cut-out `height` pixels tall, mirrored or not and tilted a little: premultiplied colour and alpha, from 0 to 1."""
    width = max(1, round(cut_out.width * height / cut_out.height))
    image = cut_out.convert("RGBa").resize((width, height), Image.Resampling.BICUBIC)
    image = image.convert("RGBA")
    if draw.number(0, 1) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(draw.number(-15, 15), Image.Resampling.BICUBIC, expand=True)
    values = numpy.asarray(image).astype(numpy.float64) / 255
    return values[..., :3], values[..., 3:]


def scene(cut_outs_of, draw, size):
    """Image [size, size, 3] of u8, mask [size, size] of u8, depth in mm [size, size] of u16."""
    wall_depth = draw.number(WALL_NEAREST, WALL_FARTHEST)
    canvas = wall(draw, size, wall_depth)
    mask = numpy.zeros((size, size), numpy.uint8)
    depth = numpy.full((size, size), wall_depth)
    things = []
    for _ in range(draw.whole(2, 4)):
        category = draw.whole(0, len(CATEGORIES) - 1)
        things.append((draw.number(NEAREST, FARTHEST), category, draw.of(cut_outs_of[category])))
    for distance, category, cut_out in sorted(things, key=lambda thing: -thing[0]):
        height = max(4, round(HEIGHT_AT_ONE * size / distance))
        colour, alpha = placed(cut_out, draw, height)
        tall, wide = alpha.shape[:2]
        # Its centre lies within the scene.
        top, left = draw.whole(0, size - 1) - tall // 2, draw.whole(0, size - 1) - wide // 2
        rows, columns = slice(max(top, 0), min(top + tall, size)), slice(max(left, 0), min(left + wide, size))
        inside = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        colour, alpha = colour[inside], alpha[inside]
        canvas[rows, columns] = colour * alpha + canvas[rows, columns] * (1 - alpha)
        solid = alpha[..., 0]
        label = numpy.where(solid >= 0.9, category + 1, numpy.where(solid > 0.1, VOID, mask[rows, columns]))
        mask[rows, columns] = label
        depth[rows, columns] = numpy.where(solid >= 0.5, distance, depth[rows, columns])
    light = numpy.array([draw.number(0.6, 1.0) for _ in range(3)])
    image = numpy.clip(canvas * light * 255 + 0.5, 0, 255).astype(numpy.uint8)
    return image, mask, numpy.round(depth * 1000).astype(numpy.uint16)


def write_split(out, name, cut_outs_of, count, size, seed):
    """Writes the scenes of a labelled split and its list."""
    for part in ["images", "masks", "depths"]:
        (out / name / part).mkdir(parents=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "mask", "depth"])
    for index in range(count):
        image, mask, depth = scene(cut_outs_of, Draw(seed, name, index), size)
        files = [f"{name}/{part}/{index:05d}.png" for part in ["images", "masks", "depths"]]
        Image.fromarray(image).save(out / files[0])
        Image.fromarray(mask).save(out / files[1])
        Image.fromarray(depth).save(out / files[2])
        table.writerow(files)
    (out / f"{name}.csv").write_text(text.getvalue(), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji", type=pathlib.Path, help="the folder that emoji_data.py was run on")
    parser.add_argument("out", type=pathlib.Path, help="folder to make; it must not exist")
    parser.add_argument("--size", type=int, default=96, help="side of a scene in pixels, 64 to 112")
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--unlabelled", type=int, default=0, help="scenes of train emoji without mask and depth")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not 64 <= arguments.size <= 112:
        parser.error(f"--size: expected 64 to 112, found {arguments.size}")
    if arguments.out.exists():
        parser.error(f"{arguments.out}: exists already")
    cut_outs_of = cut_outs(arguments.emoji, arguments.seed)
    beside = arguments.out.with_name(arguments.out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, count in [("train", arguments.train), ("test", arguments.test)]:
        write_split(beside, name, cut_outs_of[name], count, arguments.size, arguments.seed)
    if arguments.unlabelled:
        (beside / "unlabelled").mkdir()
    for index in range(arguments.unlabelled):
        image, _, _ = scene(cut_outs_of["train"], Draw(arguments.seed, "unlabelled", index), arguments.size)
        Image.fromarray(image).save(beside / "unlabelled" / f"{index:05d}.png")
    (beside / "classes.txt").write_text("\n".join(["background", *CATEGORIES]) + "\n", encoding="utf-8")
    beside.rename(arguments.out)
    print(f"{arguments.out}: {arguments.train} train, {arguments.test} test, {arguments.unlabelled} unlabelled scenes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
