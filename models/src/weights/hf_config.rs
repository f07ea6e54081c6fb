//! `config.json` of transformers: what it adds to the tensors, and what it may not contradict. A kind of model is a row of its
//! names and defaults.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::vit::{
    FeedForwardKind, FinalNorm, GeluKind, Pool, PositionRule, RelativePositions, RopeConfig, VitConfig,
};
use crate::{Error, Result};

/// The configuration of one kind of model, with transformers' defaults for what it does not say.
pub(super) struct Kind {
    /// Its `model_type`.
    model_type: &'static str,
    /// The field that holds the settings of the vision tower, where there are others.
    within: Option<&'static str>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden: Hidden,
    /// `None` where they are not counted here.
    registers: Option<usize>,
    /// The field that says that the feed-forward network is gated.
    gated: Option<&'static str>,
    /// Whether blocks always have LayerScale.
    layer_scale: bool,
    hidden_act: &'static str,
    layer_norm_eps: f64,
    image_size: usize,
    patch_size: usize,
    rule: PositionRule,
    class_token: bool,
    /// What is said of positions and pooling.
    says: Says,
}

/// Fields of some kinds alone.
#[derive(PartialEq)]
enum Says {
    /// Nothing more.
    Nothing,
    /// `vision_use_head`.
    Head,
    /// `use_mean_pooling` and `use_.._position_..`.
    RelativePositions,
}

/// How the hidden width of the feed-forward network is stated.
enum Hidden {
    /// `int(hidden_size * mlp_ratio)`; of SwiGLU two thirds of it, rounded up to a multiple of 8.
    Ratio(f64),
    /// `intermediate_size`.
    Width(usize),
}

impl Kind {
    /// ViT-B/16 of 224 pixels.
    const BASE: Self = Self {
        model_type: "vit",
        within: None,
        hidden_size: 768,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        hidden: Hidden::Width(3072),
        registers: None,
        gated: None,
        layer_scale: false,
        hidden_act: "gelu",
        layer_norm_eps: 1e-12,
        image_size: 224,
        patch_size: 16,
        rule: PositionRule::HuggingFace,
        class_token: true,
        says: Says::Nothing,
    };
    /// SigLIP's.
    const SIGLIP: Self = Self {
        model_type: "siglip_vision_model",
        hidden_act: "gelu_pytorch_tanh",
        layer_norm_eps: 1e-6,
        class_token: false,
        says: Says::Head,
        ..Self::BASE
    };
    /// BEiT's.
    const BEIT: Self = Self {
        model_type: "beit",
        rule: PositionRule::Official,
        says: Says::RelativePositions,
        ..Self::BASE
    };
    /// CLIP's ViT-B/32.
    const CLIP: Self = Self {
        model_type: "clip_vision_model",
        hidden_act: "quick_gelu",
        layer_norm_eps: 1e-5,
        patch_size: 32,
        ..Self::BASE
    };
    /// DINOv2's.
    const DINOV2: Self = Self {
        model_type: "dinov2",
        hidden: Hidden::Ratio(4.),
        registers: Some(0),
        gated: Some("use_swiglu_ffn"),
        layer_scale: true,
        layer_norm_eps: 1e-6,
        patch_size: 14,
        ..Self::BASE
    };
    /// TIPSv2's.
    const TIPS: Self = Self {
        model_type: "tipsv2_vision_model",
        registers: Some(1),
        image_size: 448,
        rule: PositionRule::Bilinear,
        ..Self::DINOV2
    };
}

const WITH_REGISTERS: &str = "dinov2_with_registers";

/// `Dinov2Config` and `Dinov2WithRegistersConfig`.
pub(super) const DINOV2: [Kind; 2] = [
    Kind::DINOV2,
    Kind {
        model_type: WITH_REGISTERS,
        registers: Some(4),
        rule: PositionRule::Registers,
        ..Kind::DINOV2
    },
];
/// `CLIPConfig` and `CLIPVisionConfig`.
pub(super) const CLIP: [Kind; 2] = [
    Kind::CLIP,
    Kind {
        model_type: "clip",
        within: Some("vision_config"),
        ..Kind::CLIP
    },
];

