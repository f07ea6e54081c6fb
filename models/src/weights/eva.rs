//! timm's networks of EVA's architecture: EVA, EVA-02 (rotary positions beside a table, SwiGLU, in the larger ones a norm within the
//! feed-forward network) and PE (Perception Encoder: rotary positions, pooling by attention). Queries and keys are turned pair by
//! pair of neighbouring values; what is read is sorted so that the two values of a pair are half a head apart, which changes no
//! product of a query with a key.

use super::Family;
use super::family::{
    Part::{Run, Share, Whole},
    Rotation, Row, Table,
};
use super::siglip::{with_classifier, without_classifier};

/// What all of them have in common.
const ROWS: &[Row] = &[
    ("cls_token", "cls_token", Whole),
    ("pos_embed", "pos_embed", Whole),
    ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
    ("norm_pre.*", "norm_pre.*", Whole),
    ("{b}{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
    ("{b}{i}.attn.norm.*", "blocks.{i}.attn.norm.*", Whole),
    ("{b}{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
    ("{b}{i}.gamma_1", "blocks.{i}.ls1.gamma", Whole),
    ("{b}{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
    ("{b}{i}.mlp.norm.*", "blocks.{i}.mlp.norm.*", Whole),
    ("{b}{i}.gamma_2", "blocks.{i}.ls2.gamma", Whole),
    ("norm.*", "norm.*", Whole),
    ("fc_norm.*", "fc_norm.*", Whole),
];

/// EVA, and EVA-02 Ti and S: one matrix for queries, keys and values, and one for gate and value of SwiGLU.
pub(super) const FUSED: Table = Table {
    family: Family::TimmEva,
    heads: &[("head.", "head.")],
    rows: ROWS,
    more: &[
        ("{b}{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.weight", Whole),
        ("{b}{i}.attn.q_bias", "blocks.{i}.attn.qkv.bias", Share(0, 3)),
        ("{b}{i}.attn.k_bias", "blocks.{i}.attn.qkv.bias", Share(1, 3)),
        ("{b}{i}.attn.v_bias", "blocks.{i}.attn.qkv.bias", Share(2, 3)),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.w12.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.w3.*", Whole),
    ],
    zeros: &["{b}{i}.attn.k_bias"],
    normless: true,
    rotation: Rotation::Eva,
    ..Table::PLAIN
};

/// EVA-02 B and L, and those of CLIP: matrices apart.
pub(super) const APART: Table = Table {
    more: &[
        ("{b}{i}.attn.q_proj.*", "blocks.{i}.attn.qkv.*", Share(0, 3)),
        ("{b}{i}.attn.k_proj.*", "blocks.{i}.attn.qkv.*", Share(1, 3)),
        ("{b}{i}.attn.v_proj.*", "blocks.{i}.attn.qkv.*", Share(2, 3)),
        ("{b}{i}.mlp.fc1_g.*", "blocks.{i}.mlp.w12.*", Share(0, 2)),
        ("{b}{i}.mlp.fc1_x.*", "blocks.{i}.mlp.w12.*", Share(1, 2)),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.w3.*", Whole),
    ],
    zeros: &["{b}{i}.attn.k_proj.bias"],
    ..FUSED
};

/// PE: PE-Core, PE-Spatial and PE-Lang.
pub(super) const PERCEPTION: Table = Table {
    family: Family::TimmPe,
    more: &[
        ("{b}{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("attn_pool.latent", "attn_pool.latent", Whole),
        ("attn_pool.q.*", "attn_pool.qkv.*", Run(0, 1, 3)),
        ("attn_pool.kv.*", "attn_pool.qkv.*", Run(1, 2, 3)),
        ("attn_pool.proj.*", "attn_pool.proj.*", Whole),
        ("attn_pool.norm.*", "attn_pool.norm.*", Whole),
        ("attn_pool.mlp.fc1.*", "attn_pool.mlp.fc1.*", Whole),
        ("attn_pool.mlp.fc2.*", "attn_pool.mlp.fc2.*", Whole),
    ],
    zeros: &["patch_embed.proj.bias"],
    classless: true,
    eps: 1e-5,
    rotation: Rotation::Perception,
    ..FUSED
};

pub(super) const FUSED_TRUNK: [Table; 2] = [with_classifier(FUSED), without_classifier(FUSED)];
pub(super) const APART_TRUNK: [Table; 2] = [with_classifier(APART), without_classifier(APART)];
pub(super) const PERCEPTION_TRUNK: [Table; 2] = [with_classifier(PERCEPTION), without_classifier(PERCEPTION)];
