//! PNG: grey, grey and alpha, colour, colour and alpha, as one to four bands of 8 or 16 bits.

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::png::{BitDepth, ColorType, Decoder, Limits};

use super::{Layout, Samples, Target};
use crate::data::bands::BandImage;
use crate::data::decode::{DecodeError, DecodeOptions, allowance, check_size};

pub(super) fn read(
    bytes: &[u8],
    options: &DecodeOptions,
    target: &mut Target,
) -> Result<BandImage, DecodeError> {
    let limits = Limits {
        bytes: usize::try_from(allowance(options)).unwrap_or(usize::MAX),
    };
    let mut reader = Decoder::new_with_limits(Cursor::new(bytes), limits)
        .read_info()
        .map_err(|error| target.refuse(error))?;
    let info = reader.info();
    let (width, height, depth) = (info.width, info.height, info.bit_depth);
    check_size(target.format, width, height, options)?;
    let bands = match info.color_type {
        ColorType::Grayscale => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb => 3,
        ColorType::Rgba => 4,
        ColorType::Indexed => {
            return Err(target.refuse("expected bands, found a palette, whose numbers have no order"));
        }
    };
    // Before pixels are decoded.
    target.expect_bands(bands)?;
    let orientation = match options.exif {
        true => info
            .exif_metadata
            .as_deref()
            .and_then(Orientation::from_exif_chunk),
        false => None,
    };
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| target.refuse("too large for memory"))?;
    let mut buffer = vec![0; size];
    let frame = reader
        .next_frame(&mut buffer)
        .map_err(|error| target.refuse(error))?;
    let stored = &buffer[..frame.buffer_size()];
    let layout = Layout::interleaved(width, height, bands);
    let image = match depth {
        BitDepth::Eight => target.scaled(layout, stored, f64::from, Samples::BYTES)?,
        BitDepth::Sixteen => {
            let words = stored.as_chunks::<2>().0;
            let value = |word: [u8; 2]| f64::from(u16::from_be_bytes(word));
            target.scaled(layout, words, value, Samples::unsigned(16))?
        }
        BitDepth::One | BitDepth::Two | BitDepth::Four => {
            let found = depth as u8;
            return Err(target.refuse(format!("expected samples of 8 or 16 bits, found {found}")));
        }
    };
    Ok(image.oriented(orientation.unwrap_or(Orientation::NoTransforms)))
}
