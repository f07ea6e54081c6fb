#!/usr/bin/env python3
"""Times one whole self-supervised training step in PyTorch, on synthetic crops: the peer of `macula bench train`.

    torch_step.py --geometry a [--recipe dinov2|dino|ibot|moco] [--device cpu|cuda] [--dtype f32|bf16] [--compile]
                  [--threads N] [--steps N] [--warmup N] [--profile] [--json] [--embed-dim N --depth N ...]

A step is everything between two batches: teacher forward, student forward, heads and losses, backward, gradient clipping
(norm 3 for the backbone and each head), AdamW, the teacher's average. Reading and augmenting images is not part of it:
the crops are random numbers, drawn once. Stochastic depth is off.

    dinov2   DINO on CLS (multi-crop) + iBOT on 30 % of the patches of half of the global crops + 0.1 KoLeo;
             Sinkhorn-Knopp targets; LayerScale; two heads, or one with --shared-head
    dino     DINO on CLS alone, nothing masked; centred softmax targets
    ibot     DINO + iBOT with one shared head; centred softmax targets
    moco     two crops, momentum encoder, InfoNCE against a queue of 65,536 x 128; no local crops

Images a second count images, not crops. Needs: torch (2.4 or later). README.md beside this file says more.
"""

import argparse
import copy
import json
import os
import pathlib
import resource
import statistics
import sys
import time

GEOMETRIES = {
    "a": {
        "embed_dim": 192, "depth": 6, "heads": 3, "patch": 4, "global_size": 28, "local_size": 16, "locals": 6,
        "prototypes": 4096, "hidden": 2048, "bottleneck": 256, "batch": 64,
    },
    "b": {
        "embed_dim": 384, "depth": 12, "heads": 6, "patch": 14, "global_size": 56, "local_size": 28, "locals": 6,
        "prototypes": 65536, "hidden": 2048, "bottleneck": 256, "batch": 64,
    },
    "c": {
        "embed_dim": 384, "depth": 12, "heads": 6, "patch": 14, "global_size": 224, "local_size": 98, "locals": 8,
        "prototypes": 65536, "hidden": 2048, "bottleneck": 256, "batch": 64,
    },
    "d": {
        "embed_dim": 768, "depth": 12, "heads": 12, "patch": 14, "global_size": 224, "local_size": 98, "locals": 8,
        "prototypes": 65536, "hidden": 2048, "bottleneck": 256, "batch": 64,
    },
}  # fmt: skip
RECIPES = ["dinov2", "dino", "ibot", "moco"]
QUEUE, QUEUE_WIDTH = 65_536, 128
MASKED = 0.3  # of the patches of every second global crop
TEACHER_TEMPERATURE, MOCO_TEMPERATURE = 0.07, 0.2
KOLEO_WEIGHT = 0.1
CLIP = 3.0
WEIGHT_DECAY = 0.04
MOMENTUM = {"dinov2": 0.992, "dino": 0.996, "ibot": 0.996, "moco": 0.999}


