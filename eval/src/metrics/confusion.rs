//! What was taken for what: counts of true against predicted classes.

/// Rows of true class `t` that were taken for class `p`, at `t * n_classes + p`. A row without a prediction counts
/// nowhere.
///
/// # Panics
/// If the lengths differ or a class is not below `n_classes`.
pub fn confusion_matrix(labels: &[u32], predicted: &[Option<u32>], n_classes: usize) -> Vec<u64> {
    assert_eq!(labels.len(), predicted.len(), "one prediction a row");
    let mut counts = vec![0; n_classes * n_classes];
    for (&label, class) in labels.iter().zip(predicted) {
        if let Some(class) = class {
            assert!((*class as usize) < n_classes, "a known class");
            counts[label as usize * n_classes + *class as usize] += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_truth_and_columns_predictions() {
        let predicted = [Some(0), Some(1), Some(1), None];
        assert_eq!(confusion_matrix(&[0, 0, 1, 1], &predicted, 2), [1, 1, 0, 1]);
    }
}
