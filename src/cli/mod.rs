//! The command line, one file a verb: parse, resolve into a library's options, call the library, print. Results go to
//! stdout, progress and notices to stderr.

mod args;
mod bench;
mod completions;
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
mod man;
mod output;
mod reference;
mod report;
mod run_folder;
mod runtime;
#[cfg(feature = "serve")]
mod serve;
mod signals;
mod train;
mod tune;
mod viz;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser, Subcommand};

pub use reference::reference;

use crate::data::decode::range::take_notice;
use crate::{Error, Result};

/// One tool for the whole life of a frozen visual feature: pretrain, export, extract, evaluate.
#[derive(Debug, Parser)]
#[command(
    name = "macula",
    version,
    propagate_version = true,
    disable_help_flag = true,
    disable_version_flag = true,
    after_help = args::examples(&[
        "macula demo",
        "macula train --data photos/ --out runs/first",
        "macula extract --model vits14.onnx --data photos/ --out features",
    ])
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Print help; -h for a summary
    #[arg(id = "help", short = 'h', long = "help", global = true, action = ArgAction::Help, help_heading = HELP)]
    _help: Option<bool>,
    /// Print version
    #[arg(id = "version", short = 'V', long = "version", global = true, action = ArgAction::Version, help_heading = HELP)]
    _version: Option<bool>,
}

/// The heading of what clap answers by itself, below all others.
const HELP: &str = "Help";

#[derive(Debug, Subcommand)]
enum Verb {
    /// The whole chain on the bundled sample, with the tables beside raw pixels.
    Demo(demo::DemoArgs),
    /// Pretrain a vision transformer without labels.
    Train(Box<train::TrainArgs>),
    /// Choose a recipe and its settings for the images at hand, in a given time.
    Tune(Box<tune::TuneArgs>),
    /// Train a student on a frozen teacher's outputs, without labels.
    Distill(Box<distill::DistillArgs>),
    /// Write a checkpoint as ONNX, checked against the candle network.
    Export(Box<export::ExportArgs>),
    /// Write the frozen features of images to a feature folder.
    Extract(Box<extract::ExtractArgs>),
    /// Evaluate features with one protocol.
    Eval(eval::EvalArgs),
    /// Curate a pool of images: copies, leaks, retrieval, balance, quality.
    Curate(Box<curate::CurateArgs>),
    /// Build, query and score nearest-neighbour indexes.
    Index(index::IndexArgs),
    /// Many results in one table and one HTML page.
    Report(report::ReportArgs),
    /// Pictures: principal components of patches, attention, neighbours, a map of features.
    Viz(viz::VizArgs),
    /// Answer requests for features and neighbours over HTTP.
    #[cfg(feature = "serve")]
    Serve(Box<serve::ServeArgs>),
    /// Say what a checkpoint, ONNX file or feature folder holds.
    Inspect(inspect::InspectArgs),
    /// The ONNX Runtime library.
    Runtime(runtime::RuntimeArgs),
    /// Time macula's work on this machine.
    Bench(Box<bench::BenchArgs>),
    /// Say what this machine offers, what is missing and how to mend it.
    Doctor(doctor::DoctorArgs),
    /// Print completions for a shell.
    Completions(completions::CompletionsArgs),
    /// Write pages for `man`, one a verb.
    Man(man::ManArgs),
}

/// Whose process a command runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    /// The program's own: a second SIGINT may end it.
    Own,
    /// Another's, which goes on afterwards.
    Other,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    ExitCode::from(run_in(Host::Own, std::env::args_os()))
}

/// Runs the command line `args`, of which the first is the program's name, within any process: `["macula", "inspect",
/// "m.onnx"]`. Results go to stdout, notices and errors to stderr. Gives the exit code: 0 done, 1 failed while running, 2 bad
/// arguments or input.
///
/// It may be called again and from any thread. The process is never ended and keeps what it has: a log that was started
/// already gets the notices, and handlers of SIGINT and SIGTERM are called beside those by which `train` and `distill` end after
/// a step, and alone afterwards. What a process has once, it has from the first call that asks: `--threads` of a later call must
/// repeat the number, or be 0.
pub fn run<I>(args: I) -> u8
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    run_in(Host::Other, args)
}

