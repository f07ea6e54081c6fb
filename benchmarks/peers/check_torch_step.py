#!/usr/bin/env python3
"""Checks that `torch_step.py` is the step it says it is.

    check_torch_step.py [--steps 30] [--threads N] [--geometry a] [--batch 16]

Values: network, head, losses and targets against the reference's golden values in the repository's fixtures. Gradients:
each loss reaches the parameters it must reach, and each parameter is reached by some loss. Training, on one batch: the
loss of each recipe stays finite, and falls where its targets are held fixed; DINOv2's also with its moving teacher. Exit code 0: all passed. 1: something failed.
Needs: torch, safetensors.
"""

import math
import pathlib
import sys

import losses
import torch
import torch_step
from network import Head, Vit
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAILED = []


def report(name, passed, detail=""):
    print(f"{'passed' if passed else 'FAILED'}  {name}  {detail}", flush=True)
    if not passed:
        FAILED.append(name)


def close(name, found, expected, tolerance=1e-5):
    """The largest difference must be within `tolerance` of the largest value."""
    off = float((found.detach() - expected).abs().max() / expected.abs().max())
    report(name, found.shape == expected.shape and off <= tolerance, f"{off:.1e}")


@torch.no_grad()
def check_networks(folder):
    vit = Vit(dim=48, depth=3, heads=3, patch=14, size=70)
    vit.load_state_dict(torch.load(folder / "official_plain.pth", weights_only=True))
    golden = load_file(folder / "official_plain.expected.safetensors")
    for size in ["70x70", "98x56"]:
        pixels, mask = golden[f"{size}.pixels"], golden[f"{size}.mask"].bool()
        for kind, tokens in [("", vit(pixels)), ("masked_", vit(pixels, mask))]:
            close(f"{kind}cls at {size}", tokens[:, 0], golden[f"{size}.{kind}cls"])
            close(f"{kind}patch at {size}", tokens[:, 1:], golden[f"{size}.{kind}patch"])
    golden = load_file(folder / "dino_head.safetensors")
    head = Head(dim=24, hidden=32, bottleneck=16, prototypes=40)
    head.load_state_dict({name: value for name, value in golden.items() if name not in ["x", "y"]})
    close("head", head(golden["x"]), golden["y"])


