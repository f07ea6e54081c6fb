//! The inverse DCT in integers, of 8x8 coefficients to 8x8, 4x4, 2x2 or 1 sample. The arithmetic is that of libjpeg-turbo's
//! vector code, which works in 16 bits between its steps: coefficients of damaged files wrap and saturate as they do there.

/// Coefficients of a block, or the factors they are multiplied with, row by row.
pub(super) type Block = [i16; 64];

const F_0_298: i32 = 2446;
const F_0_390: i32 = 3196;
const F_0_541: i32 = 4433;
const F_0_765: i32 = 6270;
const F_0_899: i32 = 7373;
const F_1_175: i32 = 9633;
const F_1_501: i32 = 12299;
const F_1_847: i32 = 15137;
const F_1_961: i32 = 16069;
const F_2_053: i32 = 16819;
const F_2_562: i32 = 20995;
const F_3_072: i32 = 25172;

/// Fraction bits of the constants above.
const CONST_BITS: i32 = 13;
/// Fraction bits that the first pass leaves.
const PASS1_BITS: i32 = 2;
const SHIFT_1: i32 = CONST_BITS - PASS1_BITS;
const SHIFT_2: i32 = CONST_BITS + PASS1_BITS + 3;

/// Writes the samples of one block, `size` x `size` of them, `stride` apart from row to row.
pub(super) fn inverse(size: usize, block: &Block, factors: &Block, out: &mut [u8], stride: usize) {
    match size {
        8 => full(block, factors, out, stride),
        4 => quarter(block, factors, out, stride),
        2 => two(block, factors, out, stride),
        _ => out[0] = one(block[0], factors[0]),
    }
}

fn full(block: &Block, factors: &Block, out: &mut [u8], stride: usize) {
    assert!(out.len() >= 7 * stride + 8);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, and `out` holds eight rows of eight samples, `stride` apart.
        #[allow(unsafe_code)]
        unsafe {
            avx2::full(block, factors, out, stride);
        }
        return;
    }
    full_portable(block, factors, out, stride);
}

/// A sum of weighted samples, with `shift` fraction bits to round away, in 16 bits.
fn descale(sum: i32, shift: i32) -> i16 {
    (sum.wrapping_add(1 << (shift - 1)) >> shift).clamp(-32768, 32767) as i16
}

fn sample(value: i16) -> u8 {
    (value.clamp(-128, 127) + 128) as u8
}

fn is_zero_below_first_row(block: &Block, rows: &[usize]) -> bool {
    rows.iter()
        .all(|&row| block[row * 8..row * 8 + 8].iter().all(|&value| value == 0))
}

/// Eight samples of eight frequencies.
fn pass(input: [i16; 8], shift: i32) -> [i16; 8] {
    let wide = input.map(i32::from);
    let of = |a: i32, x: i32, b: i32, y: i32| (a * x).wrapping_add(b * y);
    let low = i32::from(input[0].wrapping_add(input[4])) << CONST_BITS;
    let high = i32::from(input[0].wrapping_sub(input[4])) << CONST_BITS;
    let even2 = of(wide[2], F_0_541, wide[6], F_0_541 - F_1_847);
    let even3 = of(wide[2], F_0_541 + F_0_765, wide[6], F_0_541);
    let sums = [
        low.wrapping_add(even3),
        high.wrapping_add(even2),
        high.wrapping_sub(even2),
        low.wrapping_sub(even3),
    ];
    let z3 = i32::from(input[7].wrapping_add(input[3]));
    let z4 = i32::from(input[5].wrapping_add(input[1]));
    let turned3 = of(z3, F_1_175 - F_1_961, z4, F_1_175);
    let turned4 = of(z3, F_1_175, z4, F_1_175 - F_0_390);
    let odd = [
        of(wide[7], -F_0_899, wide[1], F_1_501 - F_0_899).wrapping_add(turned4),
        of(wide[5], -F_2_562, wide[3], F_3_072 - F_2_562).wrapping_add(turned3),
        of(wide[5], F_2_053 - F_2_562, wide[3], -F_2_562).wrapping_add(turned4),
        of(wide[7], F_0_298 - F_0_899, wide[1], -F_0_899).wrapping_add(turned3),
    ];
    let mut out = [0; 8];
    for at in 0..4 {
        out[at] = descale(sums[at].wrapping_add(odd[at]), shift);
        out[7 - at] = descale(sums[at].wrapping_sub(odd[at]), shift);
    }
    out
}

