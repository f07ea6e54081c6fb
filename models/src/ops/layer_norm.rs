//! LayerNorm over the last dimension, with gradients for input, gain and offset.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::backend::backend;
use super::cpu::{ROWS_PER_TASK, added, f32_slice, rows_and_width, stored, with_f32};
use super::element::Element;
use super::vectors::{beside, dot, filled, filled_with, sum};

const NAME: &str = "layer-norm";

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension, with the biased variance.
///
/// Shapes: `x` [.., D], `weight` and `bias` [D]; f32. Differentiable in all three.
///
/// # Errors
/// Shapes that do not fit, a type other than f32, a device without this operation.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    backend(x.device()).layer_norm(x, weight, bias, eps)
}

/// [`layer_norm`] by the kernels of this file.
pub(super) fn on_cpu(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op3(
        &weight.contiguous()?,
        &bias.contiguous()?,
        LayerNorm { eps: eps as f32 },
    )
}

/// The operation and its kernels.
pub(super) struct LayerNorm {
    pub(super) eps: f32,
}

impl LayerNorm {
    /// Mean and reciprocal standard deviation of a row.
    #[inline(always)]
    fn statistics(&self, row: &[f32]) -> (f32, f32) {
        let count = row.len() as f32;
        let mean = sum(row) / count;
        let mut squares = [0f32; 8];
        let mut blocks = row.chunks_exact(8);
        for block in &mut blocks {
            for (square, value) in squares.iter_mut().zip(block) {
                *square += (value - mean) * (value - mean);
            }
        }
        let rest: f32 = blocks
            .remainder()
            .iter()
            .map(|value| (value - mean) * (value - mean))
            .sum();
        let variance = (sum(&squares) + rest) / count;
        (mean, 1. / (variance + self.eps).sqrt())
    }

    pub(super) fn forward<T: Element>(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<T> {
        let width = weight.len();
        let chunk = width * ROWS_PER_TASK;
        filled(
            x.len(),
            chunk,
            #[inline(always)]
            |task, out| {
                let x = beside(x, task, chunk, out.len());
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let (mean, rstd) = self.statistics(x);
                    for (((out, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                        *out = T::rounded((x - mean) * rstd * w + b);
                    }
                }
            },
        )
    }

    /// `dx = rstd (g - mean(g) - xhat mean(g xhat))` with `g = dy weight` and `xhat` the normalised row; and the gradients of
    /// weight and bias, one after the other: `[2 D]`. `bypass`, the gradient of a path around the norm, is added to dx.
    pub(super) fn gradients<T: Element>(
        &self,
        x: &[f32],
        weight: &[f32],
        grad: &[T],
        bypass: Option<&[f32]>,
    ) -> (Vec<f32>, Vec<f32>) {
        let width = weight.len();
        let chunk = width * ROWS_PER_TASK;
        let (dx, partials) = filled_with(
            x.len(),
            chunk,
            #[inline(always)]
            |task, out| {
                let (x, grad) = (
                    beside(x, task, chunk, out.len()),
                    beside(grad, task, chunk, out.len()),
                );
                let (mut normalised, mut partial) = (vec![0.; width], vec![0.; 2 * width]);
                let rows = x.chunks_exact(width).zip(grad.chunks_exact(width));
                for (out, (x, grad)) in out.chunks_exact_mut(width).zip(rows) {
                    self.gradients_of_row(x, weight, grad, &mut normalised, &mut partial, out);
                }
                if let Some(bypass) = bypass {
                    let bypass = beside(bypass, task, chunk, out.len());
                    for (out, value) in out.iter_mut().zip(bypass) {
                        *out += value;
                    }
                }
                partial
            },
        );
        (dx, added(2 * width, &partials))
    }

    #[inline(always)]
    fn gradients_of_row<T: Element>(
        &self,
        x: &[f32],
        weight: &[f32],
        grad: &[T],
        normalised: &mut [f32],
        partial: &mut [f32],
        out: &mut [f32],
    ) {
        let width = weight.len();
        let (mean, rstd) = self.statistics(x);
        for (hat, x) in normalised.iter_mut().zip(x) {
            *hat = (x - mean) * rstd;
        }
        let (dw, db) = partial.split_at_mut(width);
        for ((dw, db), (hat, grad)) in dw.iter_mut().zip(db).zip(normalised.iter().zip(grad)) {
            *dw += grad.value() * hat;
            *db += grad.value();
        }
        for ((out, grad), w) in out.iter_mut().zip(grad).zip(weight) {
            *out = grad.value() * w;
        }
        let along_one = sum(out) / width as f32;
        let along_hat = dot(out, normalised) / width as f32;
        for (out, hat) in out.iter_mut().zip(normalised) {
            *out = rstd * (*out - along_one - *hat * along_hat);
        }
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = rows_and_width(NAME, l1.shape())?;
        if l2.dims() != [width] || l3.dims() != [width] {
            bail!(
                "{NAME}: expected weight and bias of shape [{width}], found {:?} and {:?}",
                l2.dims(),
                l3.dims()
            )
        }
        let (x, weight, bias) = (
            f32_slice(NAME, s1, l1)?,
            f32_slice(NAME, s2, l2)?,
            f32_slice(NAME, s3, l3)?,
        );
        Ok(stored(self.forward(x, weight, bias), l1.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = weight.elem_count();
        let (dx, mut dw) = with_f32(NAME, [x, weight, &grad.contiguous()?], |[x, w, grad]| {
            self.gradients(x, w, grad, None)
        })?;
        let db = dw.split_off(width);
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(dw, weight.shape(), device)?),
            Some(Tensor::from_vec(db, bias.shape(), device)?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{check, random};
    use super::*;

    #[test]
    fn agrees_with_the_composition() {
        for shape in [&[1, 7][..], &[3, 5, 13], &[37, 8], &[2, 1, 17]] {
            let width = *shape.last().unwrap();
            let inputs = [random(1, shape), random(2, &[width]), random(3, &[width])];
            for eps in [1e-6, 1e-2] {
                check(&inputs, &|x| layer_norm(&x[0], &x[1], &x[2], eps), &|x| {
                    composed::layer_norm(&x[0], &x[1], &x[2], eps)
                });
            }
        }
    }

    #[test]
    fn views_are_followed_and_wrong_shapes_refused() {
        let x = random(4, &[5, 6]);
        let (weight, bias) = (random(5, &[5]), random(6, &[5]));
        let view = layer_norm(&x.t().unwrap(), &weight, &bias, 1e-6).unwrap();
        let copy = layer_norm(&x.t().unwrap().contiguous().unwrap(), &weight, &bias, 1e-6).unwrap();
        assert_eq!(view.to_vec2::<f32>().unwrap(), copy.to_vec2::<f32>().unwrap());
        let error = layer_norm(&x, &weight, &bias, 1e-6).unwrap_err().to_string();
        assert!(error.contains("expected weight and bias of shape [6]"), "{error}");
        let double = x.to_dtype(candle_core::DType::F64).unwrap();
        let error = layer_norm(&double, &random(7, &[6]), &random(8, &[6]), 1e-6)
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected f32"), "{error}");
    }
}
