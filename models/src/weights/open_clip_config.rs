//! `open_clip_config.json`: which GELU a tower has and how wide its heads are, and what of open_clip's towers is not computed.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::vit::{GeluKind, Pool, VitConfig};
use crate::{Error, Result};

const FILE: &str = "open_clip_config.json";

/// What the file adds to the tensors.
pub(super) struct OpenClipConfig {
    vision: Value,
    /// Of `quick_gelu` and `act_kwargs`.
    pub activation: GeluKind,
}

/// Width of a head where the file does not say (open_clip `CLIPVisionCfg`).
const HEAD_WIDTH: u64 = 64;

/// Reads the file beside the weights, if there is one.
///
/// # Errors
/// A file that cannot be read or is no such configuration; a tower that is not computed, by its field.
pub(super) fn read(weights: &Path) -> Result<Option<OpenClipConfig>> {
    let Some(file) = open(weights)? else {
        return Ok(None);
    };
    let bad = |reason: String| Error::corrupt(&file.path, format!("{FILE}: {reason}"));
    check(&file.vision).map_err(bad)?;
    Ok(Some(OpenClipConfig {
        activation: activation(&file.model, &file.vision).map_err(bad)?,
        vision: file.vision.clone(),
    }))
}

/// What the file says of a tower that is a network of timm.
pub(super) struct Trunk {
    /// timm's name of the network.
    pub name: String,
    pool: Option<String>,
    proj: Option<String>,
}

/// Reads the file beside the weights of a network of timm, if there is one.
///
/// # Errors
/// A file that cannot be read or is no such configuration, or that names no network of timm.
pub(super) fn read_trunk(weights: &Path) -> Result<Option<Trunk>> {
    let Some(file) = open(weights)? else {
        return Ok(None);
    };
    let text = |field: &str| file.vision.get(field).and_then(Value::as_str);
    let Some(name) = text("timm_model_name") else {
        let reason =
            format!("{FILE}: vision_cfg.timm_model_name: expected the network below `trunk.`, found none");
        return Err(Error::corrupt(&file.path, reason));
    };
    let choice = |field: &str| text(field).filter(|value| !value.is_empty()).map(str::to_owned);
    Ok(Some(Trunk {
        name: name.to_owned(),
        pool: choice("timm_pool"),
        proj: choice("timm_proj"),
    }))
}

impl Trunk {
    /// Checks that what is pooled and what it is projected by are what the tensors tell.
    ///
    /// # Errors
    /// Names the field, what it says and what the tensors tell.
    pub fn check(&self, derived: &VitConfig) -> std::result::Result<(), String> {
        let found = match derived.pool {
            Pool::Attention(_) => "map",
            Pool::Mean => "avg",
            Pool::Class if derived.class_token => "token",
            Pool::Class => "avg",
        };
        if let Some(said) = self.pool.as_ref().filter(|said| *said != found) {
            return Err(format!(
                "vision_cfg.timm_pool: {FILE} says {said}, the tensors {found}"
            ));
        }
        let (proj, projects) = (self.proj.as_deref(), derived.projection.is_some());
        match (proj, projects) {
            (None | Some("linear"), true) | (Some("none"), false) => Ok(()),
            (None | Some("linear" | "none"), _) => Err(format!(
                "vision_cfg.timm_proj: {FILE} says {}, the tensors {}",
                proj.unwrap_or("null"),
                if projects { "a projection" } else { "none" }
            )),
            (Some(other), _) => Err(format!(
                "vision_cfg.timm_proj: expected linear or none, found {other}: other projections are not supported"
            )),
        }
    }
}

/// The file, and its parts.
struct Opened {
    path: PathBuf,
    model: Value,
    vision: Value,
}

