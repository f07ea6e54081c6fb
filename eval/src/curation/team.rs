//! Processes that share a search. Each has all rows; what costs time is divided.

use crate::Result;

/// The processes, and this one among them. All of them search the same rows with the same settings.
pub trait Team {
    /// This process's number, from 0.
    fn rank(&self) -> usize;

    /// How many there are, at least 1.
    fn size(&self) -> usize;

    /// What every process gives, in the order of their numbers, the same on all.
    ///
    /// # Errors
    /// Processes that cannot reach each other.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Numbers of all processes, one after the other.
    ///
    /// # Errors
    /// As [`Team::gather`].
    fn gather_numbers(&self, own: &[u32]) -> Result<Vec<u32>> {
        let bytes: Vec<u8> = own.iter().flat_map(|number| number.to_le_bytes()).collect();
        let all = self.gather(&bytes)?.concat();
        let words = all.as_chunks::<4>().0;
        Ok(words.iter().map(|&word| u32::from_le_bytes(word)).collect())
    }
}

/// One process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Team for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }
}
