//! Index folders: `manifest.json`, the rows it holds (`rows.parquet`: row, path, label) and the vectors, exact or as a
//! graph. Every file is named in the manifest with its checksum, and a folder is checked whole before anything in it is
//! used: the graph's reader ends the process on a damaged file.

mod build;
mod manifest;
mod open;
mod tables;

pub use build::{IndexOptions, build};
pub use manifest::{FORMAT_VERSION, Kind, MANIFEST_FILE, Manifest};
pub use open::OpenIndex;
pub use tables::{score_table, write_hits};

/// Name of the table of rows.
const ROWS_FILE: &str = "rows.parquet";
/// Name of the vectors of an exact index: f32, little endian, row after row.
const VECTORS_FILE: &str = "vectors.f32";
