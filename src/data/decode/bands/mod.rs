//! From the bytes of a file to bands: every sample as it is stored, scaled by the range that [`SampleRange`] states, of PNG, TIFF and
//! NumPy's `.npy`; the red, green and blue of formats that have no others. No colour is made of samples, and none is rounded. A
//! range is needed where samples are not of 8 bits, and a value that is not finite is an error.

mod npy;
mod png;
mod tiff;

use ::image::ImageFormat;

use super::{DecodeError, DecodeOptions, SampleRange, decode_counting, format_of, range};
use crate::data::bands::{BandImage, Bands};
use crate::quiet::quietly;

pub(super) use npy::is_meant as is_npy;

/// Decodes an image of `bands`, called `name` in the notice of [`range::take_notice`] where it loses most of its samples to the ends
/// of the range.
///
/// # Errors
/// As [`super::decode`]; another number of bands, samples without a range, values that are not finite.
pub fn decode_bands(
    bytes: &[u8],
    options: &DecodeOptions,
    bands: Bands,
    name: impl FnOnce() -> String,
) -> Result<BandImage, DecodeError> {
    let mut lost = false;
    let image = read(bytes, options, bands, &mut lost)?;
    if lost {
        range::note(name());
    }
    Ok(image)
}

fn read(
    bytes: &[u8],
    options: &DecodeOptions,
    bands: Bands,
    lost: &mut bool,
) -> Result<BandImage, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let (format, name) = match is_npy(bytes) {
        true => (None, npy::NAME),
        false => format_of(bytes)
            .map(|(format, name)| (Some(format), name))
            .ok_or(DecodeError::UnknownFormat)?,
    };
    let mut target = Target {
        format: name,
        bands,
        range: options.sample_range,
        lost,
    };
    let read = quietly(|| match format {
        None => npy::read(bytes, options, &mut target),
        Some(ImageFormat::Png) => png::read(bytes, options, &mut target),
        Some(ImageFormat::Tiff) => tiff::read(bytes, options, &mut target),
        Some(ImageFormat::Pnm) => Err(target.refuse("bands are read from PNG, TIFF and npy, found PNM")),
        Some(_) => {
            let image = decode_counting(bytes, options, &mut false)?;
            let layout = Layout::interleaved(image.width(), image.height(), 3);
            target.scaled(layout, image.data(), f64::from, Samples::BYTES)
        }
    });
    read.unwrap_or_else(|_| Err(DecodeError::corrupt(name, "the decoder gave up on damaged data")))
}

/// What kind of numbers samples are.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Samples {
    bits: u8,
    /// The largest value that `auto` takes: of integers the type's, of floats 1.
    max: f64,
}

impl Samples {
    const BYTES: Self = Self { bits: 8, max: 255.0 };

    fn unsigned(bits: u8) -> Self {
        Self {
            bits,
            max: 2_f64.powi(i32::from(bits)) - 1.0,
        }
    }

    fn signed(bits: u8) -> Self {
        Self {
            max: Self::unsigned(bits - 1).max,
            bits,
        }
    }

    fn float(bits: u8) -> Self {
        Self { bits, max: 1.0 }
    }
}

/// Where samples lie: how many there are from one row, column or band to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Layout {
    width: u32,
    height: u32,
    bands: usize,
    row: usize,
    column: usize,
    band: usize,
}

impl Layout {
    /// `[height, width, bands]`.
    fn interleaved(width: u32, height: u32, bands: usize) -> Self {
        Self {
            width,
            height,
            bands,
            row: width as usize * bands,
            column: bands,
            band: 1,
        }
    }

    /// `[bands, height, width]`.
    fn planar(width: u32, height: u32, bands: usize) -> Self {
        Self {
            width,
            height,
            bands,
            row: width as usize,
            column: 1,
            band: width as usize * height as usize,
        }
    }

    fn len(&self) -> usize {
        self.width as usize * self.height as usize * self.bands
    }
}

/// What is wanted of a file.
struct Target<'a> {
    format: &'static str,
    bands: Bands,
    range: SampleRange,
    /// Becomes true when more than half of the samples lie outside of the range.
    lost: &'a mut bool,
}

impl Target<'_> {
    fn refuse(&self, reason: impl ToString) -> DecodeError {
        DecodeError::corrupt(self.format, reason)
    }

    /// Refuses another number of bands.
    fn expect_bands(&self, found: usize) -> Result<(), DecodeError> {
        let expected = self.bands.count();
        if found == expected {
            return Ok(());
        }
        Err(self.refuse(format!("expected {}, found {found}", counted(expected))))
    }

    /// What becomes 0 and what 1.
    fn ends(&self, samples: Samples) -> Result<(f64, f64), DecodeError> {
        match self.range.ends(samples.max) {
            Some(ends) => Ok(ends),
            None if samples == Samples::BYTES => Ok((0.0, 255.0)),
            None => Err(self.refuse(format!(
                "samples of {} bits need a range: expected --sample-range LOW,HIGH or auto, found none",
                samples.bits
            ))),
        }
    }

    /// The image of `stored` samples, as many as `layout` has, each of which `value` makes a number of.
    fn scaled<T: Copy>(
        &mut self,
        layout: Layout,
        stored: &[T],
        value: impl Fn(T) -> f64,
        samples: Samples,
    ) -> Result<BandImage, DecodeError> {
        self.expect_bands(layout.bands)?;
        if stored.len() != layout.len() {
            let found = stored.len();
            return Err(self.refuse(format!("expected {} samples, found {found}", layout.len())));
        }
        let (low, high) = self.ends(samples)?;
        let mut data = Vec::with_capacity(stored.len());
        let mut outside = 0;
        for y in 0..layout.height as usize {
            for x in 0..layout.width as usize {
                for band in 0..layout.bands {
                    let value = value(stored[y * layout.row + x * layout.column + band * layout.band]);
                    if !value.is_finite() {
                        let reason = format!(
                            "expected finite samples, found {value} in band {band}, row {y}, column {x} (from 0)"
                        );
                        return Err(self.refuse(reason));
                    }
                    outside += usize::from(!(low..=high).contains(&value));
                    data.push(((value - low) / (high - low)).clamp(0.0, 1.0) as f32);
                }
            }
        }
        *self.lost = outside * 2 > stored.len();
        BandImage::new(layout.width, layout.height, layout.bands, data)
            .ok_or_else(|| self.refuse("no pixels"))
    }
}

/// `1 band`, `5 bands`.
fn counted(bands: usize) -> String {
    match bands {
        1 => "1 band".to_owned(),
        n => format!("{n} bands"),
    }
}

#[cfg(test)]
mod tests;
