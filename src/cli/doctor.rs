//! `macula doctor`.

use clap::Args;
use serde::Serialize;

use super::args::{JsonArgs, RunArgs, examples};
use super::output;
use crate::Result;
use crate::cluster::{MpiReport, NcclReport};
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
        let mpi = MpiReport::gather();
        let nccl = NcclReport::gather();
        if self.print.json {
            output::print_json(&Whole { report, mpi, nccl })
        } else {
            output::print(format!("{report}{mpi}{nccl}").trim_end())
        }
    }
}

/// All that is printed.
#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    report: DoctorReport,
    mpi: MpiReport,
    nccl: NcclReport,
}
