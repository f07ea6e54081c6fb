#!/usr/bin/env python3
"""Exports the eight golden checkpoints with macula and checks the files with Python's onnxruntime.

    check_golden_exports.py [--macula target/release/macula] [--fixtures models/tests/fixtures]

Each checkpoint is exported at its native size, at 98x56 and as `dynamic`, and every file is run on the golden inputs of
every size it accepts: cls and patch (and what else the reference gave) must be within 1e-4 of the largest value. timm's
reference has the native size only. Exit code 0: all passed. 1: something differs. Needs: numpy, onnxruntime, safetensors.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from check_onnx import check
from safetensors.numpy import load_file, save_file

CHECKPOINTS = {
    "official_plain": ("official_plain.pth", ["--heads", "3"]),
    "official_reg4": ("official_reg4.pth", ["--heads", "3"]),
    "official_swiglu": ("official_swiglu.pth", ["--heads", "3"]),
    "hf_plain": ("hf_plain", []),
    "hf_reg4": ("hf_reg4", []),
    "hf_swiglu": ("hf_swiglu", []),
    "timm_plain": ("timm_plain.safetensors", ["--heads", "3"]),
    "timm_reg4": ("timm_reg4.safetensors", ["--heads", "3"]),
}


def with_sizes(expected):
    """timm's file names its tensors without a size: all are 70x70."""
    if "pixels" in expected:
        return {f"70x70.{name}": tensor for name, tensor in expected.items()}
    return expected


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--macula", default="target/release/macula")
    parser.add_argument("--fixtures", type=pathlib.Path, default=pathlib.Path("models/tests/fixtures"))
    arguments = parser.parse_args()
    well = True
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, (file, flags) in CHECKPOINTS.items():
            expected = with_sizes(load_file(arguments.fixtures / f"{name}.expected.safetensors"))
            save_file(expected, folder / f"{name}.safetensors")
            sizes = ["70x70", "98x56", "dynamic"] if "98x56.pixels" in expected else ["70x70", "dynamic"]
            for size in sizes:
                model = folder / f"{name}-{size}.onnx"
                command = [arguments.macula, "export", str(arguments.fixtures / file), *flags]
                subprocess.run(
                    [*command, "--image-size", size, "--out", str(model)], check=True, stdout=subprocess.DEVNULL
                )
                lines, passed = check(model, folder / f"{name}.safetensors", 1e-4, 2)
                print(f"{name}, exported as {size}: {'passed' if passed else 'FAILED'}")
                print("\n".join(f"  {line}" for line in lines))
                well = well and passed
    print("all passed" if well else "something differs")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
