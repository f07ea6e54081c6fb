//! The feature folder: `meta.json`, `part-NNNNN.parquet`, `errors.csv` and `_SUCCESS`, written last. Parts cover fixed
//! ranges of rows, so that a resumed run writes the same parts; a folder of shards holds one such folder a shard.

mod identity;
mod meta;
mod npy;
mod reader;
mod tensors;
mod writer;

use std::fs;
use std::path::Path;

use crate::{Error, Result};

pub use identity::unfair;
pub(crate) use meta::unusable;
pub use meta::{FORMAT_VERSION, Layout, META_FILE, Meta, OutputSpec, STORED, SUCCESS_FILE, ShardMeta};
pub use reader::{FeatureFolder, Features, Names};
pub use writer::FolderWriter;

/// Name of the file that lists failed rows.
pub const ERRORS_FILE: &str = "errors.csv";

/// Name of part `index`.
pub fn part_name(index: u64) -> String {
    format!("part-{index:05}.parquet")
}

/// Removes the files of `inner` that begin and end so, and the folder where nothing else is in it.
fn remove_inner(inner: &Path, beginning: &str, ending: &str) -> Result<()> {
    if !inner.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(inner).map_err(|e| Error::io(inner, e))? {
        let entry = entry.map_err(|e| Error::io(inner, e))?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with(beginning) && file.ends_with(ending) {
            fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    // Anything else in it is the user's, and keeps the folder.
    let _ = fs::remove_dir(inner);
    Ok(())
}
