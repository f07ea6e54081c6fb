//! What a family's file says and how it is read: the shape of its table, and which family a file belongs to.

use std::collections::BTreeMap;

use super::architecture::{self, Architecture};
use super::raw::RawTensor;
use super::{Family, dino, hugging_face, mae, official, timm};

/// How a tensor of a family becomes an official one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// As it is.
    Whole,
    /// One of so many equal parts of the first axis, in this place: query, key, value; gate and up.
    Share(usize, usize),
    /// The position table, whose CLS row may be folded into the CLS token: then the row is zeros.
    PositionTable,
}

/// Their name, the official name, and what one is of the other. `{i}` is a block's index, `*` is `weight` or `bias`.
pub(super) type Row = (&'static str, &'static str, Part);

/// A family of checkpoints.
pub(super) struct Table {
    pub family: Family,
    /// Every tensor the family may have.
    pub rows: &'static [Row],
    /// What the names of its blocks begin with.
    pub blocks: &'static str,
    /// Prefixes of heads, and what takes their place.
    pub heads: &'static [(&'static str, &'static str)],
}

/// Their tensors by name, wrappers removed, read through a table.
pub(super) struct Found<'a> {
    pub table: &'static Table,
    pub tensors: BTreeMap<String, &'a RawTensor>,
}

impl Table {
    /// Their tensors that make up the official tensor `ours`.
    pub fn sources(&self, ours: &str) -> Vec<(String, Part)> {
        let (pattern, index) = split_block(ours);
        let (star, kind) = match pattern.rsplit_once('.') {
            Some((stem, kind @ ("weight" | "bias"))) => (format!("{stem}.*"), kind),
            _ => (pattern.clone(), ""),
        };
        self.rows
            .iter()
            .filter(|(_, row, _)| *row == pattern || *row == star)
            .map(|(theirs, _, part)| (theirs.replace("{i}", index).replace('*', kind), *part))
            .collect()
    }

    /// The name of a head's tensor with the family's prefix replaced, if it is one.
    pub fn head_name(&self, name: &str) -> Option<String> {
        self.heads
            .iter()
            .find_map(|(theirs, ours)| name.strip_prefix(theirs).map(|rest| format!("{ours}{rest}")))
    }
}

/// `blocks.3.norm1.weight` as (`blocks.{i}.norm1.weight`, `3`).
fn split_block(name: &str) -> (String, &str) {
    let block = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    match block {
        Some((index, rest)) => (format!("blocks.{{i}}.{rest}"), index),
        None => (name.into(), ""),
    }
}

impl Found<'_> {
    /// Shape that `ours` has by the first of their tensors that make it up.
    pub fn shape(&self, ours: &str) -> Option<Vec<usize>> {
        let sources = self.table.sources(ours);
        let (tensor, part) = sources
            .iter()
            .find_map(|(theirs, part)| Some((self.tensors.get(theirs.as_str())?, part)))?;
        let mut shape = tensor.shape.clone();
        if let (Part::Share(_, count), Some(first)) = (part, shape.first_mut()) {
            *first = first.saturating_mul(*count);
        }
        Some(shape)
    }

    /// What they call `ours`, for messages.
    pub fn their_name(&self, ours: &str) -> String {
        let first = self.table.sources(ours).into_iter().next();
        first.map_or_else(|| ours.into(), |(theirs, _)| theirs)
    }
}

