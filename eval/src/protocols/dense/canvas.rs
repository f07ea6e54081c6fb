//! Where the windows of one image are laid on top of each other: each window's map, brought to the window's size, is added
//! at its place; where windows overlap the mean counts (mmseg's `slide_inference`).

use rayon::prelude::*;

use super::upsample::Bilinear;

/// A map of an image, `[rows, columns, channels]`, in the making.
#[derive(Debug, Clone)]
pub struct Canvas {
    size: (usize, usize),
    channels: usize,
    sums: Vec<f32>,
    /// Windows that cover each pixel.
    counts: Vec<u32>,
}

impl Canvas {
    /// An empty map of `size` (rows, columns).
    pub fn new(size: (usize, usize), channels: usize) -> Self {
        Self {
            size,
            channels,
            sums: vec![0.0; size.0 * size.1 * channels],
            counts: vec![0; size.0 * size.1],
        }
    }

    /// Adds a window: its `map` `[h, w, channels]`, which `to_window` brings to the window's size, with its first row and
    /// column at `top` and `left`. What lies outside the image is left out.
    pub fn add(&mut self, map: &[f32], to_window: &Bilinear, top: isize, left: isize) {
        let (height, width) = to_window.output();
        let (channels, columns) = (self.channels, self.size.1);
        // Columns of the window that lie on the image, and the first one's place there.
        let first = (-left).max(0) as usize;
        let place = left.max(0) as usize;
        let count = width.saturating_sub(first).min(columns.saturating_sub(place));
        let scratch = || (Vec::new(), vec![0.0; width * channels]);
        let rows = self
            .sums
            .par_chunks_mut(columns * channels)
            .zip(self.counts.par_chunks_mut(columns));
        rows.enumerate()
            .for_each_init(scratch, |(between, row), (y, (sums, counts))| {
                let Some(y) = y.checked_add_signed(-top).filter(|&y| y < height) else {
                    return;
                };
                to_window.row(map, channels, y, between, row);
                let sums = &mut sums[place * channels..(place + count) * channels];
                let values = &row[first * channels..(first + count) * channels];
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                counts[place..place + count]
                    .iter_mut()
                    .for_each(|count| *count += 1);
            });
    }

    /// The mean map, resized to `size` (rows, columns): `[rows, columns, channels]` goes row by row through `each`, which
    /// makes one value of a pixel's channels. A pixel that no window covers counts as 0.
    pub fn finish<T: Send + Default + Clone>(
        mut self,
        size: (usize, usize),
        each: impl Fn(&[f32]) -> T + Sync,
    ) -> Vec<T> {
        let channels = self.channels;
        self.sums
            .par_chunks_mut(channels)
            .zip(&self.counts)
            .filter(|(_, count)| **count > 1)
            .for_each(|(sums, &count)| sums.iter_mut().for_each(|sum| *sum /= count as f32));
        let resize = Bilinear::new(self.size, size);
        let mut out = vec![T::default(); size.0 * size.1];
        let scratch = || (Vec::new(), vec![0.0; size.1 * channels]);
        out.par_chunks_mut(size.1)
            .enumerate()
            .for_each_init(scratch, |(between, row), (y, out)| {
                resize.row(&self.sums, channels, y, between, row);
                for (out, values) in out.iter_mut().zip(row.chunks_exact(channels)) {
                    *out = each(values);
                }
            });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(values: &[f32]) -> f32 {
        values[0]
    }

    #[test]
    fn overlapping_windows_are_averaged() {
        let mut canvas = Canvas::new((2, 4), 1);
        let same = Bilinear::new((2, 3), (2, 3));
        canvas.add(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &same, 0, 0);
        canvas.add(&[10.0, 20.0, 30.0, 40.0, 50.0, 60.0], &same, 0, 1);
        assert_eq!(
            canvas.finish((2, 4), first),
            [1.0, 6.0, 11.5, 30.0, 4.0, 22.5, 28.0, 60.0]
        );
    }

    #[test]
    fn padding_is_cut_off_and_the_rest_resized() {
        let mut canvas = Canvas::new((1, 2), 1);
        let same = Bilinear::new((3, 4), (3, 4));
        let map: Vec<f32> = (0..12).map(|i| i as f32).collect();
        canvas.add(&map, &same, -1, -1);
        assert_eq!(canvas.clone().finish((1, 2), first), [5.0, 6.0]);
        assert_eq!(
            canvas.finish((2, 4), first),
            [5.0, 5.25, 5.75, 6.0, 5.0, 5.25, 5.75, 6.0]
        );
    }

    #[test]
    fn channels_stay_together() {
        let mut canvas = Canvas::new((2, 2), 2);
        canvas.add(&[3.0, -1.0], &Bilinear::new((1, 1), (2, 2)), 0, 0);
        assert_eq!(canvas.finish((1, 1), |values| values[0] - values[1]), [4.0]);
    }
}
