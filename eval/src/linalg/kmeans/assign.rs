//! The nearest centroid of every row. `|x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2)`, so the nearest is where the bracket is
//! greatest, and the products of a block of rows with a block of centroids give it.

use rayon::prelude::*;

use crate::linalg::gemm::{Operand, Threads, matmul};
use crate::linalg::neighbours::{check_pair, filled_up};
use crate::{MatrixView, Result};

/// Rows in one product.
const ROW_BLOCK: usize = 384;
/// Centroids in one product are a multiple of this, the rest of the last block being zeros: a multiple of every kernel's tile
/// and above 64, as `neighbours` says of its own blocks, but small, or a thousand centroids would cost as much as 1,536.
const CENTROID_TILE: usize = 96;
/// Most centroids in one product.
const MOST_CENTROIDS: usize = 12 * CENTROID_TILE;

/// Centroids in one product: blocks of one size that hold `k` with little to spare.
fn centroid_block(k: usize) -> usize {
    let blocks = k.div_ceil(MOST_CENTROIDS).max(1);
    k.div_ceil(blocks)
        .next_multiple_of(CENTROID_TILE)
        .max(CENTROID_TILE)
}

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
    Ok(assign_checked(features, centroids))
}

/// [`assign`] without its checks, each of which reads all rows: for the means of rows that it has seen before, which are as
/// finite and no longer.
pub(super) fn assign_checked(features: MatrixView<'_>, centroids: MatrixView<'_>) -> Assignment {
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
    Assignment { clusters, distances }
}

fn assign_block(rows: &[f32], centroids: MatrixView<'_>, half_norms: &[f32], clusters: &mut [u32]) {
    let dim = centroids.dim();
    // Two rows at least and centroid blocks of one size: then a row's scores do not depend on its block (`neighbours`).
    let block = filled_up(rows, 2 * dim);
    let block_rows = block.len() / dim;
    let width = centroid_block(centroids.rows());
    let mut products = vec![0.0f32; block_rows * width]; // [block_rows, width]
    let mut best = vec![f32::NEG_INFINITY; clusters.len()];
    for start in (0..centroids.rows()).step_by(width) {
        let end = (start + width).min(centroids.rows());
        let target = filled_up(&centroids.data()[start * dim..end * dim], width * dim);
        matmul(
            &mut products,
            Operand::row_major(&block, block_rows, dim),
            Operand::row_major(&target, width, dim).transposed(),
            Threads::One,
        );
        let scored = products.chunks_exact(width).zip(&mut best).zip(&mut *clusters);
        for ((row, best), cluster) in scored {
            nearer(row, &half_norms[start..end], start, best, cluster);
        }
    }
}

/// Sets `cluster` to the centroid, numbered from `first`, whose score is the first greatest and above `best`.
fn nearer(products: &[f32], half_norms: &[f32], first: usize, best: &mut f32, cluster: &mut u32) {
    const LANES: usize = 32;
    for (number, (products, half_norms)) in products.chunks(LANES).zip(half_norms.chunks(LANES)).enumerate() {
        let scores = || {
            products
                .iter()
                .zip(half_norms)
                .map(|(product, half_norm)| product - half_norm)
        };
        // No early exit: the compiler turns this into a few vector comparisons, and few blocks hold a nearer centroid.
        let least = *best;
        if !scores().fold(false, |any, score| any | (score > least)) {
            continue;
        }
        for (place, score) in scores().enumerate() {
            if score > *best {
                *best = score;
                *cluster = (first + number * LANES + place) as u32;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_all_centroids_with_little_to_spare() {
        for k in [1, 95, 96, 97, 1000, 1152, 1153, 2304, 2305, 50_000] {
            let block = centroid_block(k);
            let padded = k.div_ceil(block) * block;
            assert!(
                block.is_multiple_of(CENTROID_TILE) && block <= MOST_CENTROIDS,
                "{k}: {block}"
            );
            assert!(
                padded >= k && padded - k <= CENTROID_TILE * k.div_ceil(block),
                "{k}: {padded}"
            );
        }
        assert_eq!(centroid_block(1000), 1056);
    }

    /// Equal centroids in whatever block: the first is nearest, and every row's distance is the same to the bit.
    #[test]
    fn equal_centroids_tie_in_every_block() {
        for (k, dim) in [(5, 3), (100, 17), (1000, 32), (2500, 33)] {
            let centroid: Vec<f32> = (0..dim).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect();
            let centroids = crate::Matrix::new(centroid.repeat(k), k, dim).unwrap();
            let row: Vec<f32> = (0..dim).map(|i| ((i * 53 % 97) as f32 - 48.0) / 29.0).collect();
            let rows = crate::Matrix::new(row.repeat(ROW_BLOCK + 5), ROW_BLOCK + 5, dim).unwrap();
            let found = assign(rows.view(), centroids.view()).unwrap();
            assert!(found.clusters.iter().all(|&cluster| cluster == 0), "{k} {dim}");
        }
    }
}
