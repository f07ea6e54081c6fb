//! Arithmetic on slices in loops that the compiler turns into vector instructions, and the switch to the widest ones.
//!
//! The build targets every x86-64 processor, so plain loops get vectors of four. [`wide`] compiles what it is given once more
//! for AVX2 and for AVX-512 and picks at run time. Multiplications and additions are never contracted, so all give the same bits.

use rayon::prelude::*;

/// Runs `kernel` with the widest vectors of this processor.
///
/// Only what is inlined gains by it: closures and functions in `kernel` are `#[inline(always)]`, and threads started inside
/// it are outside of it again.
#[inline(always)]
pub fn wide<R>(kernel: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
        {
            // SAFETY: the processor has just said that it has these.
            #[allow(unsafe_code)]
            return unsafe { with_avx512(kernel) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has just said that it has AVX2.
            #[allow(unsafe_code)]
            return unsafe { with_avx2(kernel) };
        }
    }
    kernel()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
fn with_avx512<R>(kernel: impl FnOnce() -> R) -> R {
    kernel()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<R>(kernel: impl FnOnce() -> R) -> R {
    kernel()
}

/// A vector of `len` values whose pieces of `piece` values (the last may be shorter) are written by `fill(index, piece)`, in
/// parallel and with the widest vectors. Each piece comes zeroed.
///
/// Memory is touched first by the thread that fills it, while it is warm: zeroing a large result as a whole would be a pass of
/// its own, and its page faults would all be one thread's.
#[inline(always)]
pub fn filled<T: Copy + Default + Send>(
    len: usize,
    piece: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    filled_with(len, piece, fill).0
}

/// [`filled`], with what `fill` returns for each piece, in their order.
#[inline(always)]
pub fn filled_with<T: Copy + Default + Send, R: Send>(
    len: usize,
    piece: usize,
    fill: impl Fn(usize, &mut [T]) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    let mut values = Vec::with_capacity(len);
    let results = values.spare_capacity_mut()[..len]
        .par_chunks_mut(piece.max(1))
        .enumerate()
        .map(|(index, piece)| {
            wide(
                #[inline(always)]
                || fill(index, zeroed(piece)),
            )
        })
        .collect();
    // SAFETY: the pieces cover the first `len` values and `zeroed` has written every one of them; a panic in a task leaves
    // this function before.
    #[allow(unsafe_code)]
    unsafe {
        values.set_len(len);
    }
    (values, results)
}

/// The part of `values` beside piece `index` of `len` values, where pieces have `piece` values.
#[inline(always)]
pub fn beside<T>(values: &[T], index: usize, piece: usize, len: usize) -> &[T] {
    &values[index * piece..][..len]
}

/// The memory of `piece` as zeros.
#[inline(always)]
fn zeroed<T: Copy + Default>(piece: &mut [std::mem::MaybeUninit<T>]) -> &mut [T] {
    for value in piece.iter_mut() {
        value.write(T::default());
    }
    // SAFETY: every value has just been written, and the pointer is the slice's own.
    #[allow(unsafe_code)]
    unsafe {
        std::slice::from_raw_parts_mut(piece.as_mut_ptr().cast(), piece.len())
    }
}

/// Partial sums a reduction keeps.
pub(super) const LANES: usize = 8;

/// Reduces `values` lane by lane, so that the loop vectorises although float addition does not commute with rounding.
#[inline(always)]
fn reduce(len: usize, start: f32, step: impl Fn(f32, usize) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let whole = len - len % LANES;
    for block in (0..whole).step_by(LANES) {
        for (lane, value) in lanes.iter_mut().enumerate() {
            *value = step(*value, block + lane);
        }
    }
    let mut total = lanes.into_iter().fold(start, join);
    for index in whole..len {
        total = step(total, index);
    }
    total
}

/// Sum of `values`.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    reduce(values.len(), 0., |total, i| total + values[i], |a, b| a + b)
}

/// Sum of the products of `a` and `b`, over the shorter of the two.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    reduce(len, 0., |total, i| total + a[i] * b[i], |x, y| x + y)
}

/// Largest of `values`; minus infinity if there are none. A NaN is passed over: the caller's `exp` meets it again.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    reduce(
        values.len(),
        f32::NEG_INFINITY,
        |best, i| best.max(values[i]),
        f32::max,
    )
}

/// `e^x` for x in [-87, 88] (clamped), within 2e-7 relative, in arithmetic that vectorises; NaN stays NaN.
///
/// Range reduction by ln 2 in two parts and the degree-6 polynomial of Cephes `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding this leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.;
    let x = x.clamp(-87., 88.);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (p * r * r + r + 1.) * power
}

/// Softmax of one row, in place.
#[inline(always)]
pub fn softmax_row(row: &mut [f32]) {
    let largest = max(row);
    for value in row.iter_mut() {
        *value = exp(*value - largest);
    }
    let scale = 1. / sum(row);
    for value in row.iter_mut() {
        *value *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_keeps_nan() {
        let mut worst = 0f64;
        for i in -86_999..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "relative error {worst}");
        assert_eq!(exp(0.), 1.);
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn lane_sums_agree_with_plain_ones_at_every_length() {
        for len in 0..35 {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin()).collect();
            let b: Vec<f32> = (0..len).map(|i| (i as f32 * 0.3).cos()).collect();
            assert!((sum(&a) - a.iter().sum::<f32>()).abs() < 1e-5);
            let plain: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            assert!((dot(&a, &b) - plain).abs() < 1e-5);
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[test]
    fn softmax_of_a_row_with_nan_is_nan() {
        let mut row = vec![0.5, f32::NAN, 1.];
        softmax_row(&mut row);
        assert!(row.iter().all(|value| value.is_nan()));
    }

    #[test]
    fn wide_vectors_change_no_bit() {
        let values: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin() * 9.).collect();
        let run = |row: &mut Vec<f32>| softmax_row(row);
        let (mut plain, mut vectors) = (values.clone(), values);
        run(&mut plain);
        wide(
            #[inline(always)]
            || softmax_row(&mut vectors),
        );
        assert_eq!(plain, vectors);
    }
}
