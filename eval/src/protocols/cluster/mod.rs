//! How well clusters of frozen features are the classes: NMI, adjusted Rand index and accuracy under the best matching of clusters
//! to classes. `partition` finds the clusters.

mod partition;

use std::collections::BTreeMap;

use polars::prelude::{Column, DataFrame};
use rand::seq::index;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::linalg::normalise::l2_normalise;
use crate::metrics::classification::accuracy;
use crate::metrics::contingency::Contingency;
use crate::metrics::matching::best_matching;
use crate::metrics::nmi::nmi;
use crate::metrics::rand_index::adjusted_rand_index;
use crate::protocols::checks;
use crate::rng::stream;
use crate::stats::bootstrap::{BootstrapConfig, bootstrap_mean};
use crate::table::EvalResult;
use crate::{Error, MatrixView, Result, Share};

pub use partition::ClusterMethod;
use partition::{Partition, by_density, by_kmeans, by_mixture, components};

/// Settings of the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// How rows are parted; k-means by default.
    pub method: ClusterMethod,
    /// Numbers of clusters, each at least 1; none (the default) means the number of classes. DBSCAN finds its own and takes none.
    pub ks: Vec<usize>,
    /// Most iterations of Lloyd's or of the mixture, 50 by default.
    pub iterations: usize,
    /// Principal components that mixtures and DBSCAN work on, at least 1; 32 by default.
    pub components: usize,
    /// Rows that mixtures and DBSCAN work on at most, drawn at random; at least 1, 20,000 by default. Linfa's run on one thread, and
    /// DBSCAN compares every row with every other.
    pub max_rows: usize,
    /// DBSCAN's radius, above 0, where components have a variance of 1 on average; by default the median distance to the neighbour
    /// that completes `min_points`.
    pub radius: Option<f64>,
    /// Rows within DBSCAN's radius, the row itself among them, that make it the core of a cluster; at least 2, 10 by default.
    pub min_points: usize,
    /// Whether rows are L2-normalised first; true by default.
    pub normalise: bool,
    /// Seed of the first centroids and of the bootstrap; 0 by default.
    pub seed: u64,
    /// Resamples of the accuracy's interval, 1,000 by default; 0 for none.
    pub bootstrap_resamples: usize,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            method: ClusterMethod::Kmeans,
            ks: Vec::new(),
            iterations: 50,
            components: 32,
            max_rows: 20_000,
            radius: None,
            min_points: 10,
            normalise: true,
            seed: 0,
            bootstrap_resamples: 1_000,
        }
    }
}

impl ClusterConfig {
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.ks.contains(&0) {
            return Err(Error::config("ks", "expected k of at least 1, found 0"));
        }
        if self.method == ClusterMethod::Dbscan && !self.ks.is_empty() {
            let reason = format!(
                "expected none, as DBSCAN finds the number of clusters, found {:?}",
                self.ks
            );
            return Err(Error::config("ks", reason));
        }
        for (field, least, found) in [
            ("iterations", 1, self.iterations),
            ("components", 1, self.components),
            ("max_rows", 1, self.max_rows),
            ("min_points", 2, self.min_points),
        ] {
            if found < least {
                return Err(Error::config(
                    field,
                    format!("expected at least {least}, found {found}"),
                ));
            }
        }
        match self.radius {
            Some(radius) if !(radius > 0.0 && radius.is_finite()) => Err(Error::config(
                "radius",
                format!("expected a number above 0, found {radius}"),
            )),
            _ => Ok(()),
        }
    }
}

/// Scores of one partition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterRow {
    /// Number of clusters.
    pub k: usize,
    /// Normalised mutual information, divided by the arithmetic mean of the entropies. Noise counts as one more cluster.
    pub nmi: f64,
    /// Adjusted Rand index, noise as in `nmi`.
    pub ari: f64,
    /// Share of rows in the cluster matched to their class; noise is matched to none.
    pub accuracy: f64,
    /// Lower end of its 95 % bootstrap interval over rows, for the clusters and the matching that were found; NaN without
    /// resamples.
    pub accuracy_low: f64,
    /// Upper end of that interval.
    pub accuracy_high: f64,
    /// Share of rows that are noise, of DBSCAN.
    pub noise: Option<f64>,
    /// How the partition ended, by name: of k-means `iterations`, `converged`, `inertia`; of a mixture `weights`; of DBSCAN
    /// `radius` and `min_points`.
    pub details: BTreeMap<String, Value>,
}

/// What the protocol gives.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterResult {
    /// The settings it ran with.
    pub config: ClusterConfig,
    /// Rows clustered.
    pub n: usize,
    /// One row a k, ascending.
    pub rows: Vec<ClusterRow>,
}

