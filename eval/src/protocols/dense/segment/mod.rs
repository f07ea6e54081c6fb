//! Linear segmentation (dinov2 `LinearHead` of its segmentation evaluation): batch norm and a 1x1 convolution on frozen
//! patch features, trained by cross-entropy on pixels, scored by mean intersection over union.

mod loss;
mod result;

pub use result::SegmentResult;

use rayon::prelude::*;
use serde_json::{Value, json};

use self::loss::PixelCrossEntropy;
use super::head::Head;
use super::learning_rate::{Common, HeadTraining, Trial};
use super::recipe::{Decay, Normalisation, Protocol, Recipe, Start};
use super::{Bilinear, PatchFeatures, check_windows};
use crate::metrics::iou::{PixelCounts, VOID};
use crate::protocols::scores::first_best;
use crate::{Error, Result};

/// Share of the iterations that warm up: 1,500 of 40,000 in the reference's recipe.
const WARMUP: f64 = 1_500.0 / 40_000.0;

const FAST: Recipe = Recipe {
    normalisation: Normalisation::AllPatches,
    start: Start::Normal,
    decays_all: false,
    warmup: WARMUP,
    warmup_ratio: 1e-6,
    decay: Decay::Linear,
    min: 0.0,
    clip: None,
    cycles: false,
};
/// The reference's: batch norm, and AdamW's decay on all that is trained.
const PAPER: Recipe = Recipe {
    normalisation: Normalisation::BatchNorm,
    decays_all: true,
    ..FAST
};

/// Settings of `eval segment`.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentConfig {
    /// Whose training; [`Protocol::Fast`] by default. Defaults below are its; in brackets those of [`Protocol::Paper`].
    pub protocol: Protocol,
    /// Training of the head. By default the learning rates 1e-3, 3e-3 and 1e-2 (1e-3), a decay of 1e-4, 2,000 steps (40,000)
    /// of 16 windows, and a share of 0.1 to choose on.
    pub training: HeadTraining,
    /// Whether a class may be without training pixels; false by default.
    pub allow_empty_classes: bool,
    /// Seed of the split, the initial weights, the order of the windows and the bootstrap.
    pub seed: u64,
    /// Resamples of the intervals; 0 for none.
    pub bootstrap_resamples: usize,
}

impl Default for SegmentConfig {
    fn default() -> Self {
        Self {
            protocol: Protocol::Fast,
            training: HeadTraining {
                learning_rates: vec![1e-3, 3e-3, 1e-2],
                weight_decay: 1e-4,
                iterations: 2_000,
                batch_size: 16,
                val_fraction: 0.1,
            },
            allow_empty_classes: false,
            seed: 0,
            bootstrap_resamples: 1_000,
        }
    }
}

