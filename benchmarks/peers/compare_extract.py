#!/usr/bin/env python3
"""macula's extract beside Python's on the same JPEGs and the same network, whole commands timed, in turn.

    compare_extract.py MACULA FOLDER [--threads 2] [--repetitions 3] [--sides macula torch onnxruntime] [--work FOLDER]
                       [--lightly PYTHON]

The network is timm's `vit_small_patch14_dinov2` at 224 pixels with random weights (seed 0), exported by macula. Prints images a
second of each side (smallest, median, largest), the ratio of each of macula's sides to the best peer round by round, and the
cosines of all to the features of `torch`, or of the first peer.

Sides: macula (ONNX Runtime's kernels), macula-openvino and macula-openvino-bf16 (`macula runtime install --flavor openvino`),
macula-checkpoint and macula-checkpoint-bf16 (macula's own kernels), macula-int8, macula-module and macula-module-checkpoint (the
Python package); torch, torch-bf16, onnxruntime, and lightly (lightly-train's `embed` with a network of the same architecture and
its own weights, by the Python that --lightly names; only timed).

Needs: what extract.py needs, on the Python that runs this.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import polars


def weights(path):
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224)
    # LayerScale starts at 1e-5, which would hide the blocks.
    save_file({name: (value + 1 if name.endswith("gamma") else value).contiguous() for name, value in network.state_dict().items()},
              path)


def features(path, name):
    parts = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    frame = polars.concat([polars.read_parquet(part) for part in parts])
    paths = [value.split("/")[-1] for value in frame["path"].to_list()]
    return dict(zip(paths, np.array(frame[name].to_list(), np.float32)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["macula", "torch", "onnxruntime"])
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--lightly", default=sys.executable, help="a Python that has lightly-train")
    arguments = parser.parse_args()
    arguments.macula = arguments.macula.resolve()
    with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
        work = pathlib.Path(temporary)
        checkpoint, model = work / "vit.safetensors", work / "vit.onnx"
        weights(checkpoint)
        subprocess.run([arguments.macula, "export", checkpoint, "--heads", "6", "--image-size", "224", "--outputs", "cls,patch_mean",
                        "--out", model], check=True, stdout=subprocess.DEVNULL)
        here = pathlib.Path(__file__).parent / "extract.py"
        threads = ["--threads", str(arguments.threads)]
        def own(out, model, *flags):
            return (work / out, [arguments.macula, "extract", "--model", model, "--data", arguments.folder, "--output", "cls,patch_mean",
                                 "--resize", "256", "--crop", "224", "--out", work / out, "--force", *threads, *flags])

        def peer(out, *rest):
            return (work / out, [sys.executable, here, *rest[:2], arguments.folder, work / out, *threads, *rest[2:]])

        sides = {
            "macula": own("macula", model, "--device", "cpu"),
            "macula-openvino": own("openvino", model, "--device", "openvino"),
            "macula-openvino-bf16": own("openvino-bf16", model, "--device", "openvino", "--compute", "bf16"),
            "macula-checkpoint": own("checkpoint", checkpoint, "--heads", "6", "--device", "cpu"),
            "macula-checkpoint-bf16": own("checkpoint-bf16", checkpoint, "--heads", "6", "--device", "cpu", "--compute", "bf16"),
            "macula-int8": own("int8", work / "int8.onnx", "--device", "cpu"),
            "macula-module": peer("module.parquet", "macula", model),
            "macula-module-checkpoint": peer("module-checkpoint.parquet", "macula", checkpoint),
            "torch": peer("torch.parquet", "torch", checkpoint),
            "torch-bf16": peer("bf16.parquet", "torch", checkpoint, "--dtype", "bf16"),
            "onnxruntime": peer("ort.parquet", "onnxruntime", model),
            "lightly": (None, [arguments.lightly, here, "lightly", work / "lightly", arguments.folder, work / "lightly.pt", *threads]),
        }
        unknown = set(arguments.sides) - set(sides)
        if unknown:
            parser.error(f"--sides: expected some of {', '.join(sides)}, found {', '.join(sorted(unknown))}")
        if "macula-int8" in arguments.sides:
            subprocess.run([arguments.macula, "export", checkpoint, "--heads", "6", "--image-size", "224", "--outputs", "cls,patch_mean",
                            "--dtype", "int8", "--calibration", arguments.folder, "--calibration-images", "32", "--compared-images", "32",
                            "--out", work / "int8.onnx", "--max-drift", "1"], check=True, stdout=subprocess.DEVNULL)
        if "lightly" in arguments.sides:
            subprocess.run([arguments.lightly, here, "lightly-checkpoint", work / "lightly", arguments.folder, work], check=True,
                           capture_output=True)
        count = len(list(arguments.folder.iterdir()))
        rates = {side: [] for side in arguments.sides}
        for _ in range(arguments.repetitions):
            for side in arguments.sides:
                start = time.perf_counter()
                subprocess.run([str(part) for part in sides[side][1]], check=True, capture_output=True)
                rates[side].append(count / (time.perf_counter() - start))
                print(f"{side}: {rates[side][-1]:.2f} images/s", file=sys.stderr, flush=True)
        for side, found in rates.items():
            print(f"{side:22} {min(found):6.2f}  {statistics.median(found):6.2f}  {max(found):6.2f} images/s")
        ours = [side for side in arguments.sides if side.startswith("macula")]
        peers = [side for side in arguments.sides if side not in ours]
        of_f32 = [side for side in peers if side != "torch-bf16"]
        for name, group in (("f32 peer", of_f32), ("peer", peers)):
            for side in ours if group else []:
                ratios = [rates[side][i] / max(rates[peer][i] for peer in group) for i in range(arguments.repetitions)]
                print(f"{side} over the best {name}, round by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        reference = "torch" if "torch" in peers else next((side for side in peers if sides[side][0]), None)
        for side in arguments.sides:
            if reference is None or side == reference or sides[side][0] is None:
                continue
            for name in ("cls", "patch_mean"):
                expected, found = features(sides[reference][0], name), features(sides[side][0], name)
                cosines = [float(a @ found[path] / np.linalg.norm(a) / np.linalg.norm(found[path])) for path, a in expected.items()]
                print(f"{name} of {side} to {reference}: cosine {np.mean(cosines):.6f} in the mean, {min(cosines):.6f} at least")


if __name__ == "__main__":
    main()
