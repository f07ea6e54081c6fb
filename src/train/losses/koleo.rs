//! The KoLeo regulariser: features of a batch are pushed away from their nearest neighbours
//! (Sablayrolles et al. 2019, Kozachenko-Leonenko entropy estimator; facebookresearch/dinov2 `loss/koleo_loss.py`).

use candle_core::{D, DType, Result, Tensor, bail};
use macula_models::ops;

use super::matrix;

/// Keeps lengths, distances and logarithms away from 0, in the three places where the reference does.
const EPS: f64 = 1e-8;

/// `-mean(log(distance to the nearest neighbour))` of L2-normalised features.
///
/// `features` [B, D] are the class tokens of one crop, straight from the backbone. The choice of the neighbour carries no
/// gradient; the distance does, to both its ends. The loss is not scaled: DINOv2 adds 0.1 of it for each global crop.
///
/// # Errors
/// Fewer than two rows, not a matrix.
pub fn koleo_loss(features: &Tensor) -> Result<Tensor> {
    let (batch, _) = matrix("koleo features", features)?;
    if batch < 2 {
        bail!("koleo features: expected at least 2 images a batch, found {batch}");
    }
    let unit = ops::l2_normalize(&features.to_dtype(DType::F32)?, EPS)?;
    let neighbours = unit.index_select(&nearest(&unit.detach())?, 0)?; // [B, D]
    let difference = ((unit - neighbours)? + EPS)?;
    let distance = difference.sqr()?.sum(D::Minus1)?.sqrt()?; // [B]
    (distance + EPS)?.log()?.mean_all()?.neg()
}

/// The row with the largest inner product, for every row of `unit` [B, D] but itself: [B], u32.
fn nearest(unit: &Tensor) -> Result<Tensor> {
    let similarities = unit.matmul(&unit.t()?)?;
    // The reference puts -1 on the diagonal; rounding can take opposite vectors below that, never below -2.
    let own = (Tensor::eye(unit.dim(0)?, DType::F32, unit.device())? * -4.)?;
    (similarities + own)?.argmax(D::Minus1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, assert_scalar, fixture, scalar};
    use candle_core::{Device, Var};

    #[test]
    fn golden_values_and_gradient() {
        let golden = fixture("losses.safetensors");
        let features = &golden["koleo_features"];
        let first = Var::from_tensor(&features.narrow(0, 0, 6).unwrap().copy().unwrap()).unwrap();
        let loss = koleo_loss(&first).unwrap();
        assert_scalar("crop 0", &loss, scalar(&golden["koleo_crop0"]), 1e-5);
        let store = loss.backward().unwrap();
        assert_close(
            "gradient",
            store.get(&first).unwrap(),
            &golden["grad.koleo"],
            1e-5,
        );
        let second = koleo_loss(&features.narrow(0, 6, 6).unwrap()).unwrap();
        assert_scalar("crop 1", &second, scalar(&golden["koleo_crop1"]), 1e-5);
    }

    #[test]
    fn known_value() {
        let rows = [[1f32, 0.], [0., 1.], [1., 1.], [-1., 0.2]];
        let loss = koleo_loss(&Tensor::new(&rows, &Device::Cpu).unwrap()).unwrap();
        assert_scalar("koleo", &loss, 0.141194, 1e-5);
    }

    #[test]
    fn opposite_and_equal_rows_stay_finite() {
        // Opposite vectors are each other's neighbours at distance 2, whatever their rounding.
        let row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.37).sin() + 0.013).collect();
        let opposite: Vec<f32> = row.iter().map(|x| -x).collect();
        let pair = Tensor::new(vec![row.clone(), opposite], &Device::Cpu).unwrap();
        assert_scalar("opposite", &koleo_loss(&pair).unwrap(), -(2f64.ln()), 1e-5);
        let same = Var::from_tensor(&Tensor::new(vec![row.clone(), row], &Device::Cpu).unwrap()).unwrap();
        let loss = koleo_loss(&same).unwrap();
        assert!(scalar(&loss) > 10. && scalar(&loss).is_finite());
        let store = loss.backward().unwrap();
        let gradient = store.get(&same).unwrap();
        let largest = gradient.abs().unwrap().max_all().unwrap();
        assert!(scalar(&largest).is_finite());
    }

    #[test]
    fn one_image_has_no_neighbour() {
        let one = Tensor::ones((1, 4), DType::F32, &Device::Cpu).unwrap();
        let error = koleo_loss(&one).unwrap_err().to_string();
        assert!(
            error.starts_with("koleo features: expected at least 2 images"),
            "{error}"
        );
    }
}
