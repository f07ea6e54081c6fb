//! Greedy k-means++: every centroid is a row, drawn with a chance proportional to its squared distance from those there
//! already; of `2 + ln k` such draws the one that lowers the sum of those distances most is taken.

use rand::Rng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::KMeansConfig;
use super::assign::squared_norm;
use crate::linalg::gemm::{Operand, Threads, matmul};
use crate::{Matrix, Result, Share};

/// Rows in one product, and in one partial sum.
const ROW_BLOCK: usize = 1024;
/// A squared distance below this share of the squared lengths is rounding of the f32 product: the rows are equal.
const ROUNDING: f64 = 2e-6;

/// Chooses `config.k` rows of `share` as the first centroids, the same on all processes.
///
/// # Errors
/// Processes that cannot reach each other.
pub(super) fn greedy_plus_plus(
    share: &Share<'_>,
    config: &KMeansConfig,
    rng: &mut ChaCha8Rng,
) -> Result<Matrix> {
    match config.seeding_rows.filter(|&rows| rows < share.total()) {
        None => choose(share, config.k, rng),
        Some(rows) => {
            let mut drawn = index::sample(rng, share.total(), rows).into_vec();
            drawn.sort_unstable();
            let few = share.select(&drawn)?;
            choose(&Share::of_all(few.view(), share.team()), config.k, rng)
        }
    }
}

fn choose(share: &Share<'_>, k: usize, rng: &mut ChaCha8Rng) -> Result<Matrix> {
    let (n, dim) = (share.total(), share.rows().dim());
    let trials = 2 + (k as f64).ln() as usize;
    let mut rows = Rows::of(share);
    let mut chosen = Vec::with_capacity(k * dim);
    let first = share.select(&[rng.random_range(0..n)])?;
    rows.take(first.view().data())?;
    chosen.extend(first.into_data());
    while chosen.len() < k * dim {
        let candidates = if rows.total > 0.0 {
            rows.draw(trials, rng)?
        } else {
            // Fewer different rows than centroids: any row is as good, and its cluster will stay empty.
            vec![rng.random_range(0..n)]
        };
        let candidates = share.select(&candidates)?;
        let potentials = rows.potentials(candidates.view().data())?;
        let best = (0..potentials.len())
            .min_by(|&a, &b| potentials[a].total_cmp(&potentials[b]))
            .expect("at least one draw");
        let best = candidates.view().row(best);
        rows.take(best)?;
        chosen.extend_from_slice(best);
    }
    Matrix::new(chosen, k, dim)
}

/// The rows that are here, and how far they are from the centroids chosen so far.
struct Rows<'a> {
    share: &'a Share<'a>,
    /// Squared lengths.
    norms: Vec<f64>,
    /// Squared distances to the nearest centroid.
    nearest: Vec<f64>,
    /// Their sum in each block of all processes' rows, and over all blocks.
    blocks: Vec<f64>,
    total: f64,
}

impl<'a> Rows<'a> {
    fn of(share: &'a Share<'a>) -> Self {
        let rows = share.rows();
        let norms = rows.data().par_chunks_exact(rows.dim()).map(squared_norm);
        Self {
            share,
            norms: norms.collect(),
            nearest: vec![f64::INFINITY; rows.rows()],
            blocks: Vec::new(),
            total: f64::INFINITY,
        }
    }

    /// Makes `centroid` one more.
    fn take(&mut self, centroid: &[f32]) -> Result<()> {
        let distances = self.distances(centroid, |_, distances| distances.to_vec());
        let sums: Vec<f64> = self
            .nearest
            .par_chunks_mut(ROW_BLOCK)
            .zip(distances)
            .map(|(nearest, distances)| {
                for (nearest, distance) in nearest.iter_mut().zip(distances) {
                    *nearest = nearest.min(distance);
                }
                nearest.iter().sum::<f64>()
            })
            .collect();
        self.blocks = self.share.team().gather_f64(&sums)?;
        self.total = self.blocks.iter().sum();
        Ok(())
    }

    /// Rows drawn with a chance proportional to their distance, by place among all.
    fn draw(&self, count: usize, rng: &mut ChaCha8Rng) -> Result<Vec<usize>> {
        let mut drawn = Vec::with_capacity(count);
        let here = self.share.first()..self.share.first() + self.nearest.len();
        for _ in 0..count {
            let (block, left) = pass(&self.blocks, rng.random::<f64>() * self.total);
            let start = block * ROW_BLOCK;
            if here.contains(&start) {
                let rows = &self.nearest[start - here.start..];
                let (row, _) = pass(&rows[..rows.len().min(ROW_BLOCK)], left);
                drawn.push((start + row) as u32);
            }
        }
        // Every process finds those of its rows: in order they are the same for any number of processes.
        let mut all = self.share.team().gather_numbers(&drawn)?;
        all.sort_unstable();
        Ok(all.into_iter().map(|row| row as usize).collect())
    }

    /// Sum of the squared distances to the nearest centroid, for each of `candidates` as one more centroid.
    fn potentials(&self, candidates: &[f32]) -> Result<Vec<f64>> {
        let width = candidates.len() / self.share.rows().dim();
        let partial = self.distances(candidates, |first, distances| {
            let mut sums = vec![0.0; width];
            for (row, distances) in distances.chunks_exact(width).enumerate() {
                for (sum, &distance) in sums.iter_mut().zip(distances) {
                    *sum += distance.min(self.nearest[first + row]);
                }
            }
            sums
        });
        let partial = self.share.team().gather_f64(&partial.concat())?; // [blocks, width]
        let sum = |place: usize| partial.iter().skip(place).step_by(width).sum::<f64>();
        Ok((0..width).map(sum).collect())
    }

    /// `read(first row, distances)` for each block of rows, `distances` from `centroids` being squared, `[rows, centroids]`.
    fn distances<T: Send>(&self, centroids: &[f32], read: impl Fn(usize, &[f64]) -> T + Sync) -> Vec<T> {
        let dim = self.share.rows().dim();
        let width = centroids.len() / dim;
        let lengths: Vec<f64> = centroids.chunks_exact(dim).map(squared_norm).collect();
        self.share
            .rows()
            .data()
            .par_chunks(ROW_BLOCK * dim)
            .enumerate()
            .map(|(number, rows)| {
                let (first, count) = (number * ROW_BLOCK, rows.len() / dim);
                let mut products = vec![0.0f32; count * width]; // [rows, centroids]
                matmul(
                    &mut products,
                    Operand::row_major(rows, count, dim),
                    Operand::row_major(centroids, width, dim).transposed(),
                    Threads::One,
                );
                let distances: Vec<f64> = products
                    .iter()
                    .enumerate()
                    .map(|(place, &product)| {
                        let lengths = self.norms[first + place / width] + lengths[place % width];
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
}

/// The first of `weights` whose sum with those before it is above `target`, and what of `target` is left before it. What lies past the
/// end, as sums of blocks and of single rows round differently, is the last weight's above 0.
fn pass(weights: &[f64], target: f64) -> (usize, f64) {
    let mut left = target;
    let mut last = (0, target);
    for (place, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        last = (place, left);
        if left < weight {
            break;
        }
        left -= weight;
    }
    last
}
