//! Every operation of plain candle arithmetic: the default bodies of [`super::backend`], which run where a backend has no kernels,
//! and what the tests hold the kernels against. candle differentiates these itself.
//!
//! Numbers: a matrix product is computed in the type of its left side, to which the weights are brought; norms, softmax,
//! losses and sums over tokens in f32 at least. In bf16 that is what PyTorch's autocast does, with weights kept in f32.

mod cross_entropy;
mod layers;
mod residual_stack;
mod tokens;

use candle_core::{DType, Result, Tensor};

pub(super) use cross_entropy::{product_cross_entropy, soft_cross_entropy};
pub(super) use layers::{
    attention, attention_probabilities, gelu, l2_normalize, layer_norm, linear, rotate, swiglu, weight_norm,
};
pub(super) use residual_stack::{packed_residual_stack, residual_stack};
pub(super) use tokens::{assemble_tokens, gather_rows, patch_rows, windows};

/// `x` in f32, unless it is f64.
pub(super) fn wide(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F64 => Ok(x.clone()),
        _ => x.to_dtype(DType::F32),
    }
}
