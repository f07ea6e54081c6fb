//! GELU and the gate of SwiGLU, with the bias before them: a launch forward, one back, one for the sums of the bias.

use candle_core::{D, Result, Tensor, bail};

use super::columns::Partials;
use super::geometry::Chunked;
use super::launch::{Argument, Source, is_wide, launch, strips, uninitialised};
use crate::ops::GeluKind;
use crate::ops::cpu::rows_and_width;
use crate::ops::node::node1;

/// [`crate::ops::gelu_of`], of f32 or bf16.
pub(in crate::ops) fn gelu(x: &Tensor, kind: GeluKind) -> Result<Tensor> {
    alone(x, Activation::Gelu(kind))
}

/// [`crate::ops::swiglu`], of f32 or bf16.
pub(in crate::ops) fn swiglu(x: &Tensor) -> Result<Tensor> {
    alone(x, Activation::SwiGlu)
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Activation {
    Gelu(GeluKind),
    SwiGlu,
}

/// The activation without a bias, as an operation of its own.
fn alone(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let (_, width) = rows_and_width(activation.name(), x.shape())?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = activation.inner(width)?;
    }
    let values = x.detach().contiguous()?.reshape(((), width))?;
    let out = activation.forward(&values, None)?.reshape(shape)?;
    node1(activation.name(), x, out, move |[x], _, grad| {
        let grad = grad.reshape(((), grad.dim(D::Minus1)?))?;
        let (dx, _) = activation.backward(&values, None, &grad)?;
        Ok([Some(dx.reshape(x.shape())?)])
    })
}

impl Activation {
    fn name(self) -> &'static str {
        match self {
            Self::Gelu(GeluKind::Gelu) => "gelu",
            Self::Gelu(GeluKind::GeluTanh) => "gelu_tanh",
            Self::Gelu(GeluKind::QuickGelu) => "quick_gelu",
            Self::SwiGlu => "swiglu",
        }
    }

    /// The width behind `width` columns.
    fn inner(self, width: usize) -> Result<usize> {
        match self {
            Self::Gelu(_) => Ok(width),
            Self::SwiGlu if width.is_multiple_of(2) => Ok(width / 2),
            Self::SwiGlu => bail!("swiglu: expected an even last dimension, found {width}"),
        }
    }

    /// Of `x` [rows, E] plus `bias` [E]: [rows, I].
    pub(super) fn forward(self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let inner = self.inner(width)?;
        let chunked = Chunked::new(rows, inner, is_wide(inner, &[Some(x), bias]));
        let out = uninitialised((rows, inner), x.dtype(), x.device())?;
        launch(
            x.device(),
            Source::Activation,
            &strips(&format!("{}_forward", self.name()), x.dtype(), &chunked)?,
            &chunked.launch,
            &[
                Argument::Read(x),
                Argument::Optional(bias),
                Argument::Write(&out),
                Argument::Count(rows),
                Argument::Count(inner),
                Argument::Count(chunked.chunk_rows),
                Argument::Count(chunked.across),
            ],
        )?;
        Ok(out)
    }

    /// The gradient of `x` from `grad` [rows, I], and that of the bias where there is one.
    pub(super) fn backward(
        self,
        x: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (rows, width) = x.dims2()?;
        let inner = self.inner(width)?;
        let chunked = Chunked::with_sums(rows, inner, is_wide(inner, &[Some(x), bias, Some(grad)]));
        let dx = uninitialised((rows, width), x.dtype(), x.device())?;
        let partials = bias
            .map(|_| Partials::new(chunked.chunks, width, x))
            .transpose()?;
        launch(
            x.device(),
            Source::Activation,
            &strips(&format!("{}_backward", self.name()), x.dtype(), &chunked)?,
            &chunked.launch,
            &[
                Argument::Read(x),
                Argument::Optional(bias),
                Argument::Read(grad),
                Argument::Write(&dx),
                Partials::optional(&partials),
                Argument::Count(rows),
                Argument::Count(inner),
                Argument::Count(chunked.chunk_rows),
                Argument::Count(chunked.across),
            ],
        )?;
        let sums = partials.map(|partials| partials.sums()).transpose()?;
        Ok((dx, sums))
    }
}
