//! What the linear protocols report of a classifier's logits.

use crate::Result;
use crate::metrics::classification::{accuracy, hits_at, mean_per_class, rank_of};
use crate::protocols::predictions::{Predictions, predicted_class};
use crate::stats::bootstrap::{BootstrapConfig, bootstrap_mean};
use polars::prelude::{Column, DataFrame, Series};
use rayon::prelude::*;

/// Accuracies on the test rows, fractions from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TestScores {
    /// Share of rows whose class ranks first.
    pub top1: f64,
    /// Share of rows whose class ranks among the first five; all rows of a known class where there are no more than five.
    pub top5: f64,
    /// Lower end of the 95 % bootstrap interval of `top1`; NaN without resamples.
    pub top1_low: f64,
    /// Upper end of that interval.
    pub top1_high: f64,
    /// Mean over the classes that occur of their own top-1 accuracy.
    pub mean_per_class: f64,
}

impl TestScores {
    /// Scores logits `[n, K]`, row after row. A label of K or more is a class that training never saw: the row is wrong.
    pub(crate) fn from_logits(
        logits: &[f32],
        labels: &[u32],
        classes: usize,
        resamples: usize,
        seed: u64,
    ) -> Self {
        let ranks = ranks(logits, labels, classes);
        let hits = hits_at(&ranks, 1);
        let interval = bootstrap_mean(
            &hits,
            &BootstrapConfig {
                resamples,
                seed,
                ..BootstrapConfig::default()
            },
        );
        Self {
            top1: accuracy(&hits),
            top5: accuracy(&hits_at(&ranks, 5)),
            top1_low: interval.low,
            top1_high: interval.high,
            mean_per_class: mean_per_class(&hits, labels),
        }
    }
}

/// One row of the table of `linear-probe` or `logreg`, after its first column.
pub(crate) struct ScoredRow<'a> {
    pub test: Option<TestScores>,
    pub val_top1: Option<f64>,
    pub selected_on: &'a str,
}

/// The table of `linear-probe` and `logreg`: `first`, `top1`, `top5`, `top1_low`, `top1_high`, `mean_per_class`,
/// `selected_on`, `val_top1`. The first five numbers are of the test rows, and missing where those were not touched.
pub(crate) fn table(first: Series, rows: &[ScoredRow<'_>]) -> Result<DataFrame> {
    let of_test = |name: &str, value: fn(&TestScores) -> f64| {
        let values: Vec<Option<f64>> = rows.iter().map(|row| row.test.as_ref().map(value)).collect();
        Column::new(name.into(), values)
    };
    let selected_on: Vec<&str> = rows.iter().map(|row| row.selected_on).collect();
    let val_top1: Vec<Option<f64>> = rows.iter().map(|row| row.val_top1).collect();
    let columns = vec![
        first.into(),
        of_test("top1", |scores| scores.top1),
        of_test("top5", |scores| scores.top5),
        of_test("top1_low", |scores| scores.top1_low),
        of_test("top1_high", |scores| scores.top1_high),
        of_test("mean_per_class", |scores| scores.mean_per_class),
        Column::new("selected_on".into(), selected_on),
        Column::new("val_top1".into(), val_top1),
    ];
    Ok(DataFrame::new(rows.len(), columns)?)
}

/// The class that ranks first in each row of logits `[n, K]`.
pub(crate) fn predictions(logits: &[f32], classes: usize) -> Predictions {
    Predictions {
        k: None,
        classes: logits.par_chunks_exact(classes).map(predicted_class).collect(),
    }
}

/// Top-1 accuracy of logits `[n, K]`.
pub(crate) fn top1(logits: &[f32], labels: &[u32], classes: usize) -> f64 {
    accuracy(&hits_at(&ranks(logits, labels, classes), 1))
}

pub(crate) fn ranks(logits: &[f32], labels: &[u32], classes: usize) -> Vec<usize> {
    logits
        .par_chunks_exact(classes)
        .zip(labels)
        .map(|(row, &label)| rank_of(row, label))
        .collect()
}

/// Place of the best value under a strict `>`: the first of equals, as in dinov2 eval/linear.py. NaN never wins.
pub(crate) fn first_best(values: impl IntoIterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (place, value) in values.into_iter().enumerate() {
        if value > best.1 {
            best = (place, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_best() {
        assert_eq!(first_best([0.2, 0.7, 0.7, 0.1]), 1);
        assert_eq!(first_best([f64::NAN, 0.0]), 1);
    }

    #[test]
    fn scores_of_a_small_table() {
        // Six classes; the rows' labels rank 0, 1, 5 and 0.
        let logits = [
            [9.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [1.0, 2.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 2.0, 3.0, 4.0, -1.0],
            [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        ]
        .concat();
        let scores = TestScores::from_logits(&logits, &[0, 0, 5, 1], 6, 0, 0);
        assert_eq!((scores.top1, scores.top5), (0.5, 0.75));
        assert_eq!(scores.mean_per_class, (0.5 + 0.0 + 1.0) / 3.0);
        assert!(scores.top1_low.is_nan());
        assert_eq!(top1(&logits, &[0, 0, 5, 1], 6), 0.5);
    }

    #[test]
    fn a_class_that_training_never_saw_is_wrong_in_every_column() {
        let logits = [[3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [5.0, 0.0, 0.0]].concat();
        let scores = TestScores::from_logits(&logits, &[0, 3, 7], 3, 0, 0);
        assert_eq!((scores.top1, scores.top5), (1.0 / 3.0, 1.0 / 3.0));
        assert_eq!(scores.mean_per_class, 1.0 / 3.0, "three classes occur");
    }
}
