//! The command line, one file a verb: parse, resolve into a library's options, call the library, print. Results go to
//! stdout, progress and notices to stderr.

mod args;
mod bench;
mod curate;
mod demo;
mod distill;
mod doctor;
mod eval;
mod export;
mod extract;
mod index;
mod inspect;
mod log;
mod output;
mod report;
mod run_folder;
mod runtime;
mod train;
mod viz;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::Result;
use crate::data::decode::range::take_notice;

/// One tool for the whole life of a frozen visual feature: pretrain, export, extract, evaluate.
#[derive(Debug, Parser)]
#[command(name = "macula", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The whole chain on the bundled sample, with the tables beside raw pixels.
    Demo(demo::DemoArgs),
    /// Pretrain a vision transformer without labels.
    Train(Box<train::TrainArgs>),
    /// Train a student on a frozen teacher's outputs, without labels.
    Distill(Box<distill::DistillArgs>),
    /// Write a checkpoint as ONNX, checked against the candle network.
    Export(export::ExportArgs),
    /// Write the frozen features of images to a feature folder.
    Extract(extract::ExtractArgs),
    /// Evaluate features with one protocol.
    Eval(eval::EvalArgs),
    /// Curate a heap of images: copies, leaks, retrieval, balance, quality.
    Curate(Box<curate::CurateArgs>),
    /// Build, query and score nearest-neighbour indexes.
    Index(index::IndexArgs),
    /// Many results in one table and one HTML page.
    Report(report::ReportArgs),
    /// Pictures: principal components of patches, attention, neighbours, a map of features.
    Viz(viz::VizArgs),
    /// Say what a checkpoint, ONNX file or feature folder holds.
    Inspect(inspect::InspectArgs),
    /// The ONNX Runtime library.
    Runtime(runtime::RuntimeArgs),
    /// Time macula's work on this machine.
    Bench(bench::BenchArgs),
    /// Say what this machine offers, what is missing and how to mend it.
    Doctor(doctor::DoctorArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    start_log();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let done = run(cli);
    if let Some(notice) = take_notice() {
        tracing::warn!("{notice}");
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().collect::<Vec<_>>().join("; ");
            eprintln!("error: {}", output::plain(&line));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints help or the version as clap does, but an error as one line like every other.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help that cannot be printed has nobody to be told.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let line: Vec<&str> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    eprintln!("{} (see --help)", output::plain(&line.join(" ")));
    ExitCode::from(2)
}

fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Demo(args) => args.run(),
        Verb::Train(args) => args.run(),
        Verb::Distill(args) => args.run(),
        Verb::Export(args) => args.run(),
        Verb::Extract(args) => args.run(),
        Verb::Eval(args) => args.run(),
        Verb::Curate(args) => args.run(),
        Verb::Index(args) => args.run(),
        Verb::Report(args) => args.run(),
        Verb::Viz(args) => args.run(),
        Verb::Inspect(args) => args.run(),
        Verb::Runtime(args) => args.run(),
        Verb::Bench(args) => args.run(),
        Verb::Doctor(args) => args.run(),
    }
}

/// Notices to stderr. `MACULA_LOG` takes the usual filters, for instance `debug` or `ort=info`.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    // tiny-skia warns of every curve that is still a point or a level line.
    let filter = EnvFilter::try_from_env("MACULA_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,macula=info,tiny_skia=error"));
    // A second subscriber in one process can only be a test's.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .event_format(log::Lines)
        .try_init();
}
