//! A fitted classifier and what it says about other rows.

use super::lbfgs::Minimum;
use super::product;
use crate::protocols::checks;
use crate::{Error, MatrixView, Result};
use rayon::prelude::*;

/// Rows whose logits are computed together.
const BLOCK_ROWS: usize = 256;

/// A fitted multinomial logistic regression.
#[derive(Debug, Clone, PartialEq)]
pub struct LogisticModel {
    /// `[K, d]` weights, then `[K]` biases.
    parameters: Vec<f64>,
    narrow_weights: Vec<f32>,
    dim: usize,
    n_classes: usize,
    objective: f64,
    iterations: usize,
    converged: bool,
}

impl LogisticModel {
    pub(super) fn new(minimum: Minimum, dim: usize, n_classes: usize) -> Self {
        Self {
            narrow_weights: minimum.parameters[..n_classes * dim]
                .iter()
                .map(|w| *w as f32)
                .collect(),
            parameters: minimum.parameters,
            dim,
            n_classes,
            objective: minimum.objective,
            iterations: minimum.iterations,
            converged: minimum.converged,
        }
    }

    /// Weights `[K, d]`, class after class.
    pub fn weights(&self) -> &[f64] {
        &self.parameters[..self.n_classes * self.dim]
    }

    /// Biases `[K]`.
    pub fn biases(&self) -> &[f64] {
        &self.parameters[self.n_classes * self.dim..]
    }

    pub(super) fn parameters(&self) -> &[f64] {
        &self.parameters
    }

    /// Width d of the features.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of classes K.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// `1/2 |W|^2 + C sum_i CE_i` on the training rows, as scikit-learn defines it (with two classes, of its single
    /// weight vector).
    pub fn objective(&self) -> f64 {
        self.objective
    }

    /// Steps taken.
    pub fn iterations(&self) -> usize {
        self.iterations
    }

    /// Whether the tolerance was reached before the last iteration allowed.
    pub fn converged(&self) -> bool {
        self.converged
    }

    /// Logits `[n, K]` of the rows of `x`, row after row.
    ///
    /// # Errors
    /// Another width than the training features, NaN or infinity.
    pub fn logits(&self, x: MatrixView<'_>) -> Result<Vec<f32>> {
        if x.dim() != self.dim {
            return Err(Error::data(
                "test features",
                format!("expected width {} as in training, found {}", self.dim, x.dim()),
            ));
        }
        x.check_finite("test features")?;
        let classes = self.n_classes;
        let biases: Vec<f32> = self.biases().iter().map(|b| *b as f32).collect();
        let mut logits = vec![0.0; x.rows() * classes];
        logits
            .par_chunks_mut(BLOCK_ROWS * classes)
            .zip(x.data().par_chunks(BLOCK_ROWS * self.dim))
            .for_each_init(Vec::new, |by_class: &mut Vec<f32>, (out, x)| {
                by_class.resize(out.len(), 0.0);
                product::logits(x, &self.narrow_weights, self.dim, by_class);
                let rows = out.len() / classes;
                for (i, row) in out.chunks_exact_mut(classes).enumerate() {
                    for (k, value) in row.iter_mut().enumerate() {
                        *value = by_class[k * rows + i] + biases[k];
                    }
                }
            });
        Ok(logits)
    }

    /// The most likely class of each row; the first of equals.
    ///
    /// # Errors
    /// As [`LogisticModel::logits`].
    pub fn predict(&self, x: MatrixView<'_>) -> Result<Vec<u32>> {
        let logits = self.logits(x)?;
        Ok(logits.chunks_exact(self.n_classes).map(argmax).collect())
    }

    /// Mean cross-entropy of the rows of `x`, nats.
    ///
    /// # Errors
    /// As [`LogisticModel::logits`], no rows, or labels that do not fit.
    pub fn log_loss(&self, x: MatrixView<'_>, labels: &[u32]) -> Result<f64> {
        checks::labels("test labels", x.rows(), labels, self.n_classes)?;
        if labels.is_empty() {
            return Err(Error::data(
                "test features",
                "expected at least one row, found none",
            ));
        }
        let logits = self.logits(x)?;
        let total: f64 = logits
            .chunks_exact(self.n_classes)
            .zip(labels)
            .map(|(row, &label)| {
                let max = f64::from(row[argmax(row) as usize]);
                let sum: f64 = row.iter().map(|&value| (f64::from(value) - max).exp()).sum();
                sum.ln() + max - f64::from(row[label as usize])
            })
            .sum();
        Ok(total / labels.len() as f64)
    }
}

/// Place of the largest value; the first of equals.
pub(crate) fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best as u32
}
