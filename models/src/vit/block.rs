//! A pre-norm block: attention and feed-forward, each behind a LayerNorm and in front of a LayerScale.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;

use super::attention::Attention;
use super::composed_block::{ComposedBlock, Within};
use super::feed_forward::FeedForward;
use super::layers::{LayerNorm, Linear};
use super::{RELATIVE_TABLE, RelativePositions, VitConfig};
use crate::Result;
use crate::ops::{BranchParameters, BranchSamples, Middle, Rotary, StackedBranch};

/// DINOv2 `layers/block.py`: `x += ls1 attn(norm1(x)); x += ls2 mlp(norm2(x))`.
#[derive(Debug, Clone)]
pub(super) struct Block {
    norms: [LayerNorm; 2],
    attention: Attention,
    mlp: FeedForward,
    attention_branch: Branch,
    feed_forward_branch: Branch,
    /// What only some networks have.
    within: Option<Within>,
}

impl Block {
    /// `shared` is the table of relative positions that blocks have in common, if they do.
    pub(super) fn new(config: &VitConfig, shared: Option<&Tensor>, vb: VarBuilder) -> Result<Self> {
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
            within: within(config, shared, &vb)?,
            norms: [norm1, norm2],
            attention,
            mlp,
        })
    }

    /// The block in smaller operations, where it has what stacks of kernels do not compute.
    pub(super) fn composed<'a>(&'a self, config: &'a VitConfig, compute: DType) -> Option<ComposedBlock<'a>> {
        let within = self.within.as_ref()?;
        Some(ComposedBlock {
            config,
            norms: self.norms.each_ref(),
            attn: &self.attention,
            mlp: &self.mlp,
            gammas: [&self.attention_branch, &self.feed_forward_branch]
                .map(|branch| &branch.parameters.gamma),
            within,
            compute,
        })
    }

    /// Attention, its queries and keys turned where there are rotary positions, a table for each size of images, and feed-forward
    /// network; `samples` says on which images each runs.
    pub(super) fn branches<'a>(
        &'a self,
        samples: [Option<&'a BranchSamples>; 2],
        rotary: &'a [Rotary],
    ) -> [StackedBranch<'a>; 2] {
        let [attention, feed_forward] = samples;
        [
            self.attention_branch.on(attention, rotary),
            self.feed_forward_branch.on(feed_forward, &[]),
        ]
    }

    /// What each token of `x` [B, T, D] attends to in this block, [B, heads, T, T].
    pub(super) fn attention_probabilities(&self, x: &Tensor, rotary: Option<&Rotary>) -> Result<Tensor> {
        self.attention.probabilities(&self.norms[0].forward(x)?, rotary)
    }
}

/// What stands within the branches of a block of this network, if anything does.
fn within(config: &VitConfig, shared: Option<&Tensor>, vb: &VarBuilder) -> Result<Option<Within>> {
    if !config.has_composed_blocks() {
        return Ok(None);
    }
    let norm = |has: bool, width: usize, name: &str| {
        has.then(|| LayerNorm::new(width, config.layer_norm_eps, vb.pp(name)))
            .transpose()
    };
    let relative_table = match config.relative_positions {
        Some(RelativePositions::EachBlock) => {
            let shape = (config.relative_rows(), config.num_heads);
            Some(vb.pp("attn").get(shape, RELATIVE_TABLE)?)
        }
        _ => shared.cloned(),
    };
    Ok(Some(Within {
        attention_norm: norm(config.attention_norm, config.embed_dim, "attn.norm")?,
        ffn_norm: norm(config.ffn_norm, config.ffn_hidden, "mlp.norm")?,
        relative_table,
    }))
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

    fn on<'a>(&'a self, samples: Option<&'a BranchSamples>, rotary: &'a [Rotary]) -> StackedBranch<'a> {
        StackedBranch {
            parameters: &self.parameters,
            middle: self.middle,
            samples,
            rotary,
        }
    }
}
