//! The KoLeo regulariser: features of a batch are pushed away from their nearest neighbours
//! (Sablayrolles et al. 2019, Kozachenko-Leonenko entropy estimator; facebookresearch/dinov2 `loss/koleo_loss.py`).

use candle_core::{D, DType, Result, Tensor, bail};
use macula_models::ops;

use super::matrix;

/// Keeps lengths, distances and logarithms away from 0, in the three places where the reference does.
const EPS: f64 = 1e-8;

/// `-mean(log(distance to the nearest neighbour))` of L2-normalised features.
///
/// `features` [B, D] are the class tokens of one crop, straight from the backbone. Neighbours are looked for within groups of `group`
/// rows, one after the other, as the reference does within the images of one GPU; 0 is one group of all rows. Rows that are left over
/// join the last group. The choice of the neighbour carries no gradient; the distance does, to both its ends. The loss is not scaled:
/// DINOv2 adds 0.1 of it for each global crop.
///
/// # Errors
/// Fewer than two rows, groups of one, not a matrix.
pub fn koleo_loss(features: &Tensor, group: usize) -> Result<Tensor> {
    let (batch, _) = matrix("koleo features", features)?;
    if batch < 2 {
        bail!("koleo features: expected at least 2 images a batch, found {batch}");
    }
    if group == 1 {
        bail!("koleo features: expected groups of at least 2 images, or 0 for one of all, found 1");
    }
    let unit = ops::l2_normalize(&features.to_dtype(DType::F32)?, EPS)?;
    let neighbours = unit.index_select(&nearest(&unit.detach(), group)?, 0)?; // [B, D]
    let difference = ((unit - neighbours)? + EPS)?;
    let distance = difference.sqr()?.sum(D::Minus1)?.sqrt()?; // [B]
    (distance + EPS)?.log()?.mean_all()?.neg()
}

/// The row of its group with the largest inner product, for every row of `unit` [B, D] but itself: [B], u32.
fn nearest(unit: &Tensor, group: usize) -> Result<Tensor> {
    let rows = unit.dim(0)?;
    let size = match group {
        0 => rows,
        size => size.min(rows),
    };
    if rows.is_multiple_of(size) {
        return nearest_in_groups(unit, size, 0);
    }
    let last = size + rows % size;
    let before = rows - last;
    let of_last = nearest_in_groups(&unit.narrow(0, before, last)?, last, before)?;
    match before {
        0 => Ok(of_last),
        _ => Tensor::cat(
            &[
                &nearest_in_groups(&unit.narrow(0, 0, before)?, size, 0)?,
                &of_last,
            ],
            0,
        ),
    }
}

