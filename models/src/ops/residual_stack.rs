//! All residual branches of a network, one after the other, as one operation.
//!
//! As one operation because of what candle does between operations: for every tensor of the graph its backward pass
//! allocates zeros and adds the gradient to them, and from 65,536 elements up it does so on threads of its own, which then
//! wait for more in a busy loop and take the processor from everything else.

use std::borrow::Cow;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::backend::backend;
use super::branch_samples::{BranchSamples, Subset};
use super::cpu::{f32_slice, stored, with_f32};
use super::many_parameters::{Gradients, tie};
use super::packing::Packing;
use super::precision::Precision;
use super::residual_branch::{Branch, BranchParameters, Kept, Middle, check, check_rotary};
use super::rotary::Rotary;

const NAME: &str = "residual-stack";

/// One branch of a stack.
#[derive(Debug, Clone, Copy)]
pub struct StackedBranch<'a> {
    /// Its parameters.
    pub parameters: &'a BranchParameters,
    /// What stands between its two projections.
    pub middle: Middle,
    /// The samples it runs on; `None` is all of them, each with weight 1. With none the branch is passed by, and its
    /// parameters get no gradient.
    pub samples: Option<&'a BranchSamples>,
    /// Of attention: the angles by which the queries and keys of each token are turned, for each size of images; none where there
    /// are no rotary positions.
    pub rotary: &'a [Rotary],
}

/// How the branches of a stack compute.
#[derive(Debug, Clone, Copy)]
pub struct StackOptions {
    /// The norms' epsilon.
    pub eps: f64,
    /// On the CPU the factors of products and what stands between them are rounded to this type and all else is f32; elsewhere
    /// products, attention and activations are computed in it.
    pub compute: DType,
    /// Gradient checkpointing (Chen et al. 2016): what stands between the products of a branch is not kept for the backward
    /// pass, which computes it again from the branch's input. The gradients are the same to the bit.
    pub checkpoint: bool,
}

/// `x += gamma * contract(middle(expand(norm(x))))` for each of `branches` in turn: [B, T, D] to [B, T, D]; f32.
///
/// `x` and parameters are f32. Differentiable in `x` and all parameters.
///
/// # Errors
/// Shapes that do not fit, a sample outside of the batch or named twice, a type other than f32, a device without this
/// operation.
pub fn residual_stack(x: &Tensor, branches: &[StackedBranch], options: StackOptions) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    check_all(branches, batch, width)?;
    for branch in branches {
        check_rotary(branch.rotary, branch.middle, &[tokens], width)?;
    }
    if branches.is_empty() {
        return Ok(x.clone());
    }
    backend(x.device()).residual_stack(x, branches, options)
}

/// [`residual_stack`] by the kernels for processors, of branches that have been checked.
pub(super) fn on_cpu(x: &Tensor, branches: &[StackedBranch], options: StackOptions) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    let precision = Precision::for_compute(NAME, options.compute)?;
    let parameters: Vec<&Tensor> = branches
        .iter()
        .flat_map(|branch| branch.parameters.list())
        .collect();
    let (tied, gradients) = tie(&parameters)?;
    let layer = |branch: &StackedBranch| {
        let subset = branch
            .samples
            .map(|samples| Subset::new(samples, batch))
            .transpose()?;
        let images = subset.as_ref().map_or(batch, Subset::len);
        let all = subset.is_none();
        let branch = (images > 0)
            .then(|| {
                Branch::new(
                    branch.parameters,
                    (branch.middle, branch.rotary.first()),
                    [images, tokens, width],
                    options.eps,
                    all,
                    precision,
                )
            })
            .transpose()?;
        Ok(Layer { branch, subset })
    };
    let op = Stack {
        layers: branches.iter().map(layer).collect::<Result<_>>()?,
        sample_size: tokens * width,
        kept: (x.track_op() || tied.track_op()).then(OnceLock::new),
        checkpoint: options.checkpoint,
        gradients,
    };
    x.contiguous()?.apply_op2(&tied, op)
}

/// [`residual_stack`] of images of two sizes, whose tokens are the rows of `x` as `packing` has them: [rows, D] to [rows, D]. Samples
/// count over all images, those of the first size first.
///
/// On a GPU everything but attention runs on all rows at once, so that weights are read and their gradients made once. Elsewhere
/// one size comes after the other.
///
/// # Errors
/// As [`residual_stack`]; samples of the second size before ones of the first.
pub fn packed_residual_stack(
    x: &Tensor,
    packing: Packing,
    branches: &[StackedBranch],
    options: StackOptions,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if rows != packing.rows() {
        bail!("{NAME}: expected {} rows, found {rows}", packing.rows())
    }
    check_all(branches, packing.images(), width)?;
    for branch in branches {
        check_rotary(branch.rotary, branch.middle, &packing.tokens(), width)?;
    }
    if branches.is_empty() {
        return Ok(x.clone());
    }
    backend(x.device()).packed_residual_stack(x, packing, branches, options)
}

