//! transformers `Dinov2Model` and `Dinov2WithRegistersModel` (conversion script convert_dinov2_to_hf.py):
//! query, key and value apart, and an encoder with names of its own. Since version 5 of transformers the modules in
//! memory have other names than its files: what `torch.save(model.state_dict())` then writes is [`TABLE_5`].

use super::family::{
    Beside,
    Part::{Share, Whole},
    Table,
};
use super::{Family, hf_config};

/// The names of its files.
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
            Share(0, 3),
        ),
        (
            "encoder.layer.{i}.attention.attention.key.*",
            "blocks.{i}.attn.qkv.*",
            Share(1, 3),
        ),
        (
            "encoder.layer.{i}.attention.attention.value.*",
            "blocks.{i}.attn.qkv.*",
            Share(2, 3),
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
    beside: Beside::Transformers(&hf_config::DINOV2),
    ..Table::PLAIN
};

/// The names in memory since version 5.
pub(super) const TABLE_5: Table = Table {
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
            "encoder.layer.{i}.attention.q_proj.*",
            "blocks.{i}.attn.qkv.*",
            Share(0, 3),
        ),
        (
            "encoder.layer.{i}.attention.k_proj.*",
            "blocks.{i}.attn.qkv.*",
            Share(1, 3),
        ),
        (
            "encoder.layer.{i}.attention.v_proj.*",
            "blocks.{i}.attn.qkv.*",
            Share(2, 3),
        ),
        (
            "encoder.layer.{i}.attention.o_proj.*",
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
            "encoder.layer.{i}.mlp.gate_proj.*",
            "blocks.{i}.mlp.w12.*",
            Share(0, 2),
        ),
        (
            "encoder.layer.{i}.mlp.up_proj.*",
            "blocks.{i}.mlp.w12.*",
            Share(1, 2),
        ),
        ("encoder.layer.{i}.mlp.down_proj.*", "blocks.{i}.mlp.w3.*", Whole),
        (
            "encoder.layer.{i}.layer_scale2.lambda1",
            "blocks.{i}.ls2.gamma",
            Whole,
        ),
        ("layernorm.*", "norm.*", Whole),
    ],
    beside: Beside::Transformers(&hf_config::DINOV2),
    ..Table::PLAIN
};
