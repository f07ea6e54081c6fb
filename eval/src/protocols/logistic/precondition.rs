//! A preconditioner for L-BFGS: the curvature of the loss with the same softmax spread at every row,
//! `a C [X 1]' [X 1] + penalty`, which is exact at zero weights. Raw features (pixels, tokens that share a large mean)
//! are badly conditioned, and most of the iterations of a plain L-BFGS go into learning this matrix.

use crate::MatrixView;
use crate::linalg::gemm::{Operand, Threads, matmul};
use rayon::prelude::*;

/// Above this width the matrix costs more than it saves, and only its diagonal is used.
const LARGEST_FULL_DIM: usize = 2048;
/// Rows that estimate the matrix, and rows per column where there are many columns.
const SAMPLE_ROWS: usize = 8192;
const SAMPLE_ROWS_PER_COLUMN: usize = 8;
/// Columns of the Cholesky factor that are finished together.
const PANEL: usize = 48;

/// `[X 1]' [X 1] / n`, estimated from evenly spaced rows.
pub(super) struct Gram {
    /// `[d + 1, d + 1]`, or only its diagonal `[d + 1]`.
    values: Vec<f64>,
    size: usize,
}

/// The factor of `curvature * gram + penalty`, ready to be divided by.
pub(super) enum Preconditioner {
    Full { factor: Vec<f64>, size: usize },
    Diagonal(Vec<f64>),
}

impl Gram {
    /// Second moments of the rows of `x` with a column of ones.
    pub(super) fn new(x: MatrixView<'_>) -> Self {
        let wanted = SAMPLE_ROWS.max(SAMPLE_ROWS_PER_COLUMN * x.dim()).min(x.rows());
        let sampled: Vec<usize> = (0..wanted).map(|i| i * x.rows() / wanted).collect();
        let sample = x.select(&sampled);
        if x.dim() > LARGEST_FULL_DIM {
            Self::diagonal(sample.view())
        } else {
            Self::full(sample.view())
        }
    }

    fn diagonal(x: MatrixView<'_>) -> Self {
        let mut values = vec![0.0; x.dim() + 1];
        for row in x.data().chunks_exact(x.dim()) {
            for (sum, value) in values.iter_mut().zip(row) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
        values.iter_mut().for_each(|sum| *sum /= x.rows() as f64);
        values[x.dim()] = 1.0;
        let size = values.len();
        Self { values, size }
    }

    fn full(x: MatrixView<'_>) -> Self {
        let (dim, n) = (x.dim(), x.rows() as f64);
        let size = dim + 1;
        let mut products = vec![0.0f32; dim * dim];
        let rows = Operand::row_major(x.data(), x.rows(), dim);
        matmul(&mut products, rows.transposed(), rows, Threads::Pool);
        let mut values = vec![0.0; size * size];
        for (to, from) in values.chunks_exact_mut(size).zip(products.chunks_exact(dim)) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = f64::from(*from) / n;
            }
        }
        let ones = &mut values[dim * size..];
        for row in x.data().chunks_exact(dim) {
            for (sum, value) in ones.iter_mut().zip(row) {
                *sum += f64::from(*value) / n;
            }
        }
        ones[dim] = 1.0;
        Self { values, size }
    }

    /// Factors `curvature * gram + penalty`, the penalty on the weights alone.
    pub(super) fn factor(&self, curvature: f64, penalty: f64) -> Preconditioner {
        let size = self.size;
        let with_penalty =
            |i: usize, value: f64| curvature * value + if i + 1 < size { penalty } else { 0.0 };
        if self.values.len() == size {
            let diagonal = self.values.iter().enumerate();
            return Preconditioner::Diagonal(
                diagonal
                    .map(|(i, value)| with_penalty(i, *value).max(f64::MIN_POSITIVE))
                    .collect(),
            );
        }
        let trace: f64 = (0..size).map(|i| self.values[i * size + i]).sum();
        // The products are f32: what rounding may have taken from the smallest eigenvalues is given back, more of it
        // where the factorisation still meets a negative pivot.
        let mut jitter = 3e-7 * trace * curvature;
        loop {
            let mut factor: Vec<f64> = self.values.iter().map(|value| curvature * value).collect();
            for i in 0..size {
                factor[i * size + i] = with_penalty(i, self.values[i * size + i]) + jitter;
            }
            if cholesky(&mut factor, size) {
                return Preconditioner::Full { factor, size };
            }
            jitter *= 10.0;
        }
    }
}

