//! facebookresearch/dinov2 backbones and training checkpoints, and what macula writes: the names macula uses.

use super::Family;
use super::family::{Part::Whole, Table};

pub(super) const TABLE: Table = Table {
    family: Family::Official,
    blocks: "blocks.",
    heads: &[
        ("dino_head.", "dino_head."),
        ("ibot_head.", "ibot_head."),
        ("head.mlp.", "dino_head.mlp."),
        ("head.last_layer.", "dino_head.last_layer."),
        ("head.", "head."),
    ],
    rows: &[
        ("cls_token", "cls_token", Whole),
        ("pos_embed", "pos_embed", Whole),
        ("register_tokens", "register_tokens", Whole),
        ("mask_token", "mask_token", Whole),
        ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
        ("blocks.{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("blocks.{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*", Whole),
        ("blocks.{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("blocks.{i}.ls1.gamma", "blocks.{i}.ls1.gamma", Whole),
        ("blocks.{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("blocks.{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("blocks.{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("blocks.{i}.mlp.w12.*", "blocks.{i}.mlp.w12.*", Whole),
        ("blocks.{i}.mlp.w3.*", "blocks.{i}.mlp.w3.*", Whole),
        ("blocks.{i}.ls2.gamma", "blocks.{i}.ls2.gamma", Whole),
        ("norm.*", "norm.*", Whole),
    ],
    ..Table::PLAIN
};

/// What macula itself writes: whatever its configuration names.
pub(super) const OWN: Table = Table {
    more: &[
        ("norm_pre.*", "norm_pre.*", Whole),
        ("fc_norm.*", "fc_norm.*", Whole),
        ("attn_pool.latent", "attn_pool.latent", Whole),
        ("attn_pool.qkv.*", "attn_pool.qkv.*", Whole),
        ("attn_pool.proj.*", "attn_pool.proj.*", Whole),
        ("attn_pool.norm.*", "attn_pool.norm.*", Whole),
        ("attn_pool.mlp.fc1.*", "attn_pool.mlp.fc1.*", Whole),
        ("attn_pool.mlp.fc2.*", "attn_pool.mlp.fc2.*", Whole),
        ("projection.*", "projection.*", Whole),
        ("blocks.{i}.attn.norm.*", "blocks.{i}.attn.norm.*", Whole),
        ("blocks.{i}.mlp.norm.*", "blocks.{i}.mlp.norm.*", Whole),
        (
            "blocks.{i}.attn.relative_position_bias_table",
            "blocks.{i}.attn.relative_position_bias_table",
            Whole,
        ),
        (
            "relative_position_bias_table",
            "relative_position_bias_table",
            Whole,
        ),
    ],
    ..TABLE
};
