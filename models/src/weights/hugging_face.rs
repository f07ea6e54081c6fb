//! transformers `Dinov2Model` and `Dinov2WithRegistersModel` (conversion script convert_dinov2_to_hf.py):
//! query, key and value apart, and an encoder with names of its own.

use super::Family;
use super::family::{
    Part::{Third, Whole},
    Table,
};

pub(super) const TABLE: Table = Table {
    family: Family::HuggingFace,
    blocks: "encoder.layer.",
    heads: &[("classifier.", "classifier.")],
    rows: &[
        ("embeddings.cls_token", "cls_token", Whole),
        ("embeddings.position_embeddings", "pos_embed", Whole),
        ("embeddings.register_tokens", "register_tokens", Whole),
        ("embeddings.mask_token", "mask_token", Whole),
        (
            "embeddings.patch_embeddings.projection.*",
            "patch_embed.proj.*",
            Whole,
        ),
        ("encoder.layer.{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        (
            "encoder.layer.{i}.attention.attention.query.*",
            "blocks.{i}.attn.qkv.*",
            Third(0),
        ),
        (
            "encoder.layer.{i}.attention.attention.key.*",
            "blocks.{i}.attn.qkv.*",
            Third(1),
        ),
        (
            "encoder.layer.{i}.attention.attention.value.*",
            "blocks.{i}.attn.qkv.*",
            Third(2),
        ),
        (
            "encoder.layer.{i}.attention.output.dense.*",
            "blocks.{i}.attn.proj.*",
            Whole,
        ),
        (
            "encoder.layer.{i}.layer_scale1.lambda1",
            "blocks.{i}.ls1.gamma",
            Whole,
        ),
        ("encoder.layer.{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("encoder.layer.{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("encoder.layer.{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        (
            "encoder.layer.{i}.mlp.weights_in.*",
            "blocks.{i}.mlp.w12.*",
            Whole,
        ),
        (
            "encoder.layer.{i}.mlp.weights_out.*",
            "blocks.{i}.mlp.w3.*",
            Whole,
        ),
        (
            "encoder.layer.{i}.layer_scale2.lambda1",
            "blocks.{i}.ls2.gamma",
            Whole,
        ),
        ("layernorm.*", "norm.*", Whole),
    ],
};
