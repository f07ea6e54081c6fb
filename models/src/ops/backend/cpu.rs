//! The kernels for processors, each in the file of its operation. What has none there is composed.

use candle_core::{DType, Result, Tensor};

use super::super::{
    GeluKind, SpecialTokens, StackOptions, StackedBranch, assemble, attention, cross_entropy, gather_rows,
    gelu, l2_normalize, layer_norm, linear, precision, residual_stack, swiglu, weight_norm, windows,
};
use super::Backend;

pub(super) struct Cpu;

impl Backend for Cpu {
    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, compute: DType) -> Result<Tensor> {
        linear::on_cpu(x, weight, bias, compute)
    }

    /// The result is f32 here whatever its factors are rounded to.
    fn prototype_logits(&self, points: &Tensor, prototypes: &Tensor, compute: DType) -> Result<Tensor> {
        linear::on_cpu(points, prototypes, None, compute)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        layer_norm::on_cpu(x, weight, bias, eps)
    }

    fn gelu(&self, x: &Tensor, kind: GeluKind) -> Result<Tensor> {
        gelu::on_cpu(x, kind)
    }

    fn swiglu(&self, x: &Tensor) -> Result<Tensor> {
        swiglu::on_cpu(x)
    }

    fn attention(&self, qkv: &Tensor, scale: f64) -> Result<Tensor> {
        attention::on_cpu(qkv, scale)
    }

    fn attention_probabilities(&self, qkv: &Tensor, scale: f64) -> Result<Tensor> {
        attention::probabilities_on_cpu(qkv, scale)
    }

    fn l2_normalize(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        l2_normalize::on_cpu(x, eps)
    }

    fn weight_norm(&self, directions: &Tensor, gain: &Tensor) -> Result<Tensor> {
        weight_norm::on_cpu(directions, gain)
    }

    fn gather_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        gather_rows::on_cpu(x, rows)
    }

    fn windows(&self, map: &Tensor, stride: usize) -> Result<Tensor> {
        windows::on_cpu(map, stride)
    }

    fn assemble_tokens(
        &self,
        patches: &Tensor,
        positions: &Tensor,
        special: SpecialTokens,
        masks: Option<&Tensor>,
    ) -> Result<Tensor> {
        assemble::on_cpu(patches, positions, special, masks)
    }

    fn soft_cross_entropy(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        target_rows: Option<&[u32]>,
        temperature: f64,
    ) -> Result<Tensor> {
        cross_entropy::on_cpu(logits, targets, target_rows, temperature)
    }

    fn product_cross_entropy(
        &self,
        points: &Tensor,
        prototypes: &Tensor,
        targets: &Tensor,
        target_rows: Option<&[u32]>,
        temperature: f64,
        compute: DType,
    ) -> Result<Tensor> {
        cross_entropy::product_on_cpu(points, prototypes, targets, target_rows, temperature, compute)
    }

    fn residual_stack(
        &self,
        x: &Tensor,
        branches: &[StackedBranch],
        options: StackOptions,
    ) -> Result<Tensor> {
        residual_stack::on_cpu(x, branches, options)
    }

    fn gains_from(&self, compute: DType) -> bool {
        compute == DType::BF16 && precision::has_fast_bf16()
    }
}
