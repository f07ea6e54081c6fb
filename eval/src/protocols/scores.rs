//! What the linear protocols report of a classifier's logits.

use crate::metrics::classification::{accuracy, hits_at, mean_per_class, rank_of};
use crate::stats::bootstrap::{BootstrapConfig, bootstrap_mean};
use rayon::prelude::*;

/// Accuracies on the test rows, fractions from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TestScores {
    /// Share of rows whose class ranks first.
    pub top1: f64,
    /// Share of rows whose class ranks among the first five.
    pub top5: f64,
    /// Lower end of the 95 % bootstrap interval of `top1`; NaN without resamples.
    pub top1_low: f64,
    /// Upper end of that interval.
    pub top1_high: f64,
    /// Mean over the classes that occur of their own top-1 accuracy.
    pub mean_per_class: f64,
}

impl TestScores {
    /// Scores logits `[n, K]`, row after row.
    pub(crate) fn of(logits: &[f32], labels: &[u32], classes: usize, resamples: usize, seed: u64) -> Self {
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
            mean_per_class: mean_per_class(&hits, labels, classes),
        }
    }
}

/// Top-1 accuracy of logits `[n, K]`.
pub(crate) fn top1(logits: &[f32], labels: &[u32], classes: usize) -> f64 {
    accuracy(&hits_at(&ranks(logits, labels, classes), 1))
}

fn ranks(logits: &[f32], labels: &[u32], classes: usize) -> Vec<usize> {
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
        let scores = TestScores::of(&logits, &[0, 0, 5, 1], 6, 0, 0);
        assert_eq!((scores.top1, scores.top5), (0.5, 0.75));
        assert_eq!(scores.mean_per_class, (0.5 + 0.0 + 1.0) / 3.0);
        assert!(scores.top1_low.is_nan());
        assert_eq!(top1(&logits, &[0, 0, 5, 1], 6), 0.5);
    }
}
