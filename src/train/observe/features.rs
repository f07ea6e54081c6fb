//! Features gathered batch by batch.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// Features of the batches so far.
#[derive(Default)]
pub struct Features {
    /// `[n, d]`.
    pub data: Vec<f32>,
    /// Width; 0 before the first batch.
    pub d: usize,
}

impl Features {
    /// Adds the features of `n` images.
    ///
    /// # Errors
    /// Features of another shape than `[n, D]`, or of another width than those before.
    pub fn append(&mut self, batch: &Tensor, n: usize) -> Result<()> {
        let wrong = |expected: String| {
            let reason = format!("expected [{expected}], found {:?}", batch.dims());
            Err(Error::failed("features for the meters", reason))
        };
        match *batch.dims() {
            [rows, d] if rows == n && (self.d == d || self.data.is_empty()) => self.d = d,
            _ if self.data.is_empty() => return wrong(format!("{n}, D")),
            _ => return wrong(format!("{n}, {}", self.d)),
        }
        let values = batch
            .to_dtype(DType::F32)
            .and_then(|batch| batch.flatten_all()?.to_vec1::<f32>())?;
        self.data.extend_from_slice(&values);
        Ok(())
    }
}
