//! Flags of the protocols that have no training set: which column, where the result goes.

use clap::Args;
use macula_eval::table::EvalResult;

use super::super::args::{BootstrapArgs, FeatureColumnArgs, ResultArgs, ThreadArgs};
use crate::Result;
use crate::evaluate::describe_folders;
use crate::evaluate::text::embedding_column;
use crate::extract::FeatureFolder;
use crate::lock::FolderLock;

/// Column, result, intervals and threads.
#[derive(Debug, Args)]
pub(super) struct FolderArgs {
    #[command(flatten)]
    column: FeatureColumnArgs,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    pub random: BootstrapArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

impl FolderArgs {
    /// Starts the threads and takes the folder of the result; refuses one that exists.
    pub fn start(&self) -> Result<Option<FolderLock>> {
        self.start_as(0)
    }

    /// As [`FolderArgs::start`] of rank `rank`: the first one alone writes.
    pub fn start_as(&self, rank: usize) -> Result<Option<FolderLock>> {
        self.threads.start()?;
        match rank {
            0 => self.result.take(),
            _ => Ok(None),
        }
    }

    /// The column that was named, or the folder's default.
    pub fn column(&self, folder: &FeatureFolder) -> String {
        self.column.name_in(folder)
    }

    /// The column that was named, or the one that is in one space with texts.
    pub fn embedding_column(&self, folder: &FeatureFolder) -> String {
        let named = self.column.column.clone();
        named.unwrap_or_else(|| embedding_column(folder))
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
