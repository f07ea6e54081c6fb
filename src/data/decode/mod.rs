//! From the bytes of a file to RGB pixels, as Pillow's `Image.open(f).convert("RGB")` gives them: alpha dropped unless a
//! background is asked for ([`alpha`]), palettes expanded, CMYK by Pillow's formula, no colour management. What Pillow does
//! with 16 bits is kept too, unless a range is asked for ([`range`]): grey saturates at 255, colour keeps its high byte. The
//! format is decided by content, never by name, and the size is checked before pixels are allocated. This file holds what all
//! formats share; [`gif`], [`tiff`], [`png`], [`pnm`] and [`jpeg`] what is their own, and [`bands`] what is no picture.

mod alpha;
mod bands;
mod gif;
mod jpeg;
mod png;
mod pnm;
pub mod range;
mod tiff;

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use serde::{Deserialize, Serialize};

pub use bands::decode_bands;
pub use range::SampleRange;

use super::bands::Bands;
use super::image::RgbImage;
use crate::error::one_line;
use crate::quiet::quietly;

/// The most pixels an image may have unless asked otherwise: where Pillow raises `DecompressionBombError`.
pub const DEFAULT_MAX_PIXELS: u64 = 178_956_970;

/// What a reader of images may choose. Every field changes pixels or which images are read, and is part of the fingerprint of
/// what was computed (`crate::identity`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeOptions {
    /// Whether the EXIF orientation is applied. Off by default, as in the reference; a TIFF's own orientation always is,
    /// as in Pillow.
    pub exif: bool,
    /// The most pixels an image may have.
    pub max_pixels: u64,
    /// Red, green and blue that an image with an alpha channel or a transparent colour is laid over: each sample becomes
    /// `colour * alpha + background * (255 - alpha)`, over 255, rounded to nearest, as Pillow's `Image.alpha_composite` over
    /// that colour gives. `None`, the default, drops alpha as `convert("RGB")` does.
    pub background: Option<[u8; 3]>,
    /// Decodes a large JPEG at a half, a quarter or an eighth of its size, the smallest whose shorter side still has this
    /// many pixels: faster, and the pixels of Pillow's `draft("RGB", (side, side))`. `None`, the default, decodes every image
    /// in full.
    pub jpeg_shorter_side: Option<u32>,
    /// What samples of more than 8 bits become.
    #[serde(default)]
    pub sample_range: SampleRange,
    /// The bands that images are read as in place of RGB ([`decode_bands`]); none for pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bands: Option<Bands>,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            exif: false,
            max_pixels: DEFAULT_MAX_PIXELS,
            background: None,
            jpeg_shorter_side: None,
            sample_range: SampleRange::Clip,
            bands: None,
        }
    }
}

impl DecodeOptions {
    /// Refuses a background with bands, where alpha is one of them.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check_bands(&self) -> crate::Result<()> {
        match (self.bands, self.background) {
            (Some(_), Some(_)) => {
                let reason = "expected none with bands, where alpha is a band, found a colour";
                Err(crate::Error::setting("background", reason))
            }
            _ => Ok(()),
        }
    }

    /// For who asks for an image's size alone: nothing saturates, so that nothing is said of it.
    pub fn for_size() -> Self {
        Self {
            sample_range: SampleRange::Auto,
            ..Self::default()
        }
    }
}

/// Why bytes are not an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There is nothing to decode.
    #[error("the file is empty")]
    Empty,
    /// The first bytes belong to none of the formats.
    #[error("not a JPEG, PNG, WebP, GIF, BMP, TIFF or PNM image")]
    UnknownFormat,
    /// The header asks for more pixels than allowed; none were allocated.
    #[error("{format} image of {width}x{height} pixels, above the limit of {limit}")]
    TooLarge {
        /// The format's name.
        format: &'static str,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The most pixels allowed.
        limit: u64,
    },
    /// The file is damaged, cut short, or of a kind that no decoder here reads.
    #[error("{format} image: {reason}")]
    Corrupt {
        /// The format's name.
        format: &'static str,
        /// What the decoder found, in one line.
        reason: String,
    },
}

impl DecodeError {
    fn corrupt(format: &'static str, reason: impl ToString) -> Self {
        // A row's error is one line, whatever a codec wrote.
        let reason = one_line(&reason.to_string(), usize::MAX);
        Self::Corrupt { format, reason }
    }
}