def check_losses(golden):
    temperature = 0.06
    targets = losses.sinkhorn(golden["teacher_logits"], temperature)
    close("Sinkhorn-Knopp of CLS", targets, golden["sinkhorn"])
    close("Sinkhorn-Knopp of patches", losses.sinkhorn(golden["patch_teacher"], temperature), golden["patch_sinkhorn"])
    centre = losses.Centre(40, "cpu")
    for time in ["first", "second"]:
        found = centre.targets(golden["teacher_logits"], temperature)
        close(f"centred softmax, {time}", found, golden[f"softmax_center_{time}"])
    # The golden sums run over the pairs: two of global crops, and two for each of the eight local crops.
    of_global, of_local = losses.dino(golden["sinkhorn"], golden["student_global"], golden["student_local"])
    pairs = 2 + 2 * (len(golden["student_local"]) // 6)
    pairs_of_global = golden["dino_global_sum"] * 2  # the class counts both swapped pairs as one mean
    close("DINO, local", pairs * of_local[None], golden["dino_local_sum"])
    close("DINO, global", pairs * of_global[None], pairs_of_global)
    masks = golden["masks"].bool()
    weights = (1 / masks.sum(1).clamp(min=1))[:, None].expand_as(masks)[masks]
    patches = golden["patch_student"].requires_grad_()
    found = losses.ibot(golden["patch_sinkhorn"], patches, weights, len(masks))
    close("iBOT", found[None], golden["ibot_loss"])
    close("iBOT, gradient", torch.autograd.grad(found, patches)[0], golden["grad.ibot"])
    for crop, features in enumerate(golden["koleo_features"].chunk(2)):
        close(f"KoLeo of crop {crop}", losses.koleo(features)[None], golden[f"koleo_crop{crop}"])
    found = losses.contrast(golden["moco_q"], golden["moco_k"], golden["moco_queue"], 0.07)
    close("InfoNCE", found[None], golden["moco_loss_t007"])


def reached(training, loss):
    """The parameters of which the gradient of `loss` is not zero."""
    named = list(training.student.named_parameters())
    found = torch.autograd.grad(loss, [value for _, value in named], retain_graph=True, allow_unused=True)
    return {name for (name, _), value in zip(named, found) if value is not None and bool(value.any())}


def check_gradients(recipe, training):
    """After the first steps: before them cls_token or a zero bias may have a gradient of exactly zero."""
    parts = training.losses(torch_step.Clock("cpu", False))
    of_part = {name: reached(training, part) for name, part in parts.items()}
    expected = {
        "dino_local": {"backbone.pos_embed", "backbone.patch_embed.proj.weight", "dino_head.last_layer.weight_v"},
        "dino_global": {"backbone.pos_embed", "backbone.blocks.0.attn.qkv.weight", "dino_head.mlp.0.weight"},
        "ibot": {"backbone.mask_token", "backbone.pos_embed"},
        "koleo": {"backbone.norm.weight", "backbone.patch_embed.proj.weight"},
        "contrast": {"backbone.pos_embed", "projector.mlp.2.weight"},
    }
    if recipe == "dinov2":
        expected["ibot"].add("ibot_head.last_layer.weight_v")
    for name, found in of_part.items():
        missing = expected[name] - found
        report(f"{recipe}: {name} reaches what it must", not missing, " ".join(missing))
    unused = {"backbone.mask_token"} if recipe in ["dino", "moco"] else set()
    never = {name for name, _ in training.student.named_parameters()} - set().union(*of_part.values()) - unused
    report(f"{recipe}: every parameter has a gradient", not never, " ".join(sorted(never)))
    report(f"{recipe}: the teacher has none", all(value.grad is None for value in training.teacher.parameters()))


def held(training):
    """Keeps the teacher, the centres and the queue as they are: what they give is then a fixed target."""
    training.momentum = 1.0
    if isinstance(training, torch_step.Moco):
        training.queue, training.place = training.start_queue.clone(), 0
    else:
        training.centres = [losses.Centre(training.settings.prototypes, "cpu") for _ in range(2)]


def check_training(recipe, settings, still):
    """With a moving teacher only DINOv2's loss has to fall: centred targets grow blunter while the centre finds the mean
    that the untrained crops share, and a queue fills with the keys of the one batch, own positives among them."""
    training = torch_step.trainer(settings)
    if isinstance(training, torch_step.Moco):
        training.start_queue = training.queue.clone()
    clock = torch_step.Clock("cpu", False)
    values = []
    for step in range(settings.steps):
        if still:
            held(training)
        clock.start()
        values.append(float(sum(training.step(clock).values())))
        if step == 1 and not still:
            check_gradients(recipe, training)
    shown = ", ".join(f"{values[place]:.4f}" for place in range(0, len(values), max(1, len(values) // 6)))
    kind = "fixed targets" if still else "moving teacher"
    report(f"{recipe}, {kind}: loss is finite", all(map(math.isfinite, values)), f"{shown}, {values[-1]:.4f}")
    if still or recipe == "dinov2":
        report(f"{recipe}, {kind}: loss falls", values[-1] < values[0])


def main():
    given = sys.argv[1:]
    if given and given[0] in ["-h", "--help"]:
        print(__doc__)
        return 0
    check_networks(ROOT / "models/tests/fixtures")
    check_losses(load_file(ROOT / "tests/fixtures/losses.safetensors"))
    for recipe in torch_step.RECIPES:
        settings = torch_step.arguments(["--steps", "30", "--batch", "16", "--lr", "2e-4", *given, "--recipe", recipe])
        for still in [False, True]:
            check_training(recipe, settings, still)
    print(f"{len(FAILED)} failed" if FAILED else "all passed")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
