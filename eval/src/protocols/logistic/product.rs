//! The two matrix products of a linear classifier on a block of rows. Weights and logits are class-major, so that
//! whatever runs over the rows of a block (softmax, step) is contiguous. One thread each: the callers are parallel.

use crate::linalg::gemm::{Operand, Threads, matmul};

/// `logits[k, i] = sum_j weights[k, j] x[i, j]`: `x` is `[B, d]`, `weights` is `[K, d]`, `logits` is `[K, B]`.
pub(crate) fn logits(x: &[f32], weights: &[f32], dim: usize, logits: &mut [f32]) {
    let weights = Operand::row_major(weights, weights.len() / dim, dim);
    let x = Operand::row_major(x, x.len() / dim, dim);
    matmul(logits, weights, x.transposed(), Threads::One);
}

/// `gradient[k, j] = sum_i residual[k, i] x[i, j]`: `residual` is `[K, B]`, `x` is `[B, d]`, `gradient` is `[K, d]`.
pub(crate) fn gradient(residual: &[f32], x: &[f32], dim: usize, gradient: &mut [f32]) {
    let x = Operand::row_major(x, x.len() / dim, dim);
    let residual = Operand::row_major(
        residual,
        gradient.len() / dim,
        residual.len() / (gradient.len() / dim),
    );
    matmul(gradient, residual, x, Threads::One);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_products_match_loops() {
        let (rows, dim, classes) = (7, 5, 3);
        let x: Vec<f32> = (0..rows * dim).map(|i| ((i * 37 % 11) as f32) - 5.0).collect();
        let w: Vec<f32> = (0..classes * dim).map(|i| ((i * 23 % 7) as f32) - 3.0).collect();
        let mut z = vec![f32::NAN; classes * rows];
        logits(&x, &w, dim, &mut z);
        for k in 0..classes {
            for i in 0..rows {
                let expected: f32 = (0..dim).map(|j| w[k * dim + j] * x[i * dim + j]).sum();
                assert_eq!(z[k * rows + i], expected);
            }
        }
        let mut g = vec![f32::NAN; classes * dim];
        gradient(&z, &x, dim, &mut g);
        for k in 0..classes {
            for j in 0..dim {
                let expected: f32 = (0..rows).map(|i| z[k * rows + i] * x[i * dim + j]).sum();
                assert_eq!(g[k * dim + j], expected);
            }
        }
    }
}
