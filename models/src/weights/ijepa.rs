//! facebookresearch/ijepa's encoders, and timm's plain networks without a class token (SigLIP's that average patches). A predictor
//! that lies beside an encoder is passed over.

use super::Family;
use super::family::{Beside, Part::Whole, Row, Table};

pub(super) const ROWS: &[Row] = &[
    ("pos_embed", "pos_embed", Whole),
    ("patch_embed.proj.*", "patch_embed.proj.*", Whole),
    ("{b}{i}.norm1.*", "blocks.{i}.norm1.*", Whole),
    ("{b}{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*", Whole),
    ("{b}{i}.attn.proj.*", "blocks.{i}.attn.proj.*", Whole),
    ("{b}{i}.norm2.*", "blocks.{i}.norm2.*", Whole),
    ("{b}{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*", Whole),
    ("{b}{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*", Whole),
    ("norm.*", "norm.*", Whole),
];

pub(super) const TABLE: Table = Table {
    family: Family::IJepa,
    heads: &[("head.", "head.")],
    rows: ROWS,
    classless: true,
    beside: Beside::Timm,
    ..Table::PLAIN
};
