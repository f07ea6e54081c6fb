//! The arithmetic of curation (Oquab et al. 2023, section 3; Vo et al. 2024, arXiv 2405.15613) on matrices: neighbours
//! above a similarity, connected components, one row kept of each, retrieval of rows near a seed, hierarchical k-means and
//! balanced sampling from it. Matrices in, row numbers out; paths, lists and pictures are for the caller. Nothing holds an
//! `n x n` or `n x k` matrix, and nothing depends on the number of threads but the graph search.

mod balance;
mod components;
mod hierarchy;
mod keep;
mod lists;
mod retrieve;
mod search;

pub use balance::{SampleOrder, balanced_sample, balanced_shares, random_sample};
pub use components::Components;
pub use hierarchy::{HierarchyConfig, Level, hierarchy};
pub use keep::central_rows;
pub use lists::{InvertedLists, ListsConfig};
pub use retrieve::{ClusterRetrieval, NearestSeed, retrieve_by_cluster, retrieve_by_sample};
pub use search::{EXACT_ROWS, EdgeSample, Search, Searcher};

#[cfg(test)]
pub(crate) mod testing;
