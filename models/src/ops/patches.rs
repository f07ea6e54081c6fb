//! Square patches of images as rows of a matrix: what a strided convolution multiplies its kernel with.

use candle_core::{DType, Result, Tensor, bail};

use super::backend::backend;

const NAME: &str = "patch-rows";

/// The patches of `pixels` [B, C, H, W], row by row: [B, (H / P) (W / P), depth] with the values of a patch as [C, P, P].
///
/// The depth is C P P, but on a GPU, for pixels that no gradient is asked of, the next multiple of 8 with zeros at the end, and the type
/// is that of the product that follows, `compute`; elsewhere it is that of the pixels.
///
/// # Errors
/// Images whose sides are no multiples of `patch`, failures of candle.
pub fn patch_rows(pixels: &Tensor, patch: usize, compute: DType) -> Result<Tensor> {
    let (_, _, height, width) = pixels.dims4()?;
    if patch == 0 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
        bail!("{NAME}: expected sides that are multiples of {patch}, found {height} x {width}")
    }
    backend(pixels.device()).patch_rows(pixels, patch, compute)
}
