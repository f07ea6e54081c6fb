//! PCA whitening: rows are centred, turned to the principal axes of some training rows, and every axis is scaled to unit
//! variance there.

use linfa_linalg::eigh::{EigSort, Eigh};
use ndarray::Array2;

use super::gemm::{Operand, Threads, gemm, matmul};
use crate::{Error, Matrix, MatrixView, Result};

/// Rows in one product.
const ROW_BLOCK: usize = 4096;
/// An axis with less than this share of the greatest variance is rounding, and cannot be scaled to unit variance.
const LEAST_VARIANCE: f64 = 1e-9;

/// A whitening fitted on training rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    mean: Vec<f32>,
    /// Scaled principal axes, `[d, components]`.
    axes: Matrix,
}

impl Whitening {
    /// Fits on `training`: the `components` axes of greatest variance, or all that the rows span.
    ///
    /// # Errors
    /// Fewer than two rows, NaN or infinity, more components than the rows span, or a decomposition that fails.
    pub fn fit(training: MatrixView<'_>, components: Option<usize>) -> Result<Self> {
        let (n, dim) = (training.rows(), training.dim());
        if n < 2 {
            return Err(Error::data(
                "training features",
                format!("expected at least two rows to whiten with, found {n}"),
            ));
        }
        training.check_finite("training features")?;
        let mean = mean(training);
        let covariance =
            Array2::from_shape_vec((dim, dim), covariance(training, &mean)).expect("the covariance is d x d");
        let (variances, vectors) = covariance
            .eigh()
            .map_err(|e| Error::data("training features", format!("cannot be whitened: {e}")))?
            .sort_eig_desc();
        let least = variances[0] * LEAST_VARIANCE;
        let rank = variances.iter().take_while(|&&variance| variance > least).count();
        let components = components.unwrap_or(rank);
        if components == 0 || components > rank {
            return Err(Error::config(
                "components",
                format!("expected 1 to {rank} (what the training rows span), found {components}"),
            ));
        }
        let mut axes = Vec::with_capacity(dim * components);
        for row in 0..dim {
            axes.extend((0..components).map(|axis| (vectors[[row, axis]] / variances[axis].sqrt()) as f32));
        }
        Ok(Self {
            mean: mean.into_iter().map(|v| v as f32).collect(),
            axes: Matrix::new(axes, dim, components)?,
        })
    }

    /// The whitened rows of `features`, `[n, components]`.
    ///
    /// # Errors
    /// A width other than the training rows'.
    pub fn apply(&self, features: MatrixView<'_>) -> Result<Matrix> {
        let axes = self.axes.view();
        let (n, dim, components) = (features.rows(), axes.rows(), axes.dim());
        if features.dim() != dim {
            return Err(Error::data(
                "features",
                format!(
                    "expected the training rows' width {dim}, found {}",
                    features.dim()
                ),
            ));
        }
        let mut whitened = vec![0.0f32; n * components];
        let mut centred = Vec::new();
        for (rows, out) in features
            .data()
            .chunks(ROW_BLOCK * dim)
            .zip(whitened.chunks_mut(ROW_BLOCK * components))
        {
            centred.clear();
            centred.extend(
                rows.iter()
                    .zip(self.mean.iter().cycle())
                    .map(|(v, mean)| v - mean),
            );
            matmul(
                out,
                Operand::row_major(&centred, rows.len() / dim, dim),
                Operand::row_major(axes.data(), dim, components),
                Threads::Pool,
            );
        }
        Matrix::new(whitened, n, components)
    }
}

fn mean(rows: MatrixView<'_>) -> Vec<f64> {
    let mut sums = vec![0.0f64; rows.dim()];
    for row in rows.data().chunks_exact(rows.dim()) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value);
        }
    }
    sums.into_iter().map(|sum| sum / rows.rows() as f64).collect()
}

/// Covariance `[d, d]` with n in the denominator, summed in f64 over blocks of rows.
fn covariance(rows: MatrixView<'_>, mean: &[f64]) -> Vec<f64> {
    let dim = rows.dim();
    let mut sums = vec![0.0f64; dim * dim];
    for block in rows.data().chunks(ROW_BLOCK * dim) {
        let count = block.len() / dim;
        let centred: Vec<f64> = block
            .iter()
            .zip(mean.iter().cycle())
            .map(|(&value, mean)| f64::from(value) - mean)
            .collect();
        let factor = Operand::row_major(&centred, count, dim);
        let scale = 1.0 / rows.rows() as f64;
        gemm(&mut sums, scale, factor.transposed(), factor, 1.0, Threads::Pool);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    /// Correlated rows of very different scales, off the origin.
    fn skewed(n: usize) -> Matrix {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut data = Vec::new();
        for _ in 0..n {
            let [a, b, c] = [0; 3].map(|_| rng.random_range(-1.0f32..1.0));
            data.extend([10.0 * a + 5.0, 10.0 * a + b, 0.1 * c - b, 7.0]);
        }
        Matrix::new(data, n, 4).unwrap()
    }

    #[test]
    fn training_rows_get_no_mean_and_unit_covariance() {
        let rows = skewed(5_000);
        let whitening = Whitening::fit(rows.view(), None).unwrap();
        let white = whitening.apply(rows.view()).unwrap();
        assert_eq!(white.view().dim(), 3, "the fourth column is constant");
        let means = mean(white.view());
        assert!(means.iter().all(|mean| mean.abs() < 1e-4), "{means:?}");
        for (place, value) in covariance(white.view(), &means).into_iter().enumerate() {
            let expected = if place % 4 == 0 { 1.0 } else { 0.0 };
            assert!((value - expected).abs() < 1e-3, "{place}: {value}");
        }
        let two = Whitening::fit(rows.view(), Some(2))
            .unwrap()
            .apply(rows.view())
            .unwrap();
        for row in 0..10 {
            assert_eq!(two.view().row(row), &white.view().row(row)[..2]);
        }
    }

    #[test]
    fn what_cannot_be_whitened_is_named() {
        let rows = skewed(50);
        let error = |components| {
            Whitening::fit(rows.view(), Some(components))
                .unwrap_err()
                .to_string()
        };
        let expected = "components: expected 1 to 3 (what the training rows span), found";
        assert_eq!(error(4), format!("{expected} 4"));
        assert_eq!(error(0), format!("{expected} 0"));
        let one = rows.view().select(&[0]);
        assert!(
            Whitening::fit(one.view(), None)
                .unwrap_err()
                .to_string()
                .contains("two rows")
        );
        let narrow = Matrix::new(vec![1.0], 1, 1).unwrap();
        let whitening = Whitening::fit(rows.view(), None).unwrap();
        assert!(
            whitening
                .apply(narrow.view())
                .unwrap_err()
                .to_string()
                .contains("width 4")
        );
    }
}
