//! `macula doctor`.

use clap::Args;

use super::args::{JsonArgs, RunArgs, examples};
use super::output;
use crate::Result;
use crate::device::CUDA_TRAINER;
use crate::runtime::DoctorReport;

/// Arguments of `macula doctor`.
#[derive(Debug, Args)]
#[command(after_help = examples(&["macula doctor", "macula doctor --device cuda --json"]))]
pub struct DoctorArgs {
    #[command(flatten)]
    print: JsonArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl DoctorArgs {
    /// Examines the machine and prints the report.
    pub fn run(&self) -> Result<()> {
        let report = DoctorReport::gather(&self.run.runtime(), CUDA_TRAINER);
        if self.print.json {
            output::print_json(&report)
        } else {
            output::print(&report.to_string())
        }
    }
}
