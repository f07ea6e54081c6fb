//! The kernels that every protocol shares: blocked products, L2 normalisation, partial selection and the exact
//! nearest neighbours built from them. Nothing here knows of labels or protocols.

pub mod gemm;
pub mod normalise;
pub mod topk;

mod neighbours;

pub use neighbours::{Neighbours, nearest_neighbours};
