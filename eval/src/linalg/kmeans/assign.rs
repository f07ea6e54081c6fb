//! The nearest centroid of every row. `|x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2)`, so the nearest is where the bracket is
//! greatest, and the products of a block of rows with a block of centroids give it.

use rayon::prelude::*;

use crate::linalg::gemm::{Operand, Threads, matmul};
use crate::linalg::neighbours::{DATABASE_BLOCK, check_pair, filled_up};
use crate::{MatrixView, Result};

/// Rows in one product.
const ROW_BLOCK: usize = 384;

/// Which centroid each row is nearest to.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// Number of the nearest centroid; the first of equals.
    pub clusters: Vec<u32>,
    /// Squared distance to it, taken in f64 from the difference.
    pub distances: Vec<f64>,
}

impl Assignment {
    /// Sum of the squared distances.
    pub fn inertia(&self) -> f64 {
        self.distances.iter().sum()
    }
}

/// Assigns every row of `features` to the nearest of `centroids`. Memory beside the result: a few MiB a thread.
///
/// # Errors
/// Widths that differ, NaN or infinity, values so large that a product could overflow.
pub fn assign(features: MatrixView<'_>, centroids: MatrixView<'_>) -> Result<Assignment> {
    check_pair(features, centroids)?;
    let dim = features.dim();
    let half_norms: Vec<f32> = centroids
        .data()
        .par_chunks_exact(dim)
        .map(|centroid| (squared_norm(centroid) / 2.0) as f32)
        .collect();
    let mut clusters = vec![0u32; features.rows()];
    let mut distances = vec![0.0f64; features.rows()];
    features
        .data()
        .par_chunks(ROW_BLOCK * dim)
        .zip(clusters.par_chunks_mut(ROW_BLOCK))
        .zip(distances.par_chunks_mut(ROW_BLOCK))
        .for_each(|((rows, clusters), distances)| {
            assign_block(rows, centroids, &half_norms, clusters);
            for ((row, &cluster), distance) in rows.chunks_exact(dim).zip(&*clusters).zip(distances) {
                *distance = squared_distance(row, centroids.row(cluster as usize));
            }
        });
    Ok(Assignment { clusters, distances })
}

fn assign_block(rows: &[f32], centroids: MatrixView<'_>, half_norms: &[f32], clusters: &mut [u32]) {
    let dim = centroids.dim();
    // Two rows at least and centroid blocks of one size: then a row's scores do not depend on its block (`neighbours`).
    let block = filled_up(rows, 2 * dim);
    let block_rows = block.len() / dim;
    let mut products = vec![0.0f32; block_rows * DATABASE_BLOCK]; // [block_rows, DATABASE_BLOCK]
    let mut best = vec![f32::NEG_INFINITY; clusters.len()];
    for start in (0..centroids.rows()).step_by(DATABASE_BLOCK) {
        let end = (start + DATABASE_BLOCK).min(centroids.rows());
        let target = filled_up(&centroids.data()[start * dim..end * dim], DATABASE_BLOCK * dim);
        matmul(
            &mut products,
            Operand::row_major(&block, block_rows, dim),
            Operand::row_major(&target, DATABASE_BLOCK, dim).transposed(),
            Threads::One,
        );
        let scored = products
            .chunks_exact(DATABASE_BLOCK)
            .zip(&mut best)
            .zip(&mut *clusters);
        for ((row, best), cluster) in scored {
            for (place, (&product, &half_norm)) in row.iter().zip(&half_norms[start..end]).enumerate() {
                let score = product - half_norm;
                if score > *best {
                    *best = score;
                    *cluster = (start + place) as u32;
                }
            }
        }
    }
}

pub(super) fn squared_norm(row: &[f32]) -> f64 {
    row.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let differences = a.iter().zip(b).map(|(&x, &y)| f64::from(x) - f64::from(y));
    differences.map(|difference| difference * difference).sum()
}
