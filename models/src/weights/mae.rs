//! facebookresearch/mae checkpoints of pretraining (models_mae.py): a plain encoder, whose sine positions are stored, and a
//! decoder that is passed over. Features are the class token after the last norm, as everywhere.

use super::Family;
use super::family::{Part::Whole, Table};

pub(super) const TABLE: Table = Table {
    family: Family::Mae,
    blocks: "blocks.",
    heads: &[("head.", "head.")],
    rows: &[
        ("cls_token", "cls_token", Whole),
        ("pos_embed", "pos_embed", Whole),
        ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
        ("blocks.{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
        ("blocks.{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*", Whole),
        ("blocks.{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
        ("blocks.{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
        ("blocks.{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
        ("blocks.{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
        ("norm.*", "norm.*", Whole),
    ],
    ..Table::PLAIN
};
