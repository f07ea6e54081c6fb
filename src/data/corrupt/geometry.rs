//! The elastic transform: a random affine map, then smooth random displacements (Simard, Steinkraus & Platt 2003).

use rand_chacha::ChaCha8Rng;

use super::filter::{gaussian_blur, uniform};
use super::raster::Raster;

/// Strength and smoothness of the displacements, and the largest move of a corner of the affine map, each times
/// [`LENGTH`].
const WARPS: [(f32, f32, f32); 5] = [
    (2.0, 0.7, 0.1),
    (2.0, 0.08, 0.2),
    (0.05, 0.01, 0.02),
    (0.07, 0.01, 0.02),
    (0.12, 0.01, 0.02),
];
/// The published code says 244 for images of 224 pixels.
const LENGTH: f32 = 244.0;
/// The narrowest Gaussian that smooths displacements, in pixels.
const MIN_SIGMA: f32 = 1.0;

pub(super) fn elastic(image: &Raster, level: usize, rng: &mut ChaCha8Rng) -> Raster {
    let (strength, smoothness, moved) = WARPS[level];
    let length = LENGTH * image.unit();
    let affine = Affine::drawn(image, moved * length, rng);
    let warped = image.redrawn(|x, y, out| {
        let (x, y) = affine.source(x as f32, y as f32);
        image.add_sample(x, y, 1.0, out);
    });
    // The Gaussian of deviation s leaves uniform noise at about 1 / s of its strength, so that displacements are as
    // strength over s; both, and the displacement, are lengths.
    let sigma = (smoothness * length).max(MIN_SIGMA);
    let amplitude = strength / smoothness * image.unit() * sigma;
    let mut field = || {
        let noise = Raster::plane(image.width, image.height, || uniform(-1.0, 1.0, rng));
        gaussian_blur(&noise, sigma, 3.0).map(|value| amplitude * value)
    };
    let (right, down) = (field(), field());
    warped.redrawn(|x, y, out| {
        let place = y * image.width + x;
        warped.add_sample(
            x as f32 + right.data[place],
            y as f32 + down.data[place],
            1.0,
            out,
        );
    })
}

/// Where the pixels of an affine map come from: `x' = a x + b y + c`, `y' = d x + e y + f`.
struct Affine([f32; 6]);

impl Affine {
    /// The map that moves three corners of a square in the middle by up to `max` pixels in each direction.
    fn drawn(image: &Raster, max: f32, rng: &mut ChaCha8Rng) -> Self {
        let (cx, cy) = ((image.width / 2) as f32, (image.height / 2) as f32);
        let half = (image.width.min(image.height) / 3).max(1) as f32;
        let before = [
            (cx + half, cy + half),
            (cx + half, cy - half),
            (cx - half, cy - half),
        ];
        let after = before.map(|(x, y)| (x + uniform(-max, max, rng), y + uniform(-max, max, rng)));
        Self::between(after, before)
    }

    /// The map from three points to three others; the identity where the first three lie on one line.
    fn between(from: [(f32, f32); 3], to: [(f32, f32); 3]) -> Self {
        let [(x0, y0), (x1, y1), (x2, y2)] = from;
        let (ux, uy, vx, vy) = (x1 - x0, y1 - y0, x2 - x0, y2 - y0);
        let area = ux * vy - uy * vx;
        if area.abs() < 1e-3 {
            return Self([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        }
        // One coordinate of the target: its values at the three points.
        let row = |t0: f32, t1: f32, t2: f32| {
            let a = ((t1 - t0) * vy - (t2 - t0) * uy) / area;
            let b = ((t2 - t0) * ux - (t1 - t0) * vx) / area;
            [a, b, t0 - a * x0 - b * y0]
        };
        let [a, b, c] = row(to[0].0, to[1].0, to[2].0);
        let [d, e, f] = row(to[0].1, to[1].1, to[2].1);
        Self([a, b, c, d, e, f])
    }

    fn source(&self, x: f32, y: f32) -> (f32, f32) {
        let [a, b, c, d, e, f] = self.0;
        (a * x + b * y + c, d * x + e * y + f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affine_map_takes_three_points_to_three_others() {
        let from = [(0.0, 0.0), (2.0, 1.0), (1.0, 3.0)];
        let to = [(5.0, 5.0), (1.0, 0.0), (7.0, 2.0)];
        let map = Affine::between(from, to);
        for ((x, y), (tx, ty)) in from.into_iter().zip(to) {
            let (fx, fy) = map.source(x, y);
            assert!((fx - tx).abs() < 1e-4 && (fy - ty).abs() < 1e-4);
        }
        let flat = Affine::between([(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)], to);
        assert_eq!(flat.source(3.0, 4.0), (3.0, 4.0));
    }
}
