//! What the factors of matrix products are rounded to on the CPU, and the products.

use candle_core::{DType, Result, bail};
use half::bf16;
use rayon::prelude::*;

use super::cpu::{Matrix, Start, Threads, gemm_into};
use super::element::Element;
#[cfg(target_arch = "x86_64")]
use super::packed_product;

/// Whether products with factors in bf16 take no longer than those in f32 on this processor.
pub fn has_fast_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return packed_product::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether a test of this thread multiplies as on a processor without the instructions.
#[cfg(all(test, target_arch = "x86_64"))]
fn tests_leave_them_out() -> bool {
    tests::WITHOUT.get()
}

#[cfg(all(not(test), target_arch = "x86_64"))]
const fn tests_leave_them_out() -> bool {
    false
}

/// The factors of a product; sums are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// As they are.
    F32,
    /// Rounded to bf16, as the processor's instruction for such products takes them. Where it has none, or a slow one, they are
    /// rounded first and multiplied in f32: the same numbers but for the order of sums.
    Bf16,
}

impl Precision {
    /// # Errors
    /// A type other than f32 and bf16; `op` names the operation.
    pub(super) fn for_compute(op: &str, compute: DType) -> Result<Self> {
        match compute {
            DType::F32 => Ok(Self::F32),
            DType::BF16 => Ok(Self::Bf16),
            found => bail!("{op}: expected to compute in f32 or bf16, found {found:?}"),
        }
    }

    /// `lhs rhs` on all threads: `[m, n] = [m, k] [k, n]` for `size = [m, n, k]`.
    pub(super) fn product<L: Element, R: Element, D: Element>(
        self,
        size: [usize; 3],
        lhs: Matrix<L>,
        rhs: Matrix<R>,
    ) -> Vec<D> {
        self.fresh(size, Start::Zero, lhs, rhs)
    }

    /// [`Self::product`] plus `row` [n] in every row.
    pub(super) fn product_plus_row<L: Element, R: Element, D: Element>(
        self,
        size: [usize; 3],
        row: &[f32],
        lhs: Matrix<L>,
        rhs: Matrix<R>,
    ) -> Vec<D> {
        assert_eq!(
            row.len(),
            size[1],
            "a matrix product starts from a row of another width"
        );
        self.fresh(size, Start::Row(row), lhs, rhs)
    }

    /// `dst += lhs rhs` on all threads, for `dst` of `m n` values.
    pub(super) fn add_product<L: Element, R: Element>(
        self,
        size: [usize; 3],
        dst: &mut [f32],
        lhs: Matrix<L>,
        rhs: Matrix<R>,
    ) {
        let [m, n, k] = size;
        assert_eq!(dst.len(), m * n, "a matrix product does not fill its destination");
        if m == 0 || n == 0 || k == 0 {
            return;
        }
        // SAFETY: `dst` has `m n` values, which no one else can reach while it is borrowed mutably.
        #[allow(unsafe_code)]
        unsafe {
            self.write(
                size,
                dst.as_mut_ptr(),
                n,
                Start::Destination,
                lhs,
                rhs,
                Threads::All,
            );
        }
    }

    /// `dst = lhs rhs` on this thread, for `dst` of `m n` values, neither 0.
    pub(super) fn product_here<L: Element, R: Element>(
        self,
        size: [usize; 3],
        dst: &mut [f32],
        lhs: Matrix<L>,
        rhs: Matrix<R>,
    ) {
        let [m, n, _] = size;
        assert_eq!(dst.len(), m * n, "a matrix product does not fill its destination");
        // SAFETY: as in `add_product`.
        #[allow(unsafe_code)]
        unsafe {
            self.product_here_into(size, dst.as_mut_ptr(), n, lhs, rhs);
        }
    }

    /// [`Self::product_here`] into rows `row_stride` apart, for sizes of at least 1.
    ///
    /// # Safety
    /// `dst` points to `m` rows of `n` values, `row_stride` apart, that nothing else reaches meanwhile.
    #[allow(unsafe_code)]
    pub(super) unsafe fn product_here_into<L: Element, R: Element, D: Element>(
        self,
        size: [usize; 3],
        dst: *mut D,
        row_stride: usize,
        lhs: Matrix<L>,
        rhs: Matrix<R>,
    ) {
        // SAFETY: as the caller promises.
        unsafe { self.write(size, dst, row_stride, Start::Zero, lhs, rhs, Threads::One) }
    }

