//! Visual words that a class token tells.

use serde::{Deserialize, Serialize};

/// The term that asks a class token which visual words its crop has, and where: a vocabulary of small patches, learnt from the run's
/// first crops (after Coates & Ng 2011 and Gidaris et al. 2020, BoWNet).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WordsConfig {
    /// Weight of the term. Default 0.
    pub weight: f64,
    /// Hidden width of the network that tells them; 0 for one linear layer. Default 512.
    pub hidden: usize,
    /// Words in the vocabulary, at least 2. Default 64.
    pub vocabulary: usize,
    /// Side of the cells in which words are counted, in pixels of the crop, of which those above 32 pixels are averaged down first; the
    /// largest divisor of the crop's side that is not above it. Default 4.
    pub cell: usize,
}

impl Default for WordsConfig {
    fn default() -> Self {
        Self {
            weight: 0.,
            hidden: 512,
            vocabulary: 64,
            cell: 4,
        }
    }
}
