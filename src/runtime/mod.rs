//! ONNX Runtime: where its library is found or fetched ([`library`], [`locate`], [`provision`], [`wheels`], [`cache`]), the one
//! environment of the process ([`environment`]), the execution providers ([`providers`], `fastest`), models ([`session`], `inputs`), the
//! GPU that candle trains on ([`gpu`], `cuda_libraries`) and the account of all that for a user ([`doctor`]).
//!
//! The library is loaded when it is first needed, never linked: building needs no network and no C++. Nothing here
//! knows about images or feature folders; a model takes a batch `[B, C, H, W]` and gives its outputs by name.

pub mod cache;
pub mod cpu;
mod cuda_libraries;
pub mod doctor;
pub mod environment;
mod fastest;
mod gpu;
mod inputs;
pub mod library;
pub mod locate;
pub mod manifest;
mod messages;
pub mod pip;
pub mod providers;
pub mod provision;
pub mod session;
pub mod tensors;
pub mod wheels;

pub use cuda_libraries::CudaLibrary;
pub use doctor::DoctorReport;
pub use environment::{Runtime, RuntimeOptions};
pub(crate) use gpu::{peak_memory, set_products};
pub use library::{Library, Origin};
pub use providers::{CUDA_TRAINER, Device, Precision};
pub use provision::install;
pub use session::{OnnxModel, SessionOptions};
pub use tensors::{Dim, OutputTensor, OutputView, TensorInfo};
pub use wheels::Flavor;