fn full_portable(block: &Block, factors: &Block, out: &mut [u8], stride: usize) {
    let scaled = |at: usize| block[at].wrapping_mul(factors[at]);
    let between = if is_zero_below_first_row(block, &[1, 2, 3, 4, 5, 6, 7]) {
        [std::array::from_fn(|column| scaled(column) << PASS1_BITS); 8]
    } else {
        let columns: [[i16; 8]; 8] =
            std::array::from_fn(|column| pass(std::array::from_fn(|row| scaled(row * 8 + column)), SHIFT_1));
        std::array::from_fn(|row| columns.map(|column| column[row]))
    };
    for (row, values) in between.into_iter().enumerate() {
        let samples = pass(values, SHIFT_2).map(sample);
        out[row * stride..row * stride + 8].copy_from_slice(&samples);
    }
}

/// Four samples of the frequencies but the fourth, which has none of its sign there.
fn pass4(input: [i16; 8], shift: i32) -> [i16; 4] {
    let wide = input.map(i32::from);
    let of = |weights: [(usize, i32); 4]| {
        weights
            .iter()
            .fold(0_i32, |sum, &(at, weight)| sum.wrapping_add(wide[at] * weight))
    };
    let odd2 = of([(1, 20995), (3, 7373), (5, -4926), (7, -4176)]);
    let odd0 = of([(1, 8697), (3, -17799), (5, 11893), (7, -1730)]);
    let even = wide[0] << (CONST_BITS + 1);
    let turned = of([(2, 15137), (6, -6270), (0, 0), (0, 0)]);
    let (sum, difference) = (even.wrapping_add(turned), even.wrapping_sub(turned));
    [
        descale(sum.wrapping_add(odd2), shift),
        descale(difference.wrapping_add(odd0), shift),
        descale(difference.wrapping_sub(odd0), shift),
        descale(sum.wrapping_sub(odd2), shift),
    ]
}

fn quarter(block: &Block, factors: &Block, out: &mut [u8], stride: usize) {
    let mut between = [[0_i16; 8]; 4];
    let scaled = |at: usize| block[at].wrapping_mul(factors[at]);
    if is_zero_below_first_row(block, &[1, 2, 3, 5, 6, 7]) {
        between = [std::array::from_fn(|column| scaled(column) << PASS1_BITS); 4];
    } else {
        for column in [0, 1, 2, 3, 5, 6, 7] {
            let column_out = pass4(std::array::from_fn(|row| scaled(row * 8 + column)), SHIFT_1 + 1);
            for (row, value) in column_out.into_iter().enumerate() {
                between[row][column] = value;
            }
        }
    }
    for (row, values) in between.into_iter().enumerate() {
        let samples = pass4(values, SHIFT_2 + 1).map(sample);
        out[row * stride..row * stride + 4].copy_from_slice(&samples);
    }
}

/// The odd frequencies' share in the first of two samples; the second has it with the other sign.
fn odd2(values: [i16; 4]) -> i32 {
    let weights = [29692, -10426, 6967, -5906];
    let products = values
        .into_iter()
        .zip(weights)
        .map(|(value, weight)| i32::from(value) * weight);
    products.fold(0, i32::wrapping_add)
}

fn two(block: &Block, factors: &Block, out: &mut [u8], stride: usize) {
    let scaled = |at: usize| block[at].wrapping_mul(factors[at]);
    let round = |sum: i32, shift: i32| sum.wrapping_add(1 << (shift - 1)) >> shift;
    // Rows of the two samples that each column leaves; columns 0, 1, 3, 5 and 7 are enough.
    let mut first = [[0_i32; 5]; 2];
    for (place, column) in [0, 1, 3, 5, 7].into_iter().enumerate() {
        let odd = odd2([1, 3, 5, 7].map(|row| scaled(row * 8 + column)));
        let even = i32::from(scaled(column)) << (CONST_BITS + 2);
        first[0][place] = round(even.wrapping_add(odd), SHIFT_1 + 2);
        first[1][place] = round(even.wrapping_sub(odd), SHIFT_1 + 2);
    }
    for (row, values) in first.into_iter().enumerate() {
        let odd = odd2([1, 2, 3, 4].map(|place| values[place].clamp(-32768, 32767) as i16));
        let even = values[0] << (CONST_BITS + 2);
        out[row * stride] = sample(descale(even.wrapping_add(odd), SHIFT_2 + 2));
        out[row * stride + 1] = sample(descale(even.wrapping_sub(odd), SHIFT_2 + 2));
    }
}