impl Preconditioner {
    /// Replaces `values` (`[K, d]` weights, then `[K]` biases) by the preconditioner's inverse times it.
    pub(super) fn divide(&self, values: &mut [f64]) {
        match self {
            Self::Diagonal(diagonal) => {
                let dim = diagonal.len() - 1;
                let (weights, biases) = values.split_at_mut(values.len() / (dim + 1) * dim);
                for row in weights.chunks_exact_mut(dim) {
                    row.iter_mut().zip(diagonal).for_each(|(value, d)| *value /= d);
                }
                biases.iter_mut().for_each(|bias| *bias /= diagonal[dim]);
            }
            Self::Full { factor, size } => {
                let dim = size - 1;
                let (weights, biases) = values.split_at_mut(values.len() / size * dim);
                weights
                    .par_chunks_exact_mut(dim)
                    .zip(biases.par_iter_mut())
                    .for_each(|(weights, bias)| solve(factor, *size, weights, bias));
            }
        }
    }
}

/// Solves `L L' v = b` in place; `b` is `weights` followed by `bias`.
fn solve(factor: &[f64], size: usize, weights: &mut [f64], bias: &mut f64) {
    let mut v = weights.to_vec();
    v.push(*bias);
    for i in 0..size {
        let row = &factor[i * size..i * size + i + 1];
        v[i] = (v[i] - dot(&row[..i], &v[..i])) / row[i];
    }
    for i in (0..size).rev() {
        let row = &factor[i * size..i * size + i + 1];
        let value = v[i] / row[i];
        v[i] = value;
        v[..i].iter_mut().zip(row).for_each(|(v, l)| *v -= value * l);
    }
    weights.copy_from_slice(&v[..size - 1]);
    *bias = v[size - 1];
}

/// Replaces the lower triangle of `a` by its Cholesky factor, panel after panel; false where a pivot is not positive.
/// The upper triangle is left as it is.
fn cholesky(a: &mut [f64], size: usize) -> bool {
    for from in (0..size).step_by(PANEL) {
        let to = (from + PANEL).min(size);
        let (done, below) = a.split_at_mut(to * size);
        let panel = &mut done[from * size..];
        for i in 0..to - from {
            let (above, row) = panel.split_at_mut(i * size);
            let row = &mut row[..size];
            for (j, other) in above.chunks_exact(size).enumerate() {
                let j = from + j;
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let j = from + i;
            let pivot = row[j] - dot(&row[..j], &row[..j]);
            // Also false for NaN.
            if pivot.is_nan() || pivot <= 0.0 {
                return false;
            }
            row[j] = pivot.sqrt();
        }
        let panel = &*panel;
        below.par_chunks_exact_mut(size).for_each(|row| {
            for (j, other) in panel.chunks_exact(size).enumerate() {
                let j = from + j;
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
        });
    }
    true
}

/// Inner product in eight running sums, which the compiler keeps in vector registers.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f64 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;

    fn features(rows: usize, dim: usize) -> Matrix {
        let data = (0..rows * dim)
            .map(|i| ((i * 7919 % 1009) as f32) / 500.0 + 0.3 * ((i % dim % 3) as f32))
            .collect();
        Matrix::new(data, rows, dim).unwrap()
    }

    #[test]
    fn dividing_undoes_multiplying_by_the_matrix() {
        let (rows, dim) = (300, 2 * PANEL + 5);
        let x = features(rows, dim);
        let gram = Gram::new(x.view());
        let (curvature, penalty) = (2.0, 50.0);
        let size = dim + 1;
        let expected: Vec<f64> = (0..size).map(|i| (i as f64).sin()).collect();
        // (curvature/n [X 1]'[X 1] + penalty) times `expected`, row by row.
        let mut values = expected.clone();
        values.iter_mut().take(dim).for_each(|v| *v *= penalty);
        values[dim] = 0.0;
        for i in 0..rows {
            let row: Vec<f64> = x
                .view()
                .row(i)
                .iter()
                .map(|v| f64::from(*v))
                .chain([1.0])
                .collect();
            let along = curvature * dot(&row, &expected) / rows as f64;
            values.iter_mut().zip(&row).for_each(|(v, r)| *v += along * r);
        }
        gram.factor(curvature, penalty).divide(&mut values);
        for (found, expected) in values.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
    }

    #[test]
    fn cholesky_refuses_an_indefinite_matrix() {
        assert!(!cholesky(&mut [1.0, 2.0, 2.0, 1.0], 2));
        let mut a = [4.0, 2.0, 2.0, 5.0];
        assert!(cholesky(&mut a, 2));
        assert_eq!([a[0], a[2], a[3]], [2.0, 1.0, 2.0]);
    }
}
