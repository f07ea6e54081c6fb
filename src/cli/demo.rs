//! `macula demo`.

use std::path::PathBuf;

use clap::Args;

use super::args::{JsonArgs, OUTPUT, RunArgs, SeedArgs, examples};
use crate::Result;
use crate::demo::{DemoOptions, STEPS, run};

/// Arguments of `macula demo`.
#[derive(Debug, Args)]
#[command(after_help = examples(&["macula demo", "macula demo --steps 100 --out runs/short"]))]
pub struct DemoArgs {
    /// Training steps; the default takes two cores about two minutes
    #[arg(long, value_name = "N", default_value_t = STEPS, help_heading = "Training")]
    steps: u64,
    /// Folder for the model, the features and the table; an older demo there is replaced
    #[arg(long, value_name = "DIR", default_value = "runs/demo", help_heading = OUTPUT)]
    out: PathBuf,
    #[command(flatten)]
    print: JsonArgs,
    #[command(flatten)]
    random: SeedArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl DemoArgs {
    /// Runs the chain and prints the table.
    pub fn run(&self) -> Result<()> {
        self.run.threads.start()?;
        let result = run(&DemoOptions {
            out: self.out.clone(),
            seed: self.random.seed,
            device: self.run.device,
            threads: self.run.threads.threads,
            steps: Some(self.steps),
            ort_lib: self.run.ort_lib.clone(),
        })?;
        self.print.print(&result)
    }
}
