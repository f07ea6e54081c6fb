//! Greedy k-means++: every centroid is a row, drawn with a chance proportional to its squared distance from those there
//! already; of `2 + ln k` such draws the one that lowers the sum of those distances most is taken.

use rand::Rng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::KMeansConfig;
use super::assign::squared_norm;
use crate::linalg::gemm::{Operand, Threads, matmul};
use crate::{Matrix, MatrixView, Result};

/// Rows in one product, and in one partial sum.
const ROW_BLOCK: usize = 1024;
/// A squared distance below this share of the squared lengths is rounding of the f32 product: the rows are equal.
const ROUNDING: f64 = 2e-6;

/// Chooses `k` rows of `features` as the first centroids.
///
/// # Errors
/// None for settings that [`super::kmeans`] let through; the type follows [`Matrix::new`].
pub(super) fn greedy_plus_plus(
    features: MatrixView<'_>,
    config: &KMeansConfig,
    rng: &mut ChaCha8Rng,
) -> Result<Matrix> {
    match config.seeding_rows.filter(|&rows| rows < features.rows()) {
        None => choose(features, config.k, rng),
        Some(rows) => {
            let mut drawn = index::sample(rng, features.rows(), rows).into_vec();
            drawn.sort_unstable();
            choose(features.select(&drawn).view(), config.k, rng)
        }
    }
}

fn choose(features: MatrixView<'_>, k: usize, rng: &mut ChaCha8Rng) -> Result<Matrix> {
    let n = features.rows();
    let trials = 2 + (k as f64).ln() as usize;
    let norms: Vec<f64> = features
        .data()
        .par_chunks_exact(features.dim())
        .map(squared_norm)
        .collect();
    let first = rng.random_range(0..n);
    let mut chosen = vec![first];
    let mut nearest = vec![f64::INFINITY; n];
    let mut total = take(features, &norms, first, &mut nearest);
    while chosen.len() < k {
        let candidates = if total > 0.0 {
            draw(&nearest, total, trials, rng)
        } else {
            // Fewer different rows than centroids: any row is as good, and its cluster will stay empty.
            vec![rng.random_range(0..n)]
        };
        let potentials = potentials(features, &norms, &candidates, &nearest);
        let best = (0..candidates.len())
            .min_by(|&a, &b| potentials[a].total_cmp(&potentials[b]))
            .expect("at least one draw");
        total = take(features, &norms, candidates[best], &mut nearest);
        chosen.push(candidates[best]);
    }
    Ok(features.select(&chosen))
}

/// Rows drawn with a chance proportional to `weights`, which sum to `total` in blocks.
fn draw(weights: &[f64], total: f64, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut targets: Vec<(f64, usize)> = (0..count)
        .map(|place| (rng.random::<f64>() * total, place))
        .collect();
    targets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut rows = vec![0; count];
    let (mut sum, mut last, mut next) = (0.0, 0, 0);
    for (row, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        sum += weight;
        last = row;
        while next < count && targets[next].0 < sum {
            rows[targets[next].1] = row;
            next += 1;
        }
    }
    // The sums of blocks and of single rows round differently: what lies past the end goes to the last row.
    targets[next..].iter().for_each(|&(_, place)| rows[place] = last);
    rows
}

/// Sum of the squared distances to the nearest centroid, for each candidate as one more centroid.
fn potentials(features: MatrixView<'_>, norms: &[f64], candidates: &[usize], nearest: &[f64]) -> Vec<f64> {
    let partial: Vec<Vec<f64>> = blocks(features, norms, candidates, |first, distances| {
        let mut sums = vec![0.0; candidates.len()];
        for (row, distances) in distances.chunks_exact(candidates.len()).enumerate() {
            for (sum, &distance) in sums.iter_mut().zip(distances) {
                *sum += distance.min(nearest[first + row]);
            }
        }
        sums
    });
    (0..candidates.len())
        .map(|place| partial.iter().map(|sums| sums[place]).sum())
        .collect()
}

/// Makes row `centroid` a centroid: lowers `nearest` to the distance from it, and gives their new sum.
fn take(features: MatrixView<'_>, norms: &[f64], centroid: usize, nearest: &mut [f64]) -> f64 {
    let distances = blocks(features, norms, &[centroid], |_, distances| distances.to_vec());
    nearest
        .par_chunks_mut(ROW_BLOCK)
        .zip(distances)
        .map(|(nearest, distances)| {
            for (nearest, distance) in nearest.iter_mut().zip(distances) {
                *nearest = nearest.min(distance);
            }
            nearest.iter().sum::<f64>()
        })
        .collect::<Vec<f64>>()
        .iter()
        .sum()
}

/// `read(first row, distances)` for each block of rows, `distances` being squared, `[rows, candidates]`.
fn blocks<T: Send>(
    features: MatrixView<'_>,
    norms: &[f64],
    candidates: &[usize],
    read: impl Fn(usize, &[f64]) -> T + Sync,
) -> Vec<T> {
    let (dim, width) = (features.dim(), candidates.len());
    let targets = features.select(candidates).into_data(); // [candidates, d]
    features
        .data()
        .par_chunks(ROW_BLOCK * dim)
        .enumerate()
        .map(|(number, rows)| {
            let (first, count) = (number * ROW_BLOCK, rows.len() / dim);
            let mut products = vec![0.0f32; count * width]; // [rows, candidates]
            matmul(
                &mut products,
                Operand::row_major(rows, count, dim),
                Operand::row_major(&targets, width, dim).transposed(),
                Threads::One,
            );
            let distances: Vec<f64> = products
                .iter()
                .enumerate()
                .map(|(place, &product)| {
                    let lengths = norms[first + place / width] + norms[candidates[place % width]];
                    let distance = lengths - 2.0 * f64::from(product);
                    if distance > ROUNDING * lengths {
                        distance
                    } else {
                        0.0
                    }
                })
                .collect();
            read(first, &distances)
        })
        .collect()
}
