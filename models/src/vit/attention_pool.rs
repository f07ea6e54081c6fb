//! Pooling by attention: a learned query that looks at all tokens.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;

use super::layers::{LayerNorm, Linear};
use super::{GeluKind, VitConfig};
use crate::{Result, ops};

/// timm `AttentionPoolLatent` and SigLIP's `MultiheadAttentionPoolingHead`, names `latent` [1, 1, D], `qkv`, `proj`, `norm`,
/// `mlp.fc1`, `mlp.fc2`. Composed of candle's own operations, in f32: it is one query an image.
#[derive(Debug, Clone)]
pub(super) struct AttentionPooling {
    latent: Tensor,
    qkv: Linear,
    proj: Linear,
    norm: LayerNorm,
    expand: Linear,
    contract: Linear,
    activation: GeluKind,
    heads: usize,
}

impl AttentionPooling {
    pub(super) fn new(config: &VitConfig, ffn_hidden: usize, vb: VarBuilder) -> Result<Self> {
        let dim = config.embed_dim;
        Ok(Self {
            latent: vb.get((1, 1, dim), "latent")?,
            qkv: Linear::new(dim, 3 * dim, vb.pp("qkv"))?,
            proj: Linear::new(dim, dim, vb.pp("proj"))?,
            norm: LayerNorm::new(dim, config.layer_norm_eps, vb.pp("norm"))?,
            expand: Linear::new(dim, ffn_hidden, vb.pp("mlp.fc1"))?,
            contract: Linear::new(ffn_hidden, dim, vb.pp("mlp.fc2"))?,
            activation: config.pool_activation(),
            heads: config.pool_heads(),
        })
    }

    /// [B, T, D] to [B, D].
    pub(super) fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, count, dim) = tokens.dims3()?;
        let (heads, width) = (self.heads, dim / self.heads);
        let part = |x: &Tensor, first: usize, parts: usize| {
            let weight = self.qkv.weight.narrow(0, first * dim, parts * dim)?;
            let bias = self.qkv.bias.narrow(0, first * dim, parts * dim)?;
            ops::linear(x, &weight.contiguous()?, Some(&bias.contiguous()?), DType::F32)
        };
        let query = part(&self.latent, 0, 1)?.reshape((1, heads, 1, width))?;
        let both = part(tokens, 1, 2)?.reshape((batch, count, 2, heads, width))?;
        let [keys, values] = [0, 1].map(|which| both.narrow(2, which, 1)?.squeeze(2)?.transpose(1, 2));
        let scale = 1. / (width as f64).sqrt();
        let scores = (keys?.broadcast_mul(&query)?.sum(3)? * scale)?; // [B, heads, T]
        let largest = scores.max_keepdim(2)?.detach();
        let weights = scores.broadcast_sub(&largest)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(2)?)?;
        let mixed = values?.broadcast_mul(&weights.unsqueeze(3)?)?.sum(2)?; // [B, heads, width]
        let pooled = self.proj.forward(&mixed.reshape((batch, dim))?, DType::F32)?;
        let hidden = self.expand.forward(&self.norm.forward(&pooled)?, DType::F32)?;
        let hidden = ops::gelu_of(&hidden, self.activation)?;
        Ok((&pooled + self.contract.forward(&hidden, DType::F32)?)?)
    }
}
