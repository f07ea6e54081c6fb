//! PBM, PGM and PPM, plain and binary, and grey PFM, as Pillow reads them: samples of another maximum than 255 are spread over
//! 0 to 255 with ties to even; grey of more than 8 bits is spread over 0 to 65535 first and then saturates at 255, as 16-bit
//! grey does in every format; floats keep their whole part and saturate. With a range ([`super::range`]) samples of more than 8
//! bits are mapped by it as they are stored. The rows of a PFM stand from bottom to top.

use super::range::Narrow;
use super::{DecodeError, DecodeOptions, check_size};
use crate::data::image::RgbImage;

const NAME: &str = "PNM";
/// A longer number is none.
const MAX_DIGITS: usize = 10;
const BLACK: u8 = 0;
const WHITE: u8 = 255;

/// Whether the first bytes announce one of these: a letter, a digit, and a blank.
pub(super) fn is_meant(bytes: &[u8]) -> bool {
    matches!(bytes, [b'P', b'1'..=b'6' | b'f', blank, ..] if is_blank(*blank))
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | 0x09..=0x0d)
}

/// What the header says of the samples.
struct Layout {
    width: usize,
    height: usize,
    channels: usize,
    maximum: u32,
}

impl Layout {
    /// Samples of an image.
    fn samples(&self) -> usize {
        self.width * self.height * self.channels
    }

    /// A sample as Pillow has it after `convert("RGB")`, or by the range of wide samples.
    fn narrowed(&self, sample: u32, wide: &mut Narrow) -> u8 {
        let is_wide = self.maximum > 255;
        if is_wide && wide.maps() {
            return wide.narrow(f64::from(sample));
        }
        let share = f64::from(sample) / f64::from(self.maximum);
        match is_wide && self.channels == 1 {
            true => wide.narrow((share * 65535.0).round_ties_even()),
            false => (share * 255.0).round_ties_even() as u8,
        }
    }

    /// One byte a sample as red, green and blue.
    fn image(&self, samples: Vec<u8>) -> Result<RgbImage, DecodeError> {
        let data = match self.channels {
            1 => samples.into_iter().flat_map(|grey| [grey; 3]).collect(),
            _ => samples,
        };
        // The size was checked against the limit, which fits.
        let (width, height) = (self.width as u32, self.height as u32);
        RgbImage::new(width, height, data).ok_or_else(|| wrong("no pixels"))
    }
}

fn wrong(reason: impl ToString) -> DecodeError {
    DecodeError::corrupt(NAME, reason)
}

fn cut(expected: usize, found: usize) -> DecodeError {
    wrong(format!("cut short: expected {expected} samples, found {found}"))
}

pub(super) fn decode(
    bytes: &[u8],
    options: &DecodeOptions,
    lost: &mut bool,
) -> Result<RgbImage, DecodeError> {
    let kind = bytes.get(1).copied().unwrap_or_default();
    let mut header = Tokens { bytes, at: 3 };
    let (width, height) = (header.number()?, header.number()?);
    check_size(NAME, width, height, options)?;
    let mut layout = Layout {
        width: width as usize,
        height: height as usize,
        channels: if matches!(kind, b'3' | b'6') { 3 } else { 1 },
        maximum: 1,
    };
    match kind {
        b'1' => return layout.image(plain_bits(&header, layout.samples())?),
        b'4' => return layout.image(packed_bits(header.rest(), &layout)?),
        b'f' => {
            let scale: f64 = header.token()?.parse().map_err(wrong)?;
            if scale == 0.0 || !scale.is_finite() {
                return Err(wrong(format!("expected a scale other than 0, found {scale}")));
            }
            let mut wide = Narrow::new(options.sample_range, 1.0);
            let samples = floats(header.rest(), &layout, scale < 0.0, &mut wide)?;
            *lost = wide.lost_most();
            return layout.image(samples);
        }
        _ => {}
    }
    layout.maximum = header.number()?;
    if !(1..=65535).contains(&layout.maximum) {
        let reason = format!("expected a maximum from 1 to 65535, found {}", layout.maximum);
        return Err(wrong(reason));
    }
    let mut wide = Narrow::new(options.sample_range, f64::from(layout.maximum));
    let samples = match kind {
        b'2' | b'3' => plain_samples(header, &layout, &mut wide)?,
        _ => binary_samples(header.rest(), &layout, &mut wide)?,
    };
    *lost = wide.lost_most();
    layout.image(samples)
}

