//! Inner products of whole numbers of 8 and 16 bits, in AVX2 where the processor has it. Sums are exact, so every
//! kernel gives the same.

/// Codes in one step of the kernels; rows are padded with zeros to a multiple of it.
pub(super) const STEP: usize = 32;

/// Inner product of a query of 16 bits with a row of 8 bits, of one length that is a multiple of [`STEP`]. The caller keeps the sum within 32 bits.
pub(super) type WideDot = fn(&[i16], &[i8]) -> i32;

/// The fastest [`WideDot`] of this processor, to be asked for once a search.
pub(super) fn wide_dot() -> WideDot {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return wide_dot_on_avx2;
    }
    wide_dot_portable
}

/// Inner product of two rows of one length that is a multiple of [`STEP`] and at most 133,000, none of whose codes is -128.
pub(super) fn dot(a: &[i8], b: &[i8]) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, the function's only demand.
        #[allow(unsafe_code)]
        return unsafe { avx2::dot(a, b) };
    }
    dot_portable(a, b)
}

/// [`WideDot`] of any processor.
pub(super) fn wide_dot_portable(query: &[i16], row: &[i8]) -> i32 {
    let products = query.iter().zip(row).map(|(&x, &y)| i32::from(x) * i32::from(y));
    products.sum()
}

fn dot_portable(a: &[i8], b: &[i8]) -> i32 {
    let products = a.iter().zip(b).map(|(&x, &y)| i32::from(x) * i32::from(y));
    products.sum()
}

#[cfg(target_arch = "x86_64")]
fn wide_dot_on_avx2(query: &[i16], row: &[i8]) -> i32 {
    // SAFETY: only `wide_dot` hands this function out, once the processor is known to have AVX2.
    #[allow(unsafe_code)]
    unsafe {
        avx2::wide_dot(query, row)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::STEP;

    #[target_feature(enable = "avx2")]
    pub(super) fn wide_dot(query: &[i16], row: &[i8]) -> i32 {
        let mut sums = [_mm256_setzero_si256(); 2];
        let (query, row) = (query.as_chunks::<STEP>().0, row.as_chunks::<STEP>().0);
        for (query, row) in query.iter().zip(row) {
            for half in 0..2 {
                let (query, row) = (&query[half * 16..][..16], &row[half * 16..][..16]);
                let products = _mm256_madd_epi16(load_16(query), _mm256_cvtepi8_epi16(load_8(row)));
                sums[half] = _mm256_add_epi32(sums[half], products);
            }
        }
        sum(_mm256_add_epi32(sums[0], sums[1]))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn dot(a: &[i8], b: &[i8]) -> i32 {
        let ones = _mm256_set1_epi16(1);
        let mut sums = _mm256_setzero_si256();
        for (a, b) in a.as_chunks::<STEP>().0.iter().zip(b.as_chunks::<STEP>().0) {
            let (a, b) = (load_32(a), load_32(b));
            // |a| times b with a's sign: two products are at most 2 * 127 * 127, which 16 bits hold.
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
        }
        sum(sums)
    }

    #[target_feature(enable = "avx2")]
    fn load_16(values: &[i16]) -> __m256i {
        assert_eq!(values.len(), 16);
        // SAFETY: reads 32 bytes of a live slice of as many, at any alignment.
        #[allow(unsafe_code)]
        unsafe {
            _mm256_loadu_si256(values.as_ptr().cast())
        }
    }

    #[target_feature(enable = "avx2")]
    fn load_8(values: &[i8]) -> __m128i {
        assert_eq!(values.len(), 16);
        // SAFETY: reads 16 bytes of a live slice of as many, at any alignment.
        #[allow(unsafe_code)]
        unsafe {
            _mm_loadu_si128(values.as_ptr().cast())
        }
    }

    #[target_feature(enable = "avx2")]
    fn load_32(values: &[i8; STEP]) -> __m256i {
        // SAFETY: reads the 32 bytes of a live array, at any alignment.
        #[allow(unsafe_code)]
        unsafe {
            _mm256_loadu_si256(values.as_ptr().cast())
        }
    }

    #[target_feature(enable = "avx2")]
    fn sum(lanes: __m256i) -> i32 {
        let four = _mm_add_epi32(
            _mm256_castsi256_si128(lanes),
            _mm256_extracti128_si256::<1>(lanes),
        );
        let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn kernels_agree(steps in 0usize..30, seed in any::<u32>()) {
            let mixed = |i: usize, salt: u32| (i as u32 ^ salt).wrapping_mul(2_654_435_761).wrapping_add(seed).wrapping_mul(40_503) >> 8;
            let code = |salt| (0..steps * STEP).map(move |i| (mixed(i, salt) % 255) as i32 as i16 - 127);
            let (a, b): (Vec<i8>, Vec<i8>) = (code(1).map(|c| c as i8).collect(), code(2).map(|c| c as i8).collect());
            let query: Vec<i16> = (0..steps * STEP).map(|i| (mixed(i, 3) % 32_767) as i16 - 16_383).collect();
            prop_assert_eq!(dot(&a, &b), dot_portable(&a, &b));
            prop_assert_eq!(wide_dot()(&query, &a), wide_dot_portable(&query, &a));
        }
    }

    #[test]
    fn the_largest_codes_do_not_overflow() {
        let (most, least) = ([127i8; 64], [-127i8; 64]);
        assert_eq!(dot(&most, &least), -64 * 127 * 127);
        assert_eq!(dot(&least, &least), 64 * 127 * 127);
        assert_eq!(wide_dot()(&[i16::MAX; 64], &least), -64 * 127 * 32_767);
    }
}
