//! The updates and the targets of training in candle arithmetic: what a device runs that has no kernels of ours for them. On CUDA
//! AdamW, the teacher's average, sums of squares and what is large of the targets have. On the CPU it serves the tests, which hold
//! the kernels and these against each other.

use candle_core::{D, DType, Result, Tensor, Var};
use macula_models::ops::cuda::targets;
use macula_models::ops::is_fused;

use super::losses::targets::MIN_SUM;
use super::optimizer::{Moments, adamw_update};
use super::ranks::Ranks;

/// `target = target * keep + source * take`.
pub(super) fn average(target: &Var, source: &Tensor, keep: f32, take: f32) -> Result<()> {
    let kept = (target.as_detached_tensor() * f64::from(keep))?;
    target.set(&(kept + (source * f64::from(take))?)?)
}

/// The sum of squares of all values, brought to the host once.
pub(super) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    let each: Vec<Tensor> = tensors
        .iter()
        .map(|tensor| tensor.detach().to_dtype(DType::F32)?.sqr()?.sum_all())
        .collect::<Result<_>>()?;
    Tensor::stack(&each, 0)?
        .to_dtype(DType::F64)?
        .sum_all()?
        .to_scalar()
}

/// AdamW's update of one weight.
pub(super) fn adamw(
    update: &adamw_update::Update,
    weights: &Var,
    moments: &mut Moments,
    gradient: &Tensor,
) -> Result<()> {
    let [scale, towards, keep, add, shrink, size, root, eps] = update.factors().map(f64::from);
    let gradient = (gradient.detach() * scale)?;
    moments.first = (&moments.first + ((&gradient - &moments.first)? * towards)?)?;
    moments.second = ((&moments.second * keep)? + (gradient.sqr()? * add)?)?;
    let step = ((&moments.first * size)? / moments.second.sqrt()?.affine(1. / root, eps)?)?;
    weights.set(&((weights.as_detached_tensor() * shrink)? - step)?)
}

/// `softmax((logits - centre) inverse)` of every row [M, K], and the sums of the logits' columns [1, K].
pub(super) fn centred_softmax(logits: &Tensor, centre: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
    if logits.dim(0)? == 0 {
        return Ok((logits.clone(), centre.zeros_like()?));
    }
    if is_fused(logits.device()) {
        return targets::centred_softmax(logits, centre, inverse);
    }
    let scaled = (logits.broadcast_sub(centre)? * f64::from(inverse))?;
    let exps = scaled.broadcast_sub(&scaled.max_keepdim(D::Minus1)?)?.exp()?;
    let targets = exps.broadcast_div(&exps.sum_keepdim(D::Minus1)?)?;
    Ok((targets, logits.sum_keepdim(0)?))
}

/// Sinkhorn-Knopp over the rows of all processes, as [`super::losses::targets::sinkhorn_knopp`] describes it.
pub(super) fn sinkhorn_knopp(
    logits: &Tensor,
    inverse: f32,
    iterations: usize,
    ranks: &dyn Ranks,
) -> Result<Tensor> {
    let (rows, prototypes) = logits.dims2()?;
    let device = logits.device();
    let fused = rows > 0 && is_fused(device);
    // A process without rows takes part with one that weighs nothing.
    let (mut exp, row_max) = match rows {
        _ if fused => targets::exponentials(logits, inverse)?,
        0 => {
            let lowest = Tensor::full(f32::MIN, (1, 1), device)?;
            (Tensor::zeros((1, prototypes), DType::F32, device)?, lowest)
        }
        _ => {
            let scaled = (logits * f64::from(inverse))?;
            let row_max = scaled.max_keepdim(D::Minus1)?; // [M, 1]
            (scaled.broadcast_sub(&row_max)?.exp()?, row_max)
        }
    };
    let largest = ranks.max(&row_max.max_keepdim(0)?)?; // [1, 1]
    let mut of_row = row_max.broadcast_sub(&largest)?.exp()?; // [M, 1]
    if iterations == 0 {
        return exp.broadcast_mul(&of_row)?.narrow(0, 0, rows);
    }
    for iteration in 1..=iterations {
        let sums = match fused {
            true => targets::weighted_sums(&exp, &of_row)?,
            false => of_row.t()?.matmul(&exp)?,
        };
        let sums = ranks.sum(&sums)?; // [1, K]
        let of_prototype = sums
            .maximum(&Tensor::full(MIN_SUM, sums.shape(), device)?)?
            .recip()?;
        let last = iteration == iterations;
        match (fused, last) {
            (true, false) => of_row = targets::row_scales(&exp, &of_prototype)?,
            (true, true) => targets::scale(&exp, &of_prototype)?,
            (false, false) if rows == 0 => of_row = of_row.zeros_like()?,
            (false, false) => of_row = exp.matmul(&of_prototype.t()?)?.recip()?,
            (false, true) => {
                exp = exp.broadcast_mul(&of_prototype)?;
                exp = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
            }
        }
    }
    exp.narrow(0, 0, rows)
}

#[cfg(test)]
#[path = "on_device_tests.rs"]
mod tests;
