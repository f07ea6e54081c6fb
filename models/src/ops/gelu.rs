//! GELU in its three forms: exact (erf), by tanh, and by a sigmoid.

use std::fmt;
use std::str::FromStr;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use serde::{Deserialize, Serialize};

use super::backend::backend;
use super::cpu::{ELEMENTS_PER_TASK, f32_slice, stored, with_f32};
use super::element::Element;
use super::vectors::{beside, exp, filled};

const NAME: &str = "gelu";

/// Which form of GELU a network was trained with (Hendrycks and Gimpel 2016, section 2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GeluKind {
    /// `x Phi(x)`, with `Phi` the normal distribution function.
    #[default]
    Gelu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
}

impl GeluKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Gelu, Self::GeluTanh, Self::QuickGelu];

    /// Whether this is the exact form.
    pub fn is_exact(&self) -> bool {
        *self == Self::Gelu
    }
}

impl fmt::Display for GeluKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu-tanh",
            Self::QuickGelu => "quick-gelu",
        })
    }
}

impl FromStr for GeluKind {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == name);
        found.ok_or_else(|| format!("expected gelu, gelu-tanh or quick-gelu, found `{name}`"))
    }
}

/// Factor of x in the sigmoid of [`GeluKind::QuickGelu`].
pub(super) const QUICK: f32 = 1.702;
/// Factor of `x + CUBIC x^3` in the tanh of [`GeluKind::GeluTanh`], `sqrt(2 / pi)`.
pub(super) const TANH: f32 = 0.797_884_6;
/// Factor of `x^3` there.
pub(super) const CUBIC: f32 = 0.044_715;

/// `x Phi(x)` elementwise, with `Phi` the normal distribution function (not the tanh approximation).
///
/// Any shape; f32. `Phi` is within 4e-7 of the exact one.
///
/// # Errors
/// A type other than f32, a device without this operation.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    gelu_of(x, GeluKind::Gelu)
}

/// [`gelu`] of any kind.
///
/// # Errors
/// As [`gelu`].
pub fn gelu_of(x: &Tensor, kind: GeluKind) -> Result<Tensor> {
    backend(x.device()).gelu(x, kind)
}

/// [`gelu_of`] by the kernels of this file.
pub(super) fn on_cpu(x: &Tensor, kind: GeluKind) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gelu(kind))
}

struct Gelu(GeluKind);

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

/// `1 / (1 + e^-x)`; of what is not above -87 it is 0 (`exp` ends there), so that x times it stays small.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    if x <= -87. { 0. } else { 1. / (1. + exp(-x)) }
}

/// Value and derivative of `x sigmoid(g(x))`, from `g(x)` and `g'(x)`.
#[inline(always)]
fn gated(x: f32, g: f32, slope: f32) -> (f32, f32) {
    let s = sigmoid(g);
    (x * s, s + x * s * (1. - s) * slope)
}

