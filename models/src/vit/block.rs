//! A pre-norm block: attention and feed-forward, each behind a LayerNorm and in front of a LayerScale.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::VitConfig;
use super::attention::Attention;
use super::feed_forward::FeedForward;
use super::layers::{LayerNorm, Linear};
use crate::Result;
use crate::ops::{BranchParameters, BranchSamples, Middle, Rotary, StackedBranch};

/// DINOv2 `layers/block.py`: `x += ls1 attn(norm1(x)); x += ls2 mlp(norm2(x))`.
#[derive(Debug, Clone)]
pub(super) struct Block {
    norm1: LayerNorm,
    attention: Attention,
    attention_branch: Branch,
    feed_forward_branch: Branch,
}

impl Block {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let (dim, eps) = (config.embed_dim, config.layer_norm_eps);
        // Without LayerScale the branches are added as they are: a constant one, which gets no gradient.
        let gamma = |name: &str| match config.layer_scale {
            Some(_) => vb.pp(name).get(dim, "gamma"),
            None => Tensor::ones(dim, vb.dtype(), vb.device()),
        };
        let norm1 = LayerNorm::new(dim, eps, vb.pp("norm1"))?;
        let attention = Attention::new(config, vb.pp("attn"))?;
        let norm2 = LayerNorm::new(dim, eps, vb.pp("norm2"))?;
        let mlp = FeedForward::new(config, vb.pp("mlp"))?;
        Ok(Self {
            attention_branch: Branch::new(
                &norm1,
                &attention.qkv,
                attention.middle(),
                &attention.proj,
                gamma("ls1")?,
            ),
            feed_forward_branch: Branch::new(&norm2, &mlp.expand, mlp.middle(), &mlp.contract, gamma("ls2")?),
            norm1,
            attention,
        })
    }

    /// Attention, its queries and keys turned where there are rotary positions, and feed-forward network; `samples` says on
    /// which images each runs.
    pub(super) fn branches<'a>(
        &'a self,
        samples: [Option<&'a BranchSamples>; 2],
        rotary: Option<&'a Rotary>,
    ) -> [StackedBranch<'a>; 2] {
        let [attention, feed_forward] = samples;
        [
            self.attention_branch.on(attention, rotary),
            self.feed_forward_branch.on(feed_forward, None),
        ]
    }

    /// What each token of `x` [B, T, D] attends to in this block, [B, heads, T, T].
    pub(super) fn attention_probabilities(&self, x: &Tensor, rotary: Option<&Rotary>) -> Result<Tensor> {
        self.attention.probabilities(&self.norm1.forward(x)?, rotary)
    }
}

/// `x + gamma contract(middle(expand(norm(x))))`.
#[derive(Debug, Clone)]
struct Branch {
    parameters: BranchParameters,
    middle: Middle,
}

impl Branch {
    fn new(norm: &LayerNorm, expand: &Linear, middle: Middle, contract: &Linear, gamma: Tensor) -> Self {
        let parameters = BranchParameters {
            norm_weight: norm.weight.clone(),
            norm_bias: norm.bias.clone(),
            expand_weight: expand.weight.clone(),
            expand_bias: expand.bias.clone(),
            contract_weight: contract.weight.clone(),
            contract_bias: contract.bias.clone(),
            gamma,
        };
        Self { parameters, middle }
    }

    fn on<'a>(&'a self, samples: Option<&'a BranchSamples>, rotary: Option<&'a Rotary>) -> StackedBranch<'a> {
        StackedBranch {
            parameters: &self.parameters,
            middle: self.middle,
            samples,
            rotary,
        }
    }
}
