//! ONNX Runtime: where its library is found or fetched ([`library`], [`locate`], [`provision`], [`wheels`], [`cache`]), the one
//! environment of the process ([`environment`]), the execution providers ([`providers`], `fastest`), models ([`session`], `inputs`) and the
//! account of all that, of CUDA's libraries and of the GPU for a user (`cuda_libraries`, [`doctor`]).
//!
//! The library is loaded when it is first needed, never linked: building needs no network and no C++. Nothing here
//! knows about images or feature folders; a model takes a batch `[B, C, H, W]` and gives its outputs by name.

pub(crate) mod cache;
pub(crate) mod cpu;
mod cuda_libraries;
pub(crate) mod doctor;
pub(crate) mod environment;
mod fastest;
mod inputs;
pub(crate) mod library;
pub(crate) mod locate;
pub mod manifest;
mod messages;
pub mod pip;
pub(crate) mod providers;
pub mod provision;
pub(crate) mod session;
pub(crate) mod tensors;
pub mod wheels;

pub use cuda_libraries::CudaLibrary;
pub use doctor::DoctorReport;
pub use environment::{Runtime, RuntimeOptions};
pub use library::{Library, Origin};
pub use provision::install;
pub use session::{OnnxModel, SessionOptions};
pub use tensors::{Dim, OutputTensor, OutputView, TensorInfo};
pub use wheels::Flavor;
