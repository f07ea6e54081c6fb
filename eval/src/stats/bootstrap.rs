//! Percentile bootstrap (Efron 1979) of a mean of per-sample values: the samples are drawn again with replacement, the
//! mean of each draw is kept, and the interval runs between two percentiles of those means.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

/// How an interval is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BootstrapConfig {
    /// Number of resamples, 1,000 by default; 0 means no interval: both ends are NaN.
    pub resamples: usize,
    /// Part of the resampled means inside the interval, 0.95 by default, between 0 and 1.
    pub level: f64,
    /// Seed; resample i uses stream i of ChaCha8, so the number of threads changes nothing.
    pub seed: u64,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self {
            resamples: 1_000,
            level: 0.95,
            seed: 0,
        }
    }
}

/// A confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Percentile interval of the mean of `values` (for an accuracy: 0 or 1 a sample). Both ends are NaN when there are no
/// values or no resamples.
pub fn bootstrap_mean(values: &[f32], config: &BootstrapConfig) -> Interval {
    if values.is_empty() || config.resamples == 0 {
        return Interval {
            low: f64::NAN,
            high: f64::NAN,
        };
    }
    percentiles(config, |rng| {
        let n = values.len();
        let sum: f64 = (0..n).map(|_| f64::from(values[rng.random_range(0..n)])).sum();
        sum / n as f64
    })
}

/// Percentile interval of any statistic of `n` samples (queries, images). Each resample draws n of them with replacement
/// and asks for `statistic(counts)`, where `counts[i]` is how often sample i was drawn; a resample whose statistic is NaN
/// (nothing drawn that it is defined for) is left out. Both ends are NaN when there are no samples, no resamples, or no
/// statistic.
pub fn bootstrap_counts(
    n: usize,
    config: &BootstrapConfig,
    statistic: impl Fn(&[u32]) -> f64 + Sync,
) -> Interval {
    if n == 0 || config.resamples == 0 {
        return Interval {
            low: f64::NAN,
            high: f64::NAN,
        };
    }
    percentiles(config, |rng| {
        let mut counts = vec![0u32; n];
        (0..n).for_each(|_| counts[rng.random_range(0..n)] += 1);
        statistic(&counts)
    })
}

/// The interval of what `draw` gives, one generator a resample.
fn percentiles(config: &BootstrapConfig, draw: impl Fn(&mut ChaCha8Rng) -> f64 + Sync) -> Interval {
    let mut values: Vec<f64> = (0..config.resamples)
        .into_par_iter()
        .map(|resample| {
            let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
            rng.set_stream(resample as u64);
            draw(&mut rng)
        })
        .filter(|value| !value.is_nan())
        .collect();
    if values.is_empty() {
        return Interval {
            low: f64::NAN,
            high: f64::NAN,
        };
    }
    values.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - config.level) / 2.0;
    Interval {
        low: quantile(&values, tail),
        high: quantile(&values, 1.0 - tail),
    }
}

/// Quantile `q` of ascending values, linear between neighbours (numpy's default).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(n: usize, right: usize) -> Vec<f32> {
        (0..n).map(|i| f32::from(u8::from(i < right))).collect()
    }

    #[test]
    fn width_is_that_of_the_binomial() {
        let (n, p) = (2_000, 0.8);
        let interval = bootstrap_mean(&hits(n, 1_600), &BootstrapConfig::default());
        let half = 1.96 * (p * (1.0 - p) / n as f64).sqrt();
        assert!(
            (interval.low - (p - half)).abs() < 0.15 * half,
            "{interval:?} {half}"
        );
        assert!(
            (interval.high - (p + half)).abs() < 0.15 * half,
            "{interval:?} {half}"
        );
    }

    #[test]
    fn threads_change_nothing_and_the_seed_does() {
        let values = hits(300, 200);
        let config = BootstrapConfig::default();
        let draw = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
                .install(|| bootstrap_mean(&values, &config))
        };
        assert_eq!(draw(1), draw(3));
        let other = BootstrapConfig {
            seed: 1,
            resamples: 37,
            ..config
        };
        let same_size = BootstrapConfig {
            resamples: 37,
            ..config
        };
        assert_ne!(
            bootstrap_mean(&values, &other),
            bootstrap_mean(&values, &same_size)
        );
    }

    #[test]
    fn certain_and_empty_cases() {
        let config = BootstrapConfig::default();
        assert_eq!(
            bootstrap_mean(&hits(10, 10), &config),
            Interval { low: 1.0, high: 1.0 }
        );
        assert!(bootstrap_mean(&[], &config).low.is_nan());
        let none = BootstrapConfig {
            resamples: 0,
            ..config
        };
        assert!(bootstrap_mean(&hits(3, 1), &none).high.is_nan());
    }

    #[test]
    fn every_resample_is_drawn_once_and_the_tails_are_equal() {
        assert_eq!(BootstrapConfig::default().resamples, 1_000);
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let config = BootstrapConfig {
            resamples: 101,
            level: 0.9,
            ..BootstrapConfig::default()
        };
        // The values are 0 to 100, whichever resample has which.
        let interval = bootstrap_counts(3, &config, |counts| {
            assert_eq!(counts.iter().sum::<u32>(), 3);
            calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) as f64
        });
        assert_eq!(calls.into_inner(), 101);
        assert!(
            (interval.low - 5.0).abs() < 1e-9 && (interval.high - 95.0).abs() < 1e-9,
            "{interval:?}"
        );
    }

    #[test]
    fn one_sample_and_one_resample_are_enough() {
        let config = BootstrapConfig {
            resamples: 1,
            ..BootstrapConfig::default()
        };
        assert_eq!(bootstrap_mean(&[0.5], &config), Interval { low: 0.5, high: 0.5 });
        assert_eq!(
            bootstrap_counts(1, &config, |counts| f64::from(counts[0])).low,
            1.0
        );
        // The first resample has stream 0.
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(0);
        let values: Vec<f32> = (0..50u8).map(f32::from).collect();
        let drawn: f64 = (0..50).map(|_| f64::from(values[rng.random_range(0..50)])).sum();
        assert_eq!(bootstrap_mean(&values, &config).low, drawn / 50.0);
    }

    #[test]
    fn counts_draw_the_same_samples_as_the_mean() {
        let values = hits(120, 70);
        let config = BootstrapConfig::default();
        let mean = |counts: &[u32]| {
            let drawn = counts.iter().zip(&values);
            drawn
                .map(|(&count, &value)| f64::from(count) * f64::from(value))
                .sum::<f64>()
                / 120.0
        };
        assert_eq!(
            bootstrap_counts(120, &config, mean),
            bootstrap_mean(&values, &config)
        );
        assert!(bootstrap_counts(0, &config, |_| 0.0).low.is_nan());
        assert!(bootstrap_counts(3, &config, |_| f64::NAN).low.is_nan());
        let sometimes = bootstrap_counts(1, &config, |counts| f64::from(counts[0]));
        assert_eq!(sometimes, Interval { low: 1.0, high: 1.0 });
    }

    #[test]
    fn quantiles_are_numpys() {
        let sorted = [0.0, 1.0, 2.0, 10.0];
        assert_eq!(quantile(&sorted, 0.5), 1.5);
        assert_eq!(quantile(&sorted, 0.0), 0.0);
        assert_eq!(quantile(&sorted, 1.0), 10.0);
        assert!((quantile(&sorted, 0.9) - 7.6).abs() < 1e-12);
    }
}
