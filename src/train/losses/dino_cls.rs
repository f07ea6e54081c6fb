//! The image-level DINO term: cross-entropy between class-token distributions of different views of an image
//! (Caron et al. 2021, section 3.1; facebookresearch/dinov2 `loss/dino_clstoken_loss.py`, `train/ssl_meta_arch.py`).

use candle_core::{DType, Result, Tensor, bail};

use super::{Logits, expect_temperature, matrix};

/// Global crops of an image; the reference supports no other number.
const GLOBAL_CROPS: usize = 2;

/// The two parts of the DINO term. Their sum is the mean over all (teacher crop, student crop) pairs of different crops.
#[derive(Debug, Clone)]
pub struct DinoClsTerms {
    /// Student on global crops against the teacher on the other global crop; scalar.
    pub global: Tensor,
    /// Student on local crops against the teacher on both global crops; scalar. None without local crops.
    pub local: Option<Tensor>,
}

/// The DINO term with the reference's weights: for L local crops each pair counts `1 / (2 + max(2 L, 1))`.
///
/// Without local crops the reference still divides by 3, and so does this.
///
/// # Errors
/// As [`dino_global_sum`] and [`dino_local_sum`].
pub fn dino_cls_loss(
    student_global: Logits,
    student_local: Option<Logits>,
    targets: &Tensor,
    temperature: f64,
) -> Result<DinoClsTerms> {
    let batch = targets.dim(0)? / GLOBAL_CROPS;
    let local_crops = match &student_local {
        Some(local) if batch > 0 => local.size("dino_cls local crops")?.0 / batch,
        _ => 0,
    };
    let global_pairs = GLOBAL_CROPS * (GLOBAL_CROPS - 1);
    let terms = (global_pairs + (GLOBAL_CROPS * local_crops).max(1)) as f64;
    let global = dino_global_sum(student_global, targets, temperature)?;
    // One mean stands for both cross pairs.
    let global = (global * (global_pairs as f64 / terms))?;
    let local = match student_local {
        Some(local) => Some((dino_local_sum(local, targets, temperature)? / terms)?),
        None => None,
    };
    Ok(DinoClsTerms { global, local })
}

/// The mean cross-entropy of the student's global crops with the teacher's other crop, before any weight: what the
/// reference class returns for them.
///
/// `student` [2 B, K] are logits, `targets` [2 B, K] distributions, both crop-major and of the same crops in the same
/// order; the crops are exchanged here, so same-view pairs never meet.
///
/// # Errors
/// Shapes that differ, an odd number of rows or none, a temperature that is not above 0.
pub fn dino_global_sum<'a>(
    student: impl Into<Logits<'a>>,
    targets: &Tensor,
    temperature: f64,
) -> Result<Tensor> {
    const WHAT: &str = "dino_cls global crops";
    let (batch, prototypes) = images(targets)?;
    expect_temperature(WHAT, temperature)?;
    let student = student.into();
    student.expect_size(WHAT, GLOBAL_CROPS * batch, prototypes)?;
    let rows = GLOBAL_CROPS * batch;
    let exchanged: Vec<u32> = (0..rows).map(|row| ((row + batch) % rows) as u32).collect();
    student
        .cross_entropy(targets, Some(&exchanged), temperature)?
        .sum_all()?
        / rows as f64
}

/// The sum over all pairs of a local crop with a teacher's global crop of their mean cross-entropy over the batch,
/// before any weight: what the reference class returns for them.
///
/// `student` [L B, K] are logits, `targets` [2 B, K] distributions, both crop-major.
///
/// # Errors
/// Shapes that differ, rows that make no whole number of crops, no row, a temperature that is not above 0.
pub fn dino_local_sum<'a>(
    student: impl Into<Logits<'a>>,
    targets: &Tensor,
    temperature: f64,
) -> Result<Tensor> {
    const WHAT: &str = "dino_cls local crops";
    let (batch, prototypes) = images(targets)?;
    expect_temperature(WHAT, temperature)?;
    let student = student.into();
    let (rows, columns) = student.size(WHAT)?;
    if columns != prototypes || rows == 0 || !rows.is_multiple_of(batch) {
        bail!(
            "{WHAT}: expected shape [L x {batch}, {prototypes}], found {:?}",
            [rows, columns]
        );
    }
    // Cross-entropy is linear in its target: one pass with the sum of both crops' targets.
    let both = targets
        .detach()
        .to_dtype(DType::F32)?
        .reshape((GLOBAL_CROPS, batch, prototypes))?
        .sum(0)?; // [B, K]
    let image: Vec<u32> = (0..rows).map(|row| (row % batch) as u32).collect();
    student
        .cross_entropy(&both, Some(&image), temperature)?
        .sum_all()?
        / batch as f64
}

