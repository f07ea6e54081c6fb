//! How often each cluster meets each class: what every score of a clustering is computed from.

/// Counts `[clusters, classes]`, row-major, with their sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contingency {
    /// Rows of cluster `c` and class `t` at `c * n_classes + t`.
    pub counts: Vec<u64>,
    /// Number of clusters.
    pub n_clusters: usize,
    /// Number of classes.
    pub n_classes: usize,
    /// Rows of each cluster.
    pub clusters: Vec<u64>,
    /// Rows of each class.
    pub classes: Vec<u64>,
    /// All rows.
    pub total: u64,
}

impl Contingency {
    /// Counts `clusters` against `classes`, both numbered from 0.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn new(clusters: &[u32], classes: &[u32]) -> Self {
        assert_eq!(clusters.len(), classes.len(), "one class a row");
        let size = |numbers: &[u32]| numbers.iter().max().map_or(0, |&number| number as usize + 1);
        let (n_clusters, n_classes) = (size(clusters), size(classes));
        let mut table = Self {
            counts: vec![0; n_clusters * n_classes],
            n_clusters,
            n_classes,
            clusters: vec![0; n_clusters],
            classes: vec![0; n_classes],
            total: clusters.len() as u64,
        };
        for (&cluster, &class) in clusters.iter().zip(classes) {
            let (cluster, class) = (cluster as usize, class as usize);
            table.counts[cluster * n_classes + class] += 1;
            table.clusters[cluster] += 1;
            table.classes[class] += 1;
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_sums() {
        let table = Contingency::new(&[0, 0, 2, 2, 2], &[1, 1, 0, 1, 1]);
        assert_eq!(table.counts, [0, 2, 0, 0, 1, 2]);
        assert_eq!((table.clusters, table.classes), (vec![2, 0, 3], vec![1, 4]));
        assert_eq!((table.n_clusters, table.n_classes, table.total), (3, 2, 5));
        let none = Contingency::new(&[], &[]);
        assert_eq!((none.n_clusters, none.n_classes, none.total), (0, 0, 0));
    }
}
