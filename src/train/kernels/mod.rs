//! What training computes besides its networks: updates of weights, sums of squared gradients, the teacher's targets, crops. Each is a
//! method of [`Kernels`], whose default body is candle's own arithmetic; a backend overrides what it has kernels for, and hands out
//! what only it can do. [`kernels`] says which backend a device has, by the same rule as the operations of a network.

mod composed;
mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use candle_core::{Device, Result, Tensor, Var, bail};
use macula_models::ops::cuda::augment::CropShape;
pub(super) use macula_models::ops::cuda::optimizer::{AdamwFactors, Clip, Tables};
use macula_models::ops::{BackendKind, backend_kind};

pub(super) use self::cpu::PatchReader;
use crate::cluster::Ranks;

/// Pixels of the patches that visual words are of, 3 x 3.
pub(super) const PATCH: usize = 9;
/// Contrast, in standard deviations of pixels, under which patches stay flat: noise is no word.
const MIN_CONTRAST: f32 = 0.1;
/// Share of the variance that is left after the division by the contrast, up to which a patch has no word.
const FLAT: f32 = 0.02;
/// Keeps the direction of nothing finite.
const DIRECTION_EPS: f32 = 1e-6;
/// What cosines with words are multiplied by before their softmax.
const SHARPNESS: f32 = 15.;

/// Smallest sum over samples that a prototype is scaled by: far below what f32 exponentials of one batch add up to, it only
/// keeps the scale of a prototype that no sample is near from overflowing.
const MIN_SUM: f32 = 1e-30;

/// The updates and targets, of tensors on one device. Weights, gradients and logits are f32.
pub(super) trait Kernels: Sync {
    /// AdamW's update of weights, each with the teacher's average after it. `tables` are those of the step before, of the same weights.
    ///
    /// # Errors
    /// Gradients or averages of another shape than their weights, other types than f32.
    fn adamw(&self, _tables: &mut Tables, updates: Vec<AdamwUpdate>) -> Result<()> {
        composed::adamw(updates)
    }

    /// SGD's update of one weight: the gradient and the decayed weight into its velocity, and the velocity off the weight.
    ///
    /// # Errors
    /// Tensors of different shapes, other types than f32.
    fn sgd(&self, weights: &Var, velocity: &Var, gradient: &Tensor, factors: SgdFactors) -> Result<()> {
        composed::sgd(weights, velocity, gradient, factors)
    }

    /// The teacher's weights, averaged with their student's.
    ///
    /// # Errors
    /// As [`Self::sgd`].
    fn average(&self, pairs: &[(AveragedWeight, &Tensor)]) -> Result<()> {
        composed::average(pairs)
    }

    /// The sum of squares of each group of gradients, on the host.
    ///
    /// # Errors
    /// Other types than f32.
    fn sums_of_squares(&self, groups: &[Vec<&Tensor>]) -> Result<Vec<f64>> {
        composed::sums_of_squares(groups)
    }

    /// `softmax((logits - centre) inverse)` of every row [M, K], and the sums of the logits' columns [1, K]. `centre` is [1, K]; M may
    /// be 0.
    ///
    /// # Errors
    /// Failures of candle.
    fn centred_softmax(&self, logits: &Tensor, centre: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
        composed::centred_softmax(logits, centre, inverse)
    }

    /// Sinkhorn-Knopp over the rows [M, K] of all processes, as [`super::losses::targets::sinkhorn_knopp`] describes it; M may be 0.
    ///
    /// # Errors
    /// Processes that cannot reach each other.
    fn sinkhorn_knopp(
        &self,
        logits: &Tensor,
        inverse: f32,
        iterations: usize,
        ranks: &dyn Ranks,
    ) -> Result<Tensor> {
        composed::sinkhorn_knopp(self, logits, inverse, iterations, ranks)
    }

    /// Of Sinkhorn-Knopp, with a row at least: `exp((logits - largest of the row) inverse)` [M, K], and the largest values times
    /// `inverse` [M, 1].
    ///
    /// # Errors
    /// Failures of candle.
    fn exponentials(&self, logits: &Tensor, inverse: f32) -> Result<(Tensor, Tensor)> {
        composed::exponentials(logits, inverse)
    }

    /// Of Sinkhorn-Knopp: the sum of all rows [1, K], each times its number of `of_row` [M, 1].
    ///
    /// # Errors
    /// Failures of candle.
    fn weighted_sums(&self, exponentials: &Tensor, of_row: &Tensor) -> Result<Tensor> {
        of_row.t()?.matmul(exponentials)
    }

    /// Of Sinkhorn-Knopp: what brings the sum of every row to 1 [M, 1], when every column is scaled by `of_prototype` [1, K].
    ///
    /// # Errors
    /// Failures of candle.
    fn row_scales(&self, exponentials: &Tensor, of_prototype: &Tensor) -> Result<Tensor> {
        exponentials.matmul(&of_prototype.t()?)?.recip()
    }

