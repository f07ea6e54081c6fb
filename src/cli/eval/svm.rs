//! `macula eval svm`.

use clap::Args;
use macula_eval::protocols::svm::{self, SvmConfig};

use super::super::args::examples;
use super::PROTOCOL;
use super::kept::Kept;
use super::pair::PairArgs;
use crate::Result;

/// Arguments of `macula eval svm`.
#[derive(Debug, Args)]
#[command(next_help_heading = PROTOCOL, after_help = examples(&[
    "macula eval svm --train features/train --test features/test",
    "macula eval svm --n-per-class 1,5,20 --n-tries 10 --train features/train --test features/test",
    "macula eval svm --n-per-class 16 --cost 0.01,0.1,1,10 --train features/train --test features/test",
]))]
pub(super) struct SvmArgs {
    /// Train rows per class, drawn at random; a row of the table each
    #[arg(long, value_delimiter = ',', value_name = "NS", default_values_t = SvmConfig::default().n_per_class)]
    n_per_class: Vec<usize>,
    /// Draws to average over
    #[arg(long, value_name = "N", default_value_t = SvmConfig::default().n_tries)]
    n_tries: usize,
    /// Cost of an error; several are chosen among in three folds of the rows drawn
    #[arg(long, value_delimiter = ',', value_name = "C", default_values_t = SvmConfig::default().costs)]
    cost: Vec<f64>,
    /// How much more an error on a row of the class costs than one on the rest
    #[arg(long, value_name = "W", default_value_t = SvmConfig::default().positive_weight)]
    positive_weight: f64,
    #[command(flatten)]
    pair: PairArgs,
}

impl SvmArgs {
    /// Evaluates and prints the table.
    pub fn run(&self) -> Result<()> {
        let config = SvmConfig {
            n_per_class: self.n_per_class.clone(),
            n_tries: self.n_tries,
            costs: self.cost.clone(),
            positive_weight: self.positive_weight,
            seed: self.pair.random.derived("svm"),
            bootstrap_resamples: self.pair.random.bootstrap_resamples,
            allow_unknown_labels: self.pair.allow_unknown_labels,
            ..SvmConfig::default()
        };
        config.validate()?;
        let (folders, _lock) = self.pair.open(self.pair.outputs())?;
        let column = self.pair.column(&folders);
        let pair = folders.labelled(&column, self.pair.allow_unknown_labels)?;
        let result = svm::evaluate(&pair.data(), &config)?;
        let kept = Kept::new(&pair, std::slice::from_ref(&result.predictions));
        self.pair
            .finish(result.to_eval_result()?, &folders, &column, &kept)
    }
}
