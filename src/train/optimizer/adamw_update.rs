//! AdamW's update of one parameter: one pass over weights, moments, gradient and, where there is one, the teacher.

use candle_core::{Result, Tensor, Var, bail};
use macula_models::ops::vectors::wide;
use macula_models::ops::{is_composed, with_f32};
use rayon::prelude::*;

use super::average::AveragedWeight;
use super::{AdamWOptions, Moments};
use crate::train::in_place::{self, ELEMENTS_PER_TASK};
use crate::train::on_device;

/// The update of one parameter; the constants computed in f64, as PyTorch does, the tensors in f32.
pub(in crate::train) struct Update {
    /// On the gradient.
    scale: f32,
    /// Share of the gradient in the mean.
    towards: f32,
    /// What stays of the squared mean, and what of the squared gradient is added.
    keep: f32,
    add: f32,
    /// What decay leaves of the weight.
    shrink: f32,
    /// The step length, the root of the squared mean's correction, and what keeps it from 0.
    size: f32,
    root: f32,
    eps: f32,
}

impl Update {
    pub(super) fn new(options: &AdamWOptions, steps: u64, (rate, decay): (f64, f64), scale: f64) -> Self {
        let correction = |beta: f64| 1. - beta.powf(steps as f64);
        Self {
            scale: scale as f32,
            towards: (1. - options.beta1) as f32,
            keep: options.beta2 as f32,
            add: (1. - options.beta2) as f32,
            shrink: (1. - rate * decay) as f32,
            size: (rate / correction(options.beta1)) as f32,
            root: correction(options.beta2).sqrt() as f32,
            eps: options.eps as f32,
        }
    }

    /// All of them, in the order of the fields.
    pub(in crate::train) fn factors(&self) -> [f32; 8] {
        [
            self.scale,
            self.towards,
            self.keep,
            self.add,
            self.shrink,
            self.size,
            self.root,
            self.eps,
        ]
    }

    /// Moves weights and moments, and the teacher after them.
    pub(super) fn apply(
        &self,
        weights: &Var,
        moments: &mut Moments,
        gradient: &Tensor,
        teacher: Option<AveragedWeight>,
    ) -> Result<()> {
        const NAME: &str = "adamw";
        let gradient = gradient.contiguous()?;
        if gradient.dims() != weights.dims() {
            bail!(
                "{NAME}: expected shape {:?}, found {:?}",
                weights.dims(),
                gradient.dims()
            );
        }
        if is_composed(weights.device()) {
            on_device::adamw(self, weights, moments, &gradient)?;
            return teacher.map_or(Ok(()), |teacher| teacher.update(weights));
        }
        with_f32(NAME, [&gradient], |[gradient]| {
            in_place::with_values_mut(NAME, weights, |weights| {
                in_place::with_values_mut(NAME, &moments.first, |first| {
                    in_place::with_values_mut(NAME, &moments.second, |second| match teacher {
                        None => {
                            self.sweep([weights, first, second], gradient, None);
                            Ok(())
                        }
                        Some(teacher) => in_place::with_values_mut(NAME, teacher.weights, |values| {
                            self.sweep([weights, first, second], gradient, Some((values, &teacher)));
                            Ok(())
                        }),
                    })
                })
            })
        })?
    }

    fn sweep(
        &self,
        changed: [&mut [f32]; 3],
        gradient: &[f32],
        teacher: Option<(&mut [f32], &AveragedWeight)>,
    ) {
        let [weights, first, second] = changed.map(|values| values.par_chunks_mut(ELEMENTS_PER_TASK));
        let chunks = weights
            .zip(first.zip(second))
            .zip(gradient.par_chunks(ELEMENTS_PER_TASK));
        let move_chunk = |weights: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]| {
            wide(
                #[inline(always)]
                || self.move_weights(weights, first, second, gradient),
            );
        };
        match teacher {
            None => chunks.for_each(|((weights, (first, second)), gradient)| {
                move_chunk(weights, first, second, gradient);
            }),
            Some((values, teacher)) => {
                chunks.zip(values.par_chunks_mut(ELEMENTS_PER_TASK)).for_each(
                    |(((weights, (first, second)), gradient), values)| {
                        move_chunk(weights, first, second, gradient);
                        wide(
                            #[inline(always)]
                            || teacher.follow(values, weights),
                        );
                    },
                );
            }
        }
    }

    #[inline(always)]
    fn move_weights(&self, weights: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
        for ((weight, gradient), (mean, square)) in
            weights.iter_mut().zip(gradient).zip(first.iter_mut().zip(second))
        {
            let g = gradient * self.scale;
            *mean += (g - *mean) * self.towards;
            *square = *square * self.keep + g * g * self.add;
            *weight = *weight * self.shrink - self.size * *mean / (square.sqrt() / self.root + self.eps);
        }
    }
}
