//! A crop of an image of bands: cropped and resized, warped, mirrored, brighter or darker, of more or less contrast, blurred, in the order of
//! [`CropPlan::apply`] and by the same draws, in f32. One factor counts for all bands, so that what they are to one another stays;
//! what needs red, green and blue is refused.

use super::blur::{kernel, mirrored};
use super::plan::{Colour, CropPlan};
use crate::data::bands::{BandImage, add_weighted, resize_window};
use crate::data::resize::{Interpolation, Window};
use crate::{Error, Result};

impl CropPlan {
    /// The crop of `image`, `size` x `size` pixels before normalisation.
    ///
    /// # Errors
    /// A window that reaches outside of the image, a change that needs colours.
    pub(super) fn apply_to_bands(
        &self,
        image: &BandImage,
        size: u32,
        filter: Interpolation,
    ) -> Result<BandImage> {
        if self.grey || self.solarize.is_some() {
            return Err(needs_colours());
        }
        let whole = Window {
            left: 0,
            top: 0,
            width: size,
            height: size,
        };
        let mut crop = image
            .crop(self.window)
            .and_then(|part| resize_window(&part, size, size, whole, filter))
            .ok_or_else(|| {
                Error::failed("crop", format!("no {size}x{size} pixels from {:?}", self.window))
            })?;
        if let Some(warp) = &self.warp {
            let sides = (size as usize, size as usize, crop.bands());
            let warped = warp.apply(crop.data(), sides, |value| value);
            crop.data_mut().copy_from_slice(&warped);
        }
        if self.flip {
            crop = crop.oriented(::image::metadata::Orientation::FlipHorizontal);
        }
        for colour in self.colours.iter().flatten() {
            match *colour {
                Colour::Brightness(factor) => brightness(&mut crop, factor as f32),
                Colour::Contrast(factor) => contrast(&mut crop, factor as f32),
                Colour::Saturation(_) | Colour::Hue(_) => return Err(needs_colours()),
            }
        }
        if let Some(sigma) = self.blur {
            blur(&mut crop, sigma);
        }
        Ok(crop)
    }
}

fn needs_colours() -> Error {
    Error::failed(
        "crop",
        "expected no grey, saturation, hue or solarisation of bands",
    )
}

/// Every value times `factor`, cut off at 1.
fn brightness(image: &mut BandImage, factor: f32) {
    for value in image.data_mut() {
        *value = (*value * factor).clamp(0.0, 1.0);
    }
}

/// Every value moved away from the mean of its band, or towards it, by `factor`; cut off at 0 and 1.
fn contrast(image: &mut BandImage, factor: f32) {
    let bands = image.bands();
    let pixels = (image.data().len() / bands) as f64;
    let mean = |band: usize| (image.band(band).map(f64::from).sum::<f64>() / pixels) as f32;
    let means: Vec<f32> = (0..bands).map(mean).collect();
    for pixel in image.data_mut().chunks_exact_mut(bands) {
        for (value, mean) in pixel.iter_mut().zip(&means) {
            *value = (mean + factor * (*value - mean)).clamp(0.0, 1.0);
        }
    }
}

