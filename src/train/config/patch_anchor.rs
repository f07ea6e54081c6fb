//! What patch tokens are held to while class tokens learn.

use serde::{Deserialize, Serialize};

use crate::train::losses::PatchSimilarity;

/// The term that keeps the similarities of an image's patches those that another network sees (DINOv3's Gram anchoring, PaKA).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PatchAnchorConfig {
    /// Weight of the term. Default 0.
    pub weight: f64,
    /// What is compared: `gram` or `kernel-alignment`. Default `gram`.
    pub measure: PatchSimilarity,
    /// Which network says how alike patches are. Default `earlier`.
    pub network: AnchorNetwork,
    /// The step from which on the term counts; of an `earlier` network also the step that it is of. Default 0, the start of the run: a run
    /// `--from` another then keeps what that knew of patches.
    pub first_step: u64,
    /// Steps after which the `earlier` network is taken anew; 0 for never. Default 0.
    pub refresh_every: u64,
}

/// The network that patches are held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnchorNetwork {
    /// The teacher as it was at an earlier step, a third network: another pass over the global crops.
    Earlier,
    /// The teacher as it is, at no cost: what the student does not see of masked crops.
    Teacher,
}

impl Default for PatchAnchorConfig {
    fn default() -> Self {
        Self {
            weight: 0.,
            measure: PatchSimilarity::Gram,
            network: AnchorNetwork::Earlier,
            first_step: 0,
            refresh_every: 0,
        }
    }
}

impl PatchAnchorConfig {
    /// Whether patches are held to an earlier network.
    pub fn keeps_a_network(&self) -> bool {
        self.weight > 0. && self.network == AnchorNetwork::Earlier
    }

    /// The term's weight at `step`.
    pub fn weight_at(&self, step: u64) -> f64 {
        if step < self.first_step { 0. } else { self.weight }
    }

    /// Whether the earlier network is that of `step`.
    pub fn is_taken_at(&self, step: u64) -> bool {
        match step.checked_sub(self.first_step) {
            None => false,
            Some(0) => true,
            Some(since) => self.refresh_every > 0 && since.is_multiple_of(self.refresh_every),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_network_is_taken_when_it_is_due() {
        let anchor = PatchAnchorConfig {
            weight: 2.,
            first_step: 3,
            refresh_every: 4,
            ..Default::default()
        };
        let taken: Vec<u64> = (0..13).filter(|&step| anchor.is_taken_at(step)).collect();
        assert_eq!(taken, [3, 7, 11]);
        assert_eq!((anchor.weight_at(2), anchor.weight_at(3)), (0., 2.));
        let once = PatchAnchorConfig::default();
        assert!(once.is_taken_at(0) && !once.is_taken_at(1) && !once.keeps_a_network());
    }
}
