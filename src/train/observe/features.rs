//! Features gathered batch by batch.

use candle_core::{DType, Tensor};

use crate::cluster::{Ranks, Reduction};
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

    /// The features of all of `ranks`, each of which comes with as many rows for each of its `places` in a sample, in the order of
    /// places; and these, rising.
    ///
    /// # Errors
    /// Ranks that cannot reach each other.
    pub fn of_ranks(self, ranks: &dyn Ranks, places: Vec<usize>) -> Result<(Self, Vec<usize>)> {
        if ranks.is_one() {
            return Ok((self, places));
        }
        let bytes: Vec<u8> = places
            .iter()
            .flat_map(|&place| (place as u64).to_le_bytes())
            .collect();
        let places = ranks.gather_bytes(&bytes)?.concat();
        let places: Vec<usize> = places
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&place| u64::from_le_bytes(place) as usize)
            .collect();
        let data = ranks.gather_f32(&self.data)?.concat();
        // A rank without images knows no width.
        let mut widest = [self.d as f64];
        ranks.reduce_f64(&mut widest, Reduction::Max)?;
        let of_place = data.len() / places.len().max(1);
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_unstable_by_key(|&entry| places[entry]);
        let rows = order
            .iter()
            .flat_map(|&entry| data[entry * of_place..(entry + 1) * of_place].iter().copied());
        let all = Self {
            data: rows.collect(),
            d: widest[0] as usize,
        };
        Ok((all, order.into_iter().map(|entry| places[entry]).collect()))
    }
}
