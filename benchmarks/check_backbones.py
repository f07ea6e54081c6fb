#!/usr/bin/env python3
"""Runs the ONNX files of small networks of every family in ONNX Runtime, against what their own libraries compute.

    MACULA_BACKBONES_OUT=DIR cargo test --release -p macula-models --test backbones every_backbone_is_exported
    python benchmarks/check_backbones.py DIR            # or --table DIR, for docs/backbones.md

Prints, for each file, the largest deviation of class token, patches and embedding from the library's, of the largest value, at the
network's own size and, of dynamic files, at another one. With --table a row a layout: the largest over both files. Exit code 1 where
one is above 1e-5. Needs: numpy, onnxruntime, safetensors.
"""

import pathlib
import sys

import numpy
import onnxruntime
from safetensors.numpy import load_file

LIMIT = 1e-5

#: What each layout is, in the order of the table.
LAYOUTS = {
    "clip_open": ("CLIP", "open_clip, `ViT-*`"),
    "clip_hf": ("CLIP", "transformers `CLIPModel`"),
    "clip_timm": ("CLIP", "timm `vit_*_clip_*`"),
    "siglip_hf": ("SigLIP, SigLIP 2", "transformers `SiglipModel`"),
    "siglip_timm": ("SigLIP, SigLIP 2", "timm `vit_*_siglip_*`"),
    "siglip_open": ("SigLIP, SigLIP 2", "open_clip, `*-SigLIP*`"),
    "siglip_gap_timm": ("SigLIP, mean of patches", "timm `vit_*_siglip_gap_*`"),
    "pe_open": ("PE-Core", "open_clip, `PE-Core-*`"),
    "pe_timm": ("PE-Core", "timm `vit_pe_core_*`"),
    "pe_spatial_timm.safetensors": ("PE-Spatial, PE-Lang", "timm `vit_pe_spatial_*`"),
    "dinov3_official.pth": ("DINOv3, LingBot", "their own `.pth`"),
    "dinov3_official_gated.pth": ("DINOv3 with SwiGLU, EUPE", "their own `.pth`"),
    "dinov3_hf": ("DINOv3", "transformers `DINOv3ViTModel`"),
    "dinov3_memory.pth": ("DINOv3", "transformers, `torch.save`"),
    "dinov3_hf_gated": ("DINOv3 with SwiGLU, EUPE", "transformers `DINOv3ViTModel`"),
    "dinov3_timm.safetensors": ("DINOv3", "timm `vit_*_dinov3`"),
    "dinov3_timm_gated.safetensors": ("DINOv3 with SwiGLU, EUPE", "timm `vit_*_dinov3_qkvb`"),
    "tips_hf": ("TIPSv2", "transformers `Tipsv2Model`"),
    "tips_hf_gated": ("TIPSv2 with SwiGLU", "transformers `Tipsv2Model`"),
    "tips_memory.pth": ("TIPSv2", "transformers, `torch.save`"),
    "vit_hf": ("ViT, DINO v1", "transformers `ViTModel`"),
    "vit_memory.pth": ("ViT, DINO v1", "transformers, `torch.save`"),
    "vit_timm": ("ViT", "timm `vit_*`"),
    "vit_gap_timm": ("ViT, norm of the mean of patches", "timm `vit_*`"),
    "torchvision.pth": ("ViT", "torchvision `VisionTransformer`"),
    "ibot_official.pth": ("iBOT, DINO v1", "their own `.pth`"),
    "mae_hf": ("MAE", "transformers `ViTMAEModel`"),
    "msn_hf": ("MSN", "transformers `ViTMSNModel`"),
    "deit_hf": ("distilled DeiT", "transformers `DeiTModel`"),
    "deit_memory.safetensors": ("distilled DeiT", "transformers, in memory"),
    "deit_timm.safetensors": ("distilled DeiT", "its own `.pth`, timm `deit_*_distilled_*`"),
    "ijepa_hf": ("I-JEPA", "transformers `IJepaModel`"),
    "ijepa_official.pth": ("I-JEPA", "its own `.pth`"),
    "beit_hf": ("BEiT", "transformers `BeitModel`"),
    "beit_memory.safetensors": ("BEiT", "transformers, in memory"),
    "beit_mim_hf": ("BEiT, one table for all blocks", "transformers `BeitForMaskedImageModeling`"),
    "beit_timm.safetensors": ("BEiT", "its own `.pth`, timm `beit*`"),
    "data2vec_hf": ("data2vec", "transformers `Data2VecVisionModel`"),
    "eva_timm.safetensors": ("EVA", "timm `eva_giant_*`"),
    "eva02_timm.safetensors": ("EVA-02 Ti, S", "timm `eva02_*`"),
    "eva02_apart_timm.safetensors": ("EVA-02 B, L", "timm `eva02_*`"),
    "eva02_clip_open": ("EVA-02 of CLIP", "open_clip, `EVA02-*`"),
}


def deviations(path, name, dynamic, folder):
    """(size, part) to the largest deviation, of the largest value."""
    want = load_file(folder / f"{name}.expected.safetensors")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names, found = [output.name for output in session.get_outputs()], {}
    for size in ["native", "other"] if dynamic else ["native"]:
        if f"{size}.pixels" not in want:
            continue
        values = session.run(None, {"pixel_values": want[f"{size}.pixels"].astype(numpy.float32)})
        values = dict(zip(names, values))
        for part in ["cls", "patch", "embedding"]:
            if f"{size}.{part}" in want and part in values:
                expected = want[f"{size}.{part}"]
                found[size, part] = float(numpy.abs(values[part] - expected).max() / numpy.abs(expected).max())
    return found


def main():
    *flags, folder = sys.argv[1:]
    folder, all_found = pathlib.Path(folder), {}
    for path in sorted(folder.glob("*.onnx")):
        name, kind = path.name.removesuffix(".onnx").rsplit(".", 1)
        found = deviations(path, name, kind == "dynamic", folder)
        all_found.setdefault(name, []).append(found)
        if "--table" not in flags:
            print(f"{path.name}: {', '.join(f'{size} {part} {worst:.1e}' for (size, part), worst in found.items())}")
    if "--table" in flags:
        missing = sorted(set(LAYOUTS) ^ set(all_found))
        if missing:
            sys.exit(f"expected the layouts of this script, found otherwise: {', '.join(missing)}")
        print("| network | from | class token | patches | embedding | at another size |\n|---|---|---|---|---|---|")
        for name, (network, source) in LAYOUTS.items():
            both = [item for found in all_found[name] for item in found.items()]
            worst = {part: max((value for (_, of), value in both if of == part), default=None) for part in ["cls", "patch", "embedding"]}
            told = [f"{value:.0e}" if value is not None else "" for value in worst.values()]
            other = "yes" if any(size == "other" for (size, _), _ in both) else "the library takes one"
            print(f"| {network} | {source} | {' | '.join(told)} | {other} |")
    # Also where a value is no number.
    failed = [value for found in all_found.values() for one in found for value in one.values() if not value <= LIMIT]
    sys.exit(bool(failed))


main()
