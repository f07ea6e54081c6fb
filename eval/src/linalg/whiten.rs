//! PCA whitening: rows are centred, turned to the principal axes of some training rows, and every axis is scaled to unit
//! variance there.

use super::pca::{Spectrum, project};
use crate::{Error, Matrix, MatrixView, Result};

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
        let n = training.rows();
        if n < 2 {
            return Err(Error::data(
                "training features",
                format!("expected at least two rows to whiten with, found {n}"),
            ));
        }
        let spectrum = Spectrum::from_rows(training, "training features")?;
        // A narrower axis is rounding, and cannot be scaled to unit variance.
        let rank = spectrum.rank();
        let components = components.unwrap_or(rank);
        if components == 0 || components > rank {
            return Err(Error::config(
                "components",
                format!("expected 1 to {rank} (what the training rows span), found {components}"),
            ));
        }
        Self::scaled(spectrum, components, 0.0)
    }

    /// Fits all axes on `training`, each scaled as if rows varied by `ridge` more along it: along narrow ones noise stays small.
    ///
    /// # Errors
    /// No row, NaN or infinity, a `ridge` that is not above 0, or a decomposition that fails.
    pub fn fit_with_ridge(training: MatrixView<'_>, ridge: f64) -> Result<Self> {
        if training.rows() == 0 {
            return Err(Error::data(
                "training features",
                "expected a row to whiten with, found none",
            ));
        }
        if ridge.is_nan() || ridge <= 0.0 {
            return Err(Error::config(
                "ridge",
                format!("expected more than 0, found {ridge}"),
            ));
        }
        let spectrum = Spectrum::from_rows(training, "training features")?;
        Self::scaled(spectrum, training.dim(), ridge)
    }

    /// The first `components` axes of a spectrum, over the deviation along each of variances that are `ridge` larger.
    fn scaled(spectrum: Spectrum, components: usize, ridge: f64) -> Result<Self> {
        let Spectrum {
            mean,
            variances,
            vectors,
        } = spectrum;
        let deviation = |axis: usize| (variances[axis].max(0.0) + ridge).sqrt();
        let mut axes = Vec::with_capacity(mean.len() * components);
        for row in 0..mean.len() {
            axes.extend((0..components).map(|axis| (vectors[[row, axis]] / deviation(axis)) as f32));
        }
        Ok(Self {
            axes: Matrix::new(axes, mean.len(), components)?,
            mean: mean.into_iter().map(|v| v as f32).collect(),
        })
    }

    /// What is taken off a row, `[d]`.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// The scaled axes, one a column: `[d, components]`.
    pub fn axes(&self) -> MatrixView<'_> {
        self.axes.view()
    }

    /// The whitened rows of `features`, `[n, components]`.
    ///
    /// # Errors
    /// A width other than the training rows'.
    pub fn apply(&self, features: MatrixView<'_>) -> Result<Matrix> {
        project(features, &self.mean, self.axes.view())
    }
}

#[cfg(test)]
mod tests {
    use super::super::pca::{covariance, mean};
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
    fn a_ridge_keeps_narrow_axes_narrow() {
        let rows = skewed(5_000);
        let whitening = Whitening::fit_with_ridge(rows.view(), 0.1).unwrap();
        let white = whitening.apply(rows.view()).unwrap();
        let variances = covariance(white.view(), &mean(white.view()));
        let spectrum = Spectrum::from_rows(rows.view(), "rows").unwrap();
        for axis in 0..4 {
            let variance = spectrum.variances[axis];
            let found = variances[axis * 5];
            assert!(
                (found - variance / (variance + 0.1)).abs() < 1e-3,
                "{axis}: {found}"
            );
        }
        let same = Matrix::new(vec![2.0; 8], 2, 4).unwrap();
        let white = Whitening::fit_with_ridge(same.view(), 0.1).unwrap();
        assert_eq!(white.apply(same.view()).unwrap().view().data(), [0.0; 8]);
        let refused = Whitening::fit_with_ridge(rows.view(), f64::NAN).unwrap_err();
        assert!(
            refused.to_string().contains("ridge: expected more than 0"),
            "{refused}"
        );
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
