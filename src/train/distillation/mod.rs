//! What a run learns from a frozen teacher. In this folder belongs what stands between such a teacher and the terms of the
//! objective, whatever kind of network it is: what a teacher is ([`teacher`]), how crops and outputs are brought from one network's
//! geometry to the other's ([`align`]), what is kept of its outputs ([`cache`]), the labels of images, and all of it together for
//! one run ([`FrozenTargets`]). The kinds of teachers are `distill`'s; the losses are in `train::losses`.

pub(crate) mod align;
pub mod cache;
mod cache_segment;
pub(crate) mod labels;
pub(crate) mod targets;
pub(crate) mod teacher;

pub use labels::Labels;
pub use targets::FrozenTargets;
pub use teacher::{FrozenTeacher, TeacherFacts, TeacherFeatures, TeacherSize, Wanted};
