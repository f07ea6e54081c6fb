//! How well k-means on frozen features finds the classes: NMI, adjusted Rand index and accuracy under the best matching
//! of clusters to classes.

use polars::prelude::{Column, DataFrame};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::linalg::kmeans::{KMeansConfig, kmeans};
use crate::linalg::normalise::l2_normalise;
use crate::metrics::classification::accuracy;
use crate::metrics::contingency::Contingency;
use crate::metrics::matching::best_matching;
use crate::metrics::nmi::nmi;
use crate::metrics::rand_index::adjusted_rand_index;
use crate::protocols::checks;
use crate::stats::bootstrap::{BootstrapConfig, bootstrap_mean};
use crate::table::EvalResult;
use crate::{Error, MatrixView, Result, Split};

/// Settings of the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Numbers of clusters, each at least 1; none (the default) means the number of classes.
    pub ks: Vec<usize>,
    /// Most Lloyd iterations, 50 by default.
    pub iterations: usize,
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
            ks: Vec::new(),
            iterations: 50,
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
        if self.iterations == 0 {
            return Err(Error::config("iterations", "expected at least 1, found 0"));
        }
        Ok(())
    }
}

/// Scores for one k.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterRow {
    /// Number of clusters.
    pub k: usize,
    /// Normalised mutual information, divided by the arithmetic mean of the entropies.
    pub nmi: f64,
    /// Adjusted Rand index.
    pub ari: f64,
    /// Share of rows in the cluster matched to their class.
    pub accuracy: f64,
    /// Lower end of its 95 % bootstrap interval over rows, for the clusters and the matching that were found; NaN without
    /// resamples.
    pub accuracy_low: f64,
    /// Upper end of that interval.
    pub accuracy_high: f64,
    /// Lloyd iterations done.
    pub iterations: usize,
    /// Whether the last of them moved no row.
    pub converged: bool,
    /// Sum of squared distances to the centroids.
    pub inertia: f64,
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
/// Settings out of range, a k above the number of rows, labels that do not fit, NaN or infinity.
pub fn evaluate(
    features: MatrixView<'_>,
    labels: &[u32],
    n_classes: usize,
    config: &ClusterConfig,
) -> Result<ClusterResult> {
    config.validate()?;
    checks::side("cluster", &Split::new(features, labels), n_classes)?;
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
    let rows = ks.iter().map(|&k| {
        let found = kmeans(
            view,
            &KMeansConfig {
                k,
                iterations: config.iterations,
                seeding_rows: None,
                seed: config.seed,
            },
        )?;
        let table = Contingency::new(&found.clusters, labels);
        let matching = best_matching(&table);
        let right = |(&cluster, &label): (&u32, &u32)| matching[cluster as usize] == Some(label as usize);
        let hits: Vec<f32> = found
            .clusters
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
        Ok(ClusterRow {
            k,
            nmi: nmi(&table),
            ari: adjusted_rand_index(&table),
            accuracy: accuracy(&hits),
            accuracy_low: interval.low,
            accuracy_high: interval.high,
            iterations: found.iterations,
            converged: found.converged,
            inertia: found.inertia,
        })
    });
    Ok(ClusterResult {
        config: ClusterConfig {
            ks: ks.clone(),
            ..config.clone()
        },
        n: features.rows(),
        rows: rows.collect::<Result<_>>()?,
    })
}

impl ClusterResult {
    /// The result as a table: `k`, `nmi`, `ari`, `accuracy`, `accuracy_low`, `accuracy_high`; how k-means ended stands in the settings.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let fractions = |name: &str, value: fn(&ClusterRow) -> f64| {
            Column::new(name.into(), self.rows.iter().map(value).collect::<Vec<_>>())
        };
        let ks: Vec<u64> = self.rows.iter().map(|row| row.k as u64).collect();
        let columns = vec![
            Column::new("k".into(), ks),
            fractions("nmi", |row| row.nmi),
            fractions("ari", |row| row.ari),
            fractions("accuracy", |row| row.accuracy),
            fractions("accuracy_low", |row| row.accuracy_low),
            fractions("accuracy_high", |row| row.accuracy_high),
        ];
        let of_rows =
            |value: fn(&ClusterRow) -> serde_json::Value| self.rows.iter().map(value).collect::<Vec<_>>();
        let settings = json!({
            "ks": self.config.ks,
            "normalise": self.config.normalise,
            "seed": self.config.seed,
            "bootstrap_resamples": self.config.bootstrap_resamples,
            "max_iterations": self.config.iterations,
            "algorithm": "k-means, greedy k-means++ seeding",
            "nmi": "arithmetic mean of the entropies",
            "iterations": of_rows(|row| json!(row.iterations)),
            "converged": of_rows(|row| json!(row.converged)),
            "inertia": of_rows(|row| json!(row.inertia)),
        });
        let table = DataFrame::new(self.rows.len(), columns)?;
        EvalResult::new("cluster", settings, 0, self.n, table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;

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
        assert!((three.nmi - 1.0).abs() < 1e-12 && three.converged);
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
        let of_iterations = |iterations| ClusterConfig {
            iterations,
            ..ClusterConfig::default()
        };
        assert_eq!(
            of_iterations(0).validate().unwrap_err().to_string(),
            "iterations: expected at least 1, found 0"
        );
        assert!(of_iterations(1).validate().is_ok());
        assert_eq!(
            error(&[0], &[]),
            "cluster labels: expected 2 labels, one a row, found 1"
        );
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let documented = ClusterConfig {
            ks: Vec::new(),
            iterations: 50,
            normalise: true,
            seed: 0,
            bootstrap_resamples: 1_000,
        };
        assert_eq!(ClusterConfig::default(), documented);
    }
}
