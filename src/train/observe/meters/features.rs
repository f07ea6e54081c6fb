//! Meters of features `[n, d]`: their spread and the number of directions they use.

use linfa_linalg::eigh::EigValshInto as _;
use macula_eval::linalg::gemm::{Operand, Threads, matmul};
use ndarray::Array2;

/// Rows that are enough to follow the effective rank of a run, and few enough to compute in seconds.
pub const RANK_ROWS: usize = 1_024;
/// What RankMe and LiDAR add to each share, so that the logarithm exists.
const SHARE_EPSILON: f64 = 1e-7;

/// Spread of the features `[n, d]` over images: each row is L2-normalised, then the standard deviation over rows (n in the
/// denominator) is averaged over dimensions and multiplied by sqrt(d). 1 means isotropic: no common direction and the same
/// spread in every dimension; 0 means that all rows point the same way (SimSiam, Chen and He 2021, section 4.1). A row of
/// zeros stays zero. NaN without rows, or with NaN or infinity among the features.
///
/// # Panics
/// If `features` does not hold `n * d` values.
pub fn feature_std(features: &[f32], n: usize, d: usize) -> f64 {
    check(features, n, d);
    if n == 0 || d == 0 {
        return f64::NAN;
    }
    let mut mean = vec![0.0; d];
    let mut squares = vec![0.0; d];
    // Welford's update: features that are nearly alike would lose their spread in a difference of large sums.
    for (row, count) in features.chunks_exact(d).zip(1u32..) {
        let length = norm(row);
        let scale = if length == 0.0 { 0.0 } else { 1.0 / length };
        for ((&value, mean), squares) in row.iter().zip(&mut mean).zip(&mut squares) {
            let value = f64::from(value) * scale;
            let before = value - *mean;
            *mean += before / f64::from(count);
            *squares += before * (value - *mean);
        }
    }
    let deviations: f64 = squares.iter().map(|sum| (sum / n as f64).sqrt()).sum();
    deviations / (d as f64).sqrt()
}

/// RankMe (Garrido et al. 2023, equation 1): exp of the entropy of the singular values of the features `[n, d]`, each
/// divided by their sum; from 1 to the smaller of n and d.
///
/// Rows are neither centred nor normalised, as in the paper. Centring would hide the collapse it should show: features
/// that are alike but for rounding become pure noise, which has full rank; as they are, the common direction outweighs
/// the rest and the rank falls towards 1. 0 when every feature is 0; NaN without rows, or with NaN or infinity.
///
/// The cost grows with the cube of the smaller of n and d: [`spread_rows`] down to [`RANK_ROWS`] where features are wide.
///
/// # Panics
/// If `features` does not hold `n * d` values.
pub fn effective_rank(features: &[f32], n: usize, d: usize) -> f64 {
    check(features, n, d);
    if n == 0 || d == 0 || features.iter().any(|value| !value.is_finite()) {
        return f64::NAN;
    }
    effective_number(&singular_values(features, n, d))
}

/// How many of `values`, none below 0, count: exp of the entropy of their shares. 0 when all are 0.
pub(super) fn effective_number(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    if sum == 0.0 {
        return 0.0;
    }
    let entropy: f64 = values
        .iter()
        .map(|value| value / sum + SHARE_EPSILON)
        .map(|share| -share * share.ln())
        .sum();
    entropy.exp()
}

/// At most `max` of the rows of `[n, d]`, evenly spaced over all of them, and how many they are. Features of online k-NN lie
/// in the order of the source, often class after class, so that the first rows would not do.
///
/// # Panics
/// If `features` does not hold `n * d` values.
pub fn spread_rows(features: &[f32], n: usize, d: usize, max: usize) -> (Vec<f32>, usize) {
    check(features, n, d);
    let taken = n.min(max);
    let place = |i: usize| i * n / taken;
    let rows = (0..taken).flat_map(|i| &features[place(i) * d..(place(i) + 1) * d]);
    (rows.copied().collect(), taken)
}

/// Singular values of `[n, d]`, as roots of the eigenvalues of the smaller of its two Gram matrices. Squaring costs half of
/// f64's digits, which leaves as many as f32 features have.
fn singular_values(features: &[f32], n: usize, d: usize) -> Vec<f64> {
    let wide: Vec<f64> = features.iter().map(|&value| f64::from(value)).collect();
    let rows = Operand::row_major(&wide, n, d);
    let size = n.min(d);
    let mut gram = vec![0.0; size * size];
    let (left, right) = if n < d {
        (rows, rows.transposed()) // [n, n]
    } else {
        (rows.transposed(), rows) // [d, d]
    };
    matmul(&mut gram, left, right, Threads::Pool);
    let gram = Array2::from_shape_vec((size, size), gram).expect("the product has size x size values");
    let eigenvalues = gram
        .eigvalsh_into()
        .expect("a Gram matrix is square and not empty");
    // Rounding leaves tiny negative eigenvalues where the true one is 0.
    eigenvalues.iter().map(|value| value.max(0.0).sqrt()).collect()
}

