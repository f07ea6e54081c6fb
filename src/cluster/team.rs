//! Ranks as what `macula_eval` divides a computation among.

use macula_eval::Team;

use super::ranks::{Ranks, Reduction};
use crate::Error;

/// The ranks of a job.
pub struct OfRanks<'a>(pub &'a dyn Ranks);

impl Team for OfRanks<'_> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn gather(&self, own: &[u8]) -> macula_eval::Result<Vec<Vec<u8>>> {
        self.0.gather_bytes(own).map_err(wrapped)
    }

    fn sum(&self, values: &mut [f64]) -> macula_eval::Result<()> {
        self.0.reduce_f64(values, Reduction::Sum).map_err(wrapped)
    }
}

fn wrapped(error: Error) -> macula_eval::Error {
    macula_eval::Error::data("ranks", error.to_string())
}
