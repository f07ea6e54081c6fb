//! Nearest-neighbour indexes over the rows of a matrix, by cosine similarity: `exact` compares with every row, `hnsw` walks a graph and
//! misses some, and so does `usearch` (a Cargo feature), whose graph lies in a file. Rows are L2-normalised on the way in, queries on the
//! way to the search. What an index looks like on disk, and whose rows it holds, is for the caller; `score` measures one against the other.
//!
//! Of the graph: `codes` are rows in a byte a value (`integer` multiplies them), `order` puts like ones side by side, `rows` holds both;
//! `hnsw_rs` builds on them by `distance`, `links` takes the graph over, `mend` leads to rows that few lead to, `walk` searches.

mod codes;
mod distance;
mod exact;
mod hnsw;
mod integer;
mod links;
mod mend;
mod order;
mod rows;
mod scalar;
mod score;
mod tuning;
#[cfg(feature = "usearch")]
mod usearch;
mod walk;

#[cfg(feature = "usearch")]
pub use self::usearch::UsearchIndex;
pub use exact::ExactIndex;
pub use hnsw::{HnswConfig, HnswIndex};
pub use scalar::Scalar;
pub use score::{IndexScore, recall, score};
pub use tuning::{Tuning, build_for_recall};

use crate::linalg::normalise::l2_normalise;
use crate::{Error, Matrix, MatrixView, Result};

/// A row of an index and its cosine similarity to a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Row of the matrix the index was built over.
    pub row: u32,
    /// Cosine similarity, -1 to 1.
    pub similarity: f32,
}

/// An index of any kind.
#[derive(Debug)]
pub enum Index {
    /// Compares with every row.
    Exact(ExactIndex),
    /// Walks a graph.
    Hnsw(HnswIndex),
    /// Walks a graph in a usearch file.
    #[cfg(feature = "usearch")]
    Usearch(UsearchIndex),
}

impl Index {
    /// Name of the kind: `exact`, `hnsw` or `usearch`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Exact(_) => "exact",
            Self::Hnsw(_) => "hnsw",
            #[cfg(feature = "usearch")]
            Self::Usearch(_) => "usearch",
        }
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        match self {
            Self::Exact(index) => index.vectors().view().rows(),
            Self::Hnsw(index) => index.vectors().view().rows(),
            #[cfg(feature = "usearch")]
            Self::Usearch(index) => index.len(),
        }
    }

    /// Whether no row is held; no constructor makes such an index.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Width of the rows.
    pub fn dim(&self) -> usize {
        match self {
            Self::Exact(index) => index.vectors().view().dim(),
            Self::Hnsw(index) => index.vectors().view().dim(),
            #[cfg(feature = "usearch")]
            Self::Usearch(index) => index.dim(),
        }
    }

    /// The `k` best rows for each query, best first, on all threads of the rayon pool. `ef` is the width of the walk of
    /// a graph, at least `k`; an exact index has no use for it. A graph may find fewer than `k`.
    ///
    /// # Errors
    /// A width other than the index's, `k` of 0 or above the number of rows, NaN or infinity.
    pub fn search(&self, queries: MatrixView<'_>, k: usize, ef: usize) -> Result<Vec<Vec<Hit>>> {
        let unit = prepare(queries, self.dim(), self.len(), k)?;
        match self {
            Self::Exact(index) => index.search_unit(unit.view(), k),
            Self::Hnsw(index) => Ok(index.search_unit(unit.view(), k, ef)),
            #[cfg(feature = "usearch")]
            Self::Usearch(index) => index.search_unit(unit.view(), k, ef),
        }
    }
}

/// Checks queries and normalises them.
fn prepare(queries: MatrixView<'_>, dim: usize, rows: usize, k: usize) -> Result<Matrix> {
    if queries.dim() != dim {
        return Err(Error::data(
            "query features",
            format!("expected the index's width {dim}, found {}", queries.dim()),
        ));
    }
    if k == 0 || k > rows {
        return Err(Error::config(
            "k",
            format!("expected 1 to {rows} (the rows of the index), found {k}"),
        ));
    }
    queries.check_finite("query features")?;
    l2_normalise(queries)
}

/// Checks rows that are normalised already.
fn check_unit_rows(vectors: MatrixView<'_>) -> Result<()> {
    if vectors.rows() == 0 {
        return Err(Error::data("features", "expected at least one row, found none"));
    }
    vectors.check_finite("index")
}

/// Checks the rows of a new index and normalises them.
fn prepare_rows(features: MatrixView<'_>) -> Result<Matrix> {
    check_rows(features)?;
    l2_normalise(features)
}

/// Checks the rows of a new index.
fn check_rows(features: MatrixView<'_>) -> Result<()> {
    if features.rows() == 0 {
        return Err(Error::data("features", "expected at least one row, found none"));
    }
    if u32::try_from(features.rows()).is_err() {
        return Err(Error::data("features", "more than 4,294,967,295 rows"));
    }
    features.check_finite("features")
}

#[cfg(test)]
mod tests;
