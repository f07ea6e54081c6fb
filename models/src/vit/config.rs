//! The geometry of a vision transformer, and the architectures of the paper by name.

use serde::{Deserialize, Serialize};

use super::RopeConfig;
use crate::ops::GeluKind;
use crate::{Error, Result};

/// The feed-forward network of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedForwardKind {
    /// `fc2(gelu(fc1(x)))`, GELU of [`VitConfig::activation`].
    Mlp,
    /// `w3(silu(a) * b)` with `[a; b] = w12(x)`.
    Swiglu,
}

/// How a position table is brought to another patch grid (DINOv2 `interpolate_pos_encoding` and its descendants).
///
/// All rules leave the table alone when the grid is the native one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionRule {
    /// Official checkpoints without registers, and DINO v1: bicubic (A = -0.75), no antialias, scale `(n + 0.1) / m`.
    Official,
    /// Official and Hugging Face checkpoints with registers, and timm: bicubic (A = -0.5), antialias, by size.
    Registers,
    /// Hugging Face `Dinov2Model`: bicubic (A = -0.75), no antialias, by size.
    HuggingFace,
    /// TIPS: bilinear, antialias, by size.
    Bilinear,
}

/// Which norm stands behind the blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinalNorm {
    /// One of all tokens, `norm`.
    #[default]
    Tokens,
    /// One of what is pooled, `fc_norm`; tokens are as the last block leaves them (BEiT, MAE as fine-tuned).
    Pooled,
    /// None.
    None,
}

impl FinalNorm {
    fn is_of_tokens(&self) -> bool {
        *self == Self::Tokens
    }
}

/// What stands for the image as a whole in the output `embedding`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// The class token.
    #[default]
    Class,
    /// The mean of the patch tokens.
    Mean,
    /// A learned query that attends to all tokens (SigLIP, PE-Core), `attn_pool`.
    Attention(AttentionPool),
}

impl Pool {
    fn is_class(&self) -> bool {
        *self == Self::Class
    }
}

/// Pooling by attention (Lee et al. 2019, "Set Transformer": MAP): `z = proj(attention(latent, tokens)); z + mlp(norm(z))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionPool {
    /// Its heads. Default: as many as the blocks have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Hidden width of its MLP.
    pub ffn_hidden: usize,
}

/// Where a bias by the relative position of two patches is added to the scores of attention (BEiT).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelativePositions {
    /// A table in each block, `blocks.I.attn.relative_position_bias_table`.
    EachBlock,
    /// One table of all blocks, `relative_position_bias_table`.
    Shared,
}

/// The geometry of a vision transformer (DINOv2 `DinoVisionTransformer`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Width D of every token. A multiple of `num_heads`.
    pub embed_dim: usize,
    /// Number L of blocks.
    pub depth: usize,
    /// Attention heads per block.
    pub num_heads: usize,
    /// Side P of a square patch, in pixels.
    pub patch_size: usize,
    /// Side of the square image the position table belongs to, in pixels. A multiple of `patch_size`.
    pub image_size: usize,
    /// Image channels. Default: 3.
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Register tokens R. Default: 0.
    #[serde(default)]
    pub num_registers: usize,
    /// Feed-forward kind. Default: MLP.
    #[serde(default = "mlp")]
    pub feed_forward: FeedForwardKind,
    /// Hidden width of the feed-forward network: of `fc1`'s output, or of each half of `w12`'s.
    pub ffn_hidden: usize,
    /// Initial value of LayerScale; `None` builds blocks without it (DINO v1). Default: 1e-5.
    #[serde(default = "layer_scale")]
    pub layer_scale: Option<f64>,
    /// Whether there is a mask token. Default: true.
    #[serde(default = "yes")]
    pub mask_token: bool,
    /// Epsilon of every LayerNorm. Default: 1e-6.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// How the position table follows another image size.
    pub position_rule: PositionRule,
    /// Whether a LayerNorm stands before the blocks (CLIP), `norm_pre`. Default: false.
    #[serde(default, skip_serializing_if = "is_no")]
    pub pre_norm: bool,
    /// The GELU of an MLP. Default: the exact one.
    #[serde(default, skip_serializing_if = "GeluKind::is_exact")]
    pub activation: GeluKind,
    /// Width E of the space that the normalised class token is projected to (CLIP), without a bias. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection: Option<usize>,
    /// Rotary positions (DINOv3, EVA-02, PE). Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<RopeConfig>,
    /// Whether there is a class token. Default: true.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub class_token: bool,
    /// The norm behind the blocks. Default: one of all tokens.
    #[serde(default, skip_serializing_if = "FinalNorm::is_of_tokens")]
    pub final_norm: FinalNorm,
    /// What the embedding is made of. Default: the class token.
    #[serde(default, skip_serializing_if = "Pool::is_class")]
    pub pool: Pool,
    /// Whether the projection has a bias. Default: false.
    #[serde(default, skip_serializing_if = "is_no")]
    pub projection_bias: bool,
    /// Whether a LayerNorm stands between attention and its output projection (EVA-02 of CLIP), `attn.norm`. Default: false.
    #[serde(default, skip_serializing_if = "is_no")]
    pub attention_norm: bool,
    /// Whether a LayerNorm stands between the activation and the second projection (EVA-02), `mlp.norm`. Default: false.
    #[serde(default, skip_serializing_if = "is_no")]
    pub ffn_norm: bool,
    /// Relative position bias in place of the position table (BEiT, data2vec). Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_positions: Option<RelativePositions>,
}

