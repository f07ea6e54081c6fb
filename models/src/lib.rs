//! The network and its files: the vision transformer, its heads, the differentiable operations under it,
//! readers and writers for weight files, and ONNX export. Nothing here touches images or ONNX Runtime.
#![warn(missing_docs)]

pub mod error;
pub mod heads;
pub mod onnx;
pub mod ops;
pub mod vit;
pub mod weights;

pub use error::{Error, Result};
