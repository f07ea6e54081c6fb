//! Matrix products on processors with vectors of 512 bits and instructions for bf16 (AMD from Zen 4 on, Intel's servers from Cooper
//! Lake on), sums in f32. Factors in bf16 go through [`tile_registers`] where the processor has those (Intel's servers from Sapphire
//! Rapids on), else through [`vectors`], which is also for f32.
//!
//! Packed, a lane of 32 bits holds a unit: a value in f32, or in bf16 two neighbours along the inner dimension, as the
//! instructions want them. Factors in f32 are rounded while they are packed. The right side is packed as a whole, the left one by
//! tasks and blocks of the inner dimension.
//!
//! Every element of the result is summed by one thread in the order of the inner dimension, so the result does not depend on
//! the number of threads.

mod element_vectors;
mod factor;
mod tile_registers;
mod vectors;

use rayon::prelude::*;

use super::cpu::{Matrix, Shared, Start, Threads};
use super::precision::Precision;
pub(super) use element_vectors::ElementVectors;
use factor::{Block, Factor, LANES, Order};
use tile_registers::TileRegisters;
use vectors::{Bf16Pairs, F32Values, Vectors};

/// Units along the inner dimension that are multiplied before the sums go to memory: a tile's 256 x 32 units of the right side
/// are 32 KiB.
const UNITS: usize = 256;
/// Columns of a tile, two vectors.
const TILE_COLUMNS: usize = 2 * LANES;
/// Column tiles of the right side that are packed at once.
const PACKED_TILES: usize = 8;
/// Tasks that a thread should find, where there are rows enough, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 2;

/// Whether this processor has such instructions.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

/// One way to multiply tiles.
trait Kernel: Send + Sync {
    /// Rows of a tile.
    const TILE_ROWS: usize;
    /// Values of a unit: 1 in f32, 2 in bf16.
    const VALUES: usize;
    /// Units are packed in multiples of this many, those that there are not as zeros.
    const UNIT_STEP: usize;
    /// Most rows of a task, whose left side should stay in the second cache: a multiple of those of a tile.
    const TASK_ROWS: usize;
    /// Columns of a task, for which its rows are packed anew.
    const TASK_COLUMNS: usize;

    /// Where the left side's units go, whose lanes have their inner dimension side by side or lie side by side themselves.
    fn left_order(has_rows: bool) -> Order;

    /// Before the first tile of a task on its thread, and after the last.
    fn begin() {}
    fn end() {}

    /// One tile: `dst [rows, columns]` from packed `left` and `right` of `units` units, with `start` and its row stride added.
    ///
    /// # Safety
    /// The processor has the instructions, [`Self::begin`] was called; the pointers reach that far; `start`, which may be `dst`,
    /// is initialised.
    #[allow(unsafe_code)]
    unsafe fn tile<D: ElementVectors>(
        units: usize,
        left: (*const u32, Order),
        right: *const u32,
        dst: Tile<D>,
        start: Option<(*const f32, usize)>,
    );
}

/// Where a tile of the result goes.
#[derive(Clone, Copy)]
struct Tile<D> {
    values: *mut D,
    row_stride: usize,
    rows: usize,
    columns: usize,
}

/// `dst = start + lhs rhs` in `m` rows of `n` values, `row_stride` apart, for `size = [m, n, k]` of at least 1 each.
///
/// # Safety
/// The processor has the instructions ([`available`]); `dst` points to such rows that nothing else reaches meanwhile,
/// initialised if the sums start from them, which they can in f32 only.
#[allow(unsafe_code, clippy::too_many_arguments)]
pub(super) unsafe fn product_into<L: ElementVectors, R: ElementVectors, D: ElementVectors>(
    precision: Precision,
    size: [usize; 3],
    dst: *mut D,
    row_stride: usize,
    start: Start,
    lhs: Matrix<L>,
    rhs: Matrix<R>,
    threads: Threads,
) {
    let dst = Destination {
        values: dst,
        row_stride,
    };
    // SAFETY: as the caller promises.
    unsafe {
        match precision {
            Precision::F32 => product_by::<Vectors<F32Values>, _, _, _>(size, &dst, start, lhs, rhs, threads),
            Precision::Bf16 if tile_registers::available() => {
                product_by::<TileRegisters, _, _, _>(size, &dst, start, lhs, rhs, threads);
            }
            Precision::Bf16 => {
                product_by::<Vectors<Bf16Pairs>, _, _, _>(size, &dst, start, lhs, rhs, threads);
            }
        }
    }
}

