#!/usr/bin/env python3
"""What a user would write in Python to have class token and mean patch of a folder of images in a Parquet file: with torch and
timm, with transformers, with onnxruntime, with OpenVINO, or with fastembed (which gives the class token alone, brought to length 1).
Started by compare_extract.py; ours, written as well as we can.

    extract.py torch WEIGHTS.safetensors FOLDER OUT.parquet [--dtype f32|bf16] [--compile] [--threads 2] [--batch 32]
    extract.py transformers FOLDER_OF_MODEL FOLDER OUT.parquet [--threads 2] [--batch 32]
    extract.py fastembed FOLDER_OF_MODEL FOLDER OUT.parquet [--threads 2] [--batch 32]
    extract.py onnxruntime MODEL.onnx FOLDER OUT.parquet [--threads 2] [--batch 32]
    extract.py openvino MODEL.onnx FOLDER OUT.parquet [--dtype f32|bf16] [--threads 2] [--batch 32]
    extract.py macula MODEL FOLDER OUT.parquet [--threads 2] [--batch 32]      by macula's Python package
    extract.py lightly-checkpoint RUN FOLDER ANY      trains one step, for a checkpoint that lightly-train can read
    extract.py lightly RUN FOLDER OUT.pt [--threads 2] [--batch 32]

With --compile the network goes through torch.compile, and `compiled: SECONDS` is printed: how long a batch took before the first image.

Needs: polars, pillow, numpy; torch, torchvision, timm, safetensors and transformers, or onnxruntime, or openvino, or fastembed, or
macula; or lightly-train alone.
"""

import argparse
import concurrent.futures
import pathlib
import time

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write(paths, out, **features):
    import polars

    polars.DataFrame({"path": [path.name for path in paths], **features}).write_parquet(out)


def of_tokens(arguments, paths, prepared, network):
    """Writes what `network` [B, 3, H, W] -> tokens [B, 1 + N, D] makes of images that loader processes open and `prepared` prepares."""
    import numpy as np
    import torch
    from PIL import Image

    torch.set_num_threads(arguments.threads)

    class Folder(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return prepared(Image.open(paths[index]).convert("RGB"))

    # Whole batches alone, as another size would be compiled anew.
    loader = torch.utils.data.DataLoader(Folder(), arguments.batch, num_workers=arguments.threads, drop_last=arguments.compile)
    if arguments.compile and len(paths) % arguments.batch:
        raise SystemExit(f"--compile: expected a multiple of {arguments.batch} images, found {len(paths)}")
    cls, patch_mean = [], []
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=arguments.dtype == "bf16")
    # What is compiled with its weights for constants does not run in inference mode.
    with torch.no_grad() if arguments.compile else torch.inference_mode(), bf16:
        if arguments.compile:
            network = compiled(network, arguments.batch)
        for images in loader:
            tokens = network(images).float()
            cls.append(tokens[:, 0].numpy())
            patch_mean.append(tokens[:, 1:].mean(1).numpy())
    write(paths, arguments.out, cls=np.concatenate(cls), patch_mean=np.concatenate(patch_mean))


def compiled(network, batch):
    """The network for batches of this size, with its weights taken for constants."""
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    network = torch.compile(network)
    start = time.perf_counter()
    for _ in range(2):
        network(torch.randn(batch, 3, 224, 224))
    print(f"compiled: {time.perf_counter() - start}")
    return network


def with_torch(arguments, paths):
    import timm
    from safetensors.torch import load_file
    from torchvision import transforms

    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224)
    network.load_state_dict(load_file(arguments.model))
    network.eval()
    transform = transforms.Compose([
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD)])
    of_tokens(arguments, paths, transform, network.forward_features)


def with_transformers(arguments, paths):
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(arguments.model)
    network = AutoModel.from_pretrained(arguments.model).eval()
    of_tokens(arguments, paths, lambda image: processor(image, return_tensors="pt")["pixel_values"][0],
              lambda images: network(images).last_hidden_state)


