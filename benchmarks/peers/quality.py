#!/usr/bin/env python3
"""What training gives, beside lightly-train and stable-pretraining on equal time: one table.

    quality.py MACULA --train idx:FOLDER#train --test idx:FOLDER#test --minutes 20
    quality.py MACULA --train .. --test .. --minutes 20 --methods macula-dino,lightly-dino-vit --seed 1 --work FOLDER
    quality.py MACULA --folds EMOJI --minutes 30 --background 255,255,255
    quality.py MACULA --train .. --test .. --steps 10          # whether all of it runs

Needs lightly-train 0.18.0, stable-pretraining 0.1.8 (only for its methods), torch 2.15.0, torchvision 0.29.2, timm 1.0.31 and onnx 1.23.2:

    python3 -m venv venv && venv/bin/pip install lightly-train stable-pretraining timm onnx

Every method trains on the same images without their labels, on the CPU, in batches of 64, from random weights, confined to --threads cores. Its
rate is measured first, in a short run of its own, and it trains for as many steps as the minutes hold at that rate (--steps sets their number
instead), with its schedules ending when the run ends; loading and augmenting images counts, starting, export and evaluation do not. Peers'
networks become ONNX files, and macula extracts and evaluates the features of all: weighted k-NN (k = 20) and linear probe with 95 % intervals,
or with --folds (a folder made by emoji_data.py) the mean of k-NN over its five folds. Rows are kept in WORK/rows.json as they are done: the same
command goes on after an interruption. What peers are set to stands beside `LIGHTLY` and `train_stable` below.
"""

import argparse
import csv
import gzip
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
import tomllib
from unittest import mock

BATCH = 64
K = 20
RATE_STEPS = 40
RATE_RUNS = 3
# Of a peer's short run the first steps are left out (caches, the first images of the workers), and a slow one ends early.
RATE_WARMUP = 5
RATE_SECONDS = 60
# ImageNet's, which all of them normalise by.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MACULA = ["macula-dinov2-small", "macula-dino", "macula-ibot", "macula-moco"]
# Method and network. lightly-train's DINOv2 takes ViTs of its own class alone.
LIGHTLY = {
    "lightly-simclr-resnet18": ("simclr", "resnet18"),
    "lightly-dino-resnet18": ("dino", "resnet18"),
    "lightly-simclr-vit": ("simclr", "vit"),
    "lightly-dino-vit": ("dino", "vit"),
    "lightly-dinov2-vit": ("dinov2", "vit"),
}
STABLE = ["stable-dino-vit"]
PACKAGES = {"lightly": ["lightly-train", "torch", "torchvision", "onnx"], "stable": ["stable-pretraining", "torch", "torchvision", "timm", "onnx"]}


def fail(message):
    sys.exit(f"quality.py: error: {message}")


def colour(text):
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdigit() and int(part) < 256 for part in parts):
        raise argparse.ArgumentTypeError(f"expected R,G,B from 0 to 255, not {text}")
    return text


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("macula", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--train", help="idx:FOLDER#train, list.csv or a folder with one folder a class")
    parser.add_argument("--test")
    parser.add_argument("--folds", type=pathlib.Path)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*MACULA, *LIGHTLY, *STABLE])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--background", type=colour, help="R,G,B under transparent pixels, in training and evaluation")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("quality-work"))
    arguments = parser.parse_args()
    if (arguments.folds is None) == (arguments.train is None or arguments.test is None):
        parser.error("expected --train and --test, or --folds")
    known = [*MACULA, *LIGHTLY, *STABLE]
    if unknown := [method for method in arguments.methods if method not in known]:
        parser.error(f"no method {unknown[0]}, expected some of {','.join(known)}")
    if arguments.minutes <= 0 or arguments.threads < 1 or (arguments.steps is not None and arguments.steps < 1):
        parser.error("expected --minutes, --threads and --steps above 0")
    if not os.access(arguments.macula, os.X_OK):
        parser.error(f"no program {arguments.macula}")
    arguments.source = arguments.train or str(arguments.folds / "list.csv")
    return arguments


# ---------------------------------------------------------------------------------------------------------------------- images for the peers


