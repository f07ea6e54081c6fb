//! McNemar's test (1947): whether two classifiers that saw the same rows are right equally often.

/// Rows on which two classifiers disagree about being right, and how surprising the split is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct McNemar {
    /// Rows only the first has right.
    pub only_a: usize,
    /// Rows only the second has right.
    pub only_b: usize,
    /// Two-sided exact p-value under the binomial with probability 1/2; 1 when they never disagree.
    pub p_value: f64,
}

/// Compares right answers row by row. The exact binomial tail is summed for any number of rows, so that no
/// approximation has to be chosen: few disagreements are where the usual chi-squared form is wrong.
///
/// # Panics
/// If the lengths differ.
pub fn mcnemar(right_a: &[bool], right_b: &[bool]) -> McNemar {
    assert_eq!(right_a.len(), right_b.len(), "the same rows");
    let only = |of: &[bool], other: &[bool]| of.iter().zip(other).filter(|(a, b)| **a && !**b).count();
    let (only_a, only_b) = (only(right_a, right_b), only(right_b, right_a));
    McNemar {
        only_a,
        only_b,
        p_value: two_sided_binomial(only_a.min(only_b), only_a + only_b),
    }
}

/// `2 P(X <= least)` for X binomial over `n` fair coins, at most 1.
fn two_sided_binomial(smaller: usize, n: usize) -> f64 {
    // ln of the greatest term, C(n, least) / 2^n; the terms below it follow by their ratios.
    let log_choose: f64 = (0..smaller)
        .map(|i| ((n - i) as f64).ln() - ((i + 1) as f64).ln())
        .sum();
    let greatest = log_choose - n as f64 * std::f64::consts::LN_2;
    let (mut term, mut sum) = (1.0, 1.0);
    for i in (0..smaller).rev() {
        term *= (i + 1) as f64 / (n - i) as f64;
        sum += term;
        if term < 1e-18 * sum {
            break;
        }
    }
    (2.0 * (greatest + sum.ln()).exp()).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_values() {
        // 1 against 5: 2 (1 + 6) / 64
        let a = [true, true, true, true, true, false, true, false];
        let b = [false, false, false, false, false, true, true, false];
        let test = mcnemar(&a, &b);
        assert_eq!((test.only_a, test.only_b), (5, 1));
        assert!((test.p_value - 14.0 / 64.0).abs() < 1e-12);
        assert_eq!(mcnemar(&a, &a).p_value, 1.0);
        assert_eq!(two_sided_binomial(3, 6), 1.0);
        assert!((two_sided_binomial(0, 10) - 2.0 / 1024.0).abs() < 1e-15);
    }

    #[test]
    fn many_rows_meet_the_normal_limit() {
        // 49,000 against 51,000: z = (1000 - 0.5) / sqrt(25,000) = 6.3214, p = 2.59e-10
        let p = two_sided_binomial(49_000, 100_000);
        assert!((p / 2.592e-10 - 1.0).abs() < 0.01, "{p:e}");
    }
}
