//! What is to be done to an image to make one crop of it: everything random is drawn here, before a pixel is touched. A plan is
//! small, so that it can be carried out elsewhere than where the image was read: on the CPU by [`CropPlan::apply`], on a GPU by
//! `train/feed`.

use rand::Rng;
use rand::seq::SliceRandom as _;

use super::crop::{random_window, resized_crop};
use super::multi_crop_config::{JitterConfig, MultiCropConfig, ViewConfig};
use super::warp::Warp;
use super::{RgbImage, blur, photometric, uniform, with_samples};
use crate::data::resize::{Interpolation, Window};
use crate::{Error, Result};

/// Changes of colour that a crop may have, of each kind one.
pub const COLOURS: usize = 4;

/// One crop, in the order in which things are done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CropPlan {
    /// The rectangle that is resized to the crop.
    pub window: Window,
    /// How what was resized is warped.
    pub warp: Option<Warp>,
    /// Whether left and right are exchanged.
    pub flip: bool,
    /// Changes of colour, the first first.
    pub colours: [Option<Colour>; COLOURS],
    /// Whether only luma stays.
    pub grey: bool,
    /// Standard deviation of a Gaussian blur in pixels, above 0.
    pub blur: Option<f64>,
    /// Samples at or above this level are inverted.
    pub solarize: Option<u8>,
}

/// A change of colour by a factor of at least 0, or by a part of the colour circle ([`photometric`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Colour {
    /// Towards or beyond black.
    Brightness(f64),
    /// Towards or beyond the mean luma.
    Contrast(f64),
    /// Towards or beyond each pixel's luma.
    Saturation(f64),
    /// Turned by -0.5 to 0.5 of the circle.
    Hue(f64),
}

/// What is done to one kind of crop beyond what is done to all.
pub(super) struct View<'a> {
    pub config: &'a ViewConfig,
    pub blur: f64,     // probability
    pub solarize: f64, // probability
}

impl CropPlan {
    /// Draws a crop of a `width` x `height` image. How many numbers are drawn, and in which order, is part of what a seed means.
    pub(super) fn draw(
        (width, height): (u32, u32),
        view: &View,
        config: &MultiCropConfig,
        rng: &mut impl Rng,
    ) -> Self {
        // In the order in which they stand here.
        Self {
            window: random_window(width, height, view.config.scale, config.aspect, rng),
            warp: (config.warp > 0.0).then(|| Warp::draw(config.warp, rng)),
            flip: happens(config.flip, rng),
            colours: match happens(config.jitter.probability, rng) {
                true => draw_colours(&config.jitter, rng),
                false => [None; COLOURS],
            },
            grey: happens(config.grey, rng),
            blur: happens(view.blur, rng).then(|| uniform(config.blur.sigma, rng)),
            solarize: happens(view.solarize, rng).then_some(config.solarize.threshold),
        }
    }

    /// The crop of `image`, `size` x `size` pixels before normalisation.
    ///
    /// # Errors
    /// A window that reaches outside of the image.
    pub fn apply(&self, image: &RgbImage, size: u32, filter: Interpolation) -> Result<RgbImage> {
        let window = self.window;
        let mut crop = resized_crop(image, window, size, filter)
            .ok_or_else(|| Error::failed("crop", format!("no {size}x{size} pixels from {window:?}")))?;
        if let Some(warp) = &self.warp {
            let sides = (size as usize, size as usize, 3);
            crop = with_samples(crop, |samples| {
                samples.copy_from_slice(&warp.apply(samples, sides, |value| value.round() as u8));
            });
        }
        if self.flip {
            crop = photometric::flip_horizontal(crop);
        }
        for colour in self.colours.iter().flatten() {
            crop = colour.apply(crop);
        }
        if self.grey {
            crop = photometric::grey(crop);
        }
        if let Some(sigma) = self.blur {
            crop = blur::gaussian_blur(&crop, sigma);
        }
        if let Some(threshold) = self.solarize {
            crop = photometric::solarize(crop, threshold);
        }
        Ok(crop)
    }
}

impl Colour {
    fn apply(self, image: RgbImage) -> RgbImage {
        match self {
            Self::Brightness(factor) => photometric::brightness(image, factor),
            Self::Contrast(factor) => photometric::contrast(image, factor),
            Self::Saturation(factor) => photometric::saturation(image, factor),
            Self::Hue(turns) => photometric::hue(image, turns),
        }
    }
}

/// Whether something of this probability happens: always at 1, never at 0.
fn happens(probability: f64, rng: &mut impl Rng) -> bool {
    rng.random::<f64>() < probability
}

/// Brightness, contrast, saturation and hue by random amounts, in random order (torchvision `ColorJitter`). What has
/// strength 0 is left out, as there.
fn draw_colours(config: &JitterConfig, rng: &mut impl Rng) -> [Option<Colour>; COLOURS] {
    type Make = fn(f64) -> Colour;
    let kinds: [(f64, [f64; 2], Make); COLOURS] = [
        (
            config.brightness,
            around_one(config.brightness),
            Colour::Brightness,
        ),
        (config.contrast, around_one(config.contrast), Colour::Contrast),
        (
            config.saturation,
            around_one(config.saturation),
            Colour::Saturation,
        ),
        (config.hue, [-config.hue, config.hue], Colour::Hue),
    ];
    let mut order = [0, 1, 2, 3];
    order.shuffle(rng);
    order.map(|place| {
        let (strength, range, make) = kinds[place];
        (strength > 0.0).then(|| make(uniform(range, rng)))
    })
}

/// The range of a factor that is drawn around 1 and never negative.
fn around_one(strength: f64) -> [f64; 2] {
    [(1.0 - strength).max(0.0), 1.0 + strength]
}

#[cfg(test)]
mod tests {
    use super::super::multi_crop::stream;
    use super::*;

    #[test]
    fn jitter_stays_within_its_strength() {
        let image = || RgbImage::new(2, 1, vec![100, 100, 100, 140, 140, 140]).unwrap();
        let config = JitterConfig {
            probability: 1.0,
            brightness: 0.4,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
        };
        let mut generator = stream(4, 0, 0);
        let mut jitter = |config: &JitterConfig| {
            let colours = draw_colours(config, &mut generator);
            let changes = colours.iter().flatten();
            changes.fold(image(), |image, colour| colour.apply(image))
        };
        let levels: Vec<u8> = (0..2000).map(|_| jitter(&config).data()[0]).collect();
        assert_eq!(levels.iter().min(), Some(&60));
        assert_eq!(levels.iter().max(), Some(&139)); // 140 only at a factor of 1.4 itself
        let still = JitterConfig {
            brightness: 0.0,
            ..config
        };
        assert_eq!(jitter(&still), image());
        assert_eq!(around_one(1.5), [0.0, 2.5]);
    }

    #[test]
    fn a_window_outside_of_the_image_is_an_error() {
        let plan = CropPlan {
            window: Window {
                left: 1,
                top: 0,
                width: 2,
                height: 1,
            },
            warp: None,
            flip: false,
            colours: [None; COLOURS],
            grey: false,
            blur: None,
            solarize: None,
        };
        let image = RgbImage::from_grey(2, 2, &[0; 4]).unwrap();
        let error = plan.apply(&image, 4, Interpolation::Bicubic).unwrap_err();
        assert!(error.to_string().contains("no 4x4 pixels"), "{error}");
    }
}
