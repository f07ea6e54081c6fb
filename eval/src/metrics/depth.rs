//! How far a depth map is from the truth (Eigen et al. 2014), by the nine measures of the toolbox that the reference scores
//! with (`depth/core/evaluation/metrics.py`). All are of one image; a set's value is the mean over its images, as there.

/// The factor of `delta1`; its square and cube are those of `delta2` and `delta3`.
const FACTOR: f64 = 1.25;

/// Errors over the valid pixels of one image. `p` is a predicted depth, `t` the true one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DepthErrors {
    /// Root of the mean of `(p - t)^2`, in the unit of the depth.
    pub rmse: f64,
    /// Mean of `|p - t| / t`.
    pub abs_rel: f64,
    /// Share of pixels with `max(p / t, t / p)` below 1.25, from 0 to 1.
    pub delta1: f64,
    /// The same below 1.25^2.
    pub delta2: f64,
    /// The same below 1.25^3.
    pub delta3: f64,
    /// Mean of `(p - t)^2 / t`, in the unit of the depth.
    pub sq_rel: f64,
    /// Root of the mean of `(ln p - ln t)^2`.
    pub rmse_log: f64,
    /// Mean of `|log10 p - log10 t|`.
    pub log10: f64,
    /// Standard deviation of `ln p - ln t`, times 100 (the scale-invariant error).
    pub silog: f64,
}

impl DepthErrors {
    /// The names of [`Self::values`], in their order.
    pub const NAMES: [&'static str; 9] = [
        "rmse", "abs_rel", "delta1", "delta2", "delta3", "sq_rel", "rmse_log", "log10", "silog",
    ];

    /// Errors of `predicted` (above 0) against `truth`, pixel by pixel, where the truth is above `range.0` and below
    /// `range.1`; none where no pixel is.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn compare(predicted: &[f32], truth: &[f32], range: (f32, f32)) -> Option<Self> {
        assert_eq!(predicted.len(), truth.len(), "one true depth a pixel");
        let mut sums = [0.0f64; 8];
        let (mut n, mut logs) = (0u64, 0.0);
        let pairs = predicted.iter().zip(truth);
        for (&p, &t) in pairs.filter(|(_, truth)| **truth > range.0 && **truth < range.1) {
            let (p, t) = (f64::from(p), f64::from(t));
            let (error, log, factor) = (p - t, p.ln() - t.ln(), (p / t).max(t / p));
            n += 1;
            logs += log;
            let within = |power: i32| f64::from(u8::from(factor < FACTOR.powi(power)));
            let of_pixel = [
                error * error,
                error.abs() / t,
                within(1),
                within(2),
                within(3),
                error * error / t,
                log * log,
                log.abs() / std::f64::consts::LN_10,
            ];
            sums.iter_mut()
                .zip(of_pixel)
                .for_each(|(sum, value)| *sum += value);
        }
        let mean = |place: usize| sums[place] / n as f64;
        (n > 0).then(|| Self {
            rmse: mean(0).sqrt(),
            abs_rel: mean(1),
            delta1: mean(2),
            delta2: mean(3),
            delta3: mean(4),
            sq_rel: mean(5),
            rmse_log: mean(6).sqrt(),
            log10: mean(7),
            silog: 100.0 * (mean(6) - (logs / n as f64).powi(2)).max(0.0).sqrt(),
        })
    }

    /// All of them, in the order of [`Self::NAMES`].
    pub fn values(&self) -> [f64; 9] {
        [
            self.rmse,
            self.abs_rel,
            self.delta1,
            self.delta2,
            self.delta3,
            self.sq_rel,
            self.rmse_log,
            self.log10,
            self.silog,
        ]
    }
}

/// Whether a true depth counts in training: 0 stands for a pixel without measurement, and sensors end somewhere.
pub fn valid(truth: f32, range: (f32, f32)) -> bool {
    truth > range.0 && truth <= range.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let truth = [2.0, 4.0, 0.0, 1.0, 11.0, 8.0];
        let predicted = [2.5, 3.0, 9.0, 1.2, 1.0, 8.0];
        let found = DepthErrors::compare(&predicted, &truth, (0.0, 10.0)).unwrap();
        // errors 0.5, -1, 0.2, 0: squares 0.25 + 1 + 0.04 + 0
        assert!((found.rmse - (1.29f64 / 4.0).sqrt()).abs() < 1e-6);
        assert!((found.abs_rel - (0.25 + 0.25 + 0.2) / 4.0).abs() < 1e-6);
        // factors 1.25 (not below), 1.33, 1.2, 1
        assert_eq!(found.delta1, 0.5);
    }

    #[test]
    fn values_are_the_toolboxs() {
        let expected = crate::testing::reference("depth_metrics");
        let (predicted, truth) = (expected.f32s("predicted"), expected.f32s("truth"));
        let found = DepthErrors::compare(&predicted, &truth, (1e-3, 10.0)).unwrap();
        let theirs = [
            "rmse", "abs_rel", "a1", "a2", "a3", "sq_rel", "rmse_log", "log_10", "silog",
        ];
        for ((name, found), theirs) in DepthErrors::NAMES.iter().zip(found.values()).zip(theirs) {
            let expected = expected.number(theirs);
            // They are computed in f32 there.
            assert!(
                (found / expected - 1.0).abs() < 2e-6,
                "{name}: {found} {expected}"
            );
        }
    }

    #[test]
    fn one_pixel_is_enough_and_within_is_not_beyond() {
        let close = DepthErrors::compare(&[2.2, 9.0], &[2.0, 0.0], (0.0, 10.0)).unwrap();
        assert_eq!(close.delta1, 1.0);
        assert!((close.rmse - 0.2).abs() < 1e-6 && (close.abs_rel - 0.1).abs() < 1e-6);
        // 2 of 3 are beyond the factor, one too far and one too near
        let mixed = DepthErrors::compare(&[2.2, 2.6, 1.5], &[2.0; 3], (0.0, 10.0)).unwrap();
        assert_eq!(mixed.delta1, 1.0 / 3.0);
    }

    #[test]
    fn the_range_holds_its_end_and_not_its_beginning() {
        let counted = [1.0, 1.5, 10.0, 10.5].map(|truth| valid(truth, (1.0, 10.0)));
        assert_eq!(counted, [false, true, true, false]);
    }

    #[test]
    fn an_image_without_valid_pixels_has_no_errors() {
        assert_eq!(
            DepthErrors::compare(&[1.0, 1.0], &[0.0, f32::NAN], (0.0, 10.0)),
            None
        );
    }
}