/// Decodes an image. See the [module](self) for what the pixels are.
///
/// # Errors
/// A one-line reason when the bytes are empty, of no known format, too large by their header, damaged or cut short.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<RgbImage, DecodeError> {
    decode_counting(bytes, options, &mut false)
}

/// [`decode`] for an image of a source: one that loses most of its samples to a cut-off is counted for the notice of
/// [`range::take_notice`], under the name that `name` gives.
///
/// # Errors
/// As [`decode`].
pub fn decode_named(
    bytes: &[u8],
    options: &DecodeOptions,
    name: impl FnOnce() -> String,
) -> Result<RgbImage, DecodeError> {
    let mut lost = false;
    let image = decode_counting(bytes, options, &mut lost)?;
    if lost {
        range::note(name());
    }
    Ok(image)
}

/// [`decode`]; `lost` becomes true when more than half of the samples are cut off.
pub(super) fn decode_counting(
    bytes: &[u8],
    options: &DecodeOptions,
    lost: &mut bool,
) -> Result<RgbImage, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bands::is_npy(bytes) {
        let reason = "an array, not a picture: expected a run with --bands, or a model of bands";
        return Err(DecodeError::corrupt("npy", reason));
    }
    let (format, name) = format_of(bytes).ok_or(DecodeError::UnknownFormat)?;
    // The codecs are other people's code and hold assertions: one file must not end a run of a million.
    let decoded = quietly(|| match format {
        ImageFormat::Gif => gif::decode(bytes, options),
        ImageFormat::Tiff => tiff::decode(bytes, options, lost),
        ImageFormat::Png => png::decode(bytes, options, lost),
        ImageFormat::Pnm => pnm::decode(bytes, options, lost),
        ImageFormat::Jpeg => jpeg::decode(bytes, options),
        ImageFormat::WebP => {
            check_webp_length(bytes).and_then(|()| decode_simple(bytes, format, name, options))
        }
        _ => decode_simple(bytes, format, name, options),
    });
    decoded.unwrap_or_else(|_| Err(DecodeError::corrupt(name, "the decoder gave up on damaged data")))
}

/// Whether the first bytes of a file of any name announce an image.
pub(crate) fn announces_image(start: &[u8]) -> bool {
    // Two letters make no BMP: the size of its header must be one that there is.
    let is_bmp = || {
        matches!(
            start.get(14..18),
            Some([12 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0])
        )
    };
    format_of(start).is_some_and(|(format, _)| format != ImageFormat::Bmp || is_bmp())
}

/// The format that the first bytes announce, and its name.
fn format_of(bytes: &[u8]) -> Option<(ImageFormat, &'static str)> {
    if bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+") {
        return Some((ImageFormat::Tiff, "TIFF")); // BigTIFF
    }
    if pnm::is_meant(bytes) {
        return Some((ImageFormat::Pnm, "PNM"));
    }
    let format = ::image::guess_format(bytes).ok()?;
    let name = match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        _ => return None,
    };
    Some((format, name))
}

/// Refuses a size of 0 and one above the limit.
fn check_size(
    format: &'static str,
    width: u32,
    height: u32,
    options: &DecodeOptions,
) -> Result<(), DecodeError> {
    if width == 0 || height == 0 {
        return Err(DecodeError::corrupt(
            format,
            format!("a size of {width}x{height} pixels"),
        ));
    }
    let limit = options.max_pixels;
    if u64::from(width) * u64::from(height) > limit {
        return Err(DecodeError::TooLarge {
            format,
            width,
            height,
            limit,
        });
    }
    Ok(())
}

/// Bytes a codec may allocate for an image within the limit: four 16-bit channels, twice over.
fn allowance(options: &DecodeOptions) -> u64 {
    options.max_pixels.saturating_mul(16).saturating_add(1 << 24)
}

