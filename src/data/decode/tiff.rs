//! The first page of a TIFF: bilevel, grey of 1 to 64 bits, palette, RGB, CMYK and YCbCr, interleaved or in planes. Its
//! own orientation is always applied, as Pillow does on loading.

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::tiff::ColorType;
use ::tiff::decoder::{Decoder, DecodingResult, Limits};
use ::tiff::tags::Tag;

use super::range::{Narrow, SampleRange};
use super::{DecodeError, DecodeOptions, allowance, alpha, check_size, cmyk_to_rgb, orient};
use crate::data::image::RgbImage;

const NAME: &str = "TIFF";
const PHOTOMETRIC_TAG: u16 = 262;
const WHITE_IS_ZERO: u16 = 0;
pub(super) const BLACK_IS_ZERO: u16 = 1;
const PALETTE: u16 = 3;
/// `ExtraSamples`: colours that have already been multiplied by alpha.
const ASSOCIATED_ALPHA: u16 = 1;
/// `ExtraSamples`: alpha that nothing has been multiplied by.
const UNASSOCIATED_ALPHA: u16 = 2;

type Reader<'a> = Decoder<Cursor<&'a [u8]>>;

/// How the samples of a page become colours.
enum Colours {
    Grey,
    /// Grey and alpha of 8 bits each.
    GreyAlpha,
    /// Red, green and blue of each index.
    Palette(Vec<[u8; 3]>),
    Rgb,
    /// RGB and alpha.
    Rgba,
    /// RGB that has been multiplied by the fourth sample.
    Premultiplied,
    Cmyk,
    YCbCr,
}

pub(super) fn decode(
    bytes: &[u8],
    options: &DecodeOptions,
    lost: &mut bool,
) -> Result<RgbImage, DecodeError> {
    // The codec knows no palettes.
    match as_grey(bytes, PALETTE) {
        Some(grey) => decode_page(&grey, options, true, lost),
        None => decode_page(bytes, options, false, lost),
    }
}

/// A copy of a file of this `photometric` interpretation that says its samples are grey, of which the codec reads any; `None` for others.
pub(super) fn as_grey(bytes: &[u8], photometric: u16) -> Option<Vec<u8>> {
    let at = photometric_offset(bytes)?;
    if bytes[at..at + 2] != u16_bytes(bytes, photometric) {
        return None;
    }
    let mut grey = bytes.to_vec();
    grey[at..at + 2].copy_from_slice(&u16_bytes(bytes, BLACK_IS_ZERO));
    Some(grey)
}

