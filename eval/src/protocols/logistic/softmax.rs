//! Softmax cross-entropy on a class-major block of logits, fused with the move along a search direction. Loops run
//! over the rows of a block, so the compiler turns them into vector code.

/// Loss and slope of a block: sums over its rows, in f64 because a sum over all rows is compared to 1e-9.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct LossSlope {
    /// Sum of the cross-entropies, nats.
    pub loss: f64,
    /// Derivative of the loss along the direction, per unit of step.
    pub slope: f64,
    /// Sum over the rows of `1 - sum_k p_k^2`: how undecided the classifier is, the mean curvature of the loss.
    pub spread: f64,
}

/// Per-row values of one block, reused from block to block.
#[derive(Debug, Default)]
pub(crate) struct RowScratch {
    max: Vec<f32>,
    own: Vec<f32>,
    others: Vec<f32>,
    slope: Vec<f32>,
}

/// `exp(x)` for `x <= 0`, relative error below 2e-7; 0 below -87. Without branches or calls, so that a loop over it
/// becomes vector code on every target.
#[inline(always)]
pub(crate) fn exp_non_positive(x: f32) -> f32 {
    // Adding and removing 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has enough trailing zeros that n * LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Taylor series to r^7 on |r| <= ln(2)/2.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // The integer sits in the low bits of `shifted`: move it into the exponent.
    let scale = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    if x > -87.0 { p * scale } else { 0.0 }
}

/// Loss and slope of `softmax(z + t * zd)` against `labels`; `residual` receives `p - onehot(label)`.
///
/// `z`, `zd` and `residual` are `[K, B]`. What the labelled class lacks to 1 is summed from the other classes rather
/// than subtracted from 1, so that well-fitted rows keep their relative precision.
pub(crate) fn softmax_cross_entropy(
    z: &[f32],
    zd: &[f32],
    t: f32,
    labels: &[u32],
    residual: &mut [f32],
    scratch: &mut RowScratch,
) -> LossSlope {
    let rows = labels.len();
    scratch.reset(rows);
    let RowScratch {
        max,
        own,
        others,
        slope,
    } = scratch;

    for ((z, zd), out) in z
        .chunks_exact(rows)
        .zip(zd.chunks_exact(rows))
        .zip(residual.chunks_exact_mut(rows))
    {
        for (((z, zd), out), max) in z.iter().zip(zd).zip(out).zip(max.iter_mut()) {
            let value = z + t * zd;
            *out = value;
            *max = if value > *max { value } else { *max };
        }
    }

    let mut total = LossSlope::default();
    for (i, &label) in labels.iter().enumerate() {
        let own_logit = residual[label as usize * rows + i];
        total.loss += f64::from(max[i] - own_logit);
    }

    for (k, (zd, out)) in zd
        .chunks_exact(rows)
        .zip(residual.chunks_exact_mut(rows))
        .enumerate()
    {
        let k = k as u32;
        for i in 0..rows {
            let e = exp_non_positive(out[i] - max[i]);
            let is_own = labels[i] == k;
            let other = if is_own { 0.0 } else { e };
            own[i] += e - other;
            others[i] += other;
            slope[i] += other * zd[i];
            out[i] = other;
        }
    }

    for (i, &label) in labels.iter().enumerate() {
        let own_zd = zd[label as usize * rows + i];
        let sum = own[i] + others[i];
        // own - 1 is exactly 0 where the labelled class is the largest: then ln_1p keeps tiny losses.
        total.loss += (f64::from(others[i]) + f64::from(own[i] - 1.0)).ln_1p();
        total.slope += f64::from((slope[i] - others[i] * own_zd) / sum);
        max[i] = 1.0 / sum;
    }
    slope.fill(0.0);
    for out in residual.chunks_exact_mut(rows) {
        for ((out, inverse), squares) in out.iter_mut().zip(max.iter()).zip(slope.iter_mut()) {
            *out *= inverse;
            *squares += *out * *out;
        }
    }
    for (i, &label) in labels.iter().enumerate() {
        let (p_own, p_others) = (own[i] * max[i], others[i] * max[i]);
        residual[label as usize * rows + i] = -p_others;
        // 1 - p_own^2 = p_others (1 + p_own).
        total.spread += f64::from(p_others * (1.0 + p_own) - slope[i]);
    }
    total
}

