//! The patch-level iBOT term: the student predicts, where its input was masked, what the teacher sees there
//! (Zhou et al. 2022; facebookresearch/dinov2 `loss/ibot_patch_loss.py`, `forward_masked`).

use candle_core::{DType, Result, Tensor};

use super::{Logits, expect_matrix, expect_temperature};

/// Cross-entropy over masked patches, averaged within each crop, summed over crops and divided by the number of crops.
///
/// `student` [M, K] are logits and `targets` [M, K] distributions of the masked patches of all global crops, crop after
/// crop; `masked` [2 B] says how many of them each crop has, crops without a mask included: they count in the divisor, as in
/// the reference. Without any masked patch the loss is 0.
///
/// # Errors
/// Shapes that differ, counts that do not add up to M, a temperature that is not above 0.
pub fn ibot_patch_loss<'a>(
    student: impl Into<Logits<'a>>,
    targets: &Tensor,
    masked: &[usize],
    temperature: f64,
) -> Result<Tensor> {
    const WHAT: &str = "ibot_patch";
    let patches = masked.iter().sum();
    let student = student.into();
    let (_, prototypes) = student.size(WHAT)?;
    expect_temperature(WHAT, temperature)?;
    student.expect_size("ibot_patch student", patches, prototypes)?;
    expect_matrix("ibot_patch targets", targets, patches, prototypes)?;
    if patches == 0 {
        return Tensor::zeros((), DType::F32, targets.device());
    }
    let weights = Tensor::from_vec(patch_weights(masked), patches, targets.device())?;
    let terms = student.cross_entropy(targets, None, temperature)?; // [M]
    (terms * weights)?.sum_all()? / masked.len() as f64
}

/// For every masked patch, 1 over the number of masked patches in its crop.
fn patch_weights(masked: &[usize]) -> Vec<f32> {
    let of_crop = |&count: &usize| std::iter::repeat_n(1. / count as f32, count);
    masked.iter().flat_map(of_crop).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, assert_scalar, fixture, scalar};
    use candle_core::{Device, Var};

    fn masked_counts(masks: &Tensor) -> Vec<usize> {
        let masks: Vec<Vec<u8>> = masks.to_vec2().unwrap();
        let count = |mask: &Vec<u8>| mask.iter().map(|&bit| usize::from(bit)).sum();
        masks.iter().map(count).collect()
    }

    #[test]
    fn golden_value_and_gradient() {
        let golden = fixture("losses.safetensors");
        let student = Var::from_tensor(&golden["patch_student"]).unwrap();
        let masked = masked_counts(&golden["masks"]);
        assert!(masked.contains(&0));
        let loss = ibot_patch_loss(student.as_tensor(), &golden["patch_sinkhorn"], &masked, 0.1).unwrap();
        assert_scalar("loss", &loss, scalar(&golden["ibot_loss"]), 1e-5);
        let store = loss.backward().unwrap();
        assert_close(
            "gradient",
            store.get(&student).unwrap(),
            &golden["grad.ibot"],
            1e-5,
        );
    }

    #[test]
    fn no_masked_patch_costs_nothing() {
        let none = Tensor::zeros((0, 5), DType::F32, &Device::Cpu).unwrap();
        let loss = ibot_patch_loss(&none, &none, &[0, 0], 0.1).unwrap();
        assert_eq!(scalar(&loss), 0.);
    }

    #[test]
    fn counts_must_add_up() {
        let rows = Tensor::zeros((4, 5), DType::F32, &Device::Cpu).unwrap();
        let error = ibot_patch_loss(&rows, &rows, &[1, 2], 0.1)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("ibot_patch student: expected shape [3, 5], found [4, 5]"),
            "{error}"
        );
    }
}
