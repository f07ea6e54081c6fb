//! The vision transformer of DINOv2: configuration, patch embedding, position table, attention, feed-forward,
//! blocks, and the network that joins them.

mod config;

pub use config::{FeedForwardKind, PositionRule, VitConfig};