/// The formats that the `image` crate reads as Pillow does.
fn decode_simple(
    bytes: &[u8],
    format: ImageFormat,
    name: &'static str,
    options: &DecodeOptions,
) -> Result<RgbImage, DecodeError> {
    let corrupt = |error: ::image::ImageError| DecodeError::corrupt(name, error);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(allowance(options));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(corrupt)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, options)?;
    let orientation = match options.exif {
        true => decoder.orientation().map_err(corrupt)?,
        false => Orientation::NoTransforms,
    };
    let decoded = DynamicImage::from_decoder(decoder).map_err(corrupt)?;
    let mut image = to_rgb(decoded, options.background)
        .ok_or_else(|| DecodeError::corrupt(name, "unexpected sample layout"))?;
    if format == ImageFormat::Bmp
        && let Some(bits) = bmp_channel_bits(bytes)
    {
        image = spread_as_pillow(image, bits);
    }
    Ok(orient(image, orientation))
}

/// Refuses a WebP that is shorter than it says: an animation's first frame may be whole, but the file is not.
fn check_webp_length(bytes: &[u8]) -> Result<(), DecodeError> {
    let length = bytes
        .get(4..8)
        .and_then(|raw| raw.try_into().ok())
        .map(u32::from_le_bytes);
    match length {
        Some(length) if u64::from(length) + 8 <= bytes.len() as u64 => Ok(()),
        _ => Err(DecodeError::corrupt(
            "WebP",
            format!("cut short after {} bytes", bytes.len()),
        )),
    }
}

/// Bits of red, green and blue in a BMP of 16 bits a pixel.
fn bmp_channel_bits(bytes: &[u8]) -> Option<[u32; 3]> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if bytes.get(28..30)? != [16, 0] {
        return None;
    }
    match number(30)? {
        3 => Some([
            number(54)?.count_ones(),
            number(58)?.count_ones(),
            number(62)?.count_ones(),
        ]),
        _ => Some([5; 3]),
    }
}

/// Pillow rounds down where the codec rounds to the nearest in spreading `bits` over 0 to 255.
fn spread_as_pillow(image: RgbImage, bits: [u32; 3]) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let max = bits.map(|bits| (1_u32 << bits.clamp(1, 8)) - 1);
    let mut data = image.into_data();
    for pixel in data.chunks_exact_mut(3) {
        for (sample, max) in pixel.iter_mut().zip(max) {
            let level = (u32::from(*sample) * max + 127) / 255;
            *sample = (level * 255 / max) as u8;
        }
    }
    RgbImage::new(width, height, data).expect("no sample came or went")
}

/// Converts decoded samples of 8 bits; `None` for others.
fn to_rgb(decoded: DynamicImage, background: Option<[u8; 3]>) -> Option<RgbImage> {
    let (width, height) = (decoded.width(), decoded.height());
    let over = |colour: [u8; 3], alpha: u8| alpha::over(colour, alpha, background);
    let data: Vec<u8> = match &decoded {
        DynamicImage::ImageRgb8(_) => decoded.into_rgb8().into_raw(),
        DynamicImage::ImageLuma8(image) => image.as_raw().iter().flat_map(|&grey| [grey; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => image
            .as_raw()
            .chunks_exact(2)
            .flat_map(|p| over([p[0]; 3], p[1]))
            .collect(),
        DynamicImage::ImageRgba8(image) => image
            .as_raw()
            .chunks_exact(4)
            .flat_map(|p| over([p[0], p[1], p[2]], p[3]))
            .collect(),
        _ => return None,
    };
    RgbImage::new(width, height, data)
}

/// Turns and mirrors an image as `orientation` asks.
fn orient(image: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let (width, height) = (image.width(), image.height());
    let buffer = ::image::RgbImage::from_raw(width, height, image.into_data());
    let mut turned = DynamicImage::ImageRgb8(buffer.expect("an RgbImage's data fits its size"));
    turned.apply_orientation(orientation);
    let (width, height) = (turned.width(), turned.height());
    RgbImage::new(width, height, turned.into_rgb8().into_raw()).expect("turning keeps the number of pixels")
}

/// Pillow's conversion of one CMYK pixel to RGB: each ink darkens what black leaves.
fn cmyk_to_rgb(cmyk: [u8; 4]) -> [u8; 3] {
    let light = 255 - i32::from(cmyk[3]);
    [0, 1, 2].map(|ink| {
        let product = i32::from(cmyk[ink]) * light + 128;
        let darkened = ((product >> 8) + product) >> 8; // product / 255, rounded
        (light - darkened).clamp(0, 255) as u8
    })
}
