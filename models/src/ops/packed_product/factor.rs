//! A side of a product and its packing into units of 32 bits: a value in f32, or in bf16 two neighbours along the inner dimension.

use std::arch::x86_64::{
    __m512i, _mm512_castsi512_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_permutexvar_epi16,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::ops::Range;

use super::super::cpu::Matrix;
use super::ahead::Region;
use super::element_vectors::{ElementVectors, rounded, widened};
use super::{Kernel, lane_mask};

/// Values in a vector of 512 bits.
pub(super) const LANES: usize = 16;

/// Where two rows of 16 values, one after the other, have the pairs of both.
const INTERLEAVE: [u16; 2 * LANES] = {
    let mut places = [0; 2 * LANES];
    let mut i = 0;
    while i < places.len() {
        places[i] = (i / 2 + i % 2 * LANES) as u16;
        i += 1;
    }
    places
};

/// Lanes are rows of the left side or columns of the right one: lane `l` has its value `i` along the inner dimension at
/// `l * lane_stride + i * inner_stride`, one of the strides being 1.
pub(super) struct Factor<'a, T> {
    values: &'a [T],
    lane_stride: usize,
    inner_stride: usize,
}

/// What is packed at once.
pub(super) struct Block {
    pub(super) lanes: Range<usize>,
    pub(super) inner: Range<usize>,
    /// At least those of `inner`; the others are zeros.
    pub(super) units: usize,
}

/// How the pairs of a block are laid out. Lanes that a last tile lacks are zeros.
#[derive(Clone, Copy)]
pub(super) enum Order {
    /// [tiles, units, lanes of a tile]
    Units {
        /// 12 or a multiple of 16.
        tile: usize,
    },
    /// [tiles, steps of 16 units, lanes of a tile, 16 units], for a multiple of 16 units.
    Lanes {
        /// A multiple of 16.
        tile: usize,
    },
    /// [tiles, lanes of a tile, units], for lanes that have their inner dimension side by side.
    Rows {
        /// As for [`Self::Units`].
        tile: usize,
    },
}

impl Order {
    fn tile(self) -> usize {
        match self {
            Self::Units { tile } | Self::Lanes { tile } | Self::Rows { tile } => tile,
        }
    }
}

/// 16 lanes or fewer and 16 units or fewer, a piece of a block.
struct Piece {
    lane: usize,
    lanes: usize,
    inner: usize,
    count: usize,
}

