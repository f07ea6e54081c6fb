//! The table of `eval depth`.

use polars::prelude::{Column, DataFrame};
use serde_json::Value;

use super::{DepthConfig, DepthEstimator};
use crate::metrics::depth::DepthErrors;
use crate::stats::bootstrap::{BootstrapConfig, Interval, bootstrap_mean};
use crate::{Error, EvalResult, Result};

/// Errors on one test image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageErrors {
    /// Of the head.
    pub head: DepthErrors,
    /// Of the mean training depth everywhere.
    pub mean: DepthErrors,
}

/// Scores on test images: means over the images, whose intervals draw images again.
#[derive(Debug, Clone, PartialEq)]
pub struct DepthResult {
    /// The images that have valid pixels.
    pub images: Vec<ImageErrors>,
    /// What it was made with.
    pub settings: Value,
    /// Training images.
    pub n_train: usize,
    bootstrap: BootstrapConfig,
}

impl DepthResult {
    /// Scores the test images.
    ///
    /// # Errors
    /// No image at all.
    pub fn new(estimator: &DepthEstimator, images: Vec<ImageErrors>, config: &DepthConfig) -> Result<Self> {
        if images.is_empty() {
            return Err(Error::data(
                "test depths",
                format!(
                    "expected depths above {} and at most {}, found none",
                    config.range.0, config.range.1
                ),
            ));
        }
        Ok(Self {
            images,
            settings: estimator.settings(config),
            n_train: estimator.images,
            bootstrap: BootstrapConfig {
                resamples: config.bootstrap_resamples,
                seed: config.seed,
                ..BootstrapConfig::default()
            },
        })
    }

    /// Mean of one error over the images, and its 95 % interval.
    fn mean(&self, of: impl Fn(&ImageErrors) -> f64) -> (f64, Interval) {
        let values: Vec<f64> = self.images.iter().map(of).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        (mean, bootstrap_mean(&values, &self.bootstrap))
    }

    /// The result as a table: `head` (`linear`, then `mean`: the mean training depth everywhere), and of each of
    /// [`DepthErrors::NAMES`] its mean over the images with `_low` and `_high`.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let mut columns = vec![Column::new("head".into(), ["linear", "mean"])];
        for (place, name) in DepthErrors::NAMES.iter().enumerate() {
            let both = [
                self.mean(|image| image.head.values()[place]),
                self.mean(|image| image.mean.values()[place]),
            ];
            let column = |name: String, value: fn(&(f64, Interval)) -> f64| {
                Column::new(name.into(), both.iter().map(value).collect::<Vec<_>>())
            };
            columns.push(column((*name).to_owned(), |found| found.0));
            columns.push(column(format!("{name}_low"), |found| found.1.low));
            columns.push(column(format!("{name}_high"), |found| found.1.high));
        }
        let table = DataFrame::new(2, columns)?;
        EvalResult::new("depth", &self.settings, self.n_train, self.images.len(), table)
    }
}
