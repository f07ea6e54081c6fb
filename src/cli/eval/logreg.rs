//! `macula eval logreg`.

use clap::Args;
use macula_eval::TrainTest;
use macula_eval::protocols::logistic::{self, CSelection, FewShotConfig, LogregConfig};
use macula_eval::protocols::predictions::Predictions;
use macula_eval::table::EvalResult;

use super::super::args::examples;
use super::PROTOCOL;
use super::kept::Kept;
use super::pair::PairArgs;
use crate::{Error, Result};

/// Arguments of `macula eval logreg`.
#[derive(Debug, Args)]
#[command(next_help_heading = PROTOCOL, after_help = examples(&[
    "macula eval logreg --train features/train --test features/test",
    "macula eval logreg --c 1 --model pixels --train-data sample:train --test-data sample:test",
    "macula eval logreg --train features/train --test features/test --n-per-class 5 --n-tries 10",
]))]
pub(super) struct LogregArgs {
    /// Inverse regularisation strength; several are chosen among on a split of train [default: the paper's 45, 1e-6 to 1e5; 1
    /// with --n-per-class]
    #[arg(long, value_delimiter = ',', value_name = "C")]
    c: Vec<f64>,
    /// Most iterations of the solver
    #[arg(long, value_name = "N", default_value_t = LogregConfig::default().max_iterations)]
    max_iterations: usize,
    /// Share of train on which C is chosen
    #[arg(long, value_name = "SHARE", default_value_t = LogregConfig::default().val_fraction)]
    val_fraction: f64,
    /// Train rows per class, drawn at random [default: all]
    #[arg(long, value_name = "N", conflicts_with = "val_fraction")]
    n_per_class: Option<usize>,
    /// Draws of --n-per-class to average over
    #[arg(long, value_name = "N", default_value_t = 1, requires = "n_per_class")]
    n_tries: usize,
    #[command(flatten)]
    pair: PairArgs,
}

impl LogregArgs {
    /// Evaluates and prints the table.
    pub fn run(&self) -> Result<()> {
        match self.n_per_class {
            Some(n_per_class) => self.few_shot(n_per_class),
            None => self.whole(),
        }
    }

    /// Lets `evaluate` have the labelled rows, then keeps and prints what it gives.
    fn on_labelled(
        &self,
        evaluate: impl FnOnce(&TrainTest<'_>) -> Result<(EvalResult, Predictions)>,
    ) -> Result<()> {
        let (folders, _lock) = self.pair.open(self.pair.outputs())?;
        let column = self.pair.column(&folders);
        let pair = folders.labelled(&column, self.pair.allow_unknown_labels)?;
        let (result, predictions) = evaluate(&pair.data())?;
        let kept = Kept::new(&pair, std::slice::from_ref(&predictions));
        self.pair.finish(result, &folders, &column, &kept)
    }

    /// Fits draws of `n_per_class` rows a class, with one C.
    fn few_shot(&self, n_per_class: usize) -> Result<()> {
        let c = match self.c.as_slice() {
            [] => 1.,
            [c] => *c,
            several => {
                let reason = format!("expected one value with --n-per-class, found {}", several.len());
                return Err(Error::input("--c", reason));
            }
        };
        let config = FewShotConfig {
            n_per_class,
            n_tries: self.n_tries,
            c,
            max_iterations: self.max_iterations,
            seed: self.pair.random.derived("logreg"),
            bootstrap_resamples: self.pair.random.bootstrap_resamples,
            allow_unknown_labels: self.pair.allow_unknown_labels,
        };
        self.on_labelled(|data| {
            let result = logistic::few_shot(data, &config)?;
            Ok((result.to_eval_result()?, result.predictions))
        })
    }

    /// Fits all train rows.
    fn whole(&self) -> Result<()> {
        let defaults = LogregConfig::default();
        let config = LogregConfig {
            c: match self.c.as_slice() {
                [] => defaults.c.clone(),
                [c] => CSelection::Fixed(*c),
                grid => CSelection::Grid(grid.to_vec()),
            },
            max_iterations: self.max_iterations,
            val_fraction: self.val_fraction,
            seed: self.pair.random.derived("logreg"),
            bootstrap_resamples: self.pair.random.bootstrap_resamples,
            allow_unknown_labels: self.pair.allow_unknown_labels,
            ..defaults
        };
        config.validate()?;
        self.on_labelled(|data| {
            let result = logistic::evaluate(data, &config)?;
            Ok((result.to_eval_result()?, result.predictions))
        })
    }
}
