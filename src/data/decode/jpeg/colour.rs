//! From upsampled rows of one sample a pixel and component to interleaved RGB.

use super::super::cmyk_to_rgb;

/// What the components of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Grey,
    Rgb,
    YCbCr,
    /// Stored inverted, as Adobe's programs do and as Pillow takes for granted.
    Cmyk,
    /// Red, green and blue of the inverted inks as YCbCr, and black.
    Ycck,
}

/// Writes one row of `out.len() / 3` pixels.
pub(super) fn convert(colour: Colour, rows: [&[u8]; 4], out: &mut [u8]) {
    let count = out.len() / 3;
    let pixels = out.chunks_exact_mut(3);
    let [first, second, third, fourth] = rows;
    match colour {
        Colour::Grey => {
            for (pixel, &grey) in pixels.zip(first) {
                pixel.fill(grey);
            }
        }
        Colour::Rgb => {
            for (((pixel, &red), &green), &blue) in pixels.zip(first).zip(second).zip(third) {
                pixel.copy_from_slice(&[red, green, blue]);
            }
        }
        Colour::YCbCr => ycc(&first[..count], &second[..count], &third[..count], out),
        Colour::Cmyk => {
            let inks = first.iter().zip(second).zip(third).zip(fourth);
            for (pixel, (((&c, &m), &y), &k)) in pixels.zip(inks) {
                pixel.copy_from_slice(&cmyk_to_rgb([!c, !m, !y, !k]));
            }
        }
        Colour::Ycck => {
            let inks = first.iter().zip(second).zip(third).zip(fourth);
            for (pixel, (((&y, &cb), &cr), &k)) in pixels.zip(inks) {
                // The decoder's inks are 255 minus these; Pillow turns them round again.
                let [c, m, y] = rgb_of(y, cb, cr);
                pixel.copy_from_slice(&cmyk_to_rgb([c, m, y, !k]));
            }
        }
    }
}

/// Red, green and blue of one pixel, in 16 fraction bits, rounded.
fn rgb_of(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let half = 1 << 15;
    let red = y + ((91_881 * cr + half) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + half) >> 16);
    let blue = y + ((116_130 * cb + half) >> 16);
    [red, green, blue].map(|value| value.clamp(0, 255) as u8)
}

fn ycc(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    let done = ycc_in_vectors(y, cb, cr, out);
    let rest = y[done..].iter().zip(&cb[done..]).zip(&cr[done..]);
    for (pixel, ((&y, &cb), &cr)) in out[done * 3..].chunks_exact_mut(3).zip(rest) {
        pixel.copy_from_slice(&rgb_of(y, cb, cr));
    }
}

/// Converts as many pixels as vectors hold, and says how many.
#[cfg(target_arch = "x86_64")]
fn ycc_in_vectors(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) -> usize {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return 0;
    }
    let chunks = y.len().min(cb.len()).min(cr.len()).min(out.len() / 3) / 16;
    // SAFETY: the processor has AVX2; each row holds 16 samples a chunk, and `out` 48 bytes.
    #[allow(unsafe_code)]
    unsafe {
        avx2::ycc(y, cb, cr, out, chunks);
    }
    chunks * 16
}

