//! `macula eval zero-shot`.

use std::path::PathBuf;

use clap::Args;
use macula_eval::protocols::zero_shot::{self, ZeroShotConfig};

use super::super::args::{
    BootstrapArgs, FeatureColumnArgs, INPUT, OUTPUT, ResultArgs, ThreadArgs, examples, reworded,
};
use super::kept::Kept;
use crate::Result;
use crate::evaluate::labels::{self, describe_unknown};
use crate::evaluate::text::{TextOf, Texts, embedding_column};
use crate::evaluate::{describe_folders, read_labelled};
use crate::extract::FeatureFolder;

/// Arguments of `macula eval zero-shot`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = INPUT,
    after_help = examples(&[
        "macula eval zero-shot --features features/test --text text.parquet",
        "macula eval zero-shot --features features/test --text text.parquet --out results/zero-shot",
    ]),
    mut_args(reworded(&[
        ("column", "Column of features [default: embedding, or else cls, or else the first]"),
        ("out", "Folder for result.json, table.parquet, table.csv and table.md, predictions.parquet, per_class.csv and \
                 confusion.csv [default: none, the result is printed alone]"),
    ]))
)]
pub(super) struct ZeroShotArgs {
    /// Feature folder with labels
    #[arg(long, value_name = "FEATURES")]
    features: PathBuf,
    /// Vectors of texts by the same model: a Parquet file of columns class, vector and, if need be, logit_scale; of several texts of a
    /// class the mean is taken
    #[arg(long, value_name = "TEXT.parquet")]
    text: PathBuf,
    #[command(flatten)]
    column: FeatureColumnArgs,
    /// Go on where rows have labels that no text has; they count as wrong
    #[arg(long)]
    allow_unknown_labels: bool,
    #[command(flatten)]
    result: ResultArgs,
    /// Print the accuracy of every class as well
    #[arg(long, help_heading = OUTPUT)]
    per_class: bool,
    #[command(flatten)]
    random: BootstrapArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

impl ZeroShotArgs {
    /// Classifies and prints the table.
    pub fn run(&self) -> Result<()> {
        self.threads.start()?;
        let _lock = self.result.take()?;
        let folder = FeatureFolder::open(&self.features)?;
        let named = self.column.column.clone();
        let column = named.unwrap_or_else(|| embedding_column(&folder));
        let texts = Texts::read(&self.text, TextOf::Class)?;
        let rows = read_labelled(&folder, &column)?;
        texts.fit(&folder, &column, rows.matrix.view().dim())?;
        let name = self.features.display().to_string();
        let classes = labels::classes(texts.side(), rows.side(&name), self.allow_unknown_labels)?;
        let directions = zero_shot::class_directions(texts.vectors.view(), &classes.train, classes.known)?; // [K, d]
        let config = ZeroShotConfig {
            logit_scale: texts.logit_scale,
            seed: self.random.derived("zero-shot"),
            bootstrap_resamples: self.random.bootstrap_resamples,
            allow_unknown_labels: self.allow_unknown_labels,
        };
        let found = zero_shot::evaluate(rows.matrix.view(), &classes.test, directions.view(), &config)?;
        if found.n_classes_without_rows > 0 {
            tracing::info!(
                "{name}: no row has {} of the {} classes of {}",
                found.n_classes_without_rows,
                found.n_classes,
                texts.file
            );
        }
        let mut result = found.to_eval_result()?;
        describe_folders(&mut result, &column, &[("test", &folder)]);
        result.settings["text"] = texts.file.clone().into();
        result.settings["n_texts"] = texts.keys.len().into();
        result.settings["unknown_labels"] = describe_unknown(classes.unknown.as_ref());
        let kept = Kept {
            predictions: std::slice::from_ref(&found.predictions),
            rows: &rows.rows,
            labels: &classes.test,
            classes: &classes.names,
            unknown: classes.unknown.as_ref(),
            leaks: None,
        };
        if let Some(out) = &self.result.out {
            kept.save(out)?;
        }
        if self.per_class {
            return kept.print_with_classes(&result, self.result.print.json, self.result.out.as_deref());
        }
        self.result.finish(&result)
    }
}
