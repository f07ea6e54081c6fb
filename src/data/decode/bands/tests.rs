//! Files are written here byte by byte, so that what is expected of them is known without a decoder.

use super::*;

/// A TIFF of one page, low byte first: `samples` as they lie in the file, each of the `bands` planes a strip of its own where it is
/// `planar`.
struct Tiff<'a> {
    sides: (u32, u32),
    bands: u16,
    bits: u16,
    format: u16, // 1 unsigned, 2 signed, 3 float
    photometric: u16,
    planar: bool,
    samples: &'a [u8],
}

impl Tiff<'_> {
    /// Samples beyond those of grey or colour.
    fn extra_samples(&self) -> u16 {
        self.bands - if self.photometric == 2 { 3 } else { 1 }
    }

    fn bytes(&self) -> Vec<u8> {
        let bands = u32::from(self.bands);
        let strips = if self.planar { bands } else { 1 };
        let strip = self.samples.len() as u32 / strips;
        let each = |value: u16| vec![u32::from(value); self.bands.into()];
        // Tag, whether values are of 32 bits, values.
        let mut entries: Vec<(u16, bool, Vec<u32>)> = vec![
            (256, true, vec![self.sides.0]),
            (257, true, vec![self.sides.1]),
            (258, false, each(self.bits)),
            (259, false, vec![1]),
            (262, false, vec![self.photometric.into()]),
            (273, true, (0..strips).map(|place| 8 + place * strip).collect()),
            (277, false, vec![bands]),
            (278, true, vec![self.sides.1]),
            (279, true, vec![strip; strips as usize]),
            (284, false, vec![if self.planar { 2 } else { 1 }]),
            (338, false, vec![0; usize::from(self.extra_samples())]),
            (339, false, each(self.format)),
        ];
        entries.retain(|(_, _, values)| !values.is_empty());
        let directory = 8 + self.samples.len() as u32;
        let mut bytes = b"II\x2a\0".to_vec();
        bytes.extend(directory.to_le_bytes());
        bytes.extend(self.samples);
        bytes.extend((entries.len() as u16).to_le_bytes());
        let mut elsewhere = Vec::new();
        let behind = directory + 2 + 12 * entries.len() as u32 + 4;
        for (tag, wide, values) in entries {
            let raw: Vec<u8> = match wide {
                true => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                false => values.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect(),
            };
            bytes.extend(tag.to_le_bytes());
            bytes.extend(if wide { 4_u16 } else { 3 }.to_le_bytes());
            bytes.extend((values.len() as u32).to_le_bytes());
            if raw.len() <= 4 {
                bytes.extend(&raw);
                bytes.extend(vec![0; 4 - raw.len()]);
            } else {
                bytes.extend((behind + elsewhere.len() as u32).to_le_bytes());
                elsewhere.extend(raw);
            }
        }
        bytes.extend([0; 4]);
        bytes.extend(elsewhere);
        bytes
    }
}

fn le16(samples: &[u16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

/// An `.npy` file whose header says `descr`, `order` and `shape`.
fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    header.push_str(&" ".repeat(64 - (header.len() + 11) % 64));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn png(color: ::png::ColorType, depth: ::png::BitDepth, width: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, width, 1);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == ::png::ColorType::Indexed {
        encoder.set_palette(vec![0; 6]);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    bytes
}

fn decoded(bytes: &[u8], bands: &str, range: &str) -> Result<BandImage, String> {
    let bands: Bands = bands.parse().unwrap();
    let options = DecodeOptions {
        sample_range: range.parse().unwrap(),
        bands: Some(bands),
        ..DecodeOptions::default()
    };
    decode_bands(bytes, &options, bands, || "test".to_owned()).map_err(|error| error.to_string())
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
    }
}

#[test]
fn samples_of_a_tiff_come_interleaved_or_in_planes() {
    // Two pixels of five bands.
    let chunky = le16(&[0, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 10_000]);
    let planes = le16(&[0, 5000, 1000, 6000, 2000, 7000, 3000, 8000, 4000, 10_000]);
    let expected = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0];
    // As grey with more samples, and as colour with more.
    for photometric in [1, 2] {
        for (planar, samples) in [(false, &chunky), (true, &planes)] {
            let file = Tiff {
                sides: (2, 1),
                bands: 5,
                bits: 16,
                format: 1,
                photometric,
                planar,
                samples,
            };
            let image = decoded(&file.bytes(), "5", "0,10000").unwrap();
            assert_eq!((image.width(), image.height(), image.bands()), (2, 1, 5));
            close(image.data(), &expected);
        }
    }
}

