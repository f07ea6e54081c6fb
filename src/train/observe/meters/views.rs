//! Meters of features of several views an image, and of how fast the spectrum of features falls: what can be said of a network
//! where no labels are.

use linfa_linalg::cholesky::Cholesky as _;
use linfa_linalg::eigh::EigValshInto as _;
use linfa_linalg::triangular::{SolveTriangular as _, UPLO};
use macula_eval::linalg::gemm::{Operand, Threads, matmul};
use ndarray::Array2;

use super::features::effective_number;

/// What LiDAR adds to the diagonal of the scatter within images, so that it has an inverse.
const WITHIN_FLOOR: f64 = 1e-4;
/// Ranks of eigenvalues that the power law is fitted to: the first few are of the common direction and its like, the last ones of
/// rounding and of too few images.
const FIRST_RANK: usize = 4;
const LAST_RANK: usize = 100;

/// LiDAR (Thilak et al. 2024, equations 1 to 4): how many directions tell images apart better than views of one image differ.
/// `features` are `[images * views, d]`, the views of an image in a row. exp of the entropy of the eigenvalues of
/// W^(-1/2) B W^(-1/2), where B is the scatter of the means of images, W the mean scatter of views about their own mean with 1e-4
/// added to its diagonal; from 1 to the smaller of images - 1 and d.
///
/// 0 when all images have the same mean; NaN with fewer than two images or views, or with NaN or infinity among the features.
///
/// # Panics
/// If `features` does not hold `images * views * d` values.
pub fn lidar(features: &[f32], images: usize, views: usize, d: usize) -> f64 {
    assert_eq!(
        features.len(),
        images * views * d,
        "features of {images} x {views} x {d} values"
    );
    if images < 2 || views < 2 || d == 0 || features.iter().any(|value| !value.is_finite()) {
        return f64::NAN;
    }
    let mut means = Vec::with_capacity(images * d); // [images, d]
    let mut deviations = Vec::with_capacity(features.len()); // [images * views, d]
    for image in features.chunks_exact(views * d) {
        let mean = mean_row(image, d);
        for row in image.chunks_exact(d) {
            deviations.extend(
                row.iter()
                    .zip(&mean)
                    .map(|(&value, mean)| f64::from(value) - mean),
            );
        }
        means.extend(mean);
    }
    centre(&mut means, d);
    let between = scatter(&means, images, d);
    let mut within = scatter(&deviations, images * views, d);
    for i in 0..d {
        within[(i, i)] += WITHIN_FLOOR;
    }
    // W = L L^T: the eigenvalues of L^-1 B L^-T are those of W^(-1/2) B W^(-1/2).
    let Some(whitened) = whitened(&within, between) else {
        return f64::NAN;
    };
    let Ok(eigenvalues) = whitened.eigvalsh_into() else {
        return f64::NAN;
    };
    let eigenvalues: Vec<f64> = eigenvalues.iter().map(|value| value.max(0.0)).collect();
    effective_number(&eigenvalues)
}

/// How fast the spectrum of features `[n, d]` falls: alpha of eigenvalues of their covariance that go as rank^(-alpha) (Agrawal et
/// al. 2022, alpha-ReQ), by least squares of logarithms, each rank weighted by its inverse (Stringer et al. 2019), over ranks 4 to
/// the smaller of 100 and half of the smaller of n and d. Near 1 is the slope of representations that generalise; far above,
/// few directions hold nearly all; near 0, features are noise.
///
/// NaN where there are fewer than 16 rows or dimensions, where an eigenvalue in that range is 0, or with NaN or infinity.
///
/// # Panics
/// If `features` does not hold `n * d` values.
pub fn spectrum_decay(features: &[f32], n: usize, d: usize) -> f64 {
    assert_eq!(features.len(), n * d, "features of {n} x {d} values");
    let last = LAST_RANK.min(n.min(d) / 2);
    if last < 2 * FIRST_RANK || features.iter().any(|value| !value.is_finite()) {
        return f64::NAN;
    }
    let mut rows: Vec<f64> = features.iter().map(|&value| f64::from(value)).collect();
    centre(&mut rows, d);
    let Ok(eigenvalues) = scatter(&rows, n, d).eigvalsh_into() else {
        return f64::NAN;
    };
    let mut eigenvalues = eigenvalues.to_vec();
    eigenvalues.sort_by(|a, b| b.total_cmp(a));
    let noise = eigenvalues[0] * f64::EPSILON * d as f64;
    if eigenvalues[last - 1] <= noise {
        return f64::NAN;
    }
    let ranks = (FIRST_RANK..=last).zip(&eigenvalues[FIRST_RANK - 1..last]);
    let points: Vec<[f64; 3]> = ranks
        .map(|(rank, value)| [1.0 / rank as f64, (rank as f64).ln(), value.ln()])
        .collect();
    -slope(&points)
}

/// Slope of the line through `[weight, x, y]` by least squares.
fn slope(points: &[[f64; 3]]) -> f64 {
    let weights: f64 = points.iter().map(|[weight, ..]| weight).sum();
    let mean = |axis: usize| points.iter().map(|point| point[0] * point[axis]).sum::<f64>() / weights;
    let (x, y) = (mean(1), mean(2));
    let along: f64 = points.iter().map(|point| point[0] * (point[1] - x).powi(2)).sum();
    let across: f64 = points
        .iter()
        .map(|point| point[0] * (point[1] - x) * (point[2] - y))
        .sum();
    across / along
}

