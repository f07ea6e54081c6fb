//! `eval logreg`: C chosen on held-out training rows, the classifier fitted again on all of them, the test rows
//! touched once (dinov2 eval/log_regression.py).

use super::{LogisticModel, LogisticParams, LogisticSolver};
use crate::protocols::checks;
use crate::protocols::predictions::Predictions;
use crate::protocols::scores::{self, ScoredRow, TestScores, first_best, table, top1};
use crate::split::{check_fraction, hold_out, split_name};
use crate::{Error, EvalResult, Result, Split, TrainTest};
use linfa::ParamGuard;
use polars::prelude::{NamedFrom, Series};
use serde_json::{Value, json};

/// Which C to use.
#[derive(Debug, Clone, PartialEq)]
pub enum CSelection {
    /// This one; nothing is held out.
    Fixed(f64),
    /// The best of these on held-out training rows, the first of equals.
    Grid(Vec<f64>),
}

impl Default for CSelection {
    /// The reference's 45 values, `10^-6 .. 10^5` in even steps of the exponent.
    fn default() -> Self {
        Self::Grid(
            (0..45)
                .map(|i| 10f64.powf(-6.0 + 11.0 * f64::from(i) / 44.0))
                .collect(),
        )
    }
}

/// Settings of `eval logreg`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogregConfig {
    /// C, or the values to choose from.
    pub c: CSelection,
    /// Most iterations of one fit.
    pub max_iterations: usize,
    /// Promised relative decrease of the objective at which a fit stops, see [`LogisticParams::tolerance`].
    pub tolerance: f64,
    /// Share of the training rows that C is chosen on, between 0 and 1.
    pub val_fraction: f64,
    /// Seed of the split and of the bootstrap.
    pub seed: u64,
    /// Resamples of the interval of `top1`; 0 for none.
    pub bootstrap_resamples: usize,
    /// Whether test rows may have labels that no training row has: they count as wrong.
    pub allow_unknown_labels: bool,
}

impl LogregConfig {
    /// Checks the settings on their own, before any data is read.
    ///
    /// # Errors
    /// Names the first setting out of range.
    pub fn validate(&self) -> Result<()> {
        check_fraction(self.val_fraction)?;
        let values = match &self.c {
            CSelection::Fixed(c) => std::slice::from_ref(c),
            CSelection::Grid(values) => values,
        };
        if values.is_empty() {
            return Err(Error::config("c", "expected at least one value, found none"));
        }
        for &c in values {
            params(c, self).check_ref()?;
        }
        Ok(())
    }
}

impl Default for LogregConfig {
    fn default() -> Self {
        Self {
            c: CSelection::default(),
            max_iterations: 1000,
            tolerance: 1e-9,
            val_fraction: 0.1,
            seed: 0,
            bootstrap_resamples: 1000,
            allow_unknown_labels: false,
        }
    }
}

/// One C of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct LogregRow {
    /// Inverse regularisation strength.
    pub c: f64,
    /// Test accuracies of the chosen C after the fit on all training rows; none for the others.
    pub test: Option<TestScores>,
    /// Accuracy on the held-out training rows; none where C was given.
    pub val_top1: Option<f64>,
    /// What C was chosen on: `train split 10 %`, or `given`.
    pub selected_on: String,
}

/// The outcome of `eval logreg`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogregResult {
    /// The chosen C first, then the others in ascending order.
    pub rows: Vec<LogregRow>,
    /// What the chosen classifier said of the test rows.
    pub predictions: Predictions,
    /// The classifier that the first row's test numbers are of.
    pub model: LogisticModel,
    /// Settings as used, and how the solver ended.
    pub settings: Value,
    /// Training rows.
    pub n_train: usize,
    /// Test rows.
    pub n_test: usize,
}

impl LogregResult {
    /// The result as a table: `c`, `top1`, `top5`, `top1_low`, `top1_high`, `mean_per_class`, `selected_on`,
    /// `val_top1`; test numbers in the first row alone.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let c: Vec<f64> = self.rows.iter().map(|row| row.c).collect();
        let rows: Vec<ScoredRow<'_>> = self
            .rows
            .iter()
            .map(|row| ScoredRow {
                test: row.test,
                val_top1: row.val_top1,
                selected_on: &row.selected_on,
            })
            .collect();
        let table = table(Series::new("c".into(), c), &rows)?;
        EvalResult::new("logreg", &self.settings, self.n_train, self.n_test, table)
    }
}

