//! GELU in its exact (erf) form, `x Phi(x)`.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::composed::{self, is_composed, is_fused};
use super::cpu::{ELEMENTS_PER_TASK, f32_slice, stored, with_f32};
use super::cuda;
use super::element::Element;
use super::vectors::{beside, exp, filled};

const NAME: &str = "gelu";

/// `x Phi(x)` elementwise, with `Phi` the normal distribution function (not the tanh approximation).
///
/// Any shape; f32. `Phi` is within 4e-7 of the exact one.
///
/// # Errors
/// A type other than f32, a device without this operation.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if is_composed(x.device()) {
        return composed::gelu(x);
    }
    if is_fused(x.device()) {
        return cuda::gelu(x);
    }
    x.contiguous()?.apply_op1(Gelu)
}

struct Gelu;

/// Distribution function and density of the standard normal at `x`.
///
/// The error function is Abramowitz & Stegun 7.1.26 (absolute error 1.5e-7); its exponential is the density's as well.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    let e = exp(-0.5 * x * x);
    let t = 1. / (1. + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let mut p = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p * t + coefficient;
    }
    let tail = 0.5 * p * t * e;
    (if x < 0. { tail } else { 1. - tail }, INV_SQRT_2PI * e)
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(NAME, storage, layout)?;
        Ok(stored(forward(x), layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_f32(NAME, [x, &grad.contiguous()?], |[x, grad]| backward(x, grad))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// GELU of every value.
pub(super) fn forward<T: Element>(x: &[T]) -> Vec<T> {
    filled(
        x.len(),
        ELEMENTS_PER_TASK,
        #[inline(always)]
        |task, out| {
            let x = beside(x, task, ELEMENTS_PER_TASK, out.len());
            for (out, x) in out.iter_mut().zip(x) {
                let x = x.value();
                *out = T::of(x * normal(x).0);
            }
        },
    )
}

/// `grad` times the derivative at `x`.
pub(super) fn backward<T: Element>(x: &[T], grad: &[T]) -> Vec<T> {
    filled(
        x.len(),
        ELEMENTS_PER_TASK,
        #[inline(always)]
        |task, out| {
            let [x, grad] = [x, grad].map(|all| beside(all, task, ELEMENTS_PER_TASK, out.len()));
            for (out, (x, grad)) in out.iter_mut().zip(x.iter().zip(grad)) {
                let x = x.value();
                let (distribution, density) = normal(x);
                *out = T::of(grad.value() * (distribution + x * density));
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, check, random, values};
    use super::*;
    use candle_core::Device;

    #[test]
    fn agrees_with_the_composition() {
        for shape in [&[1][..], &[3, 7], &[2, 3, 5]] {
            check(&[random(1, shape)], &|x| gelu(&x[0]), &|x| composed::gelu(&x[0]));
        }
    }

    #[test]
    fn distribution_and_derivative_are_accurate_everywhere() {
        let x: Vec<f32> = (-12_000..=12_000).map(|i| i as f32 * 1e-3).collect();
        let count = x.len();
        let x = Tensor::from_vec(x, count, &Device::Cpu).unwrap();
        let exact = composed::gelu(&x.to_dtype(candle_core::DType::F64).unwrap()).unwrap();
        for ((found, exact), x) in values(&gelu(&x).unwrap())
            .iter()
            .zip(values(&exact))
            .zip(values(&x))
        {
            assert!(
                (found - exact).abs() < 4e-7 * x.abs().max(1.),
                "gelu({x}): {found}, {exact}"
            );
        }
        let var = candle_core::Var::from_tensor(&x).unwrap();
        let found = gelu(&var).unwrap().sum_all().unwrap().backward().unwrap();
        let exact: Vec<f64> = values(&x)
            .into_iter()
            .map(|x| {
                let erf = libm_erf(x * std::f64::consts::FRAC_1_SQRT_2);
                0.5 * (1. + erf) + x * (-0.5 * x * x).exp() / (2. * std::f64::consts::PI).sqrt()
            })
            .collect();
        assert_close("derivative", &values(found.get(&var).unwrap()), &exact, 8e-7);
    }

    fn libm_erf(x: f64) -> f64 {
        values(&Tensor::new(x, &Device::Cpu).unwrap().erf().unwrap())[0]
    }

    #[test]
    fn large_and_broken_inputs_behave() {
        let x = Tensor::new(&[1e30f32, -1e18, f32::NAN, 0.], &Device::Cpu).unwrap();
        let y = gelu(&x).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(y[0], 1e30);
        assert!(y[1].abs() < 1e-10 && y[2].is_nan() && y[3] == 0., "{y:?}");
    }
}