/// Clusters `features` without their labels, then compares. Labels are classes `0..n_classes`.
///
/// # Errors
/// Settings out of range, a k above the number of rows, labels that do not fit, NaN or infinity, a mixture that does not converge.
pub fn evaluate(
    features: MatrixView<'_>,
    labels: &[u32],
    n_classes: usize,
    config: &ClusterConfig,
) -> Result<ClusterResult> {
    evaluate_share(&Share::alone(features), labels, n_classes, config)
}

/// As [`evaluate`], where each process has a share of the features and all labels: the result of one process, on all.
///
/// # Errors
/// As [`evaluate`]; a method other than k-means where there are several processes; processes that cannot reach each other.
pub fn evaluate_share(
    share: &Share<'_>,
    labels: &[u32],
    n_classes: usize,
    config: &ClusterConfig,
) -> Result<ClusterResult> {
    config.validate()?;
    if share.team().size() > 1 && config.method != ClusterMethod::Kmeans {
        let reason = format!(
            "expected kmeans of {} processes, found {:?}",
            share.team().size(),
            config.method
        );
        return Err(Error::config("method", reason));
    }
    let features = share.rows();
    if features.rows() > 0 || share.total() == 0 {
        checks::rows_with_values("cluster features", features)?;
    }
    checks::labels("cluster labels", share.total(), labels, n_classes)?;
    let mut ks = if config.ks.is_empty() {
        vec![n_classes]
    } else {
        config.ks.clone()
    };
    ks.sort_unstable();
    ks.dedup();
    let unit = if config.normalise {
        Some(l2_normalise(features)?)
    } else {
        None
    };
    let view = unit.as_ref().map_or(features, |unit| unit.view());
    let (partitions, labels): (Result<Vec<Partition>>, Vec<u32>) = match config.method {
        ClusterMethod::Kmeans => {
            let share = share.with_rows(view);
            (
                ks.iter().map(|&k| by_kmeans(&share, k, config)).collect(),
                labels.to_vec(),
            )
        }
        method => {
            let chosen = chosen_rows(view.rows(), config);
            let components = components(view.select(&chosen).view(), config.components)?;
            let partitions = match method {
                ClusterMethod::Dbscan => {
                    ks.clear();
                    by_density(&components, config).map(|found| vec![found])
                }
                _ => ks.iter().map(|&k| by_mixture(&components, k, config)).collect(),
            };
            (partitions, chosen.iter().map(|&row| labels[row]).collect())
        }
    };
    let rows = partitions?.into_iter().map(|found| score(found, &labels, config));
    Ok(ClusterResult {
        config: ClusterConfig { ks, ..config.clone() },
        n: labels.len(),
        rows: rows.collect(),
    })
}

/// The rows that linfa is given, ascending: all, or as many as it may have.
fn chosen_rows(n: usize, config: &ClusterConfig) -> Vec<usize> {
    if n <= config.max_rows {
        return (0..n).collect();
    }
    let mut rng = stream(config.seed, "cluster rows", 0);
    let mut rows = index::sample(&mut rng, n, config.max_rows).into_vec();
    rows.sort_unstable();
    rows
}

/// Compares a partition with the classes.
fn score(found: Partition, labels: &[u32], config: &ClusterConfig) -> ClusterRow {
    let noise = found.k as u32;
    let parts: Vec<u32> = found
        .clusters
        .iter()
        .map(|cluster| cluster.unwrap_or(noise))
        .collect();
    let table = Contingency::new(&parts, labels);
    let (in_clusters, their_labels): (Vec<u32>, Vec<u32>) = parts
        .iter()
        .zip(labels)
        .filter(|&(&cluster, _)| cluster != noise)
        .unzip();
    let matching = best_matching(&Contingency::new(&in_clusters, &their_labels));
    let right = |(&cluster, &label): (&u32, &u32)| {
        cluster != noise && matching[cluster as usize] == Some(label as usize)
    };
    let hits: Vec<f32> = parts
        .iter()
        .zip(labels)
        .map(|pair| f32::from(u8::from(right(pair))))
        .collect();
    let interval = bootstrap_mean(
        &hits,
        &BootstrapConfig {
            resamples: config.bootstrap_resamples,
            seed: config.seed,
            ..BootstrapConfig::default()
        },
    );
    let n_noise = found.clusters.iter().filter(|cluster| cluster.is_none()).count();
    ClusterRow {
        k: found.k,
        nmi: nmi(&table),
        ari: adjusted_rand_index(&table),
        accuracy: accuracy(&hits),
        accuracy_low: interval.low,
        accuracy_high: interval.high,
        noise: (config.method == ClusterMethod::Dbscan).then(|| n_noise as f64 / labels.len() as f64),
        details: found
            .details
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    }
}

