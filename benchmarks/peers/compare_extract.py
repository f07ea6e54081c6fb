#!/usr/bin/env python3
"""macula's extract beside Python's on the same JPEGs and the same network, whole commands timed, in turn.

    compare_extract.py MACULA FOLDER [--threads 2] [--repetitions 3] [--sides macula torch onnxruntime] [--work FOLDER]

The network is timm's `vit_small_patch14_dinov2` at 224 pixels with random weights (seed 0), exported by macula. Prints images a
second of each side (smallest, median, largest), the ratio to the best peer round by round, and the cosines between the sides'
features.

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
    parser.add_argument("macula", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["macula", "torch", "onnxruntime"])
    parser.add_argument("--work", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
        work = pathlib.Path(temporary)
        checkpoint, model = work / "vit.safetensors", work / "vit.onnx"
        weights(checkpoint)
        subprocess.run([arguments.macula, "export", checkpoint, "--heads", "6", "--image-size", "224", "--outputs", "cls,patch_mean",
                        "--out", model], check=True, stdout=subprocess.DEVNULL)
        here = pathlib.Path(__file__).parent / "extract.py"
        threads = ["--threads", str(arguments.threads)]
        sides = {
            "macula": (work / "macula", [arguments.macula, "extract", "--model", model, "--data", arguments.folder, "--output",
                                         "cls,patch_mean", "--resize", "256", "--crop", "224", "--out", work / "macula", "--force", *threads]),
            "torch": (work / "torch.parquet", [sys.executable, here, "torch", checkpoint, arguments.folder,
                                               work / "torch.parquet", *threads]),
            "torch-bf16": (work / "bf16.parquet", [sys.executable, here, "torch", checkpoint, arguments.folder,
                                                   work / "bf16.parquet", "--dtype", "bf16", *threads]),
            "onnxruntime": (work / "ort.parquet", [sys.executable, here, "onnxruntime", model, arguments.folder,
                                                   work / "ort.parquet", *threads]),
        }
        count = len(list(arguments.folder.iterdir()))
        rates = {side: [] for side in arguments.sides}
        for _ in range(arguments.repetitions):
            for side in arguments.sides:
                start = time.perf_counter()
                subprocess.run([str(part) for part in sides[side][1]], check=True, capture_output=True)
                rates[side].append(count / (time.perf_counter() - start))
        for side, found in rates.items():
            print(f"{side:12} {min(found):6.2f}  {statistics.median(found):6.2f}  {max(found):6.2f} images/s")
        peers = [side for side in arguments.sides if side != "macula"]
        if "macula" in rates and peers:
            ratios = [rates["macula"][i] / max(rates[peer][i] for peer in peers) for i in range(arguments.repetitions)]
            print(f"macula over the best peer, round by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
            own = {name: features(sides["macula"][0], name) for name in ("cls", "patch_mean")}
            for peer in peers:
                for name, rows in own.items():
                    other = features(sides[peer][0], name)
                    cosines = [float(a @ other[path] / np.linalg.norm(a) / np.linalg.norm(other[path])) for path, a in rows.items()]
                    print(f"{name} against {peer}: cosine {np.mean(cosines):.6f} in the mean, {min(cosines):.6f} at least")


if __name__ == "__main__":
    main()
