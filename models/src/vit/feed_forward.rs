//! The feed-forward network of a block.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::layers::Linear;
use super::{FeedForwardKind, VitConfig};
use crate::{Result, ops};

/// DINOv2 `layers/mlp.py` and `layers/swiglu_ffn.py`, both under the name `mlp`.
#[derive(Debug, Clone)]
pub(super) struct FeedForward {
    kind: FeedForwardKind,
    /// `fc1`, or `w12` with the gate in the first half of its outputs.
    expand: Linear,
    /// `fc2`, or `w3`.
    contract: Linear,
}

impl FeedForward {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let (dim, hidden) = (config.embed_dim, config.ffn_hidden);
        let (expand, contract, outputs) = match config.feed_forward {
            FeedForwardKind::Mlp => ("fc1", "fc2", hidden),
            FeedForwardKind::Swiglu => ("w12", "w3", 2 * hidden),
        };
        Ok(Self {
            kind: config.feed_forward,
            expand: Linear::new(dim, outputs, vb.pp(expand))?,
            contract: Linear::new(hidden, dim, vb.pp(contract))?,
        })
    }

    /// [.., D] to [.., D].
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.expand.forward(x)?;
        let hidden = match self.kind {
            FeedForwardKind::Mlp => ops::gelu(&hidden)?,
            FeedForwardKind::Swiglu => ops::swiglu(&hidden)?,
        };
        self.contract.forward(&hidden)
    }
}
