//! Flags of the protocols that have no training set: which column, where the result goes.

use std::path::{Path, PathBuf};

use clap::Args;
use macula_eval::table::EvalResult;

use super::super::args::start_threads;
use super::output;
use crate::Result;
use crate::evaluate::describe_folders;
use crate::extract::FeatureFolder;
use crate::extract::default_column;
use crate::lock::FolderLock;

/// Column and result.
#[derive(Debug, Args)]
pub(super) struct FolderArgs {
    /// Column to evaluate; by default cls, or else the first
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    #[command(flatten)]
    pub result: ResultArgs,
}

/// Where the result goes, and how it is drawn.
#[derive(Debug, Args)]
pub(super) struct ResultArgs {
    /// Folder for result.json, table.parquet, table.csv and table.md
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace what --out holds
    #[arg(long)]
    force: bool,
    /// Print the result as JSON and nothing else
    #[arg(long)]
    json: bool,
    /// Seed of whatever is drawn at random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads, up to 1024; 0 for all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

impl ResultArgs {
    /// Starts the threads and takes the folder of the result; refuses one that exists.
    pub fn start(&self) -> Result<Option<FolderLock>> {
        start_threads(self.threads)?;
        output::take_result_folder(self.out.as_deref(), self.force)
    }

    /// Keeps the result and prints it.
    pub fn finish(&self, result: &EvalResult) -> Result<()> {
        output::print_result(result, self.json, self.out.as_deref().map(Path::new))
    }
}

impl FolderArgs {
    /// The column that was named, or the folder's default.
    pub fn column(&self, folder: &FeatureFolder) -> String {
        self.column.clone().unwrap_or_else(|| default_column(folder))
    }

    /// Says in `result` which folders it speaks of, keeps it and prints it.
    pub fn finish(
        &self,
        mut result: EvalResult,
        column: &str,
        folders: &[(&str, &FeatureFolder)],
    ) -> Result<()> {
        describe_folders(&mut result, column, folders);
        self.result.finish(&result)
    }
}