fn check_all(branches: &[StackedBranch], images: usize, width: usize) -> Result<()> {
    for branch in branches {
        check(branch.parameters, branch.middle, width)?;
        let samples = branch.samples.map(|samples| Subset::new(samples, images));
        samples.transpose()?;
    }
    Ok(())
}

/// A branch and the samples it runs on.
struct Layer {
    /// `None` where it runs on none.
    branch: Option<Branch>,
    subset: Option<Subset>,
}

struct Stack {
    layers: Vec<Layer>,
    /// Values of one sample, `T D`.
    sample_size: usize,
    /// What each layer's backward pass needs, if there will be one.
    kept: Option<OnceLock<Vec<Option<KeptLayer>>>>,
    checkpoint: bool,
    gradients: Gradients,
}

struct KeptLayer {
    /// What the branch ran on; `None` is the stack's own input.
    input: Option<Vec<f32>>,
    /// `None` where the backward pass computes it again.
    of_branch: Option<Kept>,
}

impl Stack {
    fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let mut kept = Vec::new();
        let mut current: Option<Vec<f32>> = None; // [B, T, D], once it differs from x
        for layer in &self.layers {
            let Some(branch) = &layer.branch else {
                kept.push(None);
                continue;
            };
            let before = current.as_deref().unwrap_or(x);
            let (input, of_branch) = match &layer.subset {
                None => {
                    let (out, of_branch) = branch.forward(before)?;
                    (current.replace(out), of_branch)
                }
                Some(subset) => {
                    let input = subset.gather(before, self.sample_size);
                    let (out, of_branch) = branch.forward(&input)?;
                    let sum = current.get_or_insert_with(|| x.to_vec());
                    subset.scatter_weighted(&out, sum, self.sample_size);
                    (Some(input), of_branch)
                }
            };
            if self.kept.is_some() {
                let of_branch = (!self.checkpoint).then_some(of_branch);
                kept.push(Some(KeptLayer { input, of_branch }));
            }
        }
        if let Some(cell) = &self.kept {
            cell.get_or_init(|| kept);
        }
        Ok(current.unwrap_or_else(|| x.to_vec()))
    }

    /// The gradients of `x` and of what stands for the parameters, whose own are left where [`Gradients`] has them.
    fn backward(
        &self,
        x: &[f32],
        tied: &Tensor,
        kept: &[Option<KeptLayer>],
        grad: &[f32],
    ) -> Result<(Vec<f32>, Option<Tensor>)> {
        let mut grad = Cow::Borrowed(grad);
        for (number, (layer, kept)) in self.layers.iter().zip(kept).enumerate().rev() {
            let (Some(branch), Some(kept)) = (&layer.branch, kept) else {
                continue;
            };
            let input = kept.input.as_deref().unwrap_or(x);
            let again;
            let of_branch = match &kept.of_branch {
                Some(of_branch) => of_branch,
                None => {
                    again = branch.between(input)?;
                    &again
                }
            };
            let gradients = match &layer.subset {
                None => {
                    let (dx, gradients) = branch.backward(input, of_branch, &grad)?;
                    grad = Cow::Owned(dx);
                    gradients
                }
                Some(subset) => {
                    let dy = subset.gather_weighted(&grad, self.sample_size);
                    let (dx, gradients) = branch.backward(input, of_branch, &dy)?;
                    subset.scatter(&dx, grad.to_mut(), self.sample_size);
                    gradients
                }
            };
            let first = number * gradients.len();
            let tensor = |values: Vec<f32>| Tensor::from_iter(values, &Device::Cpu);
            let gradients: Vec<Tensor> = gradients.into_iter().map(tensor).collect::<Result<_>>()?;
            self.gradients.leave(first, gradients.into_iter().map(Some))?;
        }
        Ok((grad.into_owned(), self.gradients.finish(tied)?))
    }
}

impl CustomOp2 for Stack {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(NAME, s1, l1)?;
        Ok(stored(self.forward(x)?, l1.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        tied: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.as_ref().and_then(OnceLock::get) else {
            bail!("{NAME}: expected a forward pass before the backward pass")
        };
        let (dx, dtied) = with_f32(NAME, [x, &grad.contiguous()?], |[x, grad]| {
            self.backward(x, tied, kept, grad)
        })??;
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), dtied))
    }
}

#[cfg(test)]
mod tests;
