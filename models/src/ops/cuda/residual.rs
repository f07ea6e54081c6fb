//! A branch onto the residual stream, with bias, LayerScale and stochastic depth: a launch forward, two back.

use candle_core::{DType, Device, Result, Tensor};

use super::columns::Partials;
use super::geometry::Chunked;
use super::launch::{Argument, Source, is_wide, launch, strips, uninitialised};
use super::upload::upload;
use crate::ops::cpu::rows_and_width;
use crate::ops::{BranchSamples, Packing};

const NAME: &str = "residual";

/// A sample that a branch does not run on (`NOWHERE` in `residual.cu`).
const NOWHERE: u32 = u32::MAX;

/// The samples of a batch that a branch runs on, on the device.
pub(super) struct Samples {
    /// The chosen samples, [k].
    pub(super) kept: Tensor,
    /// The place of every sample of the batch among them, [B].
    places: Tensor,
    /// The bits of their factors, [k].
    factors: Tensor,
    /// Where the rows of the chosen ones are in the branch, and those of all in the stream.
    pub(super) chosen: Packing,
    all: Packing,
}

impl Samples {
    /// For every set of samples of a batch, with one copy to the device; `None` where a branch runs on all.
    pub(super) fn new(
        sets: &[Option<&BranchSamples>],
        packing: Packing,
        device: &Device,
    ) -> Result<Vec<Option<Self>>> {
        let batch = packing.images();
        let mut numbers: Vec<u32> = Vec::new();
        for samples in sets.iter().copied().flatten() {
            let mut places = vec![NOWHERE; batch];
            for (place, &sample) in (0..).zip(&samples.kept) {
                places[sample as usize] = place;
            }
            numbers.extend(&samples.kept);
            numbers.extend(places);
            numbers.extend(samples.factors.iter().map(|factor| factor.to_bits()));
        }
        if numbers.is_empty() {
            return Ok(sets.iter().map(|_| None).collect());
        }
        let numbers = upload(&numbers, numbers.len(), device)?;
        let mut start = 0;
        let mut next = |len: usize| {
            start += len;
            numbers.narrow(0, start - len, len)
        };
        let on_device = |samples: &Option<&BranchSamples>| {
            let Some(samples) = samples else {
                return Ok(None);
            };
            let count = samples.kept.len();
            Ok(Some(Self {
                kept: next(count)?,
                places: next(batch)?,
                factors: next(count)?,
                chosen: packing.of_samples(samples)?,
                all: packing,
            }))
        };
        sets.iter().map(on_device).collect()
    }

    /// Where rows are, as kernels take it; without samples every one of `rows` rows is where it is.
    pub(super) fn places(samples: Option<&Self>, rows: usize) -> [Argument<'static>; 4] {
        let [first, tokens, tokens_of_second] = samples.map_or([rows, 1, 1], |samples| samples.all.numbers());
        let [first_chosen, ..] = samples.map_or([rows, 1, 1], |samples| samples.chosen.numbers());
        [first_chosen, first, tokens, tokens_of_second].map(Argument::Count)
    }
}

/// What follows the second projection of a branch: its bias and LayerScale, [D] each.
pub(super) struct Residual {
    pub(super) bias: Tensor,
    pub(super) gamma: Tensor,
}

impl Residual {
    /// `x + factor gamma (branch + bias)`: `x` [.., D], `branch` [the chosen samples' rows, D].
    pub(super) fn forward(&self, x: &Tensor, branch: &Tensor, samples: Option<&Samples>) -> Result<Tensor> {
        let (rows, width) = rows_and_width(NAME, x.shape())?;
        let parts = [Some(x), Some(branch), Some(&self.bias), Some(&self.gamma)];
        let chunked = Chunked::new(rows, width, is_wide(width, &parts));
        let [first_chosen, first, tokens, tokens_of_second] = Samples::places(samples, rows);
        let out = uninitialised(x.shape(), DType::F32, x.device())?;
        launch(
            x.device(),
            Source::Residual,
            &strips("residual_forward", branch.dtype(), &chunked)?,
            &chunked.launch,
            &[
                Argument::Read(x),
                Argument::Read(branch),
                Argument::Read(&self.bias),
                Argument::Read(&self.gamma),
                Argument::Optional(samples.map(|samples| &samples.places)),
                Argument::Optional(samples.map(|samples| &samples.factors)),
                Argument::Write(&out),
                Argument::Count(rows),
                Argument::Count(width),
                first_chosen,
                first,
                tokens,
                tokens_of_second,
                Argument::Count(chunked.chunk_rows),
                Argument::Count(chunked.across),
            ],
        )?;
        Ok(out)
    }

    /// From `grad` [.., D] of the sum: the gradient of the branch [the chosen samples' rows, D], and those of LayerScale and bias.
    pub(super) fn backward(
        &self,
        grad: &Tensor,
        branch: &Tensor,
        samples: Option<&Samples>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (rows, width) = branch.dims2()?;
        let parts = [Some(grad), Some(branch), Some(&self.bias), Some(&self.gamma)];
        let chunked = Chunked::with_sums(rows, width, is_wide(width, &parts));
        let [first_chosen, first, tokens, tokens_of_second] = Samples::places(samples, rows);
        let dbranch = uninitialised((rows, width), branch.dtype(), branch.device())?;
        let partials = Partials::new(chunked.chunks, 2 * width, branch)?;
        launch(
            grad.device(),
            Source::Residual,
            &strips("residual_backward", branch.dtype(), &chunked)?,
            &chunked.launch,
            &[
                Argument::Read(grad),
                Argument::Read(branch),
                Argument::Read(&self.bias),
                Argument::Read(&self.gamma),
                Argument::Optional(samples.map(|samples| &samples.kept)),
                Argument::Optional(samples.map(|samples| &samples.factors)),
                Argument::Write(&dbranch),
                partials.argument(),
                Argument::Count(rows),
                Argument::Count(width),
                first_chosen,
                first,
                tokens,
                tokens_of_second,
                Argument::Count(chunked.chunk_rows),
                Argument::Count(chunked.across),
            ],
        )?;
        let (dgamma, dbias) = partials.two_sums()?;
        Ok((dbranch, dgamma, dbias))
    }
}
