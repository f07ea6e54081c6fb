//! DINOv3's vision transformers, and those of the same architecture (EUPE, LingBot), as their authors, transformers and timm keep
//! them: rotary positions in place of a table, and mostly no bias of the keys.

use super::family::{
    Beside,
    Part::{Axes, Mask, Share, Whole},
    Rotation, Table,
};
use super::{Family, hf_config};

/// Epsilon of its norms.
const EPS: f64 = 1e-5;

/// facebookresearch/dinov3. What the bias of the keys holds is masked (`qkv.bias_mask`); gate and value of SwiGLU are apart.
pub(super) const OFFICIAL: Table = Table {
    family: Family::Dinov3,
    heads: &[("dino_head.", "dino_head."), ("ibot_head.", "ibot_head.")],
    rows: &[
        ("cls_token", "cls_token", Whole),
        ("storage_tokens", "register_tokens", Whole),
        ("mask_token", "mask_token", Axes(2)),
        ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
        ("{b}{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("{b}{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*", Whole),
        ("{b}{i}.attn.qkv.bias_mask", "blocks.{i}.attn.qkv.bias", Mask),
        ("{b}{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.ls1.gamma", "blocks.{i}.ls1.gamma", Whole),
        ("{b}{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("{b}{i}.mlp.w1.*", "blocks.{i}.mlp.w12.*", Share(0, 2)),
        ("{b}{i}.mlp.w2.*", "blocks.{i}.mlp.w12.*", Share(1, 2)),
        ("{b}{i}.mlp.w3.*", "blocks.{i}.mlp.w3.*", Whole),
        ("{b}{i}.ls2.gamma", "blocks.{i}.ls2.gamma", Whole),
        ("norm.*", "norm.*", Whole),
    ],
    zeros: &["{b}{i}.attn.qkv.bias", "{b}{i}.attn.qkv.bias_mask"],
    eps: EPS,
    rotation: Rotation::Dinov3,
    ..Table::PLAIN
};

/// transformers `DINOv3ViTModel`: the names of its files.
pub(super) const HUGGING_FACE: Table = Table {
    family: Family::HuggingFaceDinov3,
    blocks: "layer.",
    heads: &[("classifier.", "classifier.")],
    rows: &[
        ("embeddings.cls_token", "cls_token", Whole),
        ("embeddings.register_tokens", "register_tokens", Whole),
        ("embeddings.mask_token", "mask_token", Axes(2)),
        ("embeddings.patch_embeddings.*", "patch_embed.proj.*", Whole),
        ("{b}{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("{b}{i}.attention.q_proj.*", "blocks.{i}.attn.qkv.*", Share(0, 3)),
        ("{b}{i}.attention.k_proj.*", "blocks.{i}.attn.qkv.*", Share(1, 3)),
        ("{b}{i}.attention.v_proj.*", "blocks.{i}.attn.qkv.*", Share(2, 3)),
        ("{b}{i}.attention.o_proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma", Whole),
        ("{b}{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("{b}{i}.mlp.up_proj.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.down_proj.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("{b}{i}.mlp.gate_proj.*", "blocks.{i}.mlp.w12.*", Share(0, 2)),
        ("{b}{i}.mlp.up_proj.*", "blocks.{i}.mlp.w12.*", Share(1, 2)),
        ("{b}{i}.mlp.down_proj.*", "blocks.{i}.mlp.w3.*", Whole),
        ("{b}{i}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma", Whole),
        ("norm.*", "norm.*", Whole),
    ],
    zeros: &[
        "{b}{i}.attention.q_proj.bias",
        "{b}{i}.attention.k_proj.bias",
        "{b}{i}.attention.v_proj.bias",
        "{b}{i}.attention.o_proj.bias",
    ],
    eps: EPS,
    rotation: Rotation::Dinov3,
    beside: Beside::Transformers(&hf_config::DINOV3),
    ..Table::PLAIN
};

/// The names in memory, which `torch.save(model.state_dict())` writes.
pub(super) const HUGGING_FACE_5: Table = Table {
    blocks: "model.layer.",
    ..HUGGING_FACE
};

/// timm `vit_*_dinov3`, and `vit_*_dinov3_qkvb`, where queries and values have a bias by themselves.
pub(super) const TIMM: Table = Table {
    family: Family::TimmDinov3,
    heads: &[("head.", "head.")],
    rows: &[
        ("cls_token", "cls_token", Whole),
        ("reg_token", "register_tokens", Whole),
        ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
        ("{b}{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("{b}{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.weight", Whole),
        ("{b}{i}.attn.q_bias", "blocks.{i}.attn.qkv.bias", Share(0, 3)),
        ("{b}{i}.attn.k_bias", "blocks.{i}.attn.qkv.bias", Share(1, 3)),
        ("{b}{i}.attn.v_bias", "blocks.{i}.attn.qkv.bias", Share(2, 3)),
        ("{b}{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.gamma_1", "blocks.{i}.ls1.gamma", Whole),
        ("{b}{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("{b}{i}.mlp.fc1_g.*", "blocks.{i}.mlp.w12.*", Share(0, 2)),
        ("{b}{i}.mlp.fc1_x.*", "blocks.{i}.mlp.w12.*", Share(1, 2)),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.w3.*", Whole),
        ("{b}{i}.gamma_2", "blocks.{i}.ls2.gamma", Whole),
        ("norm.*", "norm.*", Whole),
    ],
    zeros: &["{b}{i}.attn.q_bias", "{b}{i}.attn.k_bias", "{b}{i}.attn.v_bias"],
    eps: EPS,
    rotation: Rotation::Dinov3,
    ..Table::PLAIN
};
