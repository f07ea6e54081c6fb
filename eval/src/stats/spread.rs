//! Mean and deviation of a few repetitions.

/// The mean; NaN of none.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sample standard deviation, with n - 1 below the sum; NaN of fewer than two.
pub fn sample_std(values: &[f64]) -> f64 {
    let centre = mean(values);
    let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
    (squares / (values.len() as f64 - 1.)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(mean(&[1., 2., 6.]), 3.);
        assert_eq!(sample_std(&[1., 2., 6.]), 7f64.sqrt());
        assert!(mean(&[]).is_nan() && sample_std(&[1.]).is_nan());
    }
}
