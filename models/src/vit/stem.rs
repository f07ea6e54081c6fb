//! Convolutions before the projection of patches (Xiao et al. 2021, "Early convolutions help transformers see better"): a projection
//! of whole patches has to learn from images alone what neighbouring pixels have to do with each other.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::VitConfig;
use super::layers::LayerNorm;
use crate::ops::GeluKind;
use crate::{Error, Result, ops};

/// The most convolutions of a stem.
pub const MAX_STEM: usize = 4;

/// A convolution of 3 x 3 with a border of zeros and no bias, LayerNorm over its channels, and the exact GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StemLayer {
    /// Channels it gives, at least 1.
    pub channels: usize,
    /// Step from one place to the next in pixels of its input, 1 or 2.
    pub stride: usize,
}

/// What the strides come to: a place of the last map is so many pixels wide.
pub(super) fn total_stride(layers: &[StemLayer]) -> usize {
    layers.iter().map(|layer| layer.stride).product()
}

/// Checks that `layers` lead to whole patches of `patch` pixels.
///
/// # Errors
/// Names what does not fit.
pub(super) fn validate(layers: &[StemLayer], patch: usize) -> Result<()> {
    if layers.len() > MAX_STEM {
        let reason = format!("expected at most {MAX_STEM} convolutions, found {}", layers.len());
        return Err(Error::config("stem", reason));
    }
    for (i, layer) in layers.iter().enumerate() {
        if layer.channels == 0 {
            return Err(Error::config(
                format!("stem.{i}.channels"),
                "expected at least 1, found 0",
            ));
        }
        if !(1..=2).contains(&layer.stride) {
            let reason = format!("expected 1 or 2, found {}", layer.stride);
            return Err(Error::config(format!("stem.{i}.stride"), reason));
        }
    }
    let stride = total_stride(layers);
    if !patch.is_multiple_of(stride) {
        let reason = format!("expected strides whose product divides the patch size {patch}, found {stride}");
        return Err(Error::config("stem", reason));
    }
    Ok(())
}

/// Names and shapes of its parameters, below `patch_embed.`.
pub(super) fn parameters(config: &VitConfig) -> Vec<(String, Vec<usize>)> {
    let mut list = Vec::new();
    let mut input = config.in_channels;
    for (i, layer) in config.stem.iter().enumerate() {
        let name = format!("patch_embed.stem.{i}");
        list.push((format!("{name}.conv.weight"), vec![layer.channels, input, 3, 3]));
        list.push((format!("{name}.norm.weight"), vec![layer.channels]));
        list.push((format!("{name}.norm.bias"), vec![layer.channels]));
        input = layer.channels;
    }
    list
}

/// The convolutions of a network.
#[derive(Debug, Clone)]
pub(super) struct Stem {
    layers: Vec<Layer>,
}

#[derive(Debug, Clone)]
struct Layer {
    weight: Tensor, // [O, C, 3, 3]
    norm: LayerNorm,
    stride: usize,
}

impl Stem {
    /// That of `config`, from the tensors `stem.I` below `vb`.
    pub(super) fn new(config: &VitConfig, vb: &VarBuilder) -> Result<Self> {
        let mut input = config.in_channels;
        let mut layers = Vec::with_capacity(config.stem.len());
        for (i, layer) in config.stem.iter().enumerate() {
            let vb = vb.pp("stem").pp(i);
            layers.push(Layer {
                weight: vb.get((layer.channels, input, 3, 3), "conv.weight")?,
                norm: LayerNorm::new(layer.channels, config.layer_norm_eps, vb.pp("norm"))?,
                stride: layer.stride,
            });
            input = layer.channels;
        }
        Ok(Self { layers })
    }

    /// Pixels [B, C, H, W] to the last map [B, H / s, W / s, O].
    pub(super) fn forward(&self, pixels: &Tensor, compute: DType) -> Result<Tensor> {
        let mut map = pixels.permute((0, 2, 3, 1))?.contiguous()?; // [B, H, W, C]
        for layer in &self.layers {
            map = layer.forward(&map, compute)?;
        }
        Ok(map)
    }
}

impl Layer {
    /// [B, H, W, C] to [B, H / s, W / s, O].
    fn forward(&self, map: &Tensor, compute: DType) -> Result<Tensor> {
        let windows = ops::windows(map, self.stride)?; // [B, H / s, W / s, 9 C]
        let weight = self.weight.permute((0, 2, 3, 1))?.flatten_from(1)?; // [O, 9 C]
        let product = ops::linear(&windows, &weight, None, compute)?.to_dtype(DType::F32)?;
        let normed = self.norm.forward(&product)?;
        Ok(ops::gelu_of(&normed, GeluKind::Gelu)?)
    }
}
