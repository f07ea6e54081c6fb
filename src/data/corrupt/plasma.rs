//! Clouds: the plasma fractal, by the diamond-square algorithm (Fournier, Fussell & Carpenter 1982).

use rand_chacha::ChaCha8Rng;

use super::filter::uniform;
use super::raster::Raster;

/// A cloud of `width` x `height` from 0 to 1: the top left of a square whose side is the next power of two (at least 2) and
/// which joins itself at its edges. From one level of detail to the next the randomness is divided by the square of `decay`,
/// above 1: the published code multiplies a number drawn from its range by the range again.
pub(super) fn plasma(width: usize, height: usize, decay: f32, rng: &mut ChaCha8Rng) -> Raster {
    let side = width.max(height).next_power_of_two().max(2);
    let mut map = Map {
        side,
        values: vec![0.0; side * side],
    };
    let (mut step, mut wobble) = (side, 1.0);
    while step >= 2 {
        let half = step / 2;
        let mut draw = |mean: f32| mean + uniform(-wobble, wobble, rng);
        // The middle of every square, from its corners.
        for y in (0..side).step_by(step) {
            for x in (0..side).step_by(step) {
                let corners = [(x, y), (x + step, y), (x, y + step), (x + step, y + step)];
                map.set((x + half, y + half), draw(map.mean(corners)));
            }
        }
        // The middle of every side, from the ends of the side and the middles beside it.
        for y in (0..side).step_by(step) {
            for x in (0..side).step_by(step) {
                let around = |x: usize, y: usize| {
                    let (x, y) = (x + side, y + side); // no place below 0
                    [(x - half, y), (x + half, y), (x, y - half), (x, y + half)]
                };
                map.set((x + half, y), draw(map.mean(around(x + half, y))));
                map.set((x, y + half), draw(map.mean(around(x, y + half))));
            }
        }
        step = half;
        wobble /= decay * decay;
    }
    map.cropped(width, height)
}

/// A square of values that joins itself at its edges.
struct Map {
    side: usize,
    values: Vec<f32>,
}

impl Map {
    fn at(&self, (x, y): (usize, usize)) -> usize {
        y % self.side * self.side + x % self.side
    }

    fn set(&mut self, place: (usize, usize), value: f32) {
        let at = self.at(place);
        self.values[at] = value;
    }

    fn mean(&self, places: [(usize, usize); 4]) -> f32 {
        places
            .iter()
            .map(|&place| self.values[self.at(place)])
            .sum::<f32>()
            / 4.0
    }

    /// The top left corner, of values that reach from 0 to 1 over the whole square.
    fn cropped(&self, width: usize, height: usize) -> Raster {
        let min = self.values.iter().copied().fold(f32::INFINITY, f32::min);
        let greatest = self.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let range = (greatest - min).max(f32::MIN_POSITIVE);
        let mut place = 0;
        Raster::plane(width, height, || {
            let value = self.values[self.at((place % width, place / width))];
            place += 1;
            (value - min) / range
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clouds_reach_from_0_to_1_and_decay_smooths_them() {
        let roughness = |decay: f32| {
            let cloud = plasma(64, 64, decay, &mut crate::rng::stream(0, "test", 0));
            let min = cloud.data.iter().copied().fold(1.0, f32::min);
            let greatest = cloud.data.iter().copied().fold(0.0, f32::max);
            assert_eq!((min, greatest), (0.0, 1.0));
            let steps = cloud.data.windows(2).map(|pair| (pair[1] - pair[0]).abs());
            steps.sum::<f32>()
        };
        assert!(roughness(1.2) > 1.5 * roughness(1.5) && roughness(1.5) > 1.2 * roughness(2.0));
        let small = plasma(1, 1, 2.0, &mut crate::rng::stream(0, "test", 0));
        assert!(small.data.len() == 1 && small.data[0].is_finite());
    }
}