impl RowScratch {
    fn reset(&mut self, rows: usize) {
        for (values, fill) in [
            (&mut self.max, f32::NEG_INFINITY),
            (&mut self.own, 0.0),
            (&mut self.others, 0.0),
            (&mut self.slope, 0.0),
        ] {
            values.clear();
            values.resize(rows, fill);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_in_ten_million() {
        let mut worst = 0f64;
        for i in 0..200_000 {
            let x = -87.0 * (i as f32) / 200_000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp_non_positive(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "{worst:e}");
        assert_eq!(exp_non_positive(0.0), 1.0);
        assert_eq!(exp_non_positive(-1e30), 0.0);
        assert_eq!(exp_non_positive(f32::NEG_INFINITY), 0.0);
    }

    /// `[K, B]` logits with rows far apart in scale, as a global maximum would break.
    fn wide() -> (Vec<f32>, Vec<f32>, Vec<u32>) {
        let z = vec![
            900.0, -3.0, 0.5, 40.0, 880.0, -2.0, 0.25, 40.5, 0.0, 1.0, -0.5, 0.0,
        ];
        let zd = vec![1.0, -0.5, 0.25, 2.0, -1.0, 0.5, 0.75, -2.0, 0.0, 1.5, -0.25, 0.5];
        (z, zd, vec![0, 1, 2, 0])
    }

    fn reference(z: &[f32], zd: &[f32], t: f64, labels: &[u32]) -> (LossSlope, Vec<f64>) {
        let rows = labels.len();
        let classes = z.len() / rows;
        let mut total = LossSlope::default();
        let mut residual = vec![0.0; z.len()];
        for (i, &label) in labels.iter().enumerate() {
            let value = |k: usize| f64::from(z[k * rows + i]) + t * f64::from(zd[k * rows + i]);
            let max = (0..classes).map(value).fold(f64::MIN, f64::max);
            let sum: f64 = (0..classes).map(|k| (value(k) - max).exp()).sum();
            total.spread += 1.0
                - (0..classes)
                    .map(|k| ((value(k) - max).exp() / sum).powi(2))
                    .sum::<f64>();
            total.loss += sum.ln() + max - value(label as usize);
            for k in 0..classes {
                let r = (value(k) - max).exp() / sum - f64::from(u8::from(k == label as usize));
                residual[k * rows + i] = r;
                total.slope += r * f64::from(zd[k * rows + i]);
            }
        }
        (total, residual)
    }

    #[test]
    fn loss_slope_and_residual_match_f64_on_wide_logits() {
        let (z, zd, labels) = wide();
        let mut residual = vec![0.0; z.len()];
        for t in [0.0f32, 0.5, 1.0] {
            let (expected, expected_residual) = reference(&z, &zd, f64::from(t), &labels);
            let found = softmax_cross_entropy(&z, &zd, t, &labels, &mut residual, &mut RowScratch::default());
            assert!((found.loss - expected.loss).abs() < 1e-6 * expected.loss);
            assert!((found.slope - expected.slope).abs() < 1e-6);
            assert!((found.spread - expected.spread).abs() < 1e-6);
            for (found, expected) in residual.iter().zip(expected_residual) {
                assert!((f64::from(*found) - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_well_fitted_row_keeps_its_tiny_loss() {
        let mut residual = vec![0.0; 2];
        let found = softmax_cross_entropy(
            &[18.0, 0.0],
            &[0.0, 0.0],
            0.0,
            &[0],
            &mut residual,
            &mut RowScratch::default(),
        );
        let expected = (-18f64).exp();
        assert!((found.loss / expected - 1.0).abs() < 1e-6);
        assert!((f64::from(residual[0]) / -expected - 1.0).abs() < 1e-6);
    }
}
