//! Matrix products of f32 matrices with factors rounded to bf16 and sums in f32, by the processor's own instruction for it
//! (`vdpbf16ps`: AMD from Zen 4 on, Intel's servers from Cooper Lake on), which does twice the products of f32 in the same time.
//!
//! Factors are rounded while they are packed, which a product of this size does anyway, so no tensor is stored in bf16. Packed,
//! two neighbours along the inner dimension lie in one lane of 32 bits, as the instruction wants them: `pairs x lanes`, the
//! lanes being rows of the left side or columns of the right one. A tile of 12 rows and 32 columns fills 24 of 32 registers.
//!
//! Every element of the result is summed by one thread in the order of the inner dimension, so the result does not depend on
//! the number of threads.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_add_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

use rayon::prelude::*;

use super::cpu::Matrix;

/// Values in a vector of 512 bits.
const LANES: usize = 16;
/// Rows of a tile.
const TILE_ROWS: usize = 12;
/// Columns of a tile, two vectors.
const TILE_COLUMNS: usize = 2 * LANES;
/// Pairs along the inner dimension that are multiplied before the sums go to memory: a tile's 256 x 32 pairs of the right side
/// are 32 KiB.
const PAIRS: usize = 256;
/// Most rows of a task: with 256 pairs of each, 144 KiB of the left side stay in the second cache.
const TASK_ROWS: usize = 12 * TILE_ROWS;
/// Columns of a task, for which its rows are packed anew.
const TASK_COLUMNS: usize = 24 * TILE_COLUMNS;
/// Tasks that a thread should find, where there are rows enough, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 2;

/// Whether this processor has the instruction.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// `dst = lhs rhs` or, with `accumulate`, `dst += lhs rhs` in full rows of `n` values, for `size = [m, n, k]` of at least 1 each.
///
/// # Safety
/// The processor has the instruction ([`available`]); `dst` points to `m n` values that nothing else reaches meanwhile,
/// initialised if `accumulate` is set.
#[allow(unsafe_code)]
pub(super) unsafe fn product_into(
    [m, n, k]: [usize; 3],
    dst: *mut f32,
    accumulate: bool,
    lhs: Matrix,
    rhs: Matrix,
) {
    lhs.assert_holds(m, k);
    rhs.assert_holds(k, n);
    let (lhs, rhs) = (Factor::new(lhs), Factor::new(rhs.transposed()));
    let pairs = k.div_ceil(2);
    let panel = pairs * TILE_COLUMNS;
    let len = n.div_ceil(TILE_COLUMNS) * panel;
    let mut packed: Vec<u32> = Vec::with_capacity(len); // [column tiles, pairs, columns of a tile]
    let places = &mut packed.spare_capacity_mut()[..len];
    places
        .par_chunks_mut(panel)
        .enumerate()
        .for_each(|(tile, place)| {
            let start = tile * TILE_COLUMNS;
            // SAFETY: the instruction is there; a tile's place holds `pairs` rows of its columns, and [`Factor::pack`] reads what
            // `assert_holds` has looked at.
            unsafe {
                rhs.pack::<TILE_COLUMNS>(
                    start..n.min(start + TILE_COLUMNS),
                    0..k,
                    place.as_mut_ptr().cast(),
                );
            }
        });
    // SAFETY: packing writes every pair of every tile.
    unsafe { packed.set_len(len) };

    let dst = Destination(dst);
    let column_tasks = n.div_ceil(TASK_COLUMNS);
    let task_rows = task_rows(m, column_tasks);
    (0..m.div_ceil(task_rows) * column_tasks)
        .into_par_iter()
        .for_each(|task| {
            let (row, column) = (
                task / column_tasks * task_rows,
                task % column_tasks * TASK_COLUMNS,
            );
            let part = Part {
                rows: row..m.min(row + task_rows),
                columns: column..n.min(column + TASK_COLUMNS),
                inner: k,
            };
            // SAFETY: the instruction is there, and the parts of tasks are disjoint rows and columns of the destination.
            unsafe { part.multiply(&lhs, &packed, &dst, n, accumulate) };
        });
}

/// Rows of a task out of `rows`, beside as many tasks as there are for columns.
fn task_rows(rows: usize, column_tasks: usize) -> usize {
    let enough = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(column_tasks);
    let tasks = rows.div_ceil(TASK_ROWS).max(enough);
    rows.div_ceil(tasks).next_multiple_of(TILE_ROWS)
}

/// The result, whose tasks write their own parts of.
struct Destination(*mut f32);

// SAFETY: it is only written by `Part::multiply`, whose tasks have disjoint parts.
#[allow(unsafe_code)]
unsafe impl Sync for Destination {}

/// What one task computes.
struct Part {
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    inner: usize,
}

