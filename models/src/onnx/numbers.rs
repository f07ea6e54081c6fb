//! The numbers that a file's weights are stored in, and how layers are quantised.
//!
//! In f16 the matrices are stored at half the size and brought to f32 when a session is made: speed and everything computed
//! stay those of f32. In int8 the products of linear layers are of 8-bit numbers (Jacob et al. 2018, section 2): `x = scale
//! (q - zero)` with unsigned q for what goes in, signed q and a scale for each output for the weights, written as
//! QuantizeLinear and DequantizeLinear around an ordinary product, which runtimes put together.

use std::collections::BTreeMap;

/// What the matrices of a file are stored in.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Numbers {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers in the linear layers named here, with the range of what goes into each; others stay f32.
    Int8(BTreeMap<String, InputRange>),
}

/// Between which values the input of a layer is resolved; beyond them it is clipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InputRange {
    /// Smallest value.
    pub low: f32,
    /// Largest value.
    pub high: f32,
}

/// Largest absolute 8-bit weight. Of 127 possible steps 63 are used: processors without an 8-bit dot product add pairs of
/// products in 16 bits, which would overflow.
pub const LARGEST_WEIGHT: f32 = 63.;

impl InputRange {
    /// Scale and zero point of unsigned 8-bit numbers. The range is widened to hold 0, which then is exact.
    pub fn scale_and_zero(self) -> (f32, u8) {
        let (low, high) = (self.low.min(0.), self.high.max(0.));
        let scale = ((high - low) / 255.).max(f32::MIN_POSITIVE);
        (scale, (-low / scale).round().clamp(0., 255.) as u8)
    }

    /// `value` as the quantised layer sees it.
    pub fn rounded(self, value: f32) -> f32 {
        let (scale, zero) = self.scale_and_zero();
        let zero = f32::from(zero);
        let steps = ((value / scale).round_ties_even() + zero).clamp(0., 255.);
        (steps - zero) * scale
    }
}

/// Scales of the outputs of a weight `[out, in]`, row-major.
pub fn weight_scales(weight: &[f32], inputs: usize) -> Vec<f32> {
    let scale = |row: &[f32]| {
        let largest = row.iter().fold(0f32, |max, value| max.max(value.abs()));
        (largest / LARGEST_WEIGHT).max(f32::MIN_POSITIVE)
    };
    weight.chunks_exact(inputs.max(1)).map(scale).collect()
}

/// The 8-bit numbers of a weight `[out, in]` with its [`weight_scales`], in its order.
pub fn weight_steps(weight: &[f32], inputs: usize, scales: &[f32]) -> Vec<i8> {
    let rows = weight.chunks_exact(inputs.max(1)).zip(scales);
    rows.flat_map(|(row, scale)| row.iter().map(move |value| (value / scale).round() as i8))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_exact_and_the_ends_are_reached() {
        for (low, high) in [(-1., 3.), (0.5, 2.), (-4., -1.), (-0.1, 0.)] {
            let range = InputRange { low, high };
            let (scale, zero) = range.scale_and_zero();
            assert_eq!(range.rounded(0.), 0., "{range:?}");
            for value in [low, high, 0.3 * low + 0.7 * high] {
                assert!(
                    (range.rounded(value) - value).abs() <= 0.51 * scale,
                    "{range:?} {value}"
                );
            }
            assert!(range.rounded(1e6) <= high.max(0.) + scale && range.rounded(-1e6) >= low.min(0.) - scale);
            assert_eq!(zero == 0, low >= 0.);
        }
        let nothing = InputRange { low: 0., high: 0. };
        assert_eq!(nothing.rounded(0.), 0.);
    }

    #[test]
    fn every_output_has_its_own_scale() {
        let weight = [0.1, -0.2, 0.05, 10., 0., 5., 0., 0., 0.];
        let scales = weight_scales(&weight, 3);
        let steps = weight_steps(&weight, 3, &scales);
        assert_eq!(steps[1], -63);
        assert_eq!(steps[3], 63);
        assert_eq!(steps[6..], [0; 3]);
        for ((step, value), row) in steps.iter().zip(weight).zip([0, 0, 0, 1, 1, 1, 2, 2, 2]) {
            assert!((f32::from(*step) * scales[row] - value).abs() <= 0.51 * scales[row]);
        }
    }
}
