//! Adjusted Rand index (Hubert & Arabie 1985) of a clustering and the classes.

use super::contingency::Contingency;

/// Agreement over pairs of rows, 0 for what chance gives and 1 for equal partitions; below 0 for less than chance.
pub fn adjusted_rand_index(table: &Contingency) -> f64 {
    let pairs = |count: u64| count as f64 * (count as f64 - 1.0) / 2.0;
    let sum = |counts: &[u64]| counts.iter().map(|&count| pairs(count)).sum::<f64>();
    let (both, clusters, classes) = (sum(&table.counts), sum(&table.clusters), sum(&table.classes));
    let all = pairs(table.total);
    let expected = clusters * classes / all;
    let greatest = (clusters + classes) / 2.0;
    if greatest == expected || all == 0.0 {
        return 1.0; // both sides one part, or every row its own: the partitions are equal
    }
    (both - expected) / (greatest - expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let score =
            |clusters: &[u32], classes: &[u32]| adjusted_rand_index(&Contingency::new(clusters, classes));
        assert_eq!(score(&[1, 1, 0, 0], &[0, 0, 1, 1]), 1.0);
        // scikit-learn's documented examples
        assert!((score(&[0, 0, 1, 2], &[0, 0, 1, 1]) - 0.571_428_571_428).abs() < 1e-9);
        assert!((score(&[0, 1, 0, 1], &[0, 0, 1, 1]) + 0.5).abs() < 1e-12);
        assert_eq!(score(&[0, 0, 0], &[0, 0, 0]), 1.0);
        assert_eq!(score(&[0, 1], &[0, 0]), 0.0);
        assert_eq!(score(&[0, 1, 2], &[2, 0, 1]), 1.0);
    }
}
