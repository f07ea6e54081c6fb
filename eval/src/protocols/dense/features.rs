//! Patch features of many windows in memory.

use std::ops::Range;

use rayon::prelude::*;

use crate::{Error, Result};

/// What keeps a channel that never changes from being divided by zero (torch's batch norm).
const EPSILON: f64 = 1e-5;
/// Windows whose sums are taken together. Fixed, so that the number of threads changes no result.
const BLOCK: usize = 16;

/// Features of `n` windows, each a grid of `rows x columns` patches with `dim` channels: `[n, rows * columns, dim]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchFeatures {
    data: Vec<f32>,
    grid: (usize, usize),
    dim: usize,
}

impl PatchFeatures {
    /// Wraps `data`, `[n, rows * columns, dim]` for a grid of `(rows, columns)`.
    ///
    /// # Errors
    /// A length that is no whole number of windows, a side or width of 0.
    pub fn new(data: Vec<f32>, grid: (usize, usize), dim: usize) -> Result<Self> {
        let window = grid.0 * grid.1 * dim;
        if window == 0 || !data.len().is_multiple_of(window) {
            return Err(Error::data(
                "patch features",
                format!(
                    "expected whole windows of {} x {} patches with {dim} channels, found {} values",
                    grid.0,
                    grid.1,
                    data.len()
                ),
            ));
        }
        Ok(Self { data, grid, dim })
    }

    /// Number of windows n.
    pub fn len(&self) -> usize {
        self.data.len() / self.window_len()
    }

    /// Whether there is no window.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Rows and columns of the grid.
    pub fn grid(&self) -> (usize, usize) {
        self.grid
    }

    /// Channels of a patch.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Features of one window, `[rows * columns, dim]`. Panics past the end, like a slice.
    pub fn window(&self, index: usize) -> &[f32] {
        let len = self.window_len();
        &self.data[index * len..(index + 1) * len]
    }

    fn window_len(&self) -> usize {
        self.grid.0 * self.grid.1 * self.dim
    }

    /// Refuses NaN and infinity.
    ///
    /// # Errors
    /// Names the first window with such a value.
    pub fn check_finite(&self) -> Result<()> {
        let bad = |&window: &usize| self.window(window).iter().any(|value| !value.is_finite());
        match (0..self.len()).find(bad) {
            None => Ok(()),
            Some(window) => Err(Error::data(
                "patch features",
                format!("expected finite values, found NaN or infinity in window {window}"),
            )),
        }
    }
}

/// Mean and variance of each channel over some windows' patches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChannelMoments {
    pub mean: Vec<f64>,
    /// Divided by the number of patches.
    pub variance: Vec<f64>,
    /// Patches.
    pub n: usize,
}

impl ChannelMoments {
    /// Over the patches of `windows`.
    pub(crate) fn from_features(features: &PatchFeatures, windows: &[usize]) -> Self {
        let dim = features.dim;
        let blocks: Vec<Vec<f64>> = windows
            .par_chunks(BLOCK)
            .map(|block| {
                let mut sums = vec![0.0f64; 2 * dim];
                for &window in block {
                    for patch in features.window(window).chunks_exact(dim) {
                        let (first, second) = sums.split_at_mut(dim);
                        for ((first, second), &value) in first.iter_mut().zip(second).zip(patch) {
                            *first += f64::from(value);
                            *second += f64::from(value) * f64::from(value);
                        }
                    }
                }
                sums
            })
            .collect();
        let n = windows.len() * features.grid.0 * features.grid.1;
        let total = |place: usize| blocks.iter().map(|sums| sums[place]).sum::<f64>() / n as f64;
        let channels: Range<usize> = 0..dim;
        let (mean, variance) = channels
            .map(|channel| {
                let mean = total(channel);
                (mean, (total(dim + channel) - mean * mean).max(0.0))
            })
            .unzip();
        Self { mean, variance, n }
    }
}

/// What is taken off each channel, and what it is then multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standard {
    mean: Vec<f32>,
    inverse: Vec<f32>,
}

impl Standard {
    /// Channels with mean 0 and deviation 1 over the patches of `windows`.
    pub(crate) fn from_features(features: &PatchFeatures, windows: &[usize]) -> Self {
        let moments = ChannelMoments::from_features(features, windows);
        Self::from_moments(&moments.mean, &moments.variance)
    }

    /// Channels less `mean` and over the root of `variance`.
    pub(crate) fn from_moments(mean: &[f64], variance: &[f64]) -> Self {
        Self {
            mean: mean.iter().map(|&mean| mean as f32).collect(),
            inverse: variance
                .iter()
                .map(|variance| (1.0 / (variance + EPSILON).sqrt()) as f32)
                .collect(),
        }
    }

    /// `dim` channels as they are.
    pub(crate) fn identity(dim: usize) -> Self {
        Self {
            mean: vec![0.0; dim],
            inverse: vec![1.0; dim],
        }
    }

    /// Writes `patches` `[n, dim]`, each channel less its mean and over its deviation, into `out`.
    pub(crate) fn apply(&self, patches: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.reserve(patches.len());
        for patch in patches.chunks_exact(self.mean.len()) {
            let channels = patch.iter().zip(&self.mean).zip(&self.inverse);
            out.extend(channels.map(|((value, mean), inverse)| (value - mean) * inverse));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_come_out_with_mean_0_and_deviation_1() {
        // Two windows of two patches: the first channel is 1, 3, 5, 7, the second is constant.
        let data = vec![1.0, 4.0, 3.0, 4.0, 5.0, 4.0, 7.0, 4.0, 1e6, 1e6, 1e6, 1e6];
        let features = PatchFeatures::new(data, (1, 2), 2).unwrap();
        assert_eq!(
            (features.len(), features.window(1)),
            (3, [5.0, 4.0, 7.0, 4.0].as_slice())
        );
        let standard = Standard::from_features(&features, &[0, 1]);
        let mut out = Vec::new();
        standard.apply(features.window(0), &mut out);
        let deviation = (5.0f32 + 1e-5).sqrt(); // of 1, 3, 5, 7
        assert!((out[0] + 3.0 / deviation).abs() < 1e-6 && (out[2] + 1.0 / deviation).abs() < 1e-6);
        assert_eq!((out[1], out[3]), (0.0, 0.0));
    }

    #[test]
    fn what_is_no_window_is_refused() {
        let error = PatchFeatures::new(vec![0.0; 7], (1, 2), 2)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("1 x 2 patches with 2 channels, found 7"),
            "{error}"
        );
        assert!(PatchFeatures::new(Vec::new(), (0, 2), 2).is_err());
        let features = PatchFeatures::new(vec![0.0, 1.0, f32::NAN, 0.0], (1, 2), 1).unwrap();
        let error = features.check_finite().unwrap_err().to_string();
        assert!(error.ends_with("in window 1"), "{error}");
    }
}