impl<'a, T: ElementVectors> Factor<'a, T> {
    /// Rows are lanes, columns the inner dimension.
    pub(super) fn new(matrix: Matrix<'a, T>) -> Self {
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

    /// Whether lanes have their inner dimension side by side.
    pub(super) fn has_rows(&self) -> bool {
        self.inner_stride == 1
    }

    /// Where such values lie.
    pub(super) fn region(&self, lanes: &Range<usize>, inner: &Range<usize>) -> Region {
        let first = lanes.start * self.lane_stride + inner.start * self.inner_stride;
        let first = self.values.as_ptr().wrapping_add(first);
        match self.has_rows() {
            true => Region::new(first, self.lane_stride, lanes.len(), inner.len()),
            false => Region::new(first, self.inner_stride, inner.len(), lanes.len()),
        }
    }

    /// The units of `block`, of `K::VALUES` each, in their `order`, what lies side by side in memory being read together.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16, the values are inside of the matrix, `place` has room for whole tiles, and the order is
    /// by row only for lanes that are.
    // Two of the four ways turn 16 x 16 units around in registers; the others have no need to.
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn pack<K: Kernel>(&self, block: &Block, order: Order, place: *mut u32) {
        let tile = order.tile();
        let group = tile.min(LANES);
        let groups = block.lanes.len().div_ceil(tile) * tile / group;
        let steps = block.units.div_ceil(LANES);
        for index in 0..groups * steps {
            let (of_group, step) = match self.inner_stride {
                1 => (index / steps, index % steps),
                _ => (index % groups, index / groups),
            };
            let lane = block.lanes.start + of_group * group;
            let inner = block.inner.start + K::VALUES * LANES * step;
            let piece = Piece {
                lane,
                lanes: block.lanes.end.saturating_sub(lane).min(group),
                inner,
                count: block.inner.end.saturating_sub(inner).min(K::VALUES * LANES),
            };
            let (of_tile, units) = (of_group * group % tile, LANES.min(block.units - step * LANES));
            // SAFETY: as the caller promises; only units and lanes of this piece's place are written.
            unsafe {
                let place = place.add((of_group * group - of_tile) * block.units);
                match (order, self.inner_stride) {
                    (Order::Rows { .. }, _) => {
                        let place = place.add(of_tile * block.units + step * LANES);
                        for lane in 0..group {
                            let row = self.units_of_lane::<K>(&piece, lane);
                            let place = place.add(lane * block.units);
                            _mm512_mask_storeu_epi32(place.cast(), lane_mask(units), row);
                        }
                    }
                    (Order::Lanes { .. }, 1) => {
                        let place = place.add((step * tile + of_tile) * LANES);
                        for lane in 0..LANES {
                            let row = self.units_of_lane::<K>(&piece, lane);
                            _mm512_storeu_si512(place.add(lane * LANES).cast(), row);
                        }
                    }
                    (Order::Lanes { .. }, _) => {
                        let place = place.add((step * tile + of_tile) * LANES);
                        let mut rows = [_mm512_setzero_si512(); LANES];
                        for (unit, row) in rows.iter_mut().enumerate() {
                            *row = self.lanes_of_unit::<K>(&piece, unit);
                        }
                        for (lane, row) in transposed(&rows).iter().enumerate() {
                            _mm512_storeu_si512(place.add(lane * LANES).cast(), *row);
                        }
                    }
                    (Order::Units { .. }, 1) => {
                        let place = place.add(step * LANES * tile + of_tile);
                        let mut rows = [_mm512_setzero_si512(); LANES];
                        for (lane, row) in rows.iter_mut().enumerate() {
                            *row = self.units_of_lane::<K>(&piece, lane);
                        }
                        for (unit, row) in transposed(&rows).iter().enumerate().take(units) {
                            _mm512_mask_storeu_epi32(place.add(unit * tile).cast(), lane_mask(group), *row);
                        }
                    }
                    (Order::Units { .. }, _) => {
                        let place = place.add(step * LANES * tile + of_tile);
                        for unit in 0..units {
                            let row = self.lanes_of_unit::<K>(&piece, unit);
                            _mm512_mask_storeu_epi32(place.add(unit * tile).cast(), lane_mask(group), row);
                        }
                    }
                }
            }
        }
    }

    /// A unit of a piece with its lanes, which lie side by side.
    ///
    /// # Safety
    /// As [`Self::pack`].
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn lanes_of_unit<K: Kernel>(&self, piece: &Piece, unit: usize) -> __m512i {
        if piece.lanes == 0 || K::VALUES * unit >= piece.count {
            return _mm512_setzero_si512();
        }
        let index = piece.inner + K::VALUES * unit;
        // SAFETY: these values are of the piece.
        unsafe {
            let low = self.values.as_ptr().add(index * self.inner_stride + piece.lane);
            if K::VALUES == 1 {
                return one::<T>(K::ROUNDS, low, piece.lanes);
            }
            let high = (2 * unit + 1 < piece.count).then(|| low.wrapping_add(self.inner_stride));
            let interleave = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
            _mm512_permutexvar_epi16(interleave, T::two_rows(low, high, piece.lanes))
        }
    }

    /// A lane of a piece with its units, which lie side by side.
    ///
    /// # Safety
    /// As [`Self::pack`].
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn units_of_lane<K: Kernel>(&self, piece: &Piece, lane: usize) -> __m512i {
        if lane >= piece.lanes || piece.count == 0 {
            return _mm512_setzero_si512();
        }
        let start = (piece.lane + lane) * self.lane_stride + piece.inner;
        // SAFETY: these values are of the piece.
        unsafe {
            let values = self.values.as_ptr().add(start);
            match K::VALUES {
                1 => one::<T>(K::ROUNDS, values, piece.count),
                _ => T::run(values, piece.count),
            }
        }
    }
}

/// The first `count` of 16 values as f32, rounded to bf16 or as they are.
///
/// # Safety
/// As [`ElementVectors::wide`].
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[inline]
unsafe fn one<T: ElementVectors>(rounds: bool, place: *const T, count: usize) -> __m512i {
    // SAFETY: as the caller promises.
    let values = unsafe { T::wide(place, count) };
    match rounds {
        true => widened(rounded(_mm512_castsi512_ps(values))),
        false => values,
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
