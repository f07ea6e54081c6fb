//! Holm's correction (1979): of many tests some come out small by chance, and the corrected p-values account for how many
//! there are.

/// Corrected p-values in the order of `p_values`, each from 0 to 1 and not below its own: with m tests, the smallest is
/// multiplied by m, the next by m - 1, and so on, never below the one before.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut floor = 0.0f64;
    for (place, &test) in order.iter().enumerate() {
        let factor = (p_values.len() - place) as f64;
        floor = floor.max((factor * p_values[test]).min(1.0));
        corrected[test] = floor;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_statsmodels() {
        // multipletests([0.01, 0.04, 0.03, 0.005], method="holm")
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - expected).abs() < 1e-12, "{corrected:?}");
        }
        assert_eq!(holm(&[0.7, 0.6]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