impl SegmentConfig {
    /// The defaults of a protocol.
    pub fn for_protocol(protocol: Protocol) -> Self {
        let mut config = Self {
            protocol,
            ..Self::default()
        };
        if protocol == Protocol::Paper {
            config.training.learning_rates = vec![1e-3];
            config.training.iterations = 40_000;
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

    /// Checks the settings on their own, before any data is read.
    ///
    /// # Errors
    /// Names the first setting out of range.
    pub fn validate(&self) -> Result<()> {
        self.common().validate()
    }
}

/// Training windows with their labels.
#[derive(Debug, Clone)]
pub struct SegmentData {
    /// Patch features of every window.
    pub features: PatchFeatures,
    /// Class of every pixel, `[n, rows, columns]`; [`VOID`] where a pixel is left out.
    pub labels: Vec<u8>,
    /// Rows and columns of a window, in pixels.
    pub size: (usize, usize),
    /// The image, from 0, that each window is of.
    pub image_of: Vec<usize>,
}

impl SegmentData {
    fn check(&self, classes: &[String], config: &SegmentConfig) -> Result<()> {
        let n = self.features.len();
        if n == 0 {
            return Err(Error::data("train images", "expected at least one, found none"));
        }
        if !(2..=usize::from(VOID)).contains(&classes.len()) {
            return Err(Error::data(
                "classes",
                format!("expected 2 to {VOID}, found {}", classes.len()),
            ));
        }
        check_windows("train labels", self.labels.len(), &self.image_of, n, self.size)?;
        let mut counts = vec![0u64; classes.len()];
        for &label in self.labels.iter().filter(|&&label| label != VOID) {
            match counts.get_mut(usize::from(label)) {
                Some(count) => *count += 1,
                None => {
                    return Err(Error::data(
                        "train labels",
                        format!("expected labels below {} or {VOID}, found {label}", classes.len()),
                    ));
                }
            }
        }
        match counts.iter().position(|&count| count == 0) {
            Some(class) if !config.allow_empty_classes => {
                return Err(Error::data(
                    format!("class {class} (`{}`)", classes[class]),
                    "expected labelled pixels in the train masks, found none",
                ));
            }
            _ => {}
        }
        self.features.check_finite()
    }
}

/// A trained segmentation head.
#[derive(Debug, Clone)]
pub struct Segmenter {
    head: Head,
    to_pixels: Bilinear,
    classes: usize,
    trials: Vec<Trial>,
    chosen: usize,
    /// Images it was trained on.
    images: usize,
    /// Windows it was trained on.
    windows: usize,
}

impl Segmenter {
    /// Chooses the learning rate on held-out images of `train`, then trains on all of them.
    ///
    /// # Errors
    /// Settings out of range, arrays that do not fit each other, a class without training pixels, too few images.
    pub fn fit(train: &SegmentData, classes: &[String], config: &SegmentConfig) -> Result<Self> {
        config.validate()?;
        train.check(classes, config)?;
        let common = config.common();
        let to_pixels = Bilinear::new(train.features.grid(), train.size);
        let loss = PixelCrossEntropy {
            to_pixels: &to_pixels,
            labels: &train.labels,
            classes: classes.len(),
            over_all: config.protocol == Protocol::Paper,
        };
        let head = |windows: &[usize], learning_rate: f64| {
            let training = common.training(learning_rate);
            Head::train(&train.features, windows, classes.len(), &loss, &training)
        };
        let trials = common.trials(&train.image_of, |learning_rate, fit, held_out| {
            let head = head(fit, learning_rate);
            mean_iou(&head, train, held_out, &to_pixels, classes.len())
        })?;
        let chosen = first_best(trials.iter().map(|trial| trial.held_out.unwrap_or(0.0)));
        let all: Vec<usize> = (0..train.features.len()).collect();
        Ok(Self {
            head: head(&all, trials[chosen].learning_rate),
            classes: classes.len(),
            trials,
            chosen,
            images: train.image_of.iter().max().map_or(0, |last| last + 1),
            windows: all.len(),
            to_pixels,
        })
    }

    /// Logits `[rows * columns, K]` of one window's patches `[rows * columns, D]`.
    pub fn logits(&self, patches: &[f32]) -> Vec<f32> {
        self.head.logits(patches)
    }

    /// From the grid of patches to the pixels of a window.
    pub fn to_pixels(&self) -> &Bilinear {
        &self.to_pixels
    }

    /// Number of classes K.
    pub fn classes(&self) -> usize {
        self.classes
    }

    fn settings(&self, config: &SegmentConfig) -> Value {
        let words = match config.protocol {
            Protocol::Fast => [
                "1x1 convolution on patches standardised over all training images",
                "cross-entropy on pixels, logits resized bilinearly",
                "AdamW, warm-up, linear decay to 0",
            ],
            Protocol::Paper => [
                "batch norm and a 1x1 convolution",
                "cross-entropy on pixels, logits resized bilinearly, divided by all pixels of a batch",
                "AdamW, all parameters decay, warm-up, linear decay to 0",
            ],
        };
        let mut settings = config.common().settings(&self.trials, self.chosen, words);
        settings["classes"] = json!(self.classes);
        settings["train_windows"] = json!(self.windows);
        settings["bootstrap_resamples"] = json!(config.bootstrap_resamples);
        settings
    }
}

/// The class of a pixel by its logits: the greatest, of equals the first.
pub fn class_of(logits: &[f32]) -> u8 {
    let mut best = 0;
    for (class, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = class;
        }
    }
    best as u8
}

/// Mean IoU of a head on the pixels of training windows.
fn mean_iou(
    head: &Head,
    train: &SegmentData,
    windows: &[usize],
    to_pixels: &Bilinear,
    classes: usize,
) -> f64 {
    let pixels = train.size.0 * train.size.1;
    let counts: Vec<PixelCounts> = windows
        .par_iter()
        .map(|&window| {
            let logits = head.logits(train.features.window(window));
            let (mut between, mut row) = (Vec::new(), vec![0.0; train.size.1 * classes]);
            let mut predicted = Vec::with_capacity(pixels);
            for y in 0..train.size.0 {
                to_pixels.row(&logits, classes, y, &mut between, &mut row);
                predicted.extend(row.chunks_exact(classes).map(class_of));
            }
            let labels = &train.labels[window * pixels..(window + 1) * pixels];
            PixelCounts::count(&predicted, labels, classes)
        })
        .collect();
    let mut all = PixelCounts::new(classes);
    counts.iter().for_each(|counts| all += counts);
    all.mean_iou()
}

#[cfg(test)]
mod tests;
