//! Who computes an operation on a device. Every operation is a method of [`Backend`], whose default body is the composition of candle's
//! own arithmetic; a backend overrides what it has kernels for, and where these lack a case its method falls back to the composition.
//!
//! There are three: `Composed` (nothing overridden), `Cpu` and `Cuda`. Which of them a device has is decided in [`backend_kind`] and
//! nowhere else, the scopes of [`composed`] and of [`super::cuda::emulated`] included. What the code around operations has to know of
//! a backend is a method too, which says what is asked.
//!
//! The functions of `ops` check their arguments and hand them to the backend of their first tensor's device.

mod cpu;
mod cuda;

use std::cell::Cell;

use candle_core::{DType, Device, Result, Tensor};

use super::{GeluKind, Packing, Rotary, SpecialTokens, StackOptions, StackedBranch};

/// The operations, of arguments that have been checked. Shapes, types and errors are those of the functions of `ops` with the same
/// names.
pub(crate) trait Backend: Sync {
    /// [`super::linear`].
    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, compute: DType) -> Result<Tensor> {
        super::composed::linear(&x.to_dtype(compute)?, weight, bias)
    }

    /// [`super::prototype_logits`]: in the type of the points, whatever `compute` is.
    fn prototype_logits(&self, points: &Tensor, prototypes: &Tensor, _compute: DType) -> Result<Tensor> {
        self.linear(points, prototypes, None, points.dtype())
    }

    /// [`super::layer_norm`].
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        super::composed::layer_norm(x, weight, bias, eps)
    }

    /// [`super::gelu_of`].
    fn gelu(&self, x: &Tensor, kind: GeluKind) -> Result<Tensor> {
        super::composed::gelu(x, kind)
    }

    /// [`super::swiglu`].
    fn swiglu(&self, x: &Tensor) -> Result<Tensor> {
        super::composed::swiglu(x)
    }

    /// [`super::attention`].
    fn attention(&self, qkv: &Tensor, scale: f64) -> Result<Tensor> {
        super::composed::attention(qkv, scale)
    }

    /// [`super::attention_probabilities`].
    fn attention_probabilities(&self, qkv: &Tensor, scale: f64) -> Result<Tensor> {
        super::composed::attention_probabilities(qkv, scale)
    }

    /// [`super::rotate`].
    fn rotate(&self, qkv: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        super::composed::rotate(qkv, rotary)
    }

    /// [`super::l2_normalize`].
    fn l2_normalize(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        super::composed::l2_normalize(x, eps)
    }

    /// [`super::weight_norm`].
    fn weight_norm(&self, directions: &Tensor, gain: &Tensor) -> Result<Tensor> {
        super::composed::weight_norm(directions, gain)
    }

    /// [`super::gather_rows`].
    fn gather_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        super::composed::gather_rows(x, rows)
    }

    /// [`super::patch_rows`].
    fn patch_rows(&self, pixels: &Tensor, patch: usize, _compute: DType) -> Result<Tensor> {
        super::composed::patch_rows(pixels, patch)
    }

    /// [`super::assemble_tokens`].
    fn assemble_tokens(
        &self,
        patches: &Tensor,
        positions: &Tensor,
        special: SpecialTokens,
        masks: Option<&Tensor>,
    ) -> Result<Tensor> {
        super::composed::assemble_tokens(patches, positions, special, masks)
    }

    /// [`super::soft_cross_entropy`].
    fn soft_cross_entropy(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        target_rows: Option<&[u32]>,
        temperature: f64,
    ) -> Result<Tensor> {
        super::composed::soft_cross_entropy(logits, targets, target_rows, temperature)
    }

    /// [`super::product_cross_entropy`]: in the type of the points, whatever `compute` is.
    fn product_cross_entropy(
        &self,
        points: &Tensor,
        prototypes: &Tensor,
        targets: &Tensor,
        target_rows: Option<&[u32]>,
        temperature: f64,
        _compute: DType,
    ) -> Result<Tensor> {
        super::composed::product_cross_entropy(points, prototypes, targets, target_rows, temperature)
    }

    /// [`super::residual_stack`] of one branch or more.
    fn residual_stack(
        &self,
        x: &Tensor,
        branches: &[StackedBranch],
        options: StackOptions,
    ) -> Result<Tensor> {
        super::composed::residual_stack(x, branches, options)
    }

    /// [`super::packed_residual_stack`] of one branch or more: a stack for each size of images.
    fn packed_residual_stack(
        &self,
        x: &Tensor,
        packing: Packing,
        branches: &[StackedBranch],
        options: StackOptions,
    ) -> Result<Tensor> {
        super::composed::packed_residual_stack(x, packing, branches, |x, branches| {
            self.residual_stack(x, branches, options)
        })
    }

    /// Whether images of two sizes run faster as one sequence than one size after the other.
    fn packs_sequences(&self) -> bool {
        false
    }

    /// Whether products with factors of `compute` take less time than those with factors of f32.
    fn gains_from(&self, compute: DType) -> bool {
        compute != DType::F32
    }
}

