//! `macula demo`.

use std::path::PathBuf;

use clap::Args;

use super::args::RunArgs;
use super::output;
use crate::Result;
use crate::demo::{DemoOptions, run};

/// Arguments of `macula demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder for the model, the features and the table; an older demo there is replaced
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
    /// Seed of the weights, splits and intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Training steps, instead of the number that takes two cores about two minutes
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
}

impl DemoArgs {
    /// Runs the chain and prints the table.
    pub fn run(&self) -> Result<()> {
        self.run.start_threads()?;
        let result = run(&DemoOptions {
            out: self.out.clone(),
            seed: self.seed,
            device: self.run.device,
            threads: self.run.threads,
            steps: self.steps,
            ort_lib: self.run.ort_lib.clone(),
        })?;
        output::print_result(&result, self.json, None)
    }
}
