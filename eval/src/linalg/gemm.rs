//! A safe door to the `gemm` crate: `out = alpha * a * b + beta * out` on row-major f32 or f64, where `a` and `b` may be
//! transposed views. The order of summation is the crate's: it depends on the shapes of a call, never on the number of
//! threads.

/// Element types that have a product kernel: f32 and f64.
pub trait Real: Copy + Send + Sync + PartialEq + From<f32> + 'static + private::Sealed {}
impl Real for f32 {}
impl Real for f64 {}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// How many threads a product may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone: for callers that are themselves parallel.
    One,
    /// All threads of the current rayon pool.
    Pool,
}

/// One factor of a product: a dense `rows x cols` view of a slice, as stored or transposed.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Operand<'a, T> {
    /// Views a row-major slice as `rows x cols`.
    ///
    /// # Panics
    /// If the slice does not hold exactly `rows * cols` values.
    pub fn row_major(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "operand of a product: {rows} x {cols}");
        Self {
            data,
            rows,
            cols,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// The same values seen as `cols x rows`; nothing is copied.
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// `out = a * b`; `out` is row-major `a.rows x b.cols`.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn matmul<T: Real>(out: &mut [T], a: Operand<'_, T>, b: Operand<'_, T>, threads: Threads) {
    gemm(out, T::from(1.0), a, b, T::from(0.0), threads);
}

/// `out = alpha * a * b + beta * out`; `out` is row-major `a.rows x b.cols`. With `beta` zero, `out` is not read.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn gemm<T: Real>(
    out: &mut [T],
    alpha: T,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    beta: T,
    threads: Threads,
) {
    assert_eq!(a.cols, b.rows, "inner sizes of a product");
    assert_eq!(
        out.len(),
        a.rows * b.cols,
        "output of a product: {} x {}",
        a.rows,
        b.cols
    );
    if out.is_empty() {
        return;
    }
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::Pool => gemm::Parallelism::Rayon(0),
    };
    let read_out = beta != T::from(0.0);
    // SAFETY: `Operand` holds exactly rows * cols values under the two strides it names, the asserts above fix all three
    // sizes and the length of `out`, and `out` is borrowed mutably so that it overlaps neither factor. `T` is f32 or f64
    // (sealed), both of which the crate dispatches on.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            b.cols as isize,
            read_out,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f64> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(state >> 8) / f64::from(1 << 24) - 0.5
            })
            .collect()
    }

    fn naive(a: &[f64], b: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                out[i * n + j] = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
            }
        }
        out
    }

    fn transpose(a: &[f64], rows: usize, cols: usize) -> Vec<f64> {
        let mut out = vec![0.0; a.len()];
        for i in 0..rows {
            for j in 0..cols {
                out[j * rows + i] = a[i * cols + j];
            }
        }
        out
    }

    #[test]
    fn all_transpositions_and_edge_shapes_agree_with_the_definition() {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 7, 5),
            (7, 1, 5),
            (3, 4, 0),
            (3, 4, 1),
            (17, 9, 33),
            (65, 70, 600),
        ] {
            let (a, b, c) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            let product = naive(&a, &b, m, n, k);
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            let left = [
                Operand::row_major(&a, m, k),
                Operand::row_major(&at, k, m).transposed(),
            ];
            let right = [
                Operand::row_major(&b, k, n),
                Operand::row_major(&bt, n, k).transposed(),
            ];
            for (x, y) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for threads in [Threads::One, Threads::Pool] {
                    let mut out = c.clone();
                    gemm(&mut out, 2.0, left[x], right[y], -0.5, threads);
                    for i in 0..m * n {
                        let expected = 2.0 * product[i] - 0.5 * c[i];
                        assert!((out[i] - expected).abs() < 1e-10, "{m} {n} {k} {x}{y}");
                    }
                }
            }
        }
    }

    #[test]
    fn beta_zero_does_not_read_the_output() {
        let mut out = vec![f32::NAN; 4];
        let (a, b) = ([1.0f32, 2.0], [3.0f32, 4.0]);
        matmul(
            &mut out,
            Operand::row_major(&a, 2, 1),
            Operand::row_major(&b, 1, 2),
            Threads::One,
        );
        assert_eq!(out, [3.0, 4.0, 6.0, 8.0]);
    }

    #[test]
    #[should_panic(expected = "inner sizes")]
    fn shapes_that_do_not_fit_are_refused() {
        let a = [0.0f32; 6];
        matmul(
            &mut [0.0; 9],
            Operand::row_major(&a, 3, 2),
            Operand::row_major(&a, 3, 2),
            Threads::One,
        );
    }
}
