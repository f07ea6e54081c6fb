//! The exact index: the normalised rows themselves.

use super::{Hit, check_unit_rows, prepare_rows};
use crate::linalg::nearest_neighbours;
use crate::{Matrix, MatrixView, Result};

/// Compares a query with every row.
#[derive(Debug, Clone, PartialEq)]
pub struct ExactIndex {
    vectors: Matrix,
}

impl ExactIndex {
    /// An index over the rows of `features`.
    ///
    /// # Errors
    /// No row, NaN or infinity.
    pub fn build(features: MatrixView<'_>) -> Result<Self> {
        Ok(Self {
            vectors: prepare_rows(features)?,
        })
    }

    /// An index over rows that are normalised already, as [`Self::vectors`] gave them.
    ///
    /// # Errors
    /// No row, NaN or infinity.
    pub fn of_unit_rows(vectors: Matrix) -> Result<Self> {
        check_unit_rows(vectors.view())?;
        Ok(Self { vectors })
    }

    /// The normalised rows.
    pub fn vectors(&self) -> &Matrix {
        &self.vectors
    }

    /// Searches for queries that are normalised already.
    pub(super) fn search_unit(&self, queries: MatrixView<'_>, k: usize) -> Result<Vec<Vec<Hit>>> {
        let found = nearest_neighbours(queries, self.vectors.view(), k)?;
        let hits = (0..queries.rows()).map(|query| {
            let pairs = found.indices_of(query).iter().zip(found.similarities_of(query));
            pairs.map(|(&row, &similarity)| Hit { row, similarity }).collect()
        });
        Ok(hits.collect())
    }
}