/// `DINOv3ViTConfig`.
pub(super) const DINOV3: [Kind; 1] = [Kind {
    model_type: "dinov3_vit",
    hidden_size: 384,
    num_attention_heads: 6,
    hidden: Hidden::Width(1536),
    registers: Some(0),
    gated: Some("use_gated_mlp"),
    layer_scale: true,
    layer_norm_eps: 1e-5,
    ..Kind::BASE
}];
/// `SiglipConfig` and `SiglipVisionConfig`.
pub(super) const SIGLIP: [Kind; 2] = [
    Kind::SIGLIP,
    Kind {
        model_type: "siglip",
        within: Some("vision_config"),
        ..Kind::SIGLIP
    },
];
/// `BeitConfig` and `Data2VecVisionConfig`.
pub(super) const BEIT: [Kind; 2] = [
    Kind::BEIT,
    Kind {
        model_type: "data2vec-vision",
        ..Kind::BEIT
    },
];
/// `ViTConfig`, `ViTMAEConfig`, `ViTMSNConfig`, `DeiTConfig` and `IJepaConfig`.
pub(super) const VIT: [Kind; 5] = [
    Kind::BASE,
    Kind {
        model_type: "vit_mae",
        ..Kind::BASE
    },
    Kind {
        model_type: "vit_msn",
        layer_norm_eps: 1e-6,
        ..Kind::BASE
    },
    Kind {
        model_type: "deit",
        registers: Some(1),
        ..Kind::BASE
    },
    Kind {
        model_type: "ijepa",
        class_token: false,
        ..Kind::BASE
    },
];
/// `Tipsv2Config` and `Tipsv2VisionConfig`.
pub(super) const TIPS: [Kind; 2] = [
    Kind::TIPS,
    Kind {
        model_type: "tipsv2",
        within: Some("vision_config"),
        ..Kind::TIPS
    },
];

/// The fields that matter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    mlp_ratio: Option<f64>,
    intermediate_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    image_size: Option<Value>,
    patch_size: Option<Value>,
    num_channels: Option<usize>,
    qkv_bias: Option<bool>,
    layerscale_value: Option<f64>,
    use_swiglu_ffn: Option<bool>,
    use_gated_mlp: Option<bool>,
    num_register_tokens: Option<usize>,
    use_mask_token: Option<bool>,
    projection_dim: Option<usize>,
    rope_theta: Option<f64>,
    vision_use_head: Option<bool>,
    use_mean_pooling: Option<bool>,
    use_relative_position_bias: Option<bool>,
    use_shared_relative_position_bias: Option<bool>,
    use_absolute_position_embeddings: Option<bool>,
}

/// A configuration and the kind that it is of.
pub(super) struct HfConfig {
    kind: &'static Kind,
    fields: Fields,
    activation: GeluKind,
}

/// Reads the `config.json` beside a weight file, if there is one.
pub(super) fn read(weights: &Path, kinds: &'static [Kind]) -> Result<Option<HfConfig>> {
    let path = weights.with_file_name("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let bad = |e: serde_json::Error| Error::corrupt(&path, format!("config.json: {e}"));
    let whole: Value = serde_json::from_slice(&text).map_err(bad)?;
    let whole = backbone(&whole, kinds);
    let kind = kind_of(whole, kinds).map_err(|e| Error::corrupt(&path, e))?;
    let empty = Value::Object(Default::default());
    let part = match kind.within {
        Some(field) => whole.get(field).unwrap_or(&empty),
        None => whole,
    };
    let mut fields = Fields::deserialize(part).map_err(bad)?;
    if kind.within.is_some() {
        // The width of the projection is the whole model's; its towers repeat a default.
        let projection = whole.get("projection_dim").and_then(Value::as_u64);
        fields.projection_dim = projection.map(|width| width as usize);
    }
    let activation = activation(kind, &fields).map_err(|e| Error::corrupt(&path, e))?;
    Ok(Some(HfConfig {
        kind,
        fields,
        activation,
    }))
}

/// The part of a configuration that describes the backbone: a model built on one (Depth Anything, UperNet) keeps it
/// beside its own fields.
fn backbone<'v>(whole: &'v Value, kinds: &[Kind]) -> &'v Value {
    let own = |part: &&Value| kinds.iter().any(|kind| part["model_type"] == kind.model_type);
    let part = whole.get("backbone_config").filter(own);
    part.unwrap_or(whole)
}