#[test]
fn a_tiff_has_samples_of_every_type() {
    let one = |bits: u16, format: u16, samples: &[u8], range: &str| {
        let file = Tiff {
            sides: (2, 1),
            bands: 1,
            bits,
            format,
            photometric: 1,
            planar: false,
            samples,
        };
        decoded(&file.bytes(), "1", range).unwrap().data().to_vec()
    };
    close(&one(8, 1, &[0, 51], "clip"), &[0.0, 0.2]);
    close(&one(8, 1, &[0, 51], "0,102"), &[0.0, 0.5]);
    close(&one(16, 1, &le16(&[65_535, 13_107]), "auto"), &[1.0, 0.2]);
    let signed = [(-1000_i16).to_le_bytes(), 1000_i16.to_le_bytes()].concat();
    close(&one(16, 2, &signed, "-2000,2000"), &[0.25, 0.75]);
    let words = [1_000_000_u32.to_le_bytes(), 250_000_u32.to_le_bytes()].concat();
    close(&one(32, 1, &words, "0,1000000"), &[1.0, 0.25]);
    let floats = [0.25_f32.to_le_bytes(), (-3.0_f32).to_le_bytes()].concat();
    close(&one(32, 3, &floats, "auto"), &[0.25, 0.0]);
    let doubles = [0.5_f64.to_le_bytes(), 7.0_f64.to_le_bytes()].concat();
    close(&one(64, 3, &doubles, "0,1"), &[0.5, 1.0]);
}

#[test]
fn arrays_are_read_whatever_their_order() {
    // Rows of two pixels of three bands: row, column, band as digits.
    let number = |row: u16, column: u16, band: u16| 100 * row + 10 * column + band;
    let places = |order: &[&str; 3], axes: [u16; 3]| {
        let mut samples = Vec::new();
        for a in 0..axes[0] {
            for b in 0..axes[1] {
                for c in 0..axes[2] {
                    let of = |axis: &str| {
                        let place = order.iter().position(|own| *own == axis).unwrap();
                        [a, b, c][place]
                    };
                    samples.push(number(of("row"), of("column"), of("band")));
                }
            }
        }
        le16(&samples)
    };
    let hwc = places(&["row", "column", "band"], [2, 2, 3]);
    let chw = places(&["band", "row", "column"], [3, 2, 2]);
    let fortran = places(&["band", "column", "row"], [3, 2, 2]);
    let files = [
        (npy("<u2", "False", "(2, 2, 3)", &hwc), "3"),
        (npy("<u2", "False", "(3, 2, 2)", &chw), "3,first"),
        (npy("<u2", "True", "(2, 2, 3)", &fortran), "3"),
    ];
    for (file, bands) in files {
        let image = decoded(&file, bands, "0,1000").unwrap();
        let expected = [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112].map(|v| v as f32 / 1000.0);
        close(image.data(), &expected);
    }
    let big: Vec<u8> = [500_u16, 250].iter().flat_map(|v| v.to_be_bytes()).collect();
    let image = decoded(&npy(">u2", "False", "(1, 2)", &big), "1", "0,1000").unwrap();
    close(image.data(), &[0.5, 0.25]);
}

#[test]
fn an_array_has_samples_of_every_type() {
    let one = |descr: &str, data: &[u8], range: &str| {
        let file = npy(descr, "False", "(1, 2)", data);
        decoded(&file, "1", range).unwrap().data().to_vec()
    };
    close(&one("|u1", &[0, 255], "clip"), &[0.0, 1.0]);
    let signed = [(-1000_i16).to_le_bytes(), 1000_i16.to_le_bytes()].concat();
    close(&one("<i2", &signed, "-2000,2000"), &[0.25, 0.75]);
    let words = [(-5_i32).to_le_bytes(), 5_i32.to_le_bytes()].concat();
    close(&one("<i4", &words, "-10,10"), &[0.25, 0.75]);
    let words = [0_u32.to_le_bytes(), 5_u32.to_le_bytes()].concat();
    close(&one("<u4", &words, "0,10"), &[0.0, 0.5]);
    let floats = [0.25_f32.to_le_bytes(), 0.5_f32.to_le_bytes()].concat();
    close(&one("<f4", &floats, "auto"), &[0.25, 0.5]);
    let doubles = [0.25_f64.to_le_bytes(), 0.5_f64.to_le_bytes()].concat();
    close(&one("<f8", &doubles, "0,2"), &[0.125, 0.25]);
}

