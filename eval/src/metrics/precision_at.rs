//! Precision of one query at a cut-off, as revisited Oxford and Paris measure it (revisitop `compute_map`).

/// Share of positives among the first k' places, where k' is `k`, or the place after the last positive found if that
/// comes first: a query with few positives can still reach 1. `ranks` are the ascending places of the positives, from 0.
/// 0 where none was found; NaN for `k` of 0.
pub fn precision_at(ranks: &[usize], k: usize) -> f64 {
    let Some(&last) = ranks.last() else {
        return 0.0;
    };
    let places = k.min(last + 1);
    let hits = ranks.iter().filter(|&&rank| rank < places).count();
    hits as f64 / places as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_rule_by_hand() {
        let precisions = [1, 5, 10].map(|k| precision_at(&[0, 2, 3], k));
        assert_eq!(precisions, [1.0, 0.75, 0.75]);
        assert_eq!(precision_at(&[4], 2), 0.0);
        assert_eq!(precision_at(&[], 5), 0.0);
        assert!(precision_at(&[0], 0).is_nan());
    }
}
