//! Multinomial logistic regression on frozen features (dinov2 eval/log_regression.py), with scikit-learn's objective
//! `1/2 |W|^2 + C sum_i CE_i`, the bias unpenalised.
//!
//! [`fit`] is one fit on slices, [`LogisticSolver`] many fits on the same features (a path of C, each started from the
//! one before), and the traits of linfa are in [`with_linfa`].

mod few_shot;
mod lbfgs;
mod model;
mod objective;
mod params;
mod precondition;
pub(crate) mod product;
mod protocol;
pub(crate) mod softmax;
pub mod with_linfa;

pub use few_shot::{FewShotConfig, FewShotResult, few_shot};
pub use model::LogisticModel;
pub use params::{LogisticParams, LogisticValidParams};
pub use protocol::{CSelection, LogregConfig, LogregResult, LogregRow, evaluate};

use crate::protocols::checks;
use crate::{Error, MatrixView, Result, Split};
use lbfgs::Goal;
use linfa::ParamGuard;
use objective::Objective;
use precondition::Gram;

/// Fits `labels` (below `n_classes`) on the rows of `x`, from zero weights.
///
/// # Errors
/// Settings out of range, no rows, fewer than two classes, labels that do not fit, NaN or infinity.
pub fn fit(
    x: MatrixView<'_>,
    labels: &[u32],
    n_classes: usize,
    params: &LogisticParams,
) -> Result<LogisticModel> {
    let params = params.check_ref()?;
    LogisticSolver::new(x, labels, n_classes)?.fit(params, None)
}

/// [`fit`], started from an earlier solution with the same classes and width.
///
/// # Errors
/// As [`fit`], and a `start` of another shape.
pub fn fit_from(
    x: MatrixView<'_>,
    labels: &[u32],
    n_classes: usize,
    params: &LogisticParams,
    start: &LogisticModel,
) -> Result<LogisticModel> {
    let params = params.check_ref()?;
    LogisticSolver::new(x, labels, n_classes)?.fit(params, Some(start))
}

/// Features and labels made ready for any number of fits.
///
/// Results do not depend on the number of threads: rows are summed in blocks of a fixed size and a fixed order. Products
/// are f32, sums over rows f64, which reaches the minimum of scikit-learn's f64 solver to better than 1e-6 of the
/// objective.
pub struct LogisticSolver<'a> {
    objective: Objective<'a>,
    gram: Gram,
}

impl<'a> LogisticSolver<'a> {
    /// Checks the data, and measures the second moments of the features, which precondition every fit.
    ///
    /// # Errors
    /// No rows, fewer than two classes (declared or present), labels that do not fit, NaN or infinity.
    pub fn new(x: MatrixView<'a>, labels: &'a [u32], n_classes: usize) -> Result<Self> {
        checks::side("train", &Split::new(x, labels), n_classes)?;
        checks::two_classes(labels)?;
        Ok(Self {
            gram: Gram::new(x),
            objective: Objective::new(x, labels, n_classes),
        })
    }

    /// Minimises the objective of `params`, from `start` or from zero.
    ///
    /// # Errors
    /// A `start` of another shape, or features so large that the loss is not finite.
    pub fn fit(
        &mut self,
        params: &LogisticValidParams,
        start: Option<&LogisticModel>,
    ) -> Result<LogisticModel> {
        let (dim, classes) = (self.objective.features().dim(), self.objective.classes());
        let parameters = match start {
            None => vec![0.0; self.objective.n_parameters()],
            Some(start) if start.dim() == dim && start.n_classes() == classes => start.parameters().to_vec(),
            Some(start) => {
                return Err(Error::data(
                    "starting model",
                    format!(
                        "expected {classes} classes of width {dim}, found {} of width {}",
                        start.n_classes(),
                        start.dim()
                    ),
                ));
            }
        };
        let goal = Goal {
            c: params.c(),
            penalty: penalty(classes),
            max_iterations: params.max_iterations(),
            tolerance: params.tolerance(),
        };
        let minimum = lbfgs::minimise(&mut self.objective, &self.gram, goal, parameters);
        if !minimum.objective.is_finite() {
            return Err(Error::data(
                "train features",
                format!(
                    "expected values whose logits f32 can hold at C = {}, found larger ones",
                    params.c()
                ),
            ));
        }
        Ok(LogisticModel::new(minimum, dim, classes))
    }
}

/// Weight of `1/2 |W|^2`. With two classes scikit-learn has one weight vector w, ours are w/2 and -w/2: twice the
/// penalty makes the objectives equal.
fn penalty(classes: usize) -> f64 {
    if classes == 2 { 2.0 } else { 1.0 }
}

#[cfg(test)]
mod tests;