/// Value and derivative of the form by tanh: `1 + tanh(u) = 2 sigmoid(2 u)`.
#[inline(always)]
fn tanh_form(x: f32) -> (f32, f32) {
    // Beyond 15 the sigmoid is 0 or 1, and the powers stay finite.
    let y = x.clamp(-15., 15.);
    let u = 2. * TANH * (y + CUBIC * y * y * y);
    gated(x, u, 2. * TANH * (1. + 3. * CUBIC * y * y))
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(NAME, storage, layout)?;
        Ok(stored(forward(x, self.0), layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_f32(NAME, [x, &grad.contiguous()?], |[x, grad]| {
            backward(x, grad, self.0)
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// GELU of every value.
pub(super) fn forward<T: Element>(x: &[T], kind: GeluKind) -> Vec<T> {
    match kind {
        GeluKind::Gelu => mapped(
            x,
            #[inline(always)]
            |x| x * normal(x).0,
        ),
        GeluKind::GeluTanh => mapped(
            x,
            #[inline(always)]
            |x| tanh_form(x).0,
        ),
        GeluKind::QuickGelu => mapped(
            x,
            #[inline(always)]
            |x| x * sigmoid(QUICK * x),
        ),
    }
}

/// `grad` times the derivative at `x`.
pub(super) fn backward<T: Element>(x: &[T], grad: &[T], kind: GeluKind) -> Vec<T> {
    match kind {
        GeluKind::Gelu => scaled(
            x,
            grad,
            #[inline(always)]
            |x| {
                let (distribution, density) = normal(x);
                distribution + x * density
            },
        ),
        GeluKind::GeluTanh => scaled(
            x,
            grad,
            #[inline(always)]
            |x| tanh_form(x).1,
        ),
        GeluKind::QuickGelu => scaled(
            x,
            grad,
            #[inline(always)]
            |x| gated(x, QUICK * x, QUICK).1,
        ),
    }
}

/// `value` of every number.
#[inline(always)]
fn mapped<T: Element>(x: &[T], value: impl Fn(f32) -> f32 + Sync + Send) -> Vec<T> {
    filled(
        x.len(),
        ELEMENTS_PER_TASK,
        #[inline(always)]
        |task, out| {
            let x = beside(x, task, ELEMENTS_PER_TASK, out.len());
            for (out, x) in out.iter_mut().zip(x) {
                *out = T::rounded(value(x.value()));
            }
        },
    )
}

/// `grad` times `slope` of every number.
#[inline(always)]
fn scaled<T: Element>(x: &[T], grad: &[T], slope: impl Fn(f32) -> f32 + Sync + Send) -> Vec<T> {
    filled(
        x.len(),
        ELEMENTS_PER_TASK,
        #[inline(always)]
        |task, out| {
            let [x, grad] = [x, grad].map(|all| beside(all, task, ELEMENTS_PER_TASK, out.len()));
            for (out, (x, grad)) in out.iter_mut().zip(x.iter().zip(grad)) {
                *out = T::rounded(grad.value() * slope(x.value()));
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::composed;
    use super::super::testing::{assert_close, check, random, values};
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn agrees_with_the_composition() {
        for kind in GeluKind::ALL {
            for shape in [&[1][..], &[3, 7], &[2, 3, 5]] {
                check(&[random(1, shape)], &|x| gelu_of(&x[0], kind), &|x| {
                    composed::gelu(&x[0], kind)
                });
            }
        }
    }

    /// Written out, from -9 to 9 in f64; the derivative by central differences.
    #[test]
    fn other_forms_are_theirs() {
        let form = |kind: GeluKind, x: f64| match kind {
            GeluKind::Gelu => 0.5 * x * (1. + libm_erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            GeluKind::GeluTanh => {
                0.5 * x * (1. + ((2. / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            GeluKind::QuickGelu => x / (1. + (-1.702 * x).exp()),
        };
        let x: Vec<f32> = (-90..=90).map(|i| i as f32 * 0.1).collect();
        for kind in GeluKind::ALL {
            let out: Vec<f32> = forward(&x, kind);
            let slopes: Vec<f32> = backward(&x, &vec![2.; x.len()], kind);
            for ((x, out), slope) in x.iter().zip(out).zip(slopes) {
                let exact = f64::from(*x);
                let slope_exact = (form(kind, exact + 1e-5) - form(kind, exact - 1e-5)) / 1e-5;
                assert!(
                    (f64::from(out) - form(kind, exact)).abs() < 3e-6,
                    "{kind}({x}): {out}"
                );
                assert!(
                    (f64::from(slope) - slope_exact).abs() < 5e-6,
                    "{kind}'({x}): {slope}"
                );
            }
            let wide = x.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>();
            let rounded: Vec<half::bf16> = forward(&wide, kind);
            for (x, out) in wide.iter().zip(rounded) {
                let exact = form(kind, x.to_f64());
                assert!(
                    (out.to_f64() - exact).abs() <= 4e-3 * exact.abs() + 1e-6,
                    "{kind}({x}) in bf16: {out}"
                );
            }
        }
    }

    #[test]
    fn distribution_and_derivative_are_accurate_everywhere() {
        let x: Vec<f32> = (-12_000..=12_000).map(|i| i as f32 * 1e-3).collect();
        let count = x.len();
        let x = Tensor::from_vec(x, count, &Device::Cpu).unwrap();
        let exact = composed::gelu(&x.to_dtype(DType::F64).unwrap(), GeluKind::Gelu).unwrap();
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
        let x = [1e30f32, -1e18, f32::NAN, 0.];
        for kind in GeluKind::ALL {
            let y: Vec<f32> = forward(&x, kind);
            assert_eq!(y[0], 1e30, "{kind}");
            assert!(y[1].abs() < 1e-10 && y[2].is_nan() && y[3] == 0., "{kind} {y:?}");
            let slope: Vec<f32> = backward(&x, &[1.; 4], kind);
            assert!(
                slope[0] == 1. && slope[1].abs() < 1e-6 && slope[2].is_nan(),
                "{kind} {slope:?}"
            );
            assert!((slope[3] - 0.5).abs() < 1e-6, "{kind} {slope:?}");
        }
    }

    #[test]
    fn names_read_back() {
        for kind in GeluKind::ALL {
            assert_eq!(kind.to_string().parse::<GeluKind>(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
        }
        assert!("relu".parse::<GeluKind>().unwrap_err().contains("quick-gelu"));
    }
}