def idx_images(source):
    """The images of IDX files, as pictures."""
    import numpy as np
    from PIL import Image

    folder, _, part = source.removeprefix("idx:").partition("#")
    path = pathlib.Path(folder) / f"{'t10k' if part == 'test' else 'train'}-images-idx3-ubyte"
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        fail(f"neither {path} nor {packed}")
    data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    # Magic number, count, sides; all big-endian.
    count, height, width = (int.from_bytes(data[start : start + 4], "big") for start in (4, 8, 12))
    for pixels in np.frombuffer(data, np.uint8, count * height * width, 16).reshape(count, height, width):
        yield Image.fromarray(pixels)


def listed_paths(source):
    """Paths of the images of a list or of a folder."""
    source = pathlib.Path(source)
    if source.is_dir():
        return sorted(path for path in source.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if source.suffix != ".csv" or not source.exists():
        fail(f"expected idx:FOLDER#train, a .csv file or a folder, not {source}")
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = next((name for name in ("path", "image") if rows and name in rows[0]), None)
    if column is None:
        fail(f"{source} has no rows with a column path or image")
    return [source.parent / row[column] for row in rows]


def on_background(image, background):
    """Without transparency: over the colour, or without one the alpha is dropped, as macula does."""
    from PIL import Image

    if image.mode == "L":
        return image
    if background:
        ground = Image.new("RGBA", image.size, tuple(map(int, background.split(","))))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def write_images(source, background, folder):
    """Images as PNG files in one folder, which every peer can read."""
    from PIL import Image

    if (folder / "count").exists():
        return int((folder / "count").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    images = idx_images(source) if source.startswith("idx:") else map(Image.open, listed_paths(source))
    count = 0
    try:
        for image in images:
            on_background(image, background).save(folder / f"{count:07}.png")
            count += 1
    except OSError as error:
        fail(error)
    if count < BATCH:
        fail(f"{source} has {count} images, expected {BATCH} at least")
    (folder / "count").write_text(str(count))
    return count


# ---------------------------------------------------------------------------------------------------- a peer's training, in a process of its own


def timer(callback):
    """A Lightning callback that notes when steps end; the two packages have one `Callback` each."""

    class Timer(callback):
        def __init__(self, limit=math.inf):
            super().__init__()
            self.limit = limit
            self.start = None
            self.ends = []

        # Not the start of training, at which packages write down their settings.
        def on_train_batch_start(self, *rest, **named):
            if self.start is None:
                self.start = time.perf_counter()

        def on_train_batch_end(self, trainer, *rest, **named):
            self.ends.append(time.perf_counter())
            if len(self.ends) > RATE_WARMUP and self.ends[-1] - self.start > self.limit:
                trainer.should_stop = True

        def rate(self):
            """Steps a second."""
            return (len(self.ends) - RATE_WARMUP) / (self.ends[-1] - self.ends[RATE_WARMUP - 1])

    return Timer


def vit_sizes(job):
    vit = job["vit"]
    ratio = vit["ffn_hidden"] / vit["embed_dim"] if vit["ffn_hidden"] else 4
    return {
        "img_size": job["side"], "patch_size": vit["patch_size"], "embed_dim": vit["embed_dim"], "depth": vit["depth"],
        "num_heads": vit["num_heads"], "mlp_ratio": ratio,
    }


def lightly_network(job):
    """ResNet-18 without its classifier, or the package's own ViT in the sizes of macula's, without stochastic depth and LayerScale as that."""
    if LIGHTLY[job["name"]][1] == "resnet18":
        from torchvision.models import resnet18

        return resnet18()
    from functools import partial

    from lightly_train._models.dinov2_vit.dinov2_vit_src.layers import MemEffAttention
    from lightly_train._models.dinov2_vit.dinov2_vit_src.layers.block import Block
    from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer

    return DinoVisionTransformer(block_fn=partial(Block, attn_class=MemEffAttention), block_chunks=0, **vit_sizes(job))


def lightly_transform(method, job):
    """The method's own augmentation, at the size of macula's crops. Up to 32 pixels it is what is usual
    on CIFAR-10: no blur, for SimCLR half of the colour jitter, for DINO no local views."""
    side, local = (job["side"],) * 2, (job["local_side"],) * 2
    arguments = {"image_size": side}
    small = job["side"] <= 32
    if small:
        arguments["gaussian_blur"] = None
    if method == "simclr":
        return arguments | ({"color_jitter": {"strength": 0.5}} if small else {})
    if small:
        arguments["global_view_1"] = {"gaussian_blur": None}
    if method == "dino" and small:
        return arguments | {"local_view": None}
    return arguments | {"local_view": {"view_size": local} | ({"gaussian_blur": None} if small else {})}


def prototypes(images):
    """As many as lightly-train's DINO takes for so many images; its DINOv2 and stable-pretraining's DINO have 65,536 for any number."""
    sizes = [(20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768), (math.inf, 65536)]
    return next(count for limit, count in sizes if images < limit)


def lightly_method(method, steps, job):
    """Steps that the package counts for runs of 125,000 become the same share of this one, where it does not do so itself."""
    frozen = {"student_freeze_last_layer_steps": steps // 100}
    if method == "dino":
        return frozen
    if method == "dinov2":
        return frozen | {"warmup_steps": steps // 10, "teacher_temp_warmup_steps": max(1, steps * 3 // 10), "output_dim": prototypes(job["images"])}
    return {}


def train_lightly(network, steps, limit, job, out):
    import lightly_train
    import pytorch_lightning
    import torch
    from lightly_train._commands import train_helpers

    method, kind = LIGHTLY[job["name"]]
    clock = timer(pytorch_lightning.Callback)(limit)
    make_trainer = train_helpers.get_trainer
    # Its settings take no callback that they cannot print. The package's own write checkpoints and a progress bar.
    with mock.patch.object(train_helpers, "get_trainer", lambda **named: make_trainer(**named | {"callbacks": [clock]})):
        # Learning rates are the package's, scaled by it to the batch; of SimCLR and DINO with AdamW for the ViT, whose default here is SGD.
        lightly_train.pretrain(
            out=out, overwrite=True, data=job["folder"], model=network, method=method, epochs=math.ceil(steps / (job["images"] // BATCH)),
            batch_size=BATCH, num_workers=job["threads"] - 1, accelerator="cpu", devices=1, precision="32-true", seed=job["seed"],
            optim="adamw" if kind == "vit" else "auto", method_args=lightly_method(method, steps, job),
            transform_args=lightly_transform(method, job), loggers={"tensorboard": None},
            trainer_args={"max_steps": steps, "enable_checkpointing": False, "enable_progress_bar": False})
    # The teacher where there is one.
    network.load_state_dict(torch.load(pathlib.Path(out) / "exported_models" / "exported_last.pt", weights_only=True))
    return clock


def stable_network(job):
    import timm

    return timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **vit_sizes(job))


def stable_views(job):
    """DINO's two and six crops in the colours of the package's example on CIFAR-10, up to 32 pixels without blur as that, above with DINO's."""
    import stable_pretraining
    from stable_pretraining.data import transforms

    def view(side, scale, blur, solarize):
        blurs = [transforms.PILGaussianBlur(p=blur)] if blur and job["side"] > 32 else []
        return transforms.Compose(
            transforms.RGB(), transforms.RandomResizedCrop((side, side), scale=scale), transforms.RandomHorizontalFlip(p=0.5),
            transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8), transforms.RandomGrayscale(p=0.2),
            *blurs, *([transforms.RandomSolarize(threshold=0.5, p=solarize)] if solarize else []),
            transforms.ToImage(**stable_pretraining.data.static.ImageNet))

    views = {"global_1": view(job["side"], (0.4, 1.0), 1.0, 0), "global_2": view(job["side"], (0.4, 1.0), 0.1, 0.2)}
    views |= {f"local_{number}": view(job["local_side"], (0.05, 0.4), 0.5, 0) for number in range(6)}
    return transforms.MultiViewTransform(views)


class Pictures:
    """The images as stable-pretraining wants a data set: a tuple an image."""

    def __init__(self, folder):
        self.paths = sorted(pathlib.Path(folder).glob("*.png"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, number):
        from PIL import Image

        return (Image.open(self.paths[number]).convert("RGB"),)


def train_stable(network, steps, limit, job, out):
    """DINO with the paper's AdamW (5e-4 for 256 images, scaled linearly, weight decay 0.04, a tenth of warm-up)."""
    import lightning
    import stable_pretraining
    import torch
    from stable_pretraining.methods import DINO

    class Method(DINO):
        # The package's trainer gives a batch; its DINO wants views.
        def forward(self, batch=None, stage=None):
            views = {name: view["image"] for name, view in batch.items() if isinstance(view, dict)}
            chosen = {kind: [view for name, view in views.items() if name.startswith(kind)] for kind in ("global", "local")}
            return {"loss": super().forward(global_views=chosen["global"], local_views=chosen["local"]).loss}

    # Callbacks that only tell or save, for instance what is installed, at the cost of the run.
    silent = ["progress_bar", "env_dump", "unused_params", "module_summary", "sklearn_checkpoint", "hf_checkpoint"]
    stable_pretraining.set(default_callbacks=dict.fromkeys(silent, False), cache_dir=str(pathlib.Path(out) / "cache"))
    lightning.seed_everything(job["seed"], workers=True)
    method = Method(network, n_prototypes=prototypes(job["images"]))
    method.optim = {
        "optimizer": {"type": "AdamW", "lr": 5e-4 * BATCH / 256, "weight_decay": 0.04},
        "scheduler": {"type": "LinearWarmupCosineAnnealing", "total_steps": steps, "peak_step": max(1, steps // 10)}, "interval": "step",
    }
    pictures = stable_pretraining.data.FromTorchDataset(Pictures(job["folder"]), names=["image"], transform=stable_views(job))
    loader = torch.utils.data.DataLoader(pictures, BATCH, shuffle=True, drop_last=True, num_workers=job["threads"] - 1)
    clock = timer(lightning.Callback)(limit)
    trainer = lightning.Trainer(
        default_root_dir=out, accelerator="cpu", devices=1, precision="32-true", max_steps=steps,
        max_epochs=math.ceil(steps / (job["images"] // BATCH)), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[stable_pretraining.callbacks.TeacherStudentCallback(), clock])
    trainer.fit(method, loader)
    network.load_state_dict(method.backbone.teacher.state_dict())
    return clock


def export(network, job, path):
    """The class token of a ViT, the pooled output of a ResNet."""
    import copy
    import warnings

    import torch

    class Features(torch.nn.Module):
        # Of images alone: lightly-train's ViT takes masks too.
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, image):
            return self.network(image)

    network = copy.deepcopy(network).eval()
    if hasattr(network, "fc"):
        network.fc = torch.nn.Identity()
    example = torch.zeros(2, 3, job["side"], job["side"])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if hasattr(network, "precalculated_pos_embed"):
            from lightly_train._export.onnx_helpers import precalculate_for_onnx_export

            with precalculate_for_onnx_export():
                network(example)
        axes = {"image": {0: "images"}, "features": {0: "images"}}
        torch.onnx.export(
            Features(), (example,), str(path), input_names=["image"], output_names=["features"], dynamic_axes=axes, opset_version=17, dynamo=False)


def peer(job):
    """Measures the rate, trains, and writes both networks and what there is to tell."""
    import torch

    torch.set_num_threads(job["threads"])
    place = pathlib.Path(job["place"])
    make, train = (lightly_network, train_lightly) if job["name"] in LIGHTLY else (stable_network, train_stable)
    torch.manual_seed(job["seed"])
    network = make(job)
    export(network, job, place / "untrained.onnx")
    steps = job["steps"]
    if not steps:
        clock = train(make(job), RATE_STEPS, RATE_SECONDS, job, place / "rate")
        steps = max(1, round(job["minutes"] * 60 * clock.rate()))
        print(f"{job['name']}: {steps} steps", file=sys.stderr, flush=True)
    clock = train(network, steps, math.inf, job, place / "run")
    if len(clock.ends) != steps:
        fail(f"{job['name']} ended after {len(clock.ends)} of {steps} steps")
    export(network, job, place / "trained.onnx")
    seconds = clock.ends[-1] - clock.start
    (place / "told.json").write_text(json.dumps({"minutes": seconds / 60, "images": steps * BATCH, "rate": steps * BATCH / seconds}))


# ----------------------------------------------------------------------------------------------------------------------- training and evaluation


class Comparison:
    def __init__(self, arguments):
        self.arguments = arguments
        self.work = arguments.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.rows = self.kept_rows()
        self.version = self.run("--version", threads=False).split()[-1]

    def run(self, *parts, threads=True):
        command = [str(self.arguments.macula), *map(str, parts), *(["--threads", str(self.arguments.threads)] if threads else [])]
        print("$", " ".join(command), file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            fail(f"{self.arguments.macula.name} {parts[0]} ended with {done.returncode}")
        return done.stdout

    def kept_rows(self):
        """Rows of an interrupted run, if it was one of these settings."""
        chosen = vars(self.arguments)
        settings = {name: str(chosen[name]) for name in ("train", "test", "folds", "minutes", "steps", "threads", "seed", "background")}
        self.path = self.work / "rows.json"
        kept = json.loads(self.path.read_text()) if self.path.exists() else {"settings": settings, "rows": {}}
        if different := [name for name in settings if kept["settings"].get(name) != settings[name]]:
            fail(f"{self.work} holds a run with other --{different[0]} ({kept['settings'].get(different[0])}): take another --work")
        self.settings = settings
        return kept["rows"]

    def keep(self, name, row):
        self.rows[name] = row
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps({"settings": self.settings, "rows": self.rows}, indent=1))
        whole.replace(self.path)

    def background(self):
        return ("--background", self.arguments.background) if self.arguments.background else ()

    def geometry(self):
        """Crops and network that macula's recipes take for these images."""
        text = self.run("train", "--recipe", "dino", "--data", self.arguments.source, "--out", self.work / "none", "--dry-run")
        recipe = tomllib.loads(text)
        return {"side": recipe["crops"]["global"]["size"], "local_side": recipe["crops"]["local"]["size"], "vit": recipe["backbone"]}

    # ---- macula's recipes

    def train_macula(self, recipe, out, steps):
        settings = [f"steps={steps}", f"batch_size={BATCH}"]
        flags = [part for setting in settings for part in ("--set", setting)]
        source = self.arguments.source
        self.run("train", "--recipe", recipe, "--data", source, "--out", out, "--force", "--seed", self.arguments.seed, *flags, *self.background())

    def last_line(self, out):
        return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])

    def macula_steps(self, recipe):
        if self.arguments.steps:
            return self.arguments.steps
        rates = []
        for number in range(RATE_RUNS):
            out = self.work / f"rate-{recipe}-{number}"
            self.train_macula(recipe, out, RATE_STEPS)
            rates.append(self.last_line(out)["images_per_second"])
        return max(1, round(self.arguments.minutes * 60 * statistics.median(rates) / BATCH))

    def macula(self, name):
        recipe = name.removeprefix("macula-")
        out = self.work / name
        if not (out / "teacher.safetensors").exists():
            self.train_macula(recipe, out, self.macula_steps(recipe))
        last = self.last_line(out)
        told = {"minutes": last["minutes"], "images": last["step"] * BATCH, "rate": last["images_per_second"]}
        return told, self.exported(out)

    def exported(self, run):
        model = run.with_suffix(".onnx")
        self.run("export", run, "--out", model, "--force", threads=False)
        return model

    def untrained_macula(self):
        out = self.work / "untrained-macula"
        if not (out / "teacher.safetensors").exists():
            self.train_macula("dino", out, 1)
        return self.exported(out)

    # ---- peers

    def peer(self, name, geometry):
        place = self.work / name
        place.mkdir(exist_ok=True)
        if not (place / "told.json").exists():
            folder = self.work / "images"
            images = write_images(self.arguments.source, self.arguments.background, folder)
            chosen = self.arguments
            job = geometry | {
                "name": name, "place": str(place), "folder": str(folder), "images": images, "threads": chosen.threads, "seed": chosen.seed,
                "minutes": chosen.minutes, "steps": chosen.steps,
            }
            # No graphics card, no messages to its makers, and its files here.
            environment = os.environ | {
                "CUDA_VISIBLE_DEVICES": "", "LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "OMP_NUM_THREADS": str(chosen.threads),
                "MKL_NUM_THREADS": str(chosen.threads), "LIGHTLY_TRAIN_CACHE_DIR": str(self.work / "cache"),
            }
            command = [sys.executable, str(pathlib.Path(__file__).resolve()), "--peer", json.dumps(job)]
            print("$ (train)", name, file=sys.stderr, flush=True)
            done = subprocess.run(command, env=environment, stdout=sys.stderr, cwd=place)
            if done.returncode:
                fail(f"training {name} ended with {done.returncode}")
        return json.loads((place / "told.json").read_text()), place

    # ---- evaluation

    def features(self, model, source, out, flags):
        self.run("extract", "--model", model, "--data", source, "--out", out, "--force", *flags, *self.background())
        return out

    def knn(self, pair):
        return json.loads(self.run("eval", "knn", "--train", pair[0], "--test", pair[1], "--k", K, "--json"))["rows"][0]

    def probe(self, pair):
        rows = json.loads(self.run("eval", "linear-probe", "--train", pair[0], "--test", pair[1], "--json"))["rows"]
        return next(row for row in rows if row.get("top1") is not None)

    def evaluate(self, name, model, flags):
        place = self.work / "features" / name
        if self.arguments.folds:
            scores = []
            for fold in range(5):
                parts = {part: self.arguments.folds / f"list_fold{fold}_{part}.csv" for part in ("train", "test")}
                pair = [self.features(model, source, place / f"{fold}-{part}", flags) for part, source in parts.items()]
                scores.append(self.knn(pair)["top1"])
            return {"knn": f"{sum(scores) / 5:.4f} ({min(scores):.4f} to {max(scores):.4f})", "probe": ""}
        sources = {"train": self.arguments.train, "test": self.arguments.test}
        pair = [self.features(model, source, place / part, flags) for part, source in sources.items()]
        return {"knn": interval(self.knn(pair)), "probe": interval(self.probe(pair)) if name != "pixels" else ""}

    def row(self, name, made_by, told, model, flags=()):
        self.keep(name, {"made_by": made_by} | told | self.evaluate(name, model, flags))

    def row_of_untrained(self, name, made_by, model, flags=()):
        if name not in self.rows:
            self.row(name, made_by, {}, model(), flags)

    def all_rows(self):
        """Every method, the network of each untrained, and pixels."""
        geometry = self.geometry()
        # What the peers' training transforms end with.
        flags = ["--resize", geometry["side"], "--crop", geometry["side"], "--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]
        names = []
        for name in self.arguments.methods:
            if name in MACULA:
                made_by = f"macula {self.version}"
                if name not in self.rows:
                    self.row(name, made_by, *self.macula(name))
                untrained = "macula untrained"
                self.row_of_untrained(untrained, made_by, self.untrained_macula)
            else:
                package = name.split("-")[0]
                made_by = ", ".join(f"{part} {importlib.metadata.version(part)}" for part in PACKAGES[package][:2])
                if name not in self.rows:
                    told, place = self.peer(name, geometry)
                    self.row(name, made_by, told, place / "trained.onnx", flags)
                untrained = f"{package} {name.split('-')[-1]} untrained"
                self.row_of_untrained(untrained, made_by, lambda: self.work / name / "untrained.onnx", flags)
            names += [name, untrained]
        self.row_of_untrained("pixels", f"macula {self.version}", lambda: "pixels")
        # Trained ones first, each untrained one once.
        return sorted(dict.fromkeys([*names, "pixels"]), key=lambda name: not self.rows[name].get("images"))


def interval(row):
    return f"{row['top1']:.4f} ({row['top1_low']:.4f} to {row['top1_high']:.4f})"


def print_table(comparison, names):
    knn = "k-NN over five folds, mean (least to most)" if comparison.arguments.folds else f"k-NN, k = {K}"
    heading = ["features", "made by", "threads", "minutes", "images seen", "images/s", knn, "linear probe"]
    lines = [heading, ["---"] * len(heading)]
    for name in names:
        row = comparison.rows[name]
        told = [f"{row['minutes']:.1f}", f"{row['images']:,}", f"{row['rate']:.0f}"] if "images" in row else ["", "", ""]
        lines.append([name, row["made_by"], str(comparison.arguments.threads), *told, row["knn"], row["probe"]])
    for line in lines:
        print("| " + " | ".join(line) + " |")


def check_packages(methods):
    for package, parts in PACKAGES.items():
        if any(method.startswith(package + "-") for method in methods):
            for part in parts:
                if importlib.util.find_spec(part.replace("-", "_")) is None:
                    fail(f"no package {part}, which {package}'s methods need: pip install {part}")


def main():
    arguments = parsed()
    check_packages(arguments.methods)
    # All processes share so many cores, peers' image workers too.
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < arguments.threads:
            fail(f"--threads {arguments.threads} on {len(cores)} cores")
        os.sched_setaffinity(0, cores[: arguments.threads])
    comparison = Comparison(arguments)
    print_table(comparison, comparison.all_rows())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer(json.loads(sys.argv[2]))
    else:
        main()
