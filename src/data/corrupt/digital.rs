//! What a camera and a file format do: low contrast, few pixels, few bits.

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use super::super::decode::{DecodeOptions, decode};
use super::raster::{Raster, level as level_of};
use crate::{Error, Result};

/// What is left of the distance to the mean.
const CONTRASTS: [f32; 5] = [0.4, 0.3, 0.2, 0.1, 0.05];
/// What is left of width and height.
const RESOLUTIONS: [f32; 5] = [0.6, 0.5, 0.4, 0.3, 0.25];
/// Quality, 1 to 100.
const QUALITIES: [u8; 5] = [25, 18, 15, 10, 7];

/// Every channel nearer to its mean.
pub(super) fn contrast(image: Raster, level: usize) -> Raster {
    let mut out = image;
    for channel in 0..out.channels {
        let samples = || out.data.iter().skip(channel).step_by(out.channels);
        let mean = samples().map(|&value| f64::from(value)).sum::<f64>() / samples().count() as f64;
        let mean = mean as f32;
        for value in out.data.iter_mut().skip(channel).step_by(out.channels) {
            *value = mean + CONTRASTS[level] * (*value - mean);
        }
    }
    out
}

/// Shrunk and enlarged again, both by means over boxes, which makes squares of one colour.
pub(super) fn pixelate(image: &Raster, level: usize) -> Raster {
    let fewer = |length: usize| ((length as f32 * RESOLUTIONS[level]) as usize).max(1);
    let small = boxed(image, fewer(image.width), fewer(image.height));
    boxed(&small, image.width, image.height)
}

/// `image` at another size: each pixel the mean of those whose centres lie in its box, or the nearest (Pillow's `BOX`).
fn boxed(image: &Raster, width: usize, height: usize) -> Raster {
    let (columns, rows) = (boxes(image.width, width), boxes(image.height, height));
    let mut out = Raster {
        width,
        height,
        channels: image.channels,
        data: Vec::with_capacity(width * height * image.channels),
    };
    for &(top, bottom) in &rows {
        for &(left, right) in &columns {
            let count = ((bottom - top) * (right - left)) as f32;
            for channel in 0..image.channels {
                let sum: f32 = (top..bottom)
                    .flat_map(|y| (left..right).map(move |x| (x, y)))
                    .map(|(x, y)| image.pixel(x, y)[channel])
                    .sum();
                out.data.push(sum / count);
            }
        }
    }
    out
}

/// The samples from..to that each of `output` samples is the mean of.
fn boxes(input: usize, output: usize) -> Vec<(usize, usize)> {
    let scale = input as f64 / output as f64;
    let half = 0.5 * scale.max(1.0);
    (0..output)
        .map(|place| {
            let centre = (place as f64 + 0.5) * scale;
            let first = ((centre - half + 0.5) as usize).min(input - 1);
            let end = ((centre + half + 0.5) as usize).min(input);
            (first, end.max(first + 1))
        })
        .collect()
}

/// Written as JPEG and read again; a grey image is written as grey.
pub(super) fn jpeg(image: &Raster, level: usize) -> Result<Raster> {
    let samples: Vec<u8> = image.data.iter().map(|&value| level_of(value)).collect();
    let colour = if image.channels == 3 {
        ExtendedColorType::Rgb8
    } else {
        ExtendedColorType::L8
    };
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITIES[level])
        .encode(&samples, image.width as u32, image.height as u32, colour)
        .map_err(|error| Error::failed("jpeg_compression", error.to_string()))?;
    let read = decode(&bytes, &DecodeOptions::default())
        .map_err(|error| Error::failed("jpeg_compression", error.to_string()))?;
    let read_data = read
        .data()
        .iter()
        .step_by(if image.channels == 1 { 3 } else { 1 });
    Ok(Raster {
        data: read_data.map(|&level| f32::from(level) / 255.0).collect(),
        ..*image
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contrast_shrinks_towards_the_mean_of_each_channel() {
        let image = Raster {
            width: 2,
            height: 1,
            channels: 3,
            data: vec![0.0, 0.5, 1.0, 1.0, 0.5, 0.0],
        };
        let flat = contrast(image, 0);
        for (found, expected) in flat.data.iter().zip([0.3, 0.5, 0.7, 0.7, 0.5, 0.3]) {
            assert!((found - expected).abs() < 1e-6, "{flat:?}");
        }
    }

    #[test]
    fn boxes_cover_every_sample_once_when_shrinking() {
        for (input, output) in [(224, 134), (224, 56), (28, 7), (28, 11), (5, 1), (1, 1)] {
            let boxes = boxes(input, output);
            assert_eq!((boxes[0].0, boxes[output - 1].1), (0, input));
            assert!(
                boxes.windows(2).all(|pair| pair[0].1 == pair[1].0),
                "{input} {output}"
            );
        }
        assert_eq!(boxes(2, 4), [(0, 1), (0, 1), (1, 2), (1, 2)]);
    }

    #[test]
    fn pixels_become_squares_of_their_mean() {
        let mut place = 0;
        let ramp = Raster::plane(8, 8, || {
            place += 1;
            (place - 1) as f32
        });
        let squares = pixelate(&ramp, 4);
        // Four by four pixels in each, of rows 0, 8, 16, 24 and columns 0 to 3.
        assert_eq!(squares.pixel(0, 0), [13.5]);
        assert_eq!(squares.pixel(3, 3), [13.5]);
        assert_eq!(squares.pixel(4, 3), [17.5]);
    }
}
