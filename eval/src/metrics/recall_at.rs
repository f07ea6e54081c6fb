//! Recall of one query at a cut-off, in the sense in which retrieval benchmarks print `R@k`.

/// 1 if any positive is among the first `k` places, else 0. This is what CLIP-style benchmarks and metric learning call
/// recall@k; it is not the share of the positives that was found. `ranks` are ascending places, from 0.
pub fn recall_any_at(ranks: &[usize], k: usize) -> f64 {
    f64::from(u8::from(ranks.first().is_some_and(|&rank| rank < k)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hit_is_enough() {
        assert_eq!([1, 2, 3].map(|k| recall_any_at(&[1, 7], k)), [0.0, 1.0, 1.0]);
        assert_eq!(recall_any_at(&[], 10), 0.0);
    }
}
