//! `eval logreg` from few labelled rows: as many a class, drawn several times (dinov2 eval/log_regression.py is run so for
//! the paper's few-shot figures; section 7.1).

use polars::prelude::df;
use serde_json::json;

use super::{LogisticParams, fit};
use crate::draws::draw_per_class;
use crate::metrics::classification::{accuracy, hits_at, mean_per_class};
use crate::protocols::predictions::Predictions;
use crate::protocols::{checks, scores};
use crate::stats::spread::{mean, sample_std};
use crate::stats::{BootstrapConfig, bootstrap_mean};
use crate::{Error, EvalResult, Result, TrainTest};

/// Settings of a few-shot probe.
#[derive(Debug, Clone, PartialEq)]
pub struct FewShotConfig {
    /// Train rows a class, at least 1; all of a class that has fewer.
    pub n_per_class: usize,
    /// Draws, at least 1.
    pub n_tries: usize,
    /// Inverse regularisation strength. Given: so few rows leave none to choose it on.
    pub c: f64,
    /// Most iterations of one fit.
    pub max_iterations: usize,
    /// Seed of the draws and of the bootstrap.
    pub seed: u64,
    /// Resamples of the interval of `top1`; 0 for none.
    pub bootstrap_resamples: usize,
    /// Whether test rows may have labels that no training row has: they count as wrong.
    pub allow_unknown_labels: bool,
}

/// The outcome of a few-shot probe.
#[derive(Debug, Clone, PartialEq)]
pub struct FewShotResult {
    /// The settings.
    pub config: FewShotConfig,
    /// Test accuracy of each draw.
    pub top1: Vec<f64>,
    /// Share of test rows whose class ranks among the first five, the mean over the draws.
    pub top5: f64,
    /// Mean over classes of their accuracy, the mean over the draws.
    pub mean_per_class: f64,
    /// 95 % bootstrap interval over the test rows of the mean accuracy.
    pub interval: (f64, f64),
    /// What the classifier of the first draw said of the test rows.
    pub predictions: Predictions,
    /// Training rows of a draw, and test rows.
    pub n_train: usize,
    /// Test rows.
    pub n_test: usize,
}

/// Fits a classifier on each draw of the training rows and tests it.
///
/// # Errors
/// Settings out of range, features and labels that do not fit, NaN or infinity, fewer than two classes.
pub fn few_shot(data: &TrainTest<'_>, config: &FewShotConfig) -> Result<FewShotResult> {
    for (field, value) in [("n_per_class", config.n_per_class), ("n_tries", config.n_tries)] {
        if value == 0 {
            return Err(Error::config(field, "expected at least 1, found 0"));
        }
    }
    checks::pair(data, config.allow_unknown_labels)?;
    let TrainTest {
        train,
        test,
        n_classes,
    } = *data;
    let params = LogisticParams::new(config.c).max_iterations(config.max_iterations);
    let (mut top1, mut top5, mut per_class) = (Vec::new(), Vec::new(), Vec::new());
    let mut hits_of_tries = vec![0f32; test.labels.len()];
    let mut first = None;
    let mut n_train = 0;
    for number in 0..config.n_tries {
        let chosen = draw_per_class(
            train.labels,
            n_classes,
            config.n_per_class,
            config.seed,
            number as u64,
        );
        let (features, labels) = (train.features.select(&chosen), train.labels_of(&chosen));
        n_train = chosen.len();
        let model = fit(features.view(), &labels, n_classes, &params)?;
        let logits = model.logits(test.features)?;
        let ranks = scores::ranks(&logits, test.labels, n_classes);
        let hits = hits_at(&ranks, 1);
        top1.push(accuracy(&hits));
        top5.push(accuracy(&hits_at(&ranks, 5)));
        per_class.push(mean_per_class(&hits, test.labels));
        for (sum, hit) in hits_of_tries.iter_mut().zip(&hits) {
            *sum += hit / config.n_tries as f32;
        }
        first.get_or_insert_with(|| scores::predictions(&logits, n_classes));
    }
    let interval = bootstrap_mean(
        &hits_of_tries,
        &BootstrapConfig {
            resamples: config.bootstrap_resamples,
            seed: config.seed,
            ..BootstrapConfig::default()
        },
    );
    let predictions = first.ok_or_else(|| Error::config("n_tries", "expected at least 1, found 0"))?;
    Ok(FewShotResult {
        config: config.clone(),
        top1,
        top5: mean(&top5),
        mean_per_class: mean(&per_class),
        interval: (interval.low, interval.high),
        predictions,
        n_train,
        n_test: test.labels.len(),
    })
}

