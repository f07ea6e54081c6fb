//! The differentiable operations under the network, one file each, with forward and backward passes of our own.
//!
//! candle's fused `layer_norm`, `softmax_last_dim` and `sdpa` return tensors without a graph node, so a network trained
//! through them silently stops learning upstream. Everything a training step runs through is therefore either one of
//! these operations or plain candle arithmetic. Each file holds one operation: its function, and its candle `CustomOp` with the
//! CPU kernels (arithmetic in f32, rayon over rows or over heads).
//!
//! Who computes an operation on a device, `backend` says: its function here checks the arguments and hands them on. On an NVIDIA GPU
//! operations are made of the kernels of `cuda`, and put into the graph by `node`. On a device without either, and where a backend
//! has nothing for a case, an operation is composed of plain candle arithmetic: `composed`, which is also the oracle of the tests.
//!
//! Operations are as large as they can be, since candle's backward pass adds every gradient between two of them to zeros:
//! `residual_stack` is all blocks of a network; `many_parameters` is how it has more than three arguments. In a pass of
//! `direct_gradients`, as training has them, weights get their gradients without that. `vectors` is public
//! for the kernels of training.
//!
//! Sums over rows (weight and bias gradients) are taken over chunks of a fixed number of rows and added in their order,
//! so results do not depend on the number of threads.

mod assemble;
mod attention;
mod backend;
mod branch_samples;
mod comparison;
mod composed;
mod cpu;
mod cross_entropy;
pub mod cuda;
mod direct_gradients;
mod element;
mod gather_rows;
mod gelu;
mod l2_normalize;
mod layer_norm;
mod linear;
mod many_parameters;
mod node;
#[cfg(target_arch = "x86_64")]
mod packed_product;
mod packing;
mod patches;
mod precision;
mod residual_branch;
mod residual_stack;
mod rotary;
mod swiglu;
#[cfg(test)]
pub(crate) mod testing;
pub mod vectors;
mod weight_norm;
mod windows;

pub use assemble::{SpecialTokens, assemble_tokens};
pub use attention::{attention, attention_probabilities};
pub(crate) use backend::backend;
pub use backend::{BackendKind, backend_kind, composed, gains_from};
pub use branch_samples::BranchSamples;
pub use comparison::{OpCase, OpComparison, compare_operations, compare_with_composition};
pub use cpu::with_f32;
pub use cross_entropy::{product_cross_entropy, soft_cross_entropy};
pub use direct_gradients::DirectGradients;
pub use gather_rows::gather_rows;
pub use gelu::{GeluKind, gelu, gelu_of};
pub use l2_normalize::l2_normalize;
pub use layer_norm::layer_norm;
pub use linear::{linear, prototype_logits};
pub use packing::{Packing, pack};
pub use patches::patch_rows;
pub use residual_branch::{BranchParameters, Middle};
pub use residual_stack::{StackOptions, StackedBranch, packed_residual_stack, residual_stack};
pub use rotary::{Rotary, rotate};
pub use swiglu::swiglu;
pub use weight_norm::weight_norm;
pub use windows::windows;
