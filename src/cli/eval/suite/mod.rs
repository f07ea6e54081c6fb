//! `macula eval suite`: a file of models, data sets and tasks, computed cell by cell and put into one report. `file` is what the file
//! says, `plan` the commands that it comes to; here they are run. A cell that is done stays done until its command changes.

mod file;
mod plan;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use self::file::{Flags, SuiteFile, arguments};
use self::plan::{Cell, plan};
use super::super::args::{INPUT, MACHINE, OUTPUT, ThreadArgs, examples};
use super::super::{Invocation, output, said};
use crate::{Error, Result, files};

/// Beside a result: the command that made it.
const COMMAND_FILE: &str = "command.json";

/// Arguments of `macula eval suite`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    "macula eval suite suite.toml --out results/suite",
    "macula eval suite suite.toml --out results/suite --dry-run",
]))]
pub(super) struct SuiteArgs {
    /// TOML file of models, data sets and tasks; its paths are from the working directory
    #[arg(value_name = "SUITE.toml", help_heading = INPUT)]
    suite: PathBuf,
    /// Folder for features/, results/ and report/; what it holds of the suite is not computed again
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    out: PathBuf,
    /// Print the commands and run none
    #[arg(long, help_heading = OUTPUT)]
    dry_run: bool,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Device of the models: auto, cpu, cuda[:N], openvino or tensorrt[:N] [default: auto]
    #[arg(long, value_name = "DEVICE", help_heading = MACHINE)]
    device: Option<String>,
}

impl SuiteArgs {
    /// Computes what is missing and writes the report.
    pub fn run(&self) -> Result<()> {
        let suite = SuiteFile::read(&self.suite)?;
        let mut cells = plan(
            &suite,
            &self.out,
            &[format!("--threads={}", self.threads.threads)],
        )?;
        for cell in &mut cells {
            let runs_a_model = cell.command.iter().any(|word| word.starts_with("--model="));
            if let Some(device) = self.device.as_ref().filter(|_| runs_a_model) {
                cell.command.push(format!("--device={device}"));
            }
        }
        // All of them are understood before the first is run.
        for cell in &cells {
            Invocation::parse(&cell.command).map_err(|reason| Error::input(&cell.name, reason))?;
        }
        let report = self.report(suite.models.keys(), &suite.report)?;
        Invocation::parse(&report).map_err(|reason| Error::input("report", reason))?;
        if self.dry_run {
            cells
                .iter()
                .for_each(|cell| println!("{}", quoted(&cell.command)));
            println!("{}", quoted(&report));
            return Ok(());
        }
        let failed = self.compute(&cells)?;
        let measured: Vec<&String> = suite
            .models
            .keys()
            .filter(|name| self.results(name).exists())
            .collect();
        if !measured.is_empty() {
            execute(&self.report(measured, &suite.report)?)?;
        }
        match failed.as_slice() {
            [] => Ok(()),
            places => {
                let names: Vec<&str> = places.iter().map(|&place| cells[place].name.as_str()).collect();
                let reason = format!(
                    "{} of {} cells failed, the same command tries them again: {}",
                    places.len(),
                    cells.len(),
                    names.join("; ")
                );
                Err(Error::failed(self.suite.display().to_string(), reason))
            }
        }
    }

    /// Runs the cells that are not done; the places of those that failed, or whose features did.
    fn compute(&self, cells: &[Cell]) -> Result<Vec<usize>> {
        let mut failed = Vec::new();
        for (place, cell) in cells.iter().enumerate() {
            if cell.after.iter().any(|before| failed.contains(before)) {
                failed.push(place);
                continue;
            }
            if is_done(cell) {
                continue;
            }
            eprintln!("== {} ({} of {})", cell.name, place + 1, cells.len());
            match execute(&cell.command) {
                Ok(()) if cell.is_extraction => {}
                Ok(()) => remember(cell)?,
                Err(error) => {
                    eprintln!("{}: {}", cell.name, output::plain(&said(&error)));
                    failed.push(place);
                }
            }
        }
        Ok(failed)
    }

    /// The folder of a model's results.
    fn results(&self, model: &str) -> PathBuf {
        self.out.join("results").join(model)
    }

    /// The command of the report on `models`.
    fn report<'a>(&self, models: impl IntoIterator<Item = &'a String>, flags: &Flags) -> Result<Vec<String>> {
        let mut command = vec!["macula".to_owned(), "report".to_owned()];
        command.extend(
            models
                .into_iter()
                .map(|name| format!("{name}={}", self.results(name).display())),
        );
        command.extend(arguments("report", flags)?);
        command.push(format!("--out={}", self.out.join("report").display()));
        command.push("--force".to_owned());
        command.push(format!("--threads={}", self.threads.threads));
        Ok(command)
    }
}

/// Whether a result is there and was made by the same command. Features are asked every time: they know their model and images.
fn is_done(cell: &Cell) -> bool {
    let made_by = fs::read_to_string(cell.out.join(COMMAND_FILE)).ok();
    let made_by = made_by.and_then(|text| serde_json::from_str::<Vec<String>>(&text).ok());
    !cell.is_extraction && made_by.as_deref() == Some(&cell.command) && cell.out.join("result.json").exists()
}

fn remember(cell: &Cell) -> Result<()> {
    files::write_whole(&cell.out.join(COMMAND_FILE), |file| {
        let text = json!(cell.command).to_string();
        file.write_all(text.as_bytes())
            .map_err(|error| Error::io(&cell.out, error))
    })
}

fn execute(command: &[String]) -> Result<()> {
    let invocation = Invocation::parse(command).map_err(|reason| Error::input("suite", reason))?;
    invocation.run()
}

/// A command as a shell takes it.
fn quoted(command: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=./,:#+".contains(c);
    let words: Vec<String> = command
        .iter()
        .map(|word| match word.chars().all(plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        })
        .collect();
    words.join(" ")
}
