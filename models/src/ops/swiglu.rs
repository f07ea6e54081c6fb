//! The gate of SwiGLU on the packed projection, so that no half of it is cut out (and zero-padded in the backward pass).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::backend::backend;
use super::cpu::{ROWS_PER_TASK, f32_slice, rows_and_width, stored, with_f32};
use super::element::Element;
use super::vectors::{beside, exp, filled};

const NAME: &str = "swiglu";

/// `silu(a) * b` for `x = [a, b]` along the last dimension: [.., 2 h] to [.., h]; f32.
///
/// # Errors
/// An odd last dimension, a type other than f32, a device without this operation.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    backend(x.device()).swiglu(x)
}

/// [`swiglu`] by the kernels of this file.
pub(super) fn on_cpu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(SwiGlu)
}

struct SwiGlu;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1. / (1. + exp(-x))
}

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = rows_and_width(NAME, layout.shape())?;
        if !width.is_multiple_of(2) {
            bail!("{NAME}: expected an even last dimension, found {width}")
        }
        let x = f32_slice(NAME, storage, layout)?;
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = width / 2;
        }
        Ok(stored(forward(x, width), dims))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = rows_and_width(NAME, x.shape())?;
        let dx = with_f32(NAME, [x, &grad.contiguous()?], |[x, grad]| {
            backward(x, width, grad)
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// The gate on rows of an even `width`.
pub(super) fn forward<T: Element>(x: &[T], width: usize) -> Vec<T> {
    let half = width / 2;
    filled(
        x.len() / 2,
        half * ROWS_PER_TASK,
        #[inline(always)]
        |task, out| {
            let x = beside(x, task, width * ROWS_PER_TASK, 2 * out.len());
            for (out, x) in out.chunks_exact_mut(half).zip(x.chunks_exact(width)) {
                let (gate, value) = x.split_at(half);
                for (out, (a, b)) in out.iter_mut().zip(gate.iter().zip(value)) {
                    let (a, b) = (a.value(), b.value());
                    *out = T::rounded(a * sigmoid(a) * b);
                }
            }
        },
    )
}

/// The gradient of rows of an even `width`.
pub(super) fn backward<T: Element>(x: &[T], width: usize, grad: &[T]) -> Vec<T> {
    let half = width / 2;
    filled(
        x.len(),
        width * ROWS_PER_TASK,
        #[inline(always)]
        |task, out| {
            let x = beside(x, task, width * ROWS_PER_TASK, out.len());
            let grad = beside(grad, task, half * ROWS_PER_TASK, out.len() / 2);
            let rows = x.chunks_exact(width).zip(grad.chunks_exact(half));
            for (out, (x, grad)) in out.chunks_exact_mut(width).zip(rows) {
                let ((gate, value), (da, db)) = (x.split_at(half), out.split_at_mut(half));
                let inputs = gate.iter().zip(value).zip(grad);
                for ((da, db), ((a, b), grad)) in da.iter_mut().zip(db).zip(inputs) {
                    let (a, b, grad) = (a.value(), b.value(), grad.value());
                    let s = sigmoid(a);
                    *da = T::rounded(grad * b * s * (1. + a * (1. - s)));
                    *db = T::rounded(grad * a * s);
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{check, random};
    use super::*;

    #[test]
    fn agrees_with_the_composition() {
        for shape in [&[1, 2][..], &[3, 14], &[2, 3, 10], &[33, 6]] {
            check(&[random(1, shape)], &|x| swiglu(&x[0]), &|x| {
                composed::swiglu(&x[0])
            });
        }
    }

    #[test]
    fn an_odd_width_is_refused() {
        let error = swiglu(&random(1, &[2, 3])).unwrap_err().to_string();
        assert!(
            error.contains("expected an even last dimension, found 3"),
            "{error}"
        );
    }
}
