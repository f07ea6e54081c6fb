//! TIPSv2's image towers (`vision_encoder.` beside a `text_encoder.`): DINOv2's names but for the layers of the MLP, one register,
//! which is a second class token, and positions that follow the image's size bilinearly.

use super::family::{
    Beside,
    Part::{Axes, Whole},
    Table,
};
use super::{Family, hf_config};

pub(super) const TABLE: Table = Table {
    family: Family::Tips,
    rows: &[
        ("cls_token", "cls_token", Whole),
        ("pos_embed", "pos_embed", Whole),
        ("register_tokens", "register_tokens", Whole),
        ("mask_token", "mask_token", Axes(2)),
        ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
        ("{b}{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("{b}{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*", Whole),
        ("{b}{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("{b}{i}.ls1.gamma", "blocks.{i}.ls1.gamma", Whole),
        ("{b}{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("{b}{i}.mlp.c_fc.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("{b}{i}.mlp.c_proj.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("{b}{i}.mlp.w12.*", "blocks.{i}.mlp.w12.*", Whole),
        ("{b}{i}.mlp.w3.*", "blocks.{i}.mlp.w3.*", Whole),
        ("{b}{i}.ls2.gamma", "blocks.{i}.ls2.gamma", Whole),
        ("norm.*", "norm.*", Whole),
    ],
    beside: Beside::Transformers(&hf_config::TIPS),
    ..Table::PLAIN
};
