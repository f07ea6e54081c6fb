//! The first page of a TIFF: all samples of a pixel, interleaved or in planes, integers of 8 to 64 bits or floats. Its own orientation
//! is always applied, as where it is read as a picture.

use std::borrow::Cow;
use std::io::Cursor;

use ::image::metadata::Orientation;
use ::tiff::decoder::{Decoder, DecodingResult, Limits};
use ::tiff::tags::Tag;

use super::{Layout, Samples, Target};
use crate::data::bands::BandImage;
use crate::data::decode::tiff::{BLACK_IS_ZERO, as_grey};
use crate::data::decode::{DecodeError, DecodeOptions, allowance, check_size};

/// Red, green and blue, and perhaps more.
const RGB: u16 = 2;

pub(super) fn read(
    bytes: &[u8],
    options: &DecodeOptions,
    target: &mut Target,
) -> Result<BandImage, DecodeError> {
    // The codec reads three or four samples of colour and no others.
    let bytes = as_grey(bytes, RGB).map_or(Cow::Borrowed(bytes), Cow::Owned);
    let corrupt = |error: ::tiff::TiffError| DecodeError::corrupt("TIFF", error);
    let mut limits = Limits::default();
    let allowed = usize::try_from(allowance(options)).unwrap_or(usize::MAX);
    limits.decoding_buffer_size = allowed;
    limits.intermediate_buffer_size = allowed;
    let mut reader = Decoder::new(Cursor::new(&*bytes))
        .map_err(corrupt)?
        .with_limits(limits);
    let (width, height) = reader.dimensions().map_err(corrupt)?;
    check_size(target.format, width, height, options)?;
    let photometric: Option<u16> = reader
        .find_tag_unsigned(Tag::PhotometricInterpretation)
        .map_err(corrupt)?;
    if !matches!(photometric, Some(BLACK_IS_ZERO | RGB)) {
        let found = photometric.map_or("none".to_owned(), |found| found.to_string());
        return Err(target.refuse(format!(
            "expected bands (photometric interpretation {BLACK_IS_ZERO} or {RGB}), found {found}"
        )));
    }
    let bits = reader.colortype().map_err(corrupt)?.bit_depth();
    if !matches!(bits, 8 | 16 | 32 | 64) {
        return Err(target.refuse(format!("expected samples of 8, 16, 32 or 64 bits, found {bits}")));
    }
    let orientation: Option<u16> = reader.find_tag_unsigned(Tag::Orientation).map_err(corrupt)?;
    let bands: Option<u16> = reader.find_tag_unsigned(Tag::SamplesPerPixel).map_err(corrupt)?;
    let bands = usize::from(bands.unwrap_or(1));
    // Before pixels are decoded.
    target.expect_bands(bands)?;
    let mut buffer = DecodingResult::U8(Vec::new());
    let planes = reader.read_image_to_buffer(&mut buffer).map_err(corrupt)?.planes;
    let layout = match planes > 1 {
        true => Layout::planar(width, height, bands),
        false => Layout::interleaved(width, height, bands),
    };
    let image = scaled(&buffer, bits, layout, target)?;
    let orientation = orientation.and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?));
    Ok(image.oriented(orientation.unwrap_or(Orientation::NoTransforms)))
}

/// The image of what the codec has read.
fn scaled(
    buffer: &DecodingResult,
    bits: u8,
    layout: Layout,
    target: &mut Target,
) -> Result<BandImage, DecodeError> {
    let (unsigned, signed, float) = (
        Samples::unsigned(bits),
        Samples::signed(bits),
        Samples::float(bits),
    );
    match buffer {
        DecodingResult::U8(v) => target.scaled(layout, v, f64::from, unsigned),
        DecodingResult::U16(v) => target.scaled(layout, v, f64::from, unsigned),
        DecodingResult::U32(v) => target.scaled(layout, v, f64::from, unsigned),
        DecodingResult::U64(v) => target.scaled(layout, v, |sample| sample as f64, unsigned),
        DecodingResult::I8(v) => target.scaled(layout, v, f64::from, signed),
        DecodingResult::I16(v) => target.scaled(layout, v, f64::from, signed),
        DecodingResult::I32(v) => target.scaled(layout, v, f64::from, signed),
        DecodingResult::I64(v) => target.scaled(layout, v, |sample| sample as f64, signed),
        DecodingResult::F16(v) => target.scaled(layout, v, |sample| sample.to_f64(), float),
        DecodingResult::F32(v) => target.scaled(layout, v, f64::from, float),
        DecodingResult::F64(v) => target.scaled(layout, v, |sample| sample, float),
    }
}
