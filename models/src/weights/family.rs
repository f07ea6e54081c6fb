//! What a family's file says and how it is read: the shape of its table, and which family a file belongs to.

use std::collections::BTreeMap;

use super::architecture::{self, Architecture};
use super::raw::RawTensor;
use super::{
    Family, beit, clip, dino, dinov3, eva, hf_config, hugging_face, ijepa, mae, official, siglip, timm, tips,
    vit,
};
use crate::vit::GeluKind;

/// How a tensor of a family becomes an official one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// As it is.
    Whole,
    /// One of so many equal parts of the first axis, in this place: query, key, value; gate and up.
    Share(usize, usize),
    /// So many of equal parts of the first axis: from this place on, this number, of these.
    Run(usize, usize, usize),
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
    /// And more.
    pub last: &'static [Row],
    /// What the names of its blocks begin with.
    pub blocks: &'static str,
    /// Prefixes of heads, and what takes their place.
    pub heads: &'static [(&'static str, &'static str)],
    /// Of their names, those that stand for zeros where no block has them: biases that networks of the family lack. Masks of
    /// biases too, which then mask nothing.
    pub zeros: &'static [&'static str],
    /// Names of the network's tensors that stand beside its root, and what they are called in it.
    pub outside: &'static [(&'static str, &'static str)],
    /// Epsilon of the norms, where nothing else tells.
    pub eps: f64,
    /// The GELU; `None` where networks of the family differ and their tensors do not tell.
    pub activation: Option<GeluKind>,
    /// Whether a norm always stands before the blocks.
    pub pre_norm: bool,
    /// Which of its networks have rotary positions.
    pub rotation: Rotation,
    /// Whether its networks may lack a class token.
    pub classless: bool,
    /// Whether its networks may have a norm of what is pooled in place of the last norm, or neither.
    pub normless: bool,
    /// The configuration that lies beside its files.
    pub beside: Beside,
}

/// Rotary positions of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotation {
    /// None.
    Never,
    /// DINOv3's, in place of a table.
    Dinov3,
    /// EVA-02's, where the feed-forward network is gated.
    Eva,
    /// PE's.
    Perception,
}

impl Rotation {
    /// Whether neighbouring values of queries and keys are the pairs that are turned.
    pub fn by_neighbours(self) -> bool {
        matches!(self, Self::Eva | Self::Perception)
    }
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
    /// `open_clip_config.json`, which names a network of timm.
    OpenClipTrunk,
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
        last: &[],
        blocks: "blocks.",
        heads: &[],
        zeros: &[],
        outside: &[],
        eps: 1e-6,
        activation: Some(GeluKind::Gelu),
        pre_norm: false,
        rotation: Rotation::Never,
        classless: false,
        normless: false,
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
        self.rows.iter().chain(self.more).chain(self.last)
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
            Part::Run(_, some, count) => {
                if let Some(first) = shape.first_mut() {
                    *first = first.saturating_mul(*count) / some;
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

/// Tells the family of a network from what its root is called, its names and the shapes behind them.
pub(super) fn detect(prefix: &str, tensors: &BTreeMap<String, &RawTensor>) -> Detected {
    if let Some(architecture) = architecture::recognise(tensors.keys().map(String::as_str)) {
        return Detected::Lacking(architecture);
    }
    let names = Names { prefix, tensors };
    let table = match names.axes_of_patches() {
        Some(2) => return Detected::Lacking(&architecture::NAFLEX),
        Some(5) => return Detected::Lacking(&architecture::VIDEO),
        _ if names.is_enormous() => return Detected::Lacking(&architecture::EVA_ENORMOUS),
        _ => names
            .transformers()
            .or_else(|| names.special())
            .or_else(|| names.plain()),
    };
    table.map_or(Detected::Nothing, Detected::Family)
}

/// The names of a network.
struct Names<'n> {
    prefix: &'n str,
    tensors: &'n BTreeMap<String, &'n RawTensor>,
}

impl Names<'_> {
    fn has(&self, wanted: &[&str]) -> bool {
        wanted.iter().any(|name| self.tensors.contains_key(*name))
    }

    fn begins(&self, start: &str) -> bool {
        self.tensors.keys().any(|name| name.starts_with(start))
    }

    fn contains(&self, part: &str) -> bool {
        self.tensors.keys().any(|name| name.contains(part))
    }

    fn in_block(&self, part: &str) -> bool {
        let mut blocks = self.tensors.keys().filter(|name| name.starts_with("blocks."));
        blocks.any(|name| name.contains(part))
    }

    /// Axes of the projection of patches: 4 of images.
    fn axes_of_patches(&self) -> Option<usize> {
        let names = ["embeddings.patch_embedding.weight", "patch_embed.proj.weight"];
        let found = names.iter().find_map(|name| self.tensors.get(*name));
        found.map(|tensor| tensor.shape.len())
    }

    /// Whether it is EVA-02 E, whose tensors have the names of EVA's g and stand elsewhere in a block.
    fn is_enormous(&self) -> bool {
        let class_token = self.tensors.get("cls_token");
        let width = class_token.and_then(|token| token.shape.last());
        width == Some(&1792) && self.in_block(".attn.q_bias")
    }

    /// Whether the network is the trunk of a tower of open_clip.
    fn is_trunk(&self) -> bool {
        self.prefix.ends_with("trunk.")
    }

    /// Families with names of their own: open_clip's, torchvision's and transformers'.
    fn transformers(&self) -> Option<&'static Table> {
        let by_memory = |of_memory: bool, memory, file| Some(if of_memory { memory } else { file });
        if self.has(&["embeddings.class_embedding"]) {
            return Some(&clip::HUGGING_FACE);
        }
        if self.has(&["class_embedding"]) {
            return Some(&clip::OPEN_CLIP);
        }
        if self.has(&["embeddings.patch_embedding.weight"]) && !self.has(&["pre_layrnorm.weight"]) {
            return Some(&siglip::HUGGING_FACE);
        }
        if self.has(&["class_token"]) {
            let named = self.contains(".mlp.linear_1.");
            return by_memory(named, &vit::TORCHVISION_NAMED, &vit::TORCHVISION);
        }
        if self.has(&["embeddings.patch_embeddings.weight"]) {
            let of_memory = self.begins("model.layer.");
            return by_memory(of_memory, &dinov3::HUGGING_FACE_5, &dinov3::HUGGING_FACE);
        }
        if !self.has(&[
            "embeddings.cls_token",
            "embeddings.patch_embeddings.projection.weight",
        ]) {
            return None;
        }
        let of_memory = self.contains(".attention.q_proj.");
        if self.contains("relative_position_bias_table") || self.contains(".lambda_1") {
            return by_memory(of_memory, &beit::HUGGING_FACE_5, &beit::HUGGING_FACE);
        }
        match self.contains(".layernorm_before.") {
            true => by_memory(of_memory, &vit::HUGGING_FACE_5, &vit::HUGGING_FACE),
            false => by_memory(of_memory, &hugging_face::TABLE_5, &hugging_face::TABLE),
        }
    }

