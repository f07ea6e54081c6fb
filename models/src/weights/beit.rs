//! BEiT and data2vec, as transformers and timm keep them: a bias of attention by relative positions in place of a table of
//! positions, LayerScale, no bias of the keys, and often no norm of all tokens but one of the mean of patches.

use super::family::{
    Beside,
    Part::{Axes, Share, Whole},
    Row, Table,
};
use super::{Family, hf_config};

/// What files and memory of transformers call alike.
const HUGGING_FACE_ROWS: &[Row] = &[
    ("embeddings.cls_token", "cls_token", Whole),
    ("embeddings.position_embeddings", "pos_embed", Whole),
    ("embeddings.mask_token", "mask_token", Axes(2)),
    (
        "embeddings.patch_embeddings.projection.*",
        "patch_embed.proj.*",
        Whole,
    ),
    ("{b}{i}.layernorm_before.*", "blocks.{i}.norm1.*", Whole),
    ("{b}{i}.layernorm_after.*", "blocks.{i}.norm2.*", Whole),
    ("{b}{i}.lambda_1", "blocks.{i}.ls1.gamma", Whole),
    ("{b}{i}.lambda_2", "blocks.{i}.ls2.gamma", Whole),
    ("layernorm.*", "norm.*", Whole),
    ("pooler.layernorm.*", "fc_norm.*", Whole),
];

/// transformers `BeitModel` and `Data2VecVisionModel`: the names of its files.
pub(super) const HUGGING_FACE: Table = Table {
    family: Family::HuggingFaceBeit,
    blocks: "encoder.layer.",
    heads: &[("classifier.", "classifier.")],
    rows: HUGGING_FACE_ROWS,
    more: &[
        (
            "{b}{i}.attention.attention.query.*",
            "blocks.{i}.attn.qkv.*",
            Share(0, 3),
        ),
        (
            "{b}{i}.attention.attention.key.*",
            "blocks.{i}.attn.qkv.*",
            Share(1, 3),
        ),
        (
            "{b}{i}.attention.attention.value.*",
            "blocks.{i}.attn.qkv.*",
            Share(2, 3),
        ),
        (
            "{b}{i}.attention.attention.relative_position_bias.relative_position_bias_table",
            "blocks.{i}.attn.relative_position_bias_table",
            Whole,
        ),
        (
            "encoder.relative_position_bias.relative_position_bias_table",
            "relative_position_bias_table",
            Whole,
        ),
        ("{b}{i}.attention.output.dense.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.intermediate.dense.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.output.dense.*", "blocks.{i}.mlp.fc2.*", Whole),
    ],
    zeros: &["{b}{i}.attention.attention.key.bias"],
    normless: true,
    eps: 1e-12,
    beside: Beside::Transformers(&hf_config::BEIT),
    ..Table::PLAIN
};

/// The names in memory since version 5.
pub(super) const HUGGING_FACE_5: Table = Table {
    blocks: "layers.",
    more: &[
        ("{b}{i}.attention.q_proj.*", "blocks.{i}.attn.qkv.*", Share(0, 3)),
        ("{b}{i}.attention.k_proj.*", "blocks.{i}.attn.qkv.*", Share(1, 3)),
        ("{b}{i}.attention.v_proj.*", "blocks.{i}.attn.qkv.*", Share(2, 3)),
        (
            "{b}{i}.relative_position_bias.relative_position_bias_table",
            "blocks.{i}.attn.relative_position_bias_table",
            Whole,
        ),
        (
            "shared_position_bias.relative_position_bias_table",
            "relative_position_bias_table",
            Whole,
        ),
        ("{b}{i}.attention.o_proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
    ],
    zeros: &["{b}{i}.attention.k_proj.bias"],
    ..HUGGING_FACE
};

/// timm `beit*`, and Microsoft's own files of the same names.
pub(super) const TIMM: Table = Table {
    family: Family::TimmBeit,
    heads: &[("head.", "head.")],
    rows: &[
        ("cls_token", "cls_token", Whole),
        ("pos_embed", "pos_embed", Whole),
        ("mask_token", "mask_token", Axes(2)),
        ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
        ("{b}{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("{b}{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.weight", Whole),
        ("{b}{i}.attn.q_bias", "blocks.{i}.attn.qkv.bias", Share(0, 3)),
        ("{b}{i}.attn.k_bias", "blocks.{i}.attn.qkv.bias", Share(1, 3)),
        ("{b}{i}.attn.v_bias", "blocks.{i}.attn.qkv.bias", Share(2, 3)),
        (
            "{b}{i}.attn.relative_position_bias_table",
            "blocks.{i}.attn.relative_position_bias_table",
            Whole,
        ),
        (
            "rel_pos_bias.relative_position_bias_table",
            "relative_position_bias_table",
            Whole,
        ),
        ("{b}{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.gamma_1", "blocks.{i}.ls1.gamma", Whole),
        ("{b}{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("{b}{i}.gamma_2", "blocks.{i}.ls2.gamma", Whole),
        ("norm.*", "norm.*", Whole),
        ("fc_norm.*", "fc_norm.*", Whole),
    ],
    zeros: &["{b}{i}.attn.k_bias"],
    normless: true,
    ..Table::PLAIN
};
