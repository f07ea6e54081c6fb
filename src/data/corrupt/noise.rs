//! Noise of a sensor: every sample, or the one sample of a grey pixel, is drawn on its own.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::filter::normal;
use super::raster::Raster;

/// Normal noise of these standard deviations, of levels from 0 to 1.
const DEVIATIONS: [f32; 5] = [0.08, 0.12, 0.18, 0.26, 0.38];
/// Photons that white stands for.
const PHOTONS: [f64; 5] = [60.0, 25.0, 12.0, 5.0, 3.0];
/// Share of samples that become black or white.
const SHARES: [f32; 5] = [0.03, 0.06, 0.09, 0.17, 0.27];

pub(super) fn gaussian(image: Raster, level: usize, rng: &mut ChaCha8Rng) -> Raster {
    image.map(|value| value + DEVIATIONS[level] * normal(rng))
}

pub(super) fn shot(image: Raster, level: usize, rng: &mut ChaCha8Rng) -> Raster {
    let photons = PHOTONS[level];
    image.map(|value| (f64::from(poisson(f64::from(value) * photons, rng)) / photons) as f32)
}

pub(super) fn impulse(image: Raster, level: usize, rng: &mut ChaCha8Rng) -> Raster {
    let share = SHARES[level];
    image.map(|value| match rng.random::<f32>() {
        drawn if drawn < share / 2.0 => 0.0,
        drawn if drawn < share => 1.0,
        _ => value,
    })
}

/// A Poisson count of `mean` (0 to 60 here): the first k at which the distribution function passes a uniform number.
fn poisson(mean: f64, rng: &mut impl Rng) -> u32 {
    let drawn = rng.random::<f64>();
    let mut probability = (-mean).exp();
    let mut passed = probability;
    let mut count = 0;
    // 1,000 is far beyond any count that 64 bits of randomness can ask for, and ends a sum that rounds to less than 1.
    while drawn > passed && count < 1_000 {
        count += 1;
        probability *= mean / f64::from(count);
        passed += probability;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_counts_have_their_mean_as_variance() {
        let mut rng = crate::rng::stream(0, "test", 0);
        for mean in [0.0, 0.7, 12.0, 60.0] {
            let drawn: Vec<f64> = (0..20_000).map(|_| f64::from(poisson(mean, &mut rng))).collect();
            let found = drawn.iter().sum::<f64>() / 20_000.0;
            let variance = drawn.iter().map(|x| (x - found).powi(2)).sum::<f64>() / 20_000.0;
            assert!((found - mean).abs() <= 0.02 * mean.max(0.5), "{mean} {found}");
            assert!((variance - mean).abs() <= 0.06 * mean, "{mean} {variance}");
        }
    }

    #[test]
    fn impulses_are_as_many_as_requested_and_nothing_else_changes() {
        let grey = Raster::plane(100, 100, || 0.5);
        let corrupted = impulse(grey, 4, &mut crate::rng::stream(0, "test", 0));
        let count = |wanted: f32| corrupted.data.iter().filter(|&&value| value == wanted).count();
        let (black, white) = (count(0.0), count(1.0));
        assert_eq!(black + white + count(0.5), 10_000);
        assert!(
            (1_200..1_500).contains(&black) && (1_200..1_500).contains(&white),
            "{black} {white}"
        );
    }
}
