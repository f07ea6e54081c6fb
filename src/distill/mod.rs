//! Distillation: a student learns from a frozen teacher. In this folder belong the kinds of teachers (`checkpoint_teacher`,
//! `onnx_teacher`), how one is opened, the recipes, and what teacher and source decide about a run's settings (`settle`). Loop, run
//! folder, settings, terms and the cache of a teacher's outputs are `train`'s.

pub(crate) mod checkpoint_teacher;
pub(crate) mod onnx_teacher;
mod open;
pub(crate) mod recipes;
mod settle;

pub use open::{OnnxSettings, open};
pub use settle::settle;

#[cfg(test)]
mod tests;
