//! L2 normalisation of rows.

use rayon::prelude::*;

use crate::{Matrix, MatrixView, Result};

/// Smallest norm a row is divided by, as in the reference's `F.normalize`.
pub const EPS: f64 = 1e-12;

/// Euclidean norm of a row, summed in f64.
pub fn norm(row: &[f32]) -> f64 {
    row.iter()
        .map(|&v| f64::from(v) * f64::from(v))
        .sum::<f64>()
        .sqrt()
}

/// Every row divided by `max(norm, 1e-12)`. A row of zeros stays zero: its similarity to everything is 0.
///
/// # Errors
/// None for a valid view; the type follows [`Matrix::new`].
pub fn l2_normalise(features: MatrixView<'_>) -> Result<Matrix> {
    l2_normalised(Matrix::new(
        features.data().to_vec(),
        features.rows(),
        features.dim(),
    )?)
}

/// [`l2_normalise`] in place, for features too large to be held twice.
///
/// # Errors
/// None; the type follows [`Matrix::new`].
pub fn l2_normalised(features: Matrix) -> Result<Matrix> {
    let (rows, dim) = (features.view().rows(), features.view().dim());
    let mut data = features.into_data();
    data.par_chunks_exact_mut(dim).for_each(|row| {
        let length = norm(row).max(EPS);
        for value in row {
            *value = (f64::from(*value) / length) as f32;
        }
    });
    Matrix::new(data, rows, dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_unit_and_zero_stays_zero() {
        // 3e30 squared overflows f32 but not the f64 sum
        let data = [3.0, 4.0, 0.0, 0.0, 3e30, 4e30];
        let unit = l2_normalise(MatrixView::new(&data, 3, 2).unwrap()).unwrap();
        let expected = [0.6f32, 0.8, 0.0, 0.0, 0.6, 0.8];
        for (found, expected) in unit.into_data().into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
    }
}
