//! The linear layer as one flat matrix product, with the bias inside it.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::backend::backend;
use super::cpu::{Matrix, f32_slice, rows_and_width, stored, sum_over_rows, with_f32};
use super::element::Element;
use super::precision::Precision;

const NAME: &str = "linear";

/// `x weight^T + bias`: `x` [.., I], `weight` [O, I], `bias` [O], result [.., O]. Differentiable in all three.
///
/// The factors of its products are rounded to `compute`, f32 or bf16. On the CPU every tensor is f32; elsewhere `x` is brought to
/// `compute` and the result is of that type. Gradients that nothing asked for (of pixels, of a frozen weight) are not computed.
///
/// # Errors
/// Shapes that do not fit, a type other than f32, a device without this operation.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, compute: DType) -> Result<Tensor> {
    outputs(weight)?;
    backend(x.device()).linear(x, weight, bias, compute)
}

/// The logits `points prototypes^T`: `points` [.., D], `prototypes` [K, D], result [.., K] of the type of the points, f32.
///
/// On the CPU the factors are rounded to `compute`; elsewhere they are what they are, since results in bf16 would be too coarse
/// for the small temperatures that logits are divided by.
///
/// # Errors
/// As [`linear`].
pub fn prototype_logits(points: &Tensor, prototypes: &Tensor, compute: DType) -> Result<Tensor> {
    outputs(prototypes)?;
    backend(points.device()).prototype_logits(points, prototypes, compute)
}

/// [`linear`] by the kernels of this file.
pub(super) fn on_cpu(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, compute: DType) -> Result<Tensor> {
    let bias = match bias {
        Some(bias) => bias.contiguous()?,
        None => Tensor::zeros(outputs(weight)?, weight.dtype(), weight.device())?,
    };
    let precision = Precision::for_compute(NAME, compute)?;
    x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias, Linear { precision })
}

/// The rows of a weight.
fn outputs(weight: &Tensor) -> Result<usize> {
    match weight.dims().first() {
        Some(&outputs) => Ok(outputs),
        None => bail!("{NAME}: expected a weight of shape [outputs, inputs], found a scalar"),
    }
}

struct Linear {
    precision: Precision,
}

impl CustomOp3 for Linear {
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
        let (_, inputs) = rows_and_width(NAME, l1.shape())?;
        let &[outputs, found] = l2.dims() else {
            bail!(
                "{NAME}: expected a weight of shape [outputs, {inputs}], found {:?}",
                l2.dims()
            )
        };
        if found != inputs || l3.dims() != [outputs] {
            bail!(
                "{NAME}: expected weight [{outputs}, {inputs}] and bias [{outputs}], found {:?} and {:?}",
                l2.dims(),
                l3.dims()
            )
        }
        let (x, weight, bias) = (
            f32_slice(NAME, s1, l1)?,
            f32_slice(NAME, s2, l2)?,
            f32_slice(NAME, s3, l3)?,
        );
        let out = forward(self.precision, x, weight, bias);
        let mut dims = l1.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = outputs;
        }
        Ok(stored(out, dims))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (rows, inputs) = rows_and_width(NAME, x.shape())?;
        let outputs = bias.elem_count();
        let wanted = [x.track_op(), weight.track_op(), bias.track_op()];
        let [dx, dw, db] = with_f32(NAME, [x, weight, &grad.contiguous()?], |[x, weight, grad]| {
            let dy = Matrix::new(grad, outputs);
            let (x, weight) = (Matrix::new(x, inputs), Matrix::new(weight, inputs));
            [
                wanted[0].then(|| self.precision.product([rows, inputs, outputs], dy, weight)),
                wanted[1].then(|| {
                    self.precision
                        .product([outputs, inputs, rows], dy.transposed(), x)
                }),
                wanted[2].then(|| column_sums(grad, rows, outputs)),
            ]
        })?;
        let tensor = |values: Option<Vec<f32>>, like: &Tensor| {
            values
                .map(|values| Tensor::from_vec(values, like.shape(), like.device()))
                .transpose()
        };
        Ok((tensor(dx, x)?, tensor(dw, weight)?, tensor(db, bias)?))
    }
}

/// `x weight^T + bias` for rows of `x` as wide as those of `weight`.
///
/// In f32, or from and to bf16 where the factors are.
pub(super) fn forward<T: Element>(precision: Precision, x: &[T], weight: &[f32], bias: &[f32]) -> Vec<T> {
    let outputs = bias.len();
    let inputs = weight.len() / outputs.max(1);
    let rows = x.len() / inputs.max(1);
    precision.product_plus_row(
        [rows, outputs, inputs],
        bias,
        Matrix::new(x, inputs),
        Matrix::new(weight, inputs).transposed(),
    )
}

/// Sums over the rows of `[rows, width]`.
pub(super) fn column_sums<T: Element>(values: &[T], rows: usize, width: usize) -> Vec<f32> {
    sum_over_rows(
        rows,
        width,
        #[inline(always)]
        |rows, partial| {
            for row in rows {
                for (sum, value) in partial.iter_mut().zip(&values[row * width..(row + 1) * width]) {
                    *sum += value.value();
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{check, check_bf16, random};
    use super::*;

    #[test]
    fn agrees_with_the_composition() {
        for (shape, outputs) in [(&[1, 3][..], 5), (&[2, 3, 7], 4), (&[35, 2], 3), (&[4, 9], 1)] {
            let inputs = *shape.last().unwrap();
            let arguments = [
                random(1, shape),
                random(2, &[outputs, inputs]),
                random(3, &[outputs]),
            ];
            check(
                &arguments,
                &|x| linear(&x[0], &x[1], Some(&x[2]), DType::F32),
                &|x| composed::linear(&x[0], &x[1], Some(&x[2])),
            );
            check(
                &arguments[..2],
                &|x| linear(&x[0], &x[1], None, DType::F32),
                &|x| composed::linear(&x[0], &x[1], None),
            );
        }
    }

    #[test]
    fn bf16_follows_f32() {
        let arguments = [random(1, &[3, 5, 70]), random(2, &[40, 70]), random(3, &[40])];
        check_bf16(&arguments, &|x, compute| {
            linear(&x[0], &x[1], Some(&x[2]), compute)
        });
        check_bf16(&arguments[..2], &|x, compute| {
            prototype_logits(&x[0], &x[1], compute)
        });
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let error = linear(&random(1, &[2, 3]), &random(2, &[5, 4]), None, DType::F32)
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected weight [5, 3]"), "{error}");
        let error = linear(&random(1, &[2, 3]), &random(2, &[5]), None, DType::F32)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("expected a weight of shape [outputs, 3]"),
            "{error}"
        );
    }
}
