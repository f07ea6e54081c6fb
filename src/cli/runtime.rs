//! `macula runtime`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::args::{MACHINE, examples};
use super::output;
use crate::Result;
use crate::cluster;
use crate::runtime::{Flavor, install};

/// Arguments of `macula runtime`.
#[derive(Debug, Args)]
#[command(after_help = examples(&["macula runtime install", "macula runtime install --flavor openvino"]))]
pub struct RuntimeArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fetch a pinned library into the cache: ONNX Runtime, or MPI for runs of many processes
    #[command(after_help = examples(&[
        "macula runtime install",
        "macula runtime install --wheel onnxruntime.whl",
        "macula runtime install --flavor mpi",
    ]))]
    Install {
        /// Build of ONNX Runtime, or mpi for MPI with its mpiexec
        #[arg(long, value_enum, default_value = "cpu", help_heading = MACHINE)]
        flavor: Asked,
        /// Wheel fetched beforehand, for a machine without network [default: fetched with pip]
        #[arg(long, value_name = "FILE", help_heading = MACHINE)]
        wheel: Option<PathBuf>,
    },
}

/// What can be installed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Asked {
    Cpu,
    Openvino,
    Cuda,
    Mpi,
}

impl Asked {
    fn onnx_runtime(self) -> Option<Flavor> {
        match self {
            Self::Cpu => Some(Flavor::Cpu),
            Self::Openvino => Some(Flavor::Openvino),
            Self::Cuda => Some(Flavor::Cuda),
            Self::Mpi => None,
        }
    }
}

impl RuntimeArgs {
    /// Installs, and prints where.
    pub fn run(&self) -> Result<()> {
        let Action::Install { flavor, wheel } = &self.action;
        let path = match flavor.onnx_runtime() {
            Some(flavor) => install(flavor, wheel.as_deref())?.path,
            None => cluster::install::install(wheel.as_deref())?,
        };
        output::print(&path.display().to_string())
    }
}