def arguments(argv=None):
    """The parsed flags, the geometry's numbers filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="a", help="default: a")
    parser.add_argument("--recipe", choices=RECIPES, default="dinov2", help="default: dinov2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16: under autocast")
    parser.add_argument("--tf32", action="store_true", help="CUDA: f32 products in TF32")
    parser.add_argument("--compile", action="store_true", help="networks and losses through torch.compile")
    parser.add_argument("--optimizer", choices=["fused", "foreach"], default="fused", help="which AdamW")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first that counts")
    parser.add_argument("--shared-head", action="store_true", help="dinov2: one head for CLS and patches")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="time by part (waits for the GPU after each)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    numbers = parser.add_argument_group("numbers that replace the geometry's")
    for name in GEOMETRIES["a"]:
        numbers.add_argument(f"--{name.replace('_', '-')}", type=int)
    given = parser.parse_args(argv)
    for name, value in GEOMETRIES[given.geometry].items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    given.shared_head = given.recipe == "ibot" or (given.recipe == "dinov2" and given.shared_head)
    if given.embed_dim % given.heads or given.global_size % given.patch or given.local_size % given.patch:
        parser.error("heads must divide the embedding dimension, the patch size both crop sizes")
    if min(given.steps, given.batch, given.threads) < 1 or given.warmup < 0 or given.locals < 0:
        parser.error("steps, batch and threads must be at least 1, warmup and locals at least 0")
    if given.recipe == "moco" and QUEUE % given.batch:
        parser.error(f"moco: the batch must divide the queue of {QUEUE}")
    return given


if __name__ == "__main__":  # OpenMP reads its number of threads when torch is imported
    os.environ["OMP_NUM_THREADS"] = str(arguments().threads)

import torch  # noqa: E402
from torch import nn  # noqa: E402

import losses  # noqa: E402
from network import Head, Projector, Vit  # noqa: E402


class Clock:
    """Seconds by part of a step. Without `parts`, laps do nothing, so that a GPU is never waited for in between."""

    def __init__(self, device, parts):
        self.device, self.enabled, self.seconds = device, parts, {}

    def now(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self):
        self.last = self.now()
        self.first, self.first_cpu = self.last, time.process_time()

    def lap(self, part):
        if self.enabled:
            now = self.now()
            self.seconds.setdefault(part, []).append(now - self.last)
            self.last = now

    def whole(self):
        """Seconds of the step by the clock, and of CPU over all threads."""
        return self.now() - self.first, time.process_time() - self.first_cpu


class Trainer:
    """What the recipes share: student, teacher, optimizer, and a step around `losses`."""

    def __init__(self, settings, student):
        self.settings, self.device = settings, settings.device
        self.student = nn.ModuleDict(student).to(self.device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.momentum = MOMENTUM[settings.recipe]
        kind = {"fused": True} if settings.optimizer == "fused" else {"foreach": True}
        self.optimizer = torch.optim.AdamW(groups(self.student, settings.lr), weight_decay=WEIGHT_DECAY, **kind)
        self.pairs = list(self.teacher.parameters()), list(self.student.parameters())
        if settings.compile:
            for module in [*self.student.values(), *self.teacher.values()]:
                module.compile(dynamic=False)

    def crops(self, count, size):
        """Random crops [count B, 3, size, size], crop by crop."""
        return torch.randn(count * self.settings.batch, 3, size, size, device=self.device)

    def function(self, function):
        """A loss, compiled where that is asked for."""
        return torch.compile(function, dynamic=False) if self.settings.compile else function

    def losses(self, clock):
        """The weighted parts of the loss by name, after the laps of forward, heads and losses."""
        raise NotImplementedError

    @torch.no_grad()
    def average(self):
        """Moves the teacher towards the student."""
        torch._foreach_lerp_(*self.pairs, 1 - self.momentum)

    def step(self, clock):
        """One step; returns the parts of the loss, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.settings.dtype == "bf16"):
            parts = self.losses(clock)
        sum(parts.values()).backward()
        clock.lap("backward")
        for module in self.student.values():
            nn.utils.clip_grad_norm_(module.parameters(), CLIP, foreach=True)
        self.optimizer.step()
        self.average()
        clock.lap("optimizer and average")
        return {name: part.detach() for name, part in parts.items()}


