//! What tensors between the products of a branch are stored as on the CPU: f32, or bf16 where products are computed in it, which
//! halves what is kept for the backward pass and what passes read and write. Arithmetic is f32 either way.

use candle_core::DType;
use half::bf16;

use super::cpu::Matrix;
#[cfg(target_arch = "x86_64")]
use super::packed_product::ElementVectors;

/// Other processors have no instructions for it.
#[cfg(not(target_arch = "x86_64"))]
pub(super) trait ElementVectors {}
#[cfg(not(target_arch = "x86_64"))]
impl<T> ElementVectors for T {}

/// A stored number.
pub(super) trait Element: Copy + Default + Send + Sync + ElementVectors + 'static {
    /// candle's name of it.
    const DTYPE: DType;

    /// The nearest to `value`.
    fn rounded(value: f32) -> Self;

    /// Its value.
    fn value(self) -> f32;

    /// The matrix, if it is one of f32.
    fn f32s(matrix: Matrix<Self>) -> Option<Matrix>;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn rounded(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    fn f32s(matrix: Matrix<Self>) -> Option<Matrix> {
        Some(matrix)
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;

    /// To the nearest, ties to even, as `half` does it, in arithmetic that vectorises.
    #[inline(always)]
    fn rounded(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // Rounding would carry some NaNs over to infinity.
        let quiet = bits >> 16 | 0x40;
        Self::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }

    #[inline(always)]
    fn value(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn f32s(_: Matrix<Self>) -> Option<Matrix> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        let mut bits = 1u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(bits);
            let (found, expected) = (<bf16 as Element>::rounded(value), bf16::from_f32(value));
            match value.is_nan() {
                true => assert!(found.is_nan()),
                false => assert_eq!(found.to_bits(), expected.to_bits(), "{value}"),
            }
        }
        for value in [
            0.,
            -0.,
            f32::INFINITY,
            f32::MAX,
            f32::MIN_POSITIVE,
            1.003_906_3,
            1.011_718_8,
        ] {
            let found = <bf16 as Element>::rounded(value);
            assert_eq!(found.to_bits(), bf16::from_f32(value).to_bits(), "{value}");
            assert_eq!(Element::value(found), bf16::from_f32(value).to_f32());
        }
    }
}
