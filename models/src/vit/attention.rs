//! Multi-head self-attention with one packed projection.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;

use super::VitConfig;
use super::layers::Linear;
use crate::{Result, ops};

/// Self-attention (DINOv2 `layers/attention.py`), names `qkv.*` and `proj.*`: the layers of a residual branch.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    pub(super) qkv: Linear,
    pub(super) proj: Linear,
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

    /// What stands between the two projections.
    pub(super) fn middle(&self) -> ops::Middle {
        ops::Middle::Attention { heads: self.heads }
    }

    /// What each token attends to, [B, T, D] to [B, heads, T, T].
    pub(super) fn probabilities(&self, x: &Tensor, rotary: Option<&ops::Rotary>) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let mut qkv =
            self.qkv
                .forward(x, DType::F32)?
                .reshape((batch, tokens, 3, self.heads, self.head_dim))?;
        if let Some(rotary) = rotary {
            qkv = ops::rotate(&qkv, rotary)?;
        }
        let scale = 1. / (self.head_dim as f64).sqrt();
        Ok(ops::attention_probabilities(&qkv, scale)?)
    }
}
