//! The operations on NVIDIA GPUs: fused kernels of ours around matrix products of cuBLAS. A `.cu` file holds kernels, the `.rs`
//! file beside it the operation: what it launches forward and back, as functions of tensors.
//!
//! `launch` is one call of a kernel, `geometry` how many threads it gets, `driver` the CUDA side of it. Only that last file
//! needs a GPU: given a [`Launcher`], [`emulated`] runs everything else on CPU tensors, and the tests do so with the same kernels
//! compiled for the processor. `optimizer`, `augment` and `targets` are
//! public for training: its updates, its crops and what its teacher's logits become. They stand here and not in training because they
//! are made of the same launches, headers, geometry and sums of columns, none of which is public.
//!
//! The host queues a whole step and waits for it once: AdamW clips by norms that stay on the GPU, and moves nothing where one is
//! not finite. All work is on one stream, whichever thread queues it, and only copies to the host wait for a launch; another
//! stream only copies batches to the GPU. Within a step nothing of more than 64 KiB is copied to it at once, which the host
//! would wait for (`upload`), but batches and a cached teacher's features; tables of the optimizer stay there.
//!
//! The student's global and local crops are rows of one sequence (`ops::packing`): only attention asks which image a row belongs to.
//! In bf16 with 64 values a head it stores no scores (`fused_attention`, on tensor cores); the emulation has twins of their
//! instructions. How cuBLAS rounds is set where the GPU is opened, not left to it.
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
mod rotary;
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
pub(super) use rotary::rotate;
pub use upload::upload;
