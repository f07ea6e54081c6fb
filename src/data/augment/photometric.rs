//! Colour changes as torchvision's functional transforms make them on a Pillow image, level for level
//! (pytorch/vision: torchvision/transforms/_functional_pil.py; python-pillow/Pillow: src/PIL/ImageEnhance.py,
//! src/libImaging/Blend.c, src/libImaging/Convert.c). Brightness, contrast and saturation move every sample from a
//! degenerate image towards, or beyond, its own value: factor 0 gives the degenerate image, 1 the image itself.

use super::{RgbImage, with_samples};

/// Brightness: the degenerate image is black. `factor` is at least 0; results are clipped.
pub fn brightness(image: RgbImage, factor: f64) -> RgbImage {
    towards_constant(image, 0, factor)
}

/// Contrast: the degenerate image is the mean luma, rounded, everywhere. `factor` is at least 0; results are clipped.
pub fn contrast(image: RgbImage, factor: f64) -> RgbImage {
    let mean = mean_luma(&image);
    towards_constant(image, mean, factor)
}

/// Saturation: the degenerate image is the grey one. `factor` is at least 0; results are clipped.
pub fn saturation(image: RgbImage, factor: f64) -> RgbImage {
    with_samples(image, |samples| {
        for pixel in samples.as_chunks_mut::<3>().0 {
            let grey = luma(*pixel);
            *pixel = pixel.map(|sample| blend(grey, sample, factor as f32));
        }
    })
}

/// Turns the hue by `turns` of the colour circle, -0.5 to 0.5, through 8-bit HSV: the steps are of 1/255, and a grey
/// pixel keeps its colour while others may lose a few levels on the way.
pub fn hue(image: RgbImage, turns: f64) -> RgbImage {
    let shift = hue_shift(turns);
    let turned: [Sector; 256] = std::array::from_fn(|hue| Sector::from_hue(shift.wrapping_add(hue as u8)));
    with_samples(image, |samples| {
        for pixel in samples.as_chunks_mut::<3>().0 {
            let [hue, saturation, value] = rgb_to_hsv(*pixel);
            *pixel = hsv_to_rgb(&turned[usize::from(hue)], saturation, value);
        }
    })
}

/// What is added to an 8-bit hue, beyond 255 from 0 on.
pub fn hue_shift(turns: f64) -> u8 {
    // Cut off, not rounded, and then wrapped to 8 bits.
    (turns * 255.0) as i32 as u8
}

/// Luma in all three channels.
pub fn grey(image: RgbImage) -> RgbImage {
    with_samples(image, |samples| {
        for pixel in samples.as_chunks_mut::<3>().0 {
            *pixel = [luma(*pixel); 3];
        }
    })
}

/// Inverts the samples that are `threshold` or above.
pub fn solarize(image: RgbImage, threshold: u8) -> RgbImage {
    with_samples(image, |samples| {
        for sample in samples {
            *sample = if *sample < threshold {
                *sample
            } else {
                255 - *sample
            };
        }
    })
}

/// Mirrors left and right.
pub fn flip_horizontal(image: RgbImage) -> RgbImage {
    let width = image.width() as usize;
    with_samples(image, |samples| {
        for row in samples.chunks_exact_mut(width * 3) {
            row.as_chunks_mut::<3>().0.reverse();
        }
    })
}

/// ITU-R 601 luma in 16-bit fixed point, Pillow's mode `L`.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471 + 0x8000) >> 16) as u8
}

/// The mean luma, halves rounded up.
fn mean_luma(image: &RgbImage) -> u8 {
    let pixels = image.data().as_chunks::<3>().0;
    let total: u64 = pixels.iter().map(|&pixel| u64::from(luma(pixel))).sum();
    (total as f64 / pixels.len() as f64 + 0.5) as u8
}

/// Every sample blended with one level.
fn towards_constant(image: RgbImage, level: u8, factor: f64) -> RgbImage {
    let table: [u8; 256] = std::array::from_fn(|sample| blend(level, sample as u8, factor as f32));
    with_samples(image, |samples| {
        for sample in samples {
            *sample = table[usize::from(*sample)];
        }
    })
}

/// `from + factor * (to - from)` in f32, cut off to a level and clipped.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let mixed = f32::from(from) + factor * (f32::from(to) - f32::from(from));
    // The cast saturates at both ends.
    mixed as u8
}

/// Hue, saturation and value in 8 bits each (`rgb2hsv_row`). Which operations are in f32 and which in f64 decides the
/// level where a result is cut off, so this follows C's promotions.
fn rgb_to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let value = red.max(green).max(blue);
    let min = red.min(green).min(blue);
    if value == min {
        return [0, 0, value];
    }
    let chroma = f32::from(value - min);
    let saturation = chroma / f32::from(value);
    let distance = |sample: u8| f64::from(f32::from(value - sample) / chroma);
    // Chosen without a jump, which no processor could foresee from pixel to pixel.
    let (base, after, before) = if green == value {
        (2.0, red, blue)
    } else {
        (4.0, green, red)
    };
    let (base, after, before) = if red == value {
        (0.0, blue, green)
    } else {
        (base, after, before)
    };
    let sector = (base + distance(after) - distance(before)) as f32;
    // Between 5/6 and 11/6, so that C's `fmod` by 1 takes off 1 or nothing.
    let hue = f64::from(sector) / 6.0 + 1.0;
    let hue = (if hue < 1.0 { hue } else { hue - 1.0 }) as f32;
    let level = |part: f32| (f64::from(part) * 255.0) as u8;
    [level(hue), level(saturation), value]
}