impl Part {
    /// # Safety
    /// The processor has the instruction, `right` is packed for all columns and the whole inner dimension, and nothing else
    /// reaches this part of `dst`, rows of which are `row_stride` apart.
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn multiply(
        &self,
        left: &Factor,
        right: &[u32],
        dst: &Destination,
        row_stride: usize,
        accumulate: bool,
    ) {
        let all_pairs = self.inner.div_ceil(2);
        let row_tiles = self.rows.len().div_ceil(TILE_ROWS);
        let most = PAIRS.min(all_pairs);
        let mut packed: Vec<u32> = Vec::with_capacity(row_tiles * most * TILE_ROWS); // [row tiles, pairs, rows of a tile]
        for first in (0..all_pairs).step_by(PAIRS) {
            let pairs = PAIRS.min(all_pairs - first);
            let inner = 2 * first..self.inner.min(2 * (first + pairs));
            for tile in 0..row_tiles {
                let start = self.rows.start + tile * TILE_ROWS;
                let rows = start..self.rows.end.min(start + TILE_ROWS);
                // SAFETY: there is room for `row_tiles` tiles of at most `most` pairs.
                unsafe {
                    let place = packed.as_mut_ptr().add(tile * pairs * TILE_ROWS);
                    left.pack::<TILE_ROWS>(rows, inner.clone(), place);
                }
            }
            let accumulate = accumulate || first > 0;
            for column in self.columns.clone().step_by(TILE_COLUMNS) {
                let columns = TILE_COLUMNS.min(self.columns.end - column);
                let right =
                    &right[column / TILE_COLUMNS * all_pairs * TILE_COLUMNS..][first * TILE_COLUMNS..];
                for tile in 0..row_tiles {
                    let row = self.rows.start + tile * TILE_ROWS;
                    let rows = TILE_ROWS.min(self.rows.end - row);
                    // SAFETY: both sides hold `pairs` rows of their tile, just packed; the tile lies in this part.
                    unsafe {
                        let left = packed.as_ptr().add(tile * pairs * TILE_ROWS);
                        let dst = dst.0.add(row * row_stride + column);
                        tile_product(
                            pairs,
                            left,
                            right.as_ptr(),
                            dst,
                            row_stride,
                            [rows, columns],
                            accumulate,
                        );
                    }
                }
            }
        }
    }
}

/// One tile: `dst [rows, columns]` from `left` [pairs, 12] and `right` [pairs, 32].
///
/// # Safety
/// The processor has the instruction; the pointers reach that far; `dst` is initialised if `accumulate` is set.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile_product(
    pairs: usize,
    left: *const u32,
    right: *const u32,
    dst: *mut f32,
    row_stride: usize,
    [rows, columns]: [usize; 2],
    accumulate: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; TILE_ROWS];
    for pair in 0..pairs {
        // SAFETY: `pair` is below `pairs`.
        unsafe {
            let right = right.add(pair * TILE_COLUMNS);
            let columns = [load_pairs(right), load_pairs(right.add(LANES))];
            let left = left.add(pair * TILE_ROWS);
            for (row, sums) in sums.iter_mut().enumerate() {
                let value: __m512bh =
                    std::mem::transmute(_mm512_set1_epi32(left.add(row).read().cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], value, columns[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], value, columns[1]);
            }
        }
    }
    let masks = [lane_mask(columns), lane_mask(columns.saturating_sub(LANES))];
    for (row, sums) in sums.iter().enumerate().take(rows) {
        for (half, mask) in masks.into_iter().enumerate() {
            if mask == 0 {
                continue;
            }
            // SAFETY: rows and lanes outside of the tile are left out.
            unsafe {
                let place = dst.add(row * row_stride + half * LANES);
                let sum = match accumulate {
                    true => _mm512_add_ps(sums[half], _mm512_maskz_loadu_ps(mask, place)),
                    false => sums[half],
                };
                _mm512_mask_storeu_ps(place, mask, sum);
            }
        }
    }
}

/// # Safety
/// 16 pairs lie at `place`.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn load_pairs(place: *const u32) -> __m512bh {
    // SAFETY: as promised; both types are 64 bytes without a meaning of their own.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(place.cast())) }
}

/// The first `count` lanes of 16.
fn lane_mask(count: usize) -> u16 {
    match count {
        LANES.. => u16::MAX,
        _ => (1 << count) - 1,
    }
}

/// A side of the product: lane `l` has its value `i` along the inner dimension at `l * lane_stride + i * inner_stride`, one of
/// the strides being 1.
struct Factor<'a> {
    values: &'a [f32],
    lane_stride: usize,
    inner_stride: usize,
}

impl<'a> Factor<'a> {
    /// Rows are lanes, columns the inner dimension.
    fn new(matrix: Matrix<'a>) -> Self {
        let (values, lane_stride, inner_stride) = matrix.parts();
        assert!(
            lane_stride == 1 || inner_stride == 1,
            "a matrix product needs rows or columns without gaps"
        );
        Self {
            values,
            lane_stride,
            inner_stride,
        }
    }