#[cfg(not(target_arch = "x86_64"))]
fn ycc_in_vectors(_: &[u8], _: &[u8], _: &[u8], _: &mut [u8]) -> usize {
    0
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    /// Which byte of 16 red, green or blue ones goes where in three times 16 bytes; -1 for none.
    const fn places(channel: usize, third: usize) -> [i8; 16] {
        let mut places = [-1; 16];
        let mut at = 0;
        while at < 16 {
            let byte = third * 16 + at;
            if byte % 3 == channel {
                places[at] = (byte / 3) as i8;
            }
            at += 1;
        }
        places
    }

    const PLACES: [[[i8; 16]; 3]; 3] = [
        [places(0, 0), places(1, 0), places(2, 0)],
        [places(0, 1), places(1, 1), places(2, 1)],
        [places(0, 2), places(1, 2), places(2, 2)],
    ];

    /// # Safety
    /// `y`, `cb` and `cr` have 16 bytes a chunk, `out` 48.
    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code)]
    pub(super) unsafe fn ycc(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8], chunks: usize) {
        let centre = _mm256_set1_epi16(128);
        let one = _mm256_set1_epi16(1);
        let half = _mm256_set1_epi32(1 << 15);
        let weights = _mm256_set1_epi32((18_734 << 16) | (-22_554 & 0xFFFF));
        for chunk in 0..chunks {
            let load = |row: &[u8]| {
                // SAFETY: 16 bytes of this chunk.
                let bytes = unsafe { _mm_loadu_si128(row.as_ptr().add(chunk * 16).cast()) };
                _mm256_cvtepu8_epi16(bytes)
            };
            let y = load(y);
            let cb = _mm256_sub_epi16(load(cb), centre);
            let cr = _mm256_sub_epi16(load(cr), centre);
            // A product over 2^16, rounded: over 2^15 first, since that is what there is an instruction for.
            let scaled = |value, factor: i16| {
                let twice = _mm256_mulhi_epi16(_mm256_add_epi16(value, value), _mm256_set1_epi16(factor));
                _mm256_srai_epi16::<1>(_mm256_add_epi16(twice, one))
            };
            let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), scaled(cr, 26_345));
            let twice_cb = _mm256_add_epi16(cb, cb);
            let blue = _mm256_add_epi16(_mm256_add_epi16(y, twice_cb), scaled(cb, -14_942));
            let mixed =
                |pairs| _mm256_srai_epi32::<16>(_mm256_add_epi32(_mm256_madd_epi16(pairs, weights), half));
            let shade = _mm256_packs_epi32(
                mixed(_mm256_unpacklo_epi16(cb, cr)),
                mixed(_mm256_unpackhi_epi16(cb, cr)),
            );
            let green = _mm256_sub_epi16(_mm256_add_epi16(y, shade), cr);
            let both = _mm256_permute4x64_epi64::<0xD8>(_mm256_packus_epi16(red, green));
            let (red, green) = (_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
            let blue = _mm256_permute4x64_epi64::<0xD8>(_mm256_packus_epi16(blue, blue));
            let channels = [red, green, _mm256_castsi256_si128(blue)];
            for (third, places) in PLACES.iter().enumerate() {
                let mut bytes = _mm_setzero_si128();
                for (places, &channel) in places.iter().zip(&channels) {
                    // SAFETY: 16 bytes of a constant.
                    let order = unsafe { _mm_loadu_si128(places.as_ptr().cast()) };
                    bytes = _mm_or_si128(bytes, _mm_shuffle_epi8(channel, order));
                }
                // SAFETY: 16 of the 48 bytes of this chunk.
                unsafe { _mm_storeu_si128(out.as_mut_ptr().add(chunk * 48 + third * 16).cast(), bytes) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_any_length_equal_single_pixels() {
        let every: Vec<[u8; 3]> = (0..=255_u8)
            .flat_map(|y| {
                (0..=255_u8)
                    .step_by(5)
                    .map(move |cb| [y, cb, y.wrapping_mul(37) ^ cb])
            })
            .collect();
        let column = |channel: usize| every.iter().map(|pixel| pixel[channel]).collect::<Vec<u8>>();
        let (y, cb, cr) = (column(0), column(1), column(2));
        for length in [1, 15, 16, 17, every.len()] {
            let mut out = vec![0; length * 3];
            convert(Colour::YCbCr, [&y, &cb, &cr, &[]], &mut out);
            for (at, pixel) in out.chunks_exact(3).enumerate() {
                assert_eq!(pixel, rgb_of(y[at], cb[at], cr[at]), "{at} of {length}");
            }
        }
    }
}
