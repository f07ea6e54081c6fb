//! Principal components: the orthogonal axes along which rows vary most, for pictures and as the ground of whitening.

use linfa_linalg::eigh::{EigSort, Eigh};
use ndarray::Array2;

use super::gemm::{Operand, Threads, gemm, matmul};
use crate::{Error, Matrix, MatrixView, Result};

/// Rows in one product.
const ROW_BLOCK: usize = 4096;
/// An axis with less than this share of the greatest variance is rounding.
const MIN_VARIANCE: f64 = 1e-9;

/// All axes of some rows, widest first.
pub(super) struct Spectrum {
    /// Mean row, `[d]`.
    pub mean: Vec<f64>,
    /// Variance along each axis, descending; n in the denominator.
    pub variances: Vec<f64>,
    /// Unit axes in columns, `[d, d]`.
    pub vectors: Array2<f64>,
}

impl Spectrum {
    /// The axes of `rows`, at least one; `what` names them in errors.
    pub(super) fn from_rows(rows: MatrixView<'_>, what: &str) -> Result<Self> {
        rows.check_finite(what)?;
        let dim = rows.dim();
        let mean = mean(rows);
        let covariance =
            Array2::from_shape_vec((dim, dim), covariance(rows, &mean)).expect("the covariance is d x d");
        let (variances, vectors) = covariance
            .eigh()
            .map_err(|e| Error::data(what, format!("no principal axes: {e}")))?
            .sort_eig_desc();
        Ok(Self {
            mean,
            variances: variances.to_vec(),
            vectors,
        })
    }

    /// Number of axes along which the rows vary by more than rounding.
    pub(super) fn rank(&self) -> usize {
        let greatest = self.variances.first().copied().unwrap_or(0.0);
        if greatest <= 0.0 {
            return 0;
        }
        let min = greatest * MIN_VARIANCE;
        self.variances
            .iter()
            .take_while(|&&variance| variance > min)
            .count()
    }
}

/// The first principal components of some rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Pca {
    mean: Vec<f32>,
    /// Unit axes in columns, `[d, components]`.
    axes: Matrix,
    explained: Vec<f64>,
}

impl Pca {
    /// Fits up to `components` axes (at least 1) on `rows`; fewer where the rows span fewer. An axis has no direction of its
    /// own: here its entry of greatest size is positive, the first of equals, so that the same rows give the same signs.
    ///
    /// # Errors
    /// Fewer than two rows, rows that are all equal, NaN or infinity, or no component asked for.
    pub fn fit(rows: MatrixView<'_>, components: usize) -> Result<Self> {
        if components == 0 {
            return Err(Error::config("components", "expected at least 1, found 0"));
        }
        if rows.rows() < 2 {
            let n = rows.rows();
            return Err(Error::data(
                "features",
                format!("expected at least two rows for principal components, found {n}"),
            ));
        }
        let spectrum = Spectrum::from_rows(rows, "features")?;
        let components = components.min(spectrum.rank());
        if components == 0 {
            return Err(Error::data(
                "features",
                "expected rows that differ for principal components, found all equal",
            ));
        }
        let dim = rows.dim();
        let signs: Vec<f64> = (0..components)
            .map(|axis| sign(&spectrum.vectors, axis))
            .collect();
        let mut axes = Vec::with_capacity(dim * components);
        for row in 0..dim {
            axes.extend((0..components).map(|axis| (signs[axis] * spectrum.vectors[[row, axis]]) as f32));
        }
        let total: f64 = spectrum.variances.iter().map(|variance| variance.max(0.0)).sum();
        Ok(Self {
            mean: spectrum.mean.iter().map(|&value| value as f32).collect(),
            axes: Matrix::new(axes, dim, components)?,
            explained: spectrum.variances[..components]
                .iter()
                .map(|variance| variance / total)
                .collect(),
        })
    }

    /// Share of the whole variance along each axis, from 0 to 1, descending.
    pub fn explained(&self) -> &[f64] {
        &self.explained
    }

    /// Coordinates of `rows` along the axes, `[n, components]`.
    ///
    /// # Errors
    /// A width other than that of the rows fitted on.
    pub fn project(&self, rows: MatrixView<'_>) -> Result<Matrix> {
        project(rows, &self.mean, self.axes.view())
    }
}

