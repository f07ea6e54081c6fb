//! What can be said of a network where no labels are: meters of the features of a fixed sample of the images that it learns
//! from, several crops of each. They cost a forward pass of the sample and choose a checkpoint where k-NN cannot.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::seq::SliceRandom as _;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::features::Features;
use super::meters;
use crate::cluster::Ranks;
use crate::data::augment::{MultiCrop, MultiCropConfig};
use crate::data::{DecodeOptions, RowError, Source};
use crate::{Error, Result, rng};

/// Crops given to the network at a time.
const BATCH: usize = 64;
/// With fewer images than this the meters say nothing.
const MIN_IMAGES: usize = 16;

/// Settings of the meters that need no labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelFreeConfig {
    /// The most images that are used, drawn at random from those that the run learns from; 512 by default, at least 16.
    #[serde(default = "default_images")]
    pub images: usize,
    /// Global crops of each, as the run makes them; 8 by default, at least 2.
    #[serde(default = "default_views")]
    pub views: usize,
    /// Steps from one reading to the next, at least 1.
    pub every: u64,
}

fn default_images() -> usize {
    512
}

fn default_views() -> usize {
    8
}

impl LabelFreeConfig {
    /// A reading every `every` steps, the rest by default.
    pub fn new(every: u64) -> Self {
        Self {
            images: default_images(),
            views: default_views(),
            every,
        }
    }

    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (name, min, found) in [
            ("images", MIN_IMAGES as u64, self.images as u64),
            ("views", 2, self.views as u64),
            ("every", 1, self.every),
        ] {
            if found < min {
                let reason = format!("expected at least {min}, found {found}");
                return Err(Error::input(format!("monitor.label_free.{name}"), reason));
            }
        }
        Ok(())
    }
}

/// What one reading gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelFreeResult {
    /// [`meters::feature_std`] of one crop an image.
    pub feature_std: f64,
    /// [`meters::effective_rank`] of one crop an image.
    pub effective_rank: f64,
    /// The smaller of the images and the width.
    pub possible_rank: usize,
    /// [`meters::lidar`] of all crops.
    pub lidar: f64,
    /// [`meters::spectrum_decay`] of one crop an image.
    pub spectrum_decay: f64,
}

/// A sample of images, ready to be read again and again: the same crops at every reading.
pub struct LabelFree {
    config: LabelFreeConfig,
    source: Arc<dyn Source>,
    crops: MultiCrop,
    decode: DecodeOptions,
    rows: Vec<u64>,
    seed: u64,
}

impl LabelFree {
    /// Draws the sample of `source`, of whose images `crops` makes crops.
    ///
    /// # Errors
    /// A setting out of range, fewer than 16 images.
    pub fn new(
        source: Arc<dyn Source>,
        config: LabelFreeConfig,
        crops: MultiCropConfig,
        decode: DecodeOptions,
        seed: u64,
    ) -> Result<Self> {
        config.validate()?;
        let mut rows: Vec<u64> = (0..source.len()).collect();
        let mut rng = rng::stream(seed, "label-free", 0);
        let (drawn, _) = rows.partial_shuffle(&mut rng, config.images);
        // Files are read in the order they lie in.
        drawn.sort_unstable();
        let rows = drawn.to_vec();
        enough(rows.len())?;
        Ok(Self {
            config,
            source,
            crops: MultiCrop::new(crops)?,
            decode,
            rows,
            seed,
        })
    }

    /// Whether a reading is due after `step`.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.config.every)
    }

    /// Reads the meters. `features_of` gives `[b, D]` of any float type on any device for crops `[b, C, S, S]`, f32 in the
    /// computer's memory. An image that cannot be read is left out, with a warning. Each of `ranks` computes the features of some of the
    /// images, and all get the same result.
    ///
    /// # Errors
    /// What `features_of` says, features of another shape, or fewer than 16 images that can be read; ranks that cannot reach each other.
    pub fn evaluate(
        &self,
        ranks: &dyn Ranks,
        mut features_of: impl FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<LabelFreeResult> {
        let views = self.config.views;
        let config = self.crops.config();
        let (channels, side) = (config.channels(), config.global.size as usize);
        let mut features = Features::default();
        let mut failed: Vec<RowError> = Vec::new();
        let mut places = Vec::new();
        let size = (BATCH / views).max(1);
        let batches = self.rows.chunks(size).enumerate();
        for (batch, rows) in batches.skip(ranks.rank()).step_by(ranks.size()) {
            let (pixels, found, errors) = self.read(rows);
            failed.extend(errors);
            if !found.is_empty() {
                let count = found.len() * views;
                let input = Tensor::from_vec(pixels, (count, channels, side, side), &Device::Cpu)?;
                features.append(&features_of(&input)?, count)?;
            }
            places.extend(found.iter().map(|place| batch * size + place));
        }
        if let Some(first) = failed.first() {
            let count = failed.len();
            tracing::warn!(
                "{count} images cannot be read and are left out of the meters without labels, first {first}"
            );
        }
        let (Features { data, d }, places) = features.of_ranks(ranks, places)?;
        let images = places.len();
        enough(images)?;
        let first: Vec<f32> = data
            .chunks_exact(views * d)
            .flat_map(|image| &image[..d])
            .copied()
            .collect(); // [images, d]
        Ok(LabelFreeResult {
            feature_std: meters::feature_std(&first, images, d),
            effective_rank: meters::effective_rank(&first, images, d),
            possible_rank: images.min(d),
            lidar: meters::lidar(&data, images, views, d),
            spectrum_decay: meters::spectrum_decay(&first, images, d),
        })
    }

    /// Crops of those of `rows` that can be read, `[n, views, C, S, S]`, their places, and what is wrong with the others.
    fn read(&self, rows: &[u64]) -> (Vec<f32>, Vec<usize>, Vec<RowError>) {
        let read: Vec<_> = rows.par_iter().map(|&row| self.views_of(row)).collect();
        let (mut pixels, mut places, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (place, image) in read.into_iter().enumerate() {
            match image {
                Ok(image) => {
                    pixels.extend(image);
                    places.push(place);
                }
                Err(error) => errors.push(error),
            }
        }
        (pixels, places, errors)
    }

    /// `[views, C, S, S]`.
    fn views_of(&self, row: u64) -> std::result::Result<Vec<f32>, RowError> {
        let image = self.source.load_image(row, &self.decode)?;
        let mut rng = rng::stream(self.seed, "label-free crops", row);
        let values = self.crops.config().global_values();
        let mut out = vec![0.0; self.config.views * values];
        for crop in out.chunks_exact_mut(values) {
            let written = self.crops.global(0, &image, &mut rng, crop);
            written.map_err(|error| RowError {
                path: self.source.record(row).path,
                reason: error.to_string(),
            })?;
        }
        Ok(out)
    }
}

fn enough(images: usize) -> Result<()> {
    if images >= MIN_IMAGES {
        return Ok(());
    }
    let reason = format!("expected at least {MIN_IMAGES} images that can be read, found {images}");
    Err(Error::input("monitor.label_free", reason))
}

#[cfg(test)]
#[path = "label_free_tests.rs"]
mod tests;