fn decode_page(
    bytes: &[u8],
    options: &DecodeOptions,
    palette: bool,
    lost: &mut bool,
) -> Result<RgbImage, DecodeError> {
    let mut limits = Limits::default();
    let allowed = usize::try_from(allowance(options)).unwrap_or(usize::MAX);
    limits.decoding_buffer_size = allowed;
    limits.intermediate_buffer_size = allowed;
    let mut reader = Decoder::new(Cursor::new(bytes))
        .map_err(corrupt)?
        .with_limits(limits);
    let (width, height) = reader.dimensions().map_err(corrupt)?;
    check_size(NAME, width, height, options)?;
    let kind = reader.colortype().map_err(corrupt)?;
    let orientation: Option<u16> = reader.find_tag_unsigned(Tag::Orientation).map_err(corrupt)?;
    let (colours, bits) = colours(&mut reader, kind, palette, options.sample_range)?;

    let wide = Wide {
        range: options.sample_range,
        lost,
    };
    let (samples, channels) = read_samples(&mut reader, width, height, bits, &colours, wide)?;
    let data = to_rgb(&samples, channels, &colours, options.background)?;
    let image = RgbImage::new(width, height, data).ok_or_else(|| damaged("fewer samples than pixels"))?;
    let orientation = orientation.and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?));
    Ok(orient(image, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// What the samples mean, and how many bits each has.
fn colours(
    reader: &mut Reader,
    kind: ColorType,
    palette: bool,
    range: SampleRange,
) -> Result<(Colours, u8), DecodeError> {
    let unsupported = || DecodeError::corrupt(NAME, format!("samples of kind {kind:?} are not supported"));
    let extra: Option<Vec<u16>> = reader.find_tag_unsigned_vec(Tag::ExtraSamples).map_err(corrupt)?;
    let extra = extra.and_then(|kinds| kinds.first().copied());
    let found = match kind {
        ColorType::Gray(bits @ (1 | 2 | 4 | 8)) if palette => {
            (Colours::Palette(palette_of(reader, bits)?), bits)
        }
        _ if palette => return Err(unsupported()),
        ColorType::GrayA(8)
        | ColorType::Multiband {
            bit_depth: 8,
            num_samples: 2..,
        } if extra == Some(UNASSOCIATED_ALPHA) => (Colours::GreyAlpha, 8),
        ColorType::Gray(bits) | ColorType::GrayA(bits) => (Colours::Grey, bits),
        ColorType::Multiband { bit_depth, .. } => (Colours::Grey, bit_depth),
        ColorType::RGB(bits) => (Colours::Rgb, bits),
        ColorType::RGBA(bits) => match extra {
            Some(ASSOCIATED_ALPHA) => (Colours::Premultiplied, bits),
            Some(UNASSOCIATED_ALPHA) => (Colours::Rgba, bits),
            _ => (Colours::Rgb, bits),
        },
        ColorType::CMYK(bits) => (Colours::Cmyk, bits),
        ColorType::YCbCr(bits) => (Colours::YCbCr, bits),
        _ => return Err(unsupported()),
    };
    match (&found.0, found.1) {
        (Colours::Grey, _) | (_, 8 | 16) | (Colours::Palette(_), _) => Ok(found),
        // Pillow reads none of these, so nothing says what they become until the user does.
        (Colours::Rgb | Colours::Rgba | Colours::Premultiplied, 32 | 64) if range.is_clip() => {
            Err(DecodeError::corrupt(
                NAME,
                format!(
                    "colour samples of {bits} bits need --sample-range auto or LOW,HIGH",
                    bits = found.1
                ),
            ))
        }
        (Colours::Rgb | Colours::Rgba | Colours::Premultiplied, 32 | 64) => Ok(found),
        _ => Err(unsupported()),
    }
}

/// The colour map: all reds, then all greens, then all blues, 16 bits each, of which Pillow keeps the high byte.
fn palette_of(reader: &mut Reader, bits: u8) -> Result<Vec<[u8; 3]>, DecodeError> {
    let map = reader.get_tag_u16_vec(Tag::ColorMap).map_err(corrupt)?;
    let size = 1_usize << bits;
    if map.len() != size * 3 {
        return Err(damaged(format!(
            "a colour map of {} values, expected {}",
            map.len(),
            size * 3
        )));
    }
    let colour = |index: usize| [0, 1, 2].map(|channel| (map[channel * size + index] >> 8) as u8);
    Ok((0..size).map(colour).collect())
}

/// What becomes of samples wider than 8 bits, and whether most were lost.
struct Wide<'a> {
    range: SampleRange,
    lost: &'a mut bool,
}

impl Wide<'_> {
    /// Samples of a type that goes up to `max`; those that `is_alpha` finds by their place have the type's whole range.
    fn narrow(
        self,
        values: impl Iterator<Item = f64>,
        max: f64,
        is_alpha: impl Fn(usize) -> bool,
    ) -> Vec<u8> {
        let mut colours = Narrow::new(self.range, max);
        let mut alphas = Narrow::new(SampleRange::Auto, max);
        let narrow = |(place, value)| match is_alpha(place) {
            true => alphas.narrow(value),
            false => colours.narrow(value),
        };
        let samples = values.enumerate().map(narrow).collect();
        *self.lost = colours.lost_most();
        samples
    }
}