/// Rows less `mean`, times `axes` `[d, components]`.
pub(super) fn project(rows: MatrixView<'_>, mean: &[f32], axes: MatrixView<'_>) -> Result<Matrix> {
    let (n, dim, components) = (rows.rows(), axes.rows(), axes.dim());
    if rows.dim() != dim {
        return Err(Error::data(
            "features",
            format!("expected the training rows' width {dim}, found {}", rows.dim()),
        ));
    }
    let mut projected = vec![0.0f32; n * components];
    let mut centred = Vec::new();
    for (rows, out) in rows
        .data()
        .chunks(ROW_BLOCK * dim)
        .zip(projected.chunks_mut(ROW_BLOCK * components))
    {
        centred.clear();
        centred.extend(rows.iter().zip(mean.iter().cycle()).map(|(v, mean)| v - mean));
        matmul(
            out,
            Operand::row_major(&centred, rows.len() / dim, dim),
            Operand::row_major(axes.data(), dim, components),
            Threads::Pool,
        );
    }
    Matrix::new(projected, n, components)
}

/// 1 or -1: what makes the entry of greatest size of column `axis` positive.
fn sign(vectors: &Array2<f64>, axis: usize) -> f64 {
    let mut greatest = 0.0f64;
    for &value in vectors.column(axis) {
        if value.abs() > greatest.abs() {
            greatest = value;
        }
    }
    if greatest < 0.0 { -1.0 } else { 1.0 }
}

pub(super) fn mean(rows: MatrixView<'_>) -> Vec<f64> {
    let mut sums = vec![0.0f64; rows.dim()];
    for row in rows.data().chunks_exact(rows.dim()) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value);
        }
    }
    sums.into_iter().map(|sum| sum / rows.rows() as f64).collect()
}

/// Covariance `[d, d]` with n in the denominator, summed in f64 over blocks of rows.
pub(super) fn covariance(rows: MatrixView<'_>, mean: &[f64]) -> Vec<f64> {
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

    /// Rows along (3, -4) / 5 with a little across, and a constant third column.
    fn line() -> Matrix {
        let data: Vec<f32> = (-10..=10)
            .flat_map(|i| {
                let (along, across) = (i as f32, if i % 2 == 0 { 0.1 } else { -0.1 });
                [0.6 * along + 0.8 * across + 5.0, -0.8 * along + 0.6 * across, 7.0]
            })
            .collect();
        Matrix::new(data, 21, 3).unwrap()
    }

    #[test]
    fn axes_are_found_signed_and_weighed() {
        let rows = line();
        let pca = Pca::fit(rows.view(), 3).unwrap();
        assert_eq!(pca.explained().len(), 2, "the third column does not vary");
        assert!(pca.explained()[0] > 0.999 && (pca.explained().iter().sum::<f64>() - 1.0).abs() < 1e-9);
        // The entry of greatest size, the second, is positive: the axis is (-0.6, 0.8).
        let axes = pca.axes.view();
        assert!((axes.row(0)[0] + 0.6).abs() < 1e-3 && (axes.row(1)[0] - 0.8).abs() < 1e-3);
        let projected = pca.project(rows.view()).unwrap();
        for (row, i) in (-10..=10).enumerate() {
            assert!((projected.view().row(row)[0] + i as f32).abs() < 0.05);
        }
        // Mirrored rows give the same axis.
        let mirrored: Vec<f32> = rows.view().data().iter().map(|value| -value).collect();
        let other = Pca::fit(Matrix::new(mirrored, 21, 3).unwrap().view(), 1).unwrap();
        assert!((other.axes.view().row(1)[0] - 0.8).abs() < 1e-3);
    }

    #[test]
    fn what_has_no_components_is_named() {
        let error = |rows: &Matrix, n| Pca::fit(rows.view(), n).unwrap_err().to_string();
        let rows = line();
        assert!(error(&rows, 0).contains("at least 1"));
        assert!(error(&rows.view().select(&[0]), 2).contains("two rows"));
        assert!(error(&rows.view().select(&[3, 3, 3]), 2).contains("all equal"));
        let nan = Matrix::new(vec![1.0, f32::NAN], 2, 1).unwrap();
        assert!(error(&nan, 1).contains("NaN"));
        let pca = Pca::fit(rows.view(), 1).unwrap();
        assert!(
            pca.project(nan.view())
                .unwrap_err()
                .to_string()
                .contains("width 3")
        );
    }
}
