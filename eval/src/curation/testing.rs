//! Rows for the tests of curation.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Matrix;
use crate::draws::normal;
use crate::linalg::normalise::l2_normalise;

/// `n` unit rows around `centres` random directions, with a deviation of `spread` in each value.
pub(crate) fn clustered(n: usize, dim: usize, centres: usize, spread: f64, seed: u64) -> Matrix {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let middle: Vec<f64> = (0..centres * dim).map(|_| normal(&mut rng)).collect();
    let mut data = Vec::with_capacity(n * dim);
    for _ in 0..n {
        let centre = rng.random_range(0..centres);
        data.extend((0..dim).map(|i| (middle[centre * dim + i] + spread * normal(&mut rng)) as f32));
    }
    let rows = Matrix::new(data, n, dim).expect("rows of one width");
    l2_normalise(rows.view()).expect("finite")
}

/// The inner product in f64.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}
