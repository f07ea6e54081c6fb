//! What protocols draw at random: rows of each class, the order of rows, standard normal values for initial weights.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::rng::stream;

/// Streams of the seed, one an epoch, from here on.
const ORDER_STREAM: u64 = 1 << 32;

/// An endless stream of shuffled epochs: whoever has the same rows and seed gets the same batches.
pub(crate) struct Order<'a> {
    rows: &'a [usize],
    shuffled: Vec<usize>,
    used: usize,
    epoch: u64,
    seed: u64,
}

impl<'a> Order<'a> {
    /// Epochs over `rows`, of which there is at least one.
    pub(crate) fn new(rows: &'a [usize], seed: u64) -> Self {
        Self {
            rows,
            shuffled: Vec::with_capacity(rows.len()),
            used: 0,
            epoch: 0,
            seed,
        }
    }

    /// The next `size` rows, in place of what `batch` held.
    pub(crate) fn next_batch(&mut self, size: usize, batch: &mut Vec<usize>) {
        batch.clear();
        while batch.len() < size {
            if self.used == self.shuffled.len() {
                self.shuffle();
            }
            let taken = (size - batch.len()).min(self.shuffled.len() - self.used);
            batch.extend_from_slice(&self.shuffled[self.used..self.used + taken]);
            self.used += taken;
        }
    }

    fn shuffle(&mut self) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(ORDER_STREAM + self.epoch);
        self.shuffled.clear();
        self.shuffled.extend_from_slice(self.rows);
        self.shuffled.shuffle(&mut rng);
        self.used = 0;
        self.epoch += 1;
    }
}

/// Up to `n` rows of each class for few-shot draw `number` of `seed`, without replacement, class after class; ascending, so that ties
/// between equal similarities rank as in the whole set.
pub(crate) fn draw_per_class(
    labels: &[u32],
    n_classes: usize,
    n: usize,
    seed: u64,
    number: u64,
) -> Vec<usize> {
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); n_classes];
    for (row, &label) in labels.iter().enumerate() {
        members[label as usize].push(row);
    }
    let mut rng = stream(seed, "few-shot", number);
    let mut chosen = Vec::new();
    for rows in &mut members {
        let (drawn, _) = rows.partial_shuffle(&mut rng, n);
        chosen.extend_from_slice(drawn);
    }
    chosen.sort_unstable();
    chosen
}

/// A standard normal value (Box and Muller 1958).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    // 1 - u is in (0, 1], whose logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_run_through_every_epoch() {
        let rows: Vec<usize> = (10..17).collect();
        let mut order = Order::new(&rows, 3);
        let (mut batch, mut seen) = (Vec::new(), Vec::new());
        for _ in 0..7 {
            order.next_batch(3, &mut batch);
            seen.extend_from_slice(&batch);
        }
        for epoch in seen.chunks_exact(7) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            assert_eq!(epoch, rows);
        }
        assert_ne!(seen[..7], seen[7..14]);
    }

    /// The intervals of a few-shot result draw their resamples by the same seed, resample t from stream t.
    #[test]
    fn few_shot_draws_are_not_what_resamples_draw() {
        let labels = [0; 1000];
        let mut seen = Vec::new();
        for number in 0..4 {
            let mut resample = ChaCha8Rng::seed_from_u64(5);
            resample.set_stream(number);
            let mut rows: Vec<usize> = (0..labels.len()).collect();
            let mut as_resampled = rows.partial_shuffle(&mut resample, 20).0.to_vec();
            as_resampled.sort_unstable();
            let found = draw_per_class(&labels, 1, 20, 5, number);
            assert_eq!(found.len(), 20);
            assert_ne!(found, as_resampled, "{number}");
            assert!(!seen.contains(&found), "{number}");
            seen.push(found);
        }
    }

    #[test]
    fn normal_values_have_mean_0_and_deviation_1() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let n = 20_000;
        let values: Vec<f64> = (0..n).map(|_| normal(&mut rng)).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
    }
}
