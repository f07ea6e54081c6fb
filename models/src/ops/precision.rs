//! What the factors of matrix products are rounded to on the CPU.

use candle_core::{DType, Result, bail};

#[cfg(target_arch = "x86_64")]
use super::bf16_product;
use super::cpu::{ELEMENTS_PER_TASK, Matrix, Threads, gemm_into};
use super::vectors::{beside, filled};

/// Whether products with factors in bf16 are faster than those in f32 on this processor.
pub fn has_fast_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return bf16_product::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The factors of a product; tensors, sums and results are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// As they are.
    F32,
    /// Rounded to bf16, as the processor's instruction for such products takes them. Where it has none they are rounded first
    /// and multiplied in f32: the same numbers but for the order of sums, only slower.
    Bf16,
}

impl Precision {
    /// # Errors
    /// A type other than f32 and bf16; `op` names the operation.
    pub(super) fn of(op: &str, compute: DType) -> Result<Self> {
        match compute {
            DType::F32 => Ok(Self::F32),
            DType::BF16 => Ok(Self::Bf16),
            found => bail!("{op}: expected to compute in f32 or bf16, found {found:?}"),
        }
    }

    /// `lhs rhs` on all threads: `[m, n] = [m, k] [k, n]` for `size = [m, n, k]`.
    pub(super) fn product(self, size: [usize; 3], lhs: Matrix, rhs: Matrix) -> Vec<f32> {
        let [m, n, k] = size;
        if m == 0 || n == 0 || k == 0 {
            return vec![0.; m * n];
        }
        let mut dst = Vec::with_capacity(m * n);
        // SAFETY: there is room for `m n` values, which a product that does not accumulate writes without reading them.
        #[allow(unsafe_code)]
        unsafe {
            self.write(size, dst.as_mut_ptr(), false, lhs, rhs);
            dst.set_len(m * n);
        }
        dst
    }

    /// `dst += lhs rhs` on all threads, for `dst` of `m n` values.
    pub(super) fn add_product(self, size: [usize; 3], dst: &mut [f32], lhs: Matrix, rhs: Matrix) {
        let [m, n, k] = size;
        assert_eq!(dst.len(), m * n, "a matrix product does not fill its destination");
        if m == 0 || n == 0 || k == 0 {
            return;
        }
        // SAFETY: `dst` has `m n` values, which no one else can reach while it is borrowed mutably.
        #[allow(unsafe_code)]
        unsafe {
            self.write(size, dst.as_mut_ptr(), true, lhs, rhs);
        }
    }

    /// # Safety
    /// Sizes of at least 1; `dst` points to `m n` values that nothing else reaches meanwhile, initialised if `accumulate` is
    /// set.
    #[allow(unsafe_code)]
    unsafe fn write(self, size: [usize; 3], dst: *mut f32, accumulate: bool, lhs: Matrix, rhs: Matrix) {
        let [_, n, _] = size;
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Self::F32 => gemm_into(size, dst, n, accumulate, 1., lhs, rhs, Threads::All),
                #[cfg(target_arch = "x86_64")]
                Self::Bf16 if bf16_product::available() => {
                    bf16_product::product_into(size, dst, accumulate, lhs, rhs);
                }
                Self::Bf16 => {
                    let [left, right] = [lhs, rhs].map(|matrix| rounded(matrix.parts().0));
                    let (lhs, rhs) = (lhs.with_values(&left), rhs.with_values(&right));
                    gemm_into(size, dst, n, accumulate, 1., lhs, rhs, Threads::All);
                }
            }
        }
    }
}

/// `values` rounded to bf16.
fn rounded(values: &[f32]) -> Vec<f32> {
    filled(
        values.len(),
        ELEMENTS_PER_TASK,
        #[inline(always)]
        |task, out| {
            let values = beside(values, task, ELEMENTS_PER_TASK, out.len());
            for (out, value) in out.iter_mut().zip(values) {
                *out = half::bf16::from_f32(*value).to_f32();
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, on_threads, random};
    use super::*;

    fn numbers(seed: u64, count: usize) -> Vec<f32> {
        random(seed, &[count]).to_vec1().unwrap()
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

    fn matrix((values, turned, stride): &(Vec<f32>, bool, usize)) -> Matrix<'_> {
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
                    let found = Precision::Bf16.product(size, matrix(a), matrix(b));
                    assert_close(&format!("{size:?}"), &wide(&found), &expected, 1e-6);
                    let mut sum = start.clone();
                    Precision::Bf16.add_product(size, &mut sum, matrix(a), matrix(b));
                    let added: Vec<f64> = expected
                        .iter()
                        .zip(&start)
                        .map(|(a, b)| a + f64::from(*b))
                        .collect();
                    assert_close(&format!("{size:?} added"), &wide(&sum), &added, 1e-6);
                }
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let [m, n, k] = [150, 801, 520];
        let (a, b) = (numbers(1, m * k), numbers(2, k * n));
        let product = || Precision::Bf16.product([m, n, k], Matrix::new(&a, k), Matrix::new(&b, n));
        assert_eq!(on_threads(1, product), on_threads(5, product));
    }

    #[test]
    fn numbers_that_are_none_stay_so() {
        let a = [f32::NAN, f32::INFINITY, 1.];
        let found = Precision::Bf16.product([3, 1, 1], Matrix::new(&a, 1), Matrix::new(&[2.], 1));
        assert!(found[0].is_nan() && found[1] == f32::INFINITY && found[2] == 2.);
    }

    #[test]
    fn other_types_are_refused() {
        let error = Precision::of("linear", DType::F16).unwrap_err().to_string();
        assert!(
            error.contains("linear: expected to compute in f32 or bf16, found F16"),
            "{error}"
        );
    }
}