/// What the names and shapes of a network tell.
pub(super) enum Detected {
    /// A family that is read.
    Family(&'static Table),
    /// A network that cannot be computed.
    Lacking(&'static Architecture),
    /// Neither.
    Nothing,
}

/// Tells the family of a network from its names and the shapes behind them.
pub(super) fn detect(tensors: &BTreeMap<String, &RawTensor>) -> Detected {
    if let Some(architecture) = architecture::recognise(tensors.keys().map(String::as_str)) {
        return Detected::Lacking(architecture);
    }
    let has = |wanted: &[&str]| wanted.iter().any(|name| tensors.contains_key(*name));
    let has_in_block = |part: &str| {
        let mut blocks = tensors.keys().filter(|name| name.starts_with("blocks."));
        blocks.any(|name| name.contains(part))
    };
    let begins = |start: &str| tensors.keys().any(|name| name.starts_with(start));
    if has(&[
        "embeddings.cls_token",
        "embeddings.patch_embeddings.projection.weight",
    ]) {
        let of_5 = tensors.keys().any(|name| name.contains(".attention.q_proj."));
        return Detected::Family(if of_5 {
            &hugging_face::TABLE_5
        } else {
            &hugging_face::TABLE
        });
    }
    // MAE's mask token is of its decoder, and has an axis more than DINOv2's.
    let of_decoder = tensors
        .get("mask_token")
        .is_some_and(|token| token.shape.len() == 3);
    let table = if has(&["reg_token"]) {
        &timm::TABLE
    } else if (begins("decoder_blocks.") || begins("decoder_embed.") || of_decoder)
        && !has_in_block(".ls1.gamma")
    {
        &mae::TABLE
    } else if has(&["mask_token", "register_tokens"]) || has_in_block(".mlp.w12.") {
        &official::TABLE
    } else if has_in_block(".ls1.gamma") {
        &timm::TABLE
    } else if has(&["cls_token", "patch_embed.proj.weight"]) {
        &dino::TABLE
    } else {
        return Detected::Nothing;
    };
    Detected::Family(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vit::{FeedForwardKind, VitConfig};

    #[test]
    fn families_are_told_apart() {
        let family = |names: &[&str], axes: usize| {
            let tensor = RawTensor {
                element: crate::weights::ElementType::F32,
                shape: vec![1; axes],
                storage: 0,
                offset: 0,
                strides: vec![1; axes],
            };
            match detect(&names.iter().map(|name| (name.to_string(), &tensor)).collect()) {
                Detected::Family(table) => Some(table.family),
                _ => None,
            }
        };
        let (cls, ls) = ("cls_token", "blocks.0.ls1.gamma");
        assert_eq!(family(&[cls, ls, "mask_token"], 2), Some(Family::Official));
        assert_eq!(family(&[cls, ls, "register_tokens"], 3), Some(Family::Official));
        assert_eq!(
            family(&[cls, ls, "blocks.0.mlp.w12.weight"], 2),
            Some(Family::Official)
        );
        assert_eq!(family(&[cls, ls], 1), Some(Family::Timm));
        assert_eq!(family(&[cls, "reg_token"], 3), Some(Family::Timm));
        assert_eq!(family(&[cls, "blocks.0.norm1.weight"], 1), Some(Family::DinoV1));
        assert_eq!(family(&[cls, "mask_token"], 3), Some(Family::Mae));
        assert_eq!(family(&[cls, "decoder_embed.bias"], 1), Some(Family::Mae));
        assert_eq!(family(&["embeddings.cls_token"], 3), Some(Family::HuggingFace));
        assert_eq!(family(&["conv1.weight"], 4), None);
        assert_eq!(family(&[cls, "rope_embed.periods"], 1), None);
    }

    #[test]
    fn every_parameter_has_its_place_in_the_tables() {
        for (arch, tables) in [
            (
                "vit-small/14-reg4",
                &[
                    &official::TABLE,
                    &hugging_face::TABLE,
                    &hugging_face::TABLE_5,
                    &timm::TABLE,
                ][..],
            ),
            (
                "vit-giant2/14-reg4",
                &[
                    &official::TABLE,
                    &hugging_face::TABLE,
                    &hugging_face::TABLE_5,
                    &timm::TABLE,
                ],
            ),
            ("vit-small/16", &[&dino::TABLE, &mae::TABLE]),
        ] {
            let mut config = VitConfig::named(arch, 112).expect(arch);
            for table in tables {
                config.mask_token = matches!(table.family, Family::Official | Family::HuggingFace);
                if matches!(table.family, Family::DinoV1 | Family::Mae) {
                    config.layer_scale = None;
                }
                for (ours, _) in config.parameters() {
                    let sources = table.sources(&ours);
                    let wanted = match sources.first() {
                        Some((_, Part::Share(0, count))) => *count,
                        _ => 1,
                    };
                    assert_eq!(sources.len(), wanted, "{:?} {ours}: {sources:?}", table.family);
                    let apart = table.family == Family::HuggingFace && ours.contains("qkv");
                    assert!(!apart || wanted == 3, "{ours}: {sources:?}");
                }
            }
            assert_eq!(
                config.feed_forward == FeedForwardKind::Swiglu,
                arch.contains("giant2")
            );
        }
    }

    #[test]
    fn names_follow_the_table() {
        let theirs = |table: &Table, ours: &str| table.sources(ours);
        assert_eq!(
            theirs(&hugging_face::TABLE, "blocks.11.attn.qkv.bias")[1],
            (
                "encoder.layer.11.attention.attention.key.bias".into(),
                Part::Share(1, 3)
            )
        );
        assert_eq!(
            theirs(&timm::TABLE, "blocks.2.mlp.w12.weight"),
            [("blocks.2.mlp.fc1.weight".into(), Part::Whole)]
        );
        assert!(theirs(&dino::TABLE, "blocks.2.ls1.gamma").is_empty());
    }
}