/// The mean alone. What does not fit ten bits wraps, as in the table that libjpeg looks it up in.
fn one(mean: i16, factor: i16) -> u8 {
    let value = (i32::from(mean) * i32::from(factor) + 4) >> 3;
    let wrapped = ((value & 1023) ^ 512) - 512;
    (wrapped + 128).clamp(0, 255) as u8
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    /// As [`super::full_portable`].
    ///
    /// # Safety
    /// `out` has `7 * stride + 8` bytes.
    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code)]
    pub(super) unsafe fn full(block: &Block, factors: &Block, out: &mut [u8], stride: usize) {
        let load = |values: &Block, row: usize| {
            // SAFETY: row 0 to 7 of 64 values of 16 bits.
            unsafe { _mm_loadu_si128(values.as_ptr().add(row * 8).cast()) }
        };
        let coefficients: [__m128i; 8] = std::array::from_fn(|row| load(block, row));
        let [_, below @ ..] = &coefficients;
        let rest = below
            .iter()
            .fold(_mm_setzero_si128(), |all, &row| _mm_or_si128(all, row));
        let scaled = |row: usize| _mm_mullo_epi16(coefficients[row], load(factors, row));
        let between = if _mm_testz_si128(rest, rest) == 1 {
            let first = _mm_slli_epi16::<PASS1_BITS>(scaled(0));
            let others = _mm_srli_si128::<2>(coefficients[0]);
            if _mm_testz_si128(others, others) == 1 {
                let mean = i32::from(_mm_extract_epi16::<0>(first) as i16) << CONST_BITS;
                let flat = sample(descale(mean, SHIFT_2));
                for row in 0..8 {
                    out[row * stride..row * stride + 8].fill(flat);
                }
                return;
            }
            [first; 8]
        } else {
            pass::<SHIFT_1>(std::array::from_fn(scaled))
        };
        let columns = pass::<SHIFT_2>(transposed(between));
        let rows = bytes_transposed(columns);
        let centre = _mm_set1_epi8(-128);
        for (pair, rows) in rows.into_iter().enumerate() {
            let samples = _mm_xor_si128(rows, centre);
            let at = out.as_mut_ptr();
            // SAFETY: rows `2 * pair` and `2 * pair + 1` of eight, each eight bytes, within `out` by the caller's promise.
            unsafe {
                _mm_storel_epi64(at.add(2 * pair * stride).cast(), samples);
                let high = _mm_unpackhi_epi64(samples, samples);
                _mm_storel_epi64(at.add((2 * pair + 1) * stride).cast(), high);
            }
        }
    }

    /// As [`super::pass`], for eight columns at once.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn pass<const SHIFT: i32>(input: [__m128i; 8]) -> [__m128i; 8] {
        let pair = |a, b| _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
        let of = |pair, x: i32, y: i32| _mm256_madd_epi16(pair, _mm256_set1_epi32((y << 16) | (x & 0xFFFF)));
        let wide = |sum| _mm256_slli_epi32::<CONST_BITS>(_mm256_cvtepi16_epi32(sum));
        let low = wide(_mm_add_epi16(input[0], input[4]));
        let high = wide(_mm_sub_epi16(input[0], input[4]));
        let pair26 = pair(input[2], input[6]);
        let even2 = of(pair26, F_0_541, F_0_541 - F_1_847);
        let even3 = of(pair26, F_0_541 + F_0_765, F_0_541);
        let sums = [
            _mm256_add_epi32(low, even3),
            _mm256_add_epi32(high, even2),
            _mm256_sub_epi32(high, even2),
            _mm256_sub_epi32(low, even3),
        ];
        let turned = pair(
            _mm_add_epi16(input[7], input[3]),
            _mm_add_epi16(input[5], input[1]),
        );
        let turned3 = of(turned, F_1_175 - F_1_961, F_1_175);
        let turned4 = of(turned, F_1_175, F_1_175 - F_0_390);
        let (pair71, pair53) = (pair(input[7], input[1]), pair(input[5], input[3]));
        let odd = [
            _mm256_add_epi32(of(pair71, -F_0_899, F_1_501 - F_0_899), turned4),
            _mm256_add_epi32(of(pair53, -F_2_562, F_3_072 - F_2_562), turned3),
            _mm256_add_epi32(of(pair53, F_2_053 - F_2_562, -F_2_562), turned4),
            _mm256_add_epi32(of(pair71, F_0_298 - F_0_899, -F_0_899), turned3),
        ];
        let half = _mm256_set1_epi32(1 << (SHIFT - 1));
        let round = |sum| _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(sum, half));
        let mut out = [_mm_setzero_si128(); 8];
        for at in 0..4 {
            let first = round(_mm256_add_epi32(sums[at], odd[at]));
            let last = round(_mm256_sub_epi32(sums[at], odd[at]));
            let both = _mm256_permute4x64_epi64::<0xD8>(_mm256_packs_epi32(first, last));
            out[at] = _mm256_castsi256_si128(both);
            out[7 - at] = _mm256_extracti128_si256::<1>(both);
        }
        out
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn transposed(rows: [__m128i; 8]) -> [__m128i; 8] {
        let low16 = |a: usize, b: usize| _mm_unpacklo_epi16(rows[a], rows[b]);
        let high16 = |a: usize, b: usize| _mm_unpackhi_epi16(rows[a], rows[b]);
        // Columns 0 to 3 and 4 to 7 of two rows, then of four.
        let halves = |first: [__m128i; 4]| {
            [
                _mm_unpacklo_epi32(first[0], first[1]),
                _mm_unpackhi_epi32(first[0], first[1]),
                _mm_unpacklo_epi32(first[2], first[3]),
                _mm_unpackhi_epi32(first[2], first[3]),
            ]
        };
        let above = halves([low16(0, 1), low16(2, 3), high16(0, 1), high16(2, 3)]);
        let below = halves([low16(4, 5), low16(6, 7), high16(4, 5), high16(6, 7)]);
        let mut columns = [_mm_setzero_si128(); 8];
        for at in 0..4 {
            columns[2 * at] = _mm_unpacklo_epi64(above[at], below[at]);
            columns[2 * at + 1] = _mm_unpackhi_epi64(above[at], below[at]);
        }
        columns
    }

    /// Eight columns, saturated to signed bytes, as four times two rows.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn bytes_transposed(columns: [__m128i; 8]) -> [__m128i; 4] {
        let order = _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
        let two = |at: usize| _mm_shuffle_epi8(_mm_packs_epi16(columns[at], columns[at + 1]), order);
        let (left, right) = ([two(0), two(2)], [two(4), two(6)]);
        let above = [
            _mm_unpacklo_epi16(left[0], left[1]),
            _mm_unpacklo_epi16(right[0], right[1]),
        ];
        let below = [
            _mm_unpackhi_epi16(left[0], left[1]),
            _mm_unpackhi_epi16(right[0], right[1]),
        ];
        [
            _mm_unpacklo_epi32(above[0], above[1]),
            _mm_unpackhi_epi32(above[0], above[1]),
            _mm_unpacklo_epi32(below[0], below[1]),
            _mm_unpackhi_epi32(below[0], below[1]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that look random, the same in every run.
    fn noise(seed: &mut u32) -> i16 {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*seed >> 16) as i16
    }

    #[test]
    fn the_vector_code_equals_the_portable_in_every_range() {
        let mut seed = 7;
        for round in 0..4000 {
            let bits = round % 16;
            let few = round % 3;
            let block: Block = std::array::from_fn(|at| {
                let keep = match few {
                    0 => true,
                    1 => at < 8 && round % 2 == 0 || at == 0,
                    _ => at % 8 < 3 && at < 24,
                };
                if keep { noise(&mut seed) >> bits } else { 0 }
            });
            let factors: Block = std::array::from_fn(|_| {
                if round % 5 == 0 {
                    noise(&mut seed)
                } else {
                    noise(&mut seed) & 63
                }
            });
            let (mut ours, mut portable) = ([1_u8; 80], [1_u8; 80]);
            full(&block, &factors, &mut ours, 10);
            full_portable(&block, &factors, &mut portable, 10);
            assert_eq!(ours, portable, "round {round}");
        }
    }

    #[test]
    fn a_mean_alone_is_flat_in_every_size() {
        let mut block = [0; 64];
        block[0] = 37;
        let factors = [16; 64];
        for size in [1, 2, 4, 8] {
            let mut out = [0; 64];
            inverse(size, &block, &factors, &mut out, 8);
            for row in 0..size {
                assert_eq!(out[row * 8..row * 8 + size], [128 + 74; 8][..size], "{size}");
            }
        }
    }
}
