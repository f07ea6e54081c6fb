//! Normalised mutual information of a clustering and the classes.

use super::contingency::Contingency;

/// Mutual information divided by the arithmetic mean of the two entropies, which is scikit-learn's default and what most
/// papers mean. From 0 to 1; 1 when neither side splits anything (one cluster and one class), 0 when only one side does.
pub fn nmi(table: &Contingency) -> f64 {
    let total = table.total as f64;
    let (of_clusters, of_classes) = (entropy(&table.clusters, total), entropy(&table.classes, total));
    if of_clusters == 0.0 && of_classes == 0.0 {
        return 1.0;
    }
    let mut information = 0.0;
    for (cluster, row) in table.counts.chunks_exact(table.n_classes.max(1)).enumerate() {
        for (class, &count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = count as f64;
            let expected = table.clusters[cluster] as f64 * table.classes[class] as f64 / total;
            information += count / total * (count / expected).ln();
        }
    }
    (information / ((of_clusters + of_classes) / 2.0)).clamp(0.0, 1.0)
}

fn entropy(counts: &[u64], total: f64) -> f64 {
    let shares = counts.iter().filter(|count| **count > 0);
    // A single part gives exactly ln 1 = 0.
    shares
        .map(|&count| count as f64 / total)
        .map(|p| -p * p.ln())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes() {
        let score = |clusters: &[u32], classes: &[u32]| nmi(&Contingency::new(clusters, classes));
        assert!((score(&[1, 1, 0, 0], &[0, 0, 1, 1]) - 1.0).abs() < 1e-12);
        assert!(score(&[0, 1, 0, 1], &[0, 0, 1, 1]).abs() < 1e-12);
        assert_eq!(score(&[0, 0, 0], &[0, 0, 0]), 1.0);
        assert_eq!(score(&[0, 0, 0], &[0, 1, 2]), 0.0);
        // Cluster 1 is empty.
        assert!((score(&[0, 0, 2, 2], &[0, 0, 1, 1]) - 1.0).abs() < 1e-12);
        // I = ln 2 over (ln 4 + ln 2) / 2
        assert!((score(&[0, 1, 2, 3], &[0, 0, 1, 1]) - 2.0 / 3.0).abs() < 1e-12);
    }
}
