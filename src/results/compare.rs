//! Two results on the same test rows: is one classifier better than the other?

use std::path::Path;

use macula_eval::stats::{BootstrapConfig, McNemar, PairedDifference, mcnemar, paired_difference};
use macula_eval::table::EvalResult;
use polars::prelude::{DataFrame, PolarsError, df};
use serde_json::json;

use super::{PREDICTIONS_FILE, RESULT_FILE, read_all};
use crate::data::SourceIdentity;
use crate::identity::{fingerprint_in, source_difference};
use crate::tables::{guarded, read_own};
use crate::{Error, Result};

/// Predictions of one classifier, read back.
struct Kept {
    name: String,
    rows: Vec<u64>,
    labels: Vec<String>,
    right: Vec<bool>,
    k: Option<u64>,
}

/// Two classifiers on the same test rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Paired {
    /// Test rows.
    pub n: usize,
    /// Share of rows that the first and the second have right.
    pub accuracies: (f64, f64),
    /// The first less the second, with a paired bootstrap interval.
    pub difference: PairedDifference,
    /// McNemar's exact test.
    pub test: McNemar,
    /// Which of several classifiers each is, where its folder holds several.
    pub ks: (Option<u64>, Option<u64>),
}

/// Reads the predictions kept in folders `a` and `b` and compares them row by row; `ks` says which classifier to take
/// where a folder holds several.
///
/// # Errors
/// Folders without predictions, several classifiers and no k, or test rows that are not the same.
pub fn paired(
    a: &Path,
    b: &Path,
    ks: (Option<u64>, Option<u64>),
    config: &BootstrapConfig,
) -> Result<Paired> {
    let (first, second) = (read(a, ks.0)?, read(b, ks.1)?);
    same_rows(&first, &second)?;
    same_images(a, b)?;
    let n = first.right.len();
    let accuracy = |kept: &Kept| kept.right.iter().filter(|right| **right).count() as f64 / n as f64;
    Ok(Paired {
        n,
        accuracies: (accuracy(&first), accuracy(&second)),
        difference: paired_difference(&first.right, &second.right, config),
        test: mcnemar(&first.right, &second.right),
        ks: (first.k, second.k),
    })
}

/// Compares the predictions kept in folders `a` and `b`: both accuracies, their difference with a paired bootstrap
/// interval, and McNemar's exact test. `k` says which classifier to take where a folder holds several.
///
/// # Errors
/// As [`paired`].
pub fn compare(a: &Path, b: &Path, k: Option<u64>, config: &BootstrapConfig) -> Result<EvalResult> {
    let found = paired(a, b, (k, k), config)?;
    let (difference, test) = (found.difference, found.test);
    let table = df!(
        "top1_a" => [found.accuracies.0],
        "top1_b" => [found.accuracies.1],
        "difference" => [difference.difference],
        "low" => [difference.interval.low],
        "high" => [difference.interval.high],
        "only_a" => [test.only_a as u64],
        "only_b" => [test.only_b as u64],
        "p_value" => [test.p_value],
    )
    .map_err(macula_eval::Error::from)?;
    let settings = json!({
        "a": a.display().to_string(),
        "b": b.display().to_string(),
        "k_a": found.ks.0,
        "k_b": found.ks.1,
        "difference": "top1_a - top1_b, 95 % paired bootstrap over the test rows",
        "p_value": "McNemar, exact, two-sided",
        "seed": config.seed,
        "bootstrap_resamples": config.resamples,
    });
    Ok(EvalResult::new("compare", settings, 0, found.n, table)?)
}

fn same_rows(a: &Kept, b: &Kept) -> Result<()> {
    if a.rows.len() != b.rows.len() {
        return Err(Error::input(
            &b.name,
            format!(
                "expected the {} test rows of {}, found {}",
                a.rows.len(),
                a.name,
                b.rows.len()
            ),
        ));
    }
    let mut pairs = a.rows.iter().zip(&a.labels).zip(b.rows.iter().zip(&b.labels));
    match pairs.find(|(a, b)| a != b) {
        None => Ok(()),
        Some(((row, label), (other, other_label))) => Err(Error::input(
            &b.name,
            format!(
                "expected the test rows of {}, found row {other} (`{other_label}`) where it has row {row} (`{label}`)",
                a.name
            ),
        )),
    }
}

/// Rows of one place and label may still be of other images: the results beside the predictions tell, where they know.
fn same_images(a: &Path, b: &Path) -> Result<()> {
    let images = |folder: &Path| -> Result<Option<SourceIdentity>> {
        let file = folder.join(RESULT_FILE);
        if !file.is_file() {
            return Ok(None);
        }
        let results = read_all(&[file.display().to_string()])?;
        let made = results
            .first()
            .and_then(|result| fingerprint_in(&result.settings, "test"));
        Ok(made.map(|made| made.source))
    };
    let differs = match (images(a)?, images(b)?) {
        (Some(first), Some(second)) => source_difference(&first, &second),
        _ => None,
    };
    differs.map_or(Ok(()), |differs| {
        let reason = format!("expected the test images of {}: {differs}", a.display());
        Err(Error::mismatch(b.join(RESULT_FILE).display().to_string(), reason))
    })
}

fn read(folder: &Path, k: Option<u64>) -> Result<Kept> {
    let path = folder.join(PREDICTIONS_FILE);
    let name = path.display().to_string();
    if !path.is_file() {
        return Err(Error::input(
            folder.display().to_string(),
            format!("no {PREDICTIONS_FILE}; `eval knn`, `linear-probe` and `logreg` write it with --out"),
        ));
    }
    let table = read_own(&path, None)?;
    let (table, k) = one_classifier(&name, table, k)?;
    let columns = || -> std::result::Result<Kept, PolarsError> {
        let rows = table
            .column("row")?
            .u64()?
            .iter()
            .map(Option::unwrap_or_default)
            .collect();
        let labels = table.column("label")?.str()?.iter();
        let right = table.column("correct")?.bool()?.iter();
        Ok(Kept {
            name: folder.display().to_string(),
            rows,
            labels: labels.map(|label| label.unwrap_or_default().to_owned()).collect(),
            right: right.map(|right| right == Some(true)).collect(),
            k,
        })
    };
    let kept = guarded(&path, columns)?;
    if kept.rows.is_empty() {
        return Err(Error::input(name, "expected predictions, found no row"));
    }
    Ok(kept)
}

/// The rows of one classifier of a table that may hold several.
fn one_classifier(name: &str, table: DataFrame, k: Option<u64>) -> Result<(DataFrame, Option<u64>)> {
    let Ok(column) = table.column("k") else {
        return Ok((table, None));
    };
    let ks: Vec<Option<u64>> = column.u64().map_err(|e| damaged(name, &e))?.iter().collect();
    let mut held: Vec<u64> = ks.iter().flatten().copied().collect();
    held.dedup();
    let wanted = match (k, held.as_slice()) {
        (None, [only]) => *only,
        (Some(k), held) if held.contains(&k) => k,
        (requested, held) => {
            let requested = requested.map_or("no --k".to_owned(), |k| format!("--k {k}"));
            return Err(Error::input(
                name,
                format!("expected --k with one of {held:?}, found {requested}"),
            ));
        }
    };
    let mask = ks.iter().map(|k| *k == Some(wanted)).collect();
    let table = table.filter(&mask).map_err(|e| damaged(name, &e))?;
    Ok((table, Some(wanted)))
}

fn damaged(name: &str, error: &PolarsError) -> Error {
    let text = error.to_string();
    Error::input(
        name,
        format!("damaged: {}", text.lines().next().unwrap_or_default()),
    )
}
