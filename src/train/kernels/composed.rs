//! Updates and targets in candle arithmetic: the default bodies of [`super::Kernels`]. On the CPU they serve the tests, which hold the
//! kernels and these against each other.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use macula_models::ops::cuda::optimizer::AdamwFactors;

use super::{
    AdamwUpdate, AveragedWeight, DIRECTION_EPS, FLAT, Kernels, MIN_CONTRAST, MIN_SUM, Moved, PATCH,
    SHARPNESS, SgdFactors, WordTables, expect_shape,
};
use crate::cluster::Ranks;

/// `target = target * keep + source * take`.
fn mix(target: &Var, source: &Tensor, keep: f32, take: f32) -> Result<()> {
    let kept = (target.as_detached_tensor() * f64::from(keep))?;
    target.set(&(kept + (source * f64::from(take))?)?)
}

pub(super) fn average(pairs: &[(AveragedWeight, &Tensor)]) -> Result<()> {
    for (average, student) in pairs {
        expect_shape("teacher average", average.weights, student)?;
        mix(average.weights, &student.detach(), average.keep, average.take)?;
    }
    Ok(())
}

pub(super) fn adamw(updates: Vec<AdamwUpdate>) -> Result<()> {
    for update in updates {
        if let Some(moved) = update.moved {
            move_weights(update.weights, moved)?;
        }
        if let Some(of_weight) = update.average {
            average(&[(of_weight, update.weights)])?;
        }
    }
    Ok(())
}

fn move_weights(weights: &Var, moved: Moved) -> Result<()> {
    let Moved {
        first,
        second,
        gradient,
        factors,
    } = moved;
    expect_shape("adamw", weights, &gradient)?;
    let AdamwFactors {
        scale,
        towards,
        keep,
        add,
        shrink,
        size,
        root,
        eps,
    } = factors;
    let [scale, towards, keep, add, shrink, size, root, eps] =
        [scale, towards, keep, add, shrink, size, root, eps].map(f64::from);
    let gradient = (gradient.detach() * scale)?;
    *first = (&*first + ((&gradient - &*first)? * towards)?)?;
    *second = ((&*second * keep)? + (gradient.sqr()? * add)?)?;
    let step = ((&*first * size)? / second.sqrt()?.affine(1. / root, eps)?)?;
    weights.set(&((weights.as_detached_tensor() * shrink)? - step)?)
}

pub(super) fn sgd(weights: &Var, velocity: &Var, gradient: &Tensor, factors: SgdFactors) -> Result<()> {
    let decayed = (weights.as_detached_tensor() * f64::from(factors.decay))?;
    mix(velocity, &(gradient + decayed)?, factors.keep, 1.)?;
    mix(weights, velocity, 1., -factors.rate)
}

pub(super) fn visual_words(pixels: &Tensor, tables: &WordTables, cell: usize) -> Result<Tensor> {
    let (count, channels, side, _) = pixels.dims4()?;
    let padded = pixels.pad_with_same(2, 1, 1)?.pad_with_same(3, 1, 1)?;
    let neighbour = |place: usize| padded.narrow(2, place / 3, side)?.narrow(3, place % 3, side);
    let neighbours = (0..PATCH).map(neighbour).collect::<Result<Vec<_>>>()?;
    let patches = Tensor::cat(&neighbours, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    let patches = patches.reshape((count * side * side, PATCH * channels))?; // [M, d]
    let patches = patches.broadcast_sub(&patches.mean_keepdim(1)?)?;
    let variance = patches.sqr()?.mean_keepdim(1)?; // [M, 1]
    let contrast = (&variance + f64::from(MIN_CONTRAST).powi(2))?;
    let shows = (variance / &contrast)?
        .gt(f64::from(FLAT))?
        .to_dtype(DType::F32)?;
    let patches = patches.broadcast_div(&contrast.sqrt()?)?;
    let white = patches.broadcast_sub(tables.mean)?.matmul(tables.axes)?;
    let length = (white.sqr()?.sum_keepdim(1)?.sqrt()? + f64::from(DIRECTION_EPS))?;
    let cosines = white.broadcast_div(&length)?.matmul(tables.words)?; // [M, K]
    let exponentials = ((cosines - 1.)? * f64::from(SHARPNESS))?.exp()?;
    let of_word = exponentials
        .broadcast_div(&exponentials.sum_keepdim(1)?)?
        .broadcast_mul(&shows)?;
    let cells = side / cell;
    let size = tables.words.dim(1)?;
    let of_word = of_word.reshape(&[count, cells, cell, cells, cell, size])?;
    let of_word = (of_word.mean(4)?.mean(2)? * size as f64)?.sqrt()?; // [B, c, c, K]
    of_word.permute((0, 3, 1, 2))?.contiguous()
}

/// Each brought to the host once.
pub(super) fn sums_of_squares(groups: &[Vec<&Tensor>]) -> Result<Vec<f64>> {
    let of_group = |group: &Vec<&Tensor>| match group.is_empty() {
        true => Ok(0.),
        false => sum_of_squares(group),
    };
    groups.iter().map(of_group).collect()
}

fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    let each: Vec<Tensor> = tensors
        .iter()
        .map(|tensor| tensor.detach().to_dtype(DType::F32)?.sqr()?.sum_all())
        .collect::<Result<_>>()?;
    Tensor::stack(&each, 0)?
        .to_dtype(DType::F64)?
        .sum_all()?
        .to_scalar()
}

