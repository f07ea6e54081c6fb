//! `macula eval knn`.

use clap::Args;
use macula_eval::protocols::knn::{self, KnnConfig};

use super::super::args::examples;
use super::PROTOCOL;
use super::kept::Kept;
use super::pair::PairArgs;
use crate::Result;
use crate::cluster::{self, OfRanks};
use crate::evaluate::near_duplicates;

/// Arguments of `macula eval knn`.
#[derive(Debug, Args)]
#[command(next_help_heading = PROTOCOL, after_help = examples(&[
    "macula eval knn --train features/train --test features/test",
    "macula eval knn --model pixels --train-data sample:train --test-data sample:test --out knn",
    "macula eval knn --train features/train --test features/test --n-per-class 10 --n-tries 5",
]))]
pub(super) struct KnnArgs {
    /// Numbers of neighbours [default: those of 10,20,100,200 that the train rows allow]
    #[arg(long, value_delimiter = ',', value_name = "KS")]
    k: Vec<usize>,
    /// Temperature of the vote
    #[arg(long, value_name = "T", default_value_t = KnnConfig::default().temperature)]
    temperature: f64,
    /// Train rows per class, drawn at random [default: all]
    #[arg(long, value_name = "N")]
    n_per_class: Option<usize>,
    /// Draws of --n-per-class to average over
    #[arg(long, value_name = "N", default_value_t = KnnConfig::default().n_tries, requires = "n_per_class")]
    n_tries: usize,
    /// Say which test rows have a near-duplicate among the train rows: cosine of at least THRESHOLD, 0.99 where none is given
    /// [default: no check]
    #[arg(long, value_name = "THRESHOLD", num_args = 0..=1, require_equals = true, default_missing_value = "0.99")]
    leak_check: Option<f32>,
    #[command(flatten)]
    pair: PairArgs,
}

impl KnnArgs {
    /// Evaluates and prints the table.
    pub fn run(&self) -> Result<()> {
        let mut config = self.config();
        config.validate()?;
        let ranks = cluster::join()?;
        let (folders, _lock) = self.pair.open_on(self.pair.outputs(), ranks.as_ref())?;
        let column = self.pair.column(&folders);
        let pair = folders.labelled(&column, self.pair.allow_unknown_labels)?;
        if self.k.is_empty() {
            config.ks = fitting_ks(&config.ks, pair.train_labels.len());
        }
        let leaks = match self.leak_check {
            Some(threshold) if ranks.rank() == 0 => Some(near_duplicates(&pair, threshold)?),
            _ => None,
        };
        if let Some(leaks) = &leaks {
            tracing::warn!("{}", leaks.notice(pair.test_rows.len()));
        }
        let result = knn::evaluate_with(&pair.data(), &config, &OfRanks(ranks.as_ref()))?;
        cluster::tell_memory(ranks.as_ref())?;
        if ranks.rank() > 0 {
            return Ok(());
        }
        let kept = Kept {
            leaks: leaks.as_ref(),
            ..Kept::new(&pair, &result.predictions)
        };
        if result.predictions.is_empty() && (self.pair.per_class || self.pair.result.out.is_some()) {
            tracing::info!("predictions are kept for the whole training set, not for few-shot draws");
        }
        self.pair
            .finish(result.to_eval_result()?, &folders, &column, &kept)
    }

    fn config(&self) -> KnnConfig {
        let defaults = KnnConfig::default();
        KnnConfig {
            ks: if self.k.is_empty() {
                defaults.ks.clone()
            } else {
                self.k.clone()
            },
            temperature: self.temperature,
            n_per_class: self.n_per_class,
            n_tries: self.n_tries,
            seed: self.pair.random.derived("knn"),
            bootstrap_resamples: self.pair.random.bootstrap_resamples,
            allow_unknown_labels: self.pair.allow_unknown_labels,
            ..defaults
        }
    }
}

/// Those of the default numbers of neighbours that fit, with a notice where some do not.
fn fitting_ks(defaults: &[usize], n_train: usize) -> Vec<usize> {
    let ks = KnnConfig::default_ks(n_train);
    if ks != defaults {
        let listed: Vec<String> = ks.iter().map(usize::to_string).collect();
        tracing::warn!("k = {}, as there are {n_train} train rows", listed.join(", "));
    }
    ks
}
