//! The three ways to part rows into clusters, none of which sees a label: k-means of our own, and linfa's mixture of Gaussians and
//! DBSCAN on principal components.

use linfa::DatasetBase;
use linfa::traits::{Fit as _, Predict as _, Transformer as _};
use linfa_clustering::{Dbscan, GaussianMixtureModel};
use linfa_nn::CommonNearestNeighbour;
use linfa_nn::distance::L2Dist;
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ClusterConfig;
use crate::linalg::kmeans::{KMeansConfig, kmeans_of};
use crate::linalg::pca::Pca;
use crate::rng::{LinfaRng, stream};
use crate::{Error, MatrixView, Result, Share};

/// Change of the mean log-likelihood below which a mixture has converged, and the ridge on its covariances, for rows whose components
/// have a variance of 1 on average.
const TOLERANCE: f64 = 1e-3;
const RIDGE: f64 = 1e-4;

/// How rows are parted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterMethod {
    /// k-means with greedy k-means++ seeding.
    #[default]
    Kmeans,
    /// A mixture of Gaussians with full covariances, begun from k-means (linfa-clustering).
    Gmm,
    /// Density-based clusters and noise (Ester et al. 1996; linfa-clustering). It finds the number of clusters.
    Dbscan,
}

/// Rows parted.
pub(super) struct Partition {
    /// Number of clusters.
    pub k: usize,
    /// The cluster of each row, below k; none is noise.
    pub clusters: Vec<Option<u32>>,
    /// How it ended, by name.
    pub details: Vec<(&'static str, Value)>,
}

/// Parts the rows of all processes into `k` clusters by k-means.
pub(super) fn by_kmeans(share: &Share<'_>, k: usize, config: &ClusterConfig) -> Result<Partition> {
    let found = kmeans_of(
        share,
        &KMeansConfig {
            k,
            iterations: config.iterations,
            seeding_rows: None,
            seed: config.seed,
        },
    )?;
    Ok(Partition {
        k,
        clusters: share
            .team()
            .gather_numbers(&found.clusters)?
            .into_iter()
            .map(Some)
            .collect(),
        details: vec![
            ("iterations", json!(found.iterations)),
            ("converged", json!(found.converged)),
            ("inertia", json!(found.inertia)),
        ],
    })
}

/// Parts `components` `[n, c]` of [`components`] by a mixture of `k` Gaussians.
pub(super) fn by_mixture(components: &Array2<f64>, k: usize, config: &ClusterConfig) -> Result<Partition> {
    if k > components.nrows() {
        let reason = format!("expected 1 to {} (the rows), found {k}", components.nrows());
        return Err(Error::config("k", reason));
    }
    let rng = LinfaRng(stream(config.seed, "mixture", k as u64));
    let rows = DatasetBase::from(components.view());
    let fitted = GaussianMixtureModel::params_with_rng(k, rng)
        .tolerance(TOLERANCE)
        .reg_covariance(RIDGE)
        .max_n_iterations(config.iterations as u64)
        .fit(&rows)
        .map_err(|error| {
            let reason =
                format!("no mixture of {k} Gaussians: {error}; fewer components or more iterations may help");
            Error::data("features", reason)
        })?;
    let clusters = fitted.predict(components);
    Ok(Partition {
        k,
        clusters: clusters.iter().map(|&cluster| Some(cluster as u32)).collect(),
        details: vec![("weights", json!(fitted.weights().to_vec()))],
    })
}

/// Parts `components` `[n, c]` by density.
pub(super) fn by_density(components: &Array2<f64>, config: &ClusterConfig) -> Result<Partition> {
    let radius = match config.radius {
        Some(radius) => radius,
        None => usual_distance(components, config.min_points),
    };
    // Within `radius` includes what is as far.
    let found = Dbscan::params_with(config.min_points, L2Dist, CommonNearestNeighbour::KdTree)
        .tolerance(radius.max(f64::MIN_POSITIVE))
        .transform(components)
        .map_err(|error| Error::data("features", format!("no clusters by density: {error}")))?;
    let clusters: Vec<Option<u32>> = found
        .iter()
        .map(|cluster| cluster.map(|cluster| cluster as u32))
        .collect();
    let k = clusters
        .iter()
        .flatten()
        .max()
        .map_or(0, |&last| last as usize + 1);
    Ok(Partition {
        k,
        clusters,
        details: vec![
            ("radius", json!(radius)),
            ("min_points", json!(config.min_points)),
        ],
    })
}

/// The median over rows of the distance to the neighbour that makes `min_points` with the row itself.
fn usual_distance(components: &Array2<f64>, min_points: usize) -> f64 {
    use rayon::prelude::*;
    let n = components.nrows();
    let place = min_points.min(n) - 1;
    let mut distances: Vec<f64> = (0..n)
        .into_par_iter()
        .map(|row| {
            let row = components.row(row);
            let mut squares: Vec<f64> = components
                .rows()
                .into_iter()
                .map(|other| other.iter().zip(&row).map(|(a, b)| (a - b) * (a - b)).sum())
                .collect();
            squares.select_nth_unstable_by(place, f64::total_cmp).1.sqrt()
        })
        .collect();
    *distances.select_nth_unstable_by(n / 2, f64::total_cmp).1
}

/// The first `count` principal components of `rows`, `[n, c]`, scaled so that their variances are 1 on average.
pub(super) fn components(rows: MatrixView<'_>, count: usize) -> Result<Array2<f64>> {
    let pca = Pca::fit(rows, count)?;
    let projected = pca.project(rows)?;
    let values: Vec<f64> = projected
        .view()
        .data()
        .iter()
        .map(|&value| f64::from(value))
        .collect();
    let mean_square = values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64;
    let scale = 1.0 / mean_square.sqrt();
    let shape = (projected.view().rows(), projected.view().dim());
    let scaled = values.into_iter().map(|value| value * scale).collect();
    Ok(Array2::from_shape_vec(shape, scaled).expect("a value for each place"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;
    use rand::Rng as _;

    /// Rows of three stretched clouds, one after another, and `far` rows far from all.
    fn clouds(n: usize, far: usize) -> Matrix {
        let mut rng = stream(2, "clouds", 0);
        let mut data = Vec::new();
        for row in 0..3 * n {
            let middle = [[0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]][row % 3];
            let spread = [4.0, 0.2, 0.2];
            data.extend((0..3).map(|axis| middle[axis] + spread[axis] * rng.random_range(-1.0f32..1.0)));
        }
        for row in 0..far {
            data.extend([40.0 + 9.0 * row as f32, -30.0 * row as f32, 7.0]);
        }
        Matrix::new(data, 3 * n + far, 3).unwrap()
    }

    fn same(clusters: &[Option<u32>], n: usize) -> bool {
        (0..n).all(|row| clusters[row].is_some() && clusters[row] == clusters[row % 3])
            && clusters[0] != clusters[1]
            && clusters[1] != clusters[2]
            && clusters[0] != clusters[2]
    }

    /// A wide disc and a small one beside it: k-means cuts half way between their middles, a mixture has a width for each.
    #[test]
    fn a_mixture_finds_discs_of_two_sizes_that_kmeans_cuts() {
        let mut rng = stream(3, "discs", 0);
        let mut data = Vec::new();
        for row in 0..400 {
            let (middle, radius) = [(0.0, 4.0), (5.2, 0.4)][row % 2];
            let (angle, distance) = (
                rng.random_range(0.0f32..6.3),
                rng.random_range(0.0f32..1.0).sqrt(),
            );
            data.extend([
                middle + radius * distance * angle.cos(),
                radius * distance * angle.sin(),
            ]);
        }
        let rows = Matrix::new(data, 400, 2).unwrap();
        let wrong = |found: &Partition| {
            let of_first = |row: &usize| found.clusters[*row] == found.clusters[(row % 2) ^ 1];
            let same = found.clusters[0] == found.clusters[1];
            if same {
                400
            } else {
                (0..400).filter(of_first).count()
            }
        };
        let config = ClusterConfig {
            iterations: 200,
            ..ClusterConfig::default()
        };
        let components = components(rows.view(), 2).unwrap();
        let found = by_mixture(&components, 2, &config).unwrap();
        assert!(wrong(&found) < 8, "{} of 400", wrong(&found));
        assert_eq!(
            found.clusters,
            by_mixture(&components, 2, &config).unwrap().clusters
        );
        assert!(wrong(&by_kmeans(&Share::alone(rows.view()), 2, &config).unwrap()) > 20);
        let error = by_mixture(&components, 401, &config).err().unwrap();
        assert_eq!(error.to_string(), "k: expected 1 to 400 (the rows), found 401");
    }

    #[test]
    fn density_finds_clouds_and_leaves_noise() {
        let rows = clouds(60, 2);
        let data: Vec<f64> = rows.view().data().iter().map(|&value| f64::from(value)).collect();
        let rows = Array2::from_shape_vec((182, 3), data).unwrap();
        let config = ClusterConfig {
            radius: Some(1.0),
            min_points: 5,
            ..ClusterConfig::default()
        };
        let found = by_density(&rows, &config).unwrap();
        assert!(found.k == 3 && same(&found.clusters, 180));
        assert_eq!(found.clusters[180..], [None, None]);
        let all_noise = ClusterConfig {
            radius: Some(1e-6),
            ..config
        };
        let found = by_density(&rows, &all_noise).unwrap();
        assert!(found.k == 0 && found.clusters.iter().all(Option::is_none));
    }

    #[test]
    fn the_usual_distance_is_that_of_the_median_row() {
        let line = Array2::from_shape_vec((5, 1), vec![0.0, 1.0, 2.0, 3.0, 10.0]).unwrap();
        // To the second other row: 2, 1, 1, 2, 8.
        assert_eq!(usual_distance(&line, 3), 2.0);
        assert_eq!(usual_distance(&line, 1), 0.0);
        assert_eq!(usual_distance(&line, 99), 9.0);
    }
}
