//! Distillation of logits: the student matches the teacher's softened distribution (Hinton et al. 2015, section 2).

use candle_core::{Result, Tensor, bail};

use super::{Logits, expect_matrix, expect_temperature, log_softmax, matrix};

/// `T^2 * mean over rows of sum_k p_k (log p_k - log q_k)` with `p = softmax(teacher / T)`, `q = softmax(student / T)`.
///
/// `student` [B, K] and `teacher` [B, K] are logits; the teacher's carry no gradient. The factor keeps gradients of
/// different temperatures comparable.
///
/// # Errors
/// Shapes that differ, no row, a temperature that is not above 0.
pub fn distillation_kl_loss(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let (rows, columns) = matrix("distillation_kl student", student)?;
    expect_matrix("distillation_kl teacher", teacher, rows, columns)?;
    expect_temperature("distillation_kl", temperature)?;
    if rows == 0 {
        bail!("distillation_kl student: expected at least 1 row, found 0");
    }
    let teacher = teacher.detach();
    let probabilities = log_softmax(&teacher, temperature)?.exp()?;
    let [of_student, of_teacher] = [student, &teacher]
        .map(|logits| Logits::Given(logits).cross_entropy(&probabilities, None, temperature));
    (of_student? - of_teacher?)?.sum_all()? * (temperature * temperature / rows as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, assert_scalar, fixture, scalar};
    use candle_core::{Device, Var};

    #[test]
    fn golden_values() {
        let golden = fixture("losses.safetensors");
        for (temperature, name) in [(1., "kd_loss_t1"), (4., "kd_loss_t4")] {
            let loss =
                distillation_kl_loss(&golden["kd_student"], &golden["kd_teacher"], temperature).unwrap();
            assert_scalar(name, &loss, scalar(&golden[name]), 1e-5);
        }
    }

    #[test]
    fn known_values() {
        let teacher = Tensor::new(&[[2f32, 1., 0.1]], &Device::Cpu).unwrap();
        let student = Tensor::new(&[[1.5f32, 1.2, 0.3]], &Device::Cpu).unwrap();
        for (temperature, expected) in [(1., 0.0582066), (4., 0.0588962)] {
            let loss = distillation_kl_loss(&student, &teacher, temperature).unwrap();
            // Distributions this alike cancel to seven digits less three, in f32.
            assert_scalar("loss", &loss, expected, 5e-5);
        }
    }

    /// The gradient is `T (q - p) / B`.
    #[test]
    fn gradient_is_the_difference_of_the_distributions() {
        let golden = fixture("losses.safetensors");
        let student = Var::from_tensor(&golden["kd_student"]).unwrap();
        let teacher = Var::from_tensor(&golden["kd_teacher"]).unwrap();
        let store = distillation_kl_loss(&student, &teacher, 4.)
            .unwrap()
            .backward()
            .unwrap();
        assert!(store.get(&teacher).is_none());
        let softmax = |logits: &Tensor| log_softmax(&logits.detach(), 4.).unwrap().exp().unwrap();
        let expected = ((softmax(&student) - softmax(&teacher)).unwrap() * (4. / 6.)).unwrap();
        assert_close("gradient", store.get(&student).unwrap(), &expected, 1e-5);
        let itself = distillation_kl_loss(&teacher, &teacher, 4.).unwrap();
        assert_eq!(scalar(&itself), 0.);
    }
}
