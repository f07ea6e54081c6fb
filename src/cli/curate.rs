//! `macula curate`: every verb is a step with its settings, run on the same input into a folder of the same form.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::args::{ColumnArgs, INPUT, JsonArgs, NewArgs, OUTPUT, SeedArgs, ThreadArgs, examples, reworded};
use super::output;
use crate::Result;
use crate::cluster;
use crate::curate::{
    DedupOptions, InputOptions, LIST_FILE, OverlapOptions, Pipeline, QualityOptions, RetrieveOptions,
    SampleOptions, Step, run_step,
};

/// The heading of a step's own settings.
const STEP: &str = "Step";

/// Arguments of `macula curate`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    "macula curate dedup --features pool --threshold 0.99 --out curated/1",
    "macula curate sample --features pool --list curated/1/list.parquet --size 0.2 --out curated/2",
    "macula train --data curated/2/list.parquet --out runs/curated",
]))]
pub struct CurateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Keep one row of every component of near-copies
    #[command(after_help = examples(&[
        "macula curate dedup --features features/pool --threshold 0.99 --out curated/1",
        "macula curate dedup --features features/pool --pixels hash --keep largest --out curated/1",
    ]))]
    Dedup(StepArgs<DedupOptions>),
    /// Drop what the pool shares with evaluation sets
    #[command(after_help = examples(&[
        "macula curate overlap --features features/pool --against features/test --out curated/2",
        "macula curate overlap --features pool --list list.parquet --against test --out curated/2",
    ]))]
    Overlap(StepArgs<OverlapOptions>),
    /// Keep what resembles a curated seed
    #[command(after_help = examples(&[
        "macula curate retrieve --features features/pool --seeds features/seed --k 4 --out curated/3",
        "macula curate retrieve --features pool --seeds seed --method cluster --out curated/3",
    ]))]
    Retrieve(StepArgs<RetrieveOptions>),
    /// Take a balanced subset by hierarchical k-means
    #[command(after_help = examples(&[
        "macula curate sample --features features/pool --size 0.2 --out curated/4",
        "macula curate sample --features features/pool --size 10000 --levels 1000,100,10 --out curated/4",
    ]))]
    Sample(StepArgs<SampleOptions>),
    /// Flag images that are small, dark, bright, flat, blurred, of odd shape or unreadable
    #[command(after_help = examples(&[
        "macula curate quality --data photos/ --out curated/0",
        "macula curate quality --data photos/ --drop unreadable,dark,flat --out curated/0",
    ]))]
    Quality(StepArgs<QualityOptions>),
    /// Run the steps of a TOML file, one on the list of the other
    Run(RunFileArgs),
}

#[derive(Debug, Args)]
#[command(mut_args(reworded(&[
    ("out", "Folder to write: list.parquet, curate.json and what the step adds"),
    ("force", "Replace a folder that a step wrote"),
])))]
struct StepArgs<S: Args> {
    #[command(flatten, next_help_heading = STEP)]
    step: S,
    #[command(flatten, next_help_heading = INPUT)]
    input: InputOptions,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    out: NewArgs,
    #[command(flatten)]
    random: SeedArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = OUTPUT, after_help = examples(&[
    "macula curate run pipeline.toml",
    "macula curate run pipeline.toml --resume",
]))]
struct RunFileArgs {
    /// The pipeline
    #[arg(value_name = "PIPELINE.toml", help_heading = INPUT)]
    file: PathBuf,
    /// Pass over steps that are done with the same settings and inputs
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Do everything again
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    print: JsonArgs,
    #[command(flatten)]
    threads: ThreadArgs,
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
        self.threads.start()?;
        let mut input = self.input.clone();
        input.data = match input.data {
            Some(data) => Some(self.columns.apply_to(&data)?),
            None => self.columns.need("--data").map(|()| None)?,
        };
        let ranks = cluster::join()?;
        if ranks.rank() > 0 {
            self.step.help(&input, self.random.seed, ranks.as_ref())?;
            return cluster::tell_memory(ranks.as_ref());
        }
        let target = (self.out.out.as_path(), self.out.force);
        let outcome = run_step(&self.step, &input, self.random.seed, target, ranks.as_ref())?;
        tell(&outcome.notes, &self.out.out);
        cluster::tell_memory(ranks.as_ref())?;
        if self.out.print.json {
            return output::print_json(&outcome.json);
        }
        output::print(&outcome.to_text()?)
    }
}

impl RunFileArgs {
    fn run(&self) -> Result<()> {
        self.threads.start()?;
        if cluster::started_in().is_some_and(|launch| launch.rank > 0) {
            // A pipeline is the first process's alone.
            return Ok(());
        }
        let pipeline = Pipeline::read(&self.file)?;
        let outcome = pipeline.run(self.force, self.resume, |text| tracing::info!("{text}"))?;
        tell(&outcome.notes, &pipeline.out);
        if self.print.json {
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