fn mean_row(rows: &[f32], d: usize) -> Vec<f64> {
    let mut mean = vec![0.0; d];
    for row in rows.chunks_exact(d) {
        for (sum, &value) in mean.iter_mut().zip(row) {
            *sum += f64::from(value);
        }
    }
    let count = (rows.len() / d) as f64;
    mean.iter_mut().for_each(|sum| *sum /= count);
    mean
}

/// Takes the mean row from every row of `[n, d]`.
fn centre(rows: &mut [f64], d: usize) {
    let count = (rows.len() / d) as f64;
    let mut mean = vec![0.0; d];
    for row in rows.chunks_exact(d) {
        for (sum, value) in mean.iter_mut().zip(row) {
            *sum += value / count;
        }
    }
    for row in rows.chunks_exact_mut(d) {
        for (value, mean) in row.iter_mut().zip(&mean) {
            *value -= mean;
        }
    }
}

/// `rows^T rows / n` of `[n, d]`: `[d, d]`.
fn scatter(rows: &[f64], n: usize, d: usize) -> Array2<f64> {
    let operand = Operand::row_major(rows, n, d);
    let mut product = vec![0.0; d * d];
    matmul(&mut product, operand.transposed(), operand, Threads::Pool);
    product.iter_mut().for_each(|value| *value /= n as f64);
    Array2::from_shape_vec((d, d), product).expect("the product has d x d values")
}

/// `L^-1 between L^-T` with `within = L L^T`; none where rounding has left `within` without a factor.
fn whitened(within: &Array2<f64>, between: Array2<f64>) -> Option<Array2<f64>> {
    let lower = within.cholesky().ok()?;
    let half = lower.solve_triangular(&between, UPLO::Lower).ok()?;
    lower.solve_triangular(&half.t().to_owned(), UPLO::Lower).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng as _;

    /// `[images * views, d]`: of `signal` directions that images differ in by `between`, all `d` that views differ in by `within`.
    fn views(images: usize, views: usize, d: usize, signal: usize, between: f32, within: f32) -> Vec<f32> {
        let mut rng = rng::stream(5, "views-test", 0);
        let mut draw = |size: f32| size * rng.random_range(-1.0f32..1.0);
        let mut features = Vec::new();
        for _ in 0..images {
            let mean: Vec<f32> = (0..d)
                .map(|j| if j < signal { draw(between) } else { 0.0 })
                .collect();
            for _ in 0..views {
                features.extend(mean.iter().map(|mean| mean + draw(within)));
            }
        }
        features
    }

    #[test]
    fn lidar_of_hand_computed_scatters() {
        // Means (1, 0) and (-1, 0), views off by 0.1 in the second direction: one eigenvalue.
        let features = [1.0, 0.1, 1.0, -0.1, -1.0, 0.1, -1.0, -0.1];
        let one = lidar(&features, 2, 2, 2);
        assert!((one - 1.0).abs() < 1e-4, "{one}");
        // Means (+-3, 0) and (0, +-1) with views off by 0.1 in both: B = diag(4.5, 0.5), W = diag(0.005) + 1e-4: shares 0.9 and 0.1.
        let mut features = Vec::new();
        for mean in [[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0f32]] {
            for off in [[0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]] {
                features.extend([mean[0] + off[0], mean[1] + off[1]]);
            }
        }
        let expected = (-(0.9f64 * 0.9f64.ln() + 0.1 * 0.1f64.ln())).exp();
        let two = lidar(&features, 4, 4, 2);
        assert!((two - expected).abs() < 1e-4, "{two} {expected}");
    }

    #[test]
    fn lidar_counts_directions_that_tell_images_apart_and_not_those_that_views_differ_in() {
        let wide = lidar(&views(300, 6, 32, 32, 1.0, 0.2), 300, 6, 32);
        assert!((25.0..=32.1).contains(&wide), "{wide}");
        let four = lidar(&views(300, 6, 32, 4, 1.0, 0.01), 300, 6, 32);
        assert!((3.5..4.5).contains(&four), "{four}");
        // The rank of all rows cannot tell these two apart: views alone fill every direction.
        let noise = super::super::effective_rank(&views(300, 6, 32, 4, 1.0, 1.0), 1800, 32);
        assert!(noise > 25.0, "{noise}");
    }

    #[test]
    fn the_slope_of_a_power_law_is_found() {
        let (n, d) = (4000, 64);
        for alpha in [0.5f64, 1.0, 2.0] {
            let mut rng = rng::stream(6, "spectrum-test", 0);
            let features: Vec<f32> = (0..n * d)
                .map(|i| {
                    let rank = (i % d + 1) as f64;
                    (rank.powf(-alpha / 2.0) * rng.random_range(-1.0f64..1.0)) as f32
                })
                .collect();
            let found = spectrum_decay(&features, n, d);
            assert!((found - alpha).abs() < 0.06, "{found} {alpha}");
        }
    }

    #[test]
    fn nothing_to_measure_is_nan_and_images_alike_are_0() {
        assert!(lidar(&[], 0, 2, 4).is_nan());
        assert!(lidar(&[1.0; 8], 1, 2, 4).is_nan());
        assert!(lidar(&[1.0; 8], 2, 1, 4).is_nan());
        assert!(lidar(&[f32::NAN; 16], 2, 2, 4).is_nan());
        assert_eq!(lidar(&[0.5; 16], 2, 2, 4), 0.0);
        assert!(spectrum_decay(&[0.5; 8], 2, 4).is_nan());
        assert!(spectrum_decay(&[0.5; 20 * 20], 20, 20).is_nan());
        assert!(spectrum_decay(&[f32::INFINITY; 20 * 20], 20, 20).is_nan());
    }
}