pub(super) fn centred_softmax(logits: &Tensor, centre: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
    if logits.dim(0)? == 0 {
        return Ok((logits.clone(), centre.zeros_like()?));
    }
    let scaled = (logits.broadcast_sub(centre)? * f64::from(inverse))?;
    let exps = scaled.broadcast_sub(&scaled.max_keepdim(D::Minus1)?)?.exp()?;
    let targets = exps.broadcast_div(&exps.sum_keepdim(D::Minus1)?)?;
    Ok((targets, logits.sum_keepdim(0)?))
}

/// Of the steps that `kernels` has for it.
pub(super) fn sinkhorn_knopp<K: Kernels + ?Sized>(
    kernels: &K,
    logits: &Tensor,
    inverse: f32,
    iterations: usize,
    ranks: &dyn Ranks,
) -> Result<Tensor> {
    let (rows, prototypes) = logits.dims2()?;
    let device = logits.device();
    if rows == 0 {
        take_part(prototypes, iterations, ranks, device)?;
        return Ok(logits.clone());
    }
    let (mut exp, row_max) = kernels.exponentials(logits, inverse)?;
    let largest = ranks.max(&row_max.max_keepdim(0)?)?; // [1, 1]
    let mut of_row = row_max.broadcast_sub(&largest)?.exp()?; // [M, 1]
    if iterations == 0 {
        return exp.broadcast_mul(&of_row);
    }
    for iteration in 1..=iterations {
        let sums = ranks.sum(&kernels.weighted_sums(&exp, &of_row)?)?; // [1, K]
        let of_prototype = sums
            .maximum(&Tensor::full(MIN_SUM, sums.shape(), device)?)?
            .recip()?;
        if iteration == iterations {
            exp = kernels.scaled(exp, &of_prototype)?;
        } else {
            of_row = kernels.row_scales(&exp, &of_prototype)?;
        }
    }
    Ok(exp)
}

/// What a process without rows says to the others: a row that weighs nothing.
fn take_part(prototypes: usize, iterations: usize, ranks: &dyn Ranks, device: &Device) -> Result<()> {
    ranks.max(&Tensor::full(f32::MIN, (1, 1), device)?)?;
    let nothing = Tensor::zeros((1, prototypes), DType::F32, device)?;
    (0..iterations).try_for_each(|_| ranks.sum(&nothing).map(drop))
}

pub(super) fn exponentials(logits: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
    let scaled = (logits * f64::from(inverse))?;
    let row_max = scaled.max_keepdim(D::Minus1)?; // [M, 1]
    Ok((scaled.broadcast_sub(&row_max)?.exp()?, row_max))
}

pub(super) fn scaled(exponentials: &Tensor, of_prototype: &Tensor) -> Result<Tensor> {
    let scaled = exponentials.broadcast_mul(of_prototype)?;
    scaled.broadcast_div(&scaled.sum_keepdim(D::Minus1)?)
}
