//! Where a result goes, and how it is printed.

use std::path::PathBuf;

use clap::Args;
use macula_eval::table::EvalResult;

use super::super::output;
use super::OUTPUT;
use crate::lock::FolderLock;
use crate::results::RESULT_FILE;
use crate::{Result, files};

/// Whether the result is printed for programs.
#[derive(Debug, Args)]
#[command(next_help_heading = OUTPUT)]
pub struct JsonArgs {
    /// Print the result as JSON and nothing else
    #[arg(long)]
    pub json: bool,
}

/// A file or folder that a verb is there to write.
#[derive(Debug, Args)]
#[command(next_help_heading = OUTPUT)]
pub struct NewArgs {
    /// Where to write
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Replace what stands at --out
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub print: JsonArgs,
}

/// A folder that keeps the result, where one is named.
#[derive(Debug, Args)]
#[command(next_help_heading = OUTPUT)]
pub struct ResultArgs {
    /// Folder for result.json, table.parquet, table.csv and table.md [default: none, the result is printed alone]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace what --out holds
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub print: JsonArgs,
}

impl JsonArgs {
    /// Prints `result` as a table or as JSON.
    pub fn print(&self, result: &EvalResult) -> Result<()> {
        output::print_result(result, self.json, None)
    }
}

impl NewArgs {
    /// Refuses a file that exists, unless it is to be replaced.
    pub fn refuse_existing(&self) -> Result<()> {
        files::refuse_existing(&self.out, self.force)
    }
}

impl ResultArgs {
    /// Takes the folder of the result for this run; refuses one that holds a result, unless that is to be replaced.
    pub fn take(&self) -> Result<Option<FolderLock>> {
        let Some(out) = &self.out else { return Ok(None) };
        let lock = FolderLock::acquire(out)?;
        files::refuse_existing(&out.join(RESULT_FILE), self.force)?;
        Ok(Some(lock))
    }

    /// Keeps the result and prints it.
    pub fn finish(&self, result: &EvalResult) -> Result<()> {
        output::print_result(result, self.print.json, self.out.as_deref())
    }
}
