//! Putting tokens together and choosing among them.

use candle_core::{Result, Tensor};

use super::super::SpecialTokens;

/// [`super::super::assemble_tokens`].
pub(in crate::ops) fn assemble_tokens(
    patches: &Tensor,
    positions: &Tensor,
    special: SpecialTokens,
    masks: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, count, width) = patches.dims3()?;
    let positions = positions.reshape((1, 1 + count, width))?;
    let patches = match (masks, special.mask) {
        (Some(masks), Some(token)) => {
            let masks = masks.ne(0u8)?.unsqueeze(2)?.broadcast_as(patches.shape())?;
            let token = token.reshape((1, 1, width))?.broadcast_as(patches.shape())?;
            masks.contiguous()?.where_cond(&token.contiguous()?, patches)?
        }
        _ => patches.clone(),
    };
    let cls = (special.cls.reshape((1, 1, width))? + positions.narrow(1, 0, 1)?)?;
    let mut rows = vec![cls.expand((batch, 1, width))?.contiguous()?];
    if let Some(registers) = special.registers {
        let registers = registers.reshape((1, (), width))?;
        let shape = (batch, registers.dim(1)?, width);
        rows.push(registers.expand(shape)?.contiguous()?);
    }
    rows.push(patches.broadcast_add(&positions.narrow(1, 1, count)?)?);
    Tensor::cat(&rows, 1)
}

/// [`super::super::patch_rows`], in the type of the pixels.
pub(in crate::ops) fn patch_rows(pixels: &Tensor, patch: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = pixels.dims4()?;
    let (rows, columns) = (height / patch, width / patch);
    pixels
        .reshape((batch, channels, rows, patch, columns, patch))?
        .permute((0, 2, 4, 1, 3, 5))? // [B, rows, columns, C, P, P]
        .reshape((batch, rows * columns, channels * patch * patch))
}

/// [`super::super::windows`]: of every place in a window, the value there of all windows at once.
pub(in crate::ops) fn windows(map: &Tensor, stride: usize) -> Result<Tensor> {
    let (batch, height, width, channels) = map.dims4()?;
    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
    // One line and column of zeros before, and so many after that all of `rows * stride + 2` are there.
    let map = map
        .pad_with_zeros(1, 1, rows * stride + 1 - height)?
        .pad_with_zeros(2, 1, columns * stride + 1 - width)?;
    let mut places = Vec::with_capacity(9);
    for ky in 0..3 {
        for kx in 0..3 {
            let place = map
                .narrow(1, ky, rows * stride)?
                .narrow(2, kx, columns * stride)?
                .reshape((batch, rows, stride, columns, stride, channels))?
                .narrow(2, 0, 1)?
                .narrow(4, 0, 1)?
                .reshape((batch, rows, columns, channels))?;
            places.push(place);
        }
    }
    Tensor::cat(&places, 3)
}

/// [`super::super::gather_rows`].
pub(in crate::ops) fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(1);
    let rows = Tensor::new(rows, x.device())?;
    x.reshape(((), width))?.index_select(&rows, 0)
}