impl ClusterResult {
    /// The result as a table: `k`, `nmi`, `ari`, `accuracy`, `accuracy_low`, `accuracy_high`, of DBSCAN `noise`; how partitions ended
    /// stands in the settings.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let fractions = |name: &str, value: fn(&ClusterRow) -> f64| {
            Column::new(name.into(), self.rows.iter().map(value).collect::<Vec<_>>())
        };
        let ks: Vec<u64> = self.rows.iter().map(|row| row.k as u64).collect();
        let mut columns = vec![
            Column::new("k".into(), ks),
            fractions("nmi", |row| row.nmi),
            fractions("ari", |row| row.ari),
            fractions("accuracy", |row| row.accuracy),
            fractions("accuracy_low", |row| row.accuracy_low),
            fractions("accuracy_high", |row| row.accuracy_high),
        ];
        if self.config.method == ClusterMethod::Dbscan {
            let noise: Vec<Option<f64>> = self.rows.iter().map(|row| row.noise).collect();
            columns.push(Column::new("noise".into(), noise));
        }
        let mut settings = json!({
            "method": self.config.method,
            "ks": self.config.ks,
            "normalise": self.config.normalise,
            "seed": self.config.seed,
            "bootstrap_resamples": self.config.bootstrap_resamples,
            "max_iterations": self.config.iterations,
            "algorithm": match self.config.method {
                ClusterMethod::Kmeans => "k-means, greedy k-means++ seeding",
                ClusterMethod::Gmm => "mixture of Gaussians, full covariances, begun from k-means (linfa-clustering)",
                ClusterMethod::Dbscan => "DBSCAN (linfa-clustering)",
            },
            "nmi": "arithmetic mean of the entropies",
        });
        if self.config.method != ClusterMethod::Kmeans {
            settings["components"] = json!(self.config.components);
            settings["max_rows"] = json!(self.config.max_rows);
        }
        for name in self.rows.iter().flat_map(|row| row.details.keys()) {
            settings[name.as_str()] = self.rows.iter().map(|row| row.details[name].clone()).collect();
        }
        let table = DataFrame::new(self.rows.len(), columns)?;
        // Each method is a task of its own in a report.
        let task = match self.config.method {
            ClusterMethod::Kmeans => "cluster",
            ClusterMethod::Gmm => "cluster-gmm",
            ClusterMethod::Dbscan => "cluster-dbscan",
        };
        EvalResult::new(task, settings, 0, self.n, table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;
    use crate::team::threads::on_team;

    #[test]
    fn clouds_are_found_and_more_clusters_than_classes_cost_accuracy() {
        let angles = [0.0f32, 0.02, 2.0, 2.02, 4.0, 4.02, 0.01, 2.01, 4.01];
        let labels = [0, 0, 1, 1, 2, 2, 0, 1, 2];
        let data = angles
            .iter()
            .flat_map(|a| [3.0 * a.cos(), 3.0 * a.sin()])
            .collect();
        let features = Matrix::new(data, 9, 2).unwrap();
        let config = ClusterConfig {
            ks: vec![9, 3, 3],
            ..ClusterConfig::default()
        };
        let result = evaluate(features.view(), &labels, 3, &config).unwrap();
        let three = &result.rows[0];
        assert_eq!((three.k, three.ari, three.accuracy), (3, 1.0, 1.0));
        assert!((three.nmi - 1.0).abs() < 1e-12 && three.details["converged"] == true);
        assert_eq!(result.rows[1].k, 9);
        assert!((result.rows[1].accuracy - 3.0 / 9.0).abs() < 1e-12);
        // All right in every draw; and three rows right of nine.
        assert_eq!((three.accuracy_low, three.accuracy_high), (1.0, 1.0));
        let nine = &result.rows[1];
        assert!(nine.accuracy_low < 1.0 / 3.0, "{nine:?}");
        assert!(
            nine.accuracy_high > 1.0 / 3.0 && nine.accuracy_high < 0.9,
            "{nine:?}"
        );
        let default = evaluate(features.view(), &labels, 3, &ClusterConfig::default()).unwrap();
        assert_eq!(default.rows.len(), 1);
        assert_eq!(default.rows[0], *three);
        let json = result.to_eval_result().unwrap().to_json().unwrap();
        assert_eq!(json["rows"][0]["accuracy"], 1.0);
        assert_eq!(json["settings"]["ks"], serde_json::json!([3, 9]));
    }

    #[test]
    fn processes_that_divide_the_rows_score_as_one_does() {
        let n = Share::BLOCK + 500;
        let (rows, labels) = plane(n);
        let config = ClusterConfig {
            ks: vec![2, 9],
            iterations: 10,
            ..ClusterConfig::default()
        };
        let one = evaluate(rows.view(), &labels, 2, &config).unwrap();
        let found = on_team(2, |team| {
            evaluate_share(&Share::of_all(rows.view(), team), &labels, 2, &config).unwrap()
        });
        assert!(found.iter().all(|found| *found == one));
        let gmm = ClusterConfig {
            method: ClusterMethod::Gmm,
            ..config
        };
        let refused = on_team(2, |team| {
            evaluate_share(&Share::of_all(rows.view(), team), &labels, 2, &gmm)
        });
        assert_eq!(
            refused[0].as_ref().unwrap_err().to_string(),
            "method: expected kmeans of 2 processes, found Gmm"
        );
    }

    #[test]
    fn what_cannot_be_clustered_is_named() {
        let features = Matrix::new(vec![0.0, 1.0], 2, 1).unwrap();
        let error = |labels: &[u32], ks: &[usize]| {
            let config = ClusterConfig {
                ks: ks.to_vec(),
                ..ClusterConfig::default()
            };
            evaluate(features.view(), labels, 2, &config)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(error(&[0, 1], &[3]), "k: expected 1 to 2 (the rows), found 3");
        assert_eq!(error(&[0, 1], &[0]), "ks: expected k of at least 1, found 0");
        for (config, expected) in [
            (
                ClusterConfig {
                    iterations: 0,
                    ..ClusterConfig::default()
                },
                "iterations: expected at least 1, found 0",
            ),
            (
                ClusterConfig {
                    min_points: 1,
                    ..ClusterConfig::default()
                },
                "min_points: expected at least 2, found 1",
            ),
        ] {
            assert_eq!(config.validate().unwrap_err().to_string(), expected);
        }
        let smallest = ClusterConfig {
            iterations: 1,
            min_points: 2,
            ..ClusterConfig::default()
        };
        assert!(smallest.validate().is_ok());
        assert_eq!(
            error(&[0], &[]),
            "cluster labels: expected 2 labels, one a row, found 1"
        );
    }

    fn plane(n: usize) -> (Matrix, Vec<u32>) {
        let labels: Vec<u32> = (0..n as u32).map(|row| row % 2).collect();
        let data = (0..n)
            .flat_map(|row| {
                let place = (row / 2) as f32 * 0.7;
                [
                    10.0 * (row % 2) as f32 + place.sin(),
                    place.cos() + 0.3 * (place * 1.3).sin(),
                ]
            })
            .collect();
        (Matrix::new(data, n, 2).unwrap(), labels)
    }

    #[test]
    fn mixtures_and_density_are_scored_on_the_rows_they_were_given() {
        let (features, labels) = plane(200);
        let run = |method, change: fn(&mut ClusterConfig)| {
            let mut config = ClusterConfig {
                method,
                normalise: false,
                max_rows: 120,
                ..ClusterConfig::default()
            };
            change(&mut config);
            evaluate(features.view(), &labels, 2, &config)
        };
        let mixture = run(ClusterMethod::Gmm, |_| {}).unwrap();
        assert_eq!(
            (mixture.n, mixture.rows[0].k, mixture.rows[0].accuracy),
            (120, 2, 1.0)
        );
        assert_eq!(mixture.rows[0].noise, None);
        let density = run(ClusterMethod::Dbscan, |config| config.min_points = 4).unwrap();
        let row = &density.rows[0];
        assert!(row.k >= 2 && row.noise.unwrap() < 1.0, "{row:?}");
        let json = density.to_eval_result().unwrap().to_json().unwrap();
        assert_eq!(json["settings"]["method"], "dbscan");
        assert!(json["settings"]["radius"][0].as_f64().unwrap() > 0.0);
        assert_eq!(json["rows"][0]["noise"], row.noise.unwrap());
        // All rows are noise: nothing is right.
        let noise = run(ClusterMethod::Dbscan, |config| config.radius = Some(1e-9)).unwrap();
        assert_eq!(
            (noise.rows[0].k, noise.rows[0].accuracy, noise.rows[0].noise),
            (0, 0.0, Some(1.0))
        );
        assert_eq!(noise.rows[0].nmi, 0.0);
        let error = run(ClusterMethod::Dbscan, |config| config.ks = vec![2])
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("ks: expected none"), "{error}");
        let error = run(ClusterMethod::Gmm, |config| config.components = 0)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "components: expected at least 1, found 0");
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let documented = ClusterConfig {
            method: ClusterMethod::Kmeans,
            ks: Vec::new(),
            iterations: 50,
            components: 32,
            max_rows: 20_000,
            radius: None,
            min_points: 10,
            normalise: true,
            seed: 0,
            bootstrap_resamples: 1_000,
        };
        assert_eq!(ClusterConfig::default(), documented);
    }
}