/// Batch size B and number K of prototypes from targets [2 B, K].
fn images(targets: &Tensor) -> Result<(usize, usize)> {
    let (rows, prototypes) = matrix("dino_cls targets", targets)?;
    if rows == 0 || !rows.is_multiple_of(GLOBAL_CROPS) {
        bail!("dino_cls targets: expected two rows an image, found {rows} rows");
    }
    Ok((rows / GLOBAL_CROPS, prototypes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, assert_scalar, fixture, scalar};
    use candle_core::{Device, Var};

    #[test]
    fn golden_sums_and_gradient() {
        let golden = fixture("losses.safetensors");
        let student = Var::from_tensor(&golden["student_global"]).unwrap();
        let global = dino_global_sum(student.as_tensor(), &golden["sinkhorn"], 0.1).unwrap();
        assert_scalar("global", &global, scalar(&golden["dino_global_sum"]), 1e-5);
        let store = global.backward().unwrap();
        assert_close(
            "gradient",
            store.get(&student).unwrap(),
            &golden["grad.dino_global"],
            1e-5,
        );
        let local = dino_local_sum(&golden["student_local"], &golden["sinkhorn"], 0.1).unwrap();
        assert_scalar("local", &local, scalar(&golden["dino_local_sum"]), 1e-5);
    }

    /// `d sum / d logits` is `(2 softmax(logits / T) - both targets) / (T B)` for every local crop.
    #[test]
    fn gradient_of_local_crops() {
        let golden = fixture("losses.safetensors");
        let student = Var::from_tensor(&golden["student_local"]).unwrap();
        let targets = &golden["sinkhorn"];
        let store = dino_local_sum(student.as_tensor(), targets, 0.1)
            .unwrap()
            .backward()
            .unwrap();
        let double = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
        let exps = (double(&student.detach()) * 10.).unwrap().exp().unwrap();
        let softmax = exps.broadcast_div(&exps.sum_keepdim(1).unwrap()).unwrap();
        let targets = double(targets);
        let both = (targets.narrow(0, 0, 6).unwrap() + targets.narrow(0, 6, 6).unwrap()).unwrap();
        let difference = ((softmax * 2.).unwrap() - both.repeat((8, 1)).unwrap()).unwrap();
        let expected = (difference * (10. / 6.)).unwrap();
        assert_close("gradient", store.get(&student).unwrap(), &expected, 1e-5);
    }

    /// Mean cross-entropy of crop `g` of the targets with crop `s` of the student, the slow way.
    fn pair(targets: &Tensor, g: usize, student: &Tensor, s: usize, batch: usize) -> f64 {
        let target: Vec<Vec<f32>> = targets.narrow(0, g * batch, batch).unwrap().to_vec2().unwrap();
        let logits: Vec<Vec<f32>> = student.narrow(0, s * batch, batch).unwrap().to_vec2().unwrap();
        let mut sum = 0.;
        for (target, logits) in target.iter().zip(&logits) {
            let scaled: Vec<f64> = logits.iter().map(|&z| f64::from(z) / 0.1).collect();
            let log_sum = scaled.iter().map(|z| z.exp()).sum::<f64>().ln();
            for (t, z) in target.iter().zip(scaled) {
                sum -= f64::from(*t) * (z - log_sum);
            }
        }
        sum / batch as f64
    }

    #[test]
    fn terms_add_up_to_the_mean_over_pairs() {
        let golden = fixture("losses.safetensors");
        let (global, local, targets) = (
            &golden["student_global"],
            &golden["student_local"],
            &golden["sinkhorn"],
        );
        let terms = dino_cls_loss(global.into(), Some(local.into()), targets, 0.1).unwrap();
        let mut pairs = vec![pair(targets, 0, global, 1, 6), pair(targets, 1, global, 0, 6)];
        for crop in 0..8 {
            pairs.extend([0, 1].map(|g| pair(targets, g, local, crop, 6)));
        }
        assert_eq!(pairs.len(), 18);
        let found = scalar(&terms.global) + scalar(&terms.local.unwrap());
        let expected = pairs.iter().sum::<f64>() / 18.;
        assert!(
            (found - expected).abs() < 1e-5 * expected,
            "found {found}, expected {expected}"
        );
        let alone = dino_cls_loss(global.into(), None, targets, 0.1).unwrap();
        assert!(alone.local.is_none());
        assert_scalar("global alone", &alone.global, (pairs[0] + pairs[1]) / 3., 1e-5);
    }

    #[test]
    fn targets_get_no_gradient() {
        let golden = fixture("losses.safetensors");
        let targets = Var::from_tensor(&golden["sinkhorn"]).unwrap();
        let student = Var::from_tensor(&golden["student_local"]).unwrap();
        let loss = dino_local_sum(student.as_tensor(), &targets, 0.1).unwrap();
        let store = loss.backward().unwrap();
        assert!(store.get(&targets).is_none());
        assert!(store.get(&student).is_some());
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let make = |rows| Tensor::ones((rows, 3), DType::F32, &Device::Cpu).unwrap();
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        let odd = message(dino_global_sum(&make(3), &make(3), 0.1));
        assert!(
            odd.starts_with("dino_cls targets: expected two rows an image, found 3 rows"),
            "{odd}"
        );
        let short = message(dino_global_sum(&make(2), &make(4), 0.1));
        assert!(
            short.starts_with("dino_cls global crops: expected shape [4, 3], found [2, 3]"),
            "{short}"
        );
        let part = message(dino_local_sum(&make(3), &make(4), 0.1));
        assert!(
            part.starts_with("dino_cls local crops: expected shape [L x 2, 3], found [3, 3]"),
            "{part}"
        );
        let none = message(dino_local_sum(&make(0), &make(4), 0.1));
        assert!(none.contains("found [0, 3]"), "{none}");
        // One crop of one image: a logit alike for each of three prototypes, against the ones of both crops.
        let one = dino_local_sum(&make(1), &make(2), 0.1).unwrap();
        assert_scalar("one row", &one, 6. * 3f64.ln(), 1e-5);
        let cold = message(dino_local_sum(&make(4), &make(4), 0.));
        assert!(cold.contains("expected a temperature above 0, found 0"), "{cold}");
    }
}
