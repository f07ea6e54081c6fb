//! The nearest centroid of every row. `|x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2)`, so the nearest is where the bracket is
//! greatest, and the products of a block of rows with a block of centroids give it.

use std::borrow::Cow;

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
const MAX_CENTROIDS: usize = 12 * CENTROID_TILE;

/// Centroids in one product: blocks of one size that hold `k` with little to spare.
fn centroid_block(k: usize) -> usize {
    let blocks = k.div_ceil(MAX_CENTROIDS).max(1);
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
    let clusters = nearest(features, Rows::All, &Targets::new(centroids), None)
        .iter()
        .map(|nearest| nearest.place)
        .collect::<Vec<_>>();
    let distances = distances(features, centroids, &clusters);
    Ok(Assignment { clusters, distances })
}

/// Squared distance of each row to the centroid of its cluster, in f64.
pub(super) fn distances(features: MatrixView<'_>, centroids: MatrixView<'_>, clusters: &[u32]) -> Vec<f64> {
    features
        .data()
        .par_chunks_exact(features.dim())
        .zip(clusters)
        .map(|(row, &cluster)| squared_distance(row, centroids.row(cluster as usize)))
        .collect()
}

/// Centroids to be scored against, with half their squared lengths.
pub(super) struct Targets<'a> {
    centroids: MatrixView<'a>,
    half_norms: Vec<f32>,
}

impl<'a> Targets<'a> {
    pub(super) fn new(centroids: MatrixView<'a>) -> Self {
        let half_norms = centroids
            .data()
            .par_chunks_exact(centroids.dim())
            .map(|centroid| (squared_norm(centroid) / 2.0) as f32)
            .collect();
        Self {
            centroids,
            half_norms,
        }
    }
}

/// Products that `count` centroids cost a row, the zeros of the last block included.
pub(super) fn padded(count: usize) -> usize {
    if count == 0 {
        return 0;
    }
    let block = centroid_block(count);
    count.div_ceil(block) * block
}

/// Rows of a matrix: all, or those with the listed numbers.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    All,
    Listed(&'a [u32]),
}

/// No centroid is left out.
pub(super) const NONE: u32 = u32::MAX;

/// The two greatest scores `x . c - |c|^2 / 2` of a row.
#[derive(Clone, Copy)]
pub(super) struct Nearest {
    /// The greatest.
    pub(super) score: f32,
    /// The centroid that has it, the first of equals.
    pub(super) place: u32,
    /// The greatest of the other centroids.
    pub(super) second: f32,
}

/// The nearest target of each of `rows`, in their order; `without` names for each a target that is left out, or [`NONE`].
pub(super) fn nearest(
    features: MatrixView<'_>,
    rows: Rows<'_>,
    targets: &Targets<'_>,
    without: Option<&[u32]>,
) -> Vec<Nearest> {
    let nothing = Nearest {
        score: f32::NEG_INFINITY,
        place: 0,
        second: f32::NEG_INFINITY,
    };
    let count = match rows {
        Rows::All => features.rows(),
        Rows::Listed(list) => list.len(),
    };
    let mut found = vec![nothing; count];
    let dim = features.dim();
    found
        .par_chunks_mut(ROW_BLOCK)
        .enumerate()
        .for_each(|(number, found)| {
            let range = number * ROW_BLOCK..number * ROW_BLOCK + found.len();
            let block = match rows {
                Rows::All => Cow::Borrowed(&features.data()[range.start * dim..range.end * dim]),
                Rows::Listed(list) => Cow::Owned(
                    list[range.clone()]
                        .iter()
                        .flat_map(|&row| features.row(row as usize))
                        .copied()
                        .collect(),
                ),
            };
            score_block(&block, targets, without.map(|without| &without[range]), found);
        });
    found
}

fn score_block(rows: &[f32], targets: &Targets<'_>, without: Option<&[u32]>, found: &mut [Nearest]) {
    let centroids = targets.centroids;
    let dim = centroids.dim();
    // Three rows at least and centroid blocks of one size: then a row's scores do not depend on its block (`neighbours`). With two, a
    // product with one tile of centroids would have no more than the 256 values up to which there is a kernel of its own.
    let block = filled_up(rows, 3 * dim);
    let block_rows = block.len() / dim;
    let width = centroid_block(centroids.rows());
    let mut products = vec![0.0f32; block_rows * width]; // [block_rows, width]
    for start in (0..centroids.rows()).step_by(width) {
        let end = (start + width).min(centroids.rows());
        let target = filled_up(&centroids.data()[start * dim..end * dim], width * dim);
        matmul(
            &mut products,
            Operand::row_major(&block, block_rows, dim),
            Operand::row_major(&target, width, dim).transposed(),
            Threads::One,
        );
        for (row, (products, found)) in products.chunks_exact(width).zip(&mut *found).enumerate() {
            let left_out = without.map_or(NONE, |without| without[row]);
            nearer(products, &targets.half_norms[start..end], start, left_out, found);
        }
    }
}

/// Takes the scores of the centroids from `first` on into `found`, but not that of `left_out`.
fn nearer(products: &[f32], half_norms: &[f32], first: usize, left_out: u32, found: &mut Nearest) {
    const LANES: usize = 32;
    for (number, (products, half_norms)) in products.chunks(LANES).zip(half_norms.chunks(LANES)).enumerate() {
        let scores = || {
            products
                .iter()
                .zip(half_norms)
                .map(|(product, half_norm)| product - half_norm)
        };
        // No early exit: the compiler turns this into a few vector comparisons, and few blocks hold a nearer centroid.
        let min = found.second;
        if !scores().fold(false, |any, score| any | (score > min)) {
            continue;
        }
        for (lane, score) in scores().enumerate() {
            let place = (first + number * LANES + lane) as u32;
            if score <= found.second || place == left_out {
                continue;
            }
            if score > found.score {
                found.second = found.score;
                found.score = score;
                found.place = place;
            } else {
                found.second = score;
            }
        }
    }
}

pub(super) fn squared_norm(row: &[f32]) -> f64 {
    row.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

/// Eight sums side by side, so that an addition need not wait for the one before.
pub(super) fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let square = |x: f32, y: f32| (f64::from(x) - f64::from(y)).powi(2);
    let mut sums = [0.0f64; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += square(a[lane], b[lane]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&x, &y)| square(x, y)).sum();
    sums.iter().sum::<f64>() + rest
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
                block.is_multiple_of(CENTROID_TILE) && block <= MAX_CENTROIDS,
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
