//! What a family's file says and how it is read: the shape of its table, and which family a file belongs to.

use std::collections::BTreeMap;

use super::architecture::{self, Architecture};
use super::raw::RawTensor;
use super::{Family, clip, dino, dinov3, hf_config, hugging_face, mae, official, timm, tips, vit};
use crate::vit::GeluKind;

/// How a tensor of a family becomes an official one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// As it is.
    Whole,
    /// One of so many equal parts of the first axis, in this place: query, key, value; gate and up.
    Share(usize, usize),
    /// The position table, whose CLS row may be folded into the CLS token: then the row is zeros.
    PositionTable,
    /// As it is but for leading axes of 1, of which ours has so many axes as to have this number in all.
    Axes(usize),
    /// The transpose of a matrix.
    Transposed,
    /// What a bias is multiplied with: where this is 0 the bias is 0, whatever it holds. Ours has no such tensor; a file need not.
    Mask,
    /// The periods of rotary positions, which are compared with the configuration's. Ours has no such tensor.
    Periods,
}

/// The name of the periods where a file has them.
pub(super) const PERIODS: &str = "rope_embed.periods";

/// Their name, the official name, and what one is of the other. `{i}` is a block's index, `*` is `weight` or `bias`.
pub(super) type Row = (&'static str, &'static str, Part);

/// A family of checkpoints.
pub(super) struct Table {
    pub family: Family,
    /// Every tensor the family may have. `{b}` is what the names of its blocks begin with.
    pub rows: &'static [Row],
    /// More of them, where tables have most in common.
    pub more: &'static [Row],
    /// What the names of its blocks begin with.
    pub blocks: &'static str,
    /// Prefixes of heads, and what takes their place.
    pub heads: &'static [(&'static str, &'static str)],
    /// Of their names, those that stand for zeros where no block has them: biases that networks of the family lack. Masks of
    /// biases too, which then mask nothing.
    pub zeros: &'static [&'static str],
    /// Names of the network's tensors that stand beside its root.
    pub outside: &'static [&'static str],
    /// Epsilon of the norms, where nothing else tells.
    pub eps: f64,
    /// The GELU; `None` where networks of the family differ and their tensors do not tell.
    pub activation: Option<GeluKind>,
    /// Whether a norm always stands before the blocks.
    pub pre_norm: bool,
    /// Whether its positions are rotary.
    pub rotary: bool,
    /// The configuration that lies beside its files.
    pub beside: Beside,
}

/// Which file beside the weights tells what their tensors do not.
#[derive(Clone, Copy)]
pub(super) enum Beside {
    /// None.
    Nothing,
    /// `config.json` of transformers, of one of these kinds.
    Transformers(&'static [hf_config::Kind]),
    /// `open_clip_config.json`.
    OpenClip,
    /// `config.json` of timm.
    Timm,
}

/// Their tensors by name, wrappers removed, read through a table.
pub(super) struct Found<'a> {
    pub table: &'static Table,
    pub tensors: BTreeMap<String, &'a RawTensor>,
}

impl Table {
    /// A plain network with a table of positions, to change from.
    pub const PLAIN: Self = Self {
        family: Family::Official,
        rows: &[],
        more: &[],
        blocks: "blocks.",
        heads: &[],
        zeros: &[],
        outside: &[],
        eps: 1e-6,
        activation: Some(GeluKind::Gelu),
        pre_norm: false,
        rotary: false,
        beside: Beside::Nothing,
    };

    /// Their tensors that make up the official tensor `ours`.
    pub fn sources(&self, ours: &str) -> Vec<(String, Part)> {
        let (pattern, index) = split_block(ours);
        let (star, kind) = match pattern.rsplit_once('.') {
            Some((stem, kind @ ("weight" | "bias"))) => (format!("{stem}.*"), kind),
            _ => (pattern.clone(), ""),
        };
        let named = |theirs: &str| {
            let theirs = theirs.replace("{b}", self.blocks).replace("{i}", index);
            theirs.replace('*', kind)
        };
        self.all_rows()
            .filter(|(_, row, _)| *row == pattern || *row == star)
            .map(|(theirs, _, part)| (named(theirs), *part))
            .collect()
    }