    /// Of Sinkhorn-Knopp: every column scaled by `of_prototype` [1, K] and then every row to the sum 1.
    ///
    /// # Errors
    /// Failures of candle.
    fn scaled(&self, exponentials: Tensor, of_prototype: &Tensor) -> Result<Tensor> {
        composed::scaled(&exponentials, of_prototype)
    }

    /// The visual words of `pixels` [B, C, s, s] in cells of `cell` pixels, as [`super::losses::Vocabulary::targets`] describes them:
    /// [B, K, s / cell, s / cell].
    ///
    /// # Errors
    /// Failures of candle.
    fn visual_words(&self, pixels: &Tensor, tables: &WordTables, cell: usize) -> Result<Tensor> {
        composed::visual_words(pixels, tables, cell)
    }

    /// What makes the crops of a batch out of its images, where the step can.
    fn crops(&self) -> Option<CropKernel> {
        None
    }

    /// What clips gradients by norms that the host has not seen, on a device that it would have to wait for.
    fn clipping(&self) -> Option<&dyn Clipping> {
        None
    }

    /// Whether a step reads a batch where the loader has left it.
    fn reads_host_memory(&self) -> bool {
        false
    }
}

/// The crops of a table out of pixels, words, weights and values ([`macula_models::ops::cuda::augment::crops`]).
pub(super) type CropKernel = fn(&Tensor, &Tensor, &Tensor, &Tensor, CropShape) -> Result<Tensor>;

/// A vocabulary of visual words of C channels, d = 9 C; f32.
pub(super) struct WordTables<'a> {
    /// Mean patch, [1, d].
    pub(super) mean: &'a Tensor,
    /// What whitens patches, [d, d].
    pub(super) axes: &'a Tensor,
    /// Directions of whitened patches, one a column, [d, K].
    pub(super) words: &'a Tensor,
}

/// Clipping on the device.
pub(super) trait Clipping: Sync {
    /// [`Kernels::sums_of_squares`] left on the device, f64 [groups]. `tables` are those of the step before.
    ///
    /// # Errors
    /// Gradients of another type than f32.
    fn sums_of_squares(
        &self,
        tables: &mut Tables,
        groups: &[Vec<&Tensor>],
        device: &Device,
    ) -> Result<Tensor>;

    /// [`Kernels::adamw`] of gradients that are clipped first, each with its group; nothing moves where a number that `clip` has checked
    /// is not finite.
    ///
    /// # Errors
    /// As [`Kernels::adamw`]; a group without its sum of squares.
    fn adamw(&self, tables: &mut Tables, updates: Vec<AdamwUpdate>, clip: &Clip) -> Result<()>;
}

/// One weight and what a step does to it.
pub(super) struct AdamwUpdate<'a> {
    /// The weight.
    pub(super) weights: &'a Var,
    /// Without it the weight stays as it is.
    pub(super) moved: Option<Moved<'a>>,
    /// The teacher's weight, which averages it.
    pub(super) average: Option<AveragedWeight<'a>>,
    /// The group that its gradient is clipped with, where gradients are.
    pub(super) group: u32,
}

/// AdamW's side of a weight: tensors of its shape.
pub(super) struct Moved<'a> {
    /// Mean of gradients, which changes.
    pub(super) first: &'a mut Tensor,
    /// Mean of squared gradients, which changes.
    pub(super) second: &'a mut Tensor,
    /// The gradient, contiguous.
    pub(super) gradient: Tensor,
    /// The numbers of the update.
    pub(super) factors: AdamwFactors,
}

/// The numbers of SGD's update: `velocity = velocity keep + gradient + weight decay`, `weight = weight - velocity rate`.
#[derive(Debug, Clone, Copy)]
pub(super) struct SgdFactors {
    /// What stays of the velocity.
    pub(super) keep: f32,
    /// What of the weight is added to the gradient.
    pub(super) decay: f32,
    /// The step length.
    pub(super) rate: f32,
}

/// One weight of the teacher and how fast it follows.
#[derive(Clone, Copy)]
pub(super) struct AveragedWeight<'a> {
    /// The weight.
    pub(super) weights: &'a Var,
    /// What stays of it.
    pub(super) keep: f32,
    /// What is added of the student's.
    pub(super) take: f32,
}

impl<'a> AveragedWeight<'a> {
    /// Both factors are rounded from f64: 1 - momentum in f32 would lose digits near 1.
    pub(super) fn new(weights: &'a Var, momentum: f64) -> Self {
        Self {
            weights,
            keep: momentum as f32,
            take: (1. - momentum) as f32,
        }
    }
}

struct Composed;

impl Kernels for Composed {}

/// What computes on `device`.
pub(super) fn kernels(device: &Device) -> &'static dyn Kernels {
    match backend_kind(device) {
        BackendKind::Composed => &Composed,
        BackendKind::Cpu => &cpu::Cpu,
        BackendKind::Cuda => &cuda::Cuda,
    }
}

fn expect_shape(name: &str, target: &Tensor, source: &Tensor) -> Result<()> {
    if target.dims() != source.dims() {
        bail!(
            "{name}: expected shape {:?}, found {:?}",
            target.dims(),
            source.dims()
        );
    }
    Ok(())
}