/// Runs the protocol on features as they are: neither normalised nor standardised.
///
/// # Errors
/// Settings out of range, features and labels that do not fit, NaN or infinity, no test row, a split without rows.
pub fn evaluate(data: &TrainTest<'_>, config: &LogregConfig) -> Result<LogregResult> {
    config.validate()?;
    checks::pair(data, config.allow_unknown_labels)?;
    let TrainTest {
        train,
        test,
        n_classes,
    } = *data;
    let selection = match &config.c {
        CSelection::Fixed(c) => Selection {
            values: vec![*c],
            val_top1: vec![None],
            chosen: 0,
            selected_on: "given".to_owned(),
            start: None,
        },
        CSelection::Grid(values) => select(train, n_classes, values, config)?,
    };
    let c = selection.values[selection.chosen];
    let params = params(c, config).check()?;
    let mut solver = LogisticSolver::new(train.features, train.labels, n_classes)?;
    let model = solver.fit(&params, selection.start.as_ref())?;
    let logits = model.logits(test.features)?;
    let test_scores = TestScores::from_logits(
        &logits,
        test.labels,
        n_classes,
        config.bootstrap_resamples,
        config.seed,
    );
    Ok(LogregResult {
        rows: selection.rows(test_scores),
        predictions: scores::predictions(&logits, n_classes),
        settings: settings(config, &selection, &model),
        model,
        n_train: train.features.rows(),
        n_test: test.features.rows(),
    })
}

/// The candidates, what they reached on the held-out rows, and the fit of the chosen one to start from.
struct Selection {
    values: Vec<f64>,
    val_top1: Vec<Option<f64>>,
    chosen: usize,
    selected_on: String,
    start: Option<LogisticModel>,
}

impl Selection {
    fn rows(&self, test: TestScores) -> Vec<LogregRow> {
        let others = (0..self.values.len()).filter(|&i| i != self.chosen);
        std::iter::once(self.chosen)
            .chain(others)
            .map(|i| LogregRow {
                c: self.values[i],
                test: (i == self.chosen).then_some(test),
                val_top1: self.val_top1[i],
                selected_on: self.selected_on.clone(),
            })
            .collect()
    }
}

fn params(c: f64, config: &LogregConfig) -> LogisticParams {
    LogisticParams::new(c)
        .max_iterations(config.max_iterations)
        .tolerance(config.tolerance)
}

fn select(train: Split<'_>, n_classes: usize, values: &[f64], config: &LogregConfig) -> Result<Selection> {
    if values.is_empty() {
        return Err(Error::config("c", "expected at least one value, found none"));
    }
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.dedup();
    let checked = values.iter().map(|&c| params(c, config).check());
    let checked = checked.collect::<Result<Vec<_>>>()?;

    let split = hold_out(train.features.rows(), config.val_fraction, config.seed)?;
    let [fit_labels, val_labels] = [&split.fit, &split.held_out].map(|rows| train.labels_of(rows));
    let [fit, val] = [&split.fit, &split.held_out].map(|rows| train.features.select(rows));
    let mut solver = LogisticSolver::new(fit.view(), &fit_labels, n_classes)?;
    let mut models: Vec<LogisticModel> = Vec::with_capacity(values.len());
    let mut val_top1 = Vec::with_capacity(values.len());
    for params in &checked {
        let model = solver.fit(params, models.last())?;
        val_top1.push(top1(&model.logits(val.view())?, &val_labels, n_classes));
        models.push(model);
    }
    let chosen = first_best(val_top1.iter().copied());
    Ok(Selection {
        start: Some(models.swap_remove(chosen)),
        values,
        val_top1: val_top1.into_iter().map(Some).collect(),
        chosen,
        selected_on: split_name(config.val_fraction),
    })
}

fn settings(config: &LogregConfig, selection: &Selection, model: &LogisticModel) -> Value {
    json!({
        "c": selection.values,
        "max_iterations": config.max_iterations,
        "tolerance": config.tolerance,
        "val_fraction": match config.c { CSelection::Fixed(_) => None, CSelection::Grid(_) => Some(config.val_fraction) },
        "seed": config.seed,
        "bootstrap_resamples": config.bootstrap_resamples,
        "allow_unknown_labels": config.allow_unknown_labels,
        "refit": "all training rows",
        "penalty": "1/2 |W|^2 + C * sum of cross-entropies, bias unpenalised",
        "objective": model.objective(),
        "iterations": model.iterations(),
        "converged": model.converged(),
    })
}