    /// The rows of both parts of the table.
    pub fn all_rows(&self) -> impl Iterator<Item = &'static Row> {
        self.rows.iter().chain(self.more)
    }

    /// Whether a network that has no such tensor in any block has zeros in its place.
    pub fn may_be_zeros(&self, theirs: &str, tensors: &BTreeMap<String, &RawTensor>) -> bool {
        self.zeros.iter().any(|pattern| {
            let pattern = pattern.replace("{b}", self.blocks);
            let (start, end) = pattern.split_once("{i}").unwrap_or((&pattern, ""));
            let is_one = |name: &str| match end {
                "" => name == start,
                _ => {
                    let index = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
                    index.is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
                }
            };
            is_one(theirs) && !tensors.keys().any(|name| is_one(name))
        })
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
        match part {
            Part::Share(_, count) => {
                if let Some(first) = shape.first_mut() {
                    *first = first.saturating_mul(*count);
                }
            }
            Part::Axes(rank) => {
                let inner = without_ones(&shape);
                let ones = rank.saturating_sub(inner.len());
                shape = [vec![1; ones], inner.to_vec()].concat();
            }
            Part::Transposed => shape.reverse(),
            Part::Whole | Part::PositionTable | Part::Mask | Part::Periods => {}
        }
        Some(shape)
    }

    /// Whether `ours` is made of several tensors, all of which are there.
    pub fn has_all_shares(&self, ours: &str) -> bool {
        let sources = self.table.sources(ours);
        sources.len() > 1
            && sources
                .iter()
                .all(|(theirs, _)| self.tensors.contains_key(theirs.as_str()))
    }

    /// What they call `ours`, for messages.
    pub fn their_name(&self, ours: &str) -> String {
        let first = self.table.sources(ours).into_iter().next();
        first.map_or_else(|| ours.into(), |(theirs, _)| theirs)
    }
}

/// A shape without the axes of 1 that it begins with.
pub(super) fn without_ones(shape: &[usize]) -> &[usize] {
    let first = shape.iter().position(|side| *side != 1);
    &shape[first.unwrap_or(shape.len().saturating_sub(1))..]
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
    if has(&["embeddings.class_embedding"]) {
        return Detected::Family(&clip::HUGGING_FACE);
    }
    if has(&["class_embedding"]) {
        return Detected::Family(&clip::OPEN_CLIP);
    }
    if has(&["norm_pre.weight"]) {
        return Detected::Family(&clip::TIMM);
    }
    if has(&["class_token"]) {
        let named = tensors.keys().any(|name| name.contains(".mlp.linear_1."));
        return Detected::Family(if named {
            &vit::TORCHVISION_NAMED
        } else {
            &vit::TORCHVISION
        });
    }
    if has(&["embeddings.patch_embeddings.weight"]) {
        let of_memory = begins("model.layer.");
        return Detected::Family(if of_memory {
            &dinov3::HUGGING_FACE_5
        } else {
            &dinov3::HUGGING_FACE
        });
    }
    if has(&[
        "embeddings.cls_token",
        "embeddings.patch_embeddings.projection.weight",
    ]) {
        let contains = |part: &str| tensors.keys().any(|name| name.contains(part));
        return Detected::Family(
            match (contains(".layernorm_before."), contains(".attention.q_proj.")) {
                (true, true) => &vit::HUGGING_FACE_5,
                (true, false) => &vit::HUGGING_FACE,
                (false, true) => &hugging_face::TABLE_5,
                (false, false) => &hugging_face::TABLE,
            },
        );
    }
    if has(&["storage_tokens", PERIODS]) {
        return Detected::Family(&dinov3::OFFICIAL);
    }
    if has(&["reg_token"]) && has_in_block(".gamma_1") {
        return Detected::Family(&dinov3::TIMM);
    }
    let second_class = tensors
        .get("register_tokens")
        .is_some_and(|t| t.shape.get(1) == Some(&1));
    if has_in_block(".mlp.c_fc.") || second_class && has_in_block(".mlp.w12.") {
        return Detected::Family(&tips::TABLE);
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
        for (names, expected) in [
            (&["class_embedding", "ln_pre.bias"][..], Family::OpenClip),
            (&["embeddings.class_embedding"], Family::HuggingFaceClip),
            (&[cls, "norm_pre.weight"], Family::TimmClip),
            (&[cls, "rope_embed.periods"], Family::Dinov3),
            (&[cls, "storage_tokens"], Family::Dinov3),
            (
                &["embeddings.cls_token", "embeddings.patch_embeddings.weight"],
                Family::HuggingFaceDinov3,
            ),
            (&[cls, "reg_token", "blocks.0.gamma_1"], Family::TimmDinov3),
            (
                &["embeddings.cls_token", "layers.0.layernorm_before.bias"],
                Family::HuggingFaceVit,
            ),
            (&["class_token", "conv_proj.bias"], Family::Torchvision),
            (&[cls, "blocks.0.mlp.c_fc.bias"], Family::Tips),
        ] {
            assert_eq!(family(names, 3), Some(expected), "{names:?}");
        }
        assert_eq!(family(&["conv1.weight"], 4), None);
        assert_eq!(family(&[cls, "rope_embed.periods", "cls_norm.weight"], 1), None);
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
            theirs(&dinov3::HUGGING_FACE_5, "blocks.2.mlp.w12.bias")[0],
            ("model.layer.2.mlp.gate_proj.bias".into(), Part::Share(0, 2))
        );
        assert_eq!(
            theirs(&timm::TABLE, "blocks.2.mlp.w12.weight"),
            [("blocks.2.mlp.fc1.weight".into(), Part::Whole)]
        );
        assert!(theirs(&dino::TABLE, "blocks.2.ls1.gamma").is_empty());
    }
}
