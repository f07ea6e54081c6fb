//! A block with what the stacks of kernels do not compute: norms within its branches (EVA-02) and a relative position bias (BEiT).
//! Composed of smaller operations, without stochastic depth: such networks are read and not trained.

use candle_core::{DType, Tensor};

use super::attention::Attention;
use super::feed_forward::FeedForward;
use super::layers::LayerNorm;
use super::relative::relative_bias;
use super::{FeedForwardKind, VitConfig};
use crate::ops::Rotary;
use crate::{Result, ops};

/// What stands within the branches of such a block.
#[derive(Debug, Clone)]
pub(super) struct Within {
    pub attention_norm: Option<LayerNorm>,
    pub ffn_norm: Option<LayerNorm>,
    /// [(2 M - 1)^2 + 3, heads].
    pub relative_table: Option<Tensor>,
}

/// The layers of such a block.
pub(super) struct ComposedBlock<'a> {
    pub config: &'a VitConfig,
    pub norms: [&'a LayerNorm; 2],
    pub attn: &'a Attention,
    pub mlp: &'a FeedForward,
    pub gammas: [&'a Tensor; 2],
    pub within: &'a Within,
    /// What products are computed in.
    pub compute: DType,
}

/// `softmax(x)` over the last axis.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let largest = x.max_keepdim(candle_core::D::Minus1)?.detach();
    let powers = x.broadcast_sub(&largest)?.exp()?;
    Ok(powers.broadcast_div(&powers.sum_keepdim(candle_core::D::Minus1)?)?)
}

impl ComposedBlock<'_> {
    /// [B, T, D] to [B, T, D], of images of this patch grid.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rotary: Option<&Rotary>,
        grid: (usize, usize),
    ) -> Result<Tensor> {
        let x = (x + self.attention(x, rotary, grid)?.broadcast_mul(self.gammas[0])?)?;
        Ok((&x + self.feed_forward(&x)?.broadcast_mul(self.gammas[1])?)?)
    }

    /// What each token attends to, [B, heads, T, T].
    pub(super) fn probabilities(
        &self,
        x: &Tensor,
        rotary: Option<&Rotary>,
        grid: (usize, usize),
    ) -> Result<Tensor> {
        self.scores(&self.queries_keys_values(x, rotary)?, grid)
    }

    /// [B, T, 3, heads, d], turned where positions are rotary.
    fn queries_keys_values(&self, x: &Tensor, rotary: Option<&Rotary>) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let normed = self.norms[0].forward(x)?;
        let qkv = self
            .attn
            .qkv
            .forward(&normed, self.compute)?
            .to_dtype(DType::F32)?;
        let qkv = qkv.reshape((batch, tokens, 3, self.config.num_heads, self.config.head_dim()))?;
        match rotary {
            Some(rotary) => Ok(ops::rotate(&qkv, rotary)?),
            None => Ok(qkv),
        }
    }

    /// The probabilities of [B, T, 3, heads, d], [B, heads, T, T].
    fn scores(&self, qkv: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
        let scale = 1. / (self.config.head_dim() as f64).sqrt();
        let Some(table) = &self.within.relative_table else {
            return Ok(ops::attention_probabilities(qkv, scale)?);
        };
        let part = |which| qkv.narrow(2, which, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let scores = (part(0)?.matmul(&part(1)?.t()?.contiguous()?)? * scale)?;
        softmax(&scores.broadcast_add(&relative_bias(table, grid)?.unsqueeze(0)?)?)
    }

    fn attention(&self, x: &Tensor, rotary: Option<&Rotary>, grid: (usize, usize)) -> Result<Tensor> {
        let qkv = self.queries_keys_values(x, rotary)?;
        let mixed = match self.within.relative_table {
            None => ops::attention(&qkv, 1. / (self.config.head_dim() as f64).sqrt())?,
            Some(_) => {
                let values = qkv.narrow(2, 2, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous()?;
                let mixed = self.scores(&qkv, grid)?.matmul(&values)?; // [B, heads, T, d]
                mixed.transpose(1, 2)?.flatten_from(2)? // [B, T, D]
            }
        };
        let mixed = match &self.within.attention_norm {
            Some(norm) => norm.forward(&mixed)?,
            None => mixed,
        };
        Ok(self
            .attn
            .proj
            .forward(&mixed, self.compute)?
            .to_dtype(DType::F32)?)
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let expanded = self
            .mlp
            .expand
            .forward(&self.norms[1].forward(x)?, self.compute)?;
        let expanded = expanded.to_dtype(DType::F32)?;
        let inner = match self.config.feed_forward {
            FeedForwardKind::Mlp => ops::gelu_of(&expanded, self.config.activation)?,
            FeedForwardKind::Swiglu => ops::swiglu(&expanded)?,
        };
        let inner = match &self.within.ffn_norm {
            Some(norm) => norm.forward(&inner)?,
            None => inner,
        };
        Ok(self
            .mlp
            .contract
            .forward(&inner, self.compute)?
            .to_dtype(DType::F32)?)
    }
}
