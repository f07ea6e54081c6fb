//! What surrounds the names of a backbone: the copies of a training checkpoint, module prefixes, chunks of blocks.

use std::collections::BTreeMap;

use super::raw::RawTensors;
use crate::{Error, Result};

/// Dictionaries that hold a network among other things, the preferred first: the teacher is the one to use.
/// What lies beside the chosen one (optimizer, losses, the other network) is not part of the checkpoint.
const COPIES: [&str; 4] = ["teacher.", "student.", "model.", "state_dict."];

/// What a name may begin with before its own begins, in any number.
const PREFIXES: [&str; 6] = [
    "module.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "backbone.",
    "dinov2.",
    "dinov2_with_registers.",
];

/// Names that only the top level of a backbone has.
const ANCHORS: [&str; 4] = [
    "cls_token",
    "embeddings.cls_token",
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
];

/// The names without what surrounds them, each with the name in the file.
pub(super) fn unwrap(raw: &RawTensors) -> Result<BTreeMap<String, String>> {
    let mut inner: Vec<(&str, &str)> = raw
        .tensors
        .keys()
        .map(|name| (name.as_str(), name.as_str()))
        .collect();
    while !inner
        .iter()
        .any(|(name, _)| ANCHORS.contains(&without_prefixes(name)))
    {
        let has = |copy: &str| {
            inner
                .iter()
                .any(|(name, _)| without_module(name).starts_with(copy))
        };
        let Some(copy) = COPIES.into_iter().find(|copy| has(copy)) else {
            break;
        };
        inner = inner
            .into_iter()
            .filter_map(|(name, full)| Some((without_module(name).strip_prefix(copy)?, full)))
            .collect();
    }
    let mut names = BTreeMap::new();
    for (name, full) in inner {
        let name = flat_block(without_prefixes(name));
        if let Some(other) = names.insert(name.clone(), full.to_string()) {
            return Err(Error::Checkpoint {
                path: raw.path.clone(),
                reason: format!("two tensors stand for `{name}`: `{other}` and `{full}`"),
            });
        }
    }
    Ok(names)
}

/// A wrapper may itself be below a `module.`.
fn without_module(name: &str) -> &str {
    name.strip_prefix("module.").unwrap_or(name)
}

fn without_prefixes(mut name: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    name
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
    fn names_lose_what_surrounds_them() {
        for (name, bare) in [
            ("module.backbone.cls_token", "cls_token"),
            ("backbone.blocks.1.6.norm1.weight", "blocks.6.norm1.weight"),
            ("backbone.blocks.6.norm1.weight", "blocks.6.norm1.weight"),
            ("dinov2.embeddings.cls_token", "embeddings.cls_token"),
            ("classifier.weight", "classifier.weight"),
            ("dino_head.mlp.0.weight", "dino_head.mlp.0.weight"),
        ] {
            assert_eq!(flat_block(without_prefixes(name)), bare);
        }
    }
}
