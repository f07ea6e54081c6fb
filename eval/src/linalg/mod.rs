//! The kernels that every protocol shares: blocked products, L2 normalisation, partial selection, the exact nearest
//! neighbours built from them, k-means, principal components, whitening and t-SNE. Nothing here knows of labels or protocols.

pub mod gemm;
pub mod kmeans;
pub mod normalise;
pub mod pca;
pub mod topk;
pub mod tsne;
pub mod whiten;

mod binned;
mod neighbours;
mod score_rows;

pub use neighbours::{Neighbours, nearest_neighbours};
pub(crate) use neighbours::{QUERY_BLOCK, filled_up};
pub use score_rows::score_rows;
