//! Where the networks of a file lie: below which prefix, and which of several copies is the one to use.
//!
//! A training checkpoint wraps its network in dictionaries and modules of any name. What stands before `cls_token` or the
//! patch embedding is such a wrapper, whatever it is called; every prefix that these names have is a network's root.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::raw::RawTensors;

/// Wrappers of single modules, which may stand anywhere in a name and change nothing: compilation, sharding, activation
/// checkpointing.
const TRANSPARENT: [&str; 4] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
];

/// Names that only the top level of a network has; longer ones first, for one ends like another.
const ANCHORS: [&str; 9] = [
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embedding.weight",
    "embeddings.class_embedding",
    "class_embedding",
    "class_token",
    "embeddings.cls_token",
    "patch_embed.proj.weight",
    "cls_token",
];

/// Words in a root that say which copy of a network it is, the preferred copies first. Copies without any of these words
/// come between the averaged and the directly trained ones.
const AVERAGED: [&[&str]; 2] = [
    &["teacher"],
    &["ema", "averaged", "average", "swa", "target", "shadow"],
];
const DIRECT: [&str; 7] = [
    "student",
    "online",
    "momentum",
    "k",
    "predictor",
    "decoder",
    "optimizer",
];

/// A network and its place.
pub(super) struct Root<'a> {
    /// What its names begin with, with a dot at its end, or empty.
    pub prefix: String,
    /// Its tensors, without the prefix and transparent wrappers, and their names in the file.
    pub inside: BTreeMap<String, &'a str>,
    /// A name in the network that two names in the file stand for, and these.
    pub doubled: Option<(String, &'a str, &'a str)>,
}

/// All names of a file, sorted into networks.
pub(super) struct Roots<'a> {
    /// Networks, the preferred one first.
    pub networks: Vec<Root<'a>>,
    /// Tensors that belong to none, without transparent wrappers, and their names in the file.
    pub beside: BTreeMap<String, &'a str>,
}

/// Finds the networks of a file.
pub(super) fn find(raw: &RawTensors) -> Roots<'_> {
    let names: Vec<(String, &str)> = raw
        .tensors
        .keys()
        .chain(raw.unreadable.keys())
        .map(|name| (bare(name), name.as_str()))
        .collect();
    let prefixes: BTreeSet<&str> = names.iter().filter_map(|(name, _)| root_of(name)).collect();
    let mut networks: Vec<Root<'_>> = prefixes
        .iter()
        .map(|prefix| Root {
            prefix: (*prefix).to_owned(),
            inside: BTreeMap::new(),
            doubled: None,
        })
        .collect();
    let places: BTreeMap<&str, usize> = prefixes
        .iter()
        .zip(0..)
        .map(|(prefix, at)| (*prefix, at))
        .collect();
    let mut beside = BTreeMap::new();
    for (name, full) in &names {
        // A network within another one, such as an average kept beside the weights, has its tensors to itself.
        let owner = enclosing(name).find_map(|prefix| places.get(prefix));
        match owner {
            Some(place) => {
                let root = &mut networks[*place];
                let inner = flat_block(&name[root.prefix.len()..]);
                if let Some(other) = root.inside.insert(inner.clone(), full) {
                    root.doubled = Some((inner, other, full));
                }
            }
            None => drop(beside.insert(name.clone(), *full)),
        }
    }
    networks.sort_by_cached_key(|root| {
        let depth = root.prefix.matches('.').count();
        (
            rank(&root.prefix),
            depth,
            Reverse(root.inside.len()),
            root.prefix.clone(),
        )
    });
    Roots { networks, beside }
}

/// Every prefix of a name that ends with a dot, the longest first, and the empty one.
pub(super) fn enclosing(name: &str) -> impl Iterator<Item = &str> {
    let dots = name.rmatch_indices('.').map(|(at, _)| &name[..=at]);
    dots.chain(std::iter::once(""))
}

/// The root of a network whose top level has this name.
fn root_of(name: &str) -> Option<&str> {
    let prefix = ANCHORS.iter().find_map(|anchor| name.strip_suffix(anchor))?;
    (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
}

/// Which copy a root is, the preferred one first.
pub(super) fn rank(prefix: &str) -> usize {
    let has = |wanted: &[&str]| words(prefix).any(|word| wanted.contains(&word.to_lowercase().as_str()));
    match AVERAGED.iter().position(|words| has(words)) {
        Some(rank) => rank,
        None if prefix.contains("EMA") => 1,
        None if has(&DIRECT) => 3,
        None => 2,
    }
}

fn words(prefix: &str) -> impl Iterator<Item = &str> {
    prefix.split(['.', '_', '-'])
}

/// A name without the wrappers that may stand anywhere in it.
fn bare(name: &str) -> String {
    let parts: Vec<&str> = name
        .split('.')
        .filter(|part| !TRANSPARENT.contains(part))
        .collect();
    parts.join(".")
}

/// `blocks.1.6.norm1.weight` as `blocks.6.norm1.weight`: training keeps blocks in chunks, but counts them throughout.
fn flat_block(name: &str) -> String {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = name.splitn(4, '.');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("blocks"), Some(chunk), Some(index), Some(rest)) if number(chunk) && number(index) => {
            format!("blocks.{index}.{rest}")
        }
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_lies_in_every_prefix() {
        assert_eq!(enclosing("a.b.c").collect::<Vec<_>>(), ["a.b.", "a.", ""]);
        assert_eq!(enclosing("a").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn roots_are_what_stands_before_the_top_level() {
        for (name, root) in [
            ("cls_token", Some("")),
            ("module.backbone.cls_token", Some("module.backbone.")),
            ("a.b-c.0.patch_embed.proj.weight", Some("a.b-c.0.")),
            ("dinov2.embeddings.cls_token", Some("dinov2.")),
            ("embeddings.patch_embeddings.projection.weight", Some("")),
            ("visual.class_embedding", Some("visual.")),
            ("vision_model.embeddings.class_embedding", Some("vision_model.")),
            ("decoder_cls_token", None),
            ("blocks.0.norm1.weight", None),
        ] {
            assert_eq!(root_of(name), root, "{name}");
        }
    }

    #[test]
    fn wrappers_of_single_modules_are_not_part_of_a_name() {
        for (name, expected) in [
            ("_orig_mod.module.cls_token", "module.cls_token"),
            (
                "blocks.1._checkpoint_wrapped_module.attn._orig_mod.qkv.bias",
                "blocks.1.attn.qkv.bias",
            ),
        ] {
            assert_eq!(bare(name), expected);
        }
        for (name, expected) in [
            ("blocks.1.6.norm1.weight", "blocks.6.norm1.weight"),
            ("blocks.6.norm1.weight", "blocks.6.norm1.weight"),
            ("classifier.weight", "classifier.weight"),
        ] {
            assert_eq!(flat_block(name), expected);
        }
    }

    #[test]
    fn averages_come_before_what_they_average() {
        let order = [
            "state_dict.teacher_embedding_model.",
            "state_dict_ema.",
            "ema_model.module.",
            "callbacks.EMACallback.",
            "",
            "state_dict.",
            "module.base_encoder.",
            "student.backbone.",
            "module.momentum_encoder.",
        ];
        let ranks: Vec<usize> = order.iter().map(|prefix| rank(prefix)).collect();
        assert_eq!(ranks, [0, 1, 1, 1, 2, 2, 2, 3, 3]);
        // A word counts, not a part of one: no ema in `schema`.
        assert_eq!(rank("schema.backbone."), 2);
    }
}
