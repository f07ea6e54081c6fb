//! How stored numbers become vectors of bf16 or f32 and sums become stored numbers.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _mm256_mask_storeu_epi16, _mm256_maskz_loadu_epi16,
    _mm512_castsi256_si512, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh,
    _mm512_inserti64x4, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi16,
    _mm512_maskz_loadu_epi32, _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_slli_epi32,
};

use half::bf16;

use super::factor::LANES;
use super::lane_mask;

/// A type that factors and results of products may have.
pub(in super::super) trait ElementVectors: Copy + Send + Sync {
    /// Whether sums can wait in the destination until more is added to them. In bf16 they would be rounded each time.
    const HOLDS_SUMS: bool;

    /// The first `count` of 32 values as bf16, zeros after them; 1 to 32.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16; `count` values lie at `place`.
    #[allow(unsafe_code)]
    unsafe fn run(place: *const Self, count: usize) -> __m512i;

    /// The first `lanes` of 16 values of two rows as bf16, one row after the other; a row that there is not is zeros.
    ///
    /// # Safety
    /// As [`Self::run`], for `lanes` values of each.
    #[allow(unsafe_code)]
    unsafe fn two_rows(low: *const Self, high: Option<*const Self>, lanes: usize) -> __m512i;

    /// The first `count` of 16 values as f32, zeros after them.
    ///
    /// # Safety
    /// As [`Self::run`].
    #[allow(unsafe_code)]
    unsafe fn wide(place: *const Self, count: usize) -> __m512i;

    /// Stores the sums of the lanes in `mask`.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16; those lanes of `place` may be written.
    #[allow(unsafe_code)]
    unsafe fn store(place: *mut Self, mask: u16, sums: __m512);
}

impl ElementVectors for f32 {
    const HOLDS_SUMS: bool = true;

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn run(place: *const Self, count: usize) -> __m512i {
        // SAFETY: as the caller promises; masked loads read no further.
        unsafe {
            let both = if count == 2 * LANES {
                _mm512_cvtne2ps_pbh(_mm512_loadu_ps(place.add(LANES)), _mm512_loadu_ps(place))
            } else {
                let high = match count > LANES {
                    true => _mm512_maskz_loadu_ps(lane_mask(count - LANES), place.add(LANES)),
                    false => _mm512_setzero_ps(),
                };
                _mm512_cvtne2ps_pbh(high, _mm512_maskz_loadu_ps(lane_mask(count), place))
            };
            std::mem::transmute::<__m512bh, __m512i>(both)
        }
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn two_rows(low: *const Self, high: Option<*const Self>, lanes: usize) -> __m512i {
        let mask = lane_mask(lanes);
        // SAFETY: as the caller promises; masked loads read no further.
        unsafe {
            let high = match high {
                Some(high) => _mm512_maskz_loadu_ps(mask, high),
                None => _mm512_setzero_ps(),
            };
            let both = _mm512_cvtne2ps_pbh(high, _mm512_maskz_loadu_ps(mask, low));
            std::mem::transmute::<__m512bh, __m512i>(both)
        }
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn wide(place: *const Self, count: usize) -> __m512i {
        // SAFETY: as the caller promises; a masked load reads no further.
        unsafe { _mm512_maskz_loadu_epi32(lane_mask(count), place.cast()) }
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn store(place: *mut Self, mask: u16, sums: __m512) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_mask_storeu_ps(place, mask, sums) }
    }
}

impl ElementVectors for bf16 {
    const HOLDS_SUMS: bool = false;

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn run(place: *const Self, count: usize) -> __m512i {
        // SAFETY: as the caller promises; a masked load reads no further.
        unsafe {
            match count == 2 * LANES {
                true => _mm512_loadu_si512(place.cast()),
                false => _mm512_maskz_loadu_epi16((1 << count) - 1, place.cast()),
            }
        }
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn two_rows(low: *const Self, high: Option<*const Self>, lanes: usize) -> __m512i {
        let mask = lane_mask(lanes);
        // SAFETY: as the caller promises; masked loads read no further.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(mask, low.cast()));
            let (high, mask) = match high {
                Some(high) => (high, mask),
                None => (std::ptr::null(), 0),
            };
            _mm512_inserti64x4::<1>(low, _mm256_maskz_loadu_epi16(mask, high.cast()))
        }
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn wide(place: *const Self, count: usize) -> __m512i {
        // SAFETY: as the caller promises; a masked load reads no further.
        widened(unsafe { _mm256_maskz_loadu_epi16(lane_mask(count), place.cast()) })
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn store(place: *mut Self, mask: u16, sums: __m512) {
        // SAFETY: as the caller promises.
        unsafe { _mm256_mask_storeu_epi16(place.cast(), mask, rounded(sums)) }
    }
}

/// 16 values in bf16 as f32.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn widened(values: __m256i) -> __m512i {
    _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values))
}

/// 16 values in f32 rounded to bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[inline]
pub(super) fn rounded(values: __m512) -> __m256i {
    // SAFETY: both types are 32 bytes without a meaning of their own.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values))
    }
}
