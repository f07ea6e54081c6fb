//! Depth as an expectation over bins (AdaBins, as dinov2's linear depth heads use it): logits are resized four times finer,
//! `relu(x) + 0.1` divided by its sum over the bins is a distribution, and its mean over the bins' depths is the depth.

use super::super::upsample::Bilinear;

/// What keeps every bin's probability above 0.
const FLOOR: f32 = 0.1;
/// How much finer than the patches the bins are read, where the window has that many pixels.
const FINER: usize = 4;

/// Bins and the maps that they are read on.
#[derive(Debug, Clone)]
pub(super) struct Bins {
    depths: Vec<f32>,
    to_fine: Bilinear,
}

impl Bins {
    /// `count` bins, evenly from `range.0` to `range.1`, both included, for windows of `size` pixels on `grid` patches.
    pub(super) fn new(count: usize, range: (f32, f32), grid: (usize, usize), size: (usize, usize)) -> Self {
        let step = (f64::from(range.1) - f64::from(range.0)) / (count - 1) as f64;
        let fine = |patches: usize, pixels: usize| patches * (pixels / patches).clamp(1, FINER);
        Self {
            depths: (0..count)
                .map(|bin| (f64::from(range.0) + step * bin as f64) as f32)
                .collect(),
            to_fine: Bilinear::new(grid, (fine(grid.0, size.0), fine(grid.1, size.1))),
        }
    }

    /// Number of bins.
    pub(super) fn count(&self) -> usize {
        self.depths.len()
    }

    /// Rows and columns of the map of depths.
    pub(super) fn fine(&self) -> (usize, usize) {
        self.to_fine.output()
    }

    /// The map of depths from patches' logits `[rows * columns, bins]`.
    pub(super) fn depths(&self, logits: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.fine().0 * self.fine().1);
        self.rows(logits, |_, row| {
            out.extend(row.chunks_exact(self.count()).map(|x| self.expectation(x).0))
        });
        out
    }

    /// The gradient of the logits from that of the map of depths.
    pub(super) fn gradient(&self, logits: &[f32], of_depths: &[f32]) -> Vec<f32> {
        let mut gradient = vec![0.0; logits.len()];
        let mut between = Vec::new();
        let columns = self.fine().1;
        self.rows(logits, |y, row| {
            for (x, &of_depth) in row
                .chunks_exact_mut(self.count())
                .zip(&of_depths[y * columns..(y + 1) * columns])
            {
                let (depth, total) = self.expectation(x);
                // d depth / d x_k = (b_k - depth) / total where x_k is above 0
                for (x, bin) in x.iter_mut().zip(&self.depths) {
                    *x = if *x > 0.0 {
                        of_depth * (bin - depth) / total
                    } else {
                        0.0
                    };
                }
            }
            self.to_fine
                .add_transposed_row(row, self.count(), y, &mut between, &mut gradient);
        });
        gradient
    }

    /// Goes through the rows `[columns, bins]` of the resized logits.
    fn rows(&self, logits: &[f32], mut each: impl FnMut(usize, &mut [f32])) {
        let (mut between, mut row) = (Vec::new(), vec![0.0; self.fine().1 * self.count()]);
        for y in 0..self.fine().0 {
            self.to_fine.row(logits, self.count(), y, &mut between, &mut row);
            each(y, &mut row);
        }
    }

    /// Mean depth of one place, and the sum that its distribution is divided by.
    fn expectation(&self, logits: &[f32]) -> (f32, f32) {
        let (mut total, mut sum) = (0.0, 0.0);
        for (x, bin) in logits.iter().zip(&self.depths) {
            let weight = x.max(0.0) + FLOOR;
            total += weight;
            sum += weight * bin;
        }
        (sum / total, total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        // Bins at 1, 2, 3, 4, 5; one patch, one pixel.
        let bins = Bins::new(5, (1.0, 5.0), (1, 1), (1, 1));
        assert_eq!(bins.depths, [1.0, 2.0, 3.0, 4.0, 5.0]);
        // Without any evidence the middle of the range.
        assert!((bins.depths(&[-1.0, 0.0, -3.0, 0.0, -9.0])[0] - 3.0).abs() < 1e-6);
        // weights 0.1 0.1 0.1 0.1 1.1: (0.1 * 10 + 5.5) / 1.5
        assert!((bins.depths(&[-1.0, 0.0, 0.0, 0.0, 1.0])[0] - 6.5 / 1.5).abs() < 1e-6);
    }

    #[test]
    fn bins_are_read_four_times_finer_but_never_finer_than_pixels() {
        let fine = |size| Bins::new(2, (0.0, 1.0), (2, 3), size).fine();
        assert_eq!(fine((16, 24)), (8, 12));
        assert_eq!(fine((4, 6)), (4, 6));
        assert_eq!(fine((2, 3)), (2, 3));
    }

    /// Resizing comes before the distribution, not after it.
    #[test]
    fn logits_are_resized_before_they_become_a_distribution() {
        let bins = Bins::new(2, (0.0, 1.0), (1, 2), (1, 4));
        assert_eq!(bins.fine(), (1, 4));
        let found = bins.depths(&[0.0, 0.0, -8.0, 8.0]);
        // Columns at 0, 0.25, 0.75, 1 between the two patches.
        let expected = [0.5, 2.1 / 2.2, 6.1 / 6.2, 8.1 / 8.2];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
