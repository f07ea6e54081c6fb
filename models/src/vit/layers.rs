//! The two layers with parameters that everything is built from.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;

use crate::{Result, ops};

/// A linear layer with PyTorch's names, `weight` [O, I] and `bias` [O].
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

impl Linear {
    pub(crate) fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get((outputs, inputs), "weight")?,
            bias: vb.get(outputs, "bias")?,
        })
    }

    /// [.., I] to [.., O], computed in `compute` ([`ops::linear`]).
    pub(crate) fn forward(&self, x: &Tensor, compute: DType) -> Result<Tensor> {
        Ok(ops::linear(x, &self.weight, Some(&self.bias), compute)?)
    }
}

/// LayerNorm over the last dimension, `weight` and `bias` [D].
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get(width, "weight")?,
            bias: vb.get(width, "bias")?,
            eps,
        })
    }

    /// [.., D] to [.., D].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}
