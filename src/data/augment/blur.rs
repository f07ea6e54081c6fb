//! The reference's blur: torchvision's `GaussianBlur(kernel_size=9)`, a Gaussian cut off after four pixels on each side
//! (pytorch/vision: torchvision/transforms/_functional_tensor.py). DINO's first version blurred through Pillow instead,
//! whose kernel grows with sigma.

use super::RgbImage;

/// Pixels on each side of the centre.
const RADIUS: usize = 4;
/// Weights of a row of the kernel.
pub const TAPS: usize = 2 * RADIUS + 1;
/// Sums that stay in registers while the taps are gone through.
const LANES: usize = 16;

/// Blurs with a 9 x 9 Gaussian of standard deviation `sigma` in pixels, above 0. Beyond an edge the image is mirrored, the
/// edge pixel not repeated. Sums are f32, the result rounded.
pub fn gaussian_blur(image: &RgbImage, sigma: f64) -> RgbImage {
    let weights = kernel(sigma);
    let (width, height) = (image.width() as usize, image.height() as usize);
    let samples = width * 3;
    let mut out = vec![0; image.data().len()]; // [height, width, 3]
    // One row at a time, first from top to bottom, then from left to right: no floating-point image is ever stored.
    let mut padded = vec![0.0_f32; samples + 2 * RADIUS * 3];
    let mut sums = vec![0.0_f32; samples];
    for (y, out) in out.chunks_exact_mut(samples).enumerate() {
        let rows = std::array::from_fn(|tap| {
            let first = mirrored(y + tap, height) * samples;
            &image.data()[first..first + samples]
        });
        weighted_sum(rows, &weights, &mut padded[RADIUS * 3..RADIUS * 3 + samples]);
        pad(&mut padded, width);
        let columns = std::array::from_fn(|tap| &padded[tap * 3..tap * 3 + samples]);
        weighted_sum(columns, &weights, &mut sums);
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = (sum + 0.5) as u8;
        }
    }
    RgbImage::new(image.width(), image.height(), out).expect("as many samples as before")
}

/// The nine weights of a row of the kernel, which sum to 1.
pub fn kernel(sigma: f64) -> [f32; TAPS] {
    let exact: [f64; TAPS] = std::array::from_fn(|tap| {
        let distance = (tap as f64 - RADIUS as f64) / sigma;
        (-0.5 * distance * distance).exp()
    });
    let total: f64 = exact.iter().sum();
    exact.map(|weight| (weight / total) as f32)
}

/// The sum of nine slices as long as `out`, each times its weight.
fn weighted_sum<T: Copy + Into<f32>>(sources: [&[T]; TAPS], weights: &[f32; TAPS], out: &mut [f32]) {
    let sources = sources.map(|source| source.as_chunks::<LANES>());
    let (blocks, tail) = out.as_chunks_mut::<LANES>();
    for (place, block) in blocks.iter_mut().enumerate() {
        *block = [0.0; LANES];
        for ((source, _), weight) in sources.iter().zip(weights) {
            for (sum, &sample) in block.iter_mut().zip(&source[place]) {
                *sum += weight * sample.into();
            }
        }
    }
    for (place, out) in tail.iter_mut().enumerate() {
        let terms = sources.iter().zip(weights);
        *out = terms
            .map(|((_, source), weight)| weight * source[place].into())
            .sum();
    }
}

/// Fills the [`RADIUS`] pixels at both ends of `padded`, `[RADIUS + width + RADIUS, 3]`, from those between.
fn pad(padded: &mut [f32], width: usize) {
    let ends = (0..RADIUS).chain(RADIUS + width..width + 2 * RADIUS);
    for place in ends {
        let from = (RADIUS + mirrored(place, width)) * 3;
        padded.copy_within(from..from + 3, place * 3);
    }
}

/// Which of `length` samples lies at `place` of the padded ones, of which [`RADIUS`] come before the first. Where an image
/// is narrower than the kernel's arm, which torchvision refuses, the mirror image is mirrored again.
pub(super) fn mirrored(place: usize, length: usize) -> usize {
    let period = 2 * (length - 1);
    if period == 0 {
        return 0;
    }
    let offset = (place + period * RADIUS - RADIUS) % period;
    offset.min(period - offset)
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn the_kernel_is_a_normalised_gaussian() {
        let expected = [0.398_943, 0.241_971, 0.053_991, 0.004_432, 0.000_134];
        let weights = kernel(1.0);
        for (distance, expected) in expected.iter().enumerate() {
            assert!((weights[RADIUS + distance] - expected).abs() < 1e-6);
            assert_eq!(weights[RADIUS + distance], weights[RADIUS - distance]);
        }
    }

    #[test]
    fn blurs_are_torchvisions_within_a_level() {
        let input = golden::image("input");
        for sigma in ["0.1", "0.7", "2.0"] {
            let expected = golden::image(&format!("blur9_{sigma}"));
            let blurred = gaussian_blur(&input, sigma.parse().unwrap());
            let pairs = blurred.data().iter().zip(expected.data());
            let different = pairs.filter(|(a, b)| a != b).count();
            assert!(golden::largest_difference(&blurred, &expected) <= 1, "{sigma}");
            // Only sums that lie at a half to the last bit may round the other way.
            assert!(different * 1000 < expected.data().len(), "{sigma}: {different}");
        }
    }

    #[test]
    fn edges_mirror_without_repeating() {
        let places: Vec<usize> = (0..13).map(|place| mirrored(place, 5)).collect();
        assert_eq!(places, [4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0]);
        let places: Vec<usize> = (0..11).map(|place| mirrored(place, 3)).collect();
        assert_eq!(places, [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]);
    }

    #[test]
    fn the_smallest_images_blur_too() {
        let dot = RgbImage::new(1, 1, vec![1, 2, 3]).unwrap();
        assert_eq!(gaussian_blur(&dot, 2.0), dot);
        let flat = RgbImage::new(2, 3, vec![255; 18]).unwrap();
        assert_eq!(gaussian_blur(&flat, 0.1), flat);
    }
}