/// All samples as 8 bits, interleaved, and how many a pixel has.
fn read_samples(
    reader: &mut Reader,
    width: u32,
    height: u32,
    bits: u8,
    colours: &Colours,
    wide: Wide,
) -> Result<(Vec<u8>, usize), DecodeError> {
    let area = width as usize * height as usize;
    let photometric: Option<u16> = reader
        .find_tag_unsigned(Tag::PhotometricInterpretation)
        .map_err(corrupt)?;
    let mut buffer = DecodingResult::U8(Vec::new());
    let layout = reader.read_image_to_buffer(&mut buffer).map_err(corrupt)?;
    let planar = layout.planes > 1;
    let samples = match buffer {
        DecodingResult::U8(packed) if bits < 8 => {
            let scale = match colours {
                Colours::Grey => 255 / ((1 << bits) - 1),
                _ => 1,
            };
            return Ok((unpack(&packed, width as usize, bits, scale), 1));
        }
        DecodingResult::U8(samples) => samples,
        DecodingResult::U16(samples) if keeps_high_byte(colours, wide.range) => {
            samples.iter().map(|&sample| (sample >> 8) as u8).collect()
        }
        buffer => {
            // 16-bit grey is, unlike 8-bit grey, not inverted where white is 0; the codec has inverted it.
            let mirrored = photometric == Some(WHITE_IS_ZERO);
            let (values, max) = values(&buffer, bits, mirrored, wide.range)
                .ok_or_else(|| damaged(format!("{bits}-bit samples of an unsupported kind")))?;
            let channels = (values.len() / area).max(1);
            let has_alpha = matches!(colours, Colours::Rgba | Colours::Premultiplied);
            wide.narrow(values, max, |place| {
                let channel = if planar { place / area } else { place % channels };
                has_alpha && channel == 3
            })
        }
    };
    let channels = samples.len() / area;
    if channels == 0 || samples.len() != channels * area {
        return Err(damaged(format!(
            "{} samples for {width}x{height} pixels",
            samples.len()
        )));
    }
    Ok((
        if planar {
            interleave(&samples, channels)
        } else {
            samples
        },
        channels,
    ))
}

/// Whether Pillow's way with 16 bits is to keep the high byte: of all colours where no range is asked for, and of those that
/// no range applies to.
fn keeps_high_byte(colours: &Colours, range: SampleRange) -> bool {
    match colours {
        Colours::Cmyk | Colours::YCbCr => true,
        Colours::Grey => false,
        _ => range.is_clip(),
    }
}

/// The numbers that samples of more than 8 bits are, and the largest of their type; `None` for others.
fn values(
    buffer: &DecodingResult,
    bits: u8,
    mirrored: bool,
    range: SampleRange,
) -> Option<(Box<dyn ExactSizeIterator<Item = f64> + '_>, f64)> {
    let largest = |bits: u8| 2_f64.powi(i32::from(bits)) - 1.0;
    let (unsigned, signed) = (largest(bits), largest(bits - 1));
    let stored = move |sample: u16| if mirrored { u16::MAX - sample } else { sample };
    // Pillow keeps 32 bits as signed ones.
    let word = move |sample: u32| match range.is_clip() {
        true => f64::from(sample as i32),
        false => f64::from(sample),
    };
    Some(match buffer {
        DecodingResult::U16(samples) => (
            Box::new(samples.iter().map(move |&v| f64::from(stored(v)))),
            unsigned,
        ),
        DecodingResult::U32(samples) => (Box::new(samples.iter().map(move |&v| word(v))), unsigned),
        DecodingResult::U64(samples) => (Box::new(samples.iter().map(|&v| v as f64)), unsigned),
        DecodingResult::I16(samples) => (Box::new(samples.iter().map(|&v| f64::from(v))), signed),
        DecodingResult::I32(samples) => (Box::new(samples.iter().map(|&v| f64::from(v))), signed),
        DecodingResult::I64(samples) => (Box::new(samples.iter().map(|&v| v as f64)), signed),
        DecodingResult::F16(samples) => (Box::new(samples.iter().map(|v| v.to_f64())), 1.0),
        DecodingResult::F32(samples) => (Box::new(samples.iter().map(|&v| f64::from(v))), 1.0),
        DecodingResult::F64(samples) => (Box::new(samples.iter().copied()), 1.0),
        _ => return None,
    })
}

/// Takes samples of 1, 2 or 4 bits out of rows that begin at whole bytes.
fn unpack(packed: &[u8], width: usize, bits: u8, scale: u8) -> Vec<u8> {
    let per_byte = usize::from(8 / bits);
    let mask = (1_u8 << bits) - 1;
    let rows = packed.chunks_exact(width.div_ceil(per_byte));
    let sample = |row: &[u8], x: usize| {
        let shift = (per_byte - 1 - x % per_byte) * usize::from(bits);
        ((row[x / per_byte] >> shift) & mask) * scale
    };
    rows.flat_map(|row| (0..width).map(move |x| sample(row, x)))
        .collect()
}

