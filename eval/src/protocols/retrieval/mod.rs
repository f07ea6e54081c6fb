//! Retrieval by cosine similarity: `by_labels` (instance retrieval where a row's label says what it shows), `revisited`
//! (the Oxford and Paris ground truth with easy, hard and junk lists), `copies` (copy detection over pooled pairs) and `captions`
//! (images and texts that search for each other).
//! All give rows `metric, value, low, high` with a bootstrap over queries, and a query without any positive is left out
//! of the means.

pub mod by_labels;
pub mod captions;
pub mod copies;
pub mod revisited;

use polars::prelude::{Column, DataFrame};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::stats::{BootstrapConfig, bootstrap_counts};
use crate::table::EvalResult;
use crate::{Error, Result};

/// Places that mAP@100 looks at.
pub const AP_PLACES: usize = 100;

/// Settings of `by_labels`, `revisited` and `captions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrievalConfig {
    /// Cut-offs of `R@k` and `mP@k`, each at least 1; 1, 5 and 10 by default.
    pub ks: Vec<usize>,
    /// Whether rows are L2-normalised first, so that similarity is the cosine; true by default.
    pub normalise: bool,
    /// Seed of the intervals; 0 by default.
    pub seed: u64,
    /// Resamples of the 95 % bootstrap intervals over queries, 1,000 by default; 0 leaves them out.
    pub bootstrap_resamples: usize,
}

impl Default for RetrievalConfig {
    fn default() -> Self {
        Self {
            ks: vec![1, 5, 10],
            normalise: true,
            seed: 0,
            bootstrap_resamples: 1_000,
        }
    }
}

impl RetrievalConfig {
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] for no cut-off or one of 0.
    pub fn validate(&self) -> Result<()> {
        if self.ks.is_empty() || self.ks.contains(&0) {
            return Err(Error::config(
                "ks",
                format!("expected cut-offs of at least 1, found {:?}", self.ks),
            ));
        }
        Ok(())
    }

    fn bootstrap(&self) -> BootstrapConfig {
        BootstrapConfig {
            resamples: self.bootstrap_resamples,
            seed: self.seed,
            ..BootstrapConfig::default()
        }
    }
}

/// One metric.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalRow {
    /// Name: `mAP`, `mAP@100`, `R@1`, `mP@10`, `GAP`, `muAP`, `medium mAP`, or `text to image R@1`.
    pub metric: String,
    /// From 0 to 1.
    pub value: f64,
    /// Lower end of the 95 % bootstrap interval over queries; NaN without resamples.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl RetrievalRow {
    /// `statistic(counts)` over `n` queries, each counted once, with its interval.
    fn over_queries(
        metric: impl Into<String>,
        n: usize,
        bootstrap: &BootstrapConfig,
        statistic: impl Fn(&[u32]) -> f64 + Sync,
    ) -> Self {
        let interval = bootstrap_counts(n, bootstrap, &statistic);
        Self {
            metric: metric.into(),
            value: statistic(&vec![1; n]),
            low: interval.low,
            high: interval.high,
        }
    }

    /// The mean of one value a query.
    fn mean(metric: impl Into<String>, values: &[f64], bootstrap: &BootstrapConfig) -> Self {
        Self::over_queries(metric, values.len(), bootstrap, |counts| {
            let sum: f64 = counts
                .iter()
                .zip(values)
                .map(|(&count, value)| f64::from(count) * value)
                .sum();
            sum / values.len() as f64
        })
    }
}

/// What a retrieval protocol gives.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalResult {
    /// One row a metric.
    pub rows: Vec<RetrievalRow>,
    /// Settings as used, and how many queries were left out.
    pub settings: Value,
    /// Rows of the database.
    pub n_database: usize,
    /// Queries given.
    pub n_queries: usize,
}

impl RetrievalResult {
    /// The value of metric `name`, where there is one.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.rows
            .iter()
            .find(|row| row.metric == name)
            .map(|row| row.value)
    }

    /// The result as a table: `metric`, `value`, `low`, `high`; `n_train` is the size of the database.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let numbers = |name: &str, value: fn(&RetrievalRow) -> f64| {
            Column::new(name.into(), self.rows.iter().map(value).collect::<Vec<_>>())
        };
        let metrics: Vec<&str> = self.rows.iter().map(|row| row.metric.as_str()).collect();
        let columns = vec![
            Column::new("metric".into(), metrics),
            numbers("value", |row| row.value),
            numbers("low", |row| row.low),
            numbers("high", |row| row.high),
        ];
        let table = DataFrame::new(self.rows.len(), columns)?;
        EvalResult::new(
            "retrieval",
            &self.settings,
            self.n_database,
            self.n_queries,
            table,
        )
    }
}

/// `config` as JSON with what a protocol adds.
fn settings(config: &impl Serialize, more: Value) -> Result<Value> {
    let mut settings = json!(config);
    match (&mut settings, more) {
        (Value::Object(map), Value::Object(more)) => map.extend(more),
        _ => return Err(Error::config("settings", "expected named fields")),
    }
    Ok(settings)
}

#[cfg(test)]
mod tests;