fn open(weights: &Path) -> Result<Option<Opened>> {
    let path = weights.with_file_name(FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let bad = |reason: String| Error::corrupt(&path, format!("{FILE}: {reason}"));
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let whole: Value = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    // As open_clip ships configurations, `model_cfg` is the whole of the file.
    let model = whole.get("model_cfg").unwrap_or(&whole);
    let vision = model.get("vision_cfg").filter(|vision| vision.is_object());
    let vision = vision.ok_or_else(|| bad("expected an object vision_cfg".into()))?;
    Ok(Some(Opened {
        model: model.clone(),
        vision: vision.clone(),
        path,
    }))
}

/// Refuses what of open_clip's towers is not computed.
fn check(vision: &Value) -> std::result::Result<(), String> {
    let set = |field: &str| {
        let value = vision.get(field)?;
        let unset = matches!(value, Value::Null | Value::Bool(false)) || value.as_str() == Some("");
        (!unset).then_some(value)
    };
    for (field, expected) in [
        ("attentional_pool", "false: attention pooling is not supported"),
        (
            "final_ln_after_pool",
            "false: a norm after pooling is not supported",
        ),
        ("input_patchnorm", "false: norms within patches are not supported"),
        ("timm_model_name", "none: the tower is one of timm"),
        ("norm_kwargs", "none"),
    ] {
        if let Some(found) = set(field).filter(|found| found.as_object().is_none_or(|map| !map.is_empty())) {
            return Err(format!("vision_cfg.{field}: expected {expected}, found {found}"));
        }
    }
    for (field, expected) in [("pool_type", "tok"), ("pos_embed_type", "learnable")] {
        if let Some(found) = set(field).filter(|found| *found != expected) {
            return Err(format!("vision_cfg.{field}: expected {expected}, found {found}"));
        }
    }
    Ok(())
}

fn activation(model: &Value, vision: &Value) -> std::result::Result<GeluKind, String> {
    let quick = match model.get("quick_gelu") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(quick)) => *quick,
        Some(found) => return Err(format!("quick_gelu: expected true or false, found {found}")),
    };
    let form = vision
        .get("act_kwargs")
        .and_then(|kwargs| kwargs.get("approximate"));
    match form.and_then(Value::as_str) {
        _ if quick => Ok(GeluKind::QuickGelu),
        None | Some("none") => Ok(GeluKind::Gelu),
        Some("tanh") => Ok(GeluKind::GeluTanh),
        Some(found) => Err(format!(
            "vision_cfg.act_kwargs.approximate: expected none or tanh, found {found}"
        )),
    }
}

impl OpenClipConfig {
    /// The number of heads of a tower that the tensors tell of.
    ///
    /// # Errors
    /// Every field that contradicts the tensors, with both values; heads that do not fill the width.
    pub fn num_heads(&self, derived: &VitConfig) -> std::result::Result<usize, String> {
        let number = |field: &str| match self.vision.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(sides)) if sides.len() == 2 && sides[0] == sides[1] => Ok(sides[0].as_u64()),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(format!(
                    "{FILE}: vision_cfg.{field}: expected a number, found {value}"
                )),
            },
        };
        let mut wrong = Vec::new();
        for (field, found) in [
            ("width", derived.embed_dim),
            ("layers", derived.depth),
            ("patch_size", derived.patch_size),
            ("image_size", derived.image_size),
        ] {
            match number(field)? {
                Some(said) if said != found as u64 => {
                    wrong.push(format!(
                        "vision_cfg.{field}: {FILE} says {said}, the tensors {found}"
                    ));
                }
                _ => {}
            }
        }
        let head_width = number("head_width")?.unwrap_or(HEAD_WIDTH);
        let width = derived.embed_dim as u64;
        if head_width == 0 || !width.is_multiple_of(head_width) {
            wrong.push(format!(
                "vision_cfg.head_width: expected a divisor of the width {width}, found {head_width}"
            ));
        }
        match wrong.is_empty() {
            true => Ok((width / head_width) as usize),
            false => Err(wrong.join("; ")),
        }
    }
}
