//! A pre-norm block: attention and feed-forward, each behind a LayerNorm and in front of a LayerScale.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::VitConfig;
use super::attention::Attention;
use super::feed_forward::FeedForward;
use super::layers::{LayerNorm, Linear};
use crate::Result;
use crate::ops::{BranchParameters, BranchSamples, Middle, gather_rows, residual_add, residual_branch};

/// DINOv2 `layers/block.py`: `x += ls1 attn(norm1(x)); x += ls2 mlp(norm2(x))`.
#[derive(Debug, Clone)]
pub(super) struct Block {
    norm1: LayerNorm,
    attn: Attention,
    attention: Branch,
    feed_forward: Branch,
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
        let attn = Attention::new(config, vb.pp("attn"))?;
        let norm2 = LayerNorm::new(dim, eps, vb.pp("norm2"))?;
        let mlp = FeedForward::new(config, vb.pp("mlp"))?;
        Ok(Self {
            attention: Branch::new(&norm1, &attn.qkv, attn.middle(), &attn.proj, gamma("ls1")?),
            feed_forward: Branch::new(&norm2, &mlp.expand, mlp.middle(), &mlp.contract, gamma("ls2")?),
            norm1,
            attn,
        })
    }

    /// [B, T, D] to [B, T, D]; `samples` says on which images attention and the feed-forward network run.
    pub(super) fn forward(&self, x: &Tensor, samples: [Option<&BranchSamples>; 2]) -> Result<Tensor> {
        let [attention, feed_forward] = samples;
        let x = self.attention.forward(x, attention)?;
        self.feed_forward.forward(&x, feed_forward)
    }

    /// What each token of `x` [B, T, D] attends to in this block, [B, heads, T, T].
    pub(super) fn attention_probabilities(&self, x: &Tensor) -> Result<Tensor> {
        self.attn.probabilities(&self.norm1.forward(x)?)
    }
}

/// `x + gamma contract(middle(expand(norm(x))))`.
#[derive(Debug, Clone)]
struct Branch {
    parameters: BranchParameters,
    middle: Middle,
    eps: f64,
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
        Self {
            parameters,
            middle,
            eps: norm.eps,
        }
    }

    /// The branch on the chosen images, or on all.
    fn forward(&self, x: &Tensor, samples: Option<&BranchSamples>) -> Result<Tensor> {
        let run = |x: &Tensor, add| residual_branch(x, &self.parameters, self.middle, self.eps, add);
        let Some(samples) = samples else {
            return Ok(run(x, true)?);
        };
        if samples.kept.is_empty() {
            return Ok(x.clone());
        }
        let y = run(&gather_images(x, &samples.kept)?, false)?;
        // LayerScale is in the branch already.
        let ones = Tensor::ones(y.dim(2)?, y.dtype(), y.device())?;
        Ok(residual_add(x, &y, &ones, Some(samples))?)
    }
}

/// The images `kept` of `x` [B, T, D].
fn gather_images(x: &Tensor, kept: &[u32]) -> Result<Tensor> {
    let (_, tokens, width) = x.dims3()?;
    let of_image = |&image: &u32| (0..tokens as u32).map(move |token| image * tokens as u32 + token);
    let rows: Vec<u32> = kept.iter().flat_map(of_image).collect();
    Ok(gather_rows(x, &rows)?.reshape((kept.len(), tokens, width))?)
}