def with_fastembed(arguments, paths):
    import numpy as np
    from fastembed import ImageEmbedding

    # A name that it knows, for the class that runs ONNX files; the files are those of the folder.
    model = ImageEmbedding("Qdrant/resnet50-onnx", threads=arguments.threads, specific_model_path=arguments.model)
    cls = np.stack(list(model.embed([str(path) for path in paths], arguments.batch)))
    write(paths, arguments.out, cls=cls)


def pixels(path):
    """Pixels [3, 224, 224] as torchvision's transform makes them, without torch."""
    import numpy as np
    from PIL import Image

    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize([max(256, int(side * scale)) for side in image.size], Image.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    values = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32).transpose(2, 0, 1) / 255
    return (values - mean) / std


def of_batches(arguments, paths, run):
    """Writes what `run` makes of batches [B, 3, H, W], which threads prepare one batch ahead."""
    import numpy as np

    cls, patch_mean = [], []
    batches = [paths[start:start + arguments.batch] for start in range(0, len(paths), arguments.batch)]
    with concurrent.futures.ThreadPoolExecutor(arguments.threads) as pool:
        ahead = [pool.submit(pixels, path) for path in batches[0]]
        for number in range(len(batches)):
            images = np.stack([future.result() for future in ahead])
            ahead = [pool.submit(pixels, path) for path in batches[number + 1]] if number + 1 < len(batches) else []
            found = run(images)
            cls.append(found[0])
            patch_mean.append(found[1])
    write(paths, arguments.out, cls=np.concatenate(cls), patch_mean=np.concatenate(patch_mean))


def with_onnxruntime(arguments, paths):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
    of_batches(arguments, paths, lambda images: session.run(["cls", "patch_mean"], {session.get_inputs()[0].name: images}))


def with_openvino(arguments, paths):
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": arguments.dtype, "INFERENCE_NUM_THREADS": arguments.threads, "PERFORMANCE_HINT": "LATENCY"}
    network = core.compile_model(core.read_model(arguments.model), "CPU", settings)

    def run(images):
        found = network(images)
        return found["cls"].copy(), found["patch_mean"].copy()

    of_batches(arguments, paths, run)


def with_macula(arguments, paths):
    import macula

    options = {"heads": 6} if arguments.model.endswith(".safetensors") else {}
    model = macula.load(arguments.model, "cpu", arguments.threads, ["cls", "patch_mean"], resize=256, crop=224, **options)
    found = model.embed(paths, arguments.batch)
    write(paths, arguments.out, **found)


def lightly_checkpoint(arguments, paths):
    import lightly_train
    from lightly_train._models.dinov2_vit.dinov2_vit_src.configs import MODELS

    MODELS["vits14-noreg"]["url"] = ""  # initial weights instead of a download
    lightly_train.pretrain(
        out=arguments.model, data=[str(path) for path in paths[:8]], model="dinov2/vits14-noreg", method="dinov2", epochs=1, batch_size=4,
        num_workers=0, accelerator="cpu", devices=1, method_args={"output_dim": 64},
        transform_args={"image_size": (56, 56), "local_view": {"num_views": 1, "view_size": (28, 28)}})


def with_lightly(arguments, _):
    import lightly_train
    import torch

    torch.set_num_threads(arguments.threads)
    lightly_train.embed(
        out=arguments.out, data=arguments.folder, checkpoint=pathlib.Path(arguments.model) / "checkpoints" / "last.ckpt",
        image_size=224, batch_size=arguments.batch, num_workers=arguments.threads, accelerator="cpu", overwrite=True)


RUNTIMES = {
    "torch": with_torch,
    "transformers": with_transformers,
    "fastembed": with_fastembed,
    "onnxruntime": with_onnxruntime,
    "openvino": with_openvino,
    "macula": with_macula,
    "lightly": with_lightly,
    "lightly-checkpoint": lightly_checkpoint,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=RUNTIMES)
    parser.add_argument("model")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("out")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    paths = sorted(arguments.folder.iterdir())
    RUNTIMES[arguments.runtime](arguments, paths)


if __name__ == "__main__":
    main()
