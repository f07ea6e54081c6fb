//! The first frame of a GIF. Like Pillow, a frame that does not cover the screen lies on its transparent colour, or on
//! colour 0, and a frame that reaches outside enlarges the screen.

use std::num::NonZeroU64;

use ::gif::{ColorOutput, DecodeOptions as GifOptions, MemoryLimit};

use super::{DecodeError, DecodeOptions, check_size};
use crate::data::image::RgbImage;

const NAME: &str = "GIF";

pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<RgbImage, DecodeError> {
    let corrupt = |error: ::gif::DecodingError| DecodeError::corrupt(NAME, error);
    let mut settings = GifOptions::new();
    settings.set_color_output(ColorOutput::Indexed);
    let limit = NonZeroU64::new(options.max_pixels).unwrap_or(NonZeroU64::MIN);
    settings.set_memory_limit(MemoryLimit::Bytes(limit));
    let mut decoder = settings.read_info(bytes).map_err(corrupt)?;
    let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(corrupt)?;
    let frame = frame.ok_or_else(|| DecodeError::corrupt(NAME, "no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (columns, rows) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent;
    let background = transparent.unwrap_or(0);
    let width = screen.0.max((left + columns) as u32);
    let height = screen.1.max((top + rows) as u32);
    check_size(NAME, width, height, options)?;
    check_size(NAME, columns as u32, rows as u32, options)?;

    let mut indices = vec![0; columns * rows];
    decoder.read_into_buffer(&mut indices).map_err(corrupt)?;
    let palette = decoder.palette().unwrap_or_default();
    let mut colours: Vec<[u8; 3]> = (0..=255).map(|index| colour(palette, index)).collect();
    if let (Some(below), Some(clear)) = (options.background, transparent) {
        colours[usize::from(clear)] = below;
    }

    let stride = width as usize * 3;
    let mut data = colours[usize::from(background)].repeat(width as usize * height as usize);
    for (row, indices) in data
        .chunks_exact_mut(stride)
        .skip(top)
        .zip(indices.chunks_exact(columns))
    {
        let pixels = row[left * 3..].chunks_exact_mut(3);
        for (pixel, &index) in pixels.zip(indices) {
            pixel.copy_from_slice(&colours[usize::from(index)]);
        }
    }
    RgbImage::new(width, height, data).ok_or_else(|| DecodeError::corrupt(NAME, "no pixels"))
}

/// The colour of an index: black beyond the palette, a grey level where there is no palette.
fn colour(palette: &[u8], index: u8) -> [u8; 3] {
    let at = usize::from(index) * 3;
    match palette.get(at..at + 3) {
        Some(colour) => [colour[0], colour[1], colour[2]],
        None if palette.is_empty() => [index; 3],
        None => [0; 3],
    }
}
