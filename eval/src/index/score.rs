//! How good and how fast an index is, against exact search.

use std::time::Instant;

use super::{Hit, Index};
use crate::linalg::nearest_neighbours;
use crate::{MatrixView, Result};

/// How far below the k-th best similarity a hit may lie and still count: rounding, so that of equal rows any is right.
const ROUNDING: f32 = 2e-6;

/// One setting of the search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IndexScore {
    /// Width of the walk; none for an exact index.
    pub ef: Option<usize>,
    /// Mean over the queries of the share of the k nearest rows found.
    pub recall: f64,
    /// Queries answered in a second, on all threads of the rayon pool.
    pub queries_per_second: f64,
}

/// Share of the `k` true neighbours found, as a mean over the queries. `thresholds` is the similarity of the k-th true
/// neighbour of each: a hit counts when it is as near, for of several equal rows any is right.
pub fn recall(found: &[Vec<Hit>], thresholds: &[f32], k: usize) -> f64 {
    let right = found.iter().zip(thresholds).map(|(hits, &threshold)| {
        let near = hits
            .iter()
            .take(k)
            .filter(|hit| hit.similarity >= threshold - ROUNDING);
        near.count()
    });
    right.sum::<usize>() as f64 / (k * found.len()) as f64
}

/// Measures `index` on `queries` at every `ef` given (once for an exact index).
///
/// # Errors
/// As [`Index::search`].
pub fn score(index: &Index, queries: MatrixView<'_>, k: usize, efs: &[usize]) -> Result<Vec<IndexScore>> {
    let unit = super::prepare(queries, index.dim(), index.len(), k)?;
    let thresholds = kth_similarities(index, unit.view(), k)?;
    let settings: Vec<Option<usize>> = match index {
        Index::Exact(_) => vec![None],
        _ => efs.iter().map(|&ef| Some(ef.max(k))).collect(),
    };
    settings
        .into_iter()
        .map(|ef| {
            let start = Instant::now();
            let found = index.search(queries, k, ef.unwrap_or(k))?;
            let seconds = start.elapsed().as_secs_f64();
            Ok(IndexScore {
                ef,
                recall: recall(&found, &thresholds, k),
                queries_per_second: queries.rows() as f64 / seconds,
            })
        })
        .collect()
}

/// Similarity of the k-th nearest row of each query by exact search over the vectors that the index holds.
fn kth_similarities(index: &Index, unit: MatrixView<'_>, k: usize) -> Result<Vec<f32>> {
    let vectors = match index {
        Index::Exact(index) => index.vectors(),
        Index::Hnsw(index) => index.vectors(),
        #[cfg(feature = "usearch")]
        Index::Usearch(index) => return index.kth_similarities(unit, k),
    };
    let truth = nearest_neighbours(unit, vectors.view(), k)?;
    let last = |query| truth.similarities_of(query)[k - 1];
    Ok((0..unit.rows()).map(last).collect())
}
