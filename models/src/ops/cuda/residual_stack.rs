//! All residual branches of a network as one operation: a branch is a norm, two products, a launch or two between them and one
//! launch that adds it to the stream. As one operation because candle's backward pass adds every gradient between two operations
//! to zeros.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use super::activation::Activation;
use super::attention::{self, Attention};
use super::columns::column_sums;
use super::launch::uninitialised;
use super::layer_norm::{Into, Norm};
use super::residual::{Residual, Samples};
use super::rotary::{Angles, Uploaded};
use crate::ops::many_parameters::tie;
use crate::ops::node::node2;
use crate::ops::{Middle, Packing, StackOptions, StackedBranch};

const NAME: &str = "residual-stack";

/// [`crate::ops::residual_stack`] of branches that have been checked, on `x` [.., D] with images as `packing` has them.
pub(in crate::ops) fn residual_stack(
    x: &Tensor,
    packing: Packing,
    branches: &[StackedBranch],
    options: StackOptions,
) -> Result<Tensor> {
    let parameters: Vec<&Tensor> = branches
        .iter()
        .flat_map(|branch| branch.parameters.list())
        .collect();
    if let Some(other) = parameters
        .iter()
        .chain([&x])
        .find(|tensor| tensor.dtype() != DType::F32)
    {
        bail!("{NAME}: expected f32, found {:?}", other.dtype())
    }
    let (tied, gradients) = tie(&parameters)?;
    let keep = x.track_op() || tied.track_op();
    let sets: Vec<_> = branches.iter().map(|branch| branch.samples).collect();
    let samples = Samples::new(&sets, packing, x.device())?;
    let mut sum = x.detach().contiguous()?;
    let mut layers = Vec::with_capacity(branches.len());
    let mut uploaded = Uploaded::default();
    for (branch, samples) in branches.iter().zip(samples) {
        if samples
            .as_ref()
            .is_some_and(|samples| samples.kept.elem_count() == 0)
        {
            layers.push(None);
            continue;
        }
        let angles = uploaded.get(branch.rotary, x.device())?;
        let branch = Branch::new(branch, &angles, samples, packing, options)?;
        let kept = branch.between(&sum)?;
        let out = branch.add(&sum, &kept)?;
        let input = std::mem::replace(&mut sum, out);
        let kept = (!options.checkpoint).then_some(kept);
        layers.push(keep.then_some(Layer { branch, input, kept }));
    }
    if branches
        .iter()
        .all(|branch| branch.samples.is_some_and(|samples| samples.kept.is_empty()))
    {
        return Ok(x.clone());
    }
    node2(NAME, [x, &tied], sum, move |[_, tied], _, grad| {
        let dx = grad.copy()?;
        let mut of_parameters = Vec::with_capacity(layers.len());
        for layer in layers.iter().rev() {
            of_parameters.push(match layer {
                Some(layer) => Some(layer.gradients(&dx)?),
                None => None,
            });
        }
        let in_order = of_parameters
            .into_iter()
            .rev()
            .flat_map(|gradients| match gradients {
                Some(gradients) => gradients.map(Some),
                None => [const { None }; 7],
            });
        let dtied = gradients.set(in_order, tied)?;
        Ok([Some(dx), dtied])
    })
}

/// A branch that ran, and what its backward pass needs.
struct Layer {
    branch: Branch,
    input: Tensor, // [.., D]
    /// `None` where the backward pass computes it again.
    kept: Option<Kept>,
}

impl Layer {
    /// As [`Branch::backward`].
    fn gradients(&self, grad: &Tensor) -> Result<[Tensor; 7]> {
        match &self.kept {
            Some(kept) => self.branch.backward(&self.input, kept, grad),
            None => self
                .branch
                .backward(&self.input, &self.branch.between(&self.input)?, grad),
        }
    }
}

/// One branch with its weights at hand in the type of its products.
struct Branch {
    norm: Norm,
    expand: Tensor, // [E, D]
    expand_bias: Tensor,
    middle: FusedMiddle,
    contract: Tensor, // [D, I]
    residual: Residual,
    samples: Option<Samples>,
}

enum FusedMiddle {
    /// For every size of images.
    Attention(Vec<OfSize>),
    Activation(Activation),
}

/// The attention of images of one size.
struct OfSize {
    rows: Range<usize>,
    attention: Attention,
    /// Of rotary positions.
    angles: Option<Angles>,
}

/// Values of the forward pass that the backward pass needs again.
struct Kept {
    normed: Tensor,     // [rows, D]
    statistics: Tensor, // [rows, 2]
    /// The first projection without its bias, [rows, E]; with it and turned where there are rotary positions.
    expanded: Tensor,
    inner: Tensor, // [rows, I]
    /// Of attention, for every size of images.
    attention: Vec<attention::Kept>,
    /// The second projection without its bias, [rows, D].
    contracted: Tensor,
}

impl OfSize {
    /// What attention has to add to the projection: nothing where that was turned, bias and all.
    fn bias<'a>(&self, bias: Option<&'a Tensor>) -> Option<&'a Tensor> {
        bias.filter(|_| self.angles.is_none())
    }
}

