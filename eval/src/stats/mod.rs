//! How sure a number is: resampling intervals of what the metrics give.

pub mod bootstrap;

pub use bootstrap::{BootstrapConfig, Interval, bootstrap_mean};
