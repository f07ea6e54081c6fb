//! A preconditioner for L-BFGS: the curvature of the loss with the same softmax spread at every row,
//! `a C [X 1]' [X 1] + penalty`, which is exact at zero weights. Raw features (pixels, tokens that share a large mean)
//! are badly conditioned, and most of the iterations of a plain L-BFGS go into learning this matrix. Where that does
//! not suffice, because rows and classes differ in how decided they are, each class gets its own block of the Hessian.

use super::objective::Objective;
use crate::linalg::gemm::{Operand, Threads, matmul};
use crate::{Matrix, MatrixView};
use rayon::prelude::*;

/// Above this width the matrix costs more than it saves, and only its diagonal is used.
const LARGEST_FULL_DIM: usize = 2048;
/// Rows that estimate the matrix, and rows per column where there are many columns.
const SAMPLE_ROWS: usize = 8192;
const SAMPLE_ROWS_PER_COLUMN: usize = 8;
/// Most values of all classes' own matrices together: 400 MB.
const LARGEST_PER_CLASS: usize = 50_000_000;
/// Rows per column that estimate a class's own matrix.
const CLASS_ROWS_PER_COLUMN: usize = 16;
/// Rows whose weight is below this share of the mean weight are left out of it.
const NEGLIGIBLE: f64 = 0.1;
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
    Full {
        factor: Vec<f64>,
        size: usize,
    },
    Diagonal(Vec<f64>),
    /// One factor a class. Every step keeps the sum over the classes at zero, as the minimum does.
    PerClass {
        factors: Vec<Vec<f64>>,
        size: usize,
    },
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
            Self::full(sample, &vec![1.0; wanted])
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

    /// Second moments of the rows of `[x 1]`, each times its root.
    fn full(x: Matrix, roots: &[f32]) -> Self {
        let (dim, rows) = (x.view().dim(), x.view().rows());
        let size = dim + 1;
        let n = rows as f64;
        let mut x = x.into_data();
        for (row, root) in x.chunks_exact_mut(dim).zip(roots) {
            row.iter_mut().for_each(|value| *value *= root);
        }
        let mut products = vec![0.0f32; dim * dim];
        let operand = Operand::row_major(&x, rows, dim);
        matmul(&mut products, operand.transposed(), operand, Threads::Pool);
        let mut values = vec![0.0; size * size];
        for (to, from) in values.chunks_exact_mut(size).zip(products.chunks_exact(dim)) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = f64::from(*from) / n;
            }
        }
        let ones = &mut values[dim * size..];
        for (row, root) in x.chunks_exact(dim).zip(roots) {
            for (sum, value) in ones.iter_mut().zip(row) {
                *sum += f64::from(value * root) / n;
            }
            ones[dim] += f64::from(root * root) / n;
        }
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
        Preconditioner::Full {
            factor: self.cholesky(curvature, penalty),
            size,
        }
    }

    /// The factor of `curvature * gram + penalty`.
    fn cholesky(&self, curvature: f64, penalty: f64) -> Vec<f64> {
        let size = self.size;
        let trace: f64 = (0..size).map(|i| self.values[i * size + i]).sum();
        // The products are f32: what rounding may have taken from the smallest eigenvalues is given back, more of it
        // where the factorisation still meets a negative pivot.
        let mut jitter = 3e-7 * trace * curvature;
        loop {
            let mut factor: Vec<f64> = self.values.iter().map(|value| curvature * value).collect();
            for i in 0..size {
                factor[i * size + i] += jitter + if i + 1 < size { penalty } else { 0.0 };
            }
            if cholesky(&mut factor, size) {
                return factor;
            }
            jitter *= 10.0;
        }
    }
}

/// Whether the classes' own matrices are affordable.
pub(super) fn can_be_per_class(classes: usize, dim: usize) -> bool {
    classes > 2 && dim <= LARGEST_FULL_DIM && classes * (dim + 1) * (dim + 1) <= LARGEST_PER_CLASS
}

/// The Hessian's diagonal blocks `C sum_i p_ik (1 - p_ik) [x_i 1]' [x_i 1] + penalty` at the objective's logits.
pub(super) fn per_class(objective: &Objective<'_>, c: f64, penalty: f64) -> Preconditioner {
    let x = objective.features();
    let factors = (0..objective.classes()).map(|class| {
        let weights = objective.class_weights(class);
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let min = (NEGLIGIBLE * total / weights.len() as f64) as f32;
        let kept: Vec<usize> = (0..weights.len()).filter(|&row| weights[row] >= min).collect();
        let wanted = kept.len().min(CLASS_ROWS_PER_COLUMN * x.dim());
        let sampled: Vec<usize> = (0..wanted).map(|i| kept[i * kept.len() / wanted]).collect();
        let roots: Vec<f32> = sampled.iter().map(|&row| weights[row].sqrt()).collect();
        let mean: f64 = roots.iter().map(|root| f64::from(root * root)).sum::<f64>() / wanted as f64;
        // A class that no row is undecided about still needs a curvature above zero.
        let total = total.max(1e-6 * weights.len() as f64);
        let curvature = c * total / mean.max(f64::MIN_POSITIVE);
        Gram::full(x.select(&sampled), &roots).cholesky(curvature, penalty)
    });
    Preconditioner::PerClass {
        factors: factors.collect(),
        size: x.dim() + 1,
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
            Self::PerClass { factors, size } => {
                let dim = size - 1;
                let (weights, biases) = values.split_at_mut(factors.len() * dim);
                weights
                    .par_chunks_exact_mut(dim)
                    .zip(biases.par_iter_mut())
                    .zip(factors)
                    .for_each(|((weights, bias), factor)| solve(factor, *size, weights, bias));
                centre(weights, dim);
                centre(biases, 1);
            }
        }
    }
}

