//! Rotary positions of patches (DINOv3, section 3.2; Su et al. 2021 for a single axis): queries and keys are turned by angles
//! that grow with the place of their patch, so that their products depend on where two patches lie to each other.

use std::f64::consts::TAU;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::backend::backend;
use super::cpu::ROWS_PER_TASK;
use super::element::Element;

const NAME: &str = "rotary";

/// The angles by which tokens of one patch grid are turned, as cosines and sines [T, d / 2].
///
/// The values j and j + d / 2 of a head are the two coordinates of a point in the plane. The first quarter of a head follows the
/// patch's row, the second its column, each from -1 to 1 over the image: the angle is `2 pi coordinate / theta^(4 i / d)`.
#[derive(Debug, Clone)]
pub struct Rotary {
    tokens: usize,
    half: usize,
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
}

impl Rotary {
    /// The table of `prefix` tokens, which stay as they are, and after them the patches of a grid of rows and columns, row by row.
    ///
    /// # Errors
    /// Heads whose width is no positive multiple of 4, or a `theta` that is no positive number.
    pub fn new(theta: f64, head_dim: usize, prefix: usize, (rows, columns): (usize, usize)) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(4) {
            bail!("{NAME}: expected heads of a multiple of 4, found {head_dim}")
        }
        if !(theta.is_finite() && theta > 0.) {
            bail!("{NAME}: expected a positive theta, found {theta}")
        }
        let quarter = head_dim / 4;
        let mut angles = Vec::with_capacity(rows * columns * head_dim / 2);
        let coordinate = |place: usize, count: usize| 2. * (place as f64 + 0.5) / count as f64 - 1.;
        for patch in 0..rows * columns {
            let (row, column) = (patch / columns, patch % columns);
            for at in [coordinate(row, rows), coordinate(column, columns)] {
                angles.extend((0..quarter).map(|i| TAU * at / theta.powf(i as f64 / quarter as f64)));
            }
        }
        Self::of_angles(&angles, head_dim / 2, prefix)
    }

    /// The table of `prefix` tokens, which stay as they are, and after them tokens with `half` angles each, [N, d / 2].
    ///
    /// # Errors
    /// No angle a token, or angles that do not fill the last one.
    pub fn of_angles(angles: &[f64], half: usize, prefix: usize) -> Result<Self> {
        if half == 0 || !angles.len().is_multiple_of(half) {
            bail!(
                "{NAME}: expected a multiple of {half} angles, found {}",
                angles.len()
            )
        }
        let (mut cos, mut sin) = (vec![1.; prefix * half], vec![0.; prefix * half]);
        cos.extend(angles.iter().map(|angle| angle.cos() as f32));
        sin.extend(angles.iter().map(|angle| angle.sin() as f32));
        Ok(Self {
            tokens: prefix + angles.len() / half,
            half,
            cos: cos.into(),
            sin: sin.into(),
        })
    }

    /// Tokens T.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Half the width of a head.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Cosines [T, d / 2]; 1 for what is not turned.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Sines [T, d / 2]; 0 for what is not turned.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// Turns queries and keys of `qkv` [.., T, 3, H, d] in place, or back again.
    pub(super) fn turn<T: Element>(&self, qkv: &mut [T], heads: usize, back: bool) {
        let row = 6 * heads * self.half;
        let sign = if back { -1. } else { 1. };
        qkv.par_chunks_mut(row * ROWS_PER_TASK)
            .enumerate()
            .for_each(|(task, rows)| {
                for (i, row) in rows.chunks_exact_mut(row).enumerate() {
                    let token = (task * ROWS_PER_TASK + i) % self.tokens;
                    let of_token = token * self.half..(token + 1) * self.half;
                    let (cos, sin) = (&self.cos[of_token.clone()], &self.sin[of_token]);
                    // The queries and keys of all heads, [2 H, d].
                    for head in row[..4 * heads * self.half].chunks_exact_mut(2 * self.half) {
                        let (first, second) = head.split_at_mut(self.half);
                        let table = cos.iter().zip(sin);
                        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(table) {
                            let (x, y, sin) = (a.value(), b.value(), sign * sin);
                            *a = T::rounded(x * cos - y * sin);
                            *b = T::rounded(y * cos + x * sin);
                        }
                    }
                }
            });
    }
}

/// `qkv` [B, T, 3, H, d] with queries and keys turned, of candle's own arithmetic.
///
/// # Errors
/// Another number of tokens or another width of heads than the table's.
pub fn rotate(qkv: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let (_, tokens, _, _, head_dim) = qkv.dims5()?;
    rotary.check(tokens, head_dim)?;
    backend(qkv.device()).rotate(qkv, rotary)
}

impl Rotary {
    /// Fails unless the table is one for so many tokens and such heads.
    pub(super) fn check(&self, tokens: usize, head_dim: usize) -> Result<()> {
        if (self.tokens, 2 * self.half) != (tokens, head_dim) {
            bail!(
                "{NAME}: expected a table of {tokens} tokens and heads of {head_dim}, found one of {} and {}",
                self.tokens,
                2 * self.half
            )
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, random, values};
    use super::*;

    #[test]
    fn turning_is_the_composition_and_turning_back_undoes_it() {
        let rotary = Rotary::new(100., 8, 2, (2, 3)).unwrap();
        let qkv = random(1, &[5, 8, 3, 2, 8]);
        let mut turned: Vec<f32> = qkv.flatten_all().unwrap().to_vec1().unwrap();
        rotary.turn(&mut turned, 2, false);
        let wanted = values(&rotate(&qkv, &rotary).unwrap());
        let as_f64 = |all: &[f32]| all.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        assert_close("turned", &as_f64(&turned), &wanted, 1e-6);
        assert!(wanted != values(&qkv));
        rotary.turn(&mut turned, 2, true);
        assert_close("back", &as_f64(&turned), &values(&qkv), 1e-6);
    }

    /// What is not a patch stays, values too; products depend on the difference of places alone.
    #[test]
    fn products_follow_the_distance_of_patches() {
        let (rows, columns) = (3, 4);
        let rotary = Rotary::new(100., 8, 1, (rows, columns)).unwrap();
        let mut all = Vec::new();
        for _ in 0..13 {
            all.extend((0..24).map(|i| (i as f32 * 0.7).sin()));
        }
        let before = all.clone();
        rotary.turn(&mut all, 1, false);
        assert_eq!(all[..24], before[..24], "the class token");
        let token = |i: usize| &all[24 * i..24 * (i + 1)];
        let score = |i: usize, j: usize| {
            let (query, key) = (&token(i)[..8], &token(j)[8..16]);
            query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>()
        };
        // Patches 0 and 1 lie as 5 and 6 do, and not as 1 and 0, or as 0 and 4.
        assert!((score(1, 2) - score(6, 7)).abs() < 1e-5);
        assert!((score(1, 2) - score(2, 1)).abs() > 1e-2);
        assert!((score(1, 2) - score(1, 5)).abs() > 1e-2);
        assert_eq!(token(7)[16..], before[16..24], "values are not turned");
    }

    #[test]
    fn wrong_tables_are_refused() {
        assert!(Rotary::new(100., 6, 1, (2, 2)).is_err());
        assert!(Rotary::new(f64::NAN, 8, 1, (2, 2)).is_err());
        let rotary = Rotary::new(100., 8, 1, (2, 2)).unwrap();
        let error = rotate(&random(1, &[1, 6, 3, 1, 8]), &rotary)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("expected a table of 6 tokens and heads of 8, found one of 5 and 8"),
            "{error}"
        );
    }
}
