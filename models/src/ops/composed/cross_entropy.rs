//! Cross-entropies with target distributions.

use candle_core::{D, Result, Tensor};

use super::wide;

/// [`super::super::soft_cross_entropy`], in f32 or f64.
pub(in crate::ops) fn soft_cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    target_rows: Option<&[u32]>,
    temperature: f64,
) -> Result<Tensor> {
    let scaled = (wide(logits)? * (1. / temperature))?;
    let targets = targets.detach().to_dtype(scaled.dtype())?;
    let targets = match target_rows {
        Some(rows) => targets.index_select(&Tensor::new(rows, logits.device())?, 0)?,
        None => targets,
    };
    // The maximum is a constant here: it cancels in the gradient.
    let shifted = scaled.broadcast_sub(&scaled.detach().max_keepdim(D::Minus1)?)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    (shifted.broadcast_sub(&log_sum)? * targets)?
        .sum(D::Minus1)?
        .neg()
}

/// [`super::super::product_cross_entropy`].
pub(in crate::ops) fn product_cross_entropy(
    points: &Tensor,
    prototypes: &Tensor,
    targets: &Tensor,
    target_rows: Option<&[u32]>,
    temperature: f64,
) -> Result<Tensor> {
    let logits = points.matmul(&prototypes.t()?)?;
    soft_cross_entropy(&logits, targets, target_rows, temperature)
}
