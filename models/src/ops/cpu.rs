//! What the CPU kernels share: contiguous slices out of candle storage, results written in parallel pieces, sums over rows,
//! and `gemm`.

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};
use gemm::Parallelism;
use rayon::prelude::*;

use super::vectors::wide;

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

/// Runs `kernel` on the values of contiguous f32 CPU tensors (for backward passes, which get tensors).
///
/// # Errors
/// Another type or device, a tensor that is not contiguous; `op` names the operation.
pub fn with_f32<const N: usize, R>(
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

/// Adds `term(row index, row of the partial sum)` over all rows, by fixed chunks: `[width]` sums.
///
/// `term` gets a chunk of row indices and an accumulator of `width` zeros.
#[inline(always)]
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
            wide(
                #[inline(always)]
                || term(start..rows.min(start + ROWS_PER_TASK), &mut partial),
            );
            partial
        })
        .collect();
    added(width, &partials)
}

/// The sum of `partials`, `width` values each, in their order.
pub(super) fn added(width: usize, partials: &[Vec<f32>]) -> Vec<f32> {
    let mut total = vec![0.; width];
    for partial in partials {
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

    /// The values and the strides of rows and columns.
    pub(super) fn parts(self) -> (&'a [f32], usize, usize) {
        (self.values, self.row_stride, self.column_stride)
    }

    /// The same places in other values.
    pub(super) fn with_values(self, values: &[f32]) -> Matrix<'_> {
        Matrix {
            values,
            row_stride: self.row_stride,
            column_stride: self.column_stride,
        }
    }

    pub(super) fn assert_holds(&self, rows: usize, columns: usize) {
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
    // SAFETY: `dst` has `m n` values, which no one else can reach while it is borrowed mutably.
    #[allow(unsafe_code)]
    unsafe {
        gemm_into(size, dst.as_mut_ptr(), n, accumulate, scale, lhs, rhs, threads);
    }
}

/// [`gemm`] for sizes of at least 1, into rows `dst_row_stride` apart.
///
/// # Safety
/// `dst` points to `m` rows of `n` values, `dst_row_stride` apart, that nothing else reaches meanwhile, initialised if
/// `accumulate` is set.
#[allow(unsafe_code, clippy::too_many_arguments)]
pub(super) unsafe fn gemm_into(
    size: [usize; 3],
    dst: *mut f32,
    dst_row_stride: usize,
    accumulate: bool,
    scale: f32,
    lhs: Matrix,
    rhs: Matrix,
    threads: Threads,
) {
    let [m, n, k] = size;
    lhs.assert_holds(m, k);
    rhs.assert_holds(k, n);
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: the assertions keep every element read inside `lhs` and `rhs`; the caller vouches for `dst`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            dst_row_stride as isize,
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