/// [`product_into`] by one kernel.
///
/// # Safety
/// As there.
#[allow(unsafe_code)]
unsafe fn product_by<K: Kernel, L: ElementVectors, R: ElementVectors, D: ElementVectors>(
    [m, n, k]: [usize; 3],
    dst: &Destination<D>,
    start: Start,
    lhs: Matrix<L>,
    rhs: Matrix<R>,
    threads: Threads,
) {
    lhs.assert_holds(m, k);
    rhs.assert_holds(k, n);
    if let Start::Row(row) = start {
        assert_eq!(
            row.len(),
            n,
            "a matrix product starts from a row of another width"
        );
    }
    assert!(
        D::HOLDS_SUMS || !matches!(start, Start::Destination),
        "sums start from f32 only"
    );
    let (lhs, rhs) = (Factor::new(lhs), Factor::new(rhs.transposed()));
    let all_units = units_of::<K>(k);
    let block_units = match D::HOLDS_SUMS {
        true => UNITS.min(all_units),
        false => all_units,
    };
    let right = Right::<K>::pack(&rhs, n, k, block_units, threads);
    let column_tasks = n.div_ceil(K::TASK_COLUMNS);
    let task_rows = task_rows::<K>(m, column_tasks, block_units, threads);
    for_each(threads, m.div_ceil(task_rows) * column_tasks, |task| {
        let (row, column) = (
            task / column_tasks * task_rows,
            task % column_tasks * K::TASK_COLUMNS,
        );
        let part = Part {
            rows: row..m.min(row + task_rows),
            columns: column..n.min(column + K::TASK_COLUMNS),
        };
        K::begin();
        // SAFETY: the instructions are there, and the parts of tasks are disjoint rows and columns of the destination.
        unsafe { part.multiply(&lhs, &right, dst, start) };
        K::end();
    });
}

/// `task` for every number below `count`.
fn for_each(threads: Threads, count: usize, task: impl Fn(usize) + Sync + Send) {
    match threads {
        Threads::One => (0..count).for_each(task),
        Threads::All => (0..count).into_par_iter().for_each(task),
    }
}

