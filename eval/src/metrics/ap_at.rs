//! Average precision of one query over its first places, as Google Landmarks v2 retrieval measures it (Weyand et al.
//! 2020, DELF `dataset_file_io`/`metrics`); `mAP@100` is its mean with 100 places.

/// Mean over `min(n_positives, places)` of the precision at every positive among the first `places`. `ranks` are the
/// ascending places of the positives, from 0. NaN without positives.
pub fn ap_at(ranks: &[usize], n_positives: usize, places: usize) -> f64 {
    let sum: f64 = ranks
        .iter()
        .take_while(|&&rank| rank < places)
        .enumerate()
        .map(|(found, &rank)| (found + 1) as f64 / (rank + 1) as f64)
        .sum();
    sum / n_positives.min(places) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_rule_by_hand() {
        assert!((ap_at(&[0, 2, 3], 4, 100) - 0.604_167).abs() < 1e-6);
        assert_eq!(ap_at(&[0, 2, 3], 4, 1), 1.0);
        assert_eq!(ap_at(&[0, 2, 3], 4, 2), 0.5);
        assert_eq!(ap_at(&[100], 1, 100), 0.0);
        assert!(ap_at(&[], 0, 100).is_nan());
    }
}
