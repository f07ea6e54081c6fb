//! Filters and random numbers that several corruptions share.

use rand::Rng;

use super::PUBLISHED_SIDE;
use super::raster::{Raster, mirrored};

/// A Gaussian of standard deviation `sigma` pixels, at least 0, cut off after `reach` deviations.
pub(super) fn gaussian_blur(image: &Raster, sigma: f32, reach: f32) -> Raster {
    let radius = (reach * sigma).round() as isize;
    if radius == 0 {
        return image.clone();
    }
    let weight = |distance: isize| (-0.5 * (distance as f64 / f64::from(sigma)).powi(2)).exp();
    let weights: Vec<f64> = (-radius..=radius).map(weight).collect();
    let across = taps(image.width, &weights);
    let rows = image.redrawn(|x, y, out| {
        for &(place, weight) in &across[x] {
            add(image.pixel(place, y), weight, out);
        }
    });
    let down = taps(image.height, &weights);
    rows.redrawn(|x, y, out| {
        for &(place, weight) in &down[y] {
            add(rows.pixel(x, place), weight, out);
        }
    })
}

/// Which samples each of `length` places is a sum of, and their weights, which sum to 1. Mirrored places are added up, so
/// that a kernel far wider than the image costs no more than the image.
fn taps(length: usize, weights: &[f64]) -> Vec<Vec<(usize, f32)>> {
    let radius = (weights.len() / 2) as isize;
    let total: f64 = weights.iter().sum();
    (0..length as isize)
        .map(|centre| {
            let mut folded = vec![0.0; length];
            for (weight, place) in weights.iter().zip(centre - radius..) {
                folded[mirrored(place, length)] += weight / total;
            }
            let there = folded.into_iter().enumerate().filter(|(_, weight)| *weight > 0.0);
            there.map(|(place, weight)| (place, weight as f32)).collect()
        })
        .collect()
}

fn add(values: &[f32], weight: f32, out: &mut [f32]) {
    out.iter_mut()
        .zip(values)
        .for_each(|(out, value)| *out += weight * value);
}

/// The mean of the image seen at `offsets` (x, y in pixels), each with its weight; weights need not sum to 1.
pub(super) fn mean_of_offsets(image: &Raster, offsets: &[(f32, f32, f32)]) -> Raster {
    let total: f32 = offsets.iter().map(|(_, _, weight)| weight).sum();
    image.redrawn(|x, y, out| {
        for &(right, down, weight) in offsets {
            image.add_sample(x as f32 + right, y as f32 + down, weight / total, out);
        }
    })
}

/// A streak to one side, `length` pixels long, whose weight falls as a Gaussian of deviation `sigma` pixels; `degrees` from
/// the horizontal, downwards (ImageMagick's motion blur).
pub(super) fn streak(image: &Raster, length: f32, sigma: f32, degrees: f32) -> Raster {
    // At least as many samples as the published kernel has, and at most a pixel between two.
    let steps = (length / image.unit().min(1.0)).round().max(1.0) as usize;
    let (down, right) = degrees.to_radians().sin_cos();
    let offsets: Vec<(f32, f32, f32)> = (0..=steps)
        .map(|step| {
            let far = length * step as f32 / steps as f32;
            let weight = (-0.5 * (far / sigma).powi(2)).exp();
            (far * right, far * down, weight)
        })
        .collect();
    mean_of_offsets(image, &offsets)
}

/// The middle of `image` magnified `factor` times, at least 1; `weight` times its values are added to `out`.
pub(super) fn magnified(image: &Raster, factor: f32, weight: f32, out: &mut Raster) {
    let (across, down) = (sources(image.width, factor), sources(image.height, factor));
    for (place, values) in out.data.chunks_exact_mut(image.channels).enumerate() {
        let (x, y) = (across[place % image.width], down[place / image.width]);
        image.add_sample(x, y, weight, values);
    }
}

/// Where along a side of `length` pixels the pixels come from under a magnification. The published code works on 224: it cuts
/// out whole pixels, lays the ends of what it cut out at the ends of whole pixels, and trims what is too much on both sides.
/// On another side the places are as many parts of the side.
fn sources(length: usize, factor: f32) -> Vec<f32> {
    let factor = f64::from(factor);
    // Of a factor such as 1.12 in f32, a side of exactly 200 pixels must not become 201.
    let kept = (f64::from(PUBLISHED_SIDE) / factor - 1e-4).ceil();
    let start = ((f64::from(PUBLISHED_SIDE) - kept) / 2.0).floor();
    let enlarged = (kept * factor).round();
    let trimmed = ((enlarged - f64::from(PUBLISHED_SIDE)) / 2.0).floor().max(0.0);
    let step = (kept - 1.0) / (enlarged - 1.0);
    let unit = length as f64 / f64::from(PUBLISHED_SIDE);
    let source = |place: usize| {
        let published = (place as f64 + 0.5) / unit - 0.5;
        let source = start + (published + trimmed) * step;
        ((source + 0.5) * unit - 0.5) as f32
    };
    (0..length).map(source).collect()
}

/// A number from a normal distribution of mean 0 and deviation 1 (Box and Muller).
pub(super) fn normal(rng: &mut impl Rng) -> f32 {
    // 1 - u lies above 0, whose logarithm would be infinite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

/// A number from `low` to `high`, uniformly.
pub(super) fn uniform(low: f32, high: f32, rng: &mut impl Rng) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(width: usize, height: usize, x: usize, y: usize) -> Raster {
        let mut place = 0;
        Raster::plane(width, height, || {
            place += 1;
            f32::from(u8::from(place - 1 == y * width + x))
        })
    }

    #[test]
    fn a_gaussian_keeps_the_sum_and_is_as_wide_as_requested() {
        let blurred = gaussian_blur(&dot(41, 41, 20, 20), 3.0, 4.0);
        let sum: f32 = blurred.data.iter().sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        let variance: f32 = (0..41)
            .map(|x| (x as f32 - 20.0).powi(2) * (0..41).map(|y| blurred.pixel(x, y)[0]).sum::<f32>())
            .sum();
        assert!((variance.sqrt() - 3.0).abs() < 0.02, "{variance}");
        // Far wider than the image: its mean everywhere.
        let flat = gaussian_blur(&dot(5, 3, 0, 0), 300.0, 3.0);
        assert!(flat.data.iter().all(|value| (value - 1.0 / 15.0).abs() < 1e-3));
        assert_eq!(gaussian_blur(&dot(5, 3, 0, 0), 0.0, 4.0), dot(5, 3, 0, 0));
    }

    #[test]
    fn a_streak_lies_on_one_side_in_its_direction() {
        let streaked = streak(&dot(224, 224, 100, 100), 20.0, 5.0, 0.0);
        // The image is looked up ahead, so the dot is seen from the left of it.
        assert!(streaked.pixel(95, 100)[0] > 0.05 && streaked.pixel(105, 100)[0] == 0.0);
        assert_eq!(streaked.pixel(95, 104)[0], 0.0);
    }

    #[test]
    fn normal_numbers_have_deviation_one() {
        let mut rng = crate::rng::stream(0, "test", 0);
        let drawn: Vec<f64> = (0..20_000).map(|_| f64::from(normal(&mut rng))).collect();
        let mean = drawn.iter().sum::<f64>() / 20_000.0;
        let variance = drawn.iter().map(|x| x * x).sum::<f64>() / 20_000.0;
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04,
            "{mean} {variance}"
        );
    }
}
