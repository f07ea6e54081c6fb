//! Gradient clipping by norm (Pascanu et al. 2013; PyTorch `clip_grad_norm_`).

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};

use crate::train::kernels::{Clipping, Tables, kernels};
use crate::{Error, Result};

/// PyTorch's guard against a division by 0.
const EPS: f64 = 1e-6;

/// Scales the gradients of `vars` so that their joint L2 norm is at most `max_norm`, and returns the norm they had.
///
/// DINOv2 calls this once for each sub-module of the student (backbone, DINO head, iBOT head). A variable without a
/// gradient is passed over. `module` names the sub-module in errors.
///
/// # Errors
/// A norm that is not finite: the gradients are left as they are, and must not be applied. Gradients of another type than
/// f32.
pub fn clip_gradients<'a>(
    module: &str,
    vars: impl IntoIterator<Item = &'a Var>,
    gradients: &mut GradStore,
    max_norm: f64,
) -> Result<f64> {
    let vars: Vec<&Var> = vars.into_iter().collect();
    let norm = gradient_norm(module, vars.iter().copied(), gradients)?;
    let scale = clip_scale(norm, max_norm);
    if scale < 1. {
        for var in vars {
            if let Some(gradient) = gradients.remove(var) {
                let clipped = (gradient * scale)?;
                gradients.insert(var, clipped);
            }
        }
    }
    Ok(norm)
}

/// The joint L2 norm of the gradients of `vars`, for [`super::AdamW::step_and_average`], which scales while it updates.
///
/// # Errors
/// A norm that is not finite: the gradients must not be applied. Gradients of another type than f32.
pub fn gradient_norm<'a>(
    module: &str,
    vars: impl IntoIterator<Item = &'a Var>,
    gradients: &GradStore,
) -> Result<f64> {
    let modules = [(module, vars.into_iter().collect())].into();
    Ok(gradient_norms(&modules, gradients)?.into_values().sum())
}

/// [`gradient_norm`] of each of several modules, on a GPU with one wait for all of them.
///
/// # Errors
/// As [`gradient_norm`].
pub fn gradient_norms(
    modules: &BTreeMap<&str, Vec<&Var>>,
    gradients: &GradStore,
) -> Result<BTreeMap<String, f64>> {
    let squares = sums_of_squares(&groups_of(modules, gradients))?;
    norms_of(modules, &squares)
}

/// Norms from their squares, a module after the other.
///
/// # Errors
/// A norm that is not finite.
pub fn norms_of(modules: &BTreeMap<&str, Vec<&Var>>, squares: &[f64]) -> Result<BTreeMap<String, f64>> {
    let norm = |(module, squares): (&&str, &f64)| match squares.sqrt() {
        norm if norm.is_finite() => Ok(((*module).to_owned(), norm)),
        norm => Err(Error::NotFinite {
            what: format!("gradient norm of {module}"),
            value: norm,
        }),
    };
    modules.keys().zip(squares).map(norm).collect()
}

/// The squares of the norms of [`gradient_norms`], f64 [modules], left on the device. `tables` are those of the step before.
///
/// # Errors
/// Gradients of another type than f32.
pub(in crate::train) fn squares_on_device(
    clipping: &dyn Clipping,
    tables: &mut Tables,
    modules: &BTreeMap<&str, Vec<&Var>>,
    gradients: &GradStore,
    device: &Device,
) -> Result<Tensor> {
    let groups = groups_of(modules, gradients);
    clipping
        .sums_of_squares(tables, &groups, device)
        .map_err(Error::from)
}

fn groups_of<'a>(modules: &BTreeMap<&str, Vec<&Var>>, gradients: &'a GradStore) -> Vec<Vec<&'a Tensor>> {
    let of_module = |vars: &Vec<&Var>| {
        let found = vars.iter().filter_map(|var| gradients.get(var));
        found.collect()
    };
    modules.values().map(of_module).collect()
}

fn sums_of_squares(groups: &[Vec<&Tensor>]) -> candle_core::Result<Vec<f64>> {
    match groups.iter().flatten().next() {
        Some(first) => kernels(first.device()).sums_of_squares(groups),
        None => Ok(vec![0.; groups.len()]),
    }
}

/// The factor, at most 1, that brings gradients of `norm` down to `max_norm`.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + EPS)).min(1.)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, values};
    use candle_core::Device;

    /// Gradients (3, 0), (4) and none.
    fn store(scale: f64) -> (Vec<Var>, GradStore) {
        let make = |values: &[f32]| Var::new(values, &Device::Cpu).unwrap();
        let vars = vec![make(&[3., 0.]), make(&[4.]), make(&[7.])];
        let squares = [&vars[0], &vars[1]].map(|var| var.sqr().unwrap().sum_all().unwrap());
        let loss = ((&squares[0] + &squares[1]).unwrap() * (scale / 2.)).unwrap();
        (vars, loss.backward().unwrap())
    }

    #[test]
    fn one_norm_over_all_variables() {
        let (vars, mut gradients) = store(1.);
        let norm = clip_gradients("backbone", &vars, &mut gradients, 2.).unwrap();
        assert_eq!(norm, 5.);
        for (var, expected) in vars.iter().zip([vec![1.2, 0.], vec![1.6]]) {
            let expected = Tensor::new(expected, &Device::Cpu).unwrap();
            assert_close("clipped", gradients.get(var).unwrap(), &expected, 1e-6);
        }
        assert!(gradients.get(&vars[2]).is_none());
    }

    #[test]
    fn small_gradients_stay_as_they_are() {
        let (vars, mut gradients) = store(1.);
        assert_eq!(clip_gradients("head", &vars, &mut gradients, 6.).unwrap(), 5.);
        assert_eq!(values(gradients.get(&vars[0]).unwrap()), [3., 0.]);
        assert_eq!(clip_gradients("nothing", [], &mut gradients, 6.).unwrap(), 0.);
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_an_error() {
        let (vars, mut gradients) = store(f64::NAN);
        let error = clip_gradients("dino_head", &vars, &mut gradients, 3.).unwrap_err();
        assert_eq!(
            error.to_string(),
            "gradient norm of dino_head: expected a finite number, found NaN"
        );
    }
}
