//! The scale-invariant loss of logarithms (Eigen et al. 2014) as dinov2's depth heads train by it (`SigLoss`):
//! `sqrt(var(g) + 0.15 mean(g)^2)` with `g = ln(depth + 1e-3) - ln(truth + 1e-3)` over the valid pixels of a batch, the
//! variance with n - 1. In the first iterations only the second term counts. The reference adds half a `GradientLoss`, which
//! as published takes differences between every third image of a batch instead of every third pixel; of the two images of a
//! process that its recipe has, it is 0. It is left out here.

use rayon::prelude::*;

use super::super::head::Loss;
use super::super::upsample::Bilinear;
use super::bins::Bins;
use crate::metrics::depth::valid;

const EPSILON: f64 = 1e-3;
const MEAN_WEIGHT: f64 = 0.15;
/// Below this the loss has no direction.
const SMALLEST: f64 = 1e-12;

/// The loss on the valid pixels of a batch.
pub(super) struct SigLoss<'a> {
    pub bins: &'a Bins,
    /// From the map of depths to the pixels of a window.
    pub to_pixels: &'a Bilinear,
    /// True depth of every window's pixels, `[n, rows, columns]`.
    pub depths: &'a [f32],
    /// Depths that count, above the first and at most the second.
    pub range: (f32, f32),
    /// Windows whose pixels share mean and variance, one after the other in a batch; the loss is the mean over such groups.
    pub together: usize,
    /// Iterations in which only the mean counts.
    pub mean_only: usize,
}

/// Number, mean and sum of squared deviations of the differences of logarithms.
struct Moments {
    n: usize,
    mean: f64,
    squares: f64,
}

impl SigLoss<'_> {
    fn truth(&self, window: usize) -> &[f32] {
        let (rows, columns) = self.to_pixels.output();
        &self.depths[window * rows * columns..(window + 1) * rows * columns]
    }

    /// `g` of each valid pixel of a window.
    fn differences<'b>(&'b self, window: usize, predicted: &'b [f32]) -> impl Iterator<Item = f64> + 'b {
        let pairs = predicted.iter().zip(self.truth(window));
        pairs
            .filter(|(_, truth)| valid(**truth, self.range))
            .map(|(predicted, truth)| difference(*predicted, *truth))
    }

    fn moments(&self, windows: &[usize], predicted: &[Vec<f32>]) -> Moments {
        let sums: Vec<(usize, f64)> = windows
            .par_iter()
            .zip(predicted)
            .map(|(&window, predicted)| {
                self.differences(window, predicted)
                    .fold((0, 0.0), |(n, sum), g| (n + 1, sum + g))
            })
            .collect();
        let n: usize = sums.iter().map(|(n, _)| n).sum();
        let mean = sums.iter().map(|(_, sum)| sum).sum::<f64>() / n.max(1) as f64;
        let squares: Vec<f64> = windows
            .par_iter()
            .zip(predicted)
            .map(|(&window, predicted)| {
                self.differences(window, predicted)
                    .map(|g| (g - mean) * (g - mean))
                    .sum()
            })
            .collect();
        Moments {
            n,
            mean,
            squares: squares.iter().sum(),
        }
    }
}

fn difference(predicted: f32, truth: f32) -> f64 {
    (f64::from(predicted) + EPSILON).ln() - (f64::from(truth) + EPSILON).ln()
}

impl Loss for SigLoss<'_> {
    fn gradient(&self, windows: &[usize], logits: &mut [Vec<f32>], iteration: usize) -> f64 {
        let together = self.together.min(windows.len()).max(1);
        let share = 1.0 / windows.len().div_ceil(together) as f64;
        let with_variance = if iteration < self.mean_only { 0.0 } else { 1.0 };
        let values: Vec<f64> = windows
            .par_chunks(together)
            .zip(logits.par_chunks_mut(together))
            .map(|(windows, logits)| self.of_group(windows, logits, with_variance, share))
            .collect();
        values.iter().sum::<f64>() * share
    }
}

