//! A smooth warp of a crop: a bicubic Bezier patch of 4 x 4 control points, each moved at random. It shifts, turns, shears and
//! stretches the parts of a thing against one another, as two drawings of it differ, or two bodies in the same garment.

use rand::Rng;

use super::uniform;

/// Control points along a side: those of a cubic.
const POINTS: usize = 4;

/// How far each control point moves, as a share of the crop's sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warp {
    moves: [[[f32; 2]; POINTS]; POINTS], // [row, column, (x, y)]
}

impl Warp {
    /// Draws one whose points move by at most `reach` of the side in x and in y, uniformly.
    pub(super) fn draw(reach: f64, rng: &mut impl Rng) -> Self {
        let mut moves = [[[0.0; 2]; POINTS]; POINTS];
        for value in moves.iter_mut().flatten().flatten() {
            *value = uniform([-reach, reach], rng) as f32;
        }
        Self { moves }
    }

    /// `samples`, `[height, width, channels]`, warped: every pixel is read, bilinearly, from where the patch leads; beyond an
    /// edge from the edge. `rounded` makes a sample of a value.
    pub(super) fn apply<T: Copy + Into<f32>>(
        &self,
        samples: &[T],
        (width, height, channels): (usize, usize, usize),
        rounded: impl Fn(f32) -> T,
    ) -> Vec<T> {
        let mut out = Vec::with_capacity(samples.len());
        let columns: Vec<[f32; POINTS]> = (0..width).map(|x| weights(x, width)).collect();
        for y in 0..height {
            let row = self.along_row(weights(y, height));
            for (x, column) in columns.iter().enumerate() {
                let [mut dx, mut dy] = [0.0; 2];
                for (weight, point) in column.iter().zip(row) {
                    dx += weight * point[0];
                    dy += weight * point[1];
                }
                let (left, right) = neighbours(x as f32 + dx * width as f32, width);
                let (top, bottom) = neighbours(y as f32 + dy * height as f32, height);
                for channel in 0..channels {
                    let at =
                        |x: usize, y: usize| -> f32 { samples[(y * width + x) * channels + channel].into() };
                    let mixed = |y: usize| at(left.0, y) * left.1 + at(right.0, y) * right.1;
                    out.push(rounded(mixed(top.0) * top.1 + mixed(bottom.0) * bottom.1));
                }
            }
        }
        out
    }

    /// The moves of the control points along a row whose weights down the columns are these.
    fn along_row(&self, weights: [f32; POINTS]) -> [[f32; 2]; POINTS] {
        let mut row = [[0.0; 2]; POINTS];
        for (weight, points) in weights.iter().zip(&self.moves) {
            for (sum, point) in row.iter_mut().zip(points) {
                sum[0] += weight * point[0];
                sum[1] += weight * point[1];
            }
        }
        row
    }
}

/// Bernstein's polynomials of degree 3 at the centre of pixel `place` of `len`; they sum to 1.
fn weights(place: usize, len: usize) -> [f32; POINTS] {
    let t = (place as f32 + 0.5) / len as f32;
    let s = 1.0 - t;
    [s * s * s, 3.0 * s * s * t, 3.0 * s * t * t, t * t * t]
}

/// The two pixels of `len` between which `place` lies, each with its weight.
fn neighbours(place: f32, len: usize) -> ((usize, f32), (usize, f32)) {
    let last = len - 1;
    let place = place.clamp(0.0, last as f32);
    let low = (place as usize).min(last);
    let high = (low + 1).min(last);
    let share = place - low as f32;
    ((low, 1.0 - share), (high, share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    fn even(x: f32, y: f32) -> Warp {
        Warp {
            moves: [[[x, y]; POINTS]; POINTS],
        }
    }

    #[test]
    fn points_that_move_alike_shift_the_image() {
        let samples: Vec<f32> = (0..4 * 4 * 2).map(|value| value as f32).collect(); // [4, 4, 2]
        let still = even(0.0, 0.0).apply(&samples, (4, 4, 2), |value| value);
        assert_eq!(still, samples);
        let right = even(0.25, 0.0).apply(&samples, (4, 4, 2), |value| value);
        assert_eq!(right[..8], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 6.0, 7.0]);
        let down = even(0.0, 0.25).apply(&samples, (4, 4, 2), |value| value);
        assert_eq!(down[..24], samples[8..]);
        assert_eq!(down[24..], samples[24..]);
    }

    #[test]
    fn a_corner_moves_alone() {
        let mut warp = even(0.0, 0.0);
        warp.moves[0][0] = [0.5, 0.5];
        let samples: Vec<u8> = (0..64).map(|value| 4 * (value % 8)).collect(); // [8, 8, 1], brighter to the right
        let made = warp.apply(&samples, (8, 8, 1), |value| value.round() as u8);
        assert_eq!(made[0], 11); // 4 * 8 * 0.5 * (15 / 16)^6
        assert_eq!(made[56..], samples[56..]);
        assert_eq!(made[7], samples[7]);
    }

    #[test]
    fn no_point_moves_further_than_asked() {
        let mut rng = rng::stream(1, "warp", 0);
        let all = (0..50).map(|_| Warp::draw(0.1, &mut rng));
        let moves: Vec<f32> = all
            .flat_map(|warp| warp.moves.into_iter().flatten().flatten())
            .collect();
        let most = moves.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        assert!(most > 0.09 && most <= 0.1, "{most}");
    }
}
