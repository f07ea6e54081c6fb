//! The network that is trained.

use macula_models::vit::{
    DropPathSchedule, FeedForwardKind, GeluKind, InitialWeights, PositionRule, RopeConfig, StemLayer,
    VitConfig, swiglu_hidden,
};
use serde::{Deserialize, Serialize};

use crate::Result;

/// The geometry of the trained network, without its image size. `arch = "vit-small/14"` in a recipe file stands for the
/// fields of that architecture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// Width D of every token.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub num_heads: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Register tokens. Default 0.
    #[serde(default)]
    pub num_registers: usize,
    /// `mlp` or `swiglu`. Default `mlp`.
    #[serde(default = "mlp")]
    pub feed_forward: FeedForwardKind,
    /// Hidden width of the feed-forward network; 0 for 4 D (`mlp`) or the reference's rule (`swiglu`). Default 0.
    #[serde(default)]
    pub ffn_hidden: usize,
    /// The GELU of `mlp`: `gelu` (exact), `gelu-tanh` or `quick-gelu` (CLIP's). Default `gelu`.
    #[serde(default, skip_serializing_if = "GeluKind::is_exact")]
    pub activation: GeluKind,
    /// Epsilon of every LayerNorm. Default 1e-6.
    #[serde(default = "layer_norm_eps", skip_serializing_if = "is_layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// Whether a LayerNorm stands before the blocks, as in CLIP. Default false.
    #[serde(default, skip_serializing_if = "is_no")]
    pub pre_norm: bool,
    /// How far the initial weights of blocks and positions spread: `dinov2` (0.02 everywhere) or `xavier` (by the width, and positions of
    /// the size of patches), which narrow networks start better from. Default `dinov2`.
    #[serde(default, skip_serializing_if = "InitialWeights::is_dinov2")]
    pub initial_weights: InitialWeights,
    /// Initial LayerScale; 0 builds blocks without it. Default 1e-5.
    #[serde(default = "layer_scale")]
    pub layer_scale: f64,
    /// Share of a batch that each residual branch of the student leaves out, 0 to below 1. Default 0.
    #[serde(default)]
    pub drop_path_rate: f64,
    /// Whether that share is the same in every block (`true`, DINOv2) or grows from 0 over the depth. Default true.
    #[serde(default = "super::yes")]
    pub drop_path_uniform: bool,
    /// Share of a global crop's patches that are no tokens of the student's pass, drawn anew for every crop, 0 to below 1. A
    /// student that sees half of the patches costs half, and has to say what it does not see. It needs an iBOT weight of 0.
    /// Default 0.
    #[serde(default)]
    pub patch_drop_rate: f64,
    /// Rotary positions in place of a position table, as in DINOv3: `theta` is the base of their periods, 100 unless it is set. They
    /// need heads of a multiple of 4, and a `patch_drop_rate` of 0. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<RopeConfig>,
    /// Convolutions of 3 x 3 before the projection of patches, each with its `channels` and its `stride` (1 or 2), at most 4, whose
    /// strides divide the patch size: what neighbouring pixels have to do with each other need not be learnt for each place in a patch
    /// (Xiao et al. 2021). Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stem: Vec<StemLayer>,
}

fn mlp() -> FeedForwardKind {
    FeedForwardKind::Mlp
}
fn layer_scale() -> f64 {
    1e-5
}
fn layer_norm_eps() -> f64 {
    1e-6
}
fn is_layer_norm_eps(eps: &f64) -> bool {
    *eps == layer_norm_eps()
}
fn is_no(value: &bool) -> bool {
    !value
}

impl BackboneConfig {
    /// The network for images of `image_size` pixels and `in_channels` channels, with a mask token where patches are `masked`.
    ///
    /// # Errors
    /// Numbers that do not fit together, named as in the file.
    pub fn vit(&self, image_size: usize, in_channels: usize, masked: bool) -> Result<VitConfig> {
        let config = VitConfig {
            pre_norm: self.pre_norm,
            activation: self.activation,
            projection: None,
            rope: self.rope,
            class_token: true,
            final_norm: Default::default(),
            pool: Default::default(),
            projection_bias: false,
            attention_norm: false,
            ffn_norm: false,
            relative_positions: None,
            stem: self.stem.clone(),
            embed_dim: self.embed_dim,
            depth: self.depth,
            num_heads: self.num_heads,
            patch_size: self.patch_size,
            image_size,
            in_channels,
            num_registers: self.num_registers,
            feed_forward: self.feed_forward,
            ffn_hidden: match (self.ffn_hidden, self.feed_forward) {
                (0, FeedForwardKind::Mlp) => 4 * self.embed_dim,
                (0, FeedForwardKind::Swiglu) => swiglu_hidden(self.embed_dim),
                (width, _) => width,
            },
            layer_scale: (self.layer_scale > 0.).then_some(self.layer_scale),
            mask_token: masked,
            layer_norm_eps: self.layer_norm_eps,
            position_rule: if self.num_registers > 0 {
                PositionRule::Registers
            } else {
                PositionRule::Official
            },
        };
        config.validate()?;
        Ok(config)
    }

    /// How the stochastic depth follows the blocks.
    pub fn drop_path_schedule(&self) -> DropPathSchedule {
        if self.drop_path_uniform {
            DropPathSchedule::Uniform
        } else {
            DropPathSchedule::Linear
        }
    }
}
