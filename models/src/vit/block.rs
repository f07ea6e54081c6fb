//! A pre-norm block: attention and feed-forward, each behind a LayerNorm and in front of a LayerScale.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::VitConfig;
use super::attention::Attention;
use super::feed_forward::FeedForward;
use super::layers::LayerNorm;
use crate::Result;
use crate::ops::{BranchSamples, residual_add};

/// DINOv2 `layers/block.py`: `x += ls1 attn(norm1(x)); x += ls2 mlp(norm2(x))`.
#[derive(Debug, Clone)]
pub(super) struct Block {
    norm1: LayerNorm,
    attn: Attention,
    gamma1: Tensor,
    norm2: LayerNorm,
    mlp: FeedForward,
    gamma2: Tensor,
}

impl Block {
    pub(super) fn new(config: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let (dim, eps) = (config.embed_dim, config.layer_norm_eps);
        // Without LayerScale the branches are added as they are: a constant one, which gets no gradient.
        let gamma = |name: &str| match config.layer_scale {
            Some(_) => vb.pp(name).get(dim, "gamma"),
            None => Tensor::ones(dim, vb.dtype(), vb.device()),
        };
        Ok(Self {
            norm1: LayerNorm::new(dim, eps, vb.pp("norm1"))?,
            attn: Attention::new(config, vb.pp("attn"))?,
            gamma1: gamma("ls1")?,
            norm2: LayerNorm::new(dim, eps, vb.pp("norm2"))?,
            mlp: FeedForward::new(config, vb.pp("mlp"))?,
            gamma2: gamma("ls2")?,
        })
    }

    /// [B, T, D] to [B, T, D]; `samples` says on which images attention and the feed-forward network run.
    pub(super) fn forward(&self, x: &Tensor, samples: [Option<&BranchSamples>; 2]) -> Result<Tensor> {
        let [attention, feed_forward] = samples;
        let x = branch(x, &self.gamma1, attention, |x| {
            self.attn.forward(&self.norm1.forward(x)?)
        })?;
        branch(&x, &self.gamma2, feed_forward, |x| {
            self.mlp.forward(&self.norm2.forward(x)?)
        })
    }

    /// What each token of `x` [B, T, D] attends to in this block, [B, heads, T, T].
    pub(super) fn attention_probabilities(&self, x: &Tensor) -> Result<Tensor> {
        self.attn.probabilities(&self.norm1.forward(x)?)
    }
}

/// `x + gamma f(x)`, with `f` on the chosen images only.
fn branch(
    x: &Tensor,
    gamma: &Tensor,
    samples: Option<&BranchSamples>,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let Some(samples) = samples else {
        return Ok(residual_add(x, &f(x)?, gamma, None)?);
    };
    if samples.kept.is_empty() {
        return Ok(x.clone());
    }
    let kept = Tensor::new(samples.kept.as_slice(), x.device())?;
    let y = f(&x.index_select(&kept, 0)?)?;
    Ok(residual_add(x, &y, gamma, Some(samples))?)
}
