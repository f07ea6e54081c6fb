//! `macula runtime`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::{MACHINE, examples};
use super::output;
use crate::Result;
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
    /// Fetch the pinned ONNX Runtime library into the cache
    #[command(after_help = examples(&[
        "macula runtime install",
        "macula runtime install --wheel onnxruntime.whl",
    ]))]
    Install {
        /// Build of the library
        #[arg(long, value_enum, default_value = "cpu", help_heading = MACHINE)]
        flavor: Flavor,
        /// Wheel fetched beforehand, for a machine without network [default: fetched with pip]
        #[arg(long, value_name = "FILE", help_heading = MACHINE)]
        wheel: Option<PathBuf>,
    },
}

impl RuntimeArgs {
    /// Installs, and prints where.
    pub fn run(&self) -> Result<()> {
        let Action::Install { flavor, wheel } = &self.action;
        let library = install(*flavor, wheel.as_deref())?;
        output::print(&library.path.display().to_string())
    }
}
