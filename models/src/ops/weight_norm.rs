//! Weight normalisation (Salimans and Kingma 2016): directions brought to unit length and scaled by a gain.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::backend::backend;
use super::cpu::{ROWS_PER_TASK, f32_slice, rows_and_width, stored, with_f32};
use super::vectors::{beside, dot, filled, filled_with};

const NAME: &str = "weight-norm";

/// `gain * direction / |direction|` for every row (PyTorch `utils.weight_norm` over dimension 0): `directions` [K, D], `gain`
/// [K, 1], result [K, D]; f32. Differentiable in both; the gradient of a gain that nothing asked for is not computed.
///
/// # Errors
/// Shapes that do not fit, a type other than f32, a device without this operation.
pub fn weight_norm(directions: &Tensor, gain: &Tensor) -> Result<Tensor> {
    let (rows, _) = rows_and_width(NAME, directions.shape())?;
    if directions.rank() != 2 || gain.dims() != [rows, 1] {
        bail!(
            "{NAME}: expected directions [{rows}, D] and gain [{rows}, 1], found {:?} and {:?}",
            directions.dims(),
            gain.dims()
        )
    }
    backend(directions.device()).weight_norm(directions, gain)
}

/// [`weight_norm`] by the kernels of this file.
pub(super) fn on_cpu(directions: &Tensor, gain: &Tensor) -> Result<Tensor> {
    directions
        .contiguous()?
        .apply_op2(&gain.contiguous()?, WeightNorm)
}

struct WeightNorm;

impl CustomOp2 for WeightNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = rows_and_width(NAME, l1.shape())?;
        let (directions, gain) = (f32_slice(NAME, s1, l1)?, f32_slice(NAME, s2, l2)?);
        let chunk = width * ROWS_PER_TASK;
        let out = filled(
            directions.len(),
            chunk,
            #[inline(always)]
            |task, out| {
                let v = beside(directions, task, chunk, out.len());
                let gain = &gain[task * ROWS_PER_TASK..];
                for ((out, v), gain) in out.chunks_exact_mut(width).zip(v.chunks_exact(width)).zip(gain) {
                    let scale = gain / dot(v, v).sqrt();
                    for (out, v) in out.iter_mut().zip(v) {
                        *out = v * scale;
                    }
                }
            },
        );
        Ok(stored(out, l1.shape()))
    }

    /// With u the unit direction: `dgain = u . g` and `dv = gain / |v| (g - u (u . g))`.
    fn bwd(
        &self,
        directions: &Tensor,
        gain: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, width) = rows_and_width(NAME, directions.shape())?;
        let chunk = width * ROWS_PER_TASK;
        let inputs = [directions, gain, &grad.contiguous()?];
        let (dv, dgain) = with_f32(NAME, inputs, |[directions, gain, grad]| {
            filled_with(
                directions.len(),
                chunk,
                #[inline(always)]
                |task, out| {
                    let [v, grad] = [directions, grad].map(|all| beside(all, task, chunk, out.len()));
                    let gain = &gain[task * ROWS_PER_TASK..];
                    let rows = out.chunks_exact_mut(width).zip(v.chunks_exact(width));
                    let mut dgain = Vec::with_capacity(ROWS_PER_TASK);
                    for ((out, v), (grad, gain)) in rows.zip(grad.chunks_exact(width).zip(gain)) {
                        let inverse = 1. / dot(v, v).sqrt();
                        let along = dot(v, grad) * inverse;
                        let (scale, back) = (gain * inverse, along * inverse);
                        for (out, (grad, v)) in out.iter_mut().zip(grad.iter().zip(v)) {
                            *out = scale * (grad - v * back);
                        }
                        dgain.push(along);
                    }
                    dgain
                },
            )
        })?;
        let dv = Tensor::from_vec(dv, directions.shape(), directions.device())?;
        let dgain = gain
            .track_op()
            .then(|| Tensor::from_vec(dgain.concat(), gain.shape(), gain.device()))
            .transpose()?;
        Ok((Some(dv), dgain))
    }
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{check, on_threads, random, values};
    use super::*;
    use candle_core::Var;

    #[test]
    fn agrees_with_the_composition() {
        for (rows, width) in [(1, 5), (3, 17), (40, 3), (33, 8)] {
            check(
                &[random(1, &[rows, width]), random(2, &[rows, 1])],
                &|x| weight_norm(&x[0], &x[1]),
                &|x| composed::weight_norm(&x[0], &x[1]),
            );
        }
    }

    #[test]
    fn a_frozen_gain_gets_no_gradient_and_threads_change_nothing() {
        let run = || {
            let directions = Var::from_tensor(&random(1, &[70, 9])).unwrap();
            let gain = Var::from_tensor(&random(2, &[70, 1])).unwrap();
            let weight = weight_norm(&directions, &gain.detach()).unwrap();
            let loss = (&weight * random(3, &[70, 9])).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            assert!(grads.get(&gain).is_none());
            (values(&weight), values(grads.get(&directions).unwrap()))
        };
        assert_eq!(on_threads(1, run), on_threads(3, run));
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let error = weight_norm(&random(1, &[3, 4]), &random(2, &[3]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("expected directions [3, D] and gain [3, 1]"),
            "{error}"
        );
    }
}
