//! Networks on top of the backbone's tokens: the projection head of DINO and iBOT, the projection of contrastive learning,
//! and the linear classifier.

mod dino_head;
mod linear;
mod projection;

pub use dino_head::{DinoHead, DinoHeadConfig};
pub use linear::{LinearClassifier, classifier_features};
pub use projection::{ProjectionHead, ProjectionHeadConfig, SharedBatch};
