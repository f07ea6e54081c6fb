//! Bilinear resizing of maps whose channels lie together, as torch's `interpolate` with `align_corners = False`: forward,
//! and transposed for gradients. One output row at a time, so that a map of full resolution with all its channels need
//! never be held.

use rayon::prelude::*;

/// For each output sample of one direction, its two inputs and the weight of the second.
#[derive(Debug, Clone)]
struct Taps(Vec<(usize, usize, f32)>);

impl Taps {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let taps = (0..output).map(|place| {
            let centre = ((place as f64 + 0.5) * scale - 0.5).max(0.0);
            let first = (centre as usize).min(input - 1);
            (first, (first + 1).min(input - 1), (centre - first as f64) as f32)
        });
        Self(taps.collect())
    }
}

/// A bilinear resize from one size to another; sizes are (rows, columns).
#[derive(Debug, Clone)]
pub struct Bilinear {
    input: (usize, usize),
    output: (usize, usize),
    rows: Taps,
    columns: Taps,
}

impl Bilinear {
    /// From `input` to `output`, sides of at least 1.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn new(input: (usize, usize), output: (usize, usize)) -> Self {
        let sides = [input.0, input.1, output.0, output.1];
        assert!(sides.iter().all(|&side| side > 0), "sides of at least 1");
        Self {
            input,
            output,
            rows: Taps::new(input.0, output.0),
            columns: Taps::new(input.1, output.1),
        }
    }

    /// Rows and columns of what goes in.
    pub fn input(&self) -> (usize, usize) {
        self.input
    }

    /// Rows and columns of what comes out.
    pub fn output(&self) -> (usize, usize) {
        self.output
    }

    /// Writes row `y` of the resized `map` `[h, w, channels]` into `out` `[W, channels]`; `between` is scratch.
    pub fn row(&self, map: &[f32], channels: usize, y: usize, between: &mut Vec<f32>, out: &mut [f32]) {
        let (first, second, weight) = self.rows.0[y];
        let stride = self.input.1 * channels;
        let at = |row: usize| &map[row * stride..(row + 1) * stride];
        between.clear();
        between.extend(mixed(at(first), at(second), weight));
        for (out, &(first, second, weight)) in out.chunks_exact_mut(channels).zip(&self.columns.0) {
            let at = |column: usize| &between[column * channels..(column + 1) * channels];
            let values = mixed(at(first), at(second), weight);
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }
    }

    /// Adds to `into` `[h, w, channels]` what the gradient `[W, channels]` of row `y` of the resized map says of the map.
    pub fn add_transposed_row(
        &self,
        gradient: &[f32],
        channels: usize,
        y: usize,
        between: &mut Vec<f32>,
        into: &mut [f32],
    ) {
        let stride = self.input.1 * channels;
        between.clear();
        between.resize(stride, 0.0);
        for (gradient, &(first, second, weight)) in gradient.chunks_exact(channels).zip(&self.columns.0) {
            add(
                &mut between[first * channels..][..channels],
                1.0 - weight,
                gradient,
            );
            add(&mut between[second * channels..][..channels], weight, gradient);
        }
        let (first, second, weight) = self.rows.0[y];
        add(&mut into[first * stride..][..stride], 1.0 - weight, between);
        add(&mut into[second * stride..][..stride], weight, between);
    }

    /// The whole map `[h, w, channels]` resized, `[H, W, channels]`.
    pub fn resize(&self, map: &[f32], channels: usize) -> Vec<f32> {
        let width = self.output.1 * channels;
        let mut out = vec![0.0; self.output.0 * width];
        out.par_chunks_mut(width)
            .enumerate()
            .for_each_init(Vec::new, |between, (y, out)| {
                self.row(map, channels, y, between, out)
            });
        out
    }

    /// The gradient of the map `[h, w, channels]` from that of the resized map `[H, W, channels]`.
    pub fn resize_transposed(&self, gradient: &[f32], channels: usize) -> Vec<f32> {
        let mut into = vec![0.0; self.input.0 * self.input.1 * channels];
        let mut between = Vec::new();
        for (y, row) in gradient.chunks_exact(self.output.1 * channels).enumerate() {
            self.add_transposed_row(row, channels, y, &mut between, &mut into);
        }
        into
    }
}

fn mixed<'a>(first: &'a [f32], second: &'a [f32], weight: f32) -> impl Iterator<Item = f32> + 'a {
    first.iter().zip(second).map(move |(a, b)| a + weight * (b - a))
}

fn add(into: &mut [f32], weight: f32, values: &[f32]) {
    into.iter_mut()
        .zip(values)
        .for_each(|(into, value)| *into += weight * value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_torchs() {
        // torch.nn.functional.interpolate([[0, 1], [2, 3]], size=(4, 3), mode="bilinear", align_corners=False): centres
        // of columns at -1/6 (clamped to 0), 0.5, 7/6 (clamped to 1), of rows at -0.25 (0), 0.25, 0.75, 1.25 (1).
        let out = Bilinear::new((2, 2), (4, 3)).resize(&[0.0, 1.0, 2.0, 3.0], 1);
        let expected = [0.0, 0.5, 1.0, 0.5, 1.0, 1.5, 1.5, 2.0, 2.5, 2.0, 2.5, 3.0];
        for (found, expected) in out.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{out:?}");
        }
    }

    #[test]
    fn shrinking_takes_the_two_nearest() {
        // Four to two: centres at 0.5 and 2.5.
        assert_eq!(
            Bilinear::new((1, 4), (1, 2)).resize(&[0.0, 2.0, 4.0, 8.0], 1),
            [1.0, 6.0]
        );
    }

    #[test]
    fn one_size_is_the_identity() {
        let map: Vec<f32> = (0..24).map(|i| (i * i) as f32).collect();
        let same = Bilinear::new((3, 4), (3, 4));
        assert_eq!(same.resize(&map, 2), map);
        assert_eq!(same.resize_transposed(&map, 2), map);
    }

    /// `<g, R x> = <R^T g, x>` for every pair of a map and a gradient.
    #[test]
    fn the_transpose_belongs_to_the_resize() {
        for (input, output) in [((3, 2), (5, 7)), ((4, 5), (2, 3)), ((1, 1), (3, 2))] {
            let resize = Bilinear::new(input, output);
            let map: Vec<f32> = (0..input.0 * input.1 * 2)
                .map(|i| (i as f32 * 0.7).sin())
                .collect();
            let gradient: Vec<f32> = (0..output.0 * output.1 * 2)
                .map(|i| (i as f32 * 1.3).cos())
                .collect();
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let forward = dot(&gradient, &resize.resize(&map, 2));
            let backward = dot(&resize.resize_transposed(&gradient, 2), &map);
            assert!((forward - backward).abs() < 1e-5, "{forward} {backward}");
        }
    }
}
