//! The feature folder: `meta.json`, `part-NNNNN.parquet`, `errors.csv` and `_SUCCESS`, written last. Parts cover fixed
//! ranges of rows, so that a resumed run writes the same parts; a folder of shards holds one such folder a shard.

mod meta;
mod npy;
mod reader;
mod tensors;
mod writer;

pub use meta::{FORMAT_VERSION, Layout, META_FILE, Meta, OutputSpec, SUCCESS_FILE, ShardMeta, Values};
pub use reader::{FeatureFolder, Features};
pub use writer::{FolderWriter, PartRows};

/// Name of the file that lists failed rows.
pub const ERRORS_FILE: &str = "errors.csv";

/// Name of part `index`.
pub fn part_name(index: u64) -> String {
    format!("part-{index:05}.parquet")
}
