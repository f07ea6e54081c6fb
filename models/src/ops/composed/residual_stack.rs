//! The residual branches of a network, operation by operation.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::super::{BranchSamples, Middle, Packing, StackOptions, StackedBranch};
use super::{attention, gelu, layer_norm, linear, rotate, swiglu};

/// [`super::super::residual_stack`]: sums and norms in the type of `x`, everything between them in `compute`. Checkpointing is
/// left aside.
pub(in crate::ops) fn residual_stack(
    x: &Tensor,
    branches: &[StackedBranch],
    options: StackOptions,
) -> Result<Tensor> {
    let mut x = x.clone();
    for branch in branches {
        x = match branch.samples {
            None => (&x + added(&x, branch, options)?)?,
            Some(samples) if samples.kept.is_empty() => x,
            Some(samples) => on_samples(&x, branch, samples, options)?,
        };
    }
    Ok(x)
}

/// [`super::super::packed_residual_stack`] of a `stack` for each size of images, one after the other.
pub(in crate::ops) fn packed_residual_stack(
    x: &Tensor,
    packing: Packing,
    branches: &[StackedBranch],
    stack: impl Fn(&Tensor, &[StackedBranch]) -> Result<Tensor>,
) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    let apart: Vec<Option<[BranchSamples; 2]>> = branches
        .iter()
        .map(|branch| branch.samples.map(|samples| packing.apart(samples)).transpose())
        .collect::<Result<_>>()?;
    let of_size = |size: usize, images: usize, tokens: usize, rows: Range<usize>| {
        let x = x
            .narrow(0, rows.start, rows.len())?
            .reshape((images, tokens, width))?;
        let branches: Vec<StackedBranch> = branches
            .iter()
            .zip(&apart)
            .map(|(branch, apart)| StackedBranch {
                samples: apart.as_ref().map(|apart| &apart[size]),
                rotary: branch.rotary.get(size..=size).unwrap_or_default(),
                ..*branch
            })
            .collect();
        stack(&x, &branches)?.reshape(((), width))
    };
    let sizes = packing
        .sizes()
        .map(|(size, images, tokens, rows)| of_size(size, images, tokens, rows));
    Tensor::cat(&sizes.collect::<Result<Vec<_>>>()?, 0)
}

/// The branch on some samples of the batch, added back with their factors.
fn on_samples(
    x: &Tensor,
    branch: &StackedBranch,
    samples: &BranchSamples,
    options: StackOptions,
) -> Result<Tensor> {
    let kept = Tensor::new(samples.kept.as_slice(), x.device())?;
    let chosen = x.index_select(&kept, 0)?;
    let factors = Tensor::new(samples.factors.as_slice(), x.device())?
        .to_dtype(x.dtype())?
        .reshape(((), 1, 1))?;
    let added = added(&chosen, branch, options)?.broadcast_mul(&factors)?;
    x.index_add(&kept, &added, 0)
}

/// `gamma * contract(middle(expand(norm(x))))`, in the type of `x` again.
fn added(x: &Tensor, branch: &StackedBranch, options: StackOptions) -> Result<Tensor> {
    let p = branch.parameters;
    let (batch, tokens, width) = x.dims3()?;
    let compute = match x.dtype() {
        DType::F64 => DType::F64,
        _ => options.compute,
    };
    let normed = layer_norm(x, &p.norm_weight, &p.norm_bias, options.eps)?.to_dtype(compute)?;
    let expanded = linear(&normed, &p.expand_weight, Some(&p.expand_bias))?;
    let inner = match branch.middle {
        Middle::Gelu(kind) => gelu(&expanded, kind)?,
        Middle::SwiGlu => swiglu(&expanded)?,
        Middle::Attention { heads } => {
            let mut qkv = expanded.reshape((batch, tokens, 3, heads, width / heads))?;
            if let Some(rotary) = branch.rotary.first() {
                qkv = rotate(&qkv, rotary)?;
            }
            attention(&qkv, 1. / ((width / heads) as f64).sqrt())?
        }
    };
    linear(&inner, &p.contract_weight, Some(&p.contract_bias))?
        .to_dtype(x.dtype())?
        .broadcast_mul(&p.gamma)
}
