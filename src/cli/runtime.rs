//! `macula runtime`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output;
use crate::Result;
use crate::runtime::{Flavor, install};

/// Arguments of `macula runtime`.
#[derive(Debug, Args)]
pub struct RuntimeArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fetch the pinned ONNX Runtime library into the cache
    Install {
        /// Build of the library
        #[arg(long, value_enum, default_value = "cpu")]
        flavor: Flavor,
        /// Wheel fetched beforehand, for a machine without network
        #[arg(long, value_name = "FILE")]
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