/// The whole command line, as clap knows it.
pub fn command() -> clap::Command {
    Cli::command()
}

fn run_in<I>(host: Host, args: I) -> u8
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    start_log();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let done = cli.verb.run(host);
    if let Some(notice) = take_notice() {
        tracing::warn!("{notice}");
    }
    match done {
        Ok(()) => 0,
        Err(error) => {
            let text = said(&error);
            let line = text.lines().collect::<Vec<_>>().join("; ");
            eprintln!("error: {}", output::plain(&line));
            error.exit_code()
        }
    }
}

/// An error in the words of the command line: the library names settings, which flags set here.
fn said(error: &Error) -> String {
    match error {
        Error::Setting { field, reason } => {
            let (name, value) = field.split_at(field.find(' ').unwrap_or(field.len()));
            format!("--{}{value}: {reason}", name.replace('_', "-"))
        }
        Error::Exists { .. } => format!("{error}; give --force to replace it"),
        _ => error.to_string(),
    }
}

/// Prints help or the version as clap does, but an error as one line like every other.
fn refuse(error: &clap::Error) -> u8 {
    if !error.use_stderr() {
        // Help that cannot be printed has nobody to be told.
        let _ = error.print();
        return 0;
    }
    eprintln!("{} (see --help)", output::plain(&in_one_line(error)));
    2
}

fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    lines.join(" ")
}

/// A command line that has been understood, of a verb that runs others.
struct Invocation(Cli);

impl Invocation {
    /// # Errors
    /// What clap has against `args`, in one line.
    fn parse(args: &[String]) -> std::result::Result<Self, String> {
        match Cli::try_parse_from(args) {
            Ok(cli) => Ok(Self(cli)),
            Err(error) => Err(in_one_line(&error)),
        }
    }

    fn run(self) -> Result<()> {
        self.0.verb.run(Host::Other)
    }
}

impl Verb {
    fn run(self, host: Host) -> Result<()> {
        match self {
            Self::Demo(args) => args.run(),
            Self::Train(args) => args.run(host),
            Self::Tune(args) => args.run(host),
            Self::Distill(args) => args.run(host),
            Self::Export(args) => args.run(),
            Self::Extract(args) => args.run(),
            Self::Eval(args) => args.run(),
            Self::Curate(args) => args.run(),
            Self::Index(args) => args.run(),
            Self::Report(args) => args.run(),
            Self::Viz(args) => args.run(),
            #[cfg(feature = "serve")]
            Self::Serve(args) => args.run(),
            Self::Inspect(args) => args.run(),
            Self::Runtime(args) => args.run(),
            Self::Bench(args) => args.run(),
            Self::Doctor(args) => args.run(),
            Self::Completions(args) => args.run(),
            Self::Man(args) => args.run(),
        }
    }
}

/// Notices to stderr, unless this process has a log already. `MACULA_LOG` takes the usual filters, for instance `debug` or
/// `ort=info`.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    // tiny-skia warns of every curve that is still a point or a level line.
    let filter = EnvFilter::try_from_env("MACULA_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,macula=info,tiny_skia=error"));
    // A second subscriber is refused, and the first goes on.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .event_format(log::Lines)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_named_by_their_flags() {
        for (field, flag) in [
            ("hash_bits", "--hash-bits"),
            ("keep largest", "--keep largest"),
            ("baseline my_results/one", "--baseline my_results/one"),
        ] {
            let error = Error::setting(field, "expected another");
            assert_eq!(said(&error), format!("{flag}: expected another"));
        }
        let there = Error::Exists {
            path: "m.onnx".into(),
        };
        assert_eq!(said(&there), "m.onnx: exists already; give --force to replace it");
        assert_eq!(said(&Error::input("hash_bits", "9")), "hash_bits: 9");
    }
}
