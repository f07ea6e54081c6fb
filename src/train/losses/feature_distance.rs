//! Distillation of features: how far the student's projected features are from the teacher's. Teachers differ in the
//! scale of their features, so both measures leave it out.

use candle_core::{D, DType, Result, Tensor, bail};
use macula_models::ops;
use serde::{Deserialize, Serialize};

/// Keeps the deviation of a constant vector away from 0.
const EPS: f64 = 1e-6;

/// The measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeatureLoss {
    /// `1 - cos(student, teacher)`: both are L2-normalised, 0 to 2.
    Cosine,
    /// Smooth L1 (`d^2 / 2` up to 1, `d - 1/2` above) to the teacher's vector brought to mean 0 and deviation 1 over its
    /// own dimensions, averaged over them; the student's vector is taken as it is.
    SmoothL1,
}

/// The mean distance of `student` [.., D] to `teacher` [.., D] over all vectors. Only the student gets a gradient.
///
/// # Errors
/// Shapes that differ, no vector.
pub fn feature_distance(student: &Tensor, teacher: &Tensor, loss: FeatureLoss) -> Result<Tensor> {
    if student.dims() != teacher.dims() || student.elem_count() == 0 {
        bail!(
            "feature_distance: expected student and teacher of one shape with values, found {:?} and {:?}",
            student.dims(),
            teacher.dims()
        );
    }
    let (student, teacher) = (
        student.to_dtype(DType::F32)?,
        teacher.detach().to_dtype(DType::F32)?,
    );
    match loss {
        FeatureLoss::Cosine => {
            let [student, teacher] = [student, teacher].map(|tensor| ops::l2_normalize(&tensor, 1e-12));
            let cosines = (student? * teacher?)?.sum(D::Minus1)?;
            cosines.mean_all()?.affine(-1., 1.)
        }
        FeatureLoss::SmoothL1 => {
            let distance = (student - standardised(&teacher)?)?.abs()?;
            let within = distance.minimum(&distance.ones_like()?)?;
            let beyond = (distance - &within)?;
            ((within.sqr()? * 0.5)? + beyond)?.mean_all()
        }
    }
}

/// Vectors [.., D] with mean 0 and deviation 1 each.
fn standardised(vectors: &Tensor) -> Result<Tensor> {
    let centred = vectors.broadcast_sub(&vectors.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    centred.broadcast_div(&deviation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, assert_scalar, scalar, values};
    use candle_core::{Device, Var};

    fn tensor<const N: usize>(rows: &[[f32; 3]; N]) -> Tensor {
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    #[test]
    fn known_values() {
        let student = tensor(&[[1., 0., 0.], [0., 2., 0.]]);
        let teacher = tensor(&[[3., 4., 0.], [0., -5., 0.]]);
        let loss = feature_distance(&student, &teacher, FeatureLoss::Cosine).unwrap();
        assert_scalar("cosine", &loss, (0.4 + 2.) / 2., 1e-6);
        // (1, 2, 3) has mean 2 and deviation sqrt(2/3): -1.2247, 0, 1.2247.
        let teacher = tensor(&[[1., 2., 3.]]);
        let student = tensor(&[[-1.2247449, 0.5, 3.2247449]]);
        let loss = feature_distance(&student, &teacher, FeatureLoss::SmoothL1).unwrap();
        assert_scalar("smooth L1", &loss, (0. + 0.125 + 1.5) / 3., 1e-5);
    }

    #[test]
    fn the_scale_of_the_teacher_does_not_matter() {
        let student = tensor(&[[0.3, -0.2, 0.9], [0.1, 0.4, 0.2]]);
        let teacher = tensor(&[[0.5, 0.1, -0.7], [1., 2., 4.]]);
        for loss in [FeatureLoss::Cosine, FeatureLoss::SmoothL1] {
            let small = feature_distance(&student, &teacher, loss).unwrap();
            let large = feature_distance(&student, &(&teacher * 50.).unwrap(), loss).unwrap();
            assert_scalar("loss", &large, scalar(&small), 1e-4);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences_and_the_students_alone() {
        let teacher = Var::new(&[[0.5f32, 0.1, -0.7], [1., 2., 4.]], &Device::Cpu).unwrap();
        let start = [[0.3f32, -0.2, 0.9], [0.1, 3.4, 0.2]];
        for loss in [FeatureLoss::Cosine, FeatureLoss::SmoothL1] {
            let student = Var::new(&start, &Device::Cpu).unwrap();
            let store = feature_distance(&student, &teacher, loss)
                .unwrap()
                .backward()
                .unwrap();
            assert!(store.get(&teacher).is_none());
            let mut expected = Vec::new();
            for row in 0..2 {
                for column in 0..3 {
                    let at = |shift: f32| {
                        let mut moved = start;
                        moved[row][column] += shift;
                        scalar(&feature_distance(&tensor(&moved), &teacher, loss).unwrap())
                    };
                    expected.push(((at(5e-3) - at(-5e-3)) / 1e-2) as f32);
                }
            }
            let expected = Tensor::from_vec(expected, (2, 3), &Device::Cpu).unwrap();
            assert_close("gradient", store.get(&student).unwrap(), &expected, 1e-3);
        }
    }

    #[test]
    fn shapes_must_agree() {
        let (student, teacher) = (tensor(&[[1., 0., 0.]]), tensor(&[[1., 0., 0.], [0., 1., 0.]]));
        let error = feature_distance(&student, &teacher, FeatureLoss::Cosine)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("feature_distance: expected student and teacher of one shape"),
            "{error}"
        );
        assert!(values(&student).len() == 3);
    }
}