/// Name of a table of relative positions.
pub(crate) const RELATIVE_TABLE: &str = "relative_position_bias_table";

fn is_no(value: &bool) -> bool {
    !value
}
fn is_yes(value: &bool) -> bool {
    *value
}
fn three() -> usize {
    3
}
fn mlp() -> FeedForwardKind {
    FeedForwardKind::Mlp
}
fn layer_scale() -> Option<f64> {
    Some(1e-5)
}
fn yes() -> bool {
    true
}
fn layer_norm_eps() -> f64 {
    1e-6
}

/// Hidden width of SwiGLU for a width `embed_dim` at ratio 4: two thirds of it, rounded up to a multiple of 8.
pub fn swiglu_hidden(embed_dim: usize) -> usize {
    let two_thirds = embed_dim * 4 * 2 / 3;
    two_thirds.div_ceil(8) * 8
}

impl VitConfig {
    /// An architecture by name: `vit-{tiny|small|base|large|giant2}`, then any of `/P` (patch size, default 14),
    /// `-reg4` (or any number of registers), `-swiglu` and `-rope` (DINOv3's rotary positions in place of a table):
    /// `vit-small/14-reg4`, `vit-tiny/4`, `vit-large/16-swiglu`, `vit-base/16-reg4-rope`.
    ///
    /// # Errors
    /// An unknown name, a patch size of zero, or an `image_size` that is no multiple of the patch size.
    pub fn named(name: &str, image_size: usize) -> Result<Self> {
        let unknown = || {
            Error::config(
                "arch",
                format!(
                    "expected vit-{{tiny|small|base|large|giant2}}[/PATCH][-regN][-swiglu][-rope], found `{name}`"
                ),
            )
        };
        let mut parts = name.strip_prefix("vit-").ok_or_else(unknown)?.split('-');
        let (size, patch) = match parts.next().ok_or_else(unknown)?.split_once('/') {
            Some((size, patch)) => (size, patch.parse().map_err(|_| unknown())?),
            None => (name["vit-".len()..].split('-').next().unwrap_or_default(), 14),
        };
        let (embed_dim, depth, num_heads, mut feed_forward) = match size {
            "tiny" => (192, 12, 3, FeedForwardKind::Mlp),
            "small" => (384, 12, 6, FeedForwardKind::Mlp),
            "base" => (768, 12, 12, FeedForwardKind::Mlp),
            "large" => (1024, 24, 16, FeedForwardKind::Mlp),
            "giant2" => (1536, 40, 24, FeedForwardKind::Swiglu),
            _ => return Err(unknown()),
        };
        let (mut num_registers, mut rope) = (0, None);
        for part in parts {
            if part == "swiglu" {
                feed_forward = FeedForwardKind::Swiglu;
            } else if part == "rope" {
                rope = Some(RopeConfig::dinov3());
            } else if let Some(count) = part.strip_prefix("reg") {
                num_registers = count.parse().map_err(|_| unknown())?;
            } else {
                return Err(unknown());
            }
        }
        let config = Self {
            embed_dim,
            depth,
            num_heads,
            patch_size: patch,
            image_size,
            in_channels: 3,
            num_registers,
            feed_forward,
            ffn_hidden: match feed_forward {
                FeedForwardKind::Mlp => 4 * embed_dim,
                FeedForwardKind::Swiglu => swiglu_hidden(embed_dim),
            },
            layer_scale: layer_scale(),
            mask_token: true,
            layer_norm_eps: layer_norm_eps(),
            position_rule: if num_registers > 0 {
                PositionRule::Registers
            } else {
                PositionRule::Official
            },
            pre_norm: false,
            activation: GeluKind::Gelu,
            projection: None,
            rope,
            class_token: true,
            final_norm: FinalNorm::Tokens,
            pool: Pool::Class,
            projection_bias: false,
            attention_norm: false,
            ffn_norm: false,
            relative_positions: None,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// Names the first field that does not.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("embed_dim", self.embed_dim),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("patch_size", self.patch_size),
            ("image_size", self.image_size),
            ("in_channels", self.in_channels),
            ("ffn_hidden", self.ffn_hidden),
        ] {
            if value == 0 {
                return Err(Error::config(field, "expected at least 1, found 0"));
            }
        }
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            return Err(Error::config(
                "num_heads",
                format!(
                    "expected a divisor of the width {}, found {}",
                    self.embed_dim, self.num_heads
                ),
            ));
        }
        if !self.image_size.is_multiple_of(self.patch_size) {
            return Err(Error::config(
                "image_size",
                format!(
                    "expected a multiple of the patch size {}, found {}",
                    self.patch_size, self.image_size
                ),
            ));
        }
        if self.projection == Some(0) {
            return Err(Error::config("projection", "expected at least 1, found 0"));
        }
        self.validate_pool()?;
        self.validate_positions()
    }

    fn validate_pool(&self) -> Result<()> {
        if self.embedding_width().is_some() && self.pool == Pool::Class && !self.class_token {
            let reason = "expected mean or attention in a network without a class token, found class";
            return Err(Error::config("pool", reason));
        }
        if let Pool::Attention(pool) = self.pool {
            if pool.ffn_hidden == 0 {
                return Err(Error::config("pool.ffn_hidden", "expected at least 1, found 0"));
            }
            let heads = pool.heads.unwrap_or(self.num_heads);
            if heads == 0 || !self.embed_dim.is_multiple_of(heads) {
                let reason = format!(
                    "expected a divisor of the width {}, found {heads}",
                    self.embed_dim
                );
                return Err(Error::config("pool.heads", reason));
            }
        }
        Ok(())
    }

    fn validate_positions(&self) -> Result<()> {
        if self.relative_positions.is_some()
            && (self.num_registers > 0 || !self.class_token || self.rope.is_some())
        {
            let reason = "expected a class token and neither registers nor rotary positions beside them, found otherwise";
            return Err(Error::config("relative_positions", reason));
        }
        match self.rope {
            Some(rope) => rope.validate(self.head_dim()),
            None => Ok(()),
        }
    }

    /// Tokens before the patches: the class token, where there is one, and the registers.
    pub fn prefix(&self) -> usize {
        self.class_tokens() + self.num_registers
    }

    /// 1 with a class token, 0 without.
    pub fn class_tokens(&self) -> usize {
        usize::from(self.class_token)
    }

    /// Whether a table of positions is added to the tokens.
    pub fn has_position_table(&self) -> bool {
        match self.rope {
            Some(rope) => rope.position_table,
            None => self.relative_positions.is_none(),
        }
    }

    /// Width of the output `embedding`, where the network has one: that of the projection, or of what is pooled.
    pub fn embedding_width(&self) -> Option<usize> {
        let pools = self.pool != Pool::Class || self.final_norm == FinalNorm::Pooled;
        self.projection.or(pools.then_some(self.embed_dim))
    }

    /// The GELU of pooling by attention: the blocks' own, but exact beside the gates of SwiGLU.
    pub fn pool_activation(&self) -> GeluKind {
        match self.feed_forward {
            FeedForwardKind::Mlp => self.activation,
            FeedForwardKind::Swiglu => GeluKind::Gelu,
        }
    }

    /// Heads of the pooling by attention.
    pub fn pool_heads(&self) -> usize {
        match self.pool {
            Pool::Attention(pool) => pool.heads.unwrap_or(self.num_heads),
            _ => self.num_heads,
        }
    }

    /// Whether blocks have what stacks of kernels do not compute: norms within a branch, relative position bias.
    pub fn has_composed_blocks(&self) -> bool {
        self.attention_norm || self.ffn_norm || self.relative_positions.is_some()
    }

    /// What of the network no recipe trains, if there is anything.
    pub fn untrained_part(&self) -> Option<&'static str> {
        let parts = [
            (self.relative_positions.is_some(), "a relative position bias"),
            (self.attention_norm || self.ffn_norm, "norms within its branches"),
            (!self.class_token, "no class token"),
            (
                !self.final_norm.is_of_tokens(),
                "no norm of all tokens behind its blocks",
            ),
            (matches!(self.pool, Pool::Attention(_)), "pooling by attention"),
        ];
        parts.iter().find_map(|(has, what)| has.then_some(*what))
    }

    /// Rows of a table of relative positions: those between patches, and three of the class token.
    pub fn relative_rows(&self) -> usize {
        (2 * self.native_grid() - 1).pow(2) + 3
    }

    /// Side M of the native patch grid.
    pub fn native_grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// The patch grid `(rows, columns)` of an image.
    ///
    /// # Errors
    /// A height or width of zero or that is no multiple of the patch size.
    pub fn grid(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        for (field, side) in [("height", height), ("width", width)] {
            if side == 0 || !side.is_multiple_of(self.patch_size) {
                return Err(Error::config(
                    format!("image {field}"),
                    format!(
                        "expected a positive multiple of the patch size {}, found {side}",
                        self.patch_size
                    ),
                ));
            }
        }
        Ok((height / self.patch_size, width / self.patch_size))
    }

    /// Every parameter with its shape, under its official name (DINOv2 `state_dict`; what other networks have besides it under
    /// timm's: `norm_pre`, `fc_norm`, `attn_pool`, and `projection`), in the order of the network.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (d, h) = (self.embed_dim, self.ffn_hidden);
        let (p, c) = (self.patch_size, self.in_channels);
        let mut list: Vec<(String, Vec<usize>)> = Vec::new();
        if self.class_token {
            list.push(("cls_token".into(), vec![1, 1, d]));
        }
        if self.has_position_table() {
            let rows = self.class_tokens() + self.native_grid().pow(2);
            list.push(("pos_embed".into(), vec![1, rows, d]));
        }
        let relative = || vec![self.relative_rows(), self.num_heads];
        if self.relative_positions == Some(RelativePositions::Shared) {
            list.push((RELATIVE_TABLE.into(), relative()));
        }
        if self.num_registers > 0 {
            list.push(("register_tokens".into(), vec![1, self.num_registers, d]));
        }
        if self.mask_token {
            list.push(("mask_token".into(), vec![1, d]));
        }
        list.push(("patch_embed.proj.weight".into(), vec![d, c, p, p]));
        list.push(("patch_embed.proj.bias".into(), vec![d]));
        if self.pre_norm {
            list.push(("norm_pre.weight".into(), vec![d]));
            list.push(("norm_pre.bias".into(), vec![d]));
        }
        for i in 0..self.depth {
            let mut add = |name: &str, shape: Vec<usize>| list.push((format!("blocks.{i}.{name}"), shape));
            let mut linear = |name: &str, out: usize, input: usize| {
                add(&format!("{name}.weight"), vec![out, input]);
                add(&format!("{name}.bias"), vec![out]);
            };
            linear("attn.qkv", 3 * d, d);
            linear("attn.proj", d, d);
            match self.feed_forward {
                FeedForwardKind::Mlp => {
                    linear("mlp.fc1", h, d);
                    linear("mlp.fc2", d, h);
                }
                FeedForwardKind::Swiglu => {
                    linear("mlp.w12", 2 * h, d);
                    linear("mlp.w3", d, h);
                }
            }
            let norms = [
                ("norm1", d, true),
                ("norm2", d, true),
                ("attn.norm", d, self.attention_norm),
                ("mlp.norm", h, self.ffn_norm),
            ];
            for (norm, width, _) in norms.into_iter().filter(|(.., there)| *there) {
                add(&format!("{norm}.weight"), vec![width]);
                add(&format!("{norm}.bias"), vec![width]);
            }
            if self.relative_positions == Some(RelativePositions::EachBlock) {
                add(&format!("attn.{RELATIVE_TABLE}"), relative());
            }
            if self.layer_scale.is_some() {
                add("ls1.gamma", vec![d]);
                add("ls2.gamma", vec![d]);
            }
        }
        let norm = match self.final_norm {
            FinalNorm::Tokens => Some("norm"),
            FinalNorm::Pooled => Some("fc_norm"),
            FinalNorm::None => None,
        };
        for kind in norm
            .iter()
            .flat_map(|norm| [format!("{norm}.weight"), format!("{norm}.bias")])
        {
            list.push((kind, vec![d]));
        }
        if let Pool::Attention(pool) = self.pool {
            list.push(("attn_pool.latent".into(), vec![1, 1, d]));
            for (layer, out, input) in [
                ("qkv", 3 * d, d),
                ("proj", d, d),
                ("mlp.fc1", pool.ffn_hidden, d),
                ("mlp.fc2", d, pool.ffn_hidden),
            ] {
                list.push((format!("attn_pool.{layer}.weight"), vec![out, input]));
                list.push((format!("attn_pool.{layer}.bias"), vec![out]));
            }
            list.push(("attn_pool.norm.weight".into(), vec![d]));
            list.push(("attn_pool.norm.bias".into(), vec![d]));
        }
        if let Some(width) = self.projection {
            list.push(("projection.weight".into(), vec![width, d]));
            if self.projection_bias {
                list.push(("projection.bias".into(), vec![width]));
            }
        }
        list
    }

    /// Number of scalars in all parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_those_of_the_released_networks() {
        for (name, tensors, count) in [
            ("vit-small/14", 175, 22_056_576),
            ("vit-small/14-reg4", 176, 22_058_112),
            ("vit-base/14", 175, 86_580_480),
            ("vit-large/14", 343, 304_368_640),
            ("vit-large/14-reg4", 344, 304_372_736),
            ("vit-giant2/14", 567, 1_136_480_768),
            ("vit-giant2/14-reg4", 568, 1_136_486_912),
        ] {
            let config = VitConfig::named(name, 518).expect(name);
            assert_eq!(config.rope, None, "{name}");
            assert_eq!(config.parameters().len(), tensors, "{name}");
            assert_eq!(config.parameter_count(), count, "{name}");
        }
        let swiglu_l14 = VitConfig::named("vit-large/14-swiglu", 224).expect("a known name");
        assert_eq!(swiglu_l14.parameter_count(), 303_655_168);
        let dinov3 = VitConfig::named("vit-small/16-reg4-rope", 224).expect("a known name");
        assert_eq!(dinov3.rope, Some(RopeConfig::dinov3()));
        // As transformers counts ViT-S/16 of DINOv3, and the bias of the keys, which is 0 there: 384 in each of twelve blocks.
        assert_eq!(dinov3.parameter_count(), 21_596_544 + 12 * 384);
    }

    /// What a file of today says stays what it was, and what is new reads back.
    #[test]
    fn only_what_differs_is_written() {
        let plain = VitConfig::named("vit-small/14", 518).expect("a known name");
        let text = serde_json::to_string(&plain).expect("JSON");
        for field in ["pre_norm", "activation", "projection", "rope"] {
            assert!(!text.contains(field), "{text}");
        }
        let other = VitConfig {
            pre_norm: true,
            activation: GeluKind::QuickGelu,
            projection: Some(512),
            rope: Some(RopeConfig::dinov3()),
            ..plain.clone()
        };
        for config in [plain, other] {
            let text = serde_json::to_string(&config).expect("JSON");
            assert_eq!(
                serde_json::from_str::<VitConfig>(&text).expect("a configuration"),
                config
            );
        }
    }

    #[test]
    fn parameters_follow_the_options() {
        let plain = VitConfig::named("vit-tiny/16", 32).expect("a known name");
        let names = |config: &VitConfig| {
            config
                .parameters()
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        let clip = VitConfig {
            pre_norm: true,
            projection: Some(24),
            ..plain.clone()
        };
        let more: Vec<String> = names(&clip)
            .into_iter()
            .filter(|name| !names(&plain).contains(name))
            .collect();
        assert_eq!(more, ["norm_pre.weight", "norm_pre.bias", "projection.weight"]);
        let rope = |theta| VitConfig {
            rope: Some(RopeConfig {
                theta,
                ..RopeConfig::dinov3()
            }),
            ..plain.clone()
        };
        assert!(!names(&rope(100.)).contains(&"pos_embed".to_owned()));
        for (wrong, part) in [
            (rope(0.), "rope.theta"),
            (rope(f64::NAN), "rope.theta"),
            (
                VitConfig {
                    num_heads: 32,
                    ..rope(100.)
                },
                "multiple of 4",
            ),
            (
                VitConfig {
                    projection: Some(0),
                    ..plain.clone()
                },
                "projection",
            ),
        ] {
            let error = wrong.validate().expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn swiglu_widths_follow_the_reference_rule() {
        for (d, hidden) in [(384, 1024), (768, 2048), (1024, 2736), (1536, 4096), (48, 128)] {
            assert_eq!(swiglu_hidden(d), hidden);
        }
    }

    #[test]
    fn wrong_names_and_sizes_are_refused() {
        for (name, size) in [
            ("resnet50", 224),
            ("vit-huge/14", 224),
            ("vit-small/x", 224),
            ("vit-small/0", 224),
            ("vit-small/14-reg", 224),
            ("vit-small/14-what", 224),
            ("vit-small/14", 225),
            ("vit-small/14", 0),
        ] {
            assert!(VitConfig::named(name, size).is_err(), "{name} at {size}");
        }
    }
}