impl SigLoss<'_> {
    /// The loss of windows taken together; their logits are replaced by its gradient times `share`.
    fn of_group(&self, windows: &[usize], logits: &mut [Vec<f32>], with_variance: f64, share: f64) -> f64 {
        let predicted: Vec<Vec<f32>> = logits
            .par_iter()
            .map(|logits| self.to_pixels.resize(&self.bins.depths(logits), 1))
            .collect();
        let moments = self.moments(windows, &predicted);
        let (n, freedom) = (moments.n as f64, moments.n.saturating_sub(1).max(1) as f64);
        let square = with_variance * moments.squares / freedom + MEAN_WEIGHT * moments.mean * moments.mean;
        if square < SMALLEST {
            logits.iter_mut().for_each(|logits| logits.fill(0.0));
            return square.sqrt();
        }
        let value = square.sqrt();
        let scale = share / value;
        let of_difference =
            |g: f64| (with_variance * (g - moments.mean) / freedom + MEAN_WEIGHT * moments.mean / n) * scale;
        windows
            .par_iter()
            .zip(&predicted)
            .zip(logits)
            .for_each(|((&window, predicted), logits)| {
                let pairs = predicted.iter().zip(self.truth(window));
                let of_pixels: Vec<f32> = pairs
                    .map(|(&predicted, &truth)| match valid(truth, self.range) {
                        true => {
                            let slope = 1.0 / (f64::from(predicted) + EPSILON);
                            (of_difference(difference(predicted, truth)) * slope) as f32
                        }
                        false => 0.0,
                    })
                    .collect();
                let of_depths = self.to_pixels.resize_transposed(&of_pixels, 1);
                *logits = self.bins.gradient(logits, &of_depths);
            });
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::dense::PatchFeatures;
    use crate::protocols::dense::head::testing::gradient_error;

    #[test]
    fn values_by_hand() {
        let (bins, one) = (
            Bins::new(2, (1.0, 3.0), (1, 2), (1, 2)),
            Bilinear::new((1, 2), (1, 2)),
        );
        let loss = SigLoss {
            bins: &bins,
            to_pixels: &one,
            depths: &[4.0, 1.0, 0.0, 8.0],
            range: (0.0, 5.0),
            together: usize::MAX,
            mean_only: 1,
        };
        // Both patches of both windows say 2; two pixels are valid.
        let logits = vec![vec![0.0; 4]; 2];
        let (first, second) = ((2.001f64 / 4.001).ln(), (2.001f64 / 1.001).ln());
        let mean = (first + second) / 2.0;
        let variance = (first - mean).powi(2) + (second - mean).powi(2); // over n - 1 = 1
        let expected = (variance + 0.15 * mean * mean).sqrt();
        assert!((loss.gradient(&[0, 1], &mut logits.clone(), 1) - expected).abs() < 1e-7);
        let warm = loss.gradient(&[0, 1], &mut logits.clone(), 0);
        assert!((warm - 0.15f64.sqrt() * mean.abs()).abs() < 1e-7);
        // The last window has no valid pixel.
        let mut nothing = vec![vec![1.0; 4]];
        assert_eq!(loss.gradient(&[1], &mut nothing, 1), 0.0);
        assert_eq!(nothing[0], [0.0; 4]);
        // Each window by itself: the mean of the first's loss and 0.
        let alone = SigLoss { together: 1, ..loss };
        assert!((alone.gradient(&[0, 1], &mut logits.clone(), 1) - expected / 2.0).abs() < 1e-7);
    }

    /// `of` at `count` places, `step` apart.
    fn made(count: usize, step: f32, of: impl Fn(f32) -> f32) -> Vec<f32> {
        (0..count).map(|i| of(i as f32 * step)).collect()
    }

    /// The loss from its formula in f64. A resize is linear: what it makes of each single pixel tells what it makes of all.
    struct Oracle {
        /// Weight of each of the coarse places for each of the fine ones, and of these for each pixel.
        to_fine: Vec<Vec<f64>>,
        to_pixels: Vec<Vec<f64>>,
        depths: Vec<f64>,
    }

    fn weights(resize: &Bilinear) -> Vec<Vec<f64>> {
        let (input, output) = (resize.input(), resize.output());
        let columns: Vec<Vec<f32>> = (0..input.0 * input.1)
            .map(|place| {
                let mut one = vec![0.0; input.0 * input.1];
                one[place] = 1.0;
                resize.resize(&one, 1)
            })
            .collect();
        (0..output.0 * output.1)
            .map(|row| columns.iter().map(|column| f64::from(column[row])).collect())
            .collect()
    }

    impl Oracle {
        /// The mean over groups of `together` windows, of the mean alone or with the variance.
        fn loss(&self, windows: &[Vec<f64>], truth: &[f32], together: usize, mean_only: bool) -> f64 {
            let groups = windows
                .chunks(together)
                .zip(truth.chunks(together * self.to_pixels.len()));
            let losses: Vec<f64> = groups
                .map(|(windows, truth)| self.of_group(windows, truth, mean_only))
                .collect();
            losses.iter().sum::<f64>() / losses.len() as f64
        }

        fn of_group(&self, windows: &[Vec<f64>], truth: &[f32], mean_only: bool) -> f64 {
            let (pixels, bins) = (self.to_pixels.len(), &self.depths);
            let mut differences = Vec::new();
            for (window, logits) in windows.iter().enumerate() {
                let fine = self.to_fine.iter().map(|weights| {
                    let logit = |bin: usize| -> f64 {
                        let places = weights.iter().enumerate();
                        places
                            .map(|(place, weight)| weight * logits[place * bins.len() + bin])
                            .sum()
                    };
                    let (mut sum, mut total) = (0.0, 0.0);
                    for (bin, depth) in bins.iter().enumerate() {
                        let weight = logit(bin).max(0.0) + 0.1;
                        sum += weight * depth;
                        total += weight;
                    }
                    sum / total
                });
                let fine: Vec<f64> = fine.collect();
                for (weights, &truth) in self.to_pixels.iter().zip(&truth[window * pixels..]) {
                    if !(0.1..=4.0).contains(&truth) {
                        continue;
                    }
                    let depth: f64 = weights
                        .iter()
                        .zip(&fine)
                        .map(|(weight, depth)| weight * depth)
                        .sum();
                    differences.push((depth + 1e-3).ln() - (f64::from(truth) + 1e-3).ln());
                }
            }
            let n = differences.len() as f64;
            let mean = differences.iter().sum::<f64>() / n;
            let variance = differences.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / (n - 1.0);
            (if mean_only { 0.0 } else { variance } + 0.15 * mean * mean).sqrt()
        }
    }

    /// Value and gradient of the logits of a batch against the formula in f64 and its differences.
    #[test]
    fn values_and_gradients_are_those_of_double_precision() {
        let (grid, size, count) = ((2, 3), (5, 6), 6);
        let bins = Bins::new(count, (0.5, 4.0), grid, size);
        let to_pixels = Bilinear::new(bins.fine(), size);
        let truth = made(60, 0.4, |x| if x.fract() > 0.75 { 0.0 } else { 1.5 + x.sin() });
        let oracle = Oracle {
            to_fine: weights(&Bilinear::new(grid, bins.fine())),
            to_pixels: weights(&to_pixels),
            depths: (0..count)
                .map(|bin| 0.5 + 3.5 * bin as f64 / (count - 1) as f64)
                .collect(),
        };
        // Of both signs, so that the distribution cuts some off.
        let logits = [
            made(36, 0.8, |x| (x + 0.3).sin()),
            made(36, 1.3, |x| 2.0 * x.cos() + 0.2),
        ];
        let doubles: Vec<Vec<f64>> = logits
            .iter()
            .map(|window| window.iter().map(|&x| f64::from(x)).collect())
            .collect();
        for (together, iteration) in [(2, 0), (2, 1), (1, 1)] {
            let loss = SigLoss {
                bins: &bins,
                to_pixels: &to_pixels,
                depths: &truth,
                range: (0.1, 4.0),
                together,
                mean_only: 1,
            };
            let value = |at: &[Vec<f64>]| oracle.loss(at, &truth, together, iteration == 0);
            let mut found = logits.clone();
            let of_found = loss.gradient(&[0, 1], &mut found, iteration);
            let expected = value(&doubles);
            assert!(
                (of_found - expected).abs() < 1e-6 * expected,
                "{together}, {iteration}: {of_found}, expected {expected}"
            );
            let mut differences = Vec::new();
            for (window, place) in (0..2).flat_map(|window| (0..36).map(move |place| (window, place))) {
                let moved = |by: f64| {
                    let mut moved = doubles.clone();
                    moved[window][place] += by;
                    value(&moved)
                };
                differences.push((moved(1e-6) - moved(-1e-6)) / 2e-6);
            }
            let largest = differences.iter().fold(0.0f64, |max, g| max.max(g.abs()));
            assert!(largest > 1e-3, "{together}, {iteration}: {largest}");
            for (place, (found, expected)) in found.iter().flatten().zip(&differences).enumerate() {
                assert!(
                    (f64::from(*found) - expected).abs() < 1e-5 * largest,
                    "{together}, {iteration}, {place}: {found}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn the_gradient_is_that_of_differences() {
        let data = (0..36)
            .map(|i| (i as f32 * 0.8).sin() + 0.1 * (i % 5) as f32)
            .collect();
        let features = PatchFeatures::new(data, (2, 3), 3).unwrap();
        let depths: Vec<f32> = (0..60)
            .map(|i| {
                if i % 7 == 3 {
                    0.0
                } else {
                    1.5 + (i as f32 * 0.4).sin()
                }
            })
            .collect();
        let bins = Bins::new(6, (0.5, 4.0), (2, 3), (5, 6));
        for (together, iteration) in [(usize::MAX, 0), (usize::MAX, 1), (1, 1)] {
            let loss = SigLoss {
                bins: &bins,
                to_pixels: &Bilinear::new(bins.fine(), (5, 6)),
                depths: &depths,
                range: (0.1, 4.0),
                together,
                mean_only: 1,
            };
            let error = gradient_error(&features, &[0, 1], 6, &loss, iteration);
            // relu has corners that a difference may straddle
            assert!(error < 2e-2, "{together}, {iteration}: {error}");
        }
    }
}
