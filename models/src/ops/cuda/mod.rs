//! The operations on NVIDIA GPUs: fused kernels of ours around matrix products of cuBLAS. A `.cu` file holds kernels, the `.rs`
//! file beside it the operation: what it launches forward and back, as functions of tensors.
//!
//! `launch` is one call of a kernel, `geometry` how many threads it gets, `driver` the CUDA side of it. Only that last file
//! needs a GPU: given a [`Launcher`], [`emulated`] runs everything else on CPU tensors, and the tests do so with the same kernels
//! compiled for the processor. `optimizer`, `augment` and `targets` are
//! public for training: its updates, its crops and what its teacher's logits become.
//!
//! Numbers: products in f32 or bf16, everything else in f32; no atomic additions, so results are the same every time. Nothing
//! here waits for the GPU or brings values to the host: what the host knows goes there by `upload`.

mod activation;
mod assemble;
mod attention;
pub mod augment;
mod columns;
mod cross_entropy;
#[cfg(feature = "cuda")]
mod driver;
mod fused_attention;
mod gather_rows;
pub mod geometry;
mod launch;
mod layer_norm;
mod linear;
mod normalise;
pub mod optimizer;
mod patches;
mod residual;
mod residual_stack;
pub mod targets;
mod upload;

pub(super) use activation::{gelu, swiglu};
pub(super) use assemble::assemble_tokens;
pub(super) use attention::attention;
pub(super) use cross_entropy::{product_cross_entropy, soft_cross_entropy};
pub(super) use gather_rows::gather_rows;
pub use launch::{Access, Buffer, Cell, Launcher, emulated};
pub(super) use launch::{is_emulated, with_cpu_kernels};
pub(super) use layer_norm::layer_norm;
pub(super) use linear::linear;
pub(super) use normalise::{l2_normalize, weight_norm};
pub(super) use patches::patch_rows;
pub(super) use residual_stack::residual_stack;
pub use upload::upload;
