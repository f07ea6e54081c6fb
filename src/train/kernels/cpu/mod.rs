//! The kernels for processors: one pass over memory and no allocation, where candle arithmetic takes a new tensor for every operation.

mod adamw;
mod in_place;
mod rows;
mod targets;
mod words;

use candle_core::{Result, Tensor, Var};

pub(in crate::train) use self::words::PatchReader;
use super::{AdamwUpdate, AveragedWeight, Kernels, SgdFactors, Tables, WordTables};
use crate::cluster::Ranks;

pub(super) struct Cpu;

impl Kernels for Cpu {
    fn adamw(&self, _tables: &mut Tables, updates: Vec<AdamwUpdate>) -> Result<()> {
        for update in updates {
            match (update.moved, update.average) {
                (Some(moved), average) => adamw::move_weights(update.weights, moved, average)?,
                (None, Some(average)) => self.average(&[(average, update.weights)])?,
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn sgd(&self, weights: &Var, velocity: &Var, gradient: &Tensor, factors: SgdFactors) -> Result<()> {
        let SgdFactors { keep, decay, rate } = factors;
        let before = weights.as_detached_tensor();
        in_place::update_with_two("sgd velocity", velocity, gradient, &before, |v, g, w| {
            *v = *v * keep + (g + decay * w);
        })?;
        in_place::update("sgd", weights, velocity, |w, v| *w -= rate * v)
    }

    fn average(&self, pairs: &[(AveragedWeight, &Tensor)]) -> Result<()> {
        for (average, student) in pairs {
            let AveragedWeight { weights, keep, take } = *average;
            in_place::update("teacher average", weights, &student.detach(), |target, source| {
                *target = *target * keep + source * take;
            })?;
        }
        Ok(())
    }

    fn sums_of_squares(&self, groups: &[Vec<&Tensor>]) -> Result<Vec<f64>> {
        let of_tensor = |gradient: &&Tensor| in_place::sum_of_squares("gradient norm", gradient);
        groups
            .iter()
            .map(|group| group.iter().map(of_tensor).sum())
            .collect()
    }

    fn centred_softmax(&self, logits: &Tensor, centre: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
        targets::centred_softmax(logits, centre, inverse)
    }

    fn sinkhorn_knopp(
        &self,
        logits: &Tensor,
        inverse: f32,
        iterations: usize,
        ranks: &dyn Ranks,
    ) -> Result<Tensor> {
        targets::sinkhorn_knopp(logits, inverse, iterations, ranks)
    }

    fn visual_words(&self, pixels: &Tensor, tables: &WordTables, cell: usize) -> Result<Tensor> {
        words::visual_words(pixels, tables, cell)
    }

    fn reads_host_memory(&self) -> bool {
        true
    }
}
