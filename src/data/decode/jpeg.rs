//! What the JPEG codec does not do. It does not say whether a file was cut short: it fills what is missing with grey; Pillow
//! refuses a file whose end marker is missing, and so does this project, since grey halves make wrong features without a
//! word. And it cannot decode at a fraction of the size, as Pillow's `draft` does; a second codec can.

use ::image::metadata::Orientation;
use jpeg_decoder::{Decoder, PixelFormat};

use super::{DecodeError, DecodeOptions, check_size, orient};
use crate::data::image::RgbImage;

const END_OF_IMAGE: u8 = 0xD9;
const START_OF_SCAN: u8 = 0xDA;

/// Fails when no end marker follows the first scan.
pub(super) fn check_complete(bytes: &[u8]) -> Result<(), DecodeError> {
    match find_end(bytes) {
        Some(()) => Ok(()),
        None => Err(DecodeError::corrupt(
            "JPEG",
            format!("cut short: no end marker in {} bytes", bytes.len()),
        )),
    }
}

/// Walks from marker to marker, so that the end of a thumbnail in a header is not taken for the image's.
fn find_end(bytes: &[u8]) -> Option<()> {
    let mut at = 2; // past the start marker
    let mut in_scan = false;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xFF)?;
        let marker = *bytes.get(at + 1)?;
        match marker {
            // A fill byte, a stuffed 0xFF, or a marker without a body.
            0xFF => at += 1,
            0x00 | 0x01 | 0xD0..=0xD8 => at += 2,
            END_OF_IMAGE if in_scan => return Some(()),
            END_OF_IMAGE => at += 2,
            _ => {
                in_scan |= marker == START_OF_SCAN;
                let length = bytes.get(at + 2..at + 4)?;
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
    }
}

/// Decodes at an eighth, a quarter or a half of the size, the smallest whose shorter side has `side` pixels, by leaving out
/// the higher frequencies of each block. `None` where no fraction is large enough, and for CMYK and 16 bits.
///
/// # Errors
/// As [`super::decode`].
pub(super) fn decode_small(
    bytes: &[u8],
    side: u32,
    options: &DecodeOptions,
) -> Result<Option<RgbImage>, DecodeError> {
    let corrupt = |error: jpeg_decoder::Error| DecodeError::corrupt("JPEG", error);
    let mut decoder = Decoder::new(bytes);
    decoder.read_info().map_err(corrupt)?;
    let Some(info) = decoder.info() else {
        return Ok(None);
    };
    check_size("JPEG", info.width.into(), info.height.into(), options)?;
    let of = |fraction: u16| (info.width.div_ceil(fraction), info.height.div_ceil(fraction));
    let fits = |fraction: &u16| u32::from(of(*fraction).0.min(of(*fraction).1)) >= side;
    let plain = matches!(info.pixel_format, PixelFormat::RGB24 | PixelFormat::L8);
    let Some(fraction) = [8, 4, 2].into_iter().find(fits).filter(|_| plain) else {
        return Ok(None);
    };
    let (width, height) = of(fraction);
    let (width, height) = decoder.scale(width, height).map_err(corrupt)?;
    let samples = decoder.decode().map_err(corrupt)?;
    let image = match info.pixel_format {
        PixelFormat::L8 => RgbImage::from_grey(width.into(), height.into(), &samples),
        _ => RgbImage::new(width.into(), height.into(), samples),
    };
    let image = image.ok_or_else(|| DecodeError::corrupt("JPEG", "unexpected sample layout"))?;
    let orientation = match options.exif {
        true => decoder.exif_data().and_then(Orientation::from_exif_chunk),
        false => None,
    };
    Ok(Some(orient(
        image,
        orientation.unwrap_or(Orientation::NoTransforms),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_images_own_end_counts() {
        // Start, a header segment that holds an end marker, a scan of three bytes with a stuffed 0xFF, the end.
        let mut file = vec![
            0xFF, 0xD8, 0xFF, 0xE1, 0, 4, 0xFF, 0xD9, 0xFF, 0xDA, 0, 2, 7, 0xFF, 0,
        ];
        assert!(check_complete(&file).is_err());
        file.extend([0xFF, 0xD9]);
        assert!(check_complete(&file).is_ok());
        assert!(check_complete(&file[..3]).is_err());
        assert!(check_complete(&[0xFF]).is_err());
    }
}
