//! Sums of f32 that are the same to the bit in whatever order and in however many parts they are taken (Demmel & Nguyen 2013, with two
//! bins). Each value is cut into a multiple of a coarse unit and a multiple of a fine one, so large that no sum of as many values as
//! were announced rounds in f64; what is below half the fine unit is left out.

/// The units of both bins, as the numbers that round to them when they are added and taken away again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bins {
    coarse: f64,
    fine: f64,
}

/// The bits of an f64's mantissa that are stored.
const MANTISSA: i32 = 52;

impl Bins {
    /// For sums of up to `count` values, none of them farther from 0 than `largest`.
    pub(crate) fn new(largest: f32, count: usize) -> Self {
        // Above `largest`, and two to this power above `count`.
        let power = exponent(f64::from(largest.max(f32::MIN_POSITIVE))) + 1;
        let terms = exponent(count.max(1) as f64) + 2;
        // A number of the middle of a binade stays in it whatever is added, so that what it is rounded to is its unit, 2^(power + terms - 52).
        let middle = |power: i32| 1.5 * 2f64.powi(power + terms);
        // What a coarse unit leaves is at most half of it.
        let left = power + terms - MANTISSA - 1;
        Self {
            coarse: middle(power),
            fine: middle(left),
        }
    }

    /// `value` as a multiple of the coarse unit and one of the fine unit.
    pub(crate) fn cut(self, value: f32) -> [f64; 2] {
        let value = f64::from(value);
        let coarse = (value + self.coarse) - self.coarse;
        let fine = ((value - coarse) + self.fine) - self.fine;
        [coarse, fine]
    }
}

/// The power of two at or below a normal `value`, by its bits: a logarithm may differ from machine to machine.
fn exponent(value: f64) -> i32 {
    ((value.to_bits() >> MANTISSA) & 0x7ff) as i32 - 1023
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom as _;
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn sum(bins: Bins, values: &[f32]) -> [f64; 2] {
        let add = |sum: [f64; 2], &value: &f32| {
            let parts = bins.cut(value);
            [sum[0] + parts[0], sum[1] + parts[1]]
        };
        values.iter().fold([0.; 2], add)
    }

    #[test]
    fn sums_are_the_same_in_any_order_and_in_parts() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (count, largest) in [
            (1, 1.),
            (3, 1e-30),
            (1000, 3.),
            (100_000, 1e30),
            (70_000, f32::MAX),
        ] {
            let mut values: Vec<f32> = (0..count)
                .map(|_| rng.random_range(-1f32..1.) * largest)
                .collect();
            values[0] = largest;
            let bins = Bins::new(largest, count);
            let whole = sum(bins, &values);
            let plain: f64 = values.iter().map(|&value| f64::from(value)).sum();
            let off = (whole[0] + whole[1] - plain).abs();
            assert!(off <= 1e-9 * f64::from(largest), "{count}: {off}");
            for parts in [1, 2, 7] {
                values.shuffle(&mut rng);
                let of_parts = values.chunks(count.div_ceil(parts)).map(|part| sum(bins, part));
                let added = of_parts.reduce(|a, b| [a[0] + b[0], a[1] + b[1]]);
                assert_eq!(added, Some(whole), "{count} in {parts}");
            }
        }
    }

    #[test]
    fn values_of_one_size_are_added_exactly() {
        // 24 bits each, and the fine unit is 2^-60 of the largest for a million.
        let bins = Bins::new(1., 1 << 20);
        for value in [1f32, 0.1, -1.0 / 3.0, 1e-8, f32::EPSILON] {
            let [coarse, fine] = bins.cut(value);
            assert_eq!(coarse + fine, f64::from(value));
        }
    }
}
