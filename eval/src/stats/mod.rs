//! How sure a number is, and whether two differ: resampling intervals of what the metrics give, paired tests of two
//! classifiers on the same rows, and what several tests at once cost.

pub mod bootstrap;
pub mod holm;
pub mod mcnemar;
pub mod paired;
pub mod spread;

pub use bootstrap::{BootstrapConfig, Interval, bootstrap_counts, bootstrap_mean};
pub use holm::holm;
pub use mcnemar::{McNemar, mcnemar};
pub use paired::{PairedDifference, paired_difference};
