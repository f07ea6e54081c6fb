//! How the time is shared: every rung has the same part of the whole, which its candidates share evenly.

/// Candidates of each rung: all, then the better half (the greater half of an odd number), down to one.
pub fn rungs(candidates: usize) -> Vec<usize> {
    let mut counts = vec![candidates];
    while let Some(&count) = counts.last().filter(|&&count| count > 1) {
        counts.push(count.div_ceil(2));
    }
    counts
}

/// The share of a full run that a candidate has done at the end of each rung; the last is 1.
pub fn shares(counts: &[usize]) -> Vec<f64> {
    let whole: f64 = counts.iter().map(|&count| 1. / count as f64).sum();
    let mut done = 0.;
    counts
        .iter()
        .map(|&count| {
            done += 1. / count as f64;
            done / whole
        })
        .collect()
}

/// Seconds of a full run, where all rungs together take `budget` seconds.
pub fn full_seconds(counts: &[usize], budget: f64) -> f64 {
    let whole: f64 = counts.iter().map(|&count| 1. / count as f64).sum();
    budget / counts.len() as f64 * whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_halve_and_take_the_whole_budget() {
        assert_eq!(rungs(8), [8, 4, 2, 1]);
        assert_eq!(rungs(5), [5, 3, 2, 1]);
        assert_eq!(rungs(1), [1]);
        for candidates in 1..20 {
            let counts = rungs(candidates);
            let shares = shares(&counts);
            assert!((shares.last().unwrap() - 1.).abs() < 1e-12);
            assert!(shares.windows(2).all(|pair| pair[0] < pair[1]));
            // What all candidates take in all rungs is the budget.
            let full = full_seconds(&counts, 60.);
            let mut before = 0.;
            let mut total = 0.;
            for (&count, &share) in counts.iter().zip(&shares) {
                total += count as f64 * (share - before) * full;
                before = share;
            }
            assert!((total - 60.).abs() < 1e-9, "{candidates}: {total}");
        }
        let counts = rungs(8);
        assert!((full_seconds(&counts, 3600.) - 1687.5).abs() < 1e-9);
    }
}
