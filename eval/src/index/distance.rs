//! Distances of rows to each other for building a graph and to a query for walking it, and reading ahead for both.

use std::sync::Arc;

use hnsw_rs::anndists::dist::distances::Distance;

use super::codes::Codes;
use crate::Matrix;

/// The cosine distance `max(0, 1 - a . b)` of two rows by their numbers, so that `hnsw_rs` need not hold copies of them.
#[derive(Debug, Clone)]
pub(super) enum RowDistance {
    /// Of the rows themselves.
    Exact(Arc<Matrix>),
    /// Of their codes.
    Coded(Arc<Codes>),
}

impl Distance<u32> for RowDistance {
    fn eval(&self, a: &[u32], b: &[u32]) -> f32 {
        let similarity = match self {
            Self::Exact(rows) => dot(rows.view().row(a[0] as usize), rows.view().row(b[0] as usize)),
            Self::Coded(codes) => codes.similarity(a[0], b[0]),
        };
        // Rounding makes it negative for a row and its copy, which the crate does not bear.
        (1.0 - similarity).max(0.0)
    }
}

/// Bytes in a line of the cache.
const LINE: usize = 64;

/// Asks the cache for values that are read soon. Has no effect on any result.
pub(super) fn fetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(LINE / size_of::<T>()) {
        // SAFETY: a hint about an address inside a live slice; it reads and writes nothing.
        #[allow(unsafe_code)]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, LINE);
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
            let values =
                (0..384u32).map(|i| (i.wrapping_mul(seed).wrapping_mul(2_654_435_761) >> 8) as f32 - 8e6);
            let row = Matrix::new(values.collect(), 1, 384).unwrap();
            let unit = crate::linalg::normalise::l2_normalise(row.view()).unwrap();
            let distance = RowDistance::Exact(Arc::new(unit)).eval(&[0], &[0]);
            assert!((0.0..1e-5).contains(&distance), "{distance}");
        }
    }
}