/// `[channels, pixels]` to `[pixels, channels]`.
fn interleave(planes: &[u8], channels: usize) -> Vec<u8> {
    let area = planes.len() / channels;
    let pixel = |place: usize| (0..channels).map(move |channel| planes[channel * area + place]);
    (0..area).flat_map(pixel).collect()
}

/// `[pixels, channels]` to `[pixels, 3]`, alpha over `background`.
fn to_rgb(
    samples: &[u8],
    channels: usize,
    colours: &Colours,
    background: Option<[u8; 3]>,
) -> Result<Vec<u8>, DecodeError> {
    let needed = match colours {
        Colours::Grey | Colours::Palette(_) => 1,
        Colours::GreyAlpha => 2,
        Colours::Rgb | Colours::YCbCr => 3,
        Colours::Rgba | Colours::Premultiplied | Colours::Cmyk => 4,
    };
    if channels < needed {
        return Err(damaged(format!("{channels} samples a pixel, expected {needed}")));
    }
    let pixels = samples.chunks_exact(channels);
    Ok(match colours {
        Colours::Grey => pixels.flat_map(|p| [p[0]; 3]).collect(),
        Colours::GreyAlpha => pixels
            .flat_map(|p| alpha::over([p[0]; 3], p[1], background))
            .collect(),
        Colours::Palette(colours) => pixels.flat_map(|p| colours[usize::from(p[0])]).collect(),
        Colours::Rgb => pixels.flat_map(|p| [p[0], p[1], p[2]]).collect(),
        Colours::Rgba => pixels
            .flat_map(|p| alpha::over([p[0], p[1], p[2]], p[3], background))
            .collect(),
        Colours::Premultiplied => pixels
            .flat_map(|p| alpha::over(divide_by_alpha([p[0], p[1], p[2]], p[3]), p[3], background))
            .collect(),
        Colours::Cmyk => pixels
            .flat_map(|p| cmyk_to_rgb([p[0], p[1], p[2], p[3]]))
            .collect(),
        Colours::YCbCr => pixels.flat_map(|p| ycbcr_to_rgb([p[0], p[1], p[2]])).collect(),
    })
}

/// Undoes the multiplication by alpha, as Pillow's "RGBa" to "RGBA": rounded down and clipped.
fn divide_by_alpha(rgb: [u8; 3], alpha: u8) -> [u8; 3] {
    match alpha {
        0 | 255 => rgb,
        _ => rgb.map(|sample| (u32::from(sample) * 255 / u32::from(alpha)).min(255) as u8),
    }
}

/// JPEG's conversion (ITU-R BT.601, full range), rounded.
fn ycbcr_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    let channels = [
        y + 1.402 * cr,
        y - 0.344_136 * cb - 0.714_136 * cr,
        y + 1.772 * cb,
    ];
    channels.map(|channel| (channel + 0.5).floor() as u8)
}

/// Where the photometric interpretation of the first page stands in a classic (not Big) TIFF.
fn photometric_offset(bytes: &[u8]) -> Option<usize> {
    if bytes.get(2..4)? != u16_bytes(bytes, 42) {
        return None;
    }
    let directory = u32_at(bytes, 4)? as usize;
    let entries = usize::from(u16_at(bytes, directory)?);
    let mut places = (0..entries).map(|entry| directory + 2 + entry * 12);
    let entry = places.find(|&at| u16_at(bytes, at) == Some(PHOTOMETRIC_TAG))?;
    u16_at(bytes, entry + 8).map(|_| entry + 8)
}

/// Whether numbers in the file have their low byte first.
fn is_little_endian(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'I')
}

fn u16_bytes(bytes: &[u8], value: u16) -> [u8; 2] {
    if is_little_endian(bytes) {
        value.to_le_bytes()
    } else {
        value.to_be_bytes()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let raw = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(if is_little_endian(bytes) {
        u16::from_le_bytes(raw)
    } else {
        u16::from_be_bytes(raw)
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let raw = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(if is_little_endian(bytes) {
        u32::from_le_bytes(raw)
    } else {
        u32::from_be_bytes(raw)
    })
}

fn corrupt(error: ::tiff::TiffError) -> DecodeError {
    DecodeError::corrupt(NAME, error)
}

fn damaged(reason: impl ToString) -> DecodeError {
    DecodeError::corrupt(NAME, reason)
}
