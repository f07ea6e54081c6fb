#!/usr/bin/env python3
"""Runs the ONNX files of small networks of every family in ONNX Runtime, against what their own libraries compute.

    MACULA_BACKBONES_OUT=DIR cargo test --release -p macula-models --test backbones every_backbone_is_exported
    python benchmarks/check_backbones.py DIR

Prints, for each file, the largest deviation of class token, patches and projection from the library's, of the largest value, at the
size of the table of positions and, of dynamic files, at another one. Exit code 1 where one is above 1e-5. Needs: numpy,
onnxruntime, safetensors.
"""

import pathlib
import sys

import numpy
import onnxruntime
from safetensors.numpy import load_file

folder, failed = pathlib.Path(sys.argv[1]), False
for path in sorted(folder.glob("*.onnx")):
    name, kind = path.name.removesuffix(".onnx").rsplit(".", 1)
    want = load_file(folder / f"{name}.expected.safetensors")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names, told = [output.name for output in session.get_outputs()], []
    for size in ["native", "other"] if kind == "dynamic" else ["native"]:
        if f"{size}.pixels" not in want:
            continue
        found = dict(zip(names, session.run(None, {"pixel_values": want[f"{size}.pixels"]})))
        for part in ["cls", "patch", "embedding"]:
            if f"{size}.{part}" in want and part in found:
                expected = want[f"{size}.{part}"]
                worst = float(numpy.abs(found[part] - expected).max() / numpy.abs(expected).max())
                failed |= not worst <= 1e-5
                told.append(f"{size} {part} {worst:.1e}")
    print(f"{path.name}: {', '.join(told)}")
sys.exit(failed)