fn norm(row: &[f32]) -> f64 {
    row.iter()
        .map(|&value| f64::from(value).powi(2))
        .sum::<f64>()
        .sqrt()
}

fn check(features: &[f32], n: usize, d: usize) {
    assert_eq!(features.len(), n * d, "features of {n} x {d} values");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng as _;

    /// Rows with independent values of mean 0.
    fn random(n: usize, d: usize) -> Vec<f32> {
        let mut rng = rng::stream(3, "meters-test", 0);
        (0..n * d).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// `common` and a little of `random` in every row.
    fn nearly_alike(n: usize, d: usize, little: f32) -> Vec<f32> {
        random(n, d).iter().map(|value| 1.0 + little * value).collect()
    }

    #[test]
    fn std_of_hand_computed_rows() {
        // Normalised: (1, 0), (0, 1): deviation 1/2 in each dimension; times sqrt(2).
        let spread = feature_std(&[3.0, 0.0, 0.0, 5.0], 2, 2);
        assert!((spread - 0.5f64.sqrt()).abs() < 1e-12, "{spread}");
        // (1, 0) and (-1, 0): deviations 1 and 0.
        let spread = feature_std(&[2.0, 0.0, -7.0, 0.0], 2, 2);
        assert!((spread - 0.5f64.sqrt()).abs() < 1e-12, "{spread}");
        // The four unit vectors of the plane are isotropic.
        let spread = feature_std(&[1.0, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, -1.0], 4, 2);
        assert!((spread - 1.0).abs() < 1e-12, "{spread}");
    }

    #[test]
    fn std_is_1_for_isotropic_features_and_0_for_features_alike() {
        assert!((feature_std(&random(2000, 64), 2000, 64) - 1.0).abs() < 0.01);
        assert_eq!(feature_std(&[0.5; 64 * 8], 64, 8), 0.0);
        // Of different lengths but one direction.
        assert!(feature_std(&[1.0, 2.0, 10.0, 20.0], 2, 2) < 1e-8);
        assert!(feature_std(&nearly_alike(500, 64, 1e-3), 500, 64) < 2e-3);
    }

    #[test]
    fn rank_of_hand_computed_rows() {
        // Singular values 3 and 1: shares 3/4 and 1/4.
        let expected = (-(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln())).exp();
        let tall = effective_rank(&[3.0, 0.0, 0.0, 1.0, 0.0, 0.0], 3, 2);
        let wide = effective_rank(&[3.0, 0.0, 0.0, 0.0, 1.0, 0.0], 2, 3);
        assert!((tall - expected).abs() < 1e-5, "{tall} {expected}");
        assert!((wide - expected).abs() < 1e-5, "{wide} {expected}");
        let identity: Vec<f32> = (0..49).map(|i| f32::from(u8::from(i % 8 == 0))).collect();
        assert!((effective_rank(&identity, 7, 7) - 7.0).abs() < 1e-4);
    }

    #[test]
    fn rank_shows_both_collapses() {
        let healthy = effective_rank(&random(400, 64), 400, 64);
        assert!(healthy > 60.0, "{healthy}");
        let point = effective_rank(&nearly_alike(400, 64, 1e-3), 400, 64);
        assert!(point < 1.5, "{point}");
        // All rows in a plane: two directions of 64.
        let plane: Vec<f32> = random(400, 2)
            .chunks_exact(2)
            .flat_map(|row| (0..64).map(move |j| if j % 2 == 0 { row[0] } else { row[1] }))
            .collect();
        let plane = effective_rank(&plane, 400, 64);
        assert!((1.9..2.1).contains(&plane), "{plane}");
        // Fewer rows than dimensions.
        let few = effective_rank(&random(20, 64), 20, 64);
        assert!((18.0..=20.0).contains(&few), "{few}");
    }

    #[test]
    fn nothing_to_measure_is_nan_and_nothing_but_zeros_is_0() {
        assert!(feature_std(&[], 0, 4).is_nan());
        assert!(effective_rank(&[], 0, 4).is_nan());
        assert!(effective_rank(&[1.0, f32::NAN], 1, 2).is_nan());
        assert!(feature_std(&[1.0, f32::NAN], 1, 2).is_nan());
        assert!(feature_std(&[1.0, f32::INFINITY], 1, 2).is_nan());
        assert_eq!(effective_rank(&[0.0; 8], 4, 2), 0.0);
        assert_eq!(feature_std(&[0.0; 8], 4, 2), 0.0);
    }

    #[test]
    fn spread_rows_are_spread() {
        let features: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let (rows, n) = spread_rows(&features, 10, 2, 3);
        assert_eq!((rows, n), (vec![0.0, 1.0, 6.0, 7.0, 12.0, 13.0], 3));
        assert_eq!(spread_rows(&features, 10, 2, 30), (features.clone(), 10));
        assert_eq!(spread_rows(&[], 0, 2, 30), (vec![], 0));
    }

    #[test]
    #[should_panic(expected = "features of 2 x 3 values")]
    fn a_wrong_length_is_refused() {
        feature_std(&[0.0; 5], 2, 3);
    }
}
