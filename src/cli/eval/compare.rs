//! `macula eval compare`.

use std::path::PathBuf;

use clap::Args;
use macula_eval::stats::BootstrapConfig;

use super::folders::ResultArgs;
use crate::results::compare;
use crate::{Result, rng};

/// Arguments of `macula eval compare`.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Folder that `eval knn`, `linear-probe` or `logreg` wrote with --out
    #[arg(long, value_name = "DIR")]
    a: PathBuf,
    /// Another, of the same test rows
    #[arg(long, value_name = "DIR")]
    b: PathBuf,
    /// Which k of a k-NN result to take, where it holds several
    #[arg(long, value_name = "N")]
    k: Option<u64>,
    /// Bootstrap resamples of the 95 % interval
    #[arg(long, default_value_t = 1000)]
    bootstrap_resamples: usize,
    #[command(flatten)]
    common: ResultArgs,
}

impl CompareArgs {
    /// Compares and prints the table.
    pub fn run(&self) -> Result<()> {
        let _lock = self.common.start()?;
        let config = BootstrapConfig {
            resamples: self.bootstrap_resamples,
            seed: rng::derived_seed(self.common.seed, "compare"),
            ..BootstrapConfig::default()
        };
        self.common.finish(&compare(&self.a, &self.b, self.k, &config)?)
    }
}
