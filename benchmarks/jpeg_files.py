#!/usr/bin/env python3
"""Writes JPEGs of every kind that Pillow reads, and damaged ones: for `check_jpegs.py` and for the project's fixtures.

    jpeg_files.py OUT [--count 400] [--seed 0]     writes files like photographs instead: 160 to 1,024 pixels a side,
                                                   qualities 75 to 95, a tenth grey, a tenth progressive

Baseline files come from an encoder of this file (any sampling factors, one scan or one per component, restart intervals, any
marker), the others from Pillow and, where there is one, from libjpeg's `cjpeg` (arithmetic coding, scan scripts).
"""

import argparse
import io
import pathlib
import struct
import subprocess

import numpy as np
from PIL import Image, ImageFilter

ZIGZAG = sorted(range(64), key=lambda at: (at // 8 + at % 8, at // 8 if (at // 8 + at % 8) % 2 else at % 8))
COSINES = np.array([[np.cos((2 * x + 1) * u * np.pi / 16) * (np.sqrt(0.125) if u == 0 else 0.5) for x in range(8)] for u in range(8)])


def photo(width, height, channels, seed):
    """Something like a photograph: smooth shades, edges and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for channel in range(channels):
        a, b, c = rng.uniform(3, 40, 3)
        plane = 128 + 70 * np.sin(x / a + channel) + 50 * np.cos(y / b) * np.sin((x + y) / c)
        edge = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) > rng.uniform(-width, width) / 3
        planes.append(plane + np.where(edge, 60, -20) + rng.normal(0, 6, plane.shape))
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def standard_tables():
    """Pillow's segments of Huffman tables, as (class and number, counts, symbols)."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    data, at, tables = out.getvalue(), 2, {}
    while data[at + 1] != 0xDA:
        length = data[at + 2] * 256 + data[at + 3]
        if data[at + 1] == 0xC4:
            body = data[at + 4 : at + 2 + length]
            while body:
                count = sum(body[1:17])
                tables[body[0]] = (list(body[1:17]), list(body[17 : 17 + count]))
                body = body[17 + count :]
        at += 2 + length
    return tables


TABLES = standard_tables()


def codes(table):
    counts, symbols = table
    code, place, out = 0, 0, {}
    for length, count in enumerate(counts, 1):
        for _ in range(count):
            out[symbols[place]] = (code, length)
            code, place = code + 1, place + 1
        code <<= 1
    return out


CODES = {number: codes(table) for number, table in TABLES.items()}


class Bits:
    def __init__(self):
        self.bits, self.count, self.out = 0, 0, bytearray()

    def put(self, value, count):
        self.bits, self.count = (self.bits << count) | value, self.count + count
        while self.count >= 8:
            self.count -= 8
            byte = (self.bits >> self.count) & 255
            self.out += b"\xff\0" if byte == 255 else bytes([byte])
        self.bits &= (1 << self.count) - 1

    def flush(self):
        if self.count:
            self.put((1 << (8 - self.count)) - 1, 8 - self.count)
        done, self.out = bytes(self.out), bytearray()
        return done


def put_value(bits, value):
    size = abs(value).bit_length()
    bits.put(value if value > 0 else value + (1 << size) - 1, size)


def put_block(bits, block, before, chroma):
    means, others = CODES[chroma], CODES[0x10 + chroma]
    difference = block[0] - before
    bits.put(*means[abs(difference).bit_length()])
    if difference:
        put_value(bits, difference)
    run = 0
    last = max((at for at in range(64) if block[at]), default=0)
    for value in block[1 : last + 1]:
        if value == 0:
            run += 1
            continue
        while run > 15:
            bits.put(*others[0xF0])
            run -= 16
        bits.put(*others[run * 16 + abs(value).bit_length()])
        put_value(bits, value)
        run = 0
    if last < 63:
        bits.put(*others[0])


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def encode(planes, sampling, factor=6, separate=False, restart=0, ids=(1, 2, 3, 4), before=b"", kind=0xC0, fill=b"", order=None, high=63):
    """A sequential JPEG of `planes` (full size each), whose sampling factors are `sampling` (across, down)."""
    height, width = planes[0].shape
    most = max(h for h, _ in sampling), max(v for _, v in sampling)
    units = -(-width // (8 * most[0])), -(-height // (8 * most[1]))
    factors = [min(255, 1 + factor * (1 + at // 8 + at % 8) // 2) for at in range(64)]
    blocks = []
    for plane, (across, down) in zip(planes, sampling):
        columns, rows = units[0] * across * 8, units[1] * down * 8
        x = np.minimum(np.arange(columns) * most[0] // across, width - 1)
        y = np.minimum(np.arange(rows) * most[1] // down, height - 1)
        samples = plane[np.ix_(y, x)].astype(float) - 128
        samples = samples.reshape(rows // 8, 8, columns // 8, 8).transpose(0, 2, 1, 3)
        values = np.rint(COSINES @ samples @ COSINES.T / np.array(factors).reshape(8, 8)).astype(int)
        values = values.reshape(rows // 8, columns // 8, 64)[..., ZIGZAG].clip(-1023, 1023)
        values[..., high + 1 :] = 0
        blocks.append(values)
    out = b"\xff\xd8" + before + segment(0xDB, b"\0" + bytes(factors[at] for at in ZIGZAG))
    body = struct.pack(">BHHB", 8, height, width, len(planes))
    for at, (across, down) in enumerate(sampling):
        body += bytes([ids[at], across * 16 + down, 0])
    out += fill + segment(kind, body)
    for number, (counts, symbols) in TABLES.items():
        out += segment(0xC4, bytes([number]) + bytes(counts) + bytes(symbols))
    if restart:
        out += segment(0xDD, struct.pack(">H", restart))
    places = list(order or range(len(planes)))
    for scan in [[place] for place in places] if separate else [places]:
        out += fill + segment(0xDA, bytes([len(scan)]) + b"".join(bytes([ids[at], 0x11 if at else 0]) for at in scan) + b"\0\x3f\0")
        out += encode_scan(blocks, scan, sampling, units, (width, height), most, restart)
    return out + fill + b"\xff\xd9"


def encode_scan(blocks, scan, sampling, units, size, most, restart):
    if len(scan) == 1:
        (across, down) = sampling[scan[0]]
        columns, rows = -(-size[0] * across // (8 * most[0])), -(-size[1] * down // (8 * most[1]))
        order = [[(scan[0], x, y)] for y in range(rows) for x in range(columns)]
    else:
        order = []
        for y in range(units[1]):
            for x in range(units[0]):
                order.append([(at, x * sampling[at][0] + dx, y * sampling[at][1] + dy) for at in scan for dy in range(sampling[at][1]) for dx in range(sampling[at][0])])
    bits, out, before = Bits(), b"", [0] * 4
    for number, unit in enumerate(order):
        if restart and number and number % restart == 0:
            out += bits.flush() + bytes([0xFF, 0xD0 + (number // restart - 1) % 8])
            before = [0] * 4
        for at, x, y in unit:
            block = [int(value) for value in blocks[at][y, x]]
            put_block(bits, block, before[at], 1 if at else 0)
            before[at] = block[0]
    return out + bits.flush()


def encode_lossless(planes, sampling, predictor=1, low=0, separate=False, rows_to_restart=0, before=b"", ids=(1, 2, 3, 4)):
    """A lossless JPEG: each sample as its difference to what `predictor` (1 to 7) expects, without the `low` lowest bits."""
    height, width = planes[0].shape
    most = max(h for h, _ in sampling), max(v for _, v in sampling)
    units = -(-width // most[0]), -(-height // most[1])
    lengths = [0, 0, 0, 0, 17] + [0] * 11
    symbols = codes((lengths, list(range(17))))
    out = b"\xff\xd8" + before + segment(0xC3, struct.pack(">BHHB", 8, height, width, len(planes)) + b"".join(bytes([ids[at], h * 16 + v, 0]) for at, (h, v) in enumerate(sampling)))
    out += segment(0xC4, b"\0" + bytes(lengths) + bytes(range(17)))
    places = list(range(len(planes)))
    for scan in [[place] for place in places] if separate else [places]:
        single = len(scan) == 1
        sizes = {at: (1, 1) if single else sampling[at] for at in scan}
        columns = -(-width * sampling[scan[0]][0] // most[0]) if single else units[0]
        rows = -(-height * sampling[scan[0]][1] // most[1]) if single else units[1]
        interval = rows_to_restart * columns
        if interval:
            out += segment(0xDD, struct.pack(">H", interval))
        out += segment(0xDA, bytes([len(scan)]) + b"".join(bytes([ids[at], 0]) for at in scan) + bytes([predictor, 0, low]))
        differences = {}
        for at in scan:
            across, down = sampling[at]
            x = np.minimum(np.arange(columns * sizes[at][0]) * most[0] // across, width - 1)
            y = np.minimum(np.arange(rows * sizes[at][1]) * most[1] // down, height - 1)
            values = planes[at][np.ix_(y, x)].astype(int) >> low
            a, b, c = np.roll(values, 1, 1), np.roll(values, 1, 0), np.roll(np.roll(values, 1, 0), 1, 1)
            expected = [a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1][predictor - 1].copy()
            expected[:, 0] = b[:, 0]
            first = [row for row in range(len(values)) if row == 0 or rows_to_restart and row % (rows_to_restart * sizes[at][1]) == 0]
            expected[first] = a[first]
            expected[first, 0] = 1 << (7 - low)
            differences[at] = values - expected
        bits = Bits()
        for row in range(rows):
            if interval and row and row % rows_to_restart == 0:
                out += bits.flush() + bytes([0xFF, 0xD0 + (row // rows_to_restart - 1) % 8])
            for column in range(columns):
                for at in scan:
                    for dy in range(sizes[at][1]):
                        for dx in range(sizes[at][0]):
                            value = int(differences[at][row * sizes[at][1] + dy, column * sizes[at][0] + dx])
                            bits.put(*symbols[abs(value).bit_length()])
                            if value:
                                put_value(bits, value)
        out += bits.flush()
    return out + b"\xff\xd9"


JFIF = segment(0xE0, b"JFIF\0\x01\x01\0\0\1\0\1\0\0")


def adobe(transform):
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


SIZES = [(1, 1), (2, 3), (3, 2), (5, 4), (7, 9), (8, 8), (9, 17), (16, 16), (17, 15), (31, 33), (40, 25), (65, 70)]
SAMPLINGS = [
    [(1, 1)] * 3, [(2, 1), (1, 1), (1, 1)], [(1, 2), (1, 1), (1, 1)], [(2, 2), (1, 1), (1, 1)], [(3, 1), (1, 1), (1, 1)],
    [(3, 2), (1, 1), (1, 1)], [(4, 1), (1, 1), (1, 1)], [(4, 2), (1, 1), (1, 1)], [(1, 4), (1, 1), (1, 1)], [(1, 3), (1, 1), (1, 1)],
    [(1, 1), (2, 1), (2, 1)], [(1, 1), (1, 2), (1, 2)], [(1, 1), (2, 2), (2, 2)], [(2, 2), (2, 1), (1, 2)], [(2, 2), (1, 2), (1, 2)],
    [(2, 1), (2, 1), (1, 1)], [(1, 1), (2, 2), (1, 1)], [(2, 2), (2, 1), (2, 1)], [(4, 1), (2, 1), (2, 1)], [(1, 4), (1, 2), (1, 2)],
    [(2, 4), (1, 1), (1, 1)], [(4, 1), (1, 1), (2, 1)], [(2, 2)] * 3, [(1, 2), (1, 2), (1, 1)], [(3, 1), (3, 1), (1, 1)],
    [(3, 1), (2, 1), (1, 1)], [(2, 2), (3, 1), (1, 1)], [(4, 4), (1, 1), (1, 1)], [(2, 1), (1, 2), (1, 1)],
]


def own_files(seed=0):
    """(name, bytes) from this file's encoder."""
    rng = np.random.default_rng(seed)
    for number, sampling in enumerate(SAMPLINGS):
        sizes = [SIZES[at] for at in rng.choice(len(SIZES), 4, replace=False)]
        for at, size in enumerate(sizes):
            planes = np.moveaxis(photo(*size, 3, number * 10 + at), -1, 0)
            separate = at % 2 == 1 or sum(h * v for h, v in sampling) > 10
            restart = [0, 0, 2, 3][at]
            name = "-".join(f"{h}x{v}" for h, v in sampling) + f"_{size[0]}x{size[1]}_{'scans' if separate else 'one'}_r{restart}"
            yield name, encode(planes, sampling, factor=[1, 4, 9, 20][at], separate=separate, restart=restart)
    planes = np.moveaxis(photo(41, 37, 4, 5), -1, 0)
    three = planes[:3]
    full = [(1, 1)] * 4
    half = [(2, 2), (1, 1), (1, 1), (2, 2)]
    for name, before, ids in [
        ("jfif", JFIF, (1, 2, 3)), ("none", b"", (1, 2, 3)), ("adobe0", adobe(0), (1, 2, 3)), ("adobe1", adobe(1), (1, 2, 3)),
        ("adobe2", adobe(2), (1, 2, 3)), ("jfif_adobe0", JFIF + adobe(0), (1, 2, 3)), ("letters", b"", (82, 71, 66)),
        ("letters_jfif", JFIF, (82, 71, 66)), ("other_ids", b"", (0, 1, 2)), ("small_letters", b"", (114, 103, 98)),
        ("short_jfif", segment(0xE0, b"JFIF\0\1\1\0"), (1, 2, 3)), ("short_adobe", segment(0xEE, b"Adobe\0\x64\0\0\0"), (82, 71, 66)),
    ]:
        yield f"markers_{name}", encode(three, full[:3], before=before, ids=ids)
    for name, before in [("none", b""), ("adobe0", adobe(0)), ("adobe1", adobe(1)), ("adobe2", adobe(2)), ("jfif", JFIF)]:
        yield f"four_{name}", encode(planes, full, before=before)
        yield f"four_{name}_half", encode(planes, half, before=before)
        yield f"four_{name}_scans", encode(planes, half, before=before, separate=True)
    for predictor in range(1, 8):
        options = {"predictor": predictor, "low": [0, 0, 2][predictor % 3], "separate": predictor % 2 == 0, "rows_to_restart": [0, 3][predictor // 2 % 2]}
        yield f"lossless_rgb_{predictor}", encode_lossless(three, full[:3], ids=(82, 71, 66), **options)
        yield f"lossless_grey_{predictor}", encode_lossless(planes[:1], [[(1, 1)], [(2, 2)]][predictor % 2], **options)
    yield "lossless_no_marker", encode_lossless(three, full[:3])
    yield "lossless_jfif", encode_lossless(three, full[:3], before=JFIF)
    yield "lossless_adobe1", encode_lossless(three, full[:3], before=adobe(1))
    yield "lossless_adobe0", encode_lossless(three, SAMPLINGS[3], before=adobe(0), predictor=4)
    yield "lossless_half", encode_lossless(three, SAMPLINGS[3], ids=(82, 71, 66), predictor=6)
    yield "lossless_half_scans", encode_lossless(three, SAMPLINGS[1], ids=(82, 71, 66), predictor=7, separate=True)
    yield "lossless_four", encode_lossless(planes, full)
    yield "lossless_ycck", encode_lossless(planes, full, before=adobe(2))
    yield "fill_bytes", encode(three, SAMPLINGS[3], fill=b"\xff\xff\xff")
    yield "junk_before_markers", encode(three, SAMPLINGS[3], fill=b"junk\0\xff\0more")
    yield "order_of_scans", encode(three, SAMPLINGS[3], separate=True, order=(2, 0, 1))
    yield "order_in_scan", encode(three, SAMPLINGS[3], order=(0, 2, 1))
    yield "order_in_scan_mean_last", encode(three, SAMPLINGS[3], order=(1, 2, 0))
    yield "missing_component", encode(three, SAMPLINGS[3], separate=True, order=(0, 1))
    yield "extended", encode(three, SAMPLINGS[3], kind=0xC1)
    yield "grey_2x2", encode(planes[:1], [(2, 2)])
    yield "grey_4x3_restart", encode(planes[:1], [(4, 3)], restart=2)
    yield "two_components", encode(planes[:2], full[:2])
    plain = encode(three, SAMPLINGS[3])
    at = plain.index(b"\xff\xc4")
    no_tables = plain[:at] + plain[plain.index(b"\xff\xda") :]
    yield "no_huffman_tables", no_tables
    yield "tables_alone_first", b"\xff\xd8" + plain[2 : plain.index(b"\xff\xc0")] + b"\xff\xd9" + plain
    yield "tem_and_rst_in_header", b"\xff\xd8\xff\x01\xff\xd3" + plain[2:]
    yield "second_image_behind", plain + plain
    yield "dnl", plain.replace(b"\xff\xd9", segment(0xDC, b"\0\x25") + b"\xff\xd9")
    yield "height_0", plain.replace(struct.pack(">BHH", 8, 37, 41), struct.pack(">BHH", 8, 0, 41))
    yield "twelve_bits", plain.replace(struct.pack(">BHH", 8, 37, 41), struct.pack(">BHH", 12, 37, 41))
    yield "coarse", encode(three, SAMPLINGS[3], factor=200)
    # Factors as large as they come, so that the transform saturates.
    start = plain.index(b"\xff\xdb")
    yield "overflowing", plain[:start] + segment(0xDB, b"\x10" + b"\xff\xf0" * 64) + plain[start + 69 :]
    yield "large_factors", plain[:start] + segment(0xDB, b"\x10" + b"\x03\x07" * 64) + plain[start + 69 :]


def pillow_files(seed=1):
    rng = np.random.default_rng(seed)
    for number in range(120):
        size = SIZES[number % len(SIZES)] if number % 5 else tuple(int(side) for side in rng.integers(60, 400, 2))
        mode = ["RGB", "RGB", "RGB", "L", "CMYK"][number % 5 if number % 2 else 0]
        samples = photo(*size, {"L": 1, "RGB": 3, "CMYK": 4}[mode], number)
        image = Image.frombytes(mode, size, samples.tobytes())
        options = {"quality": int(rng.choice([5, 30, 60, 75, 90, 95, 100])), "progressive": bool(number % 3 == 0), "optimize": bool(number % 4 == 1)}
        if mode == "RGB":
            options["subsampling"] = ["4:4:4", "4:2:2", "4:2:0"][number % 3] if number % 7 else "4:1:1"
            if number % 11 == 3:
                options["subsampling"], options["keep_rgb"] = "4:4:4", True
        if number % 6 == 2:
            options["restart_marker_blocks"] = int(rng.integers(1, 9))
        elif number % 6 == 4:
            options["restart_marker_rows"] = 1
        out = io.BytesIO()
        image.save(out, "JPEG", **options)
        yield f"pillow_{number:03d}_{mode}_{size[0]}x{size[1]}_q{options['quality']}{'_p' if options['progressive'] else ''}", out.getvalue()


def cjpeg_files(program, environment=None):
    """Arithmetic coding, scan scripts, restart markers and sampling factors by libjpeg's `cjpeg`."""
    scripts = {
        "dc_only": "0,1,2: 0-0, 0, 0;\n",
        "dc_coarse": "0,1,2: 0-0, 0, 2;\n",
        "dc_separate": "0: 0-0, 0, 1;\n1: 0-0, 0, 0;\n2: 0-0, 0, 0;\n",
        "few_ac": "0,1,2: 0-0, 0, 0;\n0: 1-2, 0, 0;\n",
        "coarse_ac": "0,1,2: 0-0, 0, 0;\n0: 1-9, 0, 3;\n1: 1-63, 0, 0;\n",
        "bands": "0,1,2: 0-0, 0, 1;\n0: 1-5, 0, 2;\n0: 6-63, 0, 2;\n1: 1-63, 0, 1;\n2: 1-63, 0, 1;\n0: 1-63, 2, 1;\n0: 1-63, 1, 0;\n0,1,2: 0-0, 1, 0;\n1: 1-63, 1, 0;\n2: 1-63, 1, 0;\n",
        "sequential": "0;\n1 2;\n",
        "sequential_each": "2;\n0;\n1;\n",
    }
    switches = [["-arithmetic"], ["-arithmetic", "-progressive"], ["-arithmetic", "-restart", "2B"], ["-arithmetic", "-progressive", "-restart", "3B"], ["-arithmetic", "-grayscale"],
                ["-restart", "1B"], ["-progressive", "-restart", "1"], ["-progressive", "-restart", "5B"], ["-optimize"], ["-rgb"], ["-rgb", "-progressive"]]
    number = 0
    for sample in ["1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "1x1,2x1,2x1", "3x1", "2x2,1x2,2x1"]:
        for options in switches + [["-scans", name] for name in scripts]:
            number += 1
            if "-rgb" in options and "," in sample:
                continue
            size = SIZES[number * 5 % len(SIZES)] if number % 3 else (97 + number % 50, 61 + number % 40)
            options = ["-quality", str([25, 75, 92][number % 3]), "-sample", sample] + options
            if "-scans" in options:
                with open("/tmp/check_jpegs.scans", "w") as script:
                    script.write(scripts[options[-1]])
            arguments = [program] + [("/tmp/check_jpegs.scans" if option in scripts else option) for option in options]
            if "-scans" in options and number % 4 == 0:
                arguments += ["-arithmetic"]
            ppm = b"P6 %d %d 255\n" % size + photo(*size, 3, number).tobytes()
            done = subprocess.run(arguments, input=ppm, capture_output=True, env=environment)
            if done.returncode == 0:
                yield f"cjpeg_{number:03d}_" + "_".join(options).replace("-", "").replace(",", "."), done.stdout


def damaged(files, seed=2, count=400):
    """Files cut short at many places, without their end, with bytes changed, left out and put in."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        name, data = files[int(rng.integers(len(files)))]
        data = bytearray(data)
        how = number % 8
        if how == 0:
            data = data[: int(rng.integers(2, len(data)))]
        elif how == 1:
            data = data[: len(data) - int(rng.integers(1, 6))]
        elif how == 2:
            data = data[:-2] + bytes(rng.integers(0, 256, int(rng.integers(0, 12))).tolist())
        elif how == 3:
            at = int(rng.integers(len(data)))
            del data[at : at + int(rng.integers(1, 9))]
        elif how == 4:
            at = int(rng.integers(len(data)))
            data[at:at] = bytes(rng.integers(0, 256, int(rng.integers(1, 9))).tolist())
        else:
            scan = max(data.find(b"\xff\xda"), 0)
            for _ in range(int(rng.integers(1, 4))):
                at = int(rng.integers(scan if how < 7 else 0, len(data)))
                data[at] = int(rng.integers(256)) if how != 6 else 0xFF
        yield f"damaged_{number:04d}_{how}_{name}", bytes(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.count):
        width, height = (int(side) for side in rng.integers(160, 1025, 2))
        image = Image.fromarray(photo(width, height, 3, arguments.seed * 100_000 + number)).filter(ImageFilter.GaussianBlur(0.8))
        if number % 10 == 9:
            image = image.convert("L")
        image.save(arguments.out / f"{number:05d}.jpg", quality=int(rng.integers(75, 96)), progressive=number % 10 == 4)
    print(f"{arguments.count} JPEGs in {arguments.out}")


if __name__ == "__main__":
    main()
