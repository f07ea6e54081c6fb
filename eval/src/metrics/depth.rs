//! How far a depth map is from the truth (Eigen et al. 2014): root mean square error, absolute relative error, and the
//! share of pixels within a factor of 1.25. All are of one image; a set's value is the mean over its images, as the
//! reference's toolbox has it.

/// The factor of `delta1`.
const FACTOR: f64 = 1.25;

/// Errors over the valid pixels of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DepthErrors {
    /// Root of the mean squared error, in the unit of the depth.
    pub rmse: f64,
    /// Mean of the error's share of the true depth.
    pub abs_rel: f64,
    /// Share of pixels whose depth and true depth are within a factor of 1.25 of each other, from 0 to 1.
    pub delta1: f64,
}

impl DepthErrors {
    /// Errors of `predicted` against `truth`, pixel by pixel, where the truth is above `range.0` and at most `range.1`;
    /// none where no pixel is.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn of(predicted: &[f32], truth: &[f32], range: (f32, f32)) -> Option<Self> {
        assert_eq!(predicted.len(), truth.len(), "one true depth a pixel");
        let (mut n, mut squares, mut relative, mut within) = (0u64, 0.0, 0.0, 0u64);
        for (&predicted, &truth) in predicted
            .iter()
            .zip(truth)
            .filter(|(_, truth)| valid(**truth, range))
        {
            let (predicted, truth) = (f64::from(predicted), f64::from(truth));
            n += 1;
            squares += (predicted - truth) * (predicted - truth);
            relative += (predicted - truth).abs() / truth;
            within += u64::from((predicted / truth).max(truth / predicted) < FACTOR);
        }
        (n > 0).then(|| Self {
            rmse: (squares / n as f64).sqrt(),
            abs_rel: relative / n as f64,
            delta1: within as f64 / n as f64,
        })
    }
}

/// Whether a true depth counts: 0 stands for a pixel without measurement, and sensors end somewhere.
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
        let found = DepthErrors::of(&predicted, &truth, (0.0, 10.0)).unwrap();
        // errors 0.5, -1, 0.2, 0: squares 0.25 + 1 + 0.04 + 0
        assert!((found.rmse - (1.29f64 / 4.0).sqrt()).abs() < 1e-6);
        assert!((found.abs_rel - (0.25 + 0.25 + 0.2) / 4.0).abs() < 1e-6);
        // factors 1.25 (not below), 1.33, 1.2, 1
        assert_eq!(found.delta1, 0.5);
    }

    #[test]
    fn one_pixel_is_enough_and_within_is_not_beyond() {
        let close = DepthErrors::of(&[2.2, 9.0], &[2.0, 0.0], (0.0, 10.0)).unwrap();
        assert_eq!(close.delta1, 1.0);
        assert!((close.rmse - 0.2).abs() < 1e-6 && (close.abs_rel - 0.1).abs() < 1e-6);
        // 2 of 3 are beyond the factor, one too far and one too near
        let mixed = DepthErrors::of(&[2.2, 2.6, 1.5], &[2.0; 3], (0.0, 10.0)).unwrap();
        assert_eq!(mixed.delta1, 1.0 / 3.0);
    }

    #[test]
    fn the_range_holds_its_end_and_not_its_beginning() {
        let counted = [1.0, 1.5, 10.0, 10.5].map(|truth| valid(truth, (1.0, 10.0)));
        assert_eq!(counted, [false, true, true, false]);
    }

    #[test]
    fn an_image_without_valid_pixels_has_no_errors() {
        assert_eq!(DepthErrors::of(&[1.0, 1.0], &[0.0, f32::NAN], (0.0, 10.0)), None);
    }
}
