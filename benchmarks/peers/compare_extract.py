#!/usr/bin/env python3
"""macula's extract beside Python's on the same JPEGs and the same network, whole commands timed, in turn.

    compare_extract.py MACULA FOLDER [--threads 2] [--repetitions 3] [--sides macula torch onnxruntime] [--work FOLDER]
                       [--lightly PYTHON]

The network is timm's `vit_small_patch14_dinov2` at 224 pixels with random weights (seed 0), exported by macula. Prints images a
second of each side (smallest, median, largest) with its largest peak of resident memory (of its largest process: loaders of torch
and transformers are processes beside it), the ratio of each of macula's sides to the best peer round by round, and the cosines of
all to the features of `torch`, or of the first peer.

Sides: macula (ONNX Runtime's kernels), macula-openvino and macula-openvino-bf16 (`macula runtime install --flavor openvino`),
macula-checkpoint and macula-checkpoint-bf16 (macula's own kernels), macula-int8, macula-module and macula-module-checkpoint (the
Python package); torch (timm), torch-bf16, torch-compile, torch-compile-bf16 (through torch.compile; the time until the first image, which
compiles, is left out), openvino and openvino-bf16 (called directly on the exported file), transformers (its Dinov2Model with the same weights), onnxruntime, fastembed (the exported
file in a folder of its own, by `specific_model_path`; class token alone), and lightly (lightly-train's `embed` with a network of the same architecture and
its own weights, by the Python that --lightly names; only timed).

Needs: what extract.py needs, on the Python that runs this.
"""

import argparse
import json
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


# The same preparation for all: transformers and fastembed read it beside the model.
PREPROCESSOR = {
    "do_resize": True, "size": {"shortest_edge": 256}, "resample": 3, "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225], "do_convert_rgb": True,
}


def transformers_folder(checkpoint, folder):
    """The weights of timm under the names of transformers, with the configuration that its own files have."""
    from safetensors.torch import load_file, save_file

    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "blocks": "encoder.layer", "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1", "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    tensors = {}
    for name, value in load_file(checkpoint).items():
        for ours, theirs in names.items():
            if name.startswith(ours) or f".{ours}" in name:
                name = name.replace(ours, theirs)
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), value.chunk(3)):
                tensors[name.replace("attn.qkv", f"attention.attention.{part}")] = third.contiguous()
        else:
            tensors[name] = value
    tensors["embeddings.mask_token"] = tensors["embeddings.cls_token"][0] * 0
    config = {"model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": 384, "num_hidden_layers": 12,
              "num_attention_heads": 6, "patch_size": 14, "image_size": 224, "layer_norm_eps": 1e-6}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "BitImageProcessor", **PREPROCESSOR}))


def fastembed_folder(checkpoint, macula, folder):
    """The network as ONNX with the class token alone, under the name that fastembed looks for."""
    folder.mkdir()
    subprocess.run([macula, "export", checkpoint, "--heads", "6", "--image-size", "224", "--outputs", "cls", "--out",
                    folder / "model.onnx"], check=True, stdout=subprocess.DEVNULL)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor", **PREPROCESSOR}))


# Started from a small process: a child's peak begins with that of the process it is forked from, and torch is in this one.
STARTER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.perf_counter() - start
sys.stderr.write(done.stderr)
compiling = [line.removeprefix("compiled: ") for line in done.stdout.splitlines() if line.startswith("compiled: ")]
seconds -= float(compiling[-1]) if compiling else 0
print(json.dumps([done.returncode, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""


def run(command):
    """Seconds that a command takes, without those that it says it compiled, and the peak of its resident memory in MiB."""
    started = subprocess.run([sys.executable, "-c", STARTER, *map(str, command)], capture_output=True, text=True, check=True)
    code, seconds, peak = json.loads(started.stdout)
    if code != 0:
        sys.exit(f"{started.stderr[-3000:]}\n{command[0]} ended with {code}")
    return seconds, peak


def features(path, name):
    parts = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    frame = polars.concat([polars.read_parquet(part) for part in parts])
    if name not in frame.columns:
        return None
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
            "torch-compile": peer("compile.parquet", "torch", checkpoint, "--compile"),
            "torch-compile-bf16": peer("compile-bf16.parquet", "torch", checkpoint, "--compile", "--dtype", "bf16"),
            "openvino": peer("openvino.parquet", "openvino", model),
            "openvino-bf16": peer("openvino-direct-bf16.parquet", "openvino", model, "--dtype", "bf16"),
            "transformers": peer("transformers.parquet", "transformers", work / "transformers"),
            "onnxruntime": peer("ort.parquet", "onnxruntime", model),
            "fastembed": peer("fastembed.parquet", "fastembed", work / "fastembed"),
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
        if "transformers" in arguments.sides:
            transformers_folder(checkpoint, work / "transformers")
        if "fastembed" in arguments.sides:
            fastembed_folder(checkpoint, arguments.macula, work / "fastembed")
        count = len(list(arguments.folder.iterdir()))
        rates = {side: [] for side in arguments.sides}
        peaks = {side: 0 for side in arguments.sides}
        for _ in range(arguments.repetitions):
            for side in arguments.sides:
                seconds, peak = run(sides[side][1])
                rates[side].append(count / seconds)
                peaks[side] = max(peaks[side], peak)
                print(f"{side}: {rates[side][-1]:.2f} images/s", file=sys.stderr, flush=True)
        for side, found in rates.items():
            print(f"{side:22} {min(found):6.2f}  {statistics.median(found):6.2f}  {max(found):6.2f} images/s  {peaks[side]:6.0f} MiB")
        ours = [side for side in arguments.sides if side.startswith("macula")]
        peers = [side for side in arguments.sides if side not in ours]
        of_f32 = [side for side in peers if not side.endswith("bf16")]
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
                if expected is None or found is None:
                    continue
                cosines = [float(a @ found[path] / np.linalg.norm(a) / np.linalg.norm(found[path])) for path, a in expected.items()]
                print(f"{name} of {side} to {reference}: cosine {np.mean(cosines):.6f} in the mean, {min(cosines):.6f} at least")


if __name__ == "__main__":
    main()