/// The kind whose name a configuration has; one without a name is of the first.
fn kind_of(whole: &Value, kinds: &'static [Kind]) -> std::result::Result<&'static Kind, String> {
    let Some(found) = whole.get("model_type").and_then(Value::as_str) else {
        return kinds.first().ok_or_else(|| "model_type: no kind is known".into());
    };
    let kind = kinds.iter().find(|kind| kind.model_type == found);
    kind.ok_or_else(|| {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.model_type).collect();
        format!("model_type: expected {}, found {found}", names.join(" or "))
    })
}

/// The GELU of an MLP, by its name in transformers; a gated network has SiLU, whatever DINOv2 says.
fn activation(kind: &Kind, fields: &Fields) -> std::result::Result<GeluKind, String> {
    let found = fields.hidden_act.as_deref().unwrap_or(kind.hidden_act);
    if fields.use_gated_mlp == Some(true) {
        return match found {
            "silu" | "swish" => Ok(GeluKind::Gelu),
            _ => Err(format!(
                "hidden_act: expected silu with use_gated_mlp, found {found}"
            )),
        };
    }
    // DINOv2 has no name for queries, keys and values without a bias.
    if kind.gated == Some("use_swiglu_ffn") && fields.qkv_bias == Some(false) {
        return Err("qkv_bias: expected true, found false".into());
    }
    match found {
        "gelu" | "gelu_python" => Ok(GeluKind::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(GeluKind::GeluTanh),
        "quick_gelu" => Ok(GeluKind::QuickGelu),
        _ => Err(format!(
            "hidden_act: expected gelu, gelu_pytorch_tanh or quick_gelu, found {found}"
        )),
    }
}

impl HfConfig {
    /// Heads per block.
    pub fn num_heads(&self) -> usize {
        self.fields
            .num_attention_heads
            .unwrap_or(self.kind.num_attention_heads)
    }

    /// The GELU of an MLP.
    pub fn activation(&self) -> GeluKind {
        self.activation
    }

    fn hidden_size(&self) -> usize {
        self.fields.hidden_size.unwrap_or(self.kind.hidden_size)
    }

    fn is_gated(&self) -> bool {
        match self.kind.gated {
            Some("use_swiglu_ffn") => self.fields.use_swiglu_ffn.unwrap_or(false),
            Some(_) => self.fields.use_gated_mlp.unwrap_or(false),
            None => false,
        }
    }

    fn registers(&self) -> usize {
        match self.kind.registers {
            None => 0,
            // The field of a later kind says nothing of the first.
            Some(_) if self.kind.model_type == "dinov2" => 0,
            Some(usual) => self.fields.num_register_tokens.unwrap_or(usual),
        }
    }

    /// What tells the hidden width, and what it is.
    fn hidden(&self) -> (&'static str, usize) {
        match self.kind.hidden {
            Hidden::Width(usual) => (
                "intermediate_size",
                self.fields.intermediate_size.unwrap_or(usual),
            ),
            Hidden::Ratio(usual) => {
                let ratio = self.fields.mlp_ratio.unwrap_or(usual);
                let hidden = (self.hidden_size() as f64 * ratio) as usize;
                let hidden = match self.is_gated() {
                    true => (hidden.saturating_mul(2) / 3).next_multiple_of(8),
                    false => hidden,
                };
                ("hidden_size * mlp_ratio", hidden)
            }
        }
    }

    /// What fields of some kinds say and the tensors tell.
    fn of_some_kinds(&self, derived: &VitConfig) -> Vec<(&'static str, String, String)> {
        let fields = &self.fields;
        let said = |field: Option<bool>, usual: bool| field.unwrap_or(usual).to_string();
        match self.kind.says {
            Says::Nothing => Vec::new(),
            Says::Head => {
                let pools = matches!(derived.pool, Pool::Attention(_));
                vec![(
                    "vision_use_head",
                    said(fields.vision_use_head, true),
                    pools.to_string(),
                )]
            }
            Says::RelativePositions => {
                let of = |positions| (derived.relative_positions == Some(positions)).to_string();
                vec![
                    (
                        "use_mean_pooling",
                        said(fields.use_mean_pooling, true),
                        (derived.final_norm != FinalNorm::Tokens).to_string(),
                    ),
                    (
                        "use_relative_position_bias",
                        said(fields.use_relative_position_bias, false),
                        of(RelativePositions::EachBlock),
                    ),
                    (
                        "use_shared_relative_position_bias",
                        said(fields.use_shared_relative_position_bias, false),
                        of(RelativePositions::Shared),
                    ),
                    (
                        "use_absolute_position_embeddings",
                        said(fields.use_absolute_position_embeddings, false),
                        derived.has_position_table().to_string(),
                    ),
                ]
            }
        }
    }

    /// Fills in what the tensors do not tell.
    ///
    /// # Errors
    /// Every field that contradicts the tensors, with both values.
    pub fn complete(&self, derived: VitConfig) -> std::result::Result<VitConfig, String> {
        let (fields, kind) = (&self.fields, self.kind);
        let image_size = side(fields.image_size.as_ref(), kind.image_size);
        let (hidden_name, hidden) = self.hidden();
        let layers = fields.num_hidden_layers.unwrap_or(kind.num_hidden_layers);
        let mut pairs = vec![
            (
                "hidden_size",
                self.hidden_size().to_string(),
                derived.embed_dim.to_string(),
            ),
            ("num_hidden_layers", layers.to_string(), derived.depth.to_string()),
            ("image_size", image_size.clone(), derived.image_size.to_string()),
            (
                "patch_size",
                side(fields.patch_size.as_ref(), kind.patch_size),
                derived.patch_size.to_string(),
            ),
            (
                "num_channels",
                fields.num_channels.unwrap_or(3).to_string(),
                derived.in_channels.to_string(),
            ),
            (
                "num_register_tokens",
                self.registers().to_string(),
                derived.num_registers.to_string(),
            ),
            (hidden_name, hidden.to_string(), derived.ffn_hidden.to_string()),
        ];
        if let Some(name) = kind.gated {
            let swiglu = derived.feed_forward == FeedForwardKind::Swiglu;
            pairs.push((name, self.is_gated().to_string(), swiglu.to_string()));
        }
        if let (Some(said), Some(found)) = (fields.projection_dim, derived.projection) {
            pairs.push(("projection_dim", said.to_string(), found.to_string()));
        }
        pairs.extend(self.of_some_kinds(&derived));
        if derived.class_token != kind.class_token {
            let has = |has: bool| if has { "a class token" } else { "none" }.to_owned();
            pairs.push(("model_type", has(kind.class_token), has(derived.class_token)));
        }
        if derived.rope.is_some() {
            // Without a table of positions no tensor tells the size of the images.
            pairs.retain(|(field, ..)| *field != "image_size");
        }
        let wrong: Vec<String> = pairs
            .iter()
            .filter(|(_, said, found)| said != found)
            .map(|(field, said, found)| format!("{field}: config.json says {said}, the tensors {found}"))
            .collect();
        if !wrong.is_empty() {
            return Err(wrong.join("; "));
        }
        Ok(VitConfig {
            num_heads: self.num_heads(),
            layer_norm_eps: fields.layer_norm_eps.unwrap_or(kind.layer_norm_eps),
            layer_scale: match kind.layer_scale {
                true => Some(fields.layerscale_value.unwrap_or(1.)),
                false => derived.layer_scale,
            },
            mask_token: match kind.gated {
                // TIPSv2's has no such field.
                Some("use_swiglu_ffn") if kind.rule != PositionRule::Bilinear => {
                    fields.use_mask_token.unwrap_or(true)
                }
                _ => derived.mask_token,
            },
            position_rule: kind.rule,
            image_size: match derived.rope {
                Some(_) => rotary_side(&image_size, derived.patch_size)?,
                None => derived.image_size,
            },
            rope: derived.rope.map(|rope| RopeConfig {
                theta: fields.rope_theta.unwrap_or(rope.theta),
                ..rope
            }),
            ..derived
        })
    }
}

/// The side of the images of a network that takes any: the configuration's, cut down to whole patches.
fn rotary_side(said: &str, patch_size: usize) -> std::result::Result<usize, String> {
    let side: usize = said
        .parse()
        .map_err(|_| format!("image_size: expected the side of a square, found {said}"))?;
    Ok((side / patch_size).max(1).saturating_mul(patch_size))
}

/// The side of a square that may be given as a number or as two equal ones.
fn side(value: Option<&Value>, usual: usize) -> String {
    let Some(value) = value else {
        return usual.to_string();
    };
    match value.as_array().map(Vec::as_slice) {
        Some([height, width]) if height == width => height.to_string(),
        _ => value.to_string(),
    }
}
