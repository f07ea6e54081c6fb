//! Visual words of crops, one crop after the other in the cache: their patches are never a tensor.

use candle_core::{Result, Tensor};
use macula_models::ops::vectors::{softmax_row, wide};
use macula_models::ops::with_f32;
use rayon::prelude::*;

use super::super::{DIRECTION_EPS, FLAT, MIN_CONTRAST, PATCH, SHARPNESS, WordTables};

pub(super) fn visual_words(pixels: &Tensor, tables: &WordTables, cell: usize) -> Result<Tensor> {
    let (count, channels, side, _) = pixels.dims4()?;
    let size = tables.words.dim(1)?;
    let cells = side / cell;
    // Of a patch in a cell, as a multiple of what each of all words has on average.
    let share = size as f32 / (cell * cell) as f32;
    let reader = PatchReader { channels, side };
    let inputs = [&pixels.contiguous()?, tables.mean, tables.axes, tables.words];
    let counts = with_f32("visual words", inputs, |[pixels, mean, axes, words]| {
        let mut counts = vec![0.; count * size * cells * cells];
        let of_crop = channels * side * side;
        let crops = counts
            .par_chunks_mut(size * cells * cells)
            .zip(pixels.par_chunks(of_crop));
        crops.for_each(|(counts, pixels)| {
            wide(|| {
                let mut told = Told::new(mean, axes, words, size);
                let mut sums = vec![0.; cells * cells * size]; // [c, c, K]
                for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
                    if reader.read(pixels, row, column, &mut told.patch) > FLAT {
                        let place = row / cell * cells + column / cell;
                        told.count(&mut sums[place * size..][..size]);
                    }
                }
                for (word, counts) in counts.chunks_mut(cells * cells).enumerate() {
                    for (place, count) in counts.iter_mut().enumerate() {
                        *count = (sums[place * size + word] * share).sqrt();
                    }
                }
            });
        });
        counts
    })?;
    Tensor::from_vec(counts, (count, size, cells, cells), pixels.device())
}

/// Reads patches of images of `channels` and `side`.
pub(in crate::train) struct PatchReader {
    pub(in crate::train) channels: usize,
    pub(in crate::train) side: usize,
}

impl PatchReader {
    /// The patch of 3 x 3 pixels around a place of `image` [C, s, s] into `patch` [9 C], each neighbour's channels together, without its mean and
    /// divided by its contrast. Beyond the edge there is what lies on it. Returns the variance of its values, between 0 and 1.
    #[inline(always)]
    pub(in crate::train) fn read(&self, image: &[f32], row: usize, column: usize, patch: &mut [f32]) -> f32 {
        let Self { channels, side } = *self;
        let around = |place: usize, step: usize| (place + step).saturating_sub(1).min(side - 1);
        for neighbour in 0..PATCH {
            let place = around(row, neighbour / 3) * side + around(column, neighbour % 3);
            for channel in 0..channels {
                patch[neighbour * channels + channel] = image[channel * side * side + place];
            }
        }
        let share = 1. / patch.len() as f32;
        let mean = patch.iter().sum::<f32>() * share;
        patch.iter_mut().for_each(|v| *v -= mean);
        let variance = patch.iter().map(|v| v * v).sum::<f32>() * share;
        let contrast = variance + MIN_CONTRAST * MIN_CONTRAST;
        let scale = contrast.sqrt().recip();
        patch.iter_mut().for_each(|v| *v *= scale);
        variance / contrast
    }
}

/// What one patch is told to be.
struct Told<'a> {
    mean: &'a [f32],
    axes: &'a [f32],
    words: &'a [f32],
    patch: Vec<f32>,
    white: Vec<f32>,
    cosines: Vec<f32>,
}

impl<'a> Told<'a> {
    fn new(mean: &'a [f32], axes: &'a [f32], words: &'a [f32], size: usize) -> Self {
        Self {
            patch: vec![0.; mean.len()],
            white: vec![0.; mean.len()],
            cosines: vec![0.; size],
            mean,
            axes,
            words,
        }
    }

    /// Adds the patch to the sums of the words that are like it.
    #[inline(always)]
    fn count(&mut self, sums: &mut [f32]) {
        self.white.fill(0.);
        let axes = self.axes.chunks_exact(self.white.len());
        for ((value, mean), axes) in self.patch.iter().zip(self.mean).zip(axes) {
            add(&mut self.white, axes, value - mean);
        }
        let length = self.white.iter().map(|v| v * v).sum::<f32>().sqrt();
        let scale = SHARPNESS / (length + DIRECTION_EPS);
        self.cosines.fill(0.);
        for (value, words) in self.white.iter().zip(self.words.chunks_exact(sums.len())) {
            add(&mut self.cosines, words, value * scale);
        }
        softmax_row(&mut self.cosines);
        add(sums, &self.cosines, 1.);
    }
}

#[inline(always)]
fn add(sums: &mut [f32], values: &[f32], factor: f32) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value * factor;
    }
}
