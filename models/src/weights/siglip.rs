//! SigLIP's image towers, and SigLIP 2's of a fixed size, as transformers and timm keep them: no class token, and a learned query
//! that pools the patches (`head` in transformers, `attn_pool` in timm). Which GELU it is timm's tensors do not tell.

use super::family::{
    Beside,
    Part::{Axes, Run, Share, Whole},
    Row, Table,
};
use super::{Family, hf_config};
use crate::vit::GeluKind;

/// transformers `SiglipModel` and `SiglipVisionModel`.
pub(super) const HUGGING_FACE: Table = Table {
    family: Family::HuggingFaceSiglip,
    blocks: "encoder.layers.",
    rows: &[
        ("embeddings.position_embedding.weight", "pos_embed", Axes(3)),
        ("embeddings.patch_embedding.*", "patch_embed.proj.*", Whole),
        ("{b}{i}.layer_norm1.*", "blocks.{i}.norm1.*", Whole),
        ("{b}{i}.self_attn.q_proj.*", "blocks.{i}.attn.qkv.*", Share(0, 3)),
        ("{b}{i}.self_attn.k_proj.*", "blocks.{i}.attn.qkv.*", Share(1, 3)),
        ("{b}{i}.self_attn.v_proj.*", "blocks.{i}.attn.qkv.*", Share(2, 3)),
        ("{b}{i}.self_attn.out_proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.layer_norm2.*", "blocks.{i}.norm2.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("post_layernorm.*", "norm.*", Whole),
        ("head.probe", "attn_pool.latent", Whole),
        ("head.attention.in_proj_weight", "attn_pool.qkv.weight", Whole),
        ("head.attention.in_proj_bias", "attn_pool.qkv.bias", Whole),
        ("head.attention.out_proj.*", "attn_pool.proj.*", Whole),
        ("head.layernorm.*", "attn_pool.norm.*", Whole),
        ("head.mlp.fc1.*", "attn_pool.mlp.fc1.*", Whole),
        ("head.mlp.fc2.*", "attn_pool.mlp.fc2.*", Whole),
    ],
    classless: true,
    activation: Some(GeluKind::GeluTanh),
    beside: Beside::Transformers(&hf_config::SIGLIP),
    ..Table::PLAIN
};

/// What timm calls pooling by attention.
pub(super) const TIMM_POOL: &[Row] = &[
    ("attn_pool.latent", "attn_pool.latent", Whole),
    ("attn_pool.q.*", "attn_pool.qkv.*", Run(0, 1, 3)),
    ("attn_pool.kv.*", "attn_pool.qkv.*", Run(1, 2, 3)),
    ("attn_pool.proj.*", "attn_pool.proj.*", Whole),
    ("attn_pool.norm.*", "attn_pool.norm.*", Whole),
    ("attn_pool.mlp.fc1.*", "attn_pool.mlp.fc1.*", Whole),
    ("attn_pool.mlp.fc2.*", "attn_pool.mlp.fc2.*", Whole),
];

/// A table of timm below open_clip's `visual.trunk.`, whose classifier is the projection.
pub(super) const fn with_classifier(table: Table) -> Table {
    Table {
        heads: &[],
        last: &[("head.*", "projection.*", Whole)],
        beside: Beside::OpenClipTrunk,
        ..table
    }
}

/// The same without a classifier: the projection lies beside the trunk, if there is one.
pub(super) const fn without_classifier(table: Table) -> Table {
    Table {
        last: &[("head.proj.*", "projection.*", Whole)],
        outside: &[
            ("head.proj.weight", "head.proj.weight"),
            ("head.proj.bias", "head.proj.bias"),
        ],
        ..with_classifier(table)
    }
}

/// timm `vit_*_siglip_*`.
pub(super) const TIMM: Table = Table {
    family: Family::TimmSiglip,
    heads: &[("head.", "head.")],
    rows: super::ijepa::ROWS,
    more: TIMM_POOL,
    classless: true,
    activation: None,
    beside: Beside::Timm,
    ..Table::PLAIN
};

pub(super) const TRUNK: [Table; 2] = [with_classifier(TIMM), without_classifier(TIMM)];
