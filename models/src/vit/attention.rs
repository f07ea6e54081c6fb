//! Multi-head self-attention with one packed projection.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::VitConfig;
use super::layers::Linear;
use crate::{Result, ops};

/// Self-attention (DINOv2 `layers/attention.py`), names `qkv.*` and `proj.*`.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
    head_dim: usize,
}

impl Attention {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let dim = config.embed_dim;
        Ok(Self {
            qkv: Linear::new(dim, 3 * dim, vb.pp("qkv"))?,
            proj: Linear::new(dim, dim, vb.pp("proj"))?,
            heads: config.num_heads,
            head_dim: config.head_dim(),
        })
    }

    /// [B, T, D] to [B, T, D].
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.proj
            .forward(&ops::attention(&self.project(x)?, self.scale())?)
    }

    /// What each token attends to, [B, T, D] to [B, heads, T, T].
    pub(super) fn probabilities(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::attention_probabilities(&self.project(x)?, self.scale())?)
    }

    /// Queries, keys and values, [B, T, 3, heads, d].
    fn project(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let qkv = self.qkv.forward(x)?;
        Ok(qkv.reshape((batch, tokens, 3, self.heads, self.head_dim))?)
    }

    fn scale(&self) -> f64 {
        1. / (self.head_dim as f64).sqrt()
    }
}
