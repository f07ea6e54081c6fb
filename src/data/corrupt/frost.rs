//! Frost on a window: ice crystals over a darkened image. ImageNet-C pastes parts of six photographs of frosted glass; here
//! a random picture of that kind is drawn, so errors under frost are not comparable with published ones. How much of image
//! and frost is mixed is as published.

use rand_chacha::ChaCha8Rng;

use super::filter::uniform;
use super::plasma::plasma;
use super::raster::Raster;

/// Shares of the image and of the frost in their sum.
const SHARES: [(f32, f32); 5] = [(1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)];
/// Colour of ice, of levels from 0 to 1; a grey image takes its green.
const ICE: [f32; 3] = [0.86, 0.94, 1.0];
/// Fern-like crystals in a picture.
const CRYSTALS: usize = 26;
/// Length of a crystal's stem, of the shorter side.
const STEM: (f32, f32) = (0.25, 0.7);
/// Side branches leave the stem at this angle, in radians: ice has six-fold symmetry.
const BRANCH_ANGLE: f32 = std::f32::consts::FRAC_PI_3;
/// Room between two branches, in pixels at 224, and at least, in pixels.
const BRANCH_SPACE: f32 = 5.0;
const MIN_BRANCH_SPACE: f32 = 2.0;

pub(super) fn frost(image: Raster, level: usize, rng: &mut ChaCha8Rng) -> Raster {
    let (image_share, frost_share) = SHARES[level];
    let ice = ice(&image, rng);
    let mut out = image;
    let colour = if out.channels == 3 { ICE } else { [ICE[1]; 3] };
    for (pixel, ice) in out.data.chunks_exact_mut(out.channels).zip(&ice.data) {
        for (value, colour) in pixel.iter_mut().zip(colour) {
            *value = image_share * *value + frost_share * ice * colour;
        }
    }
    out
}

/// Thickness of the ice, 0 to 1: a cloud in which crystals grow.
fn ice(image: &Raster, rng: &mut ChaCha8Rng) -> Raster {
    let (width, height) = (image.width as f32, image.height as f32);
    let cloud = plasma(image.width, image.height, 1.3, rng);
    let mut crystals = Raster::plane(image.width, image.height, || 0.0);
    let side = width.min(height);
    let space = (BRANCH_SPACE * image.unit()).max(MIN_BRANCH_SPACE);
    for _ in 0..CRYSTALS {
        let root = (uniform(0.0, width, rng), uniform(0.0, height, rng));
        let angle = uniform(0.0, std::f32::consts::TAU, rng);
        let length = side * uniform(STEM.0, STEM.1, rng);
        let strength = uniform(0.45, 1.0, rng);
        fern(&mut crystals, root, angle, length, space, strength, rng);
    }
    let mut out = cloud;
    for (thickness, crystal) in out.data.iter_mut().zip(&crystals.data) {
        *thickness = (0.15 + 0.45 * *thickness + 0.6 * crystal).min(1.0);
    }
    out
}

/// A stem from `root` with branches on both sides, shorter towards its tip.
fn fern(
    plane: &mut Raster,
    root: (f32, f32),
    angle: f32,
    length: f32,
    space: f32,
    strength: f32,
    rng: &mut ChaCha8Rng,
) {
    line(plane, root, angle, length, strength);
    let mut along = space;
    while along < length {
        let at = moved(root, angle, along);
        let reach = (length - along) * uniform(0.15, 0.45, rng);
        for side in [-BRANCH_ANGLE, BRANCH_ANGLE] {
            line(plane, at, angle + side, reach, 0.75 * strength);
        }
        along += space * uniform(0.7, 1.3, rng);
    }
}

/// A line that fades towards its end, about a pixel wide; it never darkens what is there.
fn line(plane: &mut Raster, from: (f32, f32), angle: f32, length: f32, strength: f32) {
    let steps = (2.0 * length).ceil().max(1.0) as usize;
    for step in 0..=steps {
        let share = step as f32 / steps as f32;
        let (x, y) = moved(from, angle, share * length);
        dot(plane, x, y, strength * (1.0 - 0.6 * share));
    }
}

/// A dot shared out among the four pixels around it.
fn dot(plane: &mut Raster, x: f32, y: f32, strength: f32) {
    let (left, top) = (x.floor(), y.floor());
    for (row, row_share) in [(top, 1.0 - (y - top)), (top + 1.0, y - top)] {
        for (column, column_share) in [(left, 1.0 - (x - left)), (left + 1.0, x - left)] {
            let inside =
                column >= 0.0 && row >= 0.0 && column < plane.width as f32 && row < plane.height as f32;
            if inside {
                let value = &mut plane.data[row as usize * plane.width + column as usize];
                *value = value.max(strength * row_share * column_share);
            }
        }
    }
}

fn moved((x, y): (f32, f32), angle: f32, far: f32) -> (f32, f32) {
    (x + far * angle.cos(), y + far * angle.sin())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ice_is_uneven_and_in_range() {
        for (width, height) in [(1, 1), (5, 3), (28, 28), (224, 224)] {
            let image = Raster::plane(width, height, || 0.0);
            let ice = ice(&image, &mut crate::rng::stream(0, "test", 0));
            assert!(ice.data.iter().all(|value| (0.0..=1.0).contains(value)));
            let mean = ice.data.iter().sum::<f32>() / ice.data.len() as f32;
            let variance = ice.data.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / ice.data.len() as f32;
            assert!(width < 28 || (0.3..0.75).contains(&mean), "{width}: {mean}");
            assert!(width < 28 || variance > 0.01, "{width}: {variance}");
        }
    }
}
