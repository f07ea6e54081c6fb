//! CLIP's image towers, as open_clip, transformers and timm keep them: a class token without leading axes, patches without a
//! bias, a norm before the blocks, and a projection of the class token. Which GELU it is (OpenAI's weights have the quick one,
//! LAION's the exact one) no tensor tells.

use super::family::{
    Beside,
    Part::{Axes, Share, Transposed, Whole},
    Table,
};
use super::siglip::{with_classifier, without_classifier};
use super::{Family, hf_config};

/// Epsilon of CLIP's norms.
const EPS: f64 = 1e-5;

/// open_clip and OpenAI's own files, where the tower lies below `visual.`.
pub(super) const OPEN_CLIP: Table = Table {
    family: Family::OpenClip,
    blocks: "transformer.resblocks.",
    rows: &[
        ("class_embedding", "cls_token", Axes(3)),
        ("positional_embedding", "pos_embed", Axes(3)),
        ("conv1.*", "patch_embed.proj.*", Whole),
        ("ln_pre.*", "norm_pre.*", Whole),
        ("{b}{i}.ln_1.*", "blocks.{i}.norm1.*", Whole),
        ("{b}{i}.attn.in_proj_weight", "blocks.{i}.attn.qkv.weight", Whole),
        ("{b}{i}.attn.in_proj_bias", "blocks.{i}.attn.qkv.bias", Whole),
        ("{b}{i}.attn.out_proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.ls_1.gamma", "blocks.{i}.ls1.gamma", Whole),
        ("{b}{i}.ln_2.*", "blocks.{i}.norm2.*", Whole),
        ("{b}{i}.mlp.c_fc.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.c_proj.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("{b}{i}.ls_2.gamma", "blocks.{i}.ls2.gamma", Whole),
        ("ln_post.*", "norm.*", Whole),
        ("proj", "projection.weight", Transposed),
    ],
    zeros: &["conv1.bias"],
    eps: EPS,
    activation: None,
    beside: Beside::OpenClip,
    ..Table::PLAIN
};

/// transformers `CLIPModel`, `CLIPVisionModel` and `CLIPVisionModelWithProjection`, where the tower lies below
/// `vision_model.` and the projection beside it.
pub(super) const HUGGING_FACE: Table = Table {
    family: Family::HuggingFaceClip,
    blocks: "encoder.layers.",
    rows: &[
        ("embeddings.class_embedding", "cls_token", Axes(3)),
        ("embeddings.position_embedding.weight", "pos_embed", Axes(3)),
        ("embeddings.patch_embedding.*", "patch_embed.proj.*", Whole),
        ("pre_layrnorm.*", "norm_pre.*", Whole),
        ("{b}{i}.layer_norm1.*", "blocks.{i}.norm1.*", Whole),
        ("{b}{i}.self_attn.q_proj.*", "blocks.{i}.attn.qkv.*", Share(0, 3)),
        ("{b}{i}.self_attn.k_proj.*", "blocks.{i}.attn.qkv.*", Share(1, 3)),
        ("{b}{i}.self_attn.v_proj.*", "blocks.{i}.attn.qkv.*", Share(2, 3)),
        ("{b}{i}.self_attn.out_proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.layer_norm2.*", "blocks.{i}.norm2.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("post_layernorm.*", "norm.*", Whole),
        ("visual_projection.weight", "projection.weight", Whole),
    ],
    zeros: &["embeddings.patch_embedding.bias"],
    outside: &[("visual_projection.weight", "visual_projection.weight")],
    eps: EPS,
    activation: None,
    pre_norm: true,
    beside: Beside::Transformers(&hf_config::CLIP),
    ..Table::PLAIN
};

/// timm `vit_*_clip_*`. Its projection is the classifier `head`, with a bias.
pub(super) const TIMM: Table = Table {
    family: Family::TimmClip,
    heads: &[("head.", "head.")],
    rows: &[
        ("cls_token", "cls_token", Whole),
        ("pos_embed", "pos_embed", Whole),
        ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
        ("norm_pre.*", "norm_pre.*", Whole),
        ("{b}{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("{b}{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*", Whole),
        ("{b}{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("norm.*", "norm.*", Whole),
    ],
    zeros: &["patch_embed.proj.bias"],
    eps: EPS,
    activation: None,
    pre_norm: true,
    beside: Beside::Timm,
    ..Table::PLAIN
};

/// The same below open_clip's `visual.trunk.`.
pub(super) const TIMM_TRUNK: [Table; 2] = [with_classifier(TIMM), without_classifier(TIMM)];
