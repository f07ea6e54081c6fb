//! The kernels for NVIDIA GPUs ([`super::super::cuda`]), and what they lack: attention to look at, and pixels that a gradient is asked
//! of are composed.

use candle_core::{D, DType, Result, Tensor};

use super::super::{GeluKind, Packing, Rotary, SpecialTokens, StackOptions, StackedBranch, composed, cuda};
use super::Backend;

pub(super) struct Cuda;

impl Backend for Cuda {
    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, compute: DType) -> Result<Tensor> {
        cuda::linear(&x.to_dtype(compute)?, weight, bias)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        cuda::layer_norm(&composed::wide(x)?, weight, bias, eps)
    }

    fn gelu(&self, x: &Tensor, kind: GeluKind) -> Result<Tensor> {
        cuda::gelu(x, kind)
    }

    fn swiglu(&self, x: &Tensor) -> Result<Tensor> {
        cuda::swiglu(x)
    }

    fn attention(&self, qkv: &Tensor, scale: f64) -> Result<Tensor> {
        cuda::attention(qkv, scale)
    }

    fn rotate(&self, qkv: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        cuda::rotate(qkv, rotary)
    }

    fn l2_normalize(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        cuda::l2_normalize(&composed::wide(x)?, eps)
    }

    fn weight_norm(&self, directions: &Tensor, gain: &Tensor) -> Result<Tensor> {
        cuda::weight_norm(directions, gain)
    }

    fn gather_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        cuda::gather_rows(x, rows)
    }

    fn patch_rows(&self, pixels: &Tensor, patch: usize, compute: DType) -> Result<Tensor> {
        match pixels.track_op() || pixels.dtype() != DType::F32 {
            true => composed::patch_rows(pixels, patch),
            false => cuda::patch_rows(pixels, patch, compute),
        }
    }

    fn assemble_tokens(
        &self,
        patches: &Tensor,
        positions: &Tensor,
        special: SpecialTokens,
        masks: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (special, _) = special.stacked(patches.dim(D::Minus1)?, masks.is_some())?;
        cuda::assemble_tokens(patches, positions, &special, masks)
    }

    fn soft_cross_entropy(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        target_rows: Option<&[u32]>,
        temperature: f64,
    ) -> Result<Tensor> {
        cuda::soft_cross_entropy(logits, targets, target_rows, temperature)
    }

    fn product_cross_entropy(
        &self,
        points: &Tensor,
        prototypes: &Tensor,
        targets: &Tensor,
        target_rows: Option<&[u32]>,
        temperature: f64,
        _compute: DType,
    ) -> Result<Tensor> {
        cuda::product_cross_entropy(points, prototypes, targets, target_rows, temperature)
    }

    fn residual_stack(
        &self,
        x: &Tensor,
        branches: &[StackedBranch],
        options: StackOptions,
    ) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        cuda::residual_stack(x, Packing::one(batch, tokens), branches, options)
    }

    fn packed_residual_stack(
        &self,
        x: &Tensor,
        packing: Packing,
        branches: &[StackedBranch],
        options: StackOptions,
    ) -> Result<Tensor> {
        cuda::residual_stack(x, packing, branches, options)
    }

    fn packs_sequences(&self) -> bool {
        true
    }
}
