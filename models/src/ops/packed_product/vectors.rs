//! Tiles in vectors: 12 rows and 32 columns of sums fill 24 of 32 registers. Factors in bf16 (`vdpbf16ps`) do twice the products
//! of f32 in the same time on AMD's processors; on Intel's they do half as many and are multiplied as f32 ([`RoundedValues`]).

use std::arch::x86_64::{
    __cpuid, __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_castsi512_ps,
    _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_maskz_loadu_ps, _mm512_set1_epi32,
    _mm512_setzero_ps,
};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::ahead::Ahead;
use super::element_vectors::ElementVectors;
use super::factor::{LANES, Order};
use super::{Kernel, TILE_COLUMNS, Tile, lane_mask};

/// Rows of a tile.
const TILE_ROWS: usize = 12;

/// What the lanes of packed factors hold, and their product.
pub(super) trait Units: Send + Sync {
    /// Values of a unit.
    const VALUES: usize;
    /// Whether a single value is rounded to bf16.
    const ROUNDS: bool = false;

    /// `sums + left right` in every lane.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16.
    #[allow(unsafe_code)]
    unsafe fn multiply_add(sums: __m512, left: __m512i, right: __m512i) -> __m512;
}

/// Two values in bf16.
pub(super) struct Bf16Pairs;

impl Units for Bf16Pairs {
    const VALUES: usize = 2;

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn multiply_add(sums: __m512, left: __m512i, right: __m512i) -> __m512 {
        // SAFETY: both types are 64 bytes without a meaning of their own.
        let [left, right] =
            unsafe { [left, right].map(|side| std::mem::transmute::<__m512i, __m512bh>(side)) };
        _mm512_dpbf16_ps(sums, left, right)
    }
}

/// A value in f32.
pub(super) struct F32Values;

impl Units for F32Values {
    const VALUES: usize = 1;

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn multiply_add(sums: __m512, left: __m512i, right: __m512i) -> __m512 {
        _mm512_fmadd_ps(_mm512_castsi512_ps(left), _mm512_castsi512_ps(right), sums)
    }
}

/// A value in f32 that has been rounded to bf16.
pub(super) struct RoundedValues;

impl Units for RoundedValues {
    const VALUES: usize = 1;
    const ROUNDS: bool = true;

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn multiply_add(sums: __m512, left: __m512i, right: __m512i) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { F32Values::multiply_add(sums, left, right) }
    }
}

/// Whether `vdpbf16ps` multiplies less than f32 does in the same time: measured on an Intel Xeon without tile registers (Emerald
/// Rapids), 86 against 172 GFLOP/s a core; AMD's do twice as much.
pub(super) fn has_slow_pairs() -> bool {
    static SLOW: OnceLock<bool> = OnceLock::new();
    *SLOW.get_or_init(|| {
        let vendor = __cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx]
            .map(u32::to_le_bytes)
            .concat()
            == *b"GenuineIntel"
    })
}

/// The kernel.
pub(super) struct Vectors<U>(PhantomData<U>);

impl<U: Units> Kernel for Vectors<U> {
    const TILE_ROWS: usize = TILE_ROWS;
    const VALUES: usize = U::VALUES;
    const ROUNDS: bool = U::ROUNDS;
    const UNIT_STEP: usize = 1;
    /// A tile's units of the right side are 32 KiB.
    const BLOCK_UNITS: usize = 256;
    const BOUND_BY_PRODUCTS: bool = true;
    /// With 256 units of each, 480 KiB.
    const TASK_ROWS: usize = 40 * TILE_ROWS;
    const TASK_COLUMNS: usize = 24 * TILE_COLUMNS;
    /// With 480 rows 720 KiB.
    const WAITING_COLUMNS: usize = 12 * TILE_COLUMNS;
    const PARTS: usize = TILE_ROWS;

    fn left_order(has_rows: bool) -> Order {
        match has_rows {
            true => Order::Rows { tile: TILE_ROWS },
            false => Order::Units { tile: TILE_ROWS },
        }
    }

    #[allow(unsafe_code)]
    unsafe fn tile<D: ElementVectors>(
        units: usize,
        (left, order): (*const u32, Order),
        right: *const u32,
        dst: Tile<D>,
        start: Option<(*const f32, usize)>,
        ahead: &mut Ahead,
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            match order {
                Order::Rows { .. } => tile_product::<U, D, true>(units, left, right, dst, start, ahead),
                _ => tile_product::<U, D, false>(units, left, right, dst, start, ahead),
            }
        }
    }
}

/// [`Kernel::tile`], from `left` [units, 12] or, by row, [12, units], and `right` [units, 32].
///
/// # Safety
/// As there.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile_product<U: Units, D: ElementVectors, const BY_ROW: bool>(
    units: usize,
    left: *const u32,
    right: *const u32,
    dst: Tile<D>,
    start: Option<(*const f32, usize)>,
    ahead: &mut Ahead,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; TILE_ROWS];
    for part in 0..TILE_ROWS {
        // What comes next and where the sums go is on its way from memory meanwhile, a little at a time, as the tile waits for its own.
        ahead.ask();
        if part < dst.rows {
            let place = dst.values.wrapping_add(part * dst.row_stride);
            _mm_prefetch::<_MM_HINT_T0>(place.cast());
            if dst.columns > LANES {
                _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(LANES).cast());
            }
        }
        for unit in part * units / TILE_ROWS..(part + 1) * units / TILE_ROWS {
            // SAFETY: `unit` is below `units`.
            unsafe {
                let right = right.add(unit * TILE_COLUMNS);
                let columns = [
                    _mm512_loadu_si512(right.cast()),
                    _mm512_loadu_si512(right.add(LANES).cast()),
                ];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = match BY_ROW {
                        true => left.add(row * units + unit),
                        false => left.add(unit * TILE_ROWS + row),
                    };
                    let value = _mm512_set1_epi32(value.read().cast_signed());
                    sums[0] = U::multiply_add(sums[0], value, columns[0]);
                    sums[1] = U::multiply_add(sums[1], value, columns[1]);
                }
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
