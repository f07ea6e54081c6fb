//! Rows scaled to unit length.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::backend::backend;
use super::cpu::{ROWS_PER_TASK, f32_slice, rows_and_width, stored, with_f32};
use super::vectors::{beside, dot, filled};

const NAME: &str = "l2-normalize";

/// `x / max(|x|, eps)` over the last dimension (PyTorch `functional.normalize`): [.., D] to [.., D]; f32.
///
/// # Errors
/// A type other than f32, a device without this operation.
pub fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    backend(x.device()).l2_normalize(x, eps)
}

/// [`l2_normalize`] by the kernels of this file.
pub(super) fn on_cpu(x: &Tensor, eps: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op1(L2Normalize { eps: eps as f32 })
}

struct L2Normalize {
    eps: f32,
}

impl CustomOp1 for L2Normalize {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = rows_and_width(NAME, layout.shape())?;
        let x = f32_slice(NAME, storage, layout)?;
        let chunk = width * ROWS_PER_TASK;
        let out = filled(
            x.len(),
            chunk,
            #[inline(always)]
            |task, out| {
                let x = beside(x, task, chunk, out.len());
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let scale = 1. / dot(x, x).sqrt().max(self.eps);
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = x * scale;
                    }
                }
            },
        );
        Ok(stored(out, layout.shape()))
    }

    /// `dx = (g - y (y . g)) / |x|`; below `eps` the length counts as constant and `dx = g / eps`.
    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = rows_and_width(NAME, x.shape())?;
        let chunk = width * ROWS_PER_TASK;
        let dx = with_f32(NAME, [x, y, &grad.contiguous()?], |[x, y, grad]| {
            filled(
                x.len(),
                chunk,
                #[inline(always)]
                |task, out| {
                    let [x, y, grad] = [x, y, grad].map(|all| beside(all, task, chunk, out.len()));
                    let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    let inputs = y.chunks_exact(width).zip(grad.chunks_exact(width));
                    for ((out, x), (y, grad)) in rows.zip(inputs) {
                        let length = dot(x, x).sqrt();
                        let along = if length > self.eps { dot(y, grad) } else { 0. };
                        let scale = 1. / length.max(self.eps);
                        for (out, (y, grad)) in out.iter_mut().zip(y.iter().zip(grad)) {
                            *out = (grad - y * along) * scale;
                        }
                    }
                },
            )
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{check, random};
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn agrees_with_the_composition() {
        for shape in [&[1, 5][..], &[3, 17], &[2, 3, 8], &[40, 3]] {
            check(&[random(1, shape)], &|x| l2_normalize(&x[0], 1e-12), &|x| {
                composed::l2_normalize(&x[0], 1e-12)
            });
        }
    }

    #[test]
    fn a_row_of_zeros_stays_finite() {
        let x = Var::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let y = l2_normalize(&x, 1e-12).unwrap();
        let grad = y.sum_all().unwrap().backward().unwrap();
        let found = grad.get(&x).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), vec![vec![0.; 3]; 2]);
        assert!(found.iter().flatten().all(|value| value.is_finite()), "{found:?}");
    }
}
