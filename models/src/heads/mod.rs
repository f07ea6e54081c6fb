//! Networks on top of the backbone's tokens: the projection head of DINO and iBOT, and the linear classifier.

mod dino_head;
mod linear;

pub use dino_head::{DinoHead, DinoHeadConfig};
pub use linear::{LinearClassifier, classifier_features};