    fn fresh<L: Element, R: Element, D: Element>(
        self,
        size: [usize; 3],
        start: Start,
        lhs: Matrix<L>,
        rhs: Matrix<R>,
    ) -> Vec<D> {
        let [m, n, k] = size;
        if m == 0 || n == 0 {
            return Vec::new();
        }
        if k == 0 {
            return rows_of(m, n, start);
        }
        let mut dst = Vec::with_capacity(m * n);
        // SAFETY: there is room for `m n` values, which a product that does not start from them writes without reading them.
        #[allow(unsafe_code)]
        unsafe {
            self.write(size, dst.as_mut_ptr(), n, start, lhs, rhs, Threads::All);
            dst.set_len(m * n);
        }
        dst
    }

    /// # Safety
    /// Sizes of at least 1; `dst` points to `m` rows of `n` values, `row_stride` apart, that nothing else reaches meanwhile,
    /// initialised if the sums start from them, which they can in f32 only.
    #[allow(unsafe_code, clippy::too_many_arguments)]
    unsafe fn write<L: Element, R: Element, D: Element>(
        self,
        size: [usize; 3],
        dst: *mut D,
        row_stride: usize,
        start: Start,
        lhs: Matrix<L>,
        rhs: Matrix<R>,
        threads: Threads,
    ) {
        #[cfg(target_arch = "x86_64")]
        if has_fast_bf16() && !tests_leave_them_out() {
            // SAFETY: the instructions are there; the rest as the caller promises.
            unsafe { packed_product::product_into(self, size, dst, row_stride, start, lhs, rhs, threads) };
            return;
        }
        let [m, n, k] = size;
        lhs.assert_holds(m, k);
        rhs.assert_holds(k, n);
        let (left, right) = (self.in_f32(lhs, m, k, threads), self.in_f32(rhs, k, n, threads));
        let (lhs, rhs) = (left.matrix(), right.matrix());
        // SAFETY: as the caller promises.
        unsafe {
            if D::DTYPE == DType::F32 {
                f32_product_into(size, dst.cast(), row_stride, start, lhs, rhs, threads);
                return;
            }
            assert!(!matches!(start, Start::Destination), "sums start from f32 only");
            let mut sums = vec![0f32; m * n];
            f32_product_into(size, sums.as_mut_ptr(), n, start, lhs, rhs, threads);
            for (row, sums) in sums.chunks_exact(n).enumerate() {
                for (column, &sum) in sums.iter().enumerate() {
                    dst.add(row * row_stride + column).write(D::rounded(sum));
                }
            }
        }
    }

    /// The factor as a product in f32 takes it: as it is, or rounded and copied without gaps.
    fn in_f32<'a, T: Element>(
        self,
        matrix: Matrix<'a, T>,
        rows: usize,
        columns: usize,
        threads: Threads,
    ) -> Factor<'a> {
        if self == Self::F32
            && let Some(matrix) = T::f32s(matrix)
        {
            return Factor::AsItIs(matrix);
        }
        let (values, row_stride, column_stride) = matrix.parts();
        let value = |i: usize| {
            let value = values[i / columns * row_stride + i % columns * column_stride].value();
            match self {
                Self::F32 => value,
                Self::Bf16 => bf16::rounded(value).value(),
            }
        };
        let values = match threads {
            Threads::One => (0..rows * columns).map(value).collect(),
            Threads::All => (0..rows * columns).into_par_iter().map(value).collect(),
        };
        Factor::Copied { values, columns }
    }
}

/// A factor in f32.
enum Factor<'a> {
    AsItIs(Matrix<'a>),
    Copied { values: Vec<f32>, columns: usize },
}

impl Factor<'_> {
    fn matrix(&self) -> Matrix<'_> {
        match self {
            Self::AsItIs(matrix) => *matrix,
            Self::Copied { values, columns } => Matrix::new(values, *columns),
        }
    }
}

/// A result of products without terms.
fn rows_of<D: Element>(rows: usize, columns: usize, start: Start) -> Vec<D> {
    match start {
        Start::Row(row) => row
            .iter()
            .map(|&value| D::rounded(value))
            .collect::<Vec<_>>()
            .repeat(rows),
        Start::Zero | Start::Destination => vec![D::default(); rows * columns],
    }
}

