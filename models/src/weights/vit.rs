//! The plain vision transformer of transformers (`ViTModel`, in which DINO v1 and DeiT lie too, `ViTMAEModel`, `ViTMSNModel`;
//! `DeiTModel`, whose distillation token is taken as a register; `IJepaModel`, without a class token) and of torchvision.

use super::family::{
    Beside,
    Part::{Axes, Share, Whole},
    Row, Table,
};
use super::{Family, hf_config};

/// What files and memory of transformers call alike.
const HUGGING_FACE_ROWS: &[Row] = &[
    ("embeddings.cls_token", "cls_token", Whole),
    ("embeddings.distillation_token", "register_tokens", Whole),
    ("embeddings.position_embeddings", "pos_embed", Whole),
    ("embeddings.mask_token", "mask_token", Axes(2)),
    (
        "embeddings.patch_embeddings.projection.*",
        "patch_embed.proj.*",
        Whole,
    ),
    ("{b}{i}.layernorm_before.*", "blocks.{i}.norm1.*", Whole),
    ("{b}{i}.layernorm_after.*", "blocks.{i}.norm2.*", Whole),
    ("layernorm.*", "norm.*", Whole),
];

/// The names of its files.
pub(super) const HUGGING_FACE: Table = Table {
    family: Family::HuggingFaceVit,
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
        ("{b}{i}.attention.output.dense.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.intermediate.dense.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.output.dense.*", "blocks.{i}.mlp.fc2.*", Whole),
    ],
    zeros: &[
        "{b}{i}.attention.attention.query.bias",
        "{b}{i}.attention.attention.key.bias",
        "{b}{i}.attention.attention.value.bias",
    ],
    classless: true,
    eps: 1e-12,
    beside: Beside::Transformers(&hf_config::VIT),
    ..Table::PLAIN
};

/// The names in memory since version 5, which `torch.save(model.state_dict())` writes.
pub(super) const HUGGING_FACE_5: Table = Table {
    blocks: "layers.",
    more: &[
        ("{b}{i}.attention.q_proj.*", "blocks.{i}.attn.qkv.*", Share(0, 3)),
        ("{b}{i}.attention.k_proj.*", "blocks.{i}.attn.qkv.*", Share(1, 3)),
        ("{b}{i}.attention.v_proj.*", "blocks.{i}.attn.qkv.*", Share(2, 3)),
        ("{b}{i}.attention.o_proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
    ],
    zeros: &[
        "{b}{i}.attention.q_proj.bias",
        "{b}{i}.attention.k_proj.bias",
        "{b}{i}.attention.v_proj.bias",
    ],
    ..HUGGING_FACE
};

/// torchvision `VisionTransformer`. It takes images of one size; positions follow others as transformers' do.
pub(super) const TORCHVISION: Table = Table {
    family: Family::Torchvision,
    blocks: "encoder.layers.encoder_layer_",
    rows: &[
        ("class_token", "cls_token", Whole),
        ("encoder.pos_embedding", "pos_embed", Whole),
        ("conv_proj.*", "patch_embed.proj.*", Whole),
        ("{b}{i}.ln_1.*", "blocks.{i}.norm1.*", Whole),
        (
            "{b}{i}.self_attention.in_proj_weight",
            "blocks.{i}.attn.qkv.weight",
            Whole,
        ),
        (
            "{b}{i}.self_attention.in_proj_bias",
            "blocks.{i}.attn.qkv.bias",
            Whole,
        ),
        (
            "{b}{i}.self_attention.out_proj.*",
            "blocks.{i}.attn.proj.*",
            Whole,
        ),
        ("{b}{i}.ln_2.*", "blocks.{i}.norm2.*", Whole),
        ("encoder.ln.*", "norm.*", Whole),
    ],
    more: &[
        ("{b}{i}.mlp.0.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.3.*", "blocks.{i}.mlp.fc2.*", Whole),
    ],
    ..Table::PLAIN
};

/// The files that torchvision released, written before its layers were numbered.
pub(super) const TORCHVISION_NAMED: Table = Table {
    more: &[
        ("{b}{i}.mlp.linear_1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.linear_2.*", "blocks.{i}.mlp.fc2.*", Whole),
    ],
    ..TORCHVISION
};