/// Numbers in text, with blanks between them and comments from `#` to the end of the line.
struct Tokens<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    /// What stands behind the last token and the one blank after it.
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// The next token; comments within are left out, as Pillow does. `None` at the end.
    fn next(&mut self) -> Result<Option<String>, DecodeError> {
        let mut token = String::new();
        while let Some(&byte) = self.bytes.get(self.at) {
            self.at += 1;
            match byte {
                b'#' => {
                    let line = self.rest().iter().position(|byte| matches!(byte, b'\r' | b'\n'));
                    self.at = line.map_or(self.bytes.len(), |end| self.at + end + 1);
                }
                byte if is_blank(byte) && token.is_empty() => {}
                byte if is_blank(byte) => break,
                _ if token.len() == MAX_DIGITS => {
                    return Err(wrong(format!(
                        "expected a number, found more than {MAX_DIGITS} digits"
                    )));
                }
                byte => token.push(char::from(byte)),
            }
        }
        Ok((!token.is_empty()).then_some(token))
    }

    fn token(&mut self) -> Result<String, DecodeError> {
        self.next()?.ok_or_else(|| wrong("its header is cut short"))
    }

    fn number(&mut self) -> Result<u32, DecodeError> {
        let token = self.token()?;
        token
            .parse()
            .map_err(|_| wrong(format!("expected a number in its header, found {token:?}")))
    }
}

/// Digits 0 and 1, with or without blanks between them.
fn plain_bits(header: &Tokens<'_>, count: usize) -> Result<Vec<u8>, DecodeError> {
    let mut samples = Vec::new();
    let mut in_comment = false;
    for &byte in header.rest() {
        match byte {
            b'\r' | b'\n' if in_comment => in_comment = false,
            _ if in_comment => {}
            b'#' => in_comment = true,
            byte if is_blank(byte) => {}
            _ if samples.len() == count => break,
            b'0' => samples.push(WHITE),
            b'1' => samples.push(BLACK),
            byte => return Err(wrong(format!("expected 0 or 1, found byte {byte}"))),
        }
    }
    match samples.len() == count {
        true => Ok(samples),
        false => Err(cut(count, samples.len())),
    }
}

/// Eight pixels a byte, the first in the highest bit; every row begins with a new byte.
fn packed_bits(data: &[u8], layout: &Layout) -> Result<Vec<u8>, DecodeError> {
    let stride = layout.width.div_ceil(8);
    if data.len() < stride * layout.height {
        return Err(cut(layout.samples(), data.len().saturating_mul(8)));
    }
    let rows = data.chunks_exact(stride).take(layout.height);
    let pixel = |row: &[u8], x: usize| match row[x / 8] >> (7 - x % 8) & 1 {
        0 => WHITE,
        _ => BLACK,
    };
    Ok(rows
        .flat_map(|row| (0..layout.width).map(move |x| pixel(row, x)))
        .collect())
}

fn plain_samples(mut data: Tokens<'_>, layout: &Layout, wide: &mut Narrow) -> Result<Vec<u8>, DecodeError> {
    let mut samples = Vec::new();
    while samples.len() < layout.samples() {
        let token = data.next()?.ok_or_else(|| cut(layout.samples(), samples.len()))?;
        let sample: u32 = token
            .parse()
            .map_err(|_| wrong(format!("expected a number, found {token:?}")))?;
        if sample > layout.maximum {
            return Err(wrong(format!(
                "expected samples up to {}, found {sample}",
                layout.maximum
            )));
        }
        samples.push(layout.narrowed(sample, wide));
    }
    Ok(samples)
}

fn binary_samples(data: &[u8], layout: &Layout, wide: &mut Narrow) -> Result<Vec<u8>, DecodeError> {
    let count = layout.samples();
    let width = if layout.maximum > 255 { 2 } else { 1 };
    let data = data
        .get(..count * width)
        .ok_or_else(|| cut(count, data.len() / width))?;
    Ok(match (width, layout.maximum) {
        (1, 255) => data.to_vec(),
        (1, _) => data
            .iter()
            .map(|&sample| layout.narrowed(sample.into(), wide))
            .collect(),
        _ => {
            let (pairs, _) = data.as_chunks::<2>();
            pairs
                .iter()
                .map(|&pair| layout.narrowed(u16::from_be_bytes(pair).into(), wide))
                .collect()
        }
    })
}

