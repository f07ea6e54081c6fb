//! `config.json` of a Hugging Face folder: what it adds to the tensors, and what it may not contradict.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::vit::{FeedForwardKind, PositionRule, VitConfig};
use crate::{Error, Result};

/// The fields of transformers' `Dinov2Config` and `Dinov2WithRegistersConfig` that matter, with their defaults.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct HfConfig {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    mlp_ratio: f64,
    hidden_act: String,
    layer_norm_eps: f64,
    image_size: Value,
    patch_size: Value,
    num_channels: usize,
    qkv_bias: bool,
    layerscale_value: f64,
    use_swiglu_ffn: bool,
    num_register_tokens: Option<usize>,
    use_mask_token: bool,
}

impl Default for HfConfig {
    fn default() -> Self {
        Self {
            model_type: "dinov2".into(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4.0,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-6,
            image_size: Value::from(224),
            patch_size: Value::from(14),
            num_channels: 3,
            qkv_bias: true,
            layerscale_value: 1.0,
            use_swiglu_ffn: false,
            num_register_tokens: None,
            use_mask_token: true,
        }
    }
}

const WITH_REGISTERS: &str = "dinov2_with_registers";

/// Reads the `config.json` beside a weight file, if there is one.
pub(super) fn read(weights: &Path) -> Result<Option<HfConfig>> {
    let path = weights.with_file_name("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let bad = |e: serde_json::Error| Error::corrupt(&path, format!("config.json: {e}"));
    let whole: Value = serde_json::from_slice(&text).map_err(bad)?;
    let config = HfConfig::deserialize(backbone(&whole)).map_err(bad)?;
    config.check_kind().map_err(|e| Error::corrupt(&path, e))?;
    Ok(Some(config))
}

/// The part of a configuration that describes the backbone: a model built on one (Depth Anything, UperNet) keeps it
/// beside its own fields.
fn backbone(whole: &Value) -> &Value {
    let own = |part: &&Value| matches!(part["model_type"].as_str(), Some("dinov2" | WITH_REGISTERS));
    let part = whole.get("backbone_config").filter(own);
    part.unwrap_or(whole)
}

impl HfConfig {
    /// Heads per block.
    pub fn num_heads(&self) -> usize {
        self.num_attention_heads
    }

    /// Refuses what this network does not compute.
    fn check_kind(&self) -> std::result::Result<(), String> {
        if self.model_type != "dinov2" && self.model_type != WITH_REGISTERS {
            let found = &self.model_type;
            return Err(format!(
                "model_type: expected dinov2 or {WITH_REGISTERS}, found {found}"
            ));
        }
        if self.hidden_act != "gelu" {
            return Err(format!("hidden_act: expected gelu, found {}", self.hidden_act));
        }
        if !self.qkv_bias {
            return Err("qkv_bias: expected true, found false".into());
        }
        Ok(())
    }

    fn registers(&self) -> usize {
        match self.num_register_tokens {
            _ if self.model_type != WITH_REGISTERS => 0,
            Some(count) => count,
            None => 4,
        }
    }

    /// `int(hidden_size * mlp_ratio)`; of SwiGLU two thirds of it, rounded up to a multiple of 8.
    fn ffn_hidden(&self) -> usize {
        let hidden = (self.hidden_size as f64 * self.mlp_ratio) as usize;
        if self.use_swiglu_ffn {
            (hidden * 2 / 3).next_multiple_of(8)
        } else {
            hidden
        }
    }

    /// Fills in what the tensors do not tell.
    ///
    /// # Errors
    /// Every field that contradicts the tensors, with both values.
    pub fn complete(&self, told: VitConfig) -> std::result::Result<VitConfig, String> {
        let swiglu = told.feed_forward == FeedForwardKind::Swiglu;
        let fields = [
            (
                "hidden_size",
                self.hidden_size.to_string(),
                told.embed_dim.to_string(),
            ),
            (
                "num_hidden_layers",
                self.num_hidden_layers.to_string(),
                told.depth.to_string(),
            ),
            ("image_size", side(&self.image_size), told.image_size.to_string()),
            ("patch_size", side(&self.patch_size), told.patch_size.to_string()),
            (
                "num_channels",
                self.num_channels.to_string(),
                told.in_channels.to_string(),
            ),
            (
                "num_register_tokens",
                self.registers().to_string(),
                told.num_registers.to_string(),
            ),
            (
                "use_swiglu_ffn",
                self.use_swiglu_ffn.to_string(),
                swiglu.to_string(),
            ),
            (
                "hidden_size * mlp_ratio",
                self.ffn_hidden().to_string(),
                told.ffn_hidden.to_string(),
            ),
        ];
        let wrong: Vec<String> = fields
            .iter()
            .filter(|(_, said, found)| said != found)
            .map(|(field, said, found)| format!("{field}: config.json says {said}, the tensors {found}"))
            .collect();
        if !wrong.is_empty() {
            return Err(wrong.join("; "));
        }
        Ok(VitConfig {
            num_heads: self.num_attention_heads,
            layer_norm_eps: self.layer_norm_eps,
            layer_scale: Some(self.layerscale_value),
            mask_token: self.use_mask_token,
            position_rule: if self.model_type == WITH_REGISTERS {
                PositionRule::Registers
            } else {
                PositionRule::HuggingFace
            },
            ..told
        })
    }
}

/// The side of a square that may be given as a number or as two equal ones.
fn side(value: &Value) -> String {
    match value.as_array().map(Vec::as_slice) {
        Some([height, width]) if height == width => height.to_string(),
        _ => value.to_string(),
    }
}
