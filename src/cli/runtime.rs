//! `macula runtime`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::args::{MACHINE, examples};
use super::output;
use crate::Result;
use crate::cluster::{self, install::Package};
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
    /// Fetch a pinned library into the cache: ONNX Runtime, MPI for runs of many processes, or NCCL for those on GPUs
    #[command(after_help = examples(&[
        "macula runtime install",
        "macula runtime install --flavor mpi",
        "macula runtime install --flavor nccl --wheel nccl.whl",
    ]))]
    Install {
        /// Build of ONNX Runtime, mpi for MPI with its mpiexec, or nccl for NCCL of CUDA 13
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
    Nccl,
}

impl Asked {
    fn install(self, wheel: Option<&Path>) -> Result<PathBuf> {
        let of_onnx_runtime = |flavor| install(flavor, wheel).map(|installed| installed.path);
        match self {
            Self::Cpu => of_onnx_runtime(Flavor::Cpu),
            Self::Openvino => of_onnx_runtime(Flavor::Openvino),
            Self::Cuda => of_onnx_runtime(Flavor::Cuda),
            Self::Mpi => cluster::install::install(Package::Mpi, wheel),
            Self::Nccl => cluster::install::install(Package::Nccl, wheel),
        }
    }
}

impl RuntimeArgs {
    /// Installs, and prints where.
    pub fn run(&self) -> Result<()> {
        let Action::Install { flavor, wheel } = &self.action;
        let path = flavor.install(wheel.as_deref())?;
        output::print(&path.display().to_string())
    }
}
