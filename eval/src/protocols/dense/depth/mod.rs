//! Linear depth (dinov2 `hub/depthers.py` and its depth evaluation): a 1x1 convolution on frozen patch features gives each
//! patch a distribution over bins of depth, whose mean is the depth; trained by the scale-invariant loss, scored by
//! [`DepthErrors`] beside the mean depth of the training pixels.

mod bins;
mod loss;
mod result;

pub use result::{DepthResult, ImageErrors};

use rayon::prelude::*;
use serde_json::{Value, json};

use self::bins::Bins;
use self::loss::SigLoss;
use super::head::Head;
use super::learning_rate::{Common, HeadTraining, Trial};
use super::recipe::{Decay, Normalisation, Protocol, Recipe, Start};
use super::{Bilinear, PatchFeatures, check_windows};
use crate::metrics::depth::{DepthErrors, valid};
use crate::protocols::scores::first_best;
use crate::{Error, Result};

/// Share of the iterations that warm up: 12,800 of 38,400 in the reference's recipe.
const WARMUP: f64 = 12_800.0 / 38_400.0;
/// Iterations in which the loss sees only the mean, as in the reference, but never more than a quarter of all.
const MEAN_ONLY: usize = 100;

const FAST: Recipe = Recipe {
    normalisation: Normalisation::AllPatches,
    start: Start::Normal,
    decays_all: false,
    warmup: WARMUP,
    warmup_ratio: 1e-6,
    decay: Decay::Cosine,
    min: 0.0,
    clip: None,
    cycles: false,
};
/// The reference's: features as they are, torch's initial weights, AdamW's decay on the biases too, its momentum in a cycle,
/// and a limit to the gradient's norm.
const PAPER: Recipe = Recipe {
    normalisation: Normalisation::None,
    start: Start::Uniform,
    decays_all: true,
    warmup: WARMUP,
    warmup_ratio: 1e-3,
    decay: Decay::Cosine,
    min: 1e-8,
    clip: Some(35.0),
    cycles: true,
};
/// Images of one process in the reference's recipe: its loss is the mean over these groups.
const TOGETHER: usize = 2;

/// Settings of `eval depth`.
#[derive(Debug, Clone, PartialEq)]
pub struct DepthConfig {
    /// Whose training; [`Protocol::Fast`] by default. Defaults below are its; in brackets those of [`Protocol::Paper`].
    pub protocol: Protocol,
    /// Least and greatest depth of the bins, which also bound the true depths that count: above the first, at most the
    /// second. 0.001 and 10 by default (NYU; KITTI has 80).
    pub range: (f32, f32),
    /// Number of bins, 256 by default.
    pub bins: usize,
    /// Training of the head. By default the learning rates 1e-4, 1e-3 and 1e-2 (1e-4), a decay of 0.01, 2,000 steps (38,400)
    /// of 16 windows, and a share of 0.1 to choose on.
    pub training: HeadTraining,
    /// Seed of the split, the initial weights, the order of the windows and the bootstrap.
    pub seed: u64,
    /// Resamples of the intervals; 0 for none.
    pub bootstrap_resamples: usize,
}

impl Default for DepthConfig {
    fn default() -> Self {
        Self {
            protocol: Protocol::Fast,
            range: (1e-3, 10.0),
            bins: 256,
            training: HeadTraining {
                learning_rates: vec![1e-4, 1e-3, 1e-2],
                weight_decay: 0.01,
                iterations: 2_000,
                batch_size: 16,
                val_fraction: 0.1,
            },
            seed: 0,
            bootstrap_resamples: 1_000,
        }
    }
}

impl DepthConfig {
    /// The defaults of a protocol.
    pub fn for_protocol(protocol: Protocol) -> Self {
        let mut config = Self {
            protocol,
            ..Self::default()
        };
        if protocol == Protocol::Paper {
            config.training.learning_rates = vec![1e-4];
            config.training.iterations = 38_400;
        }
        config
    }

    fn common(&self) -> Common<'_> {
        Common {
            protocol: self.protocol,
            training: &self.training,
            seed: self.seed,
            recipe: match self.protocol {
                Protocol::Fast => FAST,
                Protocol::Paper => PAPER,
            },
        }
    }

    /// The depths that the loss counts, the pixels of how many windows it takes together, and the iterations in which only
    /// the mean counts.
    fn of_loss(&self) -> ((f32, f32), usize, usize) {
        match self.protocol {
            Protocol::Fast => (
                self.range,
                usize::MAX,
                MEAN_ONLY.min(self.training.iterations / 4),
            ),
            Protocol::Paper => ((0.0, f32::INFINITY), TOGETHER, MEAN_ONLY),
        }
    }

    /// Checks the settings on their own, before any data is read.
    ///
    /// # Errors
    /// Names the first setting out of range.
    pub fn validate(&self) -> Result<()> {
        let (min, greatest) = self.range;
        if !(min >= 0.0 && greatest > min && greatest.is_finite()) {
            return Err(Error::config(
                "min_depth, max_depth",
                format!("expected 0 <= min < max, found {min} and {greatest}"),
            ));
        }
        if self.bins < 2 {
            return Err(Error::config(
                "bins",
                format!("expected at least 2, found {}", self.bins),
            ));
        }
        self.common().validate()
    }
}

