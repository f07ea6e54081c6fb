//! Index folders: `manifest.json`, the rows it holds (`rows.parquet`: row, path, label), their vectors, and for a graph its
//! links; a graph of kind usearch has both in one file. Every file is named in the manifest with its checksum, and a folder is
//! checked whole before anything in it is used.

mod build;
mod manifest;
mod open;
#[cfg(feature = "push")]
pub mod push;
mod tables;
mod usearch;

pub use build::{IndexOptions, build};
pub use manifest::{FORMAT_VERSION, Kind, MANIFEST_FILE, Manifest};
pub use open::OpenIndex;
pub use tables::{score_table, write_hits};

/// Name of the table of rows.
const ROWS_FILE: &str = "rows.parquet";
/// Name of the vectors: f32, little endian, row after row.
const VECTORS_FILE: &str = "vectors.f32";
/// Name of the links of a graph: u32, little endian, as `HnswIndex::link_words` gives them.
const LINKS_FILE: &str = "links.u32";
/// Name of the file that usearch reads: vectors and links, with the place of a row in [`ROWS_FILE`] as its key.
const USEARCH_FILE: &str = "index.usearch";
