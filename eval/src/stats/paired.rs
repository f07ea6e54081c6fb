//! The difference of two accuracies on the same rows. Rows that both have right or both wrong say nothing about the
//! difference, so the paired interval is narrower than what the two single intervals suggest.

use super::bootstrap::{BootstrapConfig, Interval, bootstrap_mean};

/// How much more often the first classifier is right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedDifference {
    /// Accuracy of the first less that of the second, from -1 to 1.
    pub difference: f64,
    /// Bootstrap interval of the difference over the rows.
    pub interval: Interval,
}

/// The difference, with rows drawn again as pairs.
///
/// # Panics
/// If the lengths differ.
pub fn paired_difference(right_a: &[bool], right_b: &[bool], config: &BootstrapConfig) -> PairedDifference {
    assert_eq!(right_a.len(), right_b.len(), "the same rows");
    let pairs = right_a.iter().zip(right_b);
    let differences: Vec<f32> = pairs
        .map(|(&a, &b)| f32::from(i8::from(a) - i8::from(b)))
        .collect();
    PairedDifference {
        difference: differences.iter().map(|&d| f64::from(d)).sum::<f64>() / differences.len() as f64,
        interval: bootstrap_mean(&differences, config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairing_narrows_the_interval() {
        // 1,000 rows; the second is the first with 20 more right
        let a: Vec<bool> = (0..1_000).map(|row| row < 500).collect();
        let b: Vec<bool> = (0..1_000).map(|row| row < 520).collect();
        let found = paired_difference(&a, &b, &BootstrapConfig::default());
        assert!((found.difference + 0.02).abs() < 1e-12);
        // sd of the mean of 20 ones among 1,000: 0.00443; unpaired it would be 0.0224
        let half = 1.96 * (0.02f64 * 0.98 / 1_000.0).sqrt();
        assert!((found.interval.low + 0.02 + half).abs() < 0.2 * half, "{found:?}");
        assert!(
            (found.interval.high + 0.02 - half).abs() < 0.2 * half,
            "{found:?}"
        );
        let same = paired_difference(&a, &a, &BootstrapConfig::default());
        assert_eq!(
            (same.difference, same.interval.low, same.interval.high),
            (0.0, 0.0, 0.0)
        );
    }
}