/// Training windows with their depths.
#[derive(Debug, Clone)]
pub struct DepthData {
    /// Patch features of every window.
    pub features: PatchFeatures,
    /// True depth of every pixel, `[n, rows, columns]`; 0 where there is no measurement.
    pub depths: Vec<f32>,
    /// Rows and columns of a window, in pixels.
    pub size: (usize, usize),
    /// The image, from 0, that each window is of.
    pub image_of: Vec<usize>,
}

impl DepthData {
    fn check(&self) -> Result<()> {
        let n = self.features.len();
        if n == 0 {
            return Err(Error::data("train images", "expected at least one, found none"));
        }
        check_windows("train depths", self.depths.len(), &self.image_of, n, self.size)?;
        self.features.check_finite()
    }

    /// Mean of the valid depths.
    fn mean(&self, range: (f32, f32)) -> Result<f32> {
        let known = self.depths.iter().filter(|depth| valid(**depth, range));
        let (n, sum) = known.fold((0u64, 0.0), |(n, sum), &depth| (n + 1, sum + f64::from(depth)));
        if n == 0 {
            return Err(Error::data(
                "train depths",
                format!(
                    "expected depths above {} and at most {}, found none",
                    range.0, range.1
                ),
            ));
        }
        Ok((sum / n as f64) as f32)
    }
}

/// A trained depth head.
#[derive(Debug, Clone)]
pub struct DepthEstimator {
    head: Head,
    bins: Bins,
    to_pixels: Bilinear,
    /// Mean of the valid training depths.
    mean: f32,
    trials: Vec<Trial>,
    chosen: usize,
    /// Images it was trained on.
    images: usize,
    /// Windows it was trained on.
    windows: usize,
}

impl DepthEstimator {
    /// Chooses the learning rate on held-out images of `train`, then trains on all of them.
    ///
    /// # Errors
    /// Settings out of range, arrays that do not fit each other, no valid depth, too few images.
    pub fn fit(train: &DepthData, config: &DepthConfig) -> Result<Self> {
        config.validate()?;
        train.check()?;
        let mean = train.mean(config.range)?;
        let common = config.common();
        let bins = Bins::new(config.bins, config.range, train.features.grid(), train.size);
        let to_pixels = Bilinear::new(bins.fine(), train.size);
        let (range, together, mean_only) = config.of_loss();
        let loss = SigLoss {
            bins: &bins,
            to_pixels: &to_pixels,
            depths: &train.depths,
            range,
            together,
            mean_only,
        };
        let head = |windows: &[usize], learning_rate: f64| {
            let training = common.training(learning_rate);
            Head::train(&train.features, windows, config.bins, &loss, &training)
        };
        let trials = common.trials(&train.image_of, |learning_rate, fit, held_out| {
            rmse(&head(fit, learning_rate), train, held_out, &loss, config.range)
        })?;
        let chosen = first_best(trials.iter().map(|trial| -trial.held_out.unwrap_or(0.0)));
        let all: Vec<usize> = (0..train.features.len()).collect();
        let head = head(&all, trials[chosen].learning_rate);
        Ok(Self {
            head,
            mean,
            trials,
            chosen,
            images: train.image_of.iter().max().map_or(0, |last| last + 1),
            windows: all.len(),
            to_pixels,
            bins,
        })
    }

    /// Depths of one window's patches `[rows * columns, D]`, on the map that [`Self::to_pixels`] takes.
    pub fn depths(&self, patches: &[f32]) -> Vec<f32> {
        self.bins.depths(&self.head.logits(patches))
    }

    /// From the map of depths to the pixels of a window.
    pub fn to_pixels(&self) -> &Bilinear {
        &self.to_pixels
    }

    /// Mean of the valid training depths: what the head must beat.
    pub fn mean(&self) -> f32 {
        self.mean
    }

    fn settings(&self, config: &DepthConfig) -> Value {
        let words = match config.protocol {
            Protocol::Fast => [
                "1x1 convolution to bins on standardised patches, read four times finer",
                "SigLoss of a batch, without the reference's gradient term",
                "AdamW, warm-up over a third, cosine to 0",
            ],
            Protocol::Paper => [
                "1x1 convolution to bins on patches as they are, read four times finer",
                "SigLoss of two windows, without the reference's gradient term, which is 0 for two images",
                "AdamW, momentum from 0.95 to 0.85 and back, gradients up to a norm of 35, warm-up over a third, cosine to 0",
            ],
        };
        let mut settings = config.common().settings(&self.trials, self.chosen, words);
        settings["bins"] = json!(config.bins);
        settings["min_depth"] = json!(config.range.0);
        settings["max_depth"] = json!(config.range.1);
        settings["mean_depth"] = json!(self.mean);
        settings["train_windows"] = json!(self.windows);
        settings["bootstrap_resamples"] = json!(config.bootstrap_resamples);
        settings
    }
}

/// Mean over training windows of a head's root mean square error.
fn rmse(head: &Head, train: &DepthData, windows: &[usize], loss: &SigLoss<'_>, range: (f32, f32)) -> f64 {
    let pixels = train.size.0 * train.size.1;
    let errors: Vec<Option<f64>> = windows
        .par_iter()
        .map(|&window| {
            let depths = loss.bins.depths(&head.logits(train.features.window(window)));
            let truth = &train.depths[window * pixels..(window + 1) * pixels];
            let found = DepthErrors::compare(&loss.to_pixels.resize(&depths, 1), truth, range);
            found.map(|errors| errors.rmse)
        })
        .collect();
    let known: Vec<f64> = errors.into_iter().flatten().collect();
    known.iter().sum::<f64>() / known.len() as f64
}

#[cfg(test)]
mod tests;
