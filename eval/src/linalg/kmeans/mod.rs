//! k-means (Lloyd 1982) with greedy k-means++ seeding (Arthur & Vassilvitskii 2007), on blocks: no `n x k` matrix ever
//! exists, so a million rows and thousands of centroids fit. Distances come from matrix products, of which those that cannot
//! change a cluster are left out ([`lloyd`]), and sums do not depend on the order of rows (`binned`): neither the number of threads, nor
//! the blocks, nor the number of processes that divide the rows changes a result.

mod assign;
mod lloyd;
mod seeding;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use assign::{Assignment, assign};
use lloyd::Lloyd;

use crate::linalg::binned::Bins;
use crate::{Error, Matrix, MatrixView, Result, Share};

/// Sums that processes exchange at a time, 8 MiB.
const SUMS_AT_ONCE: usize = 1 << 20;

/// Settings of k-means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KMeansConfig {
    /// Number of clusters, at least 1 and at most the number of rows.
    pub k: usize,
    /// Most Lloyd iterations, 50 by default; it stops early once no row changes its cluster.
    pub iterations: usize,
    /// How many rows, drawn at random, the first centroids are chosen among; none (the default) means all rows. Seeding
    /// reads the rows once a centroid, so with many centroids on many rows it costs more than all iterations.
    pub seeding_rows: Option<usize>,
    /// Seed; 0 by default.
    pub seed: u64,
}

impl Default for KMeansConfig {
    fn default() -> Self {
        Self {
            k: 8,
            iterations: 50,
            seeding_rows: None,
            seed: 0,
        }
    }
}

/// What k-means found.
#[derive(Debug, Clone, PartialEq)]
pub struct KMeans {
    /// Centroids, `[k, d]`.
    pub centroids: Matrix,
    /// Cluster of each row that is here.
    pub clusters: Vec<u32>,
    /// Sum over all rows of the squared distance to their centroid.
    pub inertia: f64,
    /// Lloyd iterations done.
    pub iterations: usize,
    /// Whether the last iteration moved no row.
    pub converged: bool,
    /// Products of a row that is here and a centroid that the iterations took: at most `iterations x rows x k`.
    pub products: u64,
}

/// Clusters the rows of `features` by squared Euclidean distance. A cluster that loses all its rows keeps its centroid.
///
/// # Errors
/// [`Error::Config`] for a `k` that is 0 or above the number of rows (or of seeding rows), or for no iteration;
/// [`Error::Data`] for NaN or infinity.
pub fn kmeans(features: MatrixView<'_>, config: &KMeansConfig) -> Result<KMeans> {
    kmeans_of(&Share::alone(features), config)
}

/// As [`kmeans`], where each process has a share of the rows: the same centroids on all, to the bit those of one process, and the
/// clusters of the rows that are here.
///
/// # Errors
/// As [`kmeans`], on the process whose rows hold NaN or infinity; processes that cannot reach each other.
pub fn kmeans_of(share: &Share<'_>, config: &KMeansConfig) -> Result<KMeans> {
    check(share, config)?;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let centroids = seeding::greedy_plus_plus(share, config, &mut rng)?;
    let mut lloyd = Lloyd::start(*share, centroids)?;
    let mut iterations = 0;
    let mut converged = false;
    let mut products = 0;
    while iterations < config.iterations && !converged {
        let step = lloyd.step()?;
        converged = step.changed == 0;
        products += step.products;
        iterations += 1;
    }
    Ok(KMeans {
        inertia: lloyd.inertia()?,
        clusters: lloyd.clusters,
        centroids: lloyd.centroids,
        iterations,
        converged,
        products,
    })
}

fn check(share: &Share<'_>, config: &KMeansConfig) -> Result<()> {
    let n = share.total();
    if config.k == 0 || config.k > n {
        return Err(Error::config(
            "k",
            format!("expected 1 to {n} (the rows), found {}", config.k),
        ));
    }
    if config.iterations == 0 {
        return Err(Error::config("iterations", "expected at least 1, found 0"));
    }
    if let Some(rows) = config.seeding_rows.filter(|&rows| rows < config.k) {
        return Err(Error::config(
            "seeding_rows",
            format!("expected at least k = {}, found {rows}", config.k),
        ));
    }
    if u32::try_from(n).is_err() {
        return Err(Error::data("features", "more than 4,294,967,295 rows"));
    }
    share.rows().check_finite("features")
}

/// The mean of each cluster's rows on all processes; of an empty cluster the centroid it had.
fn means(share: &Share<'_>, bins: Bins, clusters: &[u32], before: &Matrix) -> Result<Matrix> {
    let (k, dim) = (before.view().rows(), before.view().dim());
    let (rows, starts) = by_cluster(clusters, k);
    let width = 1 + 2 * dim; // the number of rows, then the two sums of each value
    let at_once = (SUMS_AT_ONCE / width).max(1);
    let mut data = before.view().data().to_vec();
    for (number, centroids) in data.chunks_mut(at_once * dim).enumerate() {
        let first = number * at_once;
        let mut sums = vec![0.0f64; centroids.len() / dim * width];
        sums.par_chunks_exact_mut(width)
            .enumerate()
            .for_each(|(place, sums)| {
                let members = &rows[starts[first + place]..starts[first + place + 1]];
                add_rows(share.rows(), bins, members, sums);
            });
        share.team().sum(&mut sums)?;
        for (centroid, sums) in centroids.chunks_exact_mut(dim).zip(sums.chunks_exact(width)) {
            let (count, sums) = (sums[0], sums[1..].as_chunks::<2>().0);
            if count > 0.0 {
                let means = sums.iter().map(|[coarse, fine]| ((coarse + fine) / count) as f32);
                centroid
                    .iter_mut()
                    .zip(means)
                    .for_each(|(value, mean)| *value = mean);
            }
        }
    }
    Matrix::new(data, k, dim)
}

/// Adds `members` of `rows` to `sums`: how many there are, and both parts of each of their values.
fn add_rows(rows: MatrixView<'_>, bins: Bins, members: &[u32], sums: &mut [f64]) {
    sums[0] += members.len() as f64;
    let sums = sums[1..].as_chunks_mut::<2>().0;
    for &member in members {
        for (sum, &value) in sums.iter_mut().zip(rows.row(member as usize)) {
            let [coarse, fine] = bins.cut(value);
            sum[0] += coarse;
            sum[1] += fine;
        }
    }
}

/// The rows sorted by cluster (ascending within each), and where each cluster starts: `k + 1` places.
pub(crate) fn by_cluster(clusters: &[u32], k: usize) -> (Vec<u32>, Vec<usize>) {
    let mut starts = vec![0usize; k + 1];
    for &cluster in clusters {
        starts[cluster as usize + 1] += 1;
    }
    for cluster in 0..k {
        starts[cluster + 1] += starts[cluster];
    }
    let mut next = starts.clone();
    let mut rows = vec![0u32; clusters.len()];
    for (row, &cluster) in clusters.iter().enumerate() {
        rows[next[cluster as usize]] = row as u32;
        next[cluster as usize] += 1;
    }
    (rows, starts)
}

#[cfg(test)]
mod tests;