#[test]
fn a_png_has_one_to_four_bands() {
    use ::png::{BitDepth, ColorType};
    let grey = png(
        ColorType::Grayscale,
        BitDepth::Sixteen,
        2,
        &[0x10, 0x00, 0x20, 0x00],
    );
    close(decoded(&grey, "1", "0,16384").unwrap().data(), &[0.25, 0.5]);
    let four = png(ColorType::Rgba, BitDepth::Eight, 1, &[0, 51, 102, 255]);
    close(decoded(&four, "4", "clip").unwrap().data(), &[0.0, 0.2, 0.4, 1.0]);
    let palette = png(ColorType::Indexed, BitDepth::Eight, 1, &[1]);
    let error = decoded(&palette, "1", "auto").unwrap_err();
    assert!(error.contains("expected bands, found a palette"), "{error}");
    let bits = png(ColorType::Grayscale, BitDepth::One, 1, &[0]);
    let error = decoded(&bits, "1", "auto").unwrap_err();
    assert!(
        error.ends_with("expected samples of 8 or 16 bits, found 1"),
        "{error}"
    );
}

#[test]
fn other_pictures_are_three_bands() {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let picture = ::image::RgbImage::from_pixel(2, 2, ::image::Rgb([0, 51, 255]));
    picture.write_to(&mut bytes, ImageFormat::Bmp).unwrap();
    let image = decoded(bytes.get_ref(), "3", "clip").unwrap();
    close(image.data(), &[0.0, 0.2, 1.0].repeat(4));
    let error = decoded(bytes.get_ref(), "1", "clip").unwrap_err();
    assert_eq!(error, "BMP image: expected 1 band, found 3");
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let wide = le16(&[1, 2, 3, 4, 5, 6]);
    let two_by_one = Tiff {
        sides: (2, 1),
        bands: 3,
        bits: 16,
        format: 1,
        photometric: 1,
        planar: false,
        samples: &wide,
    };
    let tiff = two_by_one.bytes();
    let nan = [0.5_f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat();
    let white = Tiff {
        photometric: 0,
        ..two_by_one
    };
    let cases: [(&[u8], &str, &str, &str); 13] = [
        (&tiff, "5", "0,9", "TIFF image: expected 5 bands, found 3"),
        (&tiff, "3", "clip", "TIFF image: samples of 16 bits need a range"),
        (&tiff[..tiff.len() / 2], "3", "0,9", "TIFF image: "),
        (
            &white.bytes(),
            "3",
            "0,9",
            "TIFF image: expected bands (photometric interpretation 1 or 2), found 0",
        ),
        (
            &npy("<f4", "False", "(1, 2)", &nan),
            "1",
            "0,1",
            "npy image: expected finite samples, found NaN in band 0, row 0, column 1 (from 0)",
        ),
        (
            &npy("<f4", "False", "(1, 2)", &nan),
            "1",
            "clip",
            "npy image: samples of 32 bits need a range",
        ),
        (
            &npy("|u1", "False", "(3, 1, 2)", &[0; 6]),
            "3",
            "clip",
            "npy image: expected 3 bands, found 2 (shape [3, 1, 2]); --bands 3,first says that bands come first",
        ),
        (
            &npy("|u1", "False", "(6,)", &[0; 6]),
            "3",
            "clip",
            "npy image: expected shape [H, W] or [H, W, C], found [6]",
        ),
        (
            &npy("|u1", "False", "(2, 2)", &[0; 3]),
            "1",
            "clip",
            "npy image: expected 4 samples, found 3",
        ),
        (
            &npy("<u2", "False", "(1, 1)", &[0; 3]),
            "1",
            "0,9",
            "npy image: cut short",
        ),
        (
            &npy("|b1", "False", "(1, 1)", &[0]),
            "1",
            "clip",
            "npy image: expected samples of type u1",
        ),
        (
            &npy("|u1", "False", "(0, 1)", &[]),
            "1",
            "clip",
            "npy image: a size of 1x0 pixels",
        ),
        (b"nothing", "1", "clip", "not a JPEG, PNG"),
    ];
    for (bytes, bands, range, expected) in cases {
        let error = decoded(bytes, bands, range).unwrap_err();
        assert!(error.starts_with(expected) && !error.contains('\n'), "{error}");
    }
    assert!(decoded(b"", "1", "clip").is_err());
    for end in 0..80 {
        let whole = npy("|u1", "False", "(1, 1)", &[0]);
        assert!(decoded(&whole[..end.min(whole.len() - 1)], "1", "clip").is_err());
    }
    let huge = npy("|u1", "False", "(4294967295, 4294967295, 1024)", &[]);
    assert!(decoded(&huge, "1024", "clip").is_err());
}
