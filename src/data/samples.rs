//! The samples of a PNG with one channel, as they are stored: palette indices and grey levels, never scaled and never
//! looked up. Masks of classes and maps of depth are kept so, and a decoder for pictures would turn them into colours.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Limits};

/// Bytes that the decoder may allocate beside the samples.
const ALLOWANCE: usize = 1 << 24;

/// One value a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `[height, width]`.
    pub values: Vec<u16>,
}

/// Reads a grey or palette PNG of at most `max_pixels` pixels.
///
/// # Errors
/// A one-line reason: no PNG, more than one channel, too large, or damaged.
pub fn read_samples(bytes: &[u8], max_pixels: u64) -> Result<Samples, String> {
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Err("expected a PNG of one channel, found another kind of file".to_owned());
    }
    let limits = Limits {
        bytes: usize::try_from(max_pixels.saturating_mul(2))
            .unwrap_or(usize::MAX)
            .saturating_add(ALLOWANCE),
    };
    let damaged = |error: png::DecodingError| format!("PNG image: {error}");
    let mut reader = Decoder::new_with_limits(Cursor::new(bytes), limits)
        .read_info()
        .map_err(damaged)?;
    let info = reader.info();
    let (width, height, depth) = (info.width, info.height, info.bit_depth);
    if !matches!(info.color_type, ColorType::Grayscale | ColorType::Indexed) {
        return Err(format!(
            "expected a PNG of one channel (grey or palette), found {:?}",
            info.color_type
        ));
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(format!(
            "{width}x{height} pixels, above the limit of {max_pixels}"
        ));
    }
    let size = reader.output_buffer_size().ok_or("too large for memory")?;
    let mut packed = vec![0; size];
    let frame = reader.next_frame(&mut packed).map_err(damaged)?;
    let values = packed
        .chunks_exact(frame.line_size)
        .take(height as usize)
        .flat_map(|line| unpacked(line, depth).take(width as usize))
        .collect();
    Ok(Samples {
        width,
        height,
        values,
    })
}

/// The samples of one line.
fn unpacked(line: &[u8], depth: BitDepth) -> Box<dyn Iterator<Item = u16> + '_> {
    let bits = match depth {
        BitDepth::Sixteen => {
            return Box::new(
                line.chunks_exact(2)
                    .map(|pair| u16::from_be_bytes([pair[0], pair[1]])),
            );
        }
        BitDepth::Eight => return Box::new(line.iter().map(|&sample| u16::from(sample))),
        BitDepth::Four => 4,
        BitDepth::Two => 2,
        BitDepth::One => 1,
    };
    // The first sample is in the highest bits.
    let of_byte = move |&byte: &u8| {
        (0..8 / bits).map(move |place| u16::from(byte >> (8 - bits * (place + 1))) & ((1 << bits) - 1))
    };
    Box::new(line.iter().flat_map(of_byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32, color: ColorType, depth: BitDepth, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ColorType::Indexed {
            encoder.set_palette(vec![9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200]);
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        bytes
    }

    #[test]
    fn samples_are_as_stored() {
        let read = |bytes: &[u8]| read_samples(bytes, 100).unwrap().values;
        use ColorType::{Grayscale, Indexed};
        assert_eq!(
            read(&png(2, 2, Grayscale, BitDepth::Eight, &[0, 255, 3, 4])),
            [0, 255, 3, 4]
        );
        assert_eq!(
            read(&png(2, 1, Grayscale, BitDepth::Sixteen, &[1, 2, 255, 255])),
            [258, 65535]
        );
        // Lines begin at whole bytes.
        assert_eq!(
            read(&png(
                3,
                2,
                Indexed,
                BitDepth::Two,
                &[0b00_01_10_00, 0b11_10_01_00]
            )),
            [0, 1, 2, 3, 2, 1]
        );
        assert_eq!(
            read(&png(3, 1, Grayscale, BitDepth::Four, &[0x1f, 0x70])),
            [1, 15, 7]
        );
        assert_eq!(read(&png(2, 1, Indexed, BitDepth::One, &[0b0100_0000])), [0, 1]);
        let found = read_samples(&png(2, 1, Grayscale, BitDepth::Eight, &[7, 8]), 2).unwrap();
        assert_eq!((found.width, found.height), (2, 1));
    }

    #[test]
    fn what_has_no_single_channel_is_refused() {
        let error = |bytes: &[u8]| read_samples(bytes, 3).unwrap_err();
        assert!(error(&png(1, 1, ColorType::Rgb, BitDepth::Eight, &[1, 2, 3])).ends_with("found Rgb"));
        assert!(error(b"GIF89a").contains("expected a PNG"));
        let large = png(2, 2, ColorType::Grayscale, BitDepth::Eight, &[0; 4]);
        assert_eq!(error(&large), "2x2 pixels, above the limit of 3");
        let whole = png(1, 3, ColorType::Grayscale, BitDepth::Eight, &[5, 6, 7]);
        assert!(error(&whole[..whole.len() - 20]).starts_with("PNG image: "));
    }
}
