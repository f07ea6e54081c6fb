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
pub(super) struct Matrix<'a, T = f32> {
    values: &'a [T],
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows `row_stride` apart, of neighbouring elements.
    pub(super) fn new(values: &'a [T], row_stride: usize) -> Self {
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
    pub(super) fn parts(self) -> (&'a [T], usize, usize) {
        (self.values, self.row_stride, self.column_stride)
    }

    pub(super) fn assert_holds(&self, rows: usize, columns: usize) {
        let last = (rows - 1) * self.row_stride + (columns - 1) * self.column_stride;
        assert!(
            last < self.values.len(),
            "a matrix product reaches outside of its operands"
        );
    }
}

/// The beginning of memory that parallel tasks write their own parts of.
pub(super) struct Shared<T>(*mut T);

impl<T> Shared<T> {
    pub(super) fn new(start: *mut T) -> Self {
        Self(start)
    }

    /// # Safety
    /// There is room for more than `index` values. Who writes through the pointer has a part that no other task reaches.
    #[allow(unsafe_code)]
    pub(super) unsafe fn at(&self, index: usize) -> *mut T {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(index) }
    }
}

// SAFETY: it gives out pointers only, and who writes through one promises that no other task does there.
#[allow(unsafe_code)]
unsafe impl<T> Sync for Shared<T> {}

/// What a sum starts from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a> {
    /// Nothing.
    Zero,
    /// What the destination holds.
    Destination,
    /// A row of `n` values, the same for every row of the result.
    Row(&'a [f32]),
}

/// Whether a product may use all threads or is itself part of a parallel loop.
#[derive(Clone, Copy)]
pub(super) enum Threads {
    /// This thread only.
    One,
    /// The rayon pool.
    All,
}

/// `dst = lhs rhs` or, with `accumulate`, `dst += lhs rhs`: `[m, n] = [m, k] [k, n]` for `size = [m, n, k]` of at least 1 each, into
/// rows `dst_row_stride` apart.
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
            1.,
            false,
            false,
            false,
            parallelism,
        );
    }
}
