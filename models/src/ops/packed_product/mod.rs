//! Matrix products on processors with vectors of 512 bits and instructions for bf16 (AMD from Zen 4 on, Intel's servers from Cooper
//! Lake on), sums in f32. Factors in bf16 go through [`tile_registers`] where the processor has those (Intel's servers from Sapphire
//! Rapids on), else through [`vectors`], which is also for f32.
//!
//! Packed, a lane of 32 bits holds a unit: a value in f32, or in bf16 two neighbours along the inner dimension, as the
//! instructions want them. Factors in f32 are rounded while they are packed. The left side is packed by tasks and blocks of the inner
//! dimension, the right one as a whole or, where few tasks share it, like the left one.
//!
//! Every element of the result is summed by one thread in the order of the inner dimension, so the result does not depend on
//! the number of threads.

mod ahead;
mod element_vectors;
mod factor;
mod tile_registers;
mod vectors;

use std::ops::Range;

use rayon::prelude::*;

use super::cpu::{Matrix, Shared, Start, Threads};
use super::precision::Precision;
use ahead::Ahead;
pub(super) use element_vectors::ElementVectors;
use factor::{Block, Factor, LANES, Order};
use tile_registers::TileRegisters;
use vectors::{Bf16Pairs, F32Values, RoundedValues, Vectors};