    /// Families that share the names of a plain network, and have some of their own.
    fn special(&self) -> Option<&'static Table> {
        let has_classifier = self.has(&["head.weight", "head.bias"]);
        let in_trunk = |[with, without]: &'static [Table; 2], alone| match self.is_trunk() {
            true if has_classifier => Some(with),
            true => Some(without),
            false => Some(alone),
        };
        let pooled = self.has(&["attn_pool.latent"]);
        if self.has(&["norm_pre.weight"]) {
            return match pooled || !self.has(&["norm.weight"]) {
                true => in_trunk(&eva::PERCEPTION_TRUNK, &eva::PERCEPTION),
                false => in_trunk(&clip::TIMM_TRUNK, &clip::TIMM),
            };
        }
        if self.has(&["storage_tokens", PERIODS]) {
            return Some(&dinov3::OFFICIAL);
        }
        if self.has(&["reg_token"]) && self.in_block(".gamma_1") {
            return Some(&dinov3::TIMM);
        }
        if self.contains("relative_position_bias_table") {
            return Some(&beit::TIMM);
        }
        if self.in_block(".attn.q_proj.") {
            return in_trunk(&eva::APART_TRUNK, &eva::APART);
        }
        if self.in_block(".attn.q_bias") {
            return in_trunk(&eva::FUSED_TRUNK, &eva::FUSED);
        }
        let classless = !self.has(&["cls_token", "mask_token"]) && self.in_block(".norm1.");
        if classless && self.has(&["patch_embed.proj.weight"]) {
            return match pooled {
                true => in_trunk(&siglip::TRUNK, &siglip::TIMM),
                false => Some(&ijepa::TABLE),
            };
        }
        let second_class = self.tensors.get("register_tokens");
        let second_class = second_class.is_some_and(|tensor| tensor.shape.get(1) == Some(&1));
        let is_tips = self.in_block(".mlp.c_fc.") || second_class && self.in_block(".mlp.w12.");
        is_tips.then_some(&tips::TABLE)
    }

    /// DINOv2's own, timm's, MAE's and DINO v1's.
    fn plain(&self) -> Option<&'static Table> {
        // MAE's mask token is of its decoder, and has an axis more than DINOv2's.
        let mask_token = self.tensors.get("mask_token");
        let of_decoder = mask_token.is_some_and(|token| token.shape.len() == 3);
        let scaled = self.in_block(".ls1.gamma");
        if self.has(&["reg_token"]) {
            Some(&timm::TABLE)
        } else if (self.begins("decoder_blocks.") || self.begins("decoder_embed.") || of_decoder) && !scaled {
            Some(&mae::TABLE)
        } else if self.has(&["mask_token", "register_tokens"]) || self.in_block(".mlp.w12.") {
            Some(&official::TABLE)
        } else if scaled {
            Some(&timm::TABLE)
        } else if self.has(&["cls_token", "patch_embed.proj.weight"]) {
            Some(&dino::TABLE)
        } else {
            None
        }
    }
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
            match detect(
                "",
                &names.iter().map(|name| (name.to_string(), &tensor)).collect(),
            ) {
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
            (&[cls, "norm_pre.weight", "norm.weight"], Family::TimmClip),
            (&[cls, "norm_pre.weight"], Family::TimmPe),
            (
                &[cls, "norm_pre.weight", "norm.weight", "attn_pool.latent"],
                Family::TimmPe,
            ),
            (
                &[cls, "blocks.0.attn.relative_position_bias_table"],
                Family::TimmBeit,
            ),
            (&[cls, "blocks.0.attn.q_bias"], Family::TimmEva),
            (&[cls, "blocks.0.attn.q_proj.weight"], Family::TimmEva),
            (
                &["embeddings.cls_token", "layers.0.lambda_1"],
                Family::HuggingFaceBeit,
            ),
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
