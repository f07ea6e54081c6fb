//! The feed-forward network of a block.

use candle_nn::VarBuilder;

use super::layers::Linear;
use super::{FeedForwardKind, GeluKind, VitConfig};
use crate::{Result, ops};

/// DINOv2 `layers/mlp.py` and `layers/swiglu_ffn.py`, both under the name `mlp`: the layers of a
/// residual branch.
#[derive(Debug, Clone)]
pub(super) struct FeedForward {
    kind: FeedForwardKind,
    activation: GeluKind,
    /// `fc1`, or `w12` with the gate in the first half of its outputs.
    pub(super) expand: Linear,
    /// `fc2`, or `w3`.
    pub(super) contract: Linear,
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
            activation: config.activation,
            expand: Linear::new(dim, outputs, vb.pp(expand))?,
            contract: Linear::new(hidden, dim, vb.pp(contract))?,
        })
    }

    /// What stands between the two projections.
    pub(super) fn middle(&self) -> ops::Middle {
        match self.kind {
            FeedForwardKind::Mlp => ops::Middle::Gelu(self.activation),
            FeedForwardKind::Swiglu => ops::Middle::SwiGlu,
        }
    }
}
