//! `macula eval compare`.

use std::path::PathBuf;

use clap::Args;

use super::super::args::{BootstrapArgs, INPUT, ResultArgs, ThreadArgs, examples};
use crate::Result;
use crate::results::compare;

/// Arguments of `macula eval compare`.
#[derive(Debug, Args)]
#[command(next_help_heading = INPUT, after_help = examples(&[
    "macula eval compare --a results/mine --b results/theirs",
    "macula eval compare --a results/mine --b results/theirs --k 20",
]))]
pub(super) struct CompareArgs {
    /// Folder that `eval knn`, `linear-probe` or `logreg` wrote with --out
    #[arg(long, value_name = "DIR")]
    a: PathBuf,
    /// Another, of the same test rows
    #[arg(long, value_name = "DIR")]
    b: PathBuf,
    /// Which k of a k-NN result to take, where it holds several [default: its only one]
    #[arg(long, value_name = "N")]
    k: Option<u64>,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    random: BootstrapArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

impl CompareArgs {
    /// Compares and prints the table.
    pub fn run(&self) -> Result<()> {
        self.threads.start()?;
        let _lock = self.result.take()?;
        let config = self.random.config("compare");
        self.result.finish(&compare(&self.a, &self.b, self.k, &config)?)
    }
}
