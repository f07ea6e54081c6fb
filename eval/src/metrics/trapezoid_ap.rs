//! Average precision of one query by the trapezoid rule, as revisited Oxford and Paris measure it (Radenovic et al.
//! 2018, revisitop `compute_ap`).

/// Area under precision over recall, each step of recall a trapezoid: the mean over the positives of
/// `(p0 + p1) / 2`, with `p0 = j / r` (1 for the first place) and `p1 = (j + 1) / (r + 1)` for the j-th positive found at
/// place r, both from 0. `ranks` are the ascending places of the positives found, junk taken out; `n_positives` counts
/// those that were not found as well. NaN without positives.
pub fn trapezoid_ap(ranks: &[usize], n_positives: usize) -> f64 {
    let area: f64 = ranks
        .iter()
        .enumerate()
        .map(|(found, &rank)| {
            let before = if rank == 0 {
                1.0
            } else {
                found as f64 / rank as f64
            };
            let after = (found + 1) as f64 / (rank + 1) as f64;
            (before + after) / 2.0
        })
        .sum();
    area / n_positives as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_rule_by_hand() {
        assert!((trapezoid_ap(&[0, 2, 3], 4) - 0.572_917).abs() < 1e-6);
        assert_eq!(trapezoid_ap(&[0, 1, 2], 3), 1.0);
        assert_eq!(trapezoid_ap(&[1], 1), 0.25);
        assert_eq!(trapezoid_ap(&[], 2), 0.0);
        assert!(trapezoid_ap(&[], 0).is_nan());
    }
}
