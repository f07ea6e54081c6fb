//! `macula completions`.

use clap::Args;
use clap_complete::{Shell, generate};

use super::args::{INPUT, examples};
use super::output;
use crate::{Error, Result};

/// Arguments of `macula completions`.
#[derive(Debug, Args)]
#[command(after_help = examples(&["macula completions bash", "macula completions zsh"]))]
pub struct CompletionsArgs {
    /// Shell that is to complete verbs and flags
    #[arg(value_enum, help_heading = INPUT)]
    shell: Shell,
}

impl CompletionsArgs {
    /// Prints the script.
    pub fn run(&self) -> Result<()> {
        let mut command = super::command();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        generate(self.shell, &mut command, name, &mut script);
        let script = String::from_utf8(script).map_err(|e| Error::failed("completions", e.to_string()))?;
        output::print(script.trim_end())
    }
}
