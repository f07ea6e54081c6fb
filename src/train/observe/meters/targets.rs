//! Meters of the teacher's targets `[m, k]`: rows are distributions over k prototypes, non-negative with sum 1.

use rayon::prelude::*;

/// Rows of targets that are summed together; the sums of the blocks are added in order, so that threads change nothing.
const BLOCK_ROWS: usize = 32;

/// How undecided the targets are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entropy {
    /// Mean over rows of the entropy, in nats: 0 (one prototype each) to ln K (all alike).
    pub nats: f64,
    /// The same as a share of ln K, 0 to 1; NaN for a single prototype.
    pub share: f64,
}

/// How evenly the targets as a whole use the prototypes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrototypeUsage {
    /// exp of the entropy of the mean row, divided by K: 1/K (all rows are one prototype) to 1 (all used alike).
    pub usage: f64,
    /// Share of the prototypes that are the greatest of some row (the first of equals), 0 to 1; at most m/K.
    pub argmax_share: f64,
}

/// Entropy of targets `[m, k]`. NaN without rows.
///
/// # Panics
/// If `targets` does not hold `m * k` values.
pub fn entropy(targets: &[f32], m: usize, k: usize) -> Entropy {
    check(targets, m, k);
    if m == 0 || k == 0 {
        let nats = f64::NAN;
        return Entropy { nats, share: nats };
    }
    let rows: Vec<f64> = targets
        .par_chunks_exact(k)
        .map(|row| entropy_of(row.iter().map(|&share| f64::from(share))))
        .collect();
    let nats = rows.iter().sum::<f64>() / m as f64;
    let greatest = (k as f64).ln();
    let share = if k == 1 { f64::NAN } else { nats / greatest };
    Entropy { nats, share }
}

/// Use of the prototypes by targets `[m, k]`. NaN without rows.
///
/// # Panics
/// If `targets` does not hold `m * k` values.
pub fn prototype_usage(targets: &[f32], m: usize, k: usize) -> PrototypeUsage {
    check(targets, m, k);
    if m == 0 || k == 0 {
        let usage = f64::NAN;
        return PrototypeUsage {
            usage,
            argmax_share: usage,
        };
    }
    let mean = mean_row(targets, m, k);
    let mut chosen = vec![false; k];
    let firsts: Vec<usize> = targets.par_chunks_exact(k).map(first_greatest).collect();
    for first in firsts {
        chosen[first] = true;
    }
    let n_chosen = chosen.iter().filter(|&&chosen| chosen).count();
    PrototypeUsage {
        usage: entropy_of(mean.into_iter()).exp() / k as f64,
        argmax_share: n_chosen as f64 / k as f64,
    }
}

/// The mean of the rows, `[k]`.
fn mean_row(targets: &[f32], m: usize, k: usize) -> Vec<f64> {
    let blocks: Vec<Vec<f64>> = targets
        .par_chunks(BLOCK_ROWS * k)
        .map(|block| {
            let mut sum = vec![0.0; k];
            for row in block.chunks_exact(k) {
                for (sum, &share) in sum.iter_mut().zip(row) {
                    *sum += f64::from(share);
                }
            }
            sum
        })
        .collect();
    let mut mean = vec![0.0; k];
    for block in blocks {
        for (mean, sum) in mean.iter_mut().zip(block) {
            *mean += sum / m as f64;
        }
    }
    mean
}

/// Entropy in nats; a share of 0 adds nothing.
fn entropy_of(shares: impl Iterator<Item = f64>) -> f64 {
    shares
        .map(|share| if share == 0.0 { 0.0 } else { -share * share.ln() })
        .sum()
}

fn first_greatest(row: &[f32]) -> usize {
    let mut first = 0;
    for (place, &share) in row.iter().enumerate() {
        if share > row[first] {
            first = place;
        }
    }
    first
}

fn check(targets: &[f32], m: usize, k: usize) {
    assert_eq!(targets.len(), m * k, "targets of {m} x {k} values");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-9,
            "found {found}, expected {expected}"
        );
    }

    #[test]
    fn entropy_of_hand_computed_rows() {
        let targets = [0.5, 0.5, 0.0, 0.0, 0.25, 0.25, 0.25, 0.25];
        let Entropy { nats, share } = entropy(&targets, 2, 4);
        near(nats, (2f64.ln() + 4f64.ln()) / 2.0);
        near(share, 0.75);
        near(entropy(&[0.0, 1.0, 0.0], 1, 3).nats, 0.0);
        assert!(entropy(&[1.0], 1, 1).share.is_nan());
        assert!(entropy(&[], 0, 3).nats.is_nan());
    }

    #[test]
    fn usage_of_hand_computed_rows() {
        // Three rows are the first prototype, one the second: mean (3/4, 1/4, 0, 0).
        let mut targets = vec![0.0; 16];
        for (row, prototype) in [(0, 0), (1, 0), (2, 0), (3, 1)] {
            targets[row * 4 + prototype] = 1.0;
        }
        let found = prototype_usage(&targets, 4, 4);
        let entropy = -(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        near(found.usage, entropy.exp() / 4.0);
        near(found.argmax_share, 0.5);
    }

    #[test]
    fn usage_runs_from_1_over_k_to_1() {
        let k = 40;
        let identity: Vec<f32> = (0..k * k)
            .map(|i| if i % (k + 1) == 0 { 1.0 } else { 0.0 })
            .collect();
        let all = prototype_usage(&identity, k, k);
        near(all.usage, 1.0);
        near(all.argmax_share, 1.0);
        let mut one = vec![0.0; 100 * k];
        one.iter_mut().skip(7).step_by(k).for_each(|share| *share = 1.0);
        let one = prototype_usage(&one, 100, k);
        near(one.usage, 1.0 / k as f64);
        near(one.argmax_share, 1.0 / k as f64);
        assert!(prototype_usage(&[], 0, 4).usage.is_nan());
    }
}