/// The same for rows `first..` of the batch, in groups that are all of `size` rows.
fn nearest_in_groups(unit: &Tensor, size: usize, first: usize) -> Result<Tensor> {
    let (rows, width) = unit.dims2()?;
    let groups = rows / size;
    let grouped = unit.reshape((groups, size, width))?; // [G, g, D]
    let similarities = grouped.matmul(&grouped.t()?)?; // [G, g, g]
    // The reference puts -1 on the diagonal; rounding can take opposite vectors below that, never below -2.
    let own = (Tensor::eye(size, DType::F32, unit.device())? * -4.)?;
    let within = similarities.broadcast_add(&own)?.argmax(D::Minus1)?; // [G, g]
    if groups == 1 && first == 0 {
        return within.flatten_all();
    }
    let starts: Vec<u32> = (0..groups).map(|group| (first + group * size) as u32).collect();
    let starts = Tensor::from_vec(starts, (groups, 1), unit.device())?;
    within.broadcast_add(&starts)?.flatten_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, assert_scalar, fixture, scalar};
    use candle_core::{Device, Var};
    use macula_models::ops::composed;

    #[test]
    fn golden_values_and_gradient() {
        let golden = fixture("losses.safetensors");
        let features = &golden["koleo_features"];
        let first = Var::from_tensor(&features.narrow(0, 0, 6).unwrap().copy().unwrap()).unwrap();
        let loss = koleo_loss(&first, 0).unwrap();
        assert_scalar("crop 0", &loss, scalar(&golden["koleo_crop0"]), 1e-5);
        let store = loss.backward().unwrap();
        assert_close(
            "gradient",
            store.get(&first).unwrap(),
            &golden["grad.koleo"],
            1e-5,
        );
        let second = koleo_loss(&features.narrow(0, 6, 6).unwrap(), 0).unwrap();
        assert_scalar("crop 1", &second, scalar(&golden["koleo_crop1"]), 1e-5);
    }

    /// Groups of every kind: of some rows, with rows left over, larger than the batch, one of all. Values and gradients are numpy's
    /// in f64, the gradients by differences (`tests/fixtures/make_terms.py`).
    #[test]
    fn groups_have_the_values_and_gradients_of_numpy() {
        let golden = fixture("terms.safetensors");
        let features = Var::from_tensor(&golden["koleo.features"]).unwrap();
        let mut found = Vec::new();
        for group in [0, 2, 3, 4, 6, 8, 11, 14, 100] {
            let loss = koleo_loss(&features, group).unwrap();
            let name = format!("koleo.{group}");
            assert_scalar(&name, &loss, scalar(&golden[&name]), 1e-5);
            let store = loss.backward().unwrap();
            let gradient = store.get(&features).unwrap();
            assert_close(&name, gradient, &golden[&format!("grad.{name}")], 2e-5);
            found.push(scalar(&loss));
        }
        // Farther neighbours push less: no two kinds of groups are told apart by rounding alone.
        for (smaller, larger) in [(1, 3), (3, 4), (4, 0)] {
            assert!(found[smaller] < found[larger] - 0.01, "{found:?}");
        }
        let of_composition = composed(|| koleo_loss(&features, 4)).unwrap();
        assert_scalar("composed", &of_composition, scalar(&golden["koleo.4"]), 1e-5);
    }

    /// The slope of the loss along its gradient, by differences of the loss itself.
    #[test]
    fn the_gradient_of_groups_is_the_slope() {
        let golden = fixture("terms.safetensors");
        let features = Var::from_tensor(&golden["koleo.features"]).unwrap();
        for group in [0, 3, 6] {
            let store = koleo_loss(&features, group).unwrap().backward().unwrap();
            let gradient = store.get(&features).unwrap();
            let norm = scalar(&gradient.sqr().unwrap().sum_all().unwrap()).sqrt();
            let at = |step: f64| {
                let moved = (features.as_tensor() + (gradient * (step / norm)).unwrap()).unwrap();
                scalar(&koleo_loss(&moved, group).unwrap())
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!(
                (slope - norm).abs() < 2e-3 * norm,
                "{group}: {slope}, expected {norm}"
            );
        }
    }

    #[test]
    fn known_value() {
        let rows = [[1f32, 0.], [0., 1.], [1., 1.], [-1., 0.2]];
        let loss = koleo_loss(&Tensor::new(&rows, &Device::Cpu).unwrap(), 0).unwrap();
        assert_scalar("koleo", &loss, 0.141194, 1e-5);
    }

    #[test]
    fn opposite_and_equal_rows_stay_finite() {
        // Opposite vectors are each other's neighbours at distance 2, whatever their rounding.
        let row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.37).sin() + 0.013).collect();
        let opposite: Vec<f32> = row.iter().map(|x| -x).collect();
        let pair = Tensor::new(vec![row.clone(), opposite], &Device::Cpu).unwrap();
        assert_scalar("opposite", &koleo_loss(&pair, 0).unwrap(), -(2f64.ln()), 1e-5);
        let same = Var::from_tensor(&Tensor::new(vec![row.clone(), row], &Device::Cpu).unwrap()).unwrap();
        let loss = koleo_loss(&same, 0).unwrap();
        assert!(scalar(&loss) > 10. && scalar(&loss).is_finite());
        let store = loss.backward().unwrap();
        let gradient = store.get(&same).unwrap();
        let largest = gradient.abs().unwrap().max_all().unwrap();
        assert!(scalar(&largest).is_finite());
    }

    #[test]
    fn one_image_has_no_neighbour() {
        let one = Tensor::ones((1, 4), DType::F32, &Device::Cpu).unwrap();
        let error = koleo_loss(&one, 0).unwrap_err().to_string();
        assert!(
            error.starts_with("koleo features: expected at least 2 images"),
            "{error}"
        );
        let two = Tensor::ones((2, 4), DType::F32, &Device::Cpu).unwrap();
        let error = koleo_loss(&two, 1).unwrap_err().to_string();
        assert!(error.contains("expected groups of at least 2"), "{error}");
    }
}
