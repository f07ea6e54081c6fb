//! Global average precision of a recognition system that makes one prediction a query, as Google Landmarks v2 and Met
//! measure it (Perronnin et al. 2009; DELF `GlobalAveragePrecision`).

/// One prediction: how sure the system is, and whether the class is right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Which query it answers; at most one prediction each.
    pub query: usize,
    /// Confidence, comparable between queries.
    pub score: f32,
    /// Whether the predicted class is the query's. Never for a distractor, a query without a right answer.
    pub correct: bool,
}

/// Predictions in the order in which [`gap`] reads them: descending score, then ascending query.
pub fn by_confidence(mut predictions: Vec<Prediction>) -> Vec<Prediction> {
    predictions.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.query.cmp(&b.query)));
    predictions
}

/// `sum of P(i) * rel(i)` over the predictions in the order of [`by_confidence`], divided by `n_answerable`, the number of
/// queries that have a right answer: distractors hurt through the precision alone. `times(query)` is how often the query
/// counts: 1, or its number of draws in a bootstrap resample. NaN when nothing is answerable.
pub fn gap(ordered: &[Prediction], n_answerable: usize, times: impl Fn(usize) -> u32) -> f64 {
    let (mut seen, mut right, mut sum) = (0u64, 0u64, 0.0f64);
    for prediction in ordered {
        for _ in 0..times(prediction.query) {
            seen += 1;
            if prediction.correct {
                right += 1;
                sum += right as f64 / seen as f64;
            }
        }
    }
    sum / n_answerable as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predictions(rows: &[(f32, bool)]) -> Vec<Prediction> {
        let rows = rows.iter().enumerate();
        let all = rows.map(|(query, &(score, correct))| Prediction {
            query,
            score,
            correct,
        });
        by_confidence(all.collect())
    }

    #[test]
    fn distractors_hurt_only_when_confident() {
        // right at .9 and .5, a wrong one between: (1/1 + 2/3) / 3 answerable queries
        let with = predictions(&[(0.5, true), (0.9, true), (0.7, false)]);
        assert!((gap(&with, 3, |_| 1) - (1.0 + 2.0 / 3.0) / 3.0).abs() < 1e-15);
        let shy = predictions(&[(0.5, true), (0.9, true), (0.1, false)]);
        assert!((gap(&shy, 3, |_| 1) - 2.0 / 3.0).abs() < 1e-15);
        assert!(gap(&predictions(&[(0.5, false)]), 0, |_| 1).is_nan());
    }

    #[test]
    fn a_query_drawn_twice_counts_twice() {
        let once = predictions(&[(0.9, false), (0.8, true), (0.8, true)]);
        let drawn = predictions(&[(0.9, false), (0.8, true)]);
        let twice = gap(&drawn, 2, |query| if query == 1 { 2 } else { 1 });
        assert_eq!(twice, gap(&once, 2, |_| 1));
        assert_eq!(gap(&drawn, 1, |query| query as u32), 1.0);
    }
}
