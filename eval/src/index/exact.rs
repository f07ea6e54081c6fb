//! The exact index: the normalised rows themselves.

use super::{Hit, prepare_rows};
use crate::linalg::nearest_neighbours;
use crate::{Error, Matrix, MatrixView, Result};

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
        if vectors.view().rows() == 0 {
            return Err(Error::data("features", "expected at least one row, found none"));
        }
        vectors.view().check_finite("index")?;
        Ok(Self { vectors })
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.vectors.view().rows()
    }

    /// Whether no row is held; [`Self::build`] makes no such index.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Width of the rows.
    pub fn dim(&self) -> usize {
        self.vectors.view().dim()
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
