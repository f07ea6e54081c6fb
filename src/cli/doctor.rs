//! `macula doctor`.

use clap::Args;

use super::args::RunArgs;
use super::output;
use crate::Result;
use crate::device::CUDA_TRAINER;
use crate::runtime::DoctorReport;

/// Arguments of `macula doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
}

impl DoctorArgs {
    /// Examines the machine and prints the report.
    pub fn run(&self) -> Result<()> {
        let report = DoctorReport::gather(&self.run.runtime(), CUDA_TRAINER);
        if self.json {
            output::print_json(&report)
        } else {
            output::print(&report.to_string())
        }
    }
}
