//! facebookresearch/dino (v1) backbones and full checkpoints (vision_transformer.py), iBOT's, DeiT's and timm's plain ones: no
//! LayerScale, no mask token, no registers but DeiT's distillation token, which is taken as one. Some of timm's and MAE's
//! fine-tuned ones have a norm of the mean of patches in place of the last one. Its projection head is called `head.`; macula calls it `dino_head.`, as its successor does.

use super::Family;
use super::family::{
    Beside,
    Part::{PositionTable, Whole},
    Table,
};

pub(super) const TABLE: Table = Table {
    family: Family::DinoV1,
    blocks: "blocks.",
    heads: &[
        ("head.mlp.", "dino_head.mlp."),
        ("head.last_layer.", "dino_head.last_layer."),
        ("head.", "head."),
        ("head_dist.", "head_dist."),
    ],
    rows: &[
        ("cls_token", "cls_token", Whole),
        ("dist_token", "register_tokens", Whole),
        // timm's FlexiViT and others give the class token no position.
        ("pos_embed", "pos_embed", PositionTable),
        ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
        ("blocks.{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("blocks.{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*", Whole),
        ("blocks.{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("blocks.{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("blocks.{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("blocks.{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("norm.*", "norm.*", Whole),
        ("fc_norm.*", "fc_norm.*", Whole),
    ],
    normless: true,
    beside: Beside::Timm,
    ..Table::PLAIN
};