impl FewShotResult {
    /// One row: `c`, `top1`, `top5`, `top1_low`, `top1_high`, `mean_per_class`, `n_per_class`, `n_tries`, `top1_std` (missing
    /// for one draw).
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let config = &self.config;
        let table = df!(
            "c" => [config.c],
            "top1" => [mean(&self.top1)],
            "top5" => [self.top5],
            "top1_low" => [self.interval.0],
            "top1_high" => [self.interval.1],
            "mean_per_class" => [self.mean_per_class],
            "n_per_class" => [config.n_per_class as u64],
            "n_tries" => [config.n_tries as u64],
            "top1_std" => [(self.top1.len() > 1).then(|| sample_std(&self.top1))],
        )?;
        let settings = json!({
            "c": config.c,
            "n_per_class": config.n_per_class,
            "n_tries": config.n_tries,
            "max_iterations": config.max_iterations,
            "seed": config.seed,
            "bootstrap_resamples": config.bootstrap_resamples,
            "allow_unknown_labels": config.allow_unknown_labels,
            "top1_of_tries": self.top1,
        });
        EvalResult::new("logreg", settings, self.n_train, self.n_test, table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MatrixView, Split};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Three overlapping clusters in the plane.
    fn clusters(n: usize, seed: u64) -> (Vec<f32>, Vec<u32>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut features = Vec::new();
        let labels: Vec<u32> = (0..n as u32).map(|row| row % 3).collect();
        for &label in &labels {
            let angle = f64::from(label) * 2.1;
            for centre in [angle.cos(), angle.sin()] {
                features.push((centre + rng.random_range(-1.0..1.0)) as f32);
            }
        }
        (features, labels)
    }

    #[test]
    fn more_rows_are_better_and_steadier_and_draws_repeat() {
        let ((train, train_labels), (test, test_labels)) = (clusters(900, 1), clusters(600, 2));
        let run = |n_per_class, n_tries| {
            let config = FewShotConfig {
                n_per_class,
                n_tries,
                c: 1.,
                max_iterations: 200,
                seed: 3,
                bootstrap_resamples: 200,
                allow_unknown_labels: false,
            };
            let train = Split::new(MatrixView::new(&train, 900, 2).unwrap(), &train_labels);
            let test = Split::new(MatrixView::new(&test, 600, 2).unwrap(), &test_labels);
            few_shot(&TrainTest::new(train, test, 3), &config).unwrap()
        };
        let (few, many) = (run(1, 8), run(100, 8));
        assert_eq!((few.n_train, many.n_train), (3, 300));
        assert!(mean(&many.top1) > mean(&few.top1) + 0.05);
        assert!(sample_std(&many.top1) < sample_std(&few.top1));
        assert!(few.interval.0 <= mean(&few.top1) && mean(&few.top1) <= few.interval.1);
        assert_eq!(few, run(1, 8));
        // All rows of every class, whatever the draw.
        let all = run(1000, 2);
        assert_eq!((all.n_train, all.top1[0]), (900, all.top1[1]));
        let row = few.to_eval_result().unwrap().to_json().unwrap();
        assert_eq!(row["rows"][0]["n_per_class"], 1);
        assert!(row["rows"][0]["top1_std"].as_f64().unwrap() > 0.);
        assert!(run(5, 1).to_eval_result().unwrap().to_json().unwrap()["rows"][0]["top1_std"].is_null());
    }
}
