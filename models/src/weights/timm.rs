//! timm `vit_*_patch14_dinov2` and `vit_*_patch14_reg4_dinov2`: the mask token is dropped; with registers the CLS row
//! of the position table is folded into the CLS token; SwiGLU keeps its packed weights under the names of the MLP.

use super::Family;
use super::family::{
    Part::{PositionTable, Whole},
    Table,
};

pub(super) const TABLE: Table = Table {
    family: Family::Timm,
    blocks: "blocks.",
    heads: &[("head.", "head.")],
    rows: &[
        ("cls_token", "cls_token", Whole),
        ("pos_embed", "pos_embed", PositionTable),
        ("reg_token", "register_tokens", Whole),
        ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
        ("blocks.{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("blocks.{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*", Whole),
        ("blocks.{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("blocks.{i}.ls1.gamma", "blocks.{i}.ls1.gamma", Whole),
        ("blocks.{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("blocks.{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("blocks.{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("blocks.{i}.mlp.fc1.*", "blocks.{i}.mlp.w12.*", Whole),
        ("blocks.{i}.mlp.fc2.*", "blocks.{i}.mlp.w3.*", Whole),
        ("blocks.{i}.ls2.gamma", "blocks.{i}.ls2.gamma", Whole),
        ("norm.*", "norm.*", Whole),
    ],
    ..Table::PLAIN
};