/// [`Precision::write`] in f32.
///
/// # Safety
/// As there.
#[allow(unsafe_code)]
unsafe fn f32_product_into(
    size: [usize; 3],
    dst: *mut f32,
    row_stride: usize,
    start: Start,
    lhs: Matrix,
    rhs: Matrix,
    threads: Threads,
) {
    let [m, n, _] = size;
    // SAFETY: as the caller promises; every row is written before the product reads it.
    unsafe {
        if let Start::Row(row) = start {
            assert_eq!(
                row.len(),
                n,
                "a matrix product starts from a row of another width"
            );
            for i in 0..m {
                dst.add(i * row_stride).copy_from(row.as_ptr(), n);
            }
        }
        let accumulate = !matches!(start, Start::Zero);
        gemm_into(size, dst, row_stride, accumulate, lhs, rhs, threads);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::testing::{assert_close, on_threads, random, skipped};
    use super::*;

    thread_local! {
        pub(super) static WITHOUT: Cell<bool> = const { Cell::new(false) };
    }

    /// What `work` gives on a processor without instructions for bf16.
    fn without_instructions<T>(work: impl FnOnce() -> T) -> T {
        let before = WITHOUT.replace(true);
        let result = work();
        WITHOUT.set(before);
        result
    }

    fn numbers(seed: u64, count: usize) -> Vec<f32> {
        random(seed, &[count]).to_vec1().unwrap()
    }

    fn narrow(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|&value| bf16::rounded(value)).collect()
    }

    fn rounded(values: &[f32]) -> Vec<f32> {
        narrow(values).into_iter().map(Element::value).collect()
    }

    /// Every way a matrix may lie in memory, with its transpose taken where the product needs it the other way round.
    fn layouts(values: &[f32], rows: usize, columns: usize) -> [(Vec<f32>, bool, usize); 3] {
        let turned = (0..rows * columns)
            .map(|i| values[i % rows * columns + i / rows])
            .collect();
        let mut gaps = vec![f32::NAN; rows * (columns + 3)];
        for (row, values) in gaps
            .chunks_exact_mut(columns + 3)
            .zip(values.chunks_exact(columns))
        {
            row[..columns].copy_from_slice(values);
        }
        [
            (values.to_vec(), false, columns),
            (turned, true, rows),
            (gaps, false, columns + 3),
        ]
    }

    fn matrix<T>((values, turned, stride): &(Vec<T>, bool, usize)) -> Matrix<'_, T> {
        let matrix = Matrix::new(values, *stride);
        if *turned { matrix.transposed() } else { matrix }
    }

    /// Sizes around those of vectors, tiles, tasks and blocks of the inner dimension.
    const SIZES: [[usize; 3]; 9] = [
        [1, 1, 1],
        [12, 32, 2],
        [13, 33, 3],
        [5, 17, 31],
        [11, 16, 33],
        [25, 100, 65],
        [150, 40, 513],
        [3, 801, 600],
        [145, 770, 7],
    ];

    #[test]
    fn products_are_those_of_the_rounded_factors() {
        check_products();
        without_instructions(check_products);
    }

    fn check_products() {
        for size @ [m, n, k] in SIZES {
            let (a, b, start) = (numbers(1, m * k), numbers(2, k * n), numbers(3, m * n));
            let (left, right) = (rounded(&a), rounded(&b));
            let mut expected = vec![0f64; m * n];
            for (i, sum) in expected.iter_mut().enumerate() {
                *sum = (0..k)
                    .map(|j| f64::from(left[i / n * k + j]) * f64::from(right[j * n + i % n]))
                    .sum();
            }
            let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
            for a in &layouts(&a, m, k) {
                for b in &layouts(&b, k, n) {
                    let found: Vec<f32> = Precision::Bf16.product(size, matrix(a), matrix(b));
                    assert_close(&format!("{size:?}"), &wide(&found), &expected, 1e-6);
                    let mut sum = start.clone();
                    Precision::Bf16.add_product(size, &mut sum, matrix(a), matrix(b));
                    let added: Vec<f64> = expected
                        .iter()
                        .zip(&start)
                        .map(|(a, b)| a + f64::from(*b))
                        .collect();
                    assert_close(&format!("{size:?} added"), &wide(&sum), &added, 1e-6);
                    let row = &start[..n];
                    let found: Vec<f32> = Precision::Bf16.product_plus_row(size, row, matrix(a), matrix(b));
                    let added: Vec<f64> = expected
                        .iter()
                        .enumerate()
                        .map(|(i, a)| a + f64::from(row[i % n]))
                        .collect();
                    assert_close(&format!("{size:?} with a row"), &wide(&found), &added, 1e-6);
                    let mut here = vec![7.; m * n];
                    Precision::Bf16.product_here(size, &mut here, matrix(a), matrix(b));
                    assert_close(&format!("{size:?} here"), &wide(&here), &expected, 1e-6);
                }
            }
        }
    }

    #[test]
    fn f32_follows_strides_and_starts() {
        // [2, 3] inside rows of 4, times the transpose of [2, 3].
        let a = [1., 2., 3., 9., 4., 5., 6., 9.];
        let b = [1., 0., 1., 2., 1., 0.];
        let (lhs, rhs) = (Matrix::new(&a, 4), Matrix::new(&b, 3).transposed());
        let mut dst = vec![10.; 4];
        Precision::F32.add_product([2, 2, 3], &mut dst, lhs, rhs);
        assert_eq!(dst, [14., 14., 20., 23.]);
        Precision::F32.product_here([2, 2, 3], &mut dst, lhs, rhs);
        assert_eq!(dst, [4., 4., 10., 13.]);
        let found: Vec<f32> = Precision::F32.product_plus_row([2, 2, 3], &[1., 2.], lhs, rhs);
        assert_eq!(found, [5., 6., 11., 15.]);
    }

    #[test]
    fn without_terms_a_row_is_left() {
        let nothing = Matrix::<f32>::new(&[], 0);
        let found: Vec<f32> = Precision::F32.product_plus_row([2, 2, 0], &[1., 2.], nothing, nothing);
        assert_eq!(found, [1., 2., 1., 2.]);
        let found: Vec<f32> = Precision::Bf16.product([1, 2, 0], nothing, nothing);
        assert_eq!(found, [0., 0.]);
    }

    #[test]
    fn factors_and_results_may_be_stored_in_bf16() {
        check_stored();
        without_instructions(check_stored);
    }

    /// With the instructions and without them: the same sums in another order, so the same numbers to their last bits.
    #[test]
    fn the_instructions_change_the_order_of_sums_only() {
        if !has_fast_bf16() {
            return skipped("bf16 products with and without instructions: this processor has none");
        }
        let mut any_other_bit = false;
        for size @ [m, n, k] in SIZES {
            let (a, b) = (numbers(1, m * k), numbers(2, k * n));
            let (a, b) = (Matrix::new(&a, k), Matrix::new(&b, n));
            let product = || -> Vec<f32> { Precision::Bf16.product(size, a, b) };
            let (with, without) = (product(), without_instructions(product));
            any_other_bit |= with != without;
            let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
            assert_close(&format!("{size:?}"), &wide(&with), &wide(&without), 1e-6);
        }
        assert!(any_other_bit, "both ways are one");
    }

    fn check_stored() {
        for size @ [m, n, k] in SIZES {
            let (a, b, row) = (numbers(1, m * k), numbers(2, k * n), numbers(3, n));
            for a in &layouts(&a, m, k) {
                for b in &layouts(&b, k, n) {
                    let expected: Vec<f32> =
                        Precision::Bf16.product_plus_row(size, &row, matrix(a), matrix(b));
                    let [left, right] =
                        [a, b].map(|(values, turned, stride)| (narrow(values), *turned, *stride));
                    let found: Vec<f32> =
                        Precision::Bf16.product_plus_row(size, &row, matrix(&left), matrix(&right));
                    assert_eq!(found, expected, "{size:?}");
                    let found: Vec<bf16> =
                        Precision::Bf16.product_plus_row(size, &row, matrix(a), matrix(&right));
                    for (found, expected) in found.iter().zip(&expected) {
                        let gap = (found.value() - expected).abs();
                        assert!(
                            gap <= expected.abs() / 256. + 1e-5,
                            "{size:?}: {found} and {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let [m, n, k] = [150, 801, 520];
        let (a, b) = (numbers(1, m * k), numbers(2, k * n));
        let product =
            || -> Vec<f32> { Precision::Bf16.product([m, n, k], Matrix::new(&a, k), Matrix::new(&b, n)) };
        assert_eq!(on_threads(1, product), on_threads(5, product));
    }

    #[test]
    fn numbers_that_are_none_stay_so() {
        let a = [f32::NAN, f32::INFINITY, 1.];
        let found: Vec<f32> = Precision::Bf16.product([3, 1, 1], Matrix::new(&a, 1), Matrix::new(&[2.], 1));
        assert!(found[0].is_nan() && found[1] == f32::INFINITY && found[2] == 2.);
    }

    #[test]
    fn other_types_are_refused() {
        let error = Precision::for_compute("linear", DType::F16)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("linear: expected to compute in f32 or bf16, found F16"),
            "{error}"
        );
    }
}
