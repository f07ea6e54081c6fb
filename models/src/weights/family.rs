//! What a family's file says and how it is read: the shape of its table, and which family a file belongs to.

use std::collections::BTreeMap;

use super::raw::RawTensor;
use super::{Family, dino, hugging_face, official, timm};

/// How a tensor of a family becomes an official one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// As it is.
    Whole,
    /// One of three equal parts of the first axis: query, key, value.
    Third(usize),
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
    pub tensors: BTreeMap<&'a str, &'a RawTensor>,
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
    /// Shape of the first of their tensors that make up `ours`.
    pub fn shape(&self, ours: &str) -> Option<&[usize]> {
        let sources = self.table.sources(ours);
        sources
            .iter()
            .find_map(|(theirs, _)| self.tensors.get(theirs.as_str()))
            .map(|tensor| tensor.shape.as_slice())
    }

    /// What they call `ours`, for messages.
    pub fn their_name(&self, ours: &str) -> String {
        let first = self.table.sources(ours).into_iter().next();
        first.map_or_else(|| ours.into(), |(theirs, _)| theirs)
    }
}

/// The family of a file with these names; `None` if they hold no vision transformer.
pub(super) fn detect<'n>(names: impl Iterator<Item = &'n str> + Clone) -> Option<&'static Table> {
    let has = |wanted: &[&str]| names.clone().any(|name| wanted.contains(&name));
    let has_in_block = |part: &str| {
        let mut blocks = names.clone().filter(|name| name.starts_with("blocks."));
        blocks.any(|name| name.contains(part))
    };
    if has(&[
        "embeddings.cls_token",
        "embeddings.patch_embeddings.projection.weight",
    ]) {
        Some(&hugging_face::TABLE)
    } else if has(&["reg_token"]) {
        Some(&timm::TABLE)
    } else if has(&["mask_token", "register_tokens"]) || has_in_block(".mlp.w12.") {
        Some(&official::TABLE)
    } else if has_in_block(".ls1.gamma") {
        Some(&timm::TABLE)
    } else if has(&["cls_token", "patch_embed.proj.weight"]) {
        Some(&dino::TABLE)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vit::{FeedForwardKind, VitConfig};

    #[test]
    fn families_are_told_apart() {
        let family = |names: &[&str]| detect(names.iter().copied()).map(|table| table.family);
        let (cls, ls) = ("cls_token", "blocks.0.ls1.gamma");
        assert_eq!(family(&[cls, ls, "mask_token"]), Some(Family::Official));
        assert_eq!(family(&[cls, ls, "register_tokens"]), Some(Family::Official));
        assert_eq!(
            family(&[cls, ls, "blocks.0.mlp.w12.weight"]),
            Some(Family::Official)
        );
        assert_eq!(family(&[cls, ls]), Some(Family::Timm));
        assert_eq!(family(&[cls, "reg_token"]), Some(Family::Timm));
        assert_eq!(family(&[cls, "blocks.0.norm1.weight"]), Some(Family::DinoV1));
        assert_eq!(family(&["embeddings.cls_token"]), Some(Family::HuggingFace));
        assert_eq!(family(&["conv1.weight"]), None);
    }

    #[test]
    fn every_parameter_has_its_place_in_the_tables() {
        for (arch, tables) in [
            (
                "vit-small/14-reg4",
                &[&official::TABLE, &hugging_face::TABLE, &timm::TABLE][..],
            ),
            (
                "vit-giant2/14-reg4",
                &[&official::TABLE, &hugging_face::TABLE, &timm::TABLE],
            ),
            ("vit-small/16", &[&dino::TABLE]),
        ] {
            let mut config = VitConfig::named(arch, 112).expect(arch);
            for table in tables {
                config.mask_token = matches!(table.family, Family::Official | Family::HuggingFace);
                if table.family == Family::DinoV1 {
                    config.layer_scale = None;
                }
                for (ours, _) in config.parameters() {
                    let sources = table.sources(&ours);
                    let wanted = match (table.family, ours.contains("qkv")) {
                        (Family::HuggingFace, true) => 3,
                        _ => 1,
                    };
                    assert_eq!(sources.len(), wanted, "{:?} {ours}: {sources:?}", table.family);
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
                Part::Third(1)
            )
        );
        assert_eq!(
            theirs(&timm::TABLE, "blocks.2.mlp.w12.weight"),
            [("blocks.2.mlp.fc1.weight".into(), Part::Whole)]
        );
        assert!(theirs(&dino::TABLE, "blocks.2.ls1.gamma").is_empty());
    }
}
