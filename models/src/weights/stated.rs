//! What the files beside the weights, the options and the habit of a family say of what no tensor tells: heads and the GELU.

use std::path::Path;

use serde_json::Value;

use super::family::{Beside, Table};
use super::published::published;
use super::{Family, LoadOptions, hf_config, open_clip_config};
use crate::vit::{FeedForwardKind, GeluKind, PositionRule, VitConfig};
use crate::{Error, Result};

/// What is said, and by whom.
#[derive(Default)]
pub(super) struct Stated {
    pub heads: Option<(usize, &'static str)>,
    pub activation: Option<(GeluKind, &'static str)>,
}

/// The geometry that the tensors `derived`, completed by the configuration beside the file `weights`, if there is one.
///
/// # Errors
/// A configuration that cannot be read, is of another model, or contradicts the tensors (by `refuse`).
pub(super) fn beside(
    table: &Table,
    weights: &Path,
    derived: VitConfig,
    refuse: &impl Fn(String) -> Error,
) -> Result<(VitConfig, Stated)> {
    match table.beside {
        Beside::Nothing => Ok((derived, Stated::default())),
        Beside::Transformers(kinds) => {
            let Some(config) = hf_config::read(weights, kinds)? else {
                return Ok((derived, Stated::default()));
            };
            let stated = Stated {
                heads: Some((config.num_heads(), "config.json")),
                activation: Some((config.activation(), "config.json")),
            };
            Ok((config.complete(derived).map_err(refuse)?, stated))
        }
        Beside::OpenClip => {
            const FILE: &str = "open_clip_config.json";
            let Some(config) = open_clip_config::read(weights)? else {
                return match derived.pre_norm {
                    true => Ok((derived, Stated::default())),
                    false => Err(refuse(format!(
                        "{}: without `ln_pre.weight` only {FILE} beside it tells what is computed, found none",
                        Family::OpenClip.name()
                    ))),
                };
            };
            let stated = Stated {
                heads: Some((config.num_heads(&derived).map_err(refuse)?, FILE)),
                activation: Some((config.activation, FILE)),
            };
            Ok((derived, stated))
        }
        Beside::Timm => {
            let name = timm_name(weights)?;
            let stated = Stated {
                heads: None,
                activation: name
                    .as_deref()
                    .and_then(activation_of)
                    .map(|kind| (kind, "config.json")),
            };
            // A network of timm that shares its names with those of others.
            let of_timm = name.is_some() && matches!(table.family, Family::IJepa | Family::DinoV1);
            let position_rule = match of_timm {
                true => PositionRule::Registers,
                false => derived.position_rule,
            };
            Ok((
                VitConfig {
                    position_rule,
                    ..derived
                },
                stated,
            ))
        }
        Beside::OpenClipTrunk => {
            let trunk = open_clip_config::read_trunk(weights)?;
            let activation = trunk.as_ref().and_then(|trunk| activation_of(&trunk.name));
            if let Some(trunk) = trunk {
                trunk.check(&derived).map_err(refuse)?;
            }
            let stated = Stated {
                heads: None,
                activation: activation.map(|kind| (kind, "open_clip_config.json")),
            };
            Ok((derived, stated))
        }
    }
}

/// Whether a file that says how images are prepared lies beside the weights.
pub(super) fn has_preprocessing(weights: &Path) -> bool {
    const FILES: [&str; 3] = [
        "preprocessor_config.json",
        "processor_config.json",
        "open_clip_config.json",
    ];
    let there = |file: &&str| weights.with_file_name(file).is_file();
    FILES.iter().any(there) || timm_name(weights).is_ok_and(|name| name.is_some())
}

/// What the names of those of timm's SigLIP contain that have the tanh form of GELU.
const TANH: [&str; 5] = [
    "base_patch32_siglip",
    "large_patch16_siglip_512",
    "large_patch16_siglip_gap_512",
    "so400m_patch16_siglip",
    "giantopt_patch16_siglip",
];

/// The GELU of a CLIP or SigLIP of timm, by the name of its architecture: `vit_base_patch32_clip_quickgelu_224`.
fn activation_of(name: &str) -> Option<GeluKind> {
    match name {
        name if name.contains("_clip_quickgelu") => Some(GeluKind::QuickGelu),
        name if TANH.iter().any(|part| name.contains(part)) => Some(GeluKind::GeluTanh),
        name if name.contains("_clip_") || name.contains("_siglip_") => Some(GeluKind::Gelu),
        _ => None,
    }
}

/// The architecture that the `config.json` of a timm repository names.
fn timm_name(weights: &Path) -> Result<Option<String>> {
    let path = weights.with_file_name("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let whole: Value =
        serde_json::from_slice(&text).map_err(|e| Error::corrupt(&path, format!("config.json: {e}")))?;
    Ok(whole
        .get("architecture")
        .and_then(Value::as_str)
        .map(str::to_owned))
}

/// The GELU of a network, on which everyone who names one has to agree.
///
/// # Errors
/// Two that differ; none at all where networks of the family differ.
pub(super) fn activation(
    table: &Table,
    config: &VitConfig,
    stated: &Stated,
    options: &LoadOptions,
) -> std::result::Result<GeluKind, String> {
    let named = match options.arch.as_deref() {
        Some(arch) if !arch.starts_with("vit-") => published(arch)?.activation,
        _ => None,
    };
    let all = [
        stated.activation,
        options.activation.map(|kind| (kind, "the given one")),
        named.map(|kind| (kind, "the architecture")),
    ];
    let mut said = all.into_iter().flatten();
    let first = said.next();
    if let (Some((kind, by)), Some((other, by_other))) = (
        first,
        said.find(|(other, _)| Some(*other) != first.map(|(kind, _)| kind)),
    ) {
        return Err(match by_other {
            "the given one" => format!("activation: {by} says {kind}, the given one is {other}"),
            _ => format!("activation: {by} says {kind}, {by_other} {other}"),
        });
    }
    match first {
        Some((kind, _)) => Ok(kind),
        None if config.feed_forward == FeedForwardKind::Swiglu => Ok(GeluKind::default()),
        None => table.activation.ok_or_else(|| {
            format!(
                "taken for a {}, whose file does not tell its activation: give it (--activation {}), or put its \
                 configuration beside it",
                table.family.name(),
                match table.family {
                    Family::TimmSiglip => "gelu-tanh for B/32, So400m/16 and the giant, gelu for the others",
                    _ => "quick-gelu for OpenAI's weights, gelu for LAION's",
                }
            )
        }),
    }
}
