//! The vision transformer of DINOv2: configuration, stem, patch embedding, position table, attention, feed-forward,
//! blocks, and the network that joins them.

mod attention;
mod attention_pool;
mod block;
mod composed_block;
mod config;
mod drop_path;
mod feed_forward;
mod init;
mod intermediate;
pub(crate) mod layers;
mod network;
mod patch_embed;
mod position;
mod relative;
mod rope;
mod stem;

pub use crate::ops::GeluKind;
pub(crate) use config::RELATIVE_TABLE;
pub use config::{
    AttentionPool, FeedForwardKind, FinalNorm, Pool, PositionRule, RelativePositions, VitConfig,
    swiglu_hidden,
};
pub use drop_path::{DropPathMode, DropPathPlan, DropPathSchedule};
pub use init::{InitialWeights, initialise, initialise_with};
pub(crate) use init::{draw, truncated_normal, uniform};
pub use intermediate::{IntermediateLayer, Layers};
pub use network::{ImageRows, VisionTransformer, VitOutput};
pub use position::{interpolate_grid, interpolate_table, resize_matrix};
pub(crate) use relative::{relative_index, resized_relative_table};
pub use rope::{CountedGrid, RopeConfig, RopeGrid};
pub use stem::{MAX_STEM, StemLayer};
