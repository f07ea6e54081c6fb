//! The cosine distance of unit vectors for the graph, and reading ahead for it. The crate's own `DistDot` asserts that it is not negative, which
//! rounding makes it for a vector and its copy, and its `DistCosine` has no SIMD.

use hnsw_rs::anndists::dist::distances::Distance;

/// `max(0, 1 - a . b)`. Vectors must be finite and of one length; equal vectors are at 0 up to rounding.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UnitCosine;

impl Distance<f32> for UnitCosine {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        distance(a, b)
    }
}

/// `max(0, 1 - a . b)` of finite vectors of one length.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f32 {
    (1.0 - dot(a, b)).max(0.0)
}

/// Values in a line of the cache.
const LINE: usize = 16;
/// Lines asked for ahead of time; the processor sees the direction and gets those behind them.
const LINES_AHEAD: usize = 4;

/// Asks the cache for the beginning of a vector that is read next. Has no effect on any result.
pub(super) fn fetch_ahead(vector: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in vector.chunks(LINE).take(LINES_AHEAD) {
        // SAFETY: a hint about an address inside a live slice; it reads and writes nothing.
        #[allow(unsafe_code)]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (vector, LINE, LINES_AHEAD);
}

/// Partial sums: four registers of eight keep two multipliers busy.
const LANES: usize = 32;

/// Inner product, with AVX2 and FMA where the processor has them.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features the function is compiled for; it has no other demands.
        #[allow(unsafe_code)]
        return unsafe { dot_avx2(a, b) };
    }
    dot_lanes(a, b, |x, y, sum| x * y + sum)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    dot_lanes(a, b, |x, y, sum| x.mul_add(y, sum))
}

#[inline(always)]
fn dot_lanes(a: &[f32], b: &[f32], fused: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] = fused(x[lane], y[lane], sums[lane]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    let rest = a_rest.iter().zip(b_rest);
    rest.fold(sums[0], |sum, (&x, &y)| fused(x, y, sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_agrees_with_f64() {
        for n in [0, 1, 7, 31, 32, 33, 64, 100, 384, 1537] {
            let a: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            let b: Vec<f32> = (0..n).map(|i| ((i * 53 % 97) as f32 - 48.0) / 48.0).collect();
            let exact: f64 = a.iter().zip(&b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            let plain = dot_lanes(&a, &b, |x, y, sum| x * y + sum);
            for found in [dot(&a, &b), plain] {
                assert!((f64::from(found) - exact).abs() < 1e-4, "{n}: {found} {exact}");
            }
        }
    }

    #[test]
    fn copies_are_never_at_a_negative_distance() {
        for seed in 1..200u32 {
            let mut unit: Vec<f32> = (0..384u32)
                .map(|i| (i.wrapping_mul(seed).wrapping_mul(2_654_435_761) >> 8) as f32 - 8e6)
                .collect();
            let length = crate::linalg::normalise::norm(&unit) as f32;
            unit.iter_mut().for_each(|v| *v /= length);
            let distance = UnitCosine.eval(&unit, &unit);
            assert!((0.0..1e-5).contains(&distance), "{distance}");
        }
    }
}
