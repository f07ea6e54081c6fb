//! Every operation once more, of plain candle arithmetic: what runs where an operation has no kernels of its own, and what the
//! tests hold the kernels against. candle differentiates these itself.
//!
//! Numbers: a matrix product is computed in the type of its left side, to which the weights are brought; norms, softmax,
//! losses and sums over tokens in f32 at least. In bf16 that is what PyTorch's autocast does, with weights kept in f32.

mod cross_entropy;
mod layers;
mod residual_stack;
mod tokens;

use std::cell::Cell;

use candle_core::{DType, Device, Result, Tensor};

pub(super) use cross_entropy::{product_cross_entropy, soft_cross_entropy};
pub(super) use layers::{
    attention, attention_probabilities, gelu, l2_normalize, layer_norm, linear, rotate, swiglu, weight_norm,
};
pub(super) use residual_stack::residual_stack;
pub(super) use tokens::{assemble_tokens, gather_rows};

thread_local! {
    static EVERYWHERE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with every operation of this thread composed of plain candle arithmetic, on the CPU as on other devices: to
/// compare it with the kernels, and to try on a machine without a GPU what a GPU will run.
pub fn composed<R>(work: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            EVERYWHERE.set(self.0);
        }
    }
    let _before = Before(EVERYWHERE.replace(true));
    work()
}

/// Whether operations on `device` are composed here: asked for, or on a device without kernels of ours.
pub fn is_composed(device: &Device) -> bool {
    EVERYWHERE.get() || !device.is_cpu() && !is_fused(device)
}

/// Whether operations on `device` are the fused ones of [`super::cuda`].
pub fn is_fused(device: &Device) -> bool {
    let on_gpu = cfg!(feature = "cuda") && device.is_cuda();
    !EVERYWHERE.get() && (on_gpu || device.is_cpu() && super::cuda::is_emulated())
}

/// Whether operations on `device` are the CPU's kernels.
pub fn has_cpu_kernels(device: &Device) -> bool {
    !is_composed(device) && !is_fused(device)
}

/// `x` in f32, unless it is f64.
pub(super) fn wide(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F64 => Ok(x.clone()),
        _ => x.to_dtype(DType::F32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_ends_with_the_work_even_when_that_panics() {
        assert!(!is_composed(&Device::Cpu));
        assert!(composed(|| is_composed(&Device::Cpu)));
        assert!(!is_composed(&Device::Cpu));
        let panicked = std::panic::catch_unwind(|| composed(|| panic!("on purpose")));
        assert!(panicked.is_err() && !is_composed(&Device::Cpu));
    }
}