impl Branch {
    fn new(
        branch: &StackedBranch,
        angles: &[Angles],
        samples: Option<Samples>,
        packing: Packing,
        options: StackOptions,
    ) -> Result<Self> {
        let parameters = branch.parameters;
        let values = |tensor: &Tensor| tensor.detach().contiguous();
        let weight = |tensor: &Tensor| values(tensor)?.to_dtype(options.compute);
        Ok(Self {
            norm: Norm {
                weight: values(&parameters.norm_weight)?,
                bias: values(&parameters.norm_bias)?,
                eps: options.eps as f32,
            },
            expand: weight(&parameters.expand_weight)?,
            expand_bias: values(&parameters.expand_bias)?,
            middle: match branch.middle {
                Middle::Attention { heads } => {
                    let width = parameters.gamma.elem_count();
                    let of_branch = samples.as_ref().map_or(packing, |samples| samples.chosen);
                    let attention = |(size, images, tokens, rows): (usize, usize, usize, Range<usize>)| {
                        Ok(OfSize {
                            rows,
                            attention: Attention::new([images, tokens, width], heads)?,
                            angles: angles.get(size).cloned(),
                        })
                    };
                    FusedMiddle::Attention(of_branch.sizes().map(attention).collect::<Result<_>>()?)
                }
                Middle::Gelu(kind) => FusedMiddle::Activation(Activation::Gelu(kind)),
                Middle::SwiGlu => FusedMiddle::Activation(Activation::SwiGlu),
            },
            contract: weight(&parameters.contract_weight)?,
            residual: Residual {
                bias: values(&parameters.contract_bias)?,
                gamma: values(&parameters.gamma)?,
            },
            samples,
        })
    }

    /// What of the branch on `x` [.., D] its sum and its gradient need.
    fn between(&self, x: &Tensor) -> Result<Kept> {
        let dtype = self.expand.dtype();
        let (normed, statistics) = self.norm.forward(x, self.samples.as_ref(), dtype)?;
        let expanded = normed.matmul(&self.expand.t()?)?;
        let bias = Some(&self.expand_bias);
        let mut kept_of_attention = Vec::new();
        let inner = match &self.middle {
            FusedMiddle::Attention(sizes) => {
                let inner = uninitialised(normed.shape(), dtype, normed.device())?; // [rows, D]
                for of_size in sizes {
                    let qkv = rows_of(&expanded, &of_size.rows)?;
                    let inner = rows_of(&inner, &of_size.rows)?;
                    if let Some(angles) = &of_size.angles {
                        angles.turn(&qkv, bias)?;
                    }
                    let kept = of_size.attention.forward(&qkv, of_size.bias(bias), &inner)?;
                    kept_of_attention.push(kept);
                }
                inner
            }
            FusedMiddle::Activation(activation) => activation.forward(&expanded, bias)?,
        };
        let contracted = inner.matmul(&self.contract.t()?)?;
        Ok(Kept {
            normed,
            statistics,
            expanded,
            inner,
            attention: kept_of_attention,
            contracted,
        })
    }

    /// `x` [.., D] with the branch added.
    fn add(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        self.residual.forward(x, &kept.contracted, self.samples.as_ref())
    }

    /// Turns `grad` [.., D] of the sum into that of `x`; the gradients of the parameters in their order.
    fn backward(&self, x: &Tensor, kept: &Kept, grad: &Tensor) -> Result<[Tensor; 7]> {
        let samples = self.samples.as_ref();
        let (dcontracted, dgamma, dcontract_bias) =
            self.residual.backward(grad, &kept.contracted, samples)?;
        let dcontract = dcontracted.t()?.matmul(&kept.inner)?;
        let dinner = dcontracted.matmul(&self.contract)?;
        let bias = Some(&self.expand_bias);
        let (dexpanded, sums) = match &self.middle {
            FusedMiddle::Attention(sizes) => {
                let expanded = &kept.expanded;
                let dexpanded = uninitialised(expanded.shape(), expanded.dtype(), expanded.device())?;
                for (of_size, kept_of_size) in sizes.iter().zip(&kept.attention) {
                    let rows = &of_size.rows;
                    let (qkv, dqkv) = (rows_of(expanded, rows)?, rows_of(&dexpanded, rows)?);
                    let (inner, dinner) = (rows_of(&kept.inner, rows)?, rows_of(&dinner, rows)?);
                    let bias = of_size.bias(bias);
                    of_size
                        .attention
                        .backward(&qkv, bias, &inner, kept_of_size, &dinner, &dqkv)?;
                    if let Some(angles) = &of_size.angles {
                        angles.turn_back(&dqkv)?;
                    }
                }
                (dexpanded, None)
            }
            FusedMiddle::Activation(activation) => activation.backward(&kept.expanded, bias, &dinner)?,
        };
        let dexpand_bias = match sums {
            Some(sums) => sums,
            None => column_sums(&dexpanded)?,
        };
        let dexpand = dexpanded.t()?.matmul(&kept.normed)?;
        let dnormed = dexpanded.matmul(&self.expand)?;
        let (dnorm_weight, dnorm_bias) =
            self.norm
                .backward(x, samples, &kept.statistics, &dnormed, Into::Sum(grad))?;
        Ok([
            dnorm_weight,
            dnorm_bias,
            dexpand.to_dtype(DType::F32)?,
            dexpand_bias,
            dcontract.to_dtype(DType::F32)?,
            dcontract_bias,
            dgamma,
        ])
    }
}

/// Some rows of a tensor of rows.
fn rows_of(tensor: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    tensor.narrow(0, rows.start, rows.len())
}
