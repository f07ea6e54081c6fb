//! Tiles in vectors: `vdpbf16ps` does twice the products of f32 in the same time. 12 rows and 32 columns fill 24 of 32 registers.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_maskz_loadu_ps,
    _mm512_set1_epi32, _mm512_setzero_ps,
};

use super::element_vectors::ElementVectors;
use super::factor::{LANES, Order};
use super::{Kernel, TILE_COLUMNS, Tile, lane_mask};

/// Rows of a tile.
const TILE_ROWS: usize = 12;

pub(super) struct Vectors;

impl Kernel for Vectors {
    const TILE_ROWS: usize = TILE_ROWS;
    const PAIR_STEP: usize = 1;
    /// With 256 pairs of each, 144 KiB.
    const TASK_ROWS: usize = 12 * TILE_ROWS;
    const TASK_COLUMNS: usize = 24 * TILE_COLUMNS;

    fn available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
    }

    fn left_order() -> Order {
        Order::ByPair { tile: TILE_ROWS }
    }

    #[allow(unsafe_code)]
    unsafe fn tile<D: ElementVectors>(
        pairs: usize,
        left: *const u32,
        right: *const u32,
        dst: Tile<D>,
        start: Option<(*const f32, usize)>,
    ) {
        // SAFETY: as the caller promises.
        unsafe { tile_product(pairs, left, right, dst, start) }
    }
}

/// [`Kernel::tile`], from `left` [pairs, 12] and `right` [pairs, 32].
///
/// # Safety
/// As there.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile_product<D: ElementVectors>(
    pairs: usize,
    left: *const u32,
    right: *const u32,
    dst: Tile<D>,
    start: Option<(*const f32, usize)>,
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
    let masks = [
        lane_mask(dst.columns),
        lane_mask(dst.columns.saturating_sub(LANES)),
    ];
    for (row, sums) in sums.iter().enumerate().take(dst.rows) {
        for (half, mask) in masks.into_iter().enumerate() {
            if mask == 0 {
                continue;
            }
            // SAFETY: rows and lanes outside of the tile are left out.
            unsafe {
                let place = dst.values.add(row * dst.row_stride + half * LANES);
                let sum = match start {
                    Some((start, row_stride)) => {
                        let start = start.add(row * row_stride + half * LANES);
                        _mm512_add_ps(sums[half], _mm512_maskz_loadu_ps(mask, start))
                    }
                    None => sums[half],
                };
                D::store(place, mask, sum);
            }
        }
    }
}

/// # Safety
/// 16 pairs lie at `place`.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn load_pairs(place: *const u32) -> __m512bh {
    // SAFETY: as promised; both types are 64 bytes without a meaning of their own.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(place.cast())) }
}
