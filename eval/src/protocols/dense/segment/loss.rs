//! Cross-entropy of pixels: the patches' logits are resized to the window, as the reference's heads have it.

use rayon::prelude::*;

use super::super::head::Loss;
use super::super::upsample::Bilinear;
use crate::metrics::iou::VOID;

/// Mean cross-entropy over the pixels of a batch.
pub(super) struct PixelCrossEntropy<'a> {
    /// From the grid of patches to the pixels of a window.
    pub to_pixels: &'a Bilinear,
    /// `[n, rows, columns]` of every window.
    pub labels: &'a [u8],
    pub classes: usize,
    /// Whether the sum over the labelled pixels is divided by all pixels, as mmseg's heads have it, and not by the labelled.
    pub over_all: bool,
}

impl PixelCrossEntropy<'_> {
    fn labels_of(&self, window: usize) -> &[u8] {
        let (rows, columns) = self.to_pixels.output();
        &self.labels[window * rows * columns..(window + 1) * rows * columns]
    }

    /// Loss of one window, summed, in place of its gradient times `scale`.
    fn one(&self, labels: &[u8], logits: &mut Vec<f32>, scale: f32) -> f64 {
        let (classes, columns) = (self.classes, self.to_pixels.output().1);
        let mut gradient = vec![0.0; logits.len()];
        let (mut between, mut row) = (Vec::new(), vec![0.0; columns * classes]);
        let mut loss = 0.0;
        for (y, labels) in labels.chunks_exact(columns).enumerate() {
            if labels.iter().all(|&label| label == VOID) {
                continue;
            }
            self.to_pixels.row(logits, classes, y, &mut between, &mut row);
            for (z, &label) in row.chunks_exact_mut(classes).zip(labels) {
                if label == VOID {
                    z.fill(0.0);
                } else {
                    loss += f64::from(cross_entropy(z, usize::from(label), scale));
                }
            }
            self.to_pixels
                .add_transposed_row(&row, classes, y, &mut between, &mut gradient);
        }
        *logits = gradient;
        loss
    }
}

/// Cross-entropy of one pixel; its logits are replaced by the gradient times `scale`.
fn cross_entropy(z: &mut [f32], label: usize, scale: f32) -> f32 {
    let highest = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let own = z[label] - highest;
    let mut sum = 0.0;
    for z in z.iter_mut() {
        *z = (*z - highest).exp();
        sum += *z;
    }
    z.iter_mut().for_each(|z| *z *= scale / sum);
    z[label] -= scale;
    sum.ln() - own
}

impl Loss for PixelCrossEntropy<'_> {
    fn gradient(&self, windows: &[usize], logits: &mut [Vec<f32>], _iteration: usize) -> f64 {
        let counted = |&window: &usize| {
            self.labels_of(window)
                .iter()
                .filter(|&&label| self.over_all || label != VOID)
                .count()
        };
        let pixels: usize = windows.par_iter().map(counted).sum();
        let scale = 1.0 / pixels.max(1) as f64;
        let losses: Vec<f64> = windows
            .par_iter()
            .zip(logits)
            .map(|(&window, logits)| self.one(self.labels_of(window), logits, scale as f32))
            .collect();
        losses.iter().sum::<f64>() * scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::dense::PatchFeatures;
    use crate::protocols::dense::head::testing::gradient_error;

    #[test]
    fn the_gradient_is_that_of_differences() {
        // Two windows of 2 x 3 patches and 5 x 4 pixels: neither a multiple of the other.
        let data = (0..36)
            .map(|i| (i as f32 * 0.8).sin() + 0.1 * (i % 5) as f32)
            .collect();
        let features = PatchFeatures::new(data, (2, 3), 3).unwrap();
        let labels: Vec<u8> = (0..40)
            .map(|i| if i % 7 == 3 { VOID } else { (i * i % 4) as u8 })
            .collect();
        let loss = PixelCrossEntropy {
            to_pixels: &Bilinear::new((2, 3), (5, 4)),
            labels: &labels,
            classes: 4,
            over_all: false,
        };
        let error = gradient_error(&features, &[0, 1], 4, &loss, 0);
        assert!(error < 2e-3, "{error}");
    }

    #[test]
    fn pixels_left_out_count_for_nothing() {
        let loss = PixelCrossEntropy {
            to_pixels: &Bilinear::new((1, 2), (1, 2)),
            labels: &[1, VOID, VOID, VOID],
            classes: 2,
            over_all: false,
        };
        let mut logits = vec![vec![0.0, 3f32.ln(), 5.0, 7.0], vec![1.0; 4]];
        let value = loss.gradient(&[0, 1], &mut logits, 0);
        // One pixel, probability 3/4.
        assert!((value - (4.0f64 / 3.0).ln()).abs() < 1e-6);
        assert!((logits[0][0] - 0.25).abs() < 1e-6 && (logits[0][1] + 0.25).abs() < 1e-6);
        assert!(logits[0][2..].iter().chain(&logits[1]).all(|&g| g == 0.0));
        let mut nothing = vec![vec![1.0; 4]];
        assert_eq!(loss.gradient(&[1], &mut nothing, 0), 0.0);
        // One of four pixels.
        let over_all = PixelCrossEntropy {
            over_all: true,
            ..loss
        };
        let mut logits = vec![vec![0.0, 3f32.ln(), 5.0, 7.0], vec![1.0; 4]];
        assert!((over_all.gradient(&[0, 1], &mut logits, 0) - value / 4.0).abs() < 1e-6);
        assert!((logits[0][0] - 0.0625).abs() < 1e-6, "{logits:?}");
    }
}
