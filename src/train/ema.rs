//! The teacher as a moving average of the student (Tarvainen and Valpola 2017; facebookresearch/dinov2
//! `train/ssl_meta_arch.py`, `update_teacher`).

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use super::kernels::{AveragedWeight, kernels};
use crate::{Error, Result};

/// Weights by name.
pub type NamedVars = BTreeMap<String, Var>;

/// `teacher = momentum * teacher + (1 - momentum) * student` for every weight, in place and in one pass. The student may
/// not share storage with the teacher.
///
/// # Errors
/// A momentum outside 0 to 1, names or shapes that differ (nothing is changed then), weights that are not f32.
pub fn update_teacher(teacher: &NamedVars, student: &NamedVars, momentum: f64) -> Result<()> {
    check_momentum(momentum)?;
    check(teacher, student)?;
    let Some(first) = teacher.values().next() else {
        return Ok(());
    };
    let pairs = teacher.values().zip(student.values());
    let pairs: Vec<(AveragedWeight, &Tensor)> = pairs
        .map(|(teacher, student)| (AveragedWeight::new(teacher, momentum), student.as_tensor()))
        .collect();
    kernels(first.device()).average(&pairs).map_err(Error::from)
}

/// Fails unless `momentum` is from 0 to 1.
pub(super) fn check_momentum(momentum: f64) -> Result<()> {
    if !(0. ..=1.).contains(&momentum) {
        return Err(Error::input(
            "teacher momentum",
            format!("expected a number from 0 to 1, found {momentum}"),
        ));
    }
    Ok(())
}

fn check(teacher: &NamedVars, student: &NamedVars) -> Result<()> {
    let mut names = teacher.keys().chain(student.keys());
    names.try_for_each(|name| check_pair(name, teacher.get(name), student.get(name)))
}

/// Fails unless both networks have the weight `name`, in one shape.
pub(super) fn check_pair(name: &str, teacher: Option<&Var>, student: Option<&Var>) -> Result<()> {
    let (Some(own), Some(other)) = (teacher, student) else {
        return Err(Error::input(
            format!("weight {name}"),
            "expected it in both teacher and student, found it in one",
        ));
    };
    if own.dims() != other.dims() {
        return Err(Error::input(
            format!("weight {name}"),
            format!(
                "expected the teacher's shape {:?}, found {:?}",
                own.dims(),
                other.dims()
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, values};
    use candle_core::Device;

    fn vars(entries: &[(&str, &[f32])]) -> NamedVars {
        let make = |(name, values): &(&str, &[f32])| {
            let var = Var::new(*values, &Device::Cpu).unwrap();
            ((*name).to_string(), var)
        };
        entries.iter().map(make).collect()
    }

    #[test]
    fn every_weight_moves_by_the_same_share() {
        let teacher = vars(&[("a", &[1., 2.]), ("b", &[-4.])]);
        let student = vars(&[("a", &[3., -2.]), ("b", &[0.5])]);
        let mut expected: BTreeMap<&str, Vec<f64>> = [("a", vec![1., 2.]), ("b", vec![-4.])].into();
        for momentum in [0.992, 0.996, 1., 0.5] {
            update_teacher(&teacher, &student, momentum).unwrap();
            for (name, to) in &mut expected {
                for (t, s) in to.iter_mut().zip(values(&student[*name])) {
                    *t = momentum * *t + (1. - momentum) * s;
                }
                let to = Tensor::new(to.as_slice(), &Device::Cpu).unwrap();
                assert_close(name, &teacher[*name], &to, 1e-6);
            }
        }
        assert_eq!(values(&student["a"]), [3., -2.]);
        update_teacher(&teacher, &student, 0.).unwrap();
        assert_eq!(values(&teacher["b"]), [0.5]);
    }

    #[test]
    fn networks_that_differ_are_refused_whole() {
        let teacher = vars(&[("a", &[1.]), ("b", &[1.])]);
        let message = |student: &NamedVars| {
            let error = update_teacher(&teacher, student, 0.5).unwrap_err();
            error.to_string()
        };
        assert_eq!(
            message(&vars(&[("a", &[2.])])),
            "weight b: expected it in both teacher and student, found it in one"
        );
        assert_eq!(
            message(&vars(&[("a", &[2.]), ("b", &[2.]), ("c", &[2.])])),
            "weight c: expected it in both teacher and student, found it in one"
        );
        assert_eq!(
            message(&vars(&[("a", &[2.]), ("b", &[2., 2.])])),
            "weight b: expected the teacher's shape [1], found [2]"
        );
        assert_eq!(values(&teacher["a"]), [1.]);
        let error = update_teacher(&teacher, &teacher, 1.5).unwrap_err();
        assert_eq!(
            error.to_string(),
            "teacher momentum: expected a number from 0 to 1, found 1.5"
        );
    }
}
