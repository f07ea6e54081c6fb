//! How each model differs from one of them. Where both kept what they predicted of the same test rows, rows are compared one
//! by one: a paired bootstrap interval, and McNemar's exact test, its p-values corrected for the number of tests in the
//! report. Elsewhere only the two intervals can be held against each other.

use macula_eval::stats::{BootstrapConfig, holm};

use super::table::{Cell, Table};
use crate::results::{PREDICTIONS_FILE, StoredResult, paired};
use crate::{Error, Result};

/// Corrected p-values below this count as a difference.
pub const SIGNIFICANT: f64 = 0.05;

/// A model's number less the baseline's.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The difference.
    pub value: f64,
    /// How sure it is.
    pub test: Test,
    /// What that says of the model.
    pub verdict: Verdict,
}

/// What a difference was tested with.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// The same test rows, one by one.
    Paired {
        /// 95 % paired bootstrap interval of the difference.
        interval: (f64, f64),
        /// McNemar's exact test.
        p_value: f64,
        /// The same after Holm's correction for all tests of the report.
        p_holm: f64,
    },
    /// Only the two intervals, and why no more.
    IntervalsOnly(String),
}

/// What a difference says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Better than the baseline, by a corrected p-value below 0.05.
    Better,
    /// Worse than the baseline, likewise.
    Worse,
    /// No difference shown.
    NoDifference,
    /// Better, by intervals that do not meet.
    ApartBetter,
    /// Worse, by intervals that do not meet.
    ApartWorse,
    /// The intervals overlap, which says neither that the models differ nor that they do not.
    Overlap,
    /// No interval.
    Unknown,
}

impl Verdict {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDifference => "no difference shown",
            Self::ApartBetter => "better, intervals apart",
            Self::ApartWorse => "worse, intervals apart",
            Self::Overlap => "intervals overlap",
            Self::Unknown => "no interval",
        }
    }

    /// A sign that does without colour: up, down, or level.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Better | Self::ApartBetter => "▲",
            Self::Worse | Self::ApartWorse => "▼",
            Self::NoDifference => "=",
            Self::Overlap => "≈",
            Self::Unknown => "?",
        }
    }
}

/// Enters into every cell how it differs from that of model `baseline`.
///
/// # Errors
/// A name that no model has: all are named.
pub fn compare(
    table: &mut Table,
    results: &[StoredResult],
    baseline: &str,
    bootstrap: &BootstrapConfig,
) -> Result<()> {
    let Some(base) = table.models.iter().position(|model| model == baseline) else {
        return Err(Error::setting(
            "baseline",
            format!("expected one of {}, found `{baseline}`", table.models.join(", ")),
        ));
    };
    let base_cells = table.cells[base].clone();
    for (model, row) in table
        .cells
        .iter_mut()
        .enumerate()
        .filter(|(model, _)| *model != base)
    {
        for ((cell, base), column) in row.iter_mut().zip(&base_cells).zip(&table.columns) {
            if let (Some(cell), Some(base)) = (cell, base) {
                tracing::debug!("comparing model {model} on {}", column.title());
                let test = test(cell, base, results, bootstrap);
                cell.difference = Some(Difference {
                    value: cell.value - base.value,
                    verdict: Verdict::Unknown,
                    test,
                });
            }
        }
    }
    correct(table);
    let signs: Vec<bool> = table
        .columns
        .iter()
        .map(|column| column.higher_is_better)
        .collect();
    for row in &mut table.cells {
        for ((cell, base), higher) in row.iter_mut().zip(&base_cells).zip(&signs) {
            let (Some(cell), Some(base)) = (cell, base) else {
                continue;
            };
            let intervals = cell.interval.zip(base.interval);
            if let Some(difference) = &mut cell.difference {
                difference.verdict = verdict(difference, intervals, *higher);
            }
        }
    }
    Ok(())
}

fn test(cell: &Cell, base: &Cell, results: &[StoredResult], bootstrap: &BootstrapConfig) -> Test {
    if !cell.accuracy {
        return Test::IntervalsOnly("no accuracy of single rows".to_owned());
    }
    let folders = [cell, base].map(|cell| results[cell.result].folder());
    if folders
        .iter()
        .any(|folder| !folder.join(PREDICTIONS_FILE).is_file())
    {
        return Test::IntervalsOnly("predictions were not kept by both".to_owned());
    }
    match paired(folders[0], folders[1], (cell.k, base.k), bootstrap) {
        // A result that was moved beside other predictions would be compared with numbers that are not its own.
        Ok(found) if (found.difference.difference - (cell.value - base.value)).abs() > 1e-6 => {
            Test::IntervalsOnly("predictions do not give these accuracies".to_owned())
        }
        Ok(found) => Test::Paired {
            interval: (found.difference.interval.low, found.difference.interval.high),
            p_value: found.test.p_value,
            p_holm: found.test.p_value,
        },
        Err(error) => Test::IntervalsOnly(format!("not the same test rows ({error})")),
    }
}

/// Corrects the p-values for how many there are.
fn correct(table: &mut Table) {
    let tests = || -> Vec<f64> {
        let cells = table.cells.iter().flatten().flatten();
        cells
            .filter_map(|cell| match cell.difference.as_ref()?.test {
                Test::Paired { p_value, .. } => Some(p_value),
                Test::IntervalsOnly(_) => None,
            })
            .collect()
    };
    let mut corrected = holm(&tests()).into_iter();
    for cell in table.cells.iter_mut().flatten().flatten() {
        if let Some(Difference {
            test: Test::Paired { p_holm, .. },
            ..
        }) = &mut cell.difference
        {
            *p_holm = corrected.next().unwrap_or(1.0);
        }
    }
}

/// An interval of the model's number and one of the baseline's.
type Intervals = ((f64, f64), (f64, f64));

fn verdict(difference: &Difference, intervals: Option<Intervals>, higher_is_better: bool) -> Verdict {
    let better = (difference.value > 0.0) == higher_is_better;
    match (&difference.test, intervals) {
        (Test::Paired { p_holm, .. }, _) if *p_holm >= SIGNIFICANT => Verdict::NoDifference,
        (Test::Paired { .. }, _) if better => Verdict::Better,
        (Test::Paired { .. }, _) => Verdict::Worse,
        (Test::IntervalsOnly(_), None) => Verdict::Unknown,
        (Test::IntervalsOnly(_), Some((a, b))) if a.0 <= b.1 && b.0 <= a.1 => Verdict::Overlap,
        (Test::IntervalsOnly(_), Some(_)) if better => Verdict::ApartBetter,
        (Test::IntervalsOnly(_), Some(_)) => Verdict::ApartWorse,
    }
}
