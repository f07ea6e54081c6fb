//! ONNX export: the network as a file that ONNX Runtime runs, written from its weights.
//!
//! `options` holds what a user chooses, `export` lays the network out, `operators` knows how each layer is expressed in
//! ONNX operators, `position_table` how the position table follows the image size, `rotary` the same of rotary angles and `relative` of relative positions. Below them, `graph` builds a graph
//! with unique names, `numbers` says what weights are stored in, `proto` is the file format and `file` streams it to disk. `reference` gives the same outputs by
//! candle, `describe` reads a file back for a user. The numbers that a file gives are checked in ONNX Runtime, by
//! `benchmarks/check_onnx.py`.

mod describe;
mod export;
mod external;
mod file;
mod graph;
pub mod numbers;
mod operators;
mod options;
mod position_table;
pub mod proto;
mod reference;
mod relative;
mod rotary;
#[cfg(test)]
mod tests;

pub use describe::{OnnxDescription, describe};
pub use export::{ExportReport, INPUT, IR_VERSION, LAYER_INPUT, OPSET, export};
pub use external::external_files;
pub use file::{data_files, move_into_place};
pub use numbers::{InputRange, Numbers};
pub use options::{EMBEDDED_LIMIT, ExportOptions, ImageShape, OutputKind};
pub use reference::reference_outputs;
