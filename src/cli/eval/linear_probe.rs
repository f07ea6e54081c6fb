//! `macula eval linear-probe`.

use clap::Args;
use macula_eval::protocols::linear_probe::{self, Length, LinearProbeConfig};

use super::super::args::{examples, with_default};
use super::PROTOCOL;
use super::kept::Kept;
use super::pair::PairArgs;
use crate::Result;
use crate::evaluate::probe_features;
use crate::extract::model::OutputChoice;

/// Arguments of `macula eval linear-probe`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = PROTOCOL,
    mut_args(|arg| match arg.get_id().as_str() {
        "learning_rates" => with_default(arg, super::listed(&LinearProbeConfig::default().learning_rates)),
        _ => arg,
    }),
    after_help = examples(&[
        "macula eval linear-probe --train features/train --test features/test",
        "macula eval linear-probe --train features/train --test features/test --epochs 10 --out probe",
    ])
)]
pub(super) struct LinearProbeArgs {
    /// Learning rates to choose among, before scaling by batch/256
    #[arg(long, value_delimiter = ',', value_name = "LRS")]
    learning_rates: Vec<f64>,
    /// Passes over the train rows [default: 10, or as many as 12500 steps make where those are more]
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    epochs: Option<usize>,
    /// Steps of SGD, instead of passes [default: those of --epochs]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Rows per step
    #[arg(long, alias = "batch-size", value_name = "N", default_value_t = LinearProbeConfig::default().batch_size)]
    train_batch: usize,
    /// Share of train on which the head is chosen
    #[arg(long, value_name = "SHARE", default_value_t = LinearProbeConfig::default().val_fraction)]
    val_fraction: f64,
    #[command(flatten)]
    pair: PairArgs,
}

impl LinearProbeArgs {
    /// Evaluates and prints the table.
    pub fn run(&self) -> Result<()> {
        let config = self.config();
        config.validate()?;
        let (folders, _lock) = self.pair.open(match self.pair.column.column {
            Some(_) => self.pair.outputs(),
            None => OutputChoice::Probe,
        })?;
        let column = self.pair.column(&folders);
        let (pair, columns) = probe_features(&folders, &column, self.pair.allow_unknown_labels)?;
        let result = linear_probe::evaluate(&pair.data(), &config)?;
        let kept = Kept::new(&pair, std::slice::from_ref(&result.predictions));
        self.pair
            .finish(result.to_eval_result()?, &folders, &columns, &kept)
    }

    fn config(&self) -> LinearProbeConfig {
        let defaults = LinearProbeConfig::default();
        LinearProbeConfig {
            learning_rates: if self.learning_rates.is_empty() {
                defaults.learning_rates.clone()
            } else {
                self.learning_rates.clone()
            },
            length: match (self.epochs, self.steps) {
                (Some(epochs), _) => Length::Epochs(epochs),
                (None, Some(steps)) => Length::Steps(steps),
                (None, None) => defaults.length,
            },
            batch_size: self.train_batch,
            val_fraction: self.val_fraction,
            seed: self.pair.random.derived("linear-probe"),
            bootstrap_resamples: self.pair.random.bootstrap_resamples,
            allow_unknown_labels: self.pair.allow_unknown_labels,
            ..defaults
        }
    }
}
