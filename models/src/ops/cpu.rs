//! What the CPU kernels share: contiguous slices out of candle storage, sums that vectorise, an exponential, and `gemm`.

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};
use gemm::Parallelism;
use rayon::prelude::*;

/// Rows per parallel task, and per partial sum. Fixed, so that the order of additions never depends on the threads.
pub(super) const ROWS_PER_TASK: usize = 32;

/// Elements per parallel task of an elementwise kernel.
pub(super) const ELEMENTS_PER_TASK: usize = 1 << 14;

/// The values of a contiguous f32 tensor.
pub(super) fn f32_slice<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!(
            "{op}: expected f32 on the CPU, found {:?}",
            storage_dtype(storage)
        )
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!(
            "{op}: expected a contiguous tensor, found strides {:?}",
            layout.stride()
        ),
    }
}

fn storage_dtype(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Runs `kernel` on the values of contiguous f32 CPU tensors (for the backward passes, which get tensors).
pub(super) fn with_f32<const N: usize, R>(
    op: &str,
    tensors: [&Tensor; N],
    kernel: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *slice = match &**storage {
            Storage::Cpu(storage) => f32_slice(op, storage, layout)?,
            _ => bail!("{op}: no backward pass on this device yet, expected a CPU tensor"),
        };
    }
    Ok(kernel(slices))
}

/// A CPU tensor of `shape` like the storage an operation returns.
pub(super) fn stored(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// The last dimension of a tensor and the number of rows before it.
pub(super) fn rows_and_width(op: &str, shape: &Shape) -> Result<(usize, usize)> {
    match shape.dims().last() {
        Some(&width) if width > 0 => Ok((shape.elem_count() / width, width)),
        _ => bail!("{op}: expected a last dimension of at least 1, found shape {shape:?}"),
    }
}

const LANES: usize = 8;

/// Reduces `values` lane by lane, so that the loop vectorises although float addition does not commute with rounding.
#[inline(always)]
fn reduce(len: usize, start: f32, step: impl Fn(f32, usize) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let whole = len - len % LANES;
    for block in (0..whole).step_by(LANES) {
        for (lane, value) in lanes.iter_mut().enumerate() {
            *value = step(*value, block + lane);
        }
    }
    let mut total = lanes.into_iter().fold(start, join);
    for index in whole..len {
        total = step(total, index);
    }
    total
}

/// Sum of `values`.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    reduce(values.len(), 0., |total, i| total + values[i], |a, b| a + b)
}

/// Sum of the products of `a` and `b`, over the shorter of the two.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    reduce(len, 0., |total, i| total + a[i] * b[i], |x, y| x + y)
}

/// Largest of `values`; minus infinity if there are none. A NaN is passed over: the caller's `exp` meets it again.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    reduce(
        values.len(),
        f32::NEG_INFINITY,
        |best, i| best.max(values[i]),
        f32::max,
    )
}

/// `e^x` for x in [-87, 88] (clamped), within 2e-7 relative, in arithmetic that vectorises; NaN stays NaN.
///
/// Range reduction by ln 2 in two parts and the degree-6 polynomial of Cephes `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding this leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.;
    let x = x.clamp(-87., 88.);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (p * r * r + r + 1.) * power
}

/// Softmax of one row, in place.
#[inline(always)]
pub(super) fn softmax_row(row: &mut [f32]) {
    let largest = max(row);
    for value in row.iter_mut() {
        *value = exp(*value - largest);
    }
    let scale = 1. / sum(row);
    for value in row.iter_mut() {
        *value *= scale;
    }
}

/// Adds `term(row index, row of the partial sum)` over all rows, by fixed chunks: `[width]` sums.
///
/// `term` gets a chunk of row indices and an accumulator of `width` zeros.
pub(super) fn sum_over_rows(
    rows: usize,
    width: usize,
    term: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let partials: Vec<Vec<f32>> = (0..rows.div_ceil(ROWS_PER_TASK))
        .into_par_iter()
        .map(|task| {
            let start = task * ROWS_PER_TASK;
            let mut partial = vec![0.; width];
            term(start..rows.min(start + ROWS_PER_TASK), &mut partial);
            partial
        })
        .collect();
    let mut total = vec![0.; width];
    for partial in &partials {
        for (sum, value) in total.iter_mut().zip(partial) {
            *sum += value;
        }
    }
    total
}

/// A matrix inside a slice: element (i, j) is at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows `row_stride` apart, of neighbouring elements.
    pub(super) fn new(values: &'a [f32], row_stride: usize) -> Self {
        Self {
            values,
            row_stride,
            column_stride: 1,
        }
    }

    /// The transpose, without moving anything.
    pub(super) fn transposed(self) -> Self {
        Self {
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn assert_holds(&self, rows: usize, columns: usize) {
        let last = (rows - 1) * self.row_stride + (columns - 1) * self.column_stride;
        assert!(
            last < self.values.len(),
            "a matrix product reaches outside of its operands"
        );
    }
}

/// Whether a product may use all threads or is itself part of a parallel loop.
#[derive(Clone, Copy)]
pub(super) enum Threads {
    /// This thread only.
    One,
    /// The rayon pool.
    All,
}

/// `dst = scale * lhs rhs` or, with `accumulate`, `dst += scale * lhs rhs`, with `dst` row-major and full:
/// `[m, n] = [m, k] [k, n]` for `size = [m, n, k]`.
pub(super) fn gemm(
    size: [usize; 3],
    dst: &mut [f32],
    accumulate: bool,
    scale: f32,
    lhs: Matrix,
    rhs: Matrix,
    threads: Threads,
) {
    let [m, n, k] = size;
    assert_eq!(dst.len(), m * n, "a matrix product does not fill its destination");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !accumulate {
            dst.fill(0.);
        }
        return;
    }
    lhs.assert_holds(m, k);
    rhs.assert_holds(k, n);
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: the assertions above keep every element read inside `lhs` and `rhs` and every element written inside `dst`,
    // which no one else can reach while it is borrowed mutably.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            lhs.values.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.values.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            1.,
            scale,
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

    #[test]
    fn exp_is_accurate_and_keeps_nan() {
        let mut worst = 0f64;
        for i in -86_999..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "relative error {worst}");
        assert_eq!(exp(0.), 1.);
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn lane_sums_agree_with_plain_ones_at_every_length() {
        for len in 0..35 {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin()).collect();
            let b: Vec<f32> = (0..len).map(|i| (i as f32 * 0.3).cos()).collect();
            assert!((sum(&a) - a.iter().sum::<f32>()).abs() < 1e-5);
            let plain: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            assert!((dot(&a, &b) - plain).abs() < 1e-5);
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[test]
    fn softmax_of_a_row_with_nan_is_nan() {
        let mut row = vec![0.5, f32::NAN, 1.];
        softmax_row(&mut row);
        assert!(row.iter().all(|value| value.is_nan()));
    }

    #[test]
    fn gemm_follows_strides_scale_and_accumulation() {
        // [2, 3] inside rows of 4, times the transpose of [2, 3].
        let a = [1., 2., 3., 9., 4., 5., 6., 9.];
        let b = [1., 0., 1., 2., 1., 0.];
        let mut dst = vec![10.; 4];
        let (lhs, rhs) = (Matrix::new(&a, 4), Matrix::new(&b, 3).transposed());
        gemm([2, 2, 3], &mut dst, true, 0.5, lhs, rhs, Threads::One);
        assert_eq!(dst, [12., 12., 15., 16.5]);
        gemm([2, 2, 3], &mut dst, false, 1., lhs, rhs, Threads::All);
        assert_eq!(dst, [4., 4., 10., 13.]);
    }
}
