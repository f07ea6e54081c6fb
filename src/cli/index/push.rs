//! `macula index push`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::Result;
use crate::cli::args::{FeatureColumnArgs, INPUT, JsonArgs, OUTPUT, examples};
use crate::cli::output;
use crate::extract::{FeatureFolder, default_column, read_column};
use crate::index::push::Collection;

/// Arguments of `macula index push`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    "macula index push --features features/photos --to qdrant://127.0.0.1:6333/photos",
]))]
pub(super) struct PushArgs {
    /// Feature folder
    #[arg(long, value_name = "FEATURES", help_heading = INPUT)]
    features: PathBuf,
    #[command(flatten)]
    column: FeatureColumnArgs,
    /// Collection of a server that is reached without TLS: qdrant://HOST:PORT/COLLECTION
    #[arg(long, value_name = "STORE", help_heading = OUTPUT)]
    to: Collection,
    /// Make the collection anew where there is one
    #[arg(long, help_heading = OUTPUT)]
    force: bool,
    #[command(flatten)]
    print: JsonArgs,
}

impl PushArgs {
    pub(super) fn run(&self) -> Result<()> {
        let folder = FeatureFolder::open(&self.features)?;
        let column = self
            .column
            .column
            .clone()
            .unwrap_or_else(|| default_column(&folder));
        let features = read_column(&folder, &column)?;
        let (count, dim) = (features.rows.len(), features.matrix.view().dim());
        let bar = super::bar_of_rows(count as u64);
        let pushed = self
            .to
            .push(&features, self.force, |sent| bar.set_position(sent as u64));
        bar.finish_and_clear();
        pushed?;
        if self.print.json {
            return output::print_json(
                &json!({ "to": self.to.to_string(), "column": column, "count": count, "dim": dim }),
            );
        }
        output::print(&format!("{}: {count} points of width {dim}", self.to))
    }
}
