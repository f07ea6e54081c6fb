//! AdamW's update of one parameter: one pass over weights, moments, gradient and, where there is one, the teacher.

use candle_core::{Result, Var};
use macula_models::ops::vectors::wide;
use macula_models::ops::with_f32;
use rayon::prelude::*;

use super::super::{AdamwFactors, AveragedWeight, Moved, expect_shape};
use super::in_place::{self, ELEMENTS_PER_TASK};

const NAME: &str = "adamw";

/// Moves weights and moments, and the teacher after them.
pub(super) fn move_weights(weights: &Var, moved: Moved, average: Option<AveragedWeight>) -> Result<()> {
    expect_shape(NAME, weights, &moved.gradient)?;
    let factors = moved.factors;
    with_f32(NAME, [&moved.gradient], |[gradient]| {
        in_place::with_values_mut(NAME, weights, |weights| {
            in_place::with_values_mut(NAME, moved.first, |first| {
                in_place::with_values_mut(NAME, moved.second, |second| {
                    let changed = [weights, first, second];
                    match average {
                        None => {
                            sweep(factors, changed, gradient, None);
                            Ok(())
                        }
                        Some(average) => in_place::with_values_mut(NAME, average.weights, |values| {
                            sweep(factors, changed, gradient, Some((values, average)));
                            Ok(())
                        }),
                    }
                })
            })
        })
    })?
}

fn sweep(
    factors: AdamwFactors,
    changed: [&mut [f32]; 3],
    gradient: &[f32],
    teacher: Option<(&mut [f32], AveragedWeight)>,
) {
    let [weights, first, second] = changed.map(|values| values.par_chunks_mut(ELEMENTS_PER_TASK));
    let chunks = weights
        .zip(first.zip(second))
        .zip(gradient.par_chunks(ELEMENTS_PER_TASK));
    let moved = |weights: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]| {
        wide(
            #[inline(always)]
            || move_chunk(factors, weights, first, second, gradient),
        );
    };
    match teacher {
        None => chunks.for_each(|((weights, (first, second)), gradient)| {
            moved(weights, first, second, gradient);
        }),
        Some((values, teacher)) => {
            chunks.zip(values.par_chunks_mut(ELEMENTS_PER_TASK)).for_each(
                |(((weights, (first, second)), gradient), values)| {
                    moved(weights, first, second, gradient);
                    wide(
                        #[inline(always)]
                        || mix(teacher, values, weights),
                    );
                },
            );
        }
    }
}

#[inline(always)]
fn move_chunk(
    factors: AdamwFactors,
    weights: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    gradient: &[f32],
) {
    for ((weight, gradient), (mean, square)) in
        weights.iter_mut().zip(gradient).zip(first.iter_mut().zip(second))
    {
        let g = gradient * factors.scale;
        *mean += (g - *mean) * factors.towards;
        *square = *square * factors.keep + g * g * factors.add;
        *weight =
            *weight * factors.shrink - factors.size * *mean / (square.sqrt() / factors.root + factors.eps);
    }
}

#[inline(always)]
fn mix(average: AveragedWeight, teacher: &mut [f32], student: &[f32]) {
    for (teacher, student) in teacher.iter_mut().zip(student) {
        *teacher = *teacher * average.keep + student * average.take;
    }
}
