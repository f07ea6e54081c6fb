//! Ranks as what `macula_eval` divides a search among.

use macula_eval::curation::Team;

use crate::cluster::Ranks;

/// The ranks of a step.
pub(super) struct OfRanks<'a>(pub(super) &'a dyn Ranks);

impl Team for OfRanks<'_> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn gather(&self, own: &[u8]) -> macula_eval::Result<Vec<Vec<u8>>> {
        let all = self.0.gather_bytes(own);
        all.map_err(|error| macula_eval::Error::data("ranks", error.to_string()))
    }
}
