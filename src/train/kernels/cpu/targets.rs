//! The teacher's targets, by sweeps over rows.

use candle_core::{Result, Tensor};
use macula_models::ops::with_f32;

use super::super::MIN_SUM;
use super::rows;
use crate::cluster::Ranks;

pub(super) fn centred_softmax(logits: &Tensor, centre: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
    let (targets, sums) = with_f32("teacher targets", [logits, centre], |[logits, centre]| {
        rows::softmax(logits, centre, inverse)
    })?;
    Ok((
        Tensor::from_vec(targets, logits.shape(), logits.device())?,
        Tensor::from_vec(sums, centre.shape(), centre.device())?,
    ))
}

pub(super) fn sinkhorn_knopp(
    logits: &Tensor,
    inverse: f32,
    iterations: usize,
    ranks: &dyn Ranks,
) -> Result<Tensor> {
    let ((rows, prototypes), device) = (logits.dims2()?, logits.device());
    // `exp((logits - largest) / temperature)` as `diag(of_row) exp`, every row of `exp` having a 1: a row that lies far below
    // the others must not vanish, because the first division by row sums brings it back.
    let (mut exp, row_max) = with_f32("teacher targets", [logits], |[logits]| {
        rows::exponentials(logits, prototypes, inverse)
    })?;
    // One largest value for all rows of all processes: a shift by row would change where the iterations start.
    let largest = row_max.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = ranks.max(&Tensor::new(&[largest], device)?)?.to_vec1::<f32>()?[0];
    let of_row: Vec<f32> = row_max
        .iter()
        .map(|max| ((max - largest) * inverse).exp())
        .collect();
    // Q is diag(of_row) exp diag(of_prototype) throughout, so an iteration reads the matrix once instead of rewriting it
    // twice. The reference's factors 1/K and 1/M, and its first division by the sum of Q, scale all of Q alike; the division
    // by row sums that comes last undoes them.
    if iterations == 0 {
        rows::scale(&mut exp, &vec![1.; prototypes], Some(&of_row));
    }
    let mut sums = rows::weighted_sums(&exp, prototypes, |row, _| of_row[row]);
    for iteration in 1..=iterations {
        let total = ranks.sum(&Tensor::from_vec(sums, (1, prototypes), device)?)?;
        let of_prototype: Vec<f32> = total
            .flatten_all()?
            .to_vec1::<f32>()?
            .into_iter()
            .map(reciprocal)
            .collect();
        if iteration == iterations {
            rows::scale(&mut exp, &of_prototype, None);
            break;
        }
        // The new scale of a row and what it adds to the next sums, while the row is in the cache.
        sums = rows::weighted_sums(&exp, prototypes, |_, row| 1. / rows::dot(row, &of_prototype));
    }
    Tensor::from_vec(exp, (rows, prototypes), device)
}

/// Written so that NaN stays.
fn reciprocal(sum: f32) -> f32 {
    1. / if sum < MIN_SUM { MIN_SUM } else { sum }
}
