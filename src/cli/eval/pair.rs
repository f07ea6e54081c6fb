//! Flags of the classifiers, which learn on labelled rows and are scored on others: where both come from, what is kept.

use std::path::{Path, PathBuf};

use clap::Args;
use macula_eval::table::EvalResult;

use super::super::args::{
    BootstrapArgs, ColumnArgs, FeatureColumnArgs, INPUT, ModelRunArgs, OUTPUT, ResultArgs, RunArgs, reworded,
};
use super::kept::Kept;
use crate::cluster::Ranks;
use crate::evaluate::labels::describe_unknown;
use crate::evaluate::{Folders, ModelRequest, OpenFolders};
use crate::extract::model::OutputChoice;
use crate::lock::FolderLock;
use crate::{Error, Result};

/// Train and test rows, and where the result goes.
#[derive(Debug, Args)]
#[command(
    next_help_heading = INPUT,
    mut_args(reworded(&[
        ("out", "Folder for result.json, table.parquet, table.csv and table.md, predictions.parquet, per_class.csv and \
                 confusion.csv [default: none, the result is printed alone]"),
        ("force", "Replace what --out or --features hold"),
    ]))
)]
pub(super) struct PairArgs {
    /// Feature folder of the train rows
    #[arg(long, value_name = "FEATURES", requires = "test", conflicts_with_all = ["model", "train_data", "test_data"])]
    train: Option<PathBuf>,
    /// Feature folder of the test rows
    #[arg(long, value_name = "FEATURES", requires = "train")]
    test: Option<PathBuf>,
    /// Model to extract with first: ONNX file, checkpoint, pixels, or hog
    #[arg(long, value_name = "MODEL", requires_all = ["train_data", "test_data"])]
    model: Option<String>,
    /// Images of the train rows, with labels
    #[arg(long, value_name = "SRC", requires = "model")]
    train_data: Option<String>,
    /// Images of the test rows, with labels
    #[arg(long, value_name = "SRC", requires = "model")]
    test_data: Option<String>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    pub column: FeatureColumnArgs,
    /// Go on where test rows have labels that no train row has; they count as wrong
    #[arg(long)]
    pub allow_unknown_labels: bool,
    #[command(flatten)]
    open: ModelRunArgs,
    /// Where --model keeps the features [default: OUT/features, or macula-features/NAME]
    #[arg(long, value_name = "DIR", requires = "model", help_heading = OUTPUT)]
    features: Option<PathBuf>,
    #[command(flatten)]
    pub result: ResultArgs,
    /// Print the accuracy of every class as well
    #[arg(long, help_heading = OUTPUT)]
    pub per_class: bool,
    #[command(flatten)]
    pub random: BootstrapArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl PairArgs {
    /// As [`PairArgs::open`], on each of `ranks`: the first one extracts and writes, while the others wait.
    pub fn open_on(
        &self,
        outputs: OutputChoice,
        ranks: &dyn Ranks,
    ) -> Result<(OpenFolders, Option<FolderLock>)> {
        if ranks.rank() == 0 {
            let opened = self.open(outputs)?;
            ranks.barrier()?;
            return Ok(opened);
        }
        self.run.threads.start()?;
        ranks.barrier()?;
        let folders = match (&self.train, &self.test, &self.model) {
            (Some(train), Some(test), _) => Folders {
                train: train.clone(),
                test: test.clone(),
            },
            (_, _, model) => Folders::kept_in(&self.keep(model.as_deref().unwrap_or_default())),
        };
        Ok((folders.open()?, None))
    }

    /// The features, and the lock of the folder of the result, to be held until that is written.
    pub fn open(&self, outputs: OutputChoice) -> Result<(OpenFolders, Option<FolderLock>)> {
        self.run.threads.start()?;
        let lock = self.result.take()?;
        let folders = match (
            &self.train,
            &self.test,
            &self.model,
            &self.train_data,
            &self.test_data,
        ) {
            (Some(train), Some(test), ..) => {
                self.columns.need("--train-data and --test-data")?;
                Folders {
                    train: train.clone(),
                    test: test.clone(),
                }
            }
            (_, _, Some(model), Some(train_data), Some(test_data)) => {
                let [train_data, test_data] = self.columns.apply_to_both(train_data, test_data)?;
                ModelRequest {
                    model: model.clone(),
                    train_data,
                    test_data,
                    keep: self.keep(model),
                    options: self.open.model_options(outputs, &self.run),
                    extract: self.open.extract_options(None, self.result.force, false),
                }
                .run()?
            }
            _ => {
                return Err(Error::input(
                    "eval",
                    "expected --train F --test F, or --model M --train-data SRC --test-data SRC",
                ));
            }
        };
        Ok((folders.open()?, lock))
    }

    /// `--features`, or OUT/features, or `macula-features/NAME` with the name of the model.
    fn keep(&self, model: &str) -> PathBuf {
        match (&self.features, &self.result.out) {
            (Some(folder), _) => folder.clone(),
            (None, Some(out)) => out.join("features"),
            (None, None) => {
                let name = Path::new(model).file_stem().unwrap_or_default().to_string_lossy();
                PathBuf::from("macula-features").join(name.replace(':', "-"))
            }
        }
    }

    /// The column that was named, or the folders' default.
    pub fn column(&self, folders: &OpenFolders) -> String {
        self.column
            .column
            .clone()
            .unwrap_or_else(|| folders.default_column())
    }

    /// What `--model` has to give for the column that was named.
    pub fn outputs(&self) -> OutputChoice {
        OutputChoice::named(self.column.column.as_slice())
    }

    /// Describes the folders in `result`, keeps it and what was said of each row, prints.
    pub fn finish(
        &self,
        mut result: EvalResult,
        folders: &OpenFolders,
        column: &str,
        kept: &Kept<'_>,
    ) -> Result<()> {
        folders.describe_into(&mut result, column);
        result.settings["unknown_labels"] = describe_unknown(kept.unknown);
        if let Some(out) = &self.result.out {
            kept.save(out)?;
        }
        if self.per_class {
            return kept.print_with_classes(&result, self.result.print.json, self.result.out.as_deref());
        }
        self.result.finish(&result)
    }
}
