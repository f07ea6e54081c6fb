//! Settings of the solver, checked in linfa's way: [`LogisticParams`] is what a caller writes,
//! [`LogisticValidParams`] what the solver takes.

use crate::{Error, Result};
use linfa::ParamGuard;

/// Settings of a logistic regression, not yet checked.
///
/// ```
/// use macula_eval::protocols::logistic::LogisticParams;
/// use linfa::ParamGuard;
///
/// assert!(LogisticParams::new(0.1).max_iterations(200).check().is_ok());
/// assert!(LogisticParams::new(0.0).check().is_err());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LogisticParams(LogisticValidParams);

/// Checked settings of a logistic regression.
#[derive(Debug, Clone, PartialEq)]
pub struct LogisticValidParams {
    c: f64,
    max_iterations: usize,
    tolerance: f64,
}

impl LogisticParams {
    /// Inverse regularisation strength `c` (> 0), as in scikit-learn; 1000 iterations at most, tolerance 1e-9.
    pub fn new(c: f64) -> Self {
        Self(LogisticValidParams {
            c,
            max_iterations: 1000,
            tolerance: 1e-9,
        })
    }

    /// Most iterations of L-BFGS (>= 1).
    pub fn max_iterations(mut self, max_iterations: usize) -> Self {
        self.0.max_iterations = max_iterations;
        self
    }

    /// Stops when the next step promises to lower the objective by less than this share of it (0 to 1). Unlike a
    /// bound on the gradient it does not depend on the scale of the features, on C or on the number of rows.
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.0.tolerance = tolerance;
        self
    }
}

impl LogisticValidParams {
    /// Inverse regularisation strength.
    pub fn c(&self) -> f64 {
        self.c
    }

    /// Most iterations of L-BFGS.
    pub fn max_iterations(&self) -> usize {
        self.max_iterations
    }

    /// Promised relative decrease at which the solver stops.
    pub fn tolerance(&self) -> f64 {
        self.tolerance
    }
}

impl ParamGuard for LogisticParams {
    type Checked = LogisticValidParams;
    type Error = Error;

    fn check_ref(&self) -> Result<&LogisticValidParams> {
        let params = &self.0;
        if !(params.c.is_finite() && params.c > 0.0) {
            return Err(Error::config(
                "c",
                format!("expected a number above 0, found {}", params.c),
            ));
        }
        if params.max_iterations == 0 {
            return Err(Error::config("max_iterations", "expected at least 1, found 0"));
        }
        if !(0.0..1.0).contains(&params.tolerance) {
            return Err(Error::config(
                "tolerance",
                format!("expected a number from 0 to below 1, found {}", params.tolerance),
            ));
        }
        Ok(params)
    }

    fn check(self) -> Result<LogisticValidParams> {
        self.check_ref()?;
        Ok(self.0)
    }
}
