//! LayerNorm: a launch forward, two back.

use candle_core::{DType, Result, Tensor, bail};

use super::columns::Partials;
use super::geometry;
use super::launch::{Argument, Source, is_wide, launch, uninitialised, wide};
use super::residual::Samples;
use crate::ops::cpu::rows_and_width;
use crate::ops::node::node3;

const NAME: &str = "layer-norm";

/// [`crate::ops::layer_norm`].
pub(in crate::ops) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (_, width) = rows_and_width(NAME, x.shape())?;
    if weight.dims() != [width] || bias.dims() != [width] {
        bail!(
            "{NAME}: expected weight and bias of shape [{width}], found {:?} and {:?}",
            weight.dims(),
            bias.dims()
        )
    }
    for tensor in [x, weight, bias] {
        if tensor.dtype() != DType::F32 {
            bail!("{NAME}: expected f32, found {:?}", tensor.dtype())
        }
    }
    let gain = weight.detach().contiguous()?;
    let norm = Norm {
        weight: gain.clone(),
        bias: bias.detach().contiguous()?,
        eps: eps as f32,
    };
    let values = x.detach().contiguous()?.reshape(((), width))?;
    let (normed, statistics) = norm.forward(&values, None, DType::F32)?;
    let normed = normed.reshape(x.shape())?;
    node3(
        NAME,
        [x, weight, bias],
        normed,
        move |[x, weight, bias], _, grad| {
            let rows = grad.reshape(((), width))?;
            let dx = uninitialised(rows.shape(), DType::F32, x.device())?;
            let (dweight, dbias) = norm.backward(&values, None, &statistics, &rows, Into::Empty(&dx))?;
            let wanted = [
                weight.track_op().then_some(dweight),
                bias.track_op().then_some(dbias),
            ];
            let [dweight, dbias] = wanted;
            Ok([Some(dx.reshape(x.shape())?), dweight, dbias])
        },
    )
}

/// Gain and offset, [D] each, f32.
pub(super) struct Norm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) eps: f32,
}

/// Where the gradient of the input goes.
pub(super) enum Into<'a> {
    /// Into a tensor that is not written yet.
    Empty(&'a Tensor),
    /// Onto what is there.
    Sum(&'a Tensor),
}

impl Norm {
    /// The rows of `x`, or those of chosen samples, normalised: [rows, D] in `dtype`; and what the backward pass needs of them.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        samples: Option<&Samples>,
        dtype: DType,
    ) -> Result<(Tensor, Tensor)> {
        let width = self.weight.elem_count();
        let rows = match samples {
            Some(samples) => samples.chosen.rows(),
            None => x.elem_count() / width,
        };
        let [first_chosen, first, tokens, tokens_of_second] = Samples::places(samples, rows);
        let device = x.device();
        let parts = [Some(x), Some(&self.weight), Some(&self.bias)];
        let out = uninitialised((rows, width), dtype, device)?;
        let statistics = uninitialised((rows, 2), DType::F32, device)?;
        launch(
            device,
            Source::LayerNorm,
            &wide("layer_norm_forward", dtype, is_wide(width, &parts))?,
            &geometry::warp_rows(rows),
            &[
                Argument::Read(x),
                Argument::Optional(samples.map(|samples| &samples.kept)),
                Argument::Read(&self.weight),
                Argument::Read(&self.bias),
                Argument::Write(&out),
                Argument::Write(&statistics),
                Argument::Count(rows),
                Argument::Count(width),
                first_chosen,
                first,
                tokens,
                tokens_of_second,
                Argument::Float(self.eps),
            ],
        )?;
        Ok((out, statistics))
    }

    /// From `grad` [rows, D] of the result of [`Self::forward`]: the gradient of x in its own rows, and those of gain and offset.
    pub(super) fn backward(
        &self,
        x: &Tensor,
        samples: Option<&Samples>,
        statistics: &Tensor,
        grad: &Tensor,
        dx: Into,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, width) = grad.dims2()?;
        let Some(geometry) = geometry::norm_backward(rows, width) else {
            bail!("{NAME}: expected a width whose sums fit into 48 KiB, found {width}")
        };
        let partials = Partials::new(geometry.grid[0] as usize, 2 * width, grad)?;
        let [first_chosen, first, tokens, tokens_of_second] = Samples::places(samples, rows);
        let (Into::Empty(target) | Into::Sum(target)) = &dx;
        let parts = [Some(x), Some(&self.weight), Some(grad), Some(*target)];
        let (dx, add) = match dx {
            Into::Empty(dx) => (Argument::Write(dx), false),
            Into::Sum(dx) => (Argument::Change(dx), true),
        };
        launch(
            grad.device(),
            Source::LayerNorm,
            &wide("layer_norm_backward", grad.dtype(), is_wide(width, &parts))?,
            &geometry,
            &[
                Argument::Read(x),
                Argument::Optional(samples.map(|samples| &samples.kept)),
                Argument::Read(&self.weight),
                Argument::Read(statistics),
                Argument::Read(grad),
                dx,
                partials.argument(),
                Argument::Count(rows),
                Argument::Count(width),
                first_chosen,
                first,
                tokens,
                tokens_of_second,
                Argument::Flag(add),
            ],
        )?;
        partials.two_sums()
    }
}
