//! Linear probe on frozen features (dinov2 eval/linear.py): heads of every learning rate and input are trained together
//! by SGD, the best on held-out training rows is trained again on all of them, and the test rows are touched once.
//!
//! What differs from the reference, which reads images: features are extracted once, without augmentation; training is
//! as long as there or 10 passes over the rows, whichever is longer; and the head is chosen on training rows, where the
//! reference chooses on the rows that it reports.

mod heads;
mod inputs;

pub use inputs::ProbeFeatures;

use crate::protocols::checks;
use crate::protocols::predictions::Predictions;
use crate::protocols::scores::{self, ScoredRow, TestScores, first_best, table};
use crate::split::{check_fraction, hold_out, split_name};
use crate::{Error, EvalResult, Result, TrainTest};
use heads::{Head, Schedule};
use inputs::Input;
use polars::prelude::{NamedFrom, Series};
use serde_json::{Value, json};

/// Settings of `eval linear-probe`.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearProbeConfig {
    /// Learning rates of the grid, each multiplied by `batch_size / 256` before use.
    pub learning_rates: Vec<f64>,
    /// Numbers of last blocks whose CLS tokens are concatenated.
    pub n_last_blocks: Vec<usize>,
    /// Whether the mean patch token is appended.
    pub average_pool: Vec<bool>,
    /// How long a head is trained.
    pub length: Length,
    /// Rows of one SGD step; all rows where there are fewer.
    pub batch_size: usize,
    /// Share of the training rows that the head is chosen on, between 0 and 1.
    pub val_fraction: f64,
    /// Seed of the split, the initial weights, the order of the rows and the bootstrap.
    pub seed: u64,
    /// Resamples of the interval of `top1`; 0 for none.
    pub bootstrap_resamples: usize,
    /// Whether test rows may have labels that no training row has: they count as wrong.
    pub allow_unknown_labels: bool,
}

/// Passes over the training rows that are the least by default.
const MIN_EPOCHS: usize = 10;
/// Steps of the reference, whatever the data: 10 times 1,250.
const REFERENCE_STEPS: usize = 12_500;

/// How long a head is trained, both where it is chosen and on all training rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Length {
    /// The reference's 12,500 steps or 10 passes over the training rows, whichever is longer.
    #[default]
    Reference,
    /// This many passes over the training rows.
    Epochs(usize),
    /// This many steps.
    Steps(usize),
}

impl Length {
    /// What was asked for, in words.
    fn describe(self) -> String {
        match self {
            Self::Reference => {
                format!("{REFERENCE_STEPS} steps or {MIN_EPOCHS} epochs, whichever is longer")
            }
            Self::Epochs(epochs) => format!("{epochs} epochs"),
            Self::Steps(steps) => format!("{steps} steps"),
        }
    }
}

impl Default for LinearProbeConfig {
    /// The grid of the reference's code up to 0.1 (its paper goes from 1e-4 to 0.5), and three above it: as many steps as the
    /// reference's are taken here, but on 128 rows each where its eight GPUs had 1,024, and on features that are hard to separate 0.1 was then
    /// chosen at the edge of the grid, up to four points behind logistic regression.
    fn default() -> Self {
        Self {
            learning_rates: vec![
                1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
            ],
            n_last_blocks: vec![1, 4],
            average_pool: vec![false, true],
            length: Length::Reference,
            batch_size: 128,
            val_fraction: 0.1,
            seed: 0,
            bootstrap_resamples: 1000,
            allow_unknown_labels: false,
        }
    }
}

impl LinearProbeConfig {
    /// Checks the settings on their own, before any data is read.
    ///
    /// # Errors
    /// Names the first setting out of range.
    pub fn validate(&self) -> Result<()> {
        check_fraction(self.val_fraction)?;
        let rate = |rate: &&f64| !(rate.is_finite() && **rate > 0.0);
        if let Some(rate) = self.learning_rates.iter().find(rate) {
            return Err(Error::config(
                "learning_rates",
                format!("expected numbers above 0, found {rate}"),
            ));
        }
        for (field, empty) in [
            ("learning_rates", self.learning_rates.is_empty()),
            ("n_last_blocks", self.n_last_blocks.is_empty()),
            ("average_pool", self.average_pool.is_empty()),
        ] {
            if empty {
                return Err(Error::config(field, "expected at least one value, found none"));
            }
        }
        let (field, length) = match self.length {
            Length::Reference => ("steps", REFERENCE_STEPS),
            Length::Epochs(epochs) => ("epochs", epochs),
            Length::Steps(steps) => ("steps", steps),
        };
        for (field, value) in [
            (field, length),
            ("batch_size", self.batch_size),
            (
                "n_last_blocks",
                self.n_last_blocks.iter().copied().min().unwrap_or(0),
            ),
        ] {
            if value == 0 {
                return Err(Error::config(field, "expected at least 1, found 0"));
            }
        }
        Ok(())
    }
}

/// One head of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearProbeRow {
    /// `classifier_{index}_{n}_blocks_avgpool_{bool}_lr_{learning rate before scaling}`.
    pub head: String,
    /// Test accuracies of the chosen head after training on all training rows; none for the others.
    pub test: Option<TestScores>,
    /// Accuracy on the held-out training rows.
    pub val_top1: f64,
    /// What the head was chosen on: `train split 10 %`.
    pub selected_on: String,
}