/// Columns of a tile, two vectors.
const TILE_COLUMNS: usize = 2 * LANES;
/// Column tiles of the right side that are packed at once.
const PACKED_TILES: usize = 8;
/// Tasks that a thread should find, where there are rows enough, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 2;
/// Values from which a right side that few tasks share is packed by each of them, as it does not stay in a cache until it is read.
const FAR_VALUES: usize = 1 << 18;
/// Most tasks that pack the same of the right side.
const SHARING_TASKS: usize = 3;

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
    /// Values of a unit: 1 as f32, 2 as bf16.
    const VALUES: usize;
    /// Whether values of units of one are rounded to bf16.
    const ROUNDS: bool = false;
    /// Most units along the inner dimension that are multiplied before the sums go to memory, where they can wait.
    const BLOCK_UNITS: usize;
    /// Whether multiplying takes most of the time, so that packing something twice costs little, and sums that wait.
    const BOUND_BY_PRODUCTS: bool;
    /// Units are packed in multiples of this many, those that there are not as zeros.
    const UNIT_STEP: usize;
    /// Most rows of a task, whose left side should stay in the second cache: a multiple of those of a tile.
    const TASK_ROWS: usize;
    /// Columns of a task, for which its rows are packed anew.
    const TASK_COLUMNS: usize;
    /// Most columns of a task whose sums wait for the next block, which they should do in the second cache.
    const WAITING_COLUMNS: usize;
    /// Parts of what is asked for ahead in a tile.
    const PARTS: usize = 1;

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
        ahead: &mut Ahead,
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
            Precision::Bf16 if vectors::has_slow_pairs() => {
                product_by::<Vectors<RoundedValues>, _, _, _>(size, &dst, start, lhs, rhs, threads);
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
    let block_units = match D::HOLDS_SUMS || K::BOUND_BY_PRODUCTS {
        // Blocks of the same length but for the last.
        true => all_units
            .div_ceil(all_units.div_ceil(K::BLOCK_UNITS))
            .next_multiple_of(K::UNIT_STEP),
        false => all_units,
    };
    let shared_by_few = m <= SHARING_TASKS * K::TASK_ROWS && k * n >= FAR_VALUES && !rhs.has_rows();
    let (grid, right) = match K::BOUND_BY_PRODUCTS && shared_by_few {
        true => (
            Grid::with_few_packed::<K>(m, n, threads),
            RightSide::ByTasks(&rhs),
        ),
        false => {
            let mut right = Right::<K>::new(block_units);
            right.pack(&rhs, 0..n, 0..k, threads);
            let grid = Grid::by_rows::<K>(m, n, [all_units, block_units], threads);
            (grid, RightSide::Whole(right))
        }
    };
    let product = Product {
        inner: k,
        block_units,
        left: &lhs,
        right,
        dst,
        start,
    };
    for_each(threads, grid.tasks(), |task| {
        K::begin();
        // SAFETY: the instructions are there, and the parts of tasks are disjoint rows and columns of the destination.
        unsafe { product.multiply(&grid.part(task), grid.next(task).as_ref()) };
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

/// The result divided among tasks.
struct Grid {
    size: [usize; 2],
    /// Rows and columns of a task.
    task: [usize; 2],
}

impl Grid {
    /// Tasks of as many columns as may be. They have fewer rows where blocks are longer than usual.
    fn by_rows<K: Kernel>(
        rows: usize,
        columns: usize,
        [all_units, block_units]: [usize; 2],
        threads: Threads,
    ) -> Self {
        let max = (K::TASK_ROWS * K::BLOCK_UNITS / block_units.max(K::BLOCK_UNITS)).max(K::TILE_ROWS);
        // Sums that wait for the next block should do so in the second cache.
        let task_columns = match all_units > block_units {
            true => K::TASK_COLUMNS.min(K::WAITING_COLUMNS),
            false => K::TASK_COLUMNS,
        };
        let row_tasks = rows
            .div_ceil(max)
            .max(enough_tasks(threads).div_ceil(columns.div_ceil(task_columns)));
        Self {
            size: [rows, columns],
            task: [
                rows.div_ceil(row_tasks).next_multiple_of(K::TILE_ROWS),
                task_columns,
            ],
        }
    }

    /// Tasks that pack few values together, as each packs both of its sides.
    fn with_few_packed<K: Kernel>(rows: usize, columns: usize, threads: Threads) -> Self {
        let mut tasks = [rows.div_ceil(K::TASK_ROWS), columns.div_ceil(K::WAITING_COLUMNS)];
        let most = [rows.div_ceil(K::TILE_ROWS), columns.div_ceil(TILE_COLUMNS)];
        while tasks[0] * tasks[1] < enough_tasks(threads) && tasks != most {
            // One more task of rows packs the right side once more, one of columns the left one.
            let side = usize::from(tasks[0] == most[0] || (tasks[1] < most[1] && rows < columns));
            tasks[side] += 1;
        }
        Self {
            size: [rows, columns],
            task: [
                rows.div_ceil(tasks[0]).next_multiple_of(K::TILE_ROWS),
                columns.div_ceil(tasks[1]).next_multiple_of(TILE_COLUMNS),
            ],
        }
    }

    fn column_tasks(&self) -> usize {
        self.size[1].div_ceil(self.task[1])
    }

    fn tasks(&self) -> usize {
        self.size[0].div_ceil(self.task[0]) * self.column_tasks()
    }

    /// The part after a task's, which is its thread's next one most of the time.
    fn next(&self, task: usize) -> Option<Part> {
        (task + 1 < self.tasks()).then(|| self.part(task + 1))
    }

    fn part(&self, task: usize) -> Part {
        let place = [task / self.column_tasks(), task % self.column_tasks()];
        let [rows, columns] = [0, 1].map(|side| {
            let first = place[side] * self.task[side];
            first..self.size[side].min(first + self.task[side])
        });
        Part { rows, columns }
    }
}

/// So many that no thread waits long for the last.
fn enough_tasks(threads: Threads) -> usize {
    match threads {
        Threads::One => 1,
        Threads::All => TASKS_PER_THREAD * rayon::current_num_threads(),
    }
}

/// Units of `inner` values as a kernel has them packed.
fn units_of<K: Kernel>(inner: usize) -> usize {
    inner.div_ceil(K::VALUES).next_multiple_of(K::UNIT_STEP)
}

/// A cache line of units: what instructions load should not lie across two.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u32; LANES]);

/// Where tasks find the right side.
enum RightSide<'a, K, T> {
    /// All of it, packed.
    Whole(Right<K>),
    /// Each packs what it multiplies.
    ByTasks(&'a Factor<'a, T>),
}

/// Columns of the right side, packed: [blocks of the inner dimension, column tiles, units of a block, columns of a tile].
struct Right<K> {
    packed: Vec<Line>,
    /// The first unit, a block's first, and the first column.
    start: [usize; 2],
    /// Units of a block, of which the last may have fewer.
    block_units: usize,
    column_tiles: usize,
    kernel: std::marker::PhantomData<K>,
}

impl<K: Kernel> Right<K> {
    fn new(block_units: usize) -> Self {
        Self {
            packed: Vec::new(),
            start: [0; 2],
            block_units,
            column_tiles: 0,
            kernel: std::marker::PhantomData,
        }
    }

    /// Packs these columns and values along the inner dimension, from a block's first on, in place of what was packed.
    fn pack<T: ElementVectors>(
        &mut self,
        factor: &Factor<T>,
        columns: Range<usize>,
        inner: Range<usize>,
        threads: Threads,
    ) {
        let (block_units, column_tiles) = (self.block_units, columns.len().div_ceil(TILE_COLUMNS));
        self.column_tiles = column_tiles;
        self.start = [inner.start / K::VALUES, columns.start];
        let lines = units_of::<K>(inner.len()) * column_tiles * TILE_COLUMNS / LANES;
        self.packed.clear();
        self.packed.reserve(lines);
        let place: Shared<u32> = Shared::new(self.packed.as_mut_ptr().cast());
        let (blocks, pieces) = (
            inner.len().div_ceil(K::VALUES * block_units),
            column_tiles.div_ceil(PACKED_TILES),
        );
        for_each(threads, blocks * pieces, |task| {
            let (block, tile) = (task / pieces, task % pieces * PACKED_TILES);
            let first = inner.start + block * K::VALUES * block_units;
            let inner = first..inner.end.min(first + K::VALUES * block_units);
            let units = units_of::<K>(inner.len());
            let lane = columns.start + tile * TILE_COLUMNS;
            let start = (block * block_units * column_tiles + tile * units) * TILE_COLUMNS;
            let block = Block {
                lanes: lane..columns.end.min(lane + PACKED_TILES * TILE_COLUMNS),
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
            self.packed.set_len(lines);
        }
    }

    /// The `units` from `first` on, a block's first, of the tile that `column` starts.
    fn tile(&self, first: usize, units: usize, column: usize) -> &[Line] {
        let lines = TILE_COLUMNS / LANES;
        let (first, column) = (first - self.start[0], column - self.start[1]);
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
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Part {
    fn column_tiles(&self) -> usize {
        self.columns.len().div_ceil(TILE_COLUMNS)
    }
}

/// What the tasks of a product share.
struct Product<'a, K, L, R, D> {
    /// Values along the inner dimension.
    inner: usize,
    block_units: usize,
    left: &'a Factor<'a, L>,
    right: RightSide<'a, K, R>,
    dst: &'a Destination<D>,
    start: Start<'a>,
}

impl<K: Kernel, L: ElementVectors, R: ElementVectors, D: ElementVectors> Product<'_, K, L, R, D> {
    /// # Safety
    /// The processor has the instructions, and nothing else reaches this part of the destination; it is initialised if the sums
    /// start from it.
    #[allow(unsafe_code)]
    unsafe fn multiply(&self, part: &Part, next_part: Option<&Part>) {
        let (all_units, block_units) = (units_of::<K>(self.inner), self.block_units);
        let row_tiles = part.rows.len().div_ceil(K::TILE_ROWS);
        let tiles = row_tiles * part.column_tiles();
        let order = K::left_order(self.left.has_rows());
        let room = row_tiles * K::TILE_ROWS * block_units;
        let mut packed: Vec<Line> = Vec::with_capacity(room.div_ceil(LANES));
        let packed: *mut u32 = packed.as_mut_ptr().cast();
        let mut own_right = Right::new(block_units);
        // Sums that wait for the next block lie tile by tile: rows of the destination may all fall into the same few places of a cache.
        let tile_values = K::TILE_ROWS * TILE_COLUMNS;
        let waiting = if all_units > block_units { tiles } else { 0 };
        let mut sums: Vec<Line> = Vec::with_capacity(waiting * tile_values / LANES);
        let sums: *mut f32 = sums.as_mut_ptr().cast();
        for first in (0..all_units).step_by(block_units) {
            let units = block_units.min(all_units - first);
            let block = Block {
                lanes: part.rows.clone(),
                inner: K::VALUES * first..self.inner.min(K::VALUES * (first + units)),
                units,
            };
            let right = match &self.right {
                RightSide::Whole(right) => right,
                RightSide::ByTasks(factor) => {
                    own_right.pack(factor, part.columns.clone(), block.inner.clone(), Threads::One);
                    &own_right
                }
            };
            // SAFETY: there is room for `row_tiles` tiles of at most so many units; rows and values are inside of the matrix.
            unsafe { self.left.pack::<K>(&block, order, packed) };
            let mut ahead = self.ahead(part, next_part, block.inner.end, tiles);
            for (column_tile, column) in part.columns.clone().step_by(TILE_COLUMNS).enumerate() {
                let right = right.tile(first, units, column).as_ptr().cast();
                for tile in 0..row_tiles {
                    let row = part.rows.start + tile * K::TILE_ROWS;
                    let rows = K::TILE_ROWS.min(part.rows.end - row);
                    let columns = TILE_COLUMNS.min(part.columns.end - column);
                    // SAFETY: both sides hold `units` units of their tile; the tile lies in this part, and a row to start
                    // from has all columns; sums wait where the block before has put them.
                    unsafe {
                        let left = (packed.cast_const().add(tile * K::TILE_ROWS * units), order);
                        let waiting = Tile {
                            values: sums.wrapping_add((column_tile * row_tiles + tile) * tile_values),
                            row_stride: TILE_COLUMNS,
                            rows,
                            columns,
                        };
                        let place = Tile {
                            values: self.dst.values.add(row * self.dst.row_stride + column),
                            row_stride: self.dst.row_stride,
                            rows,
                            columns,
                        };
                        let start = match self.start {
                            _ if first > 0 => Some((waiting.values.cast_const(), TILE_COLUMNS)),
                            Start::Zero => None,
                            Start::Destination => Some((place.values.cast_const().cast(), place.row_stride)),
                            Start::Row(values) => Some((values.as_ptr().add(column), 0)),
                        };
                        if first + units < all_units {
                            K::tile(units, left, right, waiting, start, &mut ahead);
                        } else {
                            K::tile(units, left, right, place, start, &mut ahead);
                        }
                    }
                }
            }
        }
    }

    /// What is packed after a part's block that ends at `inner` and has so many tiles: its next block, or the first one of the part
    /// that comes next.
    fn ahead(&self, part: &Part, next_part: Option<&Part>, inner: usize, tiles: usize) -> Ahead {
        let (part, start) = match (inner < self.inner, next_part) {
            (true, _) => (part, inner),
            (false, Some(next)) => (next, 0),
            (false, None) => return Ahead::new([None, None], 0),
        };
        let inner = start..self.inner.min(start + K::VALUES * self.block_units);
        let right = match self.right {
            RightSide::Whole(_) => None,
            RightSide::ByTasks(factor) => Some(factor.region(&part.columns, &inner)),
        };
        Ahead::new(
            [Some(self.left.region(&part.rows, &inner)), right],
            K::PARTS * tiles,
        )
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

    #[test]
    fn tasks_divide_the_result() {
        for [rows, columns] in [
            [1, 1],
            [12, 32],
            [13, 33],
            [576, 192],
            [192, 768],
            [1440, 3000],
            [13_000, 40],
        ] {
            for threads in [Threads::One, Threads::All] {
                type K = Vectors<F32Values>;
                for grid in [
                    Grid::by_rows::<K>(rows, columns, [256, 256], threads),
                    Grid::by_rows::<K>(rows, columns, [700, 240], threads),
                    Grid::with_few_packed::<K>(rows, columns, threads),
                ] {
                    let parts: Vec<Part> = (0..grid.tasks()).map(|task| grid.part(task)).collect();
                    let area: usize = parts
                        .iter()
                        .map(|part| part.rows.len() * part.columns.len())
                        .sum();
                    assert_eq!(area, rows * columns, "{:?}", grid.task);
                    for part in &parts {
                        assert!(!part.rows.is_empty() && part.rows.end <= rows);
                        assert!(!part.columns.is_empty() && part.columns.end <= columns);
                        assert_eq!((part.rows.start % 12, part.columns.start % TILE_COLUMNS), (0, 0));
                    }
                    let last = grid.tasks() - 1;
                    assert!(grid.next(last).is_none() && (last == 0 || grid.next(last - 1).is_some()));
                }
            }
        }
    }

    /// A kernel beside sums in f64.
    fn check<K: Kernel>(size @ [m, n, k]: [usize; 3], a: &[f32], b: &[f32], row: &[f32]) {
        for start in [Start::Zero, Start::Destination, Start::Row(row)] {
            let found = product::<K>(size, start, Matrix::new(a, k), Matrix::new(b, n));
            for place in (0..m * n).step_by(97) {
                let (i, j) = (place / n, place % n);
                let begin = match start {
                    Start::Zero => 0.,
                    Start::Destination => 2.,
                    Start::Row(row) => f64::from(row[j]),
                };
                let products = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j]));
                let exact = begin + products.sum::<f64>();
                let found = f64::from(found[place]);
                let close = 1e-5 * (k as f64).sqrt();
                assert!(
                    (found - exact).abs() <= close,
                    "{size:?} {start:?}: {found}, not {exact}"
                );
            }
        }
    }

    /// Whichever side is packed by whom, in f32 and rounded to bf16, beside sums in f64.
    #[test]
    fn blocks_and_tasks_change_no_product() {
        if !available() {
            return skipped("products of packed factors: this processor has no such instructions");
        }
        // Packed by tasks, in three blocks; as a whole; the last block and the last tile of every side short.
        for size @ [m, n, k] in [[50, 400, 700], [1500, 40, 260], [13, 33, 7000], [490, 801, 513]] {
            let values = |seed, count| -> Vec<f32> { random(seed, &[count]).to_vec1().unwrap() };
            let (a, b, row) = (values(1, m * k), values(2, k * n), values(3, n));
            let rounded = |values: &[f32]| -> Vec<f32> {
                let rounded = values.iter().map(|&value| half::bf16::from_f32(value).to_f32());
                rounded.collect()
            };
            let turned: Vec<f32> = (0..m * k).map(|i| a[i % m * k + i / m]).collect();
            check::<Vectors<F32Values>>(size, &a, &b, &row);
            let (a_rounded, b_rounded) = (rounded(&a), rounded(&b));
            check::<Vectors<RoundedValues>>(size, &a_rounded, &b_rounded, &row);
            check::<Vectors<Bf16Pairs>>(size, &a_rounded, &b_rounded, &row);
            let turned = Matrix::new(&turned, m).transposed();
            let (plain, turned) = (
                product::<Vectors<F32Values>>(size, Start::Zero, Matrix::new(&a, k), Matrix::new(&b, n)),
                product::<Vectors<F32Values>>(size, Start::Zero, turned, Matrix::new(&b, n)),
            );
            assert_eq!(plain, turned, "{size:?}");
        }
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