fn floats(
    data: &[u8],
    layout: &Layout,
    is_little_endian: bool,
    wide: &mut Narrow,
) -> Result<Vec<u8>, DecodeError> {
    let count = layout.samples();
    let data = data.get(..count * 4).ok_or_else(|| cut(count, data.len() / 4))?;
    let read = if is_little_endian {
        f32::from_le_bytes
    } else {
        f32::from_be_bytes
    };
    let (values, _) = data.as_chunks::<4>();
    let rows = values.chunks_exact(layout.width).rev();
    Ok(rows
        .flatten()
        .map(|&bytes| wide.narrow(f64::from(read(bytes))))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;

    use super::*;

    fn message(bytes: &[u8]) -> String {
        let error = crate::data::decode(bytes, &DecodeOptions::default()).unwrap_err();
        error.to_string()
    }

    #[test]
    fn every_kind_has_the_pixels_of_pillow() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let bytes = std::fs::read(fixtures.join("pnm.expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(
            expected.len(),
            std::fs::read_dir(fixtures.join("pnm")).unwrap().count()
        );
        for (name, pillow) in expected.tensors() {
            let file = std::fs::read(fixtures.join("pnm").join(&name)).unwrap();
            let image = crate::data::decode(&file, &DecodeOptions::default()).unwrap();
            let size = [image.height() as usize, image.width() as usize, 3];
            assert_eq!(
                (size.as_slice(), image.data()),
                (pillow.shape(), pillow.data()),
                "{name}"
            );
        }
    }

    #[test]
    fn wide_samples_follow_the_range_and_what_saturates_is_told() {
        use crate::data::SampleRange;

        let read = |file: &[u8], range: SampleRange| {
            let options = DecodeOptions {
                sample_range: range,
                ..DecodeOptions::default()
            };
            let mut lost = false;
            let image = decode(file, &options, &mut lost).unwrap();
            (image.data().iter().step_by(3).copied().collect::<Vec<u8>>(), lost)
        };
        let grey = b"P2\n4 1\n1000\n0 100 500 1000";
        assert_eq!(read(grey, SampleRange::Clip), (vec![0, 255, 255, 255], true));
        assert_eq!(read(grey, SampleRange::Auto), (vec![0, 26, 128, 255], false));
        let range = SampleRange::linear(100.0, 500.0).unwrap();
        assert_eq!(read(grey, range), (vec![0, 0, 255, 255], false));
        // Colour of any maximum is spread over 8 bits, so that nothing of it saturates.
        let colour = b"P3\n1 1\n1000\n0 500 1000";
        assert_eq!(read(colour, SampleRange::Clip), (vec![0], false));
        // 8 bits are left alone.
        assert_eq!(read(b"P2\n2 1\n255\n7 200", range), (vec![7, 200], false));
        let floats = [
            b"Pf\n2 1\n-1\n".to_vec(),
            0.25f32.to_le_bytes().to_vec(),
            1f32.to_le_bytes().to_vec(),
        ]
        .concat();
        assert_eq!(read(&floats, SampleRange::Auto), (vec![64, 255], false));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(message(b"P5\n3 3\n255\n12345678").contains("cut short: expected 9 samples, found 8"));
        assert!(message(b"P6\n1 1\n65535\n12345").contains("cut short"));
        assert!(message(b"P4\n9 2\n123").contains("cut short"));
        assert!(message(b"P1\n2 2\n1 0 1").contains("cut short"));
        assert!(message(b"P2\n2 2\n9\n1 2 3").contains("cut short"));
        assert!(message(b"P1\n2 2\n1 0 2 1").contains("expected 0 or 1"));
        assert!(message(b"P2\n1 1\n9\n10").contains("up to 9, found 10"));
        assert!(message(b"P5\n1 1\n0\n1").contains("maximum from 1 to 65535, found 0"));
        assert!(message(b"P5\n1 x\n").contains("expected a number in its header"));
        assert!(message(b"P5\n1").contains("cut short"));
        assert!(message(b"P5\n0 4\n255\n").contains("0x4"));
        assert!(message(b"Pf\n1 1\n0\n1234").contains("scale"));
        assert!(message(b"P6\n99999 99999\n255\n").contains("99999x99999"));
        assert!(!is_meant(b"P7\nWIDTH 1") && !is_meant(b"P5#\n1 1") && !is_meant(b"Pipe"));
    }
}
