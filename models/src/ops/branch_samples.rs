//! Stochastic depth: the samples of a batch that a residual branch runs on, and the way there and back.

use std::collections::HashMap;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::packing::Packing;
use super::vectors::{filled, wide};

const NAME: &str = "branch-samples";

/// Which samples of a batch a residual branch runs on, and the weight with which each is added back.
#[derive(Debug, Clone, PartialEq)]
pub struct BranchSamples {
    /// Indices into the batch, each at most once, in the order of the branch's own batch.
    pub kept: Vec<u32>,
    /// One factor for each of `kept`.
    pub factors: Vec<f32>,
}

impl BranchSamples {
    /// Every one of `images`, with weight 1.
    pub fn all(images: usize) -> Self {
        Self {
            kept: (0..images as u32).collect(),
            factors: vec![1.; images],
        }
    }

    /// The samples of `first`, which is of `images` images, and after them those of `second`, whose images follow those.
    pub fn joined(first: &Self, images: usize, second: &Self) -> Self {
        let moved = second.kept.iter().map(|sample| sample + images as u32);
        Self {
            kept: first.kept.iter().copied().chain(moved).collect(),
            factors: [&first.factors[..], &second.factors].concat(),
        }
    }

    /// The same for chosen tokens, each a sample of its own, from `rows` of images packed so.
    pub fn of_rows(&self, rows: &[u32], packing: Packing) -> Self {
        let factors: HashMap<u32, f32> = self
            .kept
            .iter()
            .copied()
            .zip(self.factors.iter().copied())
            .collect();
        let kept = (0..).zip(rows).filter_map(|(place, row)| {
            let factor = factors.get(&(packing.image_of(*row as usize) as u32))?;
            Some((place, *factor))
        });
        let (kept, factors) = kept.unzip();
        Self { kept, factors }
    }
}

/// [`BranchSamples`] of a batch of known size.
pub(super) struct Subset {
    samples: BranchSamples,
    /// For every sample of the batch, its place among the kept ones.
    places: Vec<Option<usize>>,
}

impl Subset {
    pub(super) fn new(samples: &BranchSamples, batch: usize) -> Result<Self> {
        let BranchSamples { kept, factors } = samples;
        if kept.len() != factors.len() {
            bail!("{NAME}: expected {} factors, found {}", kept.len(), factors.len())
        }
        let mut places = vec![None; batch];
        for (place, &sample) in kept.iter().enumerate() {
            match places.get_mut(sample as usize) {
                Some(free @ None) => *free = Some(place),
                Some(Some(_)) => bail!("{NAME}: sample {sample} is named twice"),
                None => bail!("{NAME}: expected a sample below {batch}, found {sample}"),
            }
        }
        Ok(Self {
            samples: samples.clone(),
            places,
        })
    }

    /// Number of kept samples.
    pub(super) fn len(&self) -> usize {
        self.samples.kept.len()
    }

    /// The kept samples of `batch`, `size` values each.
    pub(super) fn gather(&self, batch: &[f32], size: usize) -> Vec<f32> {
        filled(
            self.len() * size,
            size,
            #[inline(always)]
            |place, out| out.copy_from_slice(self.sample(batch, place, size)),
        )
    }

    /// The kept samples of `batch`, each times its factor.
    pub(super) fn gather_weighted(&self, batch: &[f32], size: usize) -> Vec<f32> {
        filled(
            self.len() * size,
            size,
            #[inline(always)]
            |place, out| {
                let factor = self.samples.factors[place];
                for (out, value) in out.iter_mut().zip(self.sample(batch, place, size)) {
                    *out = factor * value;
                }
            },
        )
    }

    /// Adds `branch` onto the samples of `batch` that it belongs to.
    pub(super) fn scatter(&self, branch: &[f32], batch: &mut [f32], size: usize) {
        self.scatter_with(branch, batch, size, |_| 1.);
    }

    /// Adds `branch`, each sample times its factor.
    pub(super) fn scatter_weighted(&self, branch: &[f32], batch: &mut [f32], size: usize) {
        self.scatter_with(branch, batch, size, |place| self.samples.factors[place]);
    }

    fn sample<'a>(&self, batch: &'a [f32], place: usize, size: usize) -> &'a [f32] {
        &batch[self.samples.kept[place] as usize * size..][..size]
    }

    fn scatter_with(
        &self,
        branch: &[f32],
        batch: &mut [f32],
        size: usize,
        factor: impl Fn(usize) -> f32 + Sync,
    ) {
        let samples = batch.par_chunks_mut(size).zip(&self.places);
        samples.for_each(|(sample, place)| {
            let Some(place) = *place else { return };
            let (factor, values) = (factor(place), &branch[place * size..][..size]);
            wide(
                #[inline(always)]
                || {
                    for (sample, value) in sample.iter_mut().zip(values) {
                        *sample += factor * value;
                    }
                },
            );
        });
    }
}
