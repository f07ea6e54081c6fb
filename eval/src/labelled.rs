//! Features with the classes of their rows, as protocols take them.

use crate::MatrixView;

/// Features and the class of each of their rows. `F` is [`MatrixView`] but for protocols that take several matrices.
#[derive(Debug, Clone, Copy)]
pub struct Split<'a, F = MatrixView<'a>> {
    /// Features, `[n, d]`.
    pub features: F,
    /// Class of each row, `[n]`.
    pub labels: &'a [u32],
}

/// What a classifier learns from, and what it is tested on.
#[derive(Debug, Clone, Copy)]
pub struct TrainTest<'a, F = MatrixView<'a>> {
    /// Rows to learn from. Their labels are below `n_classes`.
    pub train: Split<'a, F>,
    /// Rows to be tested on, as wide as those of `train`.
    pub test: Split<'a, F>,
    /// Number of classes, at least 2.
    pub n_classes: usize,
}

impl<'a, F> Split<'a, F> {
    /// `features` with a label a row.
    pub fn new(features: F, labels: &'a [u32]) -> Self {
        Self { features, labels }
    }

    /// The label of each row of `rows`. Panics past the end, like a slice.
    pub(crate) fn labels_of(&self, rows: &[usize]) -> Vec<u32> {
        rows.iter().map(|&row| self.labels[row]).collect()
    }
}

impl<'a, F> TrainTest<'a, F> {
    /// Both sides, with labels of `train` below `n_classes`.
    pub fn new(train: Split<'a, F>, test: Split<'a, F>, n_classes: usize) -> Self {
        Self {
            train,
            test,
            n_classes,
        }
    }
}
