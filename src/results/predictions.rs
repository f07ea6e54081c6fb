//! What a classifier said of each test row, kept beside its result: `predictions.parquet`, `per_class.csv` and one
//! confusion matrix a classifier.

use std::fs;
use std::path::Path;

use macula_eval::protocols::predictions::{Predictions, table};
use macula_eval::table::EvalResult;
use macula_eval::{LabelSet, Result as EvalResultOf};
use polars::prelude::{Column, CsvWriter, DataFrame, ParquetWriter, PolarsError, SerWriter as _};

use crate::{Error, Result, files};

/// Name of the table of predictions.
pub const PREDICTIONS_FILE: &str = "predictions.parquet";
/// Name of the table of near-duplicates of training rows among the test rows.
pub const PAIRS_FILE: &str = "near_duplicates.csv";
const PER_CLASS_FILE: &str = "per_class.csv";
const CONFUSION_PREFIX: &str = "confusion";
/// A confusion matrix of more classes is a file nobody can read.
const MAX_CLASSES: usize = 2_000;

/// Writes the files into `out`, made if need be, in place of those of an earlier run. Nothing is written for no
/// classifier.
///
/// # Errors
/// The system's or Polars' word with the path.
pub fn save_predictions(
    out: &Path,
    predictions: &[Predictions],
    rows: &[u64],
    labels: &[u32],
    classes: &LabelSet,
) -> Result<()> {
    fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    remove_earlier(out)?;
    if predictions.is_empty() {
        return Ok(());
    }
    let path = out.join(PREDICTIONS_FILE);
    let mut all = table(predictions, rows, labels, classes)?;
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .finish(&mut all)
        .map_err(failed_at(&path))?;
    files::write_bytes(&path, &bytes)?;
    write_csv(
        &out.join(PER_CLASS_FILE),
        per_class(predictions, labels, classes)?,
    )?;
    if classes.len() > MAX_CLASSES {
        tracing::info!(
            "no confusion matrix of {} classes (at most {MAX_CLASSES})",
            classes.len()
        );
        return Ok(());
    }
    for one in predictions {
        let name = match one.k {
            Some(k) => format!("{CONFUSION_PREFIX}-k{k}.csv"),
            None => format!("{CONFUSION_PREFIX}.csv"),
        };
        write_csv(&out.join(name), one.confusion(labels, classes)?)?;
    }
    Ok(())
}

/// The table of classes of every classifier, as a result to print.
///
/// # Errors
/// Whatever Polars has against the columns; none is known.
pub fn per_class_result(
    predictions: &[Predictions],
    labels: &[u32],
    classes: &LabelSet,
) -> Result<EvalResult> {
    let table = per_class(predictions, labels, classes)?;
    Ok(EvalResult::new(
        "per-class",
        serde_json::json!({}),
        0,
        labels.len(),
        table,
    )?)
}

/// `k` (where there are several classifiers), `class`, `n`, `accuracy`.
fn per_class(predictions: &[Predictions], labels: &[u32], classes: &LabelSet) -> EvalResultOf<DataFrame> {
    let mut all: Option<DataFrame> = None;
    for one in predictions {
        let mut table = one.per_class(labels, classes)?;
        if let Some(k) = one.k {
            let ks = vec![k as u64; table.height()];
            table.insert_column(0, Column::new("k".into(), ks))?;
        }
        match &mut all {
            None => all = Some(table),
            Some(all) => {
                all.vstack_mut(&table)?;
            }
        }
    }
    Ok(all.unwrap_or_default())
}

/// A folder that is written again may have held other classifiers' files.
fn remove_earlier(out: &Path) -> Result<()> {
    for entry in fs::read_dir(out).map_err(|e| Error::io(out, e))? {
        let path = entry.map_err(|e| Error::io(out, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ours = name == PREDICTIONS_FILE
            || name == PER_CLASS_FILE
            || name == PAIRS_FILE
            || (name.starts_with(CONFUSION_PREFIX) && name.ends_with(".csv"));
        if ours {
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

fn write_csv(path: &Path, mut table: DataFrame) -> Result<()> {
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes)
        .finish(&mut table)
        .map_err(failed_at(path))?;
    files::write_bytes(path, &bytes)
}

fn failed_at(path: &Path) -> impl Fn(PolarsError) -> Error + '_ {
    move |e| Error::failed(path.display().to_string(), e.to_string())
}