/// The outcome of `eval linear-probe`.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearProbeResult {
    /// The chosen head first, then the others in the order of the grid.
    pub rows: Vec<LinearProbeRow>,
    /// What the chosen head said of the test rows.
    pub predictions: Predictions,
    /// Settings as used, with the variants that the features could not serve.
    pub settings: Value,
    /// Training rows.
    pub n_train: usize,
    /// Test rows.
    pub n_test: usize,
}

impl LinearProbeResult {
    /// The result as a table: `head`, `top1`, `top5`, `top1_low`, `top1_high`, `mean_per_class`, `selected_on`,
    /// `val_top1`; test numbers in the first row alone.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let heads: Vec<&str> = self.rows.iter().map(|row| row.head.as_str()).collect();
        let rows: Vec<ScoredRow<'_>> = self
            .rows
            .iter()
            .map(|row| ScoredRow {
                test: row.test,
                val_top1: Some(row.val_top1),
                selected_on: &row.selected_on,
            })
            .collect();
        let table = table(Series::new("head".into(), heads), &rows)?;
        EvalResult::new("linear-probe", &self.settings, self.n_train, self.n_test, table)
    }
}

/// Runs the protocol.
///
/// # Errors
/// Settings out of range, features and labels that do not fit, NaN or infinity, a single class, no test row, test labels
/// that training lacks, a split without rows, or features that serve no variant of the grid.
pub fn evaluate(
    data: &TrainTest<'_, &ProbeFeatures>,
    config: &LinearProbeConfig,
) -> Result<LinearProbeResult> {
    config.validate()?;
    let TrainTest {
        train,
        test,
        n_classes,
    } = *data;
    let n_train = train.features.check("train features")?;
    let n_test = test.features.check("test features")?;
    test.features.check_like(train.features)?;
    checks::labels("train labels", n_train, train.labels, n_classes)?;
    checks::two_classes(train.labels)?;
    checks::labels_of_test(n_test, test.labels, train.labels, config.allow_unknown_labels)?;
    let (grid, left_out) = grid(train.features, config)?;
    let split = hold_out(n_train, config.val_fraction, config.seed)?;

    let trained = heads::train(train, &split.fit, &grid, n_classes, config);
    let val_top1 = heads::top1(train, &split.held_out, &trained, n_classes);
    let chosen = first_best(val_top1.iter().copied());

    let every_row: Vec<usize> = (0..n_train).collect();
    let winner = &grid[chosen..=chosen];
    let trained = heads::train(train, &every_row, winner, n_classes, config);
    let logits = heads::logits(test.features, &trained[0], n_classes);
    let test_scores = TestScores::from_logits(
        &logits,
        test.labels,
        n_classes,
        config.bootstrap_resamples,
        config.seed,
    );

    let others = (0..grid.len()).filter(|&i| i != chosen);
    let rows = std::iter::once(chosen).chain(others).map(|i| LinearProbeRow {
        head: grid[i].key(),
        test: (i == chosen).then_some(test_scores),
        val_top1: val_top1[i],
        selected_on: split_name(config.val_fraction),
    });
    Ok(LinearProbeResult {
        rows: rows.collect(),
        predictions: scores::predictions(&logits, n_classes),
        settings: settings(config, &left_out, split.fit.len(), n_train),
        n_train,
        n_test,
    })
}

/// The heads that the features can serve, in the reference's order, and the names of the inputs they cannot.
fn grid(features: &ProbeFeatures, config: &LinearProbeConfig) -> Result<(Vec<Head>, Vec<String>)> {
    let (mut heads, mut left_out) = (Vec::new(), Vec::new());
    for &blocks in &config.n_last_blocks {
        for &average_pool in &config.average_pool {
            let input = Input { blocks, average_pool };
            if !features.can_serve(input) {
                left_out.push(input.to_string());
                continue;
            }
            for &learning_rate in &config.learning_rates {
                heads.push(Head {
                    index: heads.len(),
                    input,
                    learning_rate,
                });
            }
        }
    }
    if heads.is_empty() {
        return Err(Error::config(
            "n_last_blocks, average_pool",
            format!(
                "expected a variant that the features can serve, found only {} with {} CLS blocks and {} mean patch token",
                left_out.join(", "),
                features.cls_blocks.len(),
                if features.patch_mean.is_some() { "a" } else { "no" },
            ),
        ));
    }
    Ok((heads, left_out))
}

fn settings(config: &LinearProbeConfig, left_out: &[String], n_fit: usize, n_train: usize) -> Value {
    let (to_choose, to_refit) = (Schedule::new(n_fit, config), Schedule::new(n_train, config));
    json!({
        "learning_rates": config.learning_rates,
        "learning_rate_factor": config.batch_size as f64 / 256.0,
        "n_last_blocks": config.n_last_blocks,
        "average_pool": config.average_pool,
        "inputs_left_out": left_out,
        "length": config.length.describe(),
        "steps_to_choose": to_choose.steps,
        "steps": to_refit.steps,
        "epochs": to_refit.epochs(n_train),
        "batch_size": to_refit.batch,
        "optimizer": "SGD, momentum 0.9, no weight decay, cosine to 0",
        "augmentation": "none: features are extracted once",
        "val_fraction": config.val_fraction,
        "refit": "chosen head, all training rows",
        "seed": config.seed,
        "bootstrap_resamples": config.bootstrap_resamples,
        "allow_unknown_labels": config.allow_unknown_labels,
    })
}

#[cfg(test)]
mod tests;
