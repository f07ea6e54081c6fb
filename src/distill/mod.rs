//! Distillation: a student learns from a frozen teacher. In this folder belongs what is particular to that: the teachers
//! ([`teacher`] and its kinds), how crops and outputs are brought from one network's geometry to the other's ([`align`]),
//! what is kept of their outputs ([`cache`]), labels, settings and recipes. The loop, the run folder and the terms on
//! prototypes are `train`'s; the losses are in `train::losses`.

pub mod align;
pub mod cache;
mod cache_segment;
pub mod checkpoint_teacher;
pub mod config;
pub mod labels;
pub mod onnx_teacher;
pub mod recipes;
mod settle;
pub mod targets;
pub mod teacher;

pub use config::{DistillConfig, IbotTokens, OnnxOutput, TeacherOffer, Term};
pub use settle::settle;
pub use targets::FrozenTargets;
pub use teacher::{FrozenTeacher, OnnxSettings, TeacherFacts, TeacherFeatures, open};

#[cfg(test)]
mod tests;
