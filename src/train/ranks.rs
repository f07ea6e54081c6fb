//! The one seam between a training step and other processes that share the batch.

use candle_core::{Result, Tensor};

/// Reductions over all processes of a run. Every process calls the same reductions in the same order, with tensors of the
/// same shape and type, and gets the same result.
pub trait Ranks {
    /// The elementwise sum of every process's `tensor`.
    ///
    /// # Errors
    /// Processes that cannot reach each other.
    fn sum(&self, tensor: &Tensor) -> Result<Tensor>;

    /// The elementwise maximum of every process's `tensor`.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn max(&self, tensor: &Tensor) -> Result<Tensor>;
}

/// A run of one process: sums and maxima are its own values.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneRank;

impl Ranks for OneRank {
    fn sum(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn max(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }
}