/// Subtracts the mean over the classes: `values` is `[K, width]`.
fn centre(values: &mut [f64], width: usize) {
    let classes = (values.len() / width) as f64;
    for j in 0..width {
        let column = values[j..].iter_mut().step_by(width);
        let mean = column.map(|value| *value).sum::<f64>() / classes;
        values[j..]
            .iter_mut()
            .step_by(width)
            .for_each(|value| *value -= mean);
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
    fn each_class_is_divided_by_its_block_of_the_hessian() {
        // At most 16 rows a column and no row decided: then the sample is every row.
        let (rows, dim, classes) = (16 * 6, 6, 3);
        let x = features(rows, dim);
        let labels: Vec<u32> = (0..rows).map(|i| (i % classes) as u32).collect();
        let mut objective = Objective::new(x.view(), &labels, classes);
        let parameters: Vec<f64> = (0..objective.n_parameters())
            .map(|i| 0.1 * (i as f64).sin())
            .collect();
        objective.restart(&parameters, &mut vec![0.0; parameters.len()]);
        let (c, penalty) = (0.5, 20.0);
        // Sums to zero over the classes, as every step does.
        let share = [1.0, -3.0, 2.0];
        let expected: Vec<f64> = (0..=dim).map(|j| (1.0 + j as f64).cos()).collect();
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for (class, share) in share.iter().enumerate() {
            let spread = objective.class_weights(class);
            let mut product: Vec<f64> = expected.iter().map(|v| penalty * share * v).collect();
            product[dim] = 0.0;
            for (i, weight) in spread.iter().enumerate() {
                let logits: Vec<f64> = (0..classes)
                    .map(|k| {
                        let row = x.view().row(i).iter().enumerate();
                        parameters[classes * dim + k]
                            + row
                                .map(|(j, v)| parameters[k * dim + j] * f64::from(*v))
                                .sum::<f64>()
                    })
                    .collect();
                let p = logits[class].exp() / logits.iter().map(|z| z.exp()).sum::<f64>();
                assert!((f64::from(*weight) - p * (1.0 - p)).abs() < 1e-6);
                let row: Vec<f64> = x
                    .view()
                    .row(i)
                    .iter()
                    .map(|v| f64::from(*v))
                    .chain([1.0])
                    .collect();
                let along = c * p * (1.0 - p) * share * dot(&row, &expected);
                product.iter_mut().zip(&row).for_each(|(v, r)| *v += along * r);
            }
            weights.extend_from_slice(&product[..dim]);
            biases.push(product[dim]);
        }
        let mut values = [weights, biases].concat();
        per_class(&objective, c, penalty).divide(&mut values);
        for (class, share) in share.iter().enumerate() {
            for j in 0..=dim {
                let place = if j == dim {
                    classes * dim + class
                } else {
                    class * dim + j
                };
                let (found, expected) = (values[place], share * expected[j]);
                assert!((found - expected).abs() < 1e-3, "{class} {j}: {found} {expected}");
            }
        }
    }

    #[test]
    fn cholesky_refuses_an_indefinite_matrix() {
        assert!(!cholesky(&mut [1.0, 2.0, 2.0, 1.0], 2));
        let mut a = [4.0, 2.0, 2.0, 5.0];
        assert!(cholesky(&mut a, 2));
        assert_eq!([a[0], a[2], a[3]], [2.0, 1.0, 2.0]);
    }

    #[test]
    fn a_sample_has_eight_rows_a_column() {
        // One column and one row more than the 8,192 rows hold that are enough for few columns.
        let (rows, dim) = (8 * 1025, 1025);
        let mut data = vec![0.0; rows * dim];
        data[(rows - 1) * dim] = 2.0;
        let gram = Gram::new(MatrixView::new(&data, rows, dim).unwrap());
        assert_eq!(gram.values[0], 4.0 / rows as f64);
    }

    #[test]
    fn matrices_of_each_class_are_for_what_they_cost() {
        assert!(can_be_per_class(3, 10) && !can_be_per_class(2, 10));
        assert!(can_be_per_class(3, 2048) && !can_be_per_class(3, 2049));
        // 11 and 12 matrices of 2,049 x 2,049.
        assert!(can_be_per_class(11, 2048) && !can_be_per_class(12, 2048));
    }

    #[test]
    fn of_wide_features_the_diagonal_is_divided_by() {
        let dim = 2049;
        let data: Vec<f32> = (0..2 * dim).map(|i| (i % 5) as f32).collect();
        let gram = Gram::new(MatrixView::new(&data, 2, dim).unwrap());
        let Preconditioner::Diagonal(diagonal) = gram.factor(2.0, 3.0) else {
            panic!("expected the diagonal alone");
        };
        assert_eq!(diagonal.len(), dim + 1);
        for (j, found) in diagonal[..dim].iter().enumerate() {
            let squares = data[j] * data[j] + data[dim + j] * data[dim + j];
            assert_eq!(*found, f64::from(squares) + 3.0, "{j}");
        }
        assert_eq!(diagonal[dim], 2.0);
        // A curvature of 0 leaves the bias something to be divided by.
        let Preconditioner::Diagonal(diagonal) = gram.factor(0.0, 3.0) else {
            panic!("expected the diagonal alone");
        };
        assert!(diagonal[dim] > 0.0);
    }
}
