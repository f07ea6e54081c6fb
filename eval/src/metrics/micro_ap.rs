//! Average precision over the pooled pairs of all queries, as the image similarity challenge measures copy detection
//! (Douze et al. 2021, isc2021 `metrics`).

/// One candidate pair of a query and a row of the database.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredPair {
    /// Which query.
    pub query: usize,
    /// Score, comparable between queries.
    pub score: f32,
    /// Whether the pair is in the ground truth.
    pub correct: bool,
}

/// Pairs in the order in which [`micro_ap`] reads them: descending score, and of equal scores the wrong ones first, so
/// that a constant score earns nothing.
pub fn pooled(mut pairs: Vec<ScoredPair>) -> Vec<ScoredPair> {
    pairs.sort_by(|a, b| {
        let score = b.score.total_cmp(&a.score);
        score.then(a.correct.cmp(&b.correct)).then(a.query.cmp(&b.query))
    });
    pairs
}

/// Sum over the pairs in the order of [`pooled`] of the step of recall times the precision; recall is over all `n_truth`
/// pairs of the ground truth, found or not. `times(query)` is how often the query counts: 1, or its number of draws in a
/// bootstrap resample, to which `n_truth` must belong. NaN without truth.
pub fn micro_ap(ordered: &[ScoredPair], n_truth: usize, times: impl Fn(usize) -> u32) -> f64 {
    let (mut seen, mut right, mut sum) = (0u64, 0u64, 0.0f64);
    for pair in ordered {
        for _ in 0..times(pair.query) {
            seen += 1;
            if pair.correct {
                right += 1;
                sum += right as f64 / seen as f64;
            }
        }
    }
    sum / n_truth as f64
}

/// Greatest recall at a threshold that keeps the precision at `precision` or above (`Recall@P90` for 0.9). `ordered` and
/// `times` as in [`micro_ap`]; pairs of equal score fall on one side of a threshold together. NaN without truth.
pub fn recall_at_precision(
    ordered: &[ScoredPair],
    n_truth: usize,
    precision: f64,
    times: impl Fn(usize) -> u32,
) -> f64 {
    let (mut seen, mut right, mut best) = (0u64, 0u64, 0u64);
    for tied in ordered.chunk_by(|a, b| a.score == b.score) {
        for pair in tied {
            let count = u64::from(times(pair.query));
            seen += count;
            right += count * u64::from(pair.correct);
        }
        if right as f64 >= precision * seen as f64 {
            best = right;
        }
    }
    best as f64 / n_truth as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(rows: &[(f32, bool)]) -> Vec<ScoredPair> {
        let rows = rows.iter().enumerate();
        let all = rows.map(|(query, &(score, correct))| ScoredPair {
            query,
            score,
            correct,
        });
        pooled(all.collect())
    }

    #[test]
    fn published_rule_by_hand() {
        let pairs = pairs(&[(0.9, true), (0.8, true), (0.8, false), (0.5, true), (0.4, false)]);
        assert!((micro_ap(&pairs, 4, |_| 1) - 0.604_167).abs() < 1e-6);
        assert_eq!(recall_at_precision(&pairs, 4, 0.9, |_| 1), 0.25);
        assert_eq!(recall_at_precision(&pairs, 4, 0.75, |_| 1), 0.75);
    }

    #[test]
    fn a_query_drawn_twice_counts_twice_and_one_not_drawn_not_at_all() {
        let pairs = pairs(&[(0.9, true), (0.8, false), (0.7, true), (0.6, true)]);
        let times = |query: usize| [2, 1, 0, 3][query];
        // right, right, wrong, right, right, right
        let expected = (1.0 + 1.0 + 3.0 / 4.0 + 4.0 / 5.0 + 5.0 / 6.0) / 5.0;
        assert!((micro_ap(&pairs, 5, times) - expected).abs() < 1e-15);
        assert_eq!(recall_at_precision(&pairs, 5, 0.9, times), 2.0 / 5.0);
        assert_eq!(recall_at_precision(&pairs, 5, 5.0 / 6.0, times), 1.0);
    }

    #[test]
    fn a_constant_score_earns_the_base_rate_at_most() {
        let constant = pairs(&[(0.5, true), (0.5, false), (0.5, false), (0.5, false)]);
        assert_eq!(micro_ap(&constant, 1, |_| 1), 0.25);
        assert_eq!(recall_at_precision(&constant, 1, 0.9, |_| 1), 0.0);
        assert!(micro_ap(&pairs(&[(0.5, false)]), 0, |_| 1).is_nan());
    }
}