/// Where a hue lies: red, green and blue as places in the list of value, rising, falling and least, and how far the rising
/// one has come, 0 to 1.
struct Sector {
    channels: [u8; 3],
    rest: f64,
}

impl Sector {
    fn from_hue(hue: u8) -> Self {
        const ORDER: [[u8; 3]; 6] = [[0, 1, 3], [2, 0, 3], [3, 0, 1], [3, 2, 0], [1, 3, 0], [0, 3, 2]];
        let position = f64::from(hue) * 6.0 / 255.0;
        let sector = position as u8;
        Self {
            channels: ORDER[usize::from(sector % 6)],
            rest: f64::from((position - f64::from(sector)) as f32),
        }
    }
}

/// The inverse of [`rgb_to_hsv`] as far as 8 bits allow (`hsv2rgb`).
fn hsv_to_rgb(hue: &Sector, saturation: u8, value: u8) -> [u8; 3] {
    let strength = f64::from((f64::from(saturation) / 255.0) as f32);
    let level = |part: f64| (f64::from(value) * part + 0.5) as u8;
    let min = level(1.0 - strength);
    let falling = level(1.0 - strength * hue.rest);
    let rising = level(1.0 - strength * (1.0 - hue.rest));
    let levels = [value, rising, falling, min];
    hue.channels.map(|place| levels[usize::from(place & 3)])
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::super::golden;
    use super::*;

    fn hex(digest: impl AsRef<[u8]>) -> String {
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// SHA-256 of `convert` over all 2^24 triples, the last channel fastest.
    fn digest_of_every_triple(convert: fn([u8; 3]) -> [u8; 3]) -> String {
        let mut hash = Sha256::new();
        for first in 0..=255 {
            let mut plane = Vec::with_capacity(65_536 * 3);
            for second in 0..=255 {
                for third in 0..=255 {
                    plane.extend(convert([first, second, third]));
                }
            }
            hash.update(&plane);
        }
        hex(hash.finalize())
    }

    #[test]
    fn every_change_is_torchvisions() {
        let input = || golden::image("input");
        let cases = [
            ("brightness_0.6", brightness(input(), 0.6)),
            ("brightness_1.4", brightness(input(), 1.4)),
            ("contrast_0.6", contrast(input(), 0.6)),
            ("contrast_1.4", contrast(input(), 1.4)),
            ("saturation_0.6", saturation(input(), 0.6)),
            ("saturation_1.4", saturation(input(), 1.4)),
            ("hue_-0.1", hue(input(), -0.1)),
            ("hue_0.05", hue(input(), 0.05)),
            ("hue_0.1", hue(input(), 0.1)),
            ("gray", grey(input())),
            ("solarize128", solarize(input(), 128)),
            ("hflip", flip_horizontal(input())),
        ];
        for (key, changed) in cases {
            let expected = golden::image(key);
            assert!(expected != input(), "{key}");
            assert_eq!(golden::largest_difference(&changed, &expected), 0, "{key}");
        }
    }

    /// The digests are of Pillow 13's `convert` between RGB and HSV.
    #[test]
    fn every_colour_converts_as_in_pillow() {
        assert_eq!(
            digest_of_every_triple(rgb_to_hsv),
            "21b59822901a4f6c8c1eb99c91c22061542a3832d3e257dff997caab79bc666e"
        );
        assert_eq!(
            digest_of_every_triple(|[hue, saturation, value]| hsv_to_rgb(
                &Sector::from_hue(hue),
                saturation,
                value
            )),
            "1d9c2d26d34e85a68dec9d8d87ce0fdcce636d7b8eaec88f7baad6b85cdf4b3b"
        );
    }

    /// The digests are of Pillow 13's `ImageEnhance` on the same pixels, factors 0.00, 0.01, ... 2.00 one after the other.
    #[test]
    fn every_factor_blends_as_in_pillow() {
        let scattered = (0..4096_u32).flat_map(|place| {
            let bits = place.wrapping_mul(2_654_435_761).to_be_bytes();
            [bits[0], bits[1], bits[2]]
        });
        let image = RgbImage::new(64, 64, scattered.collect()).unwrap();
        let digest = |change: fn(RgbImage, f64) -> RgbImage| {
            let mut hash = Sha256::new();
            for hundredths in 0..=200 {
                hash.update(change(image.clone(), f64::from(hundredths) / 100.0).data());
            }
            hex(hash.finalize())
        };
        assert_eq!(
            digest(brightness),
            "e81e759890ae6a43648dc86f3e8616853b4bf4d670caea174e362f3a41eda1bc"
        );
        assert_eq!(
            digest(contrast),
            "31dce3261411c13eefd3c0eede8444cce47a1fb90a8b8a4b50b04e44ceb8cde9"
        );
        assert_eq!(
            digest(saturation),
            "b7f6c6b313335ca2c6fe5e48b1e1413ec2182008c38c0a40229eef839ee575ed"
        );
    }

    #[test]
    fn luma_is_pillows() {
        let colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30], [123, 45, 67]];
        assert_eq!(colours.map(luma), [76, 150, 29, 18, 71]);
    }

    #[test]
    fn factors_that_make_no_sense_do_no_harm() {
        let image = || RgbImage::new(1, 1, vec![10, 100, 250]).unwrap();
        assert_eq!(brightness(image(), f64::INFINITY).data(), &[255; 3]);
        assert_eq!(brightness(image(), -1.0).data(), &[0; 3]);
        assert_eq!(contrast(image(), f64::NAN).data(), &[0; 3]);
        assert_eq!(hue(image(), f64::NAN), hue(image(), 0.0));
    }
}
