//! Patches as rows: one launch, in the type of the product that follows.

use candle_core::{DType, Result, Tensor};

use super::geometry::{Chunked, WIDE};
use super::launch::{Argument, Source, launch, typed, uninitialised};
use super::normalise::single;

const NAME: &str = "patches";

/// [`crate::ops::patch_rows`] of shapes that have been checked: rows as long as a multiple of 8, zeros at their ends, so that each begins
/// at 16 bytes as the fast kernels of products want it.
pub(in crate::ops) fn patch_rows(pixels: &Tensor, patch: usize, dtype: DType) -> Result<Tensor> {
    let (batch, channels, height, width) = pixels.dims4()?;
    let (rows, columns) = (height / patch, width / patch);
    let (patches, depth) = (
        batch * rows * columns,
        (channels * patch * patch).next_multiple_of(WIDE),
    );
    let chunked = Chunked::new(patches, depth, true);
    let out = uninitialised((batch, rows * columns, depth), dtype, pixels.device())?;
    launch(
        pixels.device(),
        Source::Patches,
        &typed(NAME, dtype)?,
        &chunked.launch,
        &[
            Argument::Read(&single(NAME, pixels)?),
            Argument::Write(&out),
            Argument::Count(patches),
            Argument::Count(depth),
            Argument::Count(channels),
            Argument::Count(height),
            Argument::Count(width),
            Argument::Count(patch),
            Argument::Count(chunked.chunk_rows),
            Argument::Count(chunked.across),
        ],
    )?;
    Ok(out)
}
