//! Blurs of a lens, of glass, of a moving camera and of one that nears its object.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::filter::{gaussian_blur, magnified, mean_of_offsets, streak, uniform};
use super::raster::{Raster, level as level_of};

/// Radius of the disk, and deviation of the Gaussian that softens its edge, in pixels at 224.
const DISKS: [(f32, f32); 5] = [(3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)];
/// Deviation of the Gaussian before and after, largest displacement (both in pixels at 224), times that pixels change places.
const GLASS: [(f32, f32, usize); 5] = [
    (0.7, 1.0, 2),
    (0.9, 2.0, 1),
    (1.0, 2.0, 3),
    (1.1, 3.0, 2),
    (1.5, 4.0, 2),
];
/// Radius (half the streak's length) and deviation, in pixels at 224.
const STREAKS: [(f32, f32); 5] = [(10.0, 3.0), (15.0, 5.0), (15.0, 8.0), (15.0, 12.0), (20.0, 15.0)];
/// Steps after 1, and the width of a step, of the magnifications: 1.11 is reached, by the last bit of the published sums.
const ZOOMS: [(usize, f32); 5] = [(11, 0.01), (15, 0.01), (10, 0.02), (12, 0.02), (10, 0.03)];

/// The mean over a disk, sampled where the published kernel has its weights: a pixel apart at 224 pixels, closer on smaller
/// images, so that a disk smaller than a pixel still blurs a little, and no farther than a pixel apart on larger ones.
pub(super) fn defocus(image: &Raster, level: usize) -> Raster {
    let (radius, soft) = DISKS[level];
    let unit = image.unit();
    let finer = unit.ceil().max(1.0);
    let along = (radius * finer) as i32;
    let mut offsets = Vec::new();
    for down in -along..=along {
        for right in -along..=along {
            if right * right + down * down <= along * along {
                offsets.push((right as f32 * unit / finer, down as f32 * unit / finer, 1.0));
            }
        }
    }
    gaussian_blur(&mean_of_offsets(image, &offsets), soft * unit, 4.0)
}

/// Blurred, every pixel replaced by a near one (at least one pixel away where the lengths scale below that), blurred. The
/// published code means to exchange the two, but its second assignment reads what the first has written.
pub(super) fn glass(image: Raster, level: usize, rng: &mut ChaCha8Rng) -> Raster {
    let (sigma, reach, times) = GLASS[level];
    let sigma = sigma * image.unit();
    let reach = (reach * image.unit()).round().max(1.0) as usize;
    // Between the two blurs the published code has 8-bit levels.
    let mut glass = gaussian_blur(&image, sigma, 4.0).map(|value| f32::from(level_of(value)) / 255.0);
    let (width, height) = (glass.width, glass.height);
    for _ in 0..times {
        // From the far corner, the border left alone, each from one of `-reach..reach` as published.
        for y in (reach + 1..=height.saturating_sub(reach)).rev() {
            for x in (reach + 1..=width.saturating_sub(reach)).rev() {
                let right = rng.random_range(0..2 * reach);
                let down = rng.random_range(0..2 * reach);
                copy(&mut glass, (x + right - reach, y + down - reach), (x, y));
            }
        }
    }
    gaussian_blur(&glass, sigma, 4.0)
}

fn copy(image: &mut Raster, from: (usize, usize), to: (usize, usize)) {
    let at = |(x, y): (usize, usize)| (y * image.width + x) * image.channels;
    let (from, to) = (at(from), at(to));
    image.data.copy_within(from..from + image.channels, to);
}

pub(super) fn motion(image: &Raster, level: usize, rng: &mut ChaCha8Rng) -> Raster {
    let (radius, sigma) = STREAKS[level];
    let unit = image.unit();
    let degrees = uniform(-45.0, 45.0, rng);
    streak(image, 2.0 * radius * unit, sigma * unit, degrees)
}

/// The mean of the image and of its middle, magnified step by step from 1: factors have no unit, nothing is scaled. The
/// published means count the image itself twice, and so does this one.
pub(super) fn zoom(image: &Raster, level: usize) -> Raster {
    let (steps, step) = ZOOMS[level];
    let weight = 1.0 / (steps + 2) as f32;
    let mut out = image.clone().map(|value| weight * value);
    for place in 0..=steps {
        magnified(image, 1.0 + place as f32 * step, weight, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blurs_leave_a_flat_image_alone() {
        let flat = Raster::plane(9, 12, || 0.4);
        let mut rng = crate::rng::stream(0, "test", 0);
        for level in 0..5 {
            let blurred = [
                defocus(&flat, level),
                motion(&flat, level, &mut rng),
                zoom(&flat, level),
                glass(flat.clone(), level, &mut rng),
            ];
            for image in blurred {
                assert!(
                    image.data.iter().all(|value| (value - 0.4).abs() < 1e-4),
                    "{level}: {image:?}"
                );
            }
        }
    }

    #[test]
    fn a_disk_has_the_published_radius_at_224() {
        let mut place = 0;
        let dot = Raster::plane(224, 224, || {
            place += 1;
            f32::from(u8::from(place - 1 == 112 * 224 + 112))
        });
        let disk = defocus(&dot, 4);
        let reach = (0..112)
            .filter(|&x| disk.pixel(112 + x, 112)[0] > 0.5 * disk.pixel(112, 112)[0])
            .count();
        assert!((10..=11).contains(&reach), "{reach}");
    }

    #[test]
    fn glass_takes_pixels_from_near_by_and_leaves_the_border() {
        let mut place = 0;
        let ramp = Raster::plane(8, 6, || {
            place += 1;
            place as f32 / 255.0
        });
        // The Gaussian is too narrow to matter at this size, and a pixel is the reach.
        let glass = glass(ramp.clone(), 0, &mut crate::rng::stream(0, "test", 0));
        assert_ne!(glass.data, ramp.data);
        let border = |x: usize, y: usize| x < 2 || y < 2;
        for (place, value) in glass.data.iter().enumerate() {
            let (x, y) = (place % 8, place / 8);
            if border(x, y) {
                assert_eq!(*value, ramp.data[place], "{x} {y}");
            }
            assert!(ramp.data.contains(value), "{value}: of no pixel");
        }
    }
}
