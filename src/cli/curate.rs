//! `macula curate`: every verb is a step with its settings, run on the same input into a folder of the same form.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::args::{ColumnArgs, start_threads};
use super::output;
use crate::Result;
use crate::curate::{
    DedupOptions, InputOptions, LIST_FILE, OverlapOptions, Pipeline, QualityOptions, RetrieveOptions,
    SampleOptions, Step, run_step,
};

/// Arguments of `macula curate`.
#[derive(Debug, Args)]
pub struct CurateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Keep one row of every component of near-copies
    Dedup(StepArgs<DedupOptions>),
    /// Drop what the heap shares with evaluation sets
    Overlap(StepArgs<OverlapOptions>),
    /// Keep what resembles a curated seed
    Retrieve(StepArgs<RetrieveOptions>),
    /// Take a balanced subset by hierarchical k-means
    Sample(StepArgs<SampleOptions>),
    /// Flag images that are small, dark, bright, flat, blurred, of odd shape or unreadable
    Quality(StepArgs<QualityOptions>),
    /// Run the steps of a TOML file, one on the list of the other
    Run(RunFileArgs),
}

#[derive(Debug, Args)]
struct StepArgs<S: Args> {
    #[command(flatten)]
    input: InputOptions,
    #[command(flatten)]
    step: S,
    /// Folder to write: list.parquet, curate.json and what the step adds
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace a folder that a step wrote
    #[arg(long)]
    force: bool,
    /// Seed of every random choice
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct RunFileArgs {
    /// The pipeline
    #[arg(value_name = "PIPELINE.toml")]
    file: PathBuf,
    /// Pass over steps that are done with the same settings and inputs
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Do everything again
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// Print the result as JSON and nothing else
    #[arg(long)]
    json: bool,
    /// Threads; 0 for all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

impl CurateArgs {
    /// Runs the action.
    pub fn run(&self) -> Result<()> {
        match &self.action {
            Action::Dedup(args) => args.run(),
            Action::Overlap(args) => args.run(),
            Action::Retrieve(args) => args.run(),
            Action::Sample(args) => args.run(),
            Action::Quality(args) => args.run(),
            Action::Run(args) => args.run(),
        }
    }
}

impl<S: Args + Step> StepArgs<S> {
    fn run(&self) -> Result<()> {
        start_threads(self.common.threads)?;
        let mut input = self.input.clone();
        input.data = match input.data {
            Some(data) => Some(self.columns.of(&data)?),
            None => self.columns.need("--data").map(|()| None)?,
        };
        let outcome = run_step(&self.step, &input, self.seed, &self.out, self.force)?;
        tell(&outcome.notes, &self.out);
        if self.common.json {
            return output::print_json(&outcome.json);
        }
        output::print(&outcome.to_text()?)
    }
}

impl RunFileArgs {
    fn run(&self) -> Result<()> {
        start_threads(self.common.threads)?;
        let pipeline = Pipeline::read(&self.file)?;
        let outcome = pipeline.run(self.force, self.resume, |text| tracing::info!("{text}"))?;
        tell(&outcome.notes, &pipeline.out);
        if self.common.json {
            return output::print_json(&outcome.json);
        }
        output::print(outcome.summary.to_text()?.trim_end())
    }
}

fn tell(notes: &[String], out: &Path) {
    for note in notes {
        tracing::warn!("{note}");
    }
    tracing::info!("{}", out.join(LIST_FILE).display());
}
