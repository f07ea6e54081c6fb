//! The vision transformer of DINOv2: configuration, patch embedding, position table, attention, feed-forward,
//! blocks, and the network that joins them.

mod attention;
mod block;
mod config;
mod drop_path;
mod feed_forward;
mod init;
mod intermediate;
pub(crate) mod layers;
mod network;
mod patch_embed;
mod position;

pub use crate::ops::GeluKind;
pub use config::{FeedForwardKind, PositionRule, RopeConfig, VitConfig, swiglu_hidden};
pub use drop_path::{DropPathMode, DropPathPlan, DropPathSchedule};
pub use init::initialise;
pub(crate) use init::{draw, truncated_normal, uniform};
pub use intermediate::{IntermediateLayer, Layers};
pub use network::{ImageRows, VisionTransformer, VitOutput};
pub use position::{interpolate_table, resize_matrix};