struct Composed;

impl Backend for Composed {}

/// An implementation of the operations, and of what training does besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// Plain candle arithmetic.
    Composed,
    /// The kernels for processors.
    Cpu,
    /// The kernels for NVIDIA GPUs, on one or emulated.
    Cuda,
}

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with every operation of this thread composed of plain candle arithmetic, on the CPU as on other devices: to
/// compare it with the kernels, and to try on a machine without a GPU what a device without kernels would run.
pub fn composed<R>(work: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            COMPOSED.set(self.0);
        }
    }
    let _before = Before(COMPOSED.replace(true));
    work()
}

/// What computes on `device` for this thread. Code outside of this folder resolves a trait of its own by it, as training does, and
/// asks for nothing else.
pub fn backend_kind(device: &Device) -> BackendKind {
    if COMPOSED.get() {
        return BackendKind::Composed;
    }
    match device {
        Device::Cpu if super::cuda::is_emulated() => BackendKind::Cuda,
        Device::Cpu => BackendKind::Cpu,
        Device::Cuda(_) if cfg!(feature = "cuda") => BackendKind::Cuda,
        _ => BackendKind::Composed,
    }
}

/// The operations on `device`.
pub(crate) fn backend(device: &Device) -> &'static dyn Backend {
    match backend_kind(device) {
        BackendKind::Composed => &Composed,
        BackendKind::Cpu => &cpu::Cpu,
        BackendKind::Cuda => &cuda::Cuda,
    }
}

/// Whether products with factors of `compute` take less time on `device` than those with factors of f32. A processor gains from
/// bf16 only if it has instructions for it.
pub fn gains_from(compute: DType, device: &Device) -> bool {
    backend(device).gains_from(compute)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::cuda::geometry::Launch;
    use super::super::cuda::{Cell as Argument, Launcher, emulated, with_cpu_kernels};
    use super::*;

    struct NoKernels;

    impl Launcher for NoKernels {
        fn launch(&self, kernel: &str, _: &Launch, _: &[Argument]) -> std::result::Result<(), String> {
            Err(kernel.to_owned())
        }
    }

    fn here() -> BackendKind {
        backend_kind(&Device::Cpu)
    }

    #[test]
    fn the_scope_ends_with_the_work_even_when_that_panics() {
        assert_eq!(here(), BackendKind::Cpu);
        assert_eq!(composed(here), BackendKind::Composed);
        assert_eq!(here(), BackendKind::Cpu);
        let panicked = std::panic::catch_unwind(|| composed(|| panic!("on purpose")));
        assert!(panicked.is_err() && here() == BackendKind::Cpu);
    }

    #[test]
    fn a_composition_that_is_asked_for_goes_before_an_emulated_gpu() {
        emulated(Arc::new(NoKernels), || {
            assert_eq!(here(), BackendKind::Cuda);
            assert_eq!(composed(here), BackendKind::Composed);
            assert_eq!(with_cpu_kernels(here), BackendKind::Cpu);
            assert_eq!(here(), BackendKind::Cuda);
        });
        assert_eq!(here(), BackendKind::Cpu);
    }

    #[test]
    fn what_a_backend_says_of_itself() {
        let [composed, cpu, cuda]: [&dyn Backend; 3] = [&Composed, &cpu::Cpu, &cuda::Cuda];
        for backend in [composed, cpu, cuda] {
            assert!(!backend.gains_from(DType::F32));
        }
        assert!(composed.gains_from(DType::BF16) && cuda.gains_from(DType::BF16));
        assert_eq!(
            cpu.gains_from(DType::BF16),
            super::super::precision::has_fast_bf16()
        );
        assert!(!composed.packs_sequences() && !cpu.packs_sequences() && cuda.packs_sequences());
    }
}
