#!/usr/bin/env python3
"""Checks exported ONNX files against expected outputs, with Python's onnxruntime.

    check_onnx.py MODEL.onnx EXPECTED.safetensors [MODEL.onnx EXPECTED.safetensors ...]
    check_onnx.py --folder DIR

An expected file holds, for each image size HxW, the network's input under `HxW.pixels` ([B, 3, H, W], float32) and
its outputs under `HxW.NAME`, NAME being the name of the model's output (`cls`, `patch`, `patch_mean`, `reg`,
`layer:1.cls`, ...). Every size that the model accepts is run, and every output of which the file has the value is
compared: the largest difference must not exceed 1e-4 of the largest value. Each batch is run whole and image by image,
so the batch axis is exercised as well. A model of which nothing could be compared fails.

`--folder DIR` pairs every `NAME-*.onnx` with `NAME.expected.safetensors`. Such a folder is written by

    MACULA_EXPORT_DIR=DIR cargo test --release -p macula-models --lib onnx::

Exit code 0: all passed. 1: something differs. 2: bad arguments. Needs: numpy, onnxruntime, safetensors.
"""

import argparse
import pathlib
import sys

import numpy as np
import onnxruntime
from safetensors.numpy import load_file


def accepts(shape, pixels):
    """Whether a declared input shape (sizes, or symbols as strings) takes this array."""
    return len(shape) == pixels.ndim and all(
        not isinstance(side, int) or side == found for side, found in zip(shape, pixels.shape)
    )


def relative_difference(found, expected):
    """Largest absolute difference over the largest absolute value; infinite for other shapes or NaN."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    difference = float(np.abs(found.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30))
    return difference if np.isfinite(difference) else float("inf")


def check(model, expected_path, tolerance, threads):
    """Runs one model on every size it accepts. Returns the lines to print and whether all is well."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    expected = load_file(expected_path)
    lines, well, compared = [], True, 0
    for key in sorted(key for key in expected if key.endswith(".pixels")):
        pixels = expected[key]
        if not accepts(image.shape, pixels):
            continue
        size = key.removesuffix(".pixels")
        whole = session.run(names, {image.name: pixels})
        single = [session.run(names, {image.name: pixels[i : i + 1]}) for i in range(len(pixels))]
        parts = []
        for index, name in enumerate(names):
            if (value := expected.get(f"{size}.{name}")) is None:
                continue
            joined = np.concatenate([outputs[index] for outputs in single])
            difference = max(relative_difference(whole[index], value), relative_difference(joined, value))
            compared += 1
            well &= difference <= tolerance
            parts.append(f"{name} {difference:.1e}" + ("" if difference <= tolerance else " DIFFERS"))
        lines.append(f"  {size}: " + ", ".join(parts))
    if not compared:
        return ["  nothing was compared: no size or no output in common"], False
    return lines, well


def pairs(arguments, parser):
    if arguments.folder:
        found = []
        for model in sorted(arguments.folder.glob("*-*.onnx")):
            name = model.name.removesuffix(".onnx").rpartition("-")[0]
            found.append((model, arguments.folder / f"{name}.expected.safetensors"))
    else:
        files = arguments.files
        if len(files) % 2:
            parser.error("expected pairs of a model and an expected file")
        found = list(zip(files[::2], files[1::2]))
    if not found:
        parser.error("expected at least one model")
    for file in (file for pair in found for file in pair):
        if not file.is_file():
            parser.error(f"{file}: no such file")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, metavar="MODEL EXPECTED")
    parser.add_argument("--folder", type=pathlib.Path, help="check every NAME-*.onnx of a folder")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative to the largest value (default 1e-4)")
    parser.add_argument("--threads", type=int, default=2, help="threads of onnxruntime (default 2)")
    arguments = parser.parse_args()
    all_well = True
    for model, expected in pairs(arguments, parser):
        lines, well = check(model, expected, arguments.tolerance, arguments.threads)
        all_well &= well
        print(f"{'ok  ' if well else 'FAIL'} {model.name}")
        print("\n".join(lines), flush=True)
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
