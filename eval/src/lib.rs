//! Evaluation of frozen features: protocols, metrics, statistics and tables. Arrays in, tables out: this crate knows
//! neither candle nor ONNX Runtime nor any file format of features, so that anything with a matrix can be evaluated.
#![warn(missing_docs)]

pub mod curation;
mod draws;
pub mod error;
pub mod index;
pub mod labelled;
pub mod labels;
pub mod linalg;
pub mod matrix;
pub mod metrics;
pub mod protocols;
pub mod rng;
mod share;
pub mod split;
pub mod stats;
pub mod table;
pub mod team;
#[cfg(test)]
mod testing;

pub use error::{Error, Result};
pub use labelled::{Split, TrainTest};
pub use matrix::{LabelSet, Matrix, MatrixView};
pub use share::Share;
pub use table::EvalResult;
pub use team::{Alone, Team};
