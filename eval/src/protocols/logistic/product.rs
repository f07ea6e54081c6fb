//! The two matrix products of a linear classifier on a block of rows. Weights and logits are class-major, so that
//! whatever runs over the rows of a block (softmax, step) is contiguous.

use gemm::Parallelism;

/// `logits[k, i] = sum_j weights[k, j] x[i, j]`: `x` is `[B, d]`, `weights` is `[K, d]`, `logits` is `[K, B]`.
pub(crate) fn logits(x: &[f32], weights: &[f32], dim: usize, logits: &mut [f32]) {
    let (rows, classes) = (x.len() / dim, weights.len() / dim);
    assert_eq!(x.len(), rows * dim, "features are whole rows");
    assert_eq!(weights.len(), classes * dim, "weights are whole rows");
    assert_eq!(logits.len(), classes * rows, "one logit a class and row");
    // SAFETY: the three lengths are checked above, and the strides below stay inside them: the product is
    // [B, K] = [B, d] x [d, K] with B contiguous in the result.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            rows,
            classes,
            dim,
            logits.as_mut_ptr(),
            rows as isize,
            1,
            false,
            x.as_ptr(),
            1,
            dim as isize,
            weights.as_ptr(),
            dim as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `gradient[k, j] = sum_i residual[k, i] x[i, j]`: `residual` is `[K, B]`, `x` is `[B, d]`, `gradient` is `[K, d]`.
pub(crate) fn gradient(residual: &[f32], x: &[f32], dim: usize, gradient: &mut [f32]) {
    let (rows, classes) = (x.len() / dim, gradient.len() / dim);
    assert_eq!(x.len(), rows * dim, "features are whole rows");
    assert_eq!(gradient.len(), classes * dim, "the gradient is whole rows");
    assert_eq!(residual.len(), classes * rows, "one residual a class and row");
    // SAFETY: the three lengths are checked above, and the strides below stay inside them: the product is
    // [d, K] = [d, B] x [B, K] with d contiguous in the result.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            dim,
            classes,
            rows,
            gradient.as_mut_ptr(),
            dim as isize,
            1,
            false,
            x.as_ptr(),
            dim as isize,
            1,
            residual.as_ptr(),
            rows as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `gram[a, b] = sum_i x[i, from + a] x[i, b]`, the rows `from..from + gram.len() / d` of `x' x`: `x` is `[n, d]`.
pub(crate) fn gram_rows(x: &[f32], dim: usize, from: usize, gram: &mut [f32]) {
    let (rows, count) = (x.len() / dim, gram.len() / dim);
    assert_eq!(x.len(), rows * dim, "features are whole rows");
    assert_eq!(gram.len(), count * dim, "the product is whole rows");
    assert!(from + count <= dim, "columns exist");
    // SAFETY: the lengths are checked above, and the strides below stay inside them: the product is
    // [d, count] = [d, n] x [n, count], the right side starting at column `from` of `x`.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            dim,
            count,
            rows,
            gram.as_mut_ptr(),
            dim as isize,
            1,
            false,
            x.as_ptr(),
            dim as isize,
            1,
            x[from..].as_ptr(),
            1,
            dim as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_match_loops() {
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
        let mut gram = vec![f32::NAN; 2 * dim];
        gram_rows(&x, dim, 3, &mut gram);
        for a in 0..2 {
            for b in 0..dim {
                let expected: f32 = (0..rows).map(|i| x[i * dim + 3 + a] * x[i * dim + b]).sum();
                assert_eq!(gram[a * dim + b], expected);
            }
        }
    }
}
