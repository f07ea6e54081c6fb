//! PNG: 8 bits as every other format, and the 16 bits that only it and TIFF have.

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::range::{Narrow, SampleRange};
use super::{DecodeError, DecodeOptions, allowance, alpha, check_size, orient, to_rgb};
use crate::data::image::RgbImage;

const NAME: &str = "PNG";
/// The largest sample.
const MOST: f64 = 65_535.0;

pub(super) fn decode(
    bytes: &[u8],
    options: &DecodeOptions,
    lost: &mut bool,
) -> Result<RgbImage, DecodeError> {
    let corrupt = |error: ::image::ImageError| DecodeError::corrupt(NAME, error);
    if let Some((width, height)) = size(bytes) {
        check_size(NAME, width, height, options)?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), ImageFormat::Png);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(allowance(options));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(corrupt)?;
    let (width, height) = decoder.dimensions();
    check_size(NAME, width, height, options)?;
    let orientation = match options.exif {
        true => decoder.orientation().map_err(corrupt)?,
        false => Orientation::NoTransforms,
    };
    let decoded = DynamicImage::from_decoder(decoder).map_err(corrupt)?;
    let image = match wide_to_rgb(&decoded, is_grey16(bytes), options, lost) {
        Some(image) => Some(image),
        None => to_rgb(decoded, options.background),
    };
    let image = image.ok_or_else(|| DecodeError::corrupt(NAME, "unexpected sample layout"))?;
    Ok(orient(image, orientation))
}

/// Converts samples of 16 bits; `None` for others. `grey` is for grey without alpha, which Pillow cuts off at 255 where it
/// keeps other samples' high byte.
fn wide_to_rgb(
    decoded: &DynamicImage,
    grey: bool,
    options: &DecodeOptions,
    lost: &mut bool,
) -> Option<RgbImage> {
    let mut colours = Narrow::new(options.sample_range, MOST);
    let cut_off = grey || colours.maps();
    let mut alphas = Narrow::new(SampleRange::Auto, MOST);
    let maps = colours.maps();
    let mut colour = |sample: u16| match cut_off {
        true => colours.narrow(f64::from(sample)),
        false => (sample >> 8) as u8,
    };
    let mut alpha = |sample: u16| match maps {
        true => alphas.narrow(f64::from(sample)),
        false => (sample >> 8) as u8,
    };
    let over = |colour: [u8; 3], alpha: u8| alpha::over(colour, alpha, options.background);
    let data: Vec<u8> = match decoded {
        DynamicImage::ImageLuma16(image) => image
            .as_raw()
            .iter()
            .flat_map(|&grey| [colour(grey); 3])
            .collect(),
        DynamicImage::ImageLumaA16(image) => image
            .as_raw()
            .chunks_exact(2)
            .flat_map(|p| over([colour(p[0]); 3], alpha(p[1])))
            .collect(),
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(|&sample| colour(sample)).collect(),
        DynamicImage::ImageRgba16(image) => image
            .as_raw()
            .chunks_exact(4)
            .flat_map(|p| over([colour(p[0]), colour(p[1]), colour(p[2])], alpha(p[3])))
            .collect(),
        _ => return None,
    };
    *lost = colours.lost_most();
    RgbImage::new(decoded.width(), decoded.height(), data)
}

/// Width and height from the header chunk.
fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some((number(16)?, number(20)?))
}

/// Whether the samples are 16-bit grey without an alpha channel. A transparent grey level changes nothing for Pillow, but
/// makes the codec add an alpha channel, so the decoded type does not tell.
fn is_grey16(bytes: &[u8]) -> bool {
    bytes.get(24..26) == Some(&[16, 0])
}