/// The blur of [`super::blur::gaussian_blur`]: a 9 x 9 Gaussian, the image mirrored beyond its edges.
fn blur(image: &mut BandImage, sigma: f64) {
    let weights = kernel(sigma);
    let (width, height, bands) = (image.width() as usize, image.height() as usize, image.bands());
    let len = width * bands;
    let mut columns = vec![0.0_f32; image.data().len()]; // [height, width, bands]
    for (y, sums) in columns.chunks_exact_mut(len).enumerate() {
        for (tap, weight) in weights.iter().enumerate() {
            add_weighted(sums, image.row(mirrored(y + tap, height)), *weight);
        }
    }
    for (row, out) in columns
        .chunks_exact(len)
        .zip(image.data_mut().chunks_exact_mut(len))
    {
        out.fill(0.0);
        for (x, pixel) in out.chunks_exact_mut(bands).enumerate() {
            for (tap, weight) in weights.iter().enumerate() {
                let from = mirrored(x + tap, width) * bands;
                add_weighted(pixel, &row[from..from + bands], *weight);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MultiCrop, MultiCropConfig, golden};
    use super::super::{blur as of_rgb, multi_crop::stream};
    use super::*;
    use crate::data::Image;

    fn input() -> BandImage {
        BandImage::from_rgb(&golden::image("input"), 3).unwrap()
    }

    /// The largest difference in levels of 8 bits.
    fn levels_apart(bands: &BandImage, rgb: &crate::data::RgbImage) -> f32 {
        let pairs = bands.data().iter().zip(rgb.data());
        pairs.fold(0.0, |most: f32, (value, &level)| {
            most.max((value * 255.0 - f32::from(level)).abs())
        })
    }

    #[test]
    fn a_blur_is_that_of_eight_bits_but_for_rounding() {
        for sigma in [0.1, 0.7, 2.0] {
            let mut bands = input();
            blur(&mut bands, sigma);
            let rgb = of_rgb::gaussian_blur(&golden::image("input"), sigma);
            assert!(levels_apart(&bands, &rgb) < 0.51, "{sigma}");
        }
    }

    #[test]
    fn brightness_is_that_of_eight_bits_but_for_rounding() {
        for factor in [0.6, 1.0, 1.4] {
            let mut bands = input();
            brightness(&mut bands, factor);
            let rgb = super::super::photometric::brightness(golden::image("input"), f64::from(factor));
            assert!(levels_apart(&bands, &rgb) < 1.01, "{factor}");
        }
    }

    #[test]
    fn contrast_keeps_the_mean_of_each_band() {
        let mut image = BandImage::new(2, 1, 2, vec![0.2, 0.5, 0.4, 0.7]).unwrap();
        contrast(&mut image, 0.5);
        for (found, expected) in image.data().iter().zip([0.25, 0.55, 0.35, 0.65]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        contrast(&mut image, 100.0);
        assert_eq!(image.data(), [0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn crops_of_bands_are_those_of_rgb_but_for_rounding() {
        let mut config = MultiCropConfig::small_grey(32, 16);
        config.solarize.probability = 0.0;
        // The contrast of pictures is around their luma, and between its passes a bicubic resize of theirs cuts off.
        config.interpolation = Interpolation::Bilinear;
        config.jitter.contrast = 0.0;
        config.blur = MultiCropConfig::default().blur;
        // Four steps round or cut off by a level each, and a warp.
        for (warp, steps) in [(0.0, 4.0), (0.1, 5.0)] {
            config.warp = warp;
            let crops = MultiCrop::new(config.clone()).unwrap();
            for number in 0..10 {
                let rgb = crops.apply(&golden::image("input").into(), &mut stream(5, 0, number));
                let bands = crops.apply(&Image::from(input()), &mut stream(5, 0, number));
                let (rgb, bands) = (rgb.unwrap(), bands.unwrap());
                let of_rgb = rgb.global.iter().chain(&rgb.local);
                let of_bands = bands.global.iter().chain(&bands.local);
                let apart = of_rgb.zip(of_bands).map(|(a, b)| (a - b).abs());
                let apart = apart.fold(0.0, f32::max);
                // A level is a 255th over a deviation of 0.22 at least.
                assert!(apart < steps / 255.0 / 0.22, "{warp}: {apart}");
            }
        }
    }

    #[test]
    fn changes_of_colour_are_refused() {
        let mut config = MultiCropConfig::small_grey(8, 0);
        config.solarize.probability = 0.0;
        config.need_no_colour().unwrap();
        config.grey = 1.0;
        let error = config.need_no_colour().unwrap_err().to_string();
        assert!(error.starts_with("grey: expected 0 with bands"), "{error}");
        let crops = MultiCrop::new(config).unwrap();
        let made = crops.apply(&Image::from(input()), &mut stream(0, 0, 0));
        assert!(
            made.unwrap_err()
                .to_string()
                .starts_with("crop: expected no grey")
        );
    }
}
