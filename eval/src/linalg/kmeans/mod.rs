//! k-means (Lloyd 1982) with greedy k-means++ seeding (Arthur & Vassilvitskii 2007), on blocks: no `n x k` matrix ever
//! exists, so a million rows and thousands of centroids fit. Distances come from matrix products, of which those that cannot
//! change a cluster are left out ([`lloyd`]), sums are taken in f64, and neither the number of threads nor the blocks change a
//! result.

mod assign;
mod lloyd;
mod seeding;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use assign::{Assignment, assign};
use lloyd::Lloyd;

use crate::{Error, Matrix, MatrixView, Result};

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
    /// Cluster of each row.
    pub clusters: Vec<u32>,
    /// Sum over the rows of the squared distance to their centroid.
    pub inertia: f64,
    /// Lloyd iterations done.
    pub iterations: usize,
    /// Whether the last iteration moved no row.
    pub converged: bool,
    /// Products of a row and a centroid that the iterations took: at most `iterations x rows x k`.
    pub products: u64,
}

/// Clusters the rows of `features` by squared Euclidean distance. A cluster that loses all its rows keeps its centroid.
///
/// # Errors
/// [`Error::Config`] for a `k` that is 0 or above the number of rows (or of seeding rows), or for no iteration;
/// [`Error::Data`] for NaN or infinity.
pub fn kmeans(features: MatrixView<'_>, config: &KMeansConfig) -> Result<KMeans> {
    check(features, config)?;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let centroids = seeding::greedy_plus_plus(features, config, &mut rng)?;
    let mut lloyd = Lloyd::start(features, centroids)?;
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
        inertia: lloyd.distances.iter().sum(),
        clusters: lloyd.clusters,
        centroids: lloyd.centroids,
        iterations,
        converged,
        products,
    })
}

fn check(features: MatrixView<'_>, config: &KMeansConfig) -> Result<()> {
    let n = features.rows();
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
    features.check_finite("features")
}

/// The mean of each cluster's rows, summed in f64 in the order of the rows; of an empty cluster the centroid it had.
fn means(features: MatrixView<'_>, clusters: &[u32], before: &Matrix) -> Result<Matrix> {
    let (k, dim) = (before.view().rows(), features.dim());
    let (rows, starts) = by_cluster(clusters, k);
    let mut data = before.view().data().to_vec();
    data.par_chunks_exact_mut(dim)
        .enumerate()
        .for_each(|(cluster, centroid)| {
            let members = &rows[starts[cluster]..starts[cluster + 1]];
            if members.is_empty() {
                return;
            }
            let mut sums = vec![0.0f64; dim];
            for &row in members {
                for (sum, &value) in sums.iter_mut().zip(features.row(row as usize)) {
                    *sum += f64::from(value);
                }
            }
            for (value, sum) in centroid.iter_mut().zip(sums) {
                *value = (sum / members.len() as f64) as f32;
            }
        });
    Matrix::new(data, k, dim)
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