/// Rows of a task out of `rows`, beside as many tasks as there are for columns. Fewer where blocks are longer than usual.
fn task_rows<K: Kernel>(rows: usize, column_tasks: usize, block_units: usize, threads: Threads) -> usize {
    let max = (K::TASK_ROWS * UNITS / block_units.max(UNITS)).max(K::TILE_ROWS);
    let enough = match threads {
        Threads::One => 1,
        Threads::All => (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(column_tasks),
    };
    let tasks = rows.div_ceil(max).max(enough);
    rows.div_ceil(tasks).next_multiple_of(K::TILE_ROWS)
}

/// Units of `inner` values as a kernel has them packed.
fn units_of<K: Kernel>(inner: usize) -> usize {
    inner.div_ceil(K::VALUES).next_multiple_of(K::UNIT_STEP)
}

/// A cache line of units: what instructions load should not lie across two.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u32; LANES]);

/// The right side, packed: [blocks of the inner dimension, column tiles, units of a block, columns of a tile].
struct Right<K> {
    packed: Vec<Line>,
    /// Values along the inner dimension.
    inner: usize,
    /// Units of a block, of which the last may have fewer.
    block_units: usize,
    column_tiles: usize,
    kernel: std::marker::PhantomData<K>,
}

impl<K: Kernel> Right<K> {
    fn pack<T: ElementVectors>(
        factor: &Factor<T>,
        columns: usize,
        inner: usize,
        block_units: usize,
        threads: Threads,
    ) -> Self {
        let column_tiles = columns.div_ceil(TILE_COLUMNS);
        let lines = units_of::<K>(inner) * column_tiles * TILE_COLUMNS / LANES;
        let mut packed: Vec<Line> = Vec::with_capacity(lines);
        let place: Shared<u32> = Shared::new(packed.as_mut_ptr().cast());
        let (blocks, pieces) = (
            inner.div_ceil(K::VALUES * block_units),
            column_tiles.div_ceil(PACKED_TILES),
        );
        for_each(threads, blocks * pieces, |task| {
            let (block, tile) = (task / pieces, task % pieces * PACKED_TILES);
            let first = block * K::VALUES * block_units;
            let inner = first..inner.min(first + K::VALUES * block_units);
            let units = units_of::<K>(inner.len());
            let lane = tile * TILE_COLUMNS;
            let start = (block * block_units * column_tiles + tile * units) * TILE_COLUMNS;
            let block = Block {
                lanes: lane..columns.min(lane + PACKED_TILES * TILE_COLUMNS),
                inner,
                units,
            };
            let order = Order::Units { tile: TILE_COLUMNS };
            // SAFETY: the instructions are there; every block has a place of its own for its tiles, and packing reads what
            // `assert_holds` has looked at.
            #[allow(unsafe_code)]
            unsafe {
                factor.pack::<K>(&block, order, place.at(start));
            }
        });
        // SAFETY: packing has written every unit of every tile.
        #[allow(unsafe_code)]
        unsafe {
            packed.set_len(lines);
        }
        Self {
            packed,
            inner,
            block_units,
            column_tiles,
            kernel: std::marker::PhantomData,
        }
    }

    /// The `units` from `first` on, a block's first, of the tile that `column` starts.
    fn tile(&self, first: usize, units: usize, column: usize) -> &[Line] {
        let lines = TILE_COLUMNS / LANES;
        let start = (first * self.column_tiles + column / TILE_COLUMNS * units) * lines;
        &self.packed[start..start + units * lines]
    }
}

/// The result, whose tasks write their own parts of.
struct Destination<D> {
    values: *mut D,
    row_stride: usize,
}

// SAFETY: it is only written by `Part::multiply`, whose tasks have disjoint parts.
#[allow(unsafe_code)]
unsafe impl<D> Sync for Destination<D> {}

/// What one task computes.
struct Part {
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
}

impl Part {
    /// # Safety
    /// The processor has the instructions, and nothing else reaches this part of `dst`; it is initialised if the sums start from
    /// it.
    #[allow(unsafe_code)]
    unsafe fn multiply<K: Kernel, T: ElementVectors, D: ElementVectors>(
        &self,
        left: &Factor<T>,
        right: &Right<K>,
        dst: &Destination<D>,
        start: Start,
    ) {
        let row_stride = dst.row_stride;
        let all_units = units_of::<K>(right.inner);
        let row_tiles = self.rows.len().div_ceil(K::TILE_ROWS);
        let order = K::left_order(left.has_rows());
        let room = row_tiles * K::TILE_ROWS * right.block_units;
        let mut packed: Vec<Line> = Vec::with_capacity(room.div_ceil(LANES));
        let packed: *mut u32 = packed.as_mut_ptr().cast();
        for first in (0..all_units).step_by(right.block_units) {
            let units = right.block_units.min(all_units - first);
            let block = Block {
                lanes: self.rows.clone(),
                inner: K::VALUES * first..right.inner.min(K::VALUES * (first + units)),
                units,
            };
            // SAFETY: there is room for `row_tiles` tiles of at most so many units; rows and values are inside of the matrix.
            unsafe { left.pack::<K>(&block, order, packed) };
            for column in self.columns.clone().step_by(TILE_COLUMNS) {
                let right = right.tile(first, units, column).as_ptr().cast();
                for tile in 0..row_tiles {
                    let row = self.rows.start + tile * K::TILE_ROWS;
                    // SAFETY: both sides hold `units` units of their tile; the tile lies in this part, and a row to start
                    // from has all columns.
                    unsafe {
                        let place = dst.values.add(row * row_stride + column);
                        let start = match start {
                            _ if first > 0 => Some((place.cast_const().cast(), row_stride)),
                            Start::Zero => None,
                            Start::Destination => Some((place.cast_const().cast(), row_stride)),
                            Start::Row(values) => Some((values.as_ptr().add(column), 0)),
                        };
                        let place = Tile {
                            values: place,
                            row_stride,
                            rows: K::TILE_ROWS.min(self.rows.end - row),
                            columns: TILE_COLUMNS.min(self.columns.end - column),
                        };
                        let left = packed.cast_const().add(tile * K::TILE_ROWS * units);
                        K::tile(units, (left, order), right, place, start);
                    }
                }
            }
        }
    }
}

/// The first `count` lanes of 16.
fn lane_mask(count: usize) -> u16 {
    match count {
        LANES.. => u16::MAX,
        _ => (1 << count) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, skipped};
    use super::*;

    fn product<K: Kernel>(size: [usize; 3], start: Start, lhs: Matrix, rhs: Matrix) -> Vec<f32> {
        let mut dst = vec![2.; size[0] * size[1]];
        let place = Destination {
            values: dst.as_mut_ptr(),
            row_stride: size[1],
        };
        // SAFETY: only called where the kernel is available; `dst` has the size.
        #[allow(unsafe_code)]
        unsafe {
            product_by::<K, _, _, _>(size, &place, start, lhs, rhs, Threads::All);
        }
        dst
    }

    /// The kernel that is not this processor's first choice is tested too.
    #[test]
    fn kernels_agree() {
        if !tile_registers::available() {
            return skipped("tile registers beside vectors: this processor has none");
        }
        for size @ [m, n, k] in [[1, 1, 1], [31, 33, 40], [200, 70, 1100], [600, 5000, 3]] {
            let values = |seed, count| -> Vec<f32> { random(seed, &[count]).to_vec1().unwrap() };
            let (a, b, row) = (values(1, m * k), values(2, k * n), values(3, n));
            for start in [Start::Zero, Start::Destination, Start::Row(&row)] {
                for (lhs, rhs) in [
                    (Matrix::new(&a, k), Matrix::new(&b, n)),
                    (Matrix::new(&a, m).transposed(), Matrix::new(&b, k).transposed()),
                ] {
                    let tiles = product::<TileRegisters>(size, start, lhs, rhs);
                    let vectors = product::<Vectors<Bf16Pairs>>(size, start, lhs, rhs);
                    for (a, b) in tiles.iter().zip(&vectors) {
                        assert!(
                            (a - b).abs() <= 1e-5 * (k as f32).sqrt(),
                            "{size:?} {start:?}: {a} and {b}"
                        );
                    }
                }
            }
        }
    }
}