    /// The values of `lanes` along `inner` as pairs in bf16, [pairs, WIDTH], with zeros for lanes and values that there are
    /// not.
    ///
    /// # Safety
    /// The processor has the instruction, the values are inside of the matrix, and `place` has room.
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack<const WIDTH: usize>(
        &self,
        lanes: std::ops::Range<usize>,
        inner: std::ops::Range<usize>,
        place: *mut u32,
    ) {
        for first in (0..WIDTH).step_by(LANES) {
            let wanted = lane_mask(WIDTH - first);
            let start = lanes.start + first;
            let found = lanes.end.saturating_sub(start).min(LANES);
            // SAFETY: as the caller promises; lanes past `WIDTH` are not written.
            unsafe {
                let place = place.add(first);
                match self.inner_stride {
                    1 => self.pack_along_inner::<WIDTH>(start, found, inner.clone(), wanted, place),
                    _ => self.pack_along_lanes::<WIDTH>(start, found, inner.clone(), wanted, place),
                }
            }
        }
    }

    /// Sixteen lanes that lie side by side: two rows of the inner dimension make a row of pairs.
    ///
    /// # Safety
    /// As [`Self::pack`].
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack_along_lanes<const WIDTH: usize>(
        &self,
        lane: usize,
        found: usize,
        inner: std::ops::Range<usize>,
        wanted: u16,
        place: *mut u32,
    ) {
        let interleave: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
        let mask = lane_mask(found);
        // SAFETY: as the caller promises; a masked load reads the lanes found only.
        unsafe {
            let interleave = _mm512_loadu_si512(interleave.as_ptr().cast());
            for (pair, index) in inner.clone().step_by(2).enumerate() {
                let (mut low, mut high) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                if found > 0 {
                    let start = self.values.as_ptr().add(index * self.inner_stride + lane);
                    low = _mm512_maskz_loadu_ps(mask, start);
                    if index + 1 < inner.end {
                        high = _mm512_maskz_loadu_ps(mask, start.add(self.inner_stride));
                    }
                }
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                let pairs = _mm512_permutexvar_epi16(interleave, both);
                _mm512_mask_storeu_epi32(place.add(pair * WIDTH).cast(), wanted, pairs);
            }
        }
    }

    /// Sixteen lanes of which each has its inner dimension side by side: 16 x 16 pairs are turned around in registers.
    ///
    /// # Safety
    /// As [`Self::pack`].
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack_along_inner<const WIDTH: usize>(
        &self,
        lane: usize,
        found: usize,
        inner: std::ops::Range<usize>,
        wanted: u16,
        place: *mut u32,
    ) {
        for start in inner.clone().step_by(2 * LANES) {
            let count = (inner.end - start).min(2 * LANES);
            let mut block = [_mm512_setzero_si512(); LANES];
            for (of_lane, block) in block.iter_mut().enumerate().take(found) {
                // SAFETY: the lane is inside of the matrix, and masked loads read no further than `inner`.
                unsafe {
                    let values = self
                        .values
                        .as_ptr()
                        .add((lane + of_lane) * self.lane_stride + start);
                    let both = match count == 2 * LANES {
                        true => {
                            _mm512_cvtne2ps_pbh(_mm512_loadu_ps(values.add(LANES)), _mm512_loadu_ps(values))
                        }
                        false => {
                            let low = _mm512_maskz_loadu_ps(lane_mask(count), values);
                            let high = match count > LANES {
                                true => _mm512_maskz_loadu_ps(lane_mask(count - LANES), values.add(LANES)),
                                false => _mm512_setzero_ps(),
                            };
                            _mm512_cvtne2ps_pbh(high, low)
                        }
                    };
                    *block = std::mem::transmute::<__m512bh, __m512i>(both);
                }
            }
            // SAFETY: `place` has room for the pairs of `inner`.
            unsafe {
                let pairs = count.div_ceil(2);
                let place = place.add((start - inner.start) / 2 * WIDTH);
                for (pair, row) in transposed(&block).iter().enumerate().take(pairs) {
                    _mm512_mask_storeu_epi32(place.add(pair * WIDTH).cast(), wanted, *row);
                }
            }
        }
    }
}

/// The transpose of 16 x 16 values of 32 bits.
// Loops, not closures: those would be compiled without the instructions.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(rows: &[__m512i; LANES]) -> [__m512i; LANES] {
    let mut twos = *rows;
    for i in (0..LANES).step_by(2) {
        twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // After this, register 4 i + c has in its quarter q the column 4 q + c of rows 4 i to 4 i + 3.
    let mut fours = twos;
    for four in (0..LANES).step_by(4) {
        for half in 0..2 {
            let (first, second) = (twos[four + half], twos[four + half + 2]);
            fours[four + 2 * half] = _mm512_unpacklo_epi64(first, second);
            fours[four + 2 * half + 1] = _mm512_unpackhi_epi64(first, second);
        }
    }
    let mut columns = fours;
    for column in 0..4 {
        let [a, b, c, d] = [
            fours[column],
            fours[4 + column],
            fours[8 + column],
            fours[12 + column],
        ];
        let even = [
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0x88>(c, d),
        ];
        let odd = [
            _mm512_shuffle_i32x4::<0xdd>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(c, d),
        ];
        columns[column] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        columns[8 + column] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        columns[4 + column] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        columns[12 + column] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    columns
}