class SelfDistillation(Trainer):
    """DINO, iBOT and DINOv2."""

    def __init__(self, settings):
        head = [settings.embed_dim, settings.hidden, settings.bottleneck, settings.prototypes]
        self.masked, self.shared = settings.recipe != "dino", settings.shared_head
        student = {"backbone": backbone(settings), "dino_head": Head(*head)}
        if self.masked and not self.shared:
            student["ibot_head"] = Head(*head)
        super().__init__(settings, student)
        self.globals = self.crops(2, settings.global_size)
        self.locals = self.crops(settings.locals, settings.local_size)
        self.masks = self.rows = self.weights = None
        if self.masked:
            self.mask(2 * settings.batch, (settings.global_size // settings.patch) ** 2)
        self.centres = [losses.Centre(settings.prototypes, self.device) for _ in range(2)]
        self.sinkhorn = self.function(losses.sinkhorn)
        self.dino, self.ibot = self.function(losses.dino), self.function(losses.ibot)

    def mask(self, crops, patches):
        """Masks the same share of every second crop: `masks` [2 B, N], `rows` [M] of the [2 B N] patches, `weights` [M]"""
        count = max(1, int(MASKED * patches))
        masks = torch.zeros(crops, patches, dtype=torch.bool)
        for crop in torch.randperm(crops)[: crops // 2]:
            masks[crop, torch.randperm(patches)[:count]] = True
        self.masks = masks.to(self.device)
        self.rows = self.masks.flatten().nonzero().flatten()
        self.weights = torch.full((len(self.rows),), 1 / count, device=self.device)

    def patches(self, tokens):
        """The tokens [M, D] at the masked places."""
        return tokens[:, 1:].flatten(0, 1).index_select(0, self.rows)

    def heads(self, network, cls, tokens):
        """Logits in f32 of CLS tokens [rows, D], and of the masked patches; one pass of a shared head."""
        if not self.masked:
            return network["dino_head"](cls).float(), None
        patches = self.patches(tokens)
        if self.shared:
            return network["dino_head"](torch.cat([cls, patches])).float().split([len(cls), len(patches)])
        return network["dino_head"](cls).float(), network["ibot_head"](patches).float()

    def targets(self, logits, centre):
        if self.settings.recipe == "dinov2":
            return self.sinkhorn(logits, TEACHER_TEMPERATURE)
        return centre.targets(logits, TEACHER_TEMPERATURE)

    def losses(self, clock):
        with torch.no_grad():
            taught = self.teacher["backbone"](self.globals)
        clock.lap("teacher forward")
        tokens = self.student["backbone"](self.globals, self.masks)
        cls = tokens[:, 0]
        if len(self.locals):
            cls = torch.cat([cls, self.student["backbone"](self.locals)[:, 0]])
        clock.lap("student forward")
        with torch.no_grad():
            of_cls, of_patches = self.heads(self.teacher, taught[:, 0], taught)
            cls_targets = self.targets(of_cls, self.centres[0])
            patch_targets = self.targets(of_patches, self.centres[1]) if self.masked else None
            del of_cls, of_patches, taught
        logits, patch_logits = self.heads(self.student, cls, tokens)
        crops = len(self.globals)
        parts = {}
        parts["dino_global"], parts["dino_local"] = self.dino(cls_targets, logits[:crops], logits[crops:])
        if self.masked:
            parts["ibot"] = self.ibot(patch_targets, patch_logits, self.weights, crops)
        if self.settings.recipe == "dinov2":
            parts["koleo"] = KOLEO_WEIGHT * sum(map(losses.koleo, tokens[:, 0].chunk(2)))
        clock.lap("heads and losses")
        return parts


class Moco(Trainer):
    """Momentum contrast with a queue. The teacher moves before it encodes the keys; the end of a step writes the queue,
    which backward still needs as it was."""

    def __init__(self, settings):
        projector = Projector(settings.embed_dim, settings.hidden, QUEUE_WIDTH)
        network = backbone(settings)
        network.mask_token = None  # nothing is masked
        super().__init__(settings, {"backbone": network, "projector": projector})
        self.queries = self.crops(1, settings.global_size)
        self.keys = self.crops(1, settings.global_size)
        self.queue = nn.functional.normalize(torch.randn(QUEUE, QUEUE_WIDTH, device=self.device), dim=-1)
        self.place = 0
        self.contrast = self.function(losses.contrast)

    def losses(self, clock):
        super().average()
        with torch.no_grad():
            taught = self.teacher["backbone"](self.keys)[:, 0]
        clock.lap("teacher forward")
        learnt = self.student["backbone"](self.queries)[:, 0]
        clock.lap("student forward")
        with torch.no_grad():
            keys = self.teacher["projector"](taught)
        parts = {"contrast": self.contrast(self.student["projector"](learnt), keys, self.queue, MOCO_TEMPERATURE)}
        self.newest = keys
        clock.lap("heads and losses")
        return parts

    @torch.no_grad()
    def average(self):
        """Puts the step's keys in the place of the oldest; the teacher has moved already."""
        self.queue[self.place : self.place + len(self.newest)] = self.newest
        self.place = (self.place + len(self.newest)) % QUEUE


def backbone(settings):
    """The network; LayerScale belongs to DINOv2 alone."""
    scale = 1e-5 if settings.recipe == "dinov2" else None
    return Vit(settings.embed_dim, settings.depth, settings.heads, settings.patch, settings.global_size, scale)


def groups(student, lr):
    """AdamW's groups by the official rules: no decay for biases, norms and LayerScale; a fifth of the learning rate for
    the patch embedding."""
    found = {}
    for name, parameter in student.named_parameters():
        decays = not (name.endswith(".bias") or "norm" in name or "gamma" in name)
        slow = "patch_embed" in name
        found.setdefault((decays, slow), []).append(parameter)
    return [
        {"params": members, "lr": lr * (0.2 if slow else 1), **({} if decays else {"weight_decay": 0})}
        for (decays, slow), members in found.items()
    ]


def trainer(settings):
    """The recipe's trainer, from the seed."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    return Moco(settings) if settings.recipe == "moco" else SelfDistillation(settings)


def measure(settings):
    """Runs the steps; returns what `--json` prints."""
    training = trainer(settings)
    clock = Clock(settings.device, settings.profile)
    first = None
    for step in range(settings.warmup + settings.steps):
        if step == settings.warmup:
            seconds, cpu, clock.seconds = [], [], {}
        clock.start()
        parts = training.step(clock)
        if step >= settings.warmup:
            wall, processor = clock.whole()
            seconds.append(wall)
            cpu.append(processor)
        first = first or float(sum(parts.values()))
    last = {name: float(part) for name, part in parts.items()}
    median = statistics.median(seconds)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "images_per_second": settings.batch / median,
        "step_seconds": median,
        "step_seconds_all": seconds,
        "step_cpu_seconds": statistics.median(cpu),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "cuda_peak_bytes": torch.cuda.max_memory_allocated() if settings.device == "cuda" else None,
        "part_seconds": {part: statistics.median(laps) for part, laps in clock.seconds.items()} or None,
        "jemalloc": "jemalloc" in pathlib.Path("/proc/self/maps").read_text() if sys.platform == "linux" else None,
        "parameters": sum(value.numel() for value in training.student.parameters()),
        "first_loss": first,
        "last_loss": sum(last.values()),
        "last_loss_parts": last,
        "torch": torch.__version__,
        "processor": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "settings": vars(settings),
    }


def text(result):
    """The result for a reader."""
    seconds = result["step_seconds_all"]
    memory = result["cuda_peak_bytes"] or result["peak_rss_bytes"]
    kind = "CUDA memory" if result["cuda_peak_bytes"] else "memory"
    lines = [
        f"{result['images_per_second']:.1f} images/s",
        f"{result['step_seconds']:.4f} s a step, median of {len(seconds)} ({min(seconds):.4f} to {max(seconds):.4f}); "
        f"{result['step_cpu_seconds']:.4f} s of CPU",
        f"{memory / 2**20:.0f} MiB peak {kind}",
        f"loss {result['first_loss']:.4f} at the first step, {result['last_loss']:.4f} at the last",
    ]
    for part, value in (result["part_seconds"] or {}).items():
        lines.append(f"  {part:<22} {value:.4f} s  {100 * value / result['step_seconds']:3.0f} %")
    return "\n".join(lines)


def main():
    settings = arguments()
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: this torch finds no CUDA device", file=sys.stderr)
        return 2
    result = measure(settings)
    print(json.dumps(result) if settings.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
