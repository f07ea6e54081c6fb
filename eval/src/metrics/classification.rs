//! Accuracy of class predictions: top-k hits, micro accuracy, accuracy of each class and their mean.

use std::collections::BTreeMap;

/// Place of class `label` when classes are ranked by descending score, 0 for the first. Equal scores rank by descending
/// class, as a reversed argsort has them and as `torch.topk` ranked the classes without a vote in the k-NN reference
/// (dinov2 eval/knn.py leaves the order open). A NaN ranks before `label`, so that it can never count as a hit. A class that
/// has no score, as one that training never saw, has the rank [`usize::MAX`].
pub fn rank_of<T: PartialOrd + Copy>(scores: &[T], label: u32) -> usize {
    let label = label as usize;
    let Some(&own) = scores.get(label) else {
        return usize::MAX;
    };
    scores
        .iter()
        .enumerate()
        .filter(|&(class, &score)| {
            let behind = score < own || (score == own && class < label);
            class != label && !behind
        })
        .count()
}

/// 1 for each rank below `k` (a top-k hit), otherwise 0.
pub fn hits_at(ranks: &[usize], k: usize) -> Vec<f32> {
    ranks.iter().map(|&rank| f32::from(u8::from(rank < k))).collect()
}

/// Micro accuracy: the mean of `hits` (0 or 1 a sample), summed in f64. NaN for no sample.
pub fn accuracy(hits: &[f32]) -> f64 {
    hits.iter().map(|&hit| f64::from(hit)).sum::<f64>() / hits.len() as f64
}

/// Accuracy of each class `0..n_classes`: the mean of `hits` over its samples, or `None` for a class without samples.
///
/// # Panics
/// If a label is not below `n_classes`, or the lengths differ.
pub fn per_class_accuracy(hits: &[f32], labels: &[u32], n_classes: usize) -> Vec<Option<f64>> {
    assert_eq!(hits.len(), labels.len(), "one label a hit");
    let mut sums = vec![(0.0f64, 0usize); n_classes];
    for (&hit, &label) in hits.iter().zip(labels) {
        let (sum, count) = &mut sums[label as usize];
        *sum += f64::from(hit);
        *count += 1;
    }
    sums.into_iter()
        .map(|(sum, count)| (count > 0).then(|| sum / count as f64))
        .collect()
}

/// Macro accuracy: the mean over the classes that have samples of their own accuracy. NaN for no sample.
///
/// # Panics
/// If the lengths differ.
pub fn mean_per_class(hits: &[f32], labels: &[u32]) -> f64 {
    assert_eq!(hits.len(), labels.len(), "one label a hit");
    let mut sums: BTreeMap<u32, (f64, usize)> = BTreeMap::new();
    for (&hit, &label) in hits.iter().zip(labels) {
        let (sum, count) = sums.entry(label).or_default();
        *sum += f64::from(hit);
        *count += 1;
    }
    sums.values().map(|(sum, count)| sum / *count as f64).sum::<f64>() / sums.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_break_ties_by_class_and_distrust_nan() {
        let scores = [0.5, 0.9, 0.5, 0.1];
        let ranks: Vec<usize> = (0..4).map(|label| rank_of(&scores, label)).collect();
        assert_eq!(ranks, [2, 0, 1, 3]);
        assert_eq!(rank_of(&[f64::NAN, 1.0], 0), 1);
        assert_eq!(rank_of(&[f64::NAN, 1.0], 1), 1);
        assert_eq!(rank_of(&scores, 4), usize::MAX, "a class without a score");
    }

    #[test]
    fn micro_and_macro_accuracy() {
        // class 0: 3 of 4, class 1: 0 of 1, class 2 has no sample
        let hits = hits_at(&[0, 0, 0, 1, 4], 1);
        let labels = [0, 0, 0, 0, 1];
        assert_eq!(hits, [1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(accuracy(&hits), 0.6);
        assert_eq!(
            per_class_accuracy(&hits, &labels, 3),
            [Some(0.75), Some(0.0), None]
        );
        assert_eq!(mean_per_class(&hits, &labels), 0.375);
        assert_eq!(accuracy(&hits_at(&[0, 0, 0, 1, 4], 5)), 1.0);
    }
}
