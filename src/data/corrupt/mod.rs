//! The 15 corruptions of ImageNet-C (Hendrycks & Dietterich 2019, arXiv:1903.12261), at five severities: what happens to a
//! picture between the world and a network. Noise ([`noise`]), blur ([`blur`]), weather ([`weather`], [`frost`]), changes
//! that a camera or a file format makes ([`digital`]) and a warp ([`geometry`]); they work on a [`raster`] of floats, with
//! the help of [`filter`] and of [`plasma`] clouds.
//!
//! The numbers are those published with ImageNet-C for images of 224 pixels. A length in pixels (radius, displacement,
//! streak, flake) is multiplied by the shorter side over 224; what has no unit (amplitudes, factors, the share of the
//! resolution that pixelation leaves, JPEG's quality) stays. Beyond an edge every filter sees the image mirrored. An image
//! whose pixels are all grey stays grey: its noise is drawn once a pixel. What differs from the published code: frost is
//! drawn, not pasted from photographs; streaks are sampled between pixels, which is what lets them be smaller than one; edges
//! are mirrored in every filter; levels are rounded, not cut off; JPEG keeps the colours' resolution; the kernels of the two
//! largest disks sum to 1, where the published ones brighten by a hundredth. `golden_tests.rs` holds
//! everything but frost against the published code at 224 pixels.

mod blur;
mod digital;
mod filter;
mod frost;
mod geometry;
mod noise;
mod plasma;
mod raster;
mod weather;

use std::fmt;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;

use self::raster::Raster;
use super::image::RgbImage;
use crate::{Error, Result, rng};

/// The side at which the published lengths hold, in pixels.
const PUBLISHED_SIDE: f32 = 224.0;

/// One of the 15 ways to corrupt an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Corruption {
    /// Normal noise.
    GaussianNoise,
    /// Photon noise: Poisson counts.
    ShotNoise,
    /// Salt and pepper.
    ImpulseNoise,
    /// A disk: a lens out of focus.
    DefocusBlur,
    /// Neighbouring pixels change places: frosted glass.
    GlassBlur,
    /// A streak in one direction.
    MotionBlur,
    /// The mean of several magnifications.
    ZoomBlur,
    /// Flakes with streaks, over a whitened image.
    Snow,
    /// Ice crystals over a darkened image; drawn, where ImageNet-C pastes photographs.
    Frost,
    /// A bright cloud.
    Fog,
    /// Value (of hue, saturation, value) raised.
    Brightness,
    /// Contrast lowered towards the mean of each channel.
    Contrast,
    /// A random affine map and random displacements.
    ElasticTransform,
    /// Shrunk and enlarged again.
    Pixelate,
    /// Saved as JPEG of low quality.
    JpegCompression,
}

/// Every corruption with its name, in the order of the paper's tables.
const NAMED: [(Corruption, &str); 15] = [
    (Corruption::GaussianNoise, "gaussian_noise"),
    (Corruption::ShotNoise, "shot_noise"),
    (Corruption::ImpulseNoise, "impulse_noise"),
    (Corruption::DefocusBlur, "defocus_blur"),
    (Corruption::GlassBlur, "glass_blur"),
    (Corruption::MotionBlur, "motion_blur"),
    (Corruption::ZoomBlur, "zoom_blur"),
    (Corruption::Snow, "snow"),
    (Corruption::Frost, "frost"),
    (Corruption::Fog, "fog"),
    (Corruption::Brightness, "brightness"),
    (Corruption::Contrast, "contrast"),
    (Corruption::ElasticTransform, "elastic_transform"),
    (Corruption::Pixelate, "pixelate"),
    (Corruption::JpegCompression, "jpeg_compression"),
];

impl Corruption {
    /// All 15, in the order of the paper's tables.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMED.iter().map(|&(corruption, _)| corruption)
    }

    /// Its name, as in ImageNet-C.
    pub fn name(self) -> &'static str {
        NAMED[self as usize].1
    }

    /// `image` corrupted. The random numbers come from `seed`, the corruption, the severity and `row`, so that neither batches
    /// nor threads nor other rows change them. Any size of at least one pixel will do.
    ///
    /// # Errors
    /// JPEG alone can fail, for sides above 65,535 pixels.
    pub fn apply(self, image: &RgbImage, severity: Severity, seed: u64, row: u64) -> Result<RgbImage> {
        let stream = format!("corrupt/{self}/{severity}");
        let mut rng = rng::stream(seed, &stream, row);
        Ok(self
            .on(Raster::from_image(image), severity.place(), &mut rng)?
            .to_image())
    }

    fn on(self, image: Raster, level: usize, rng: &mut ChaCha8Rng) -> Result<Raster> {
        Ok(match self {
            Self::GaussianNoise => noise::gaussian(image, level, rng),
            Self::ShotNoise => noise::shot(image, level, rng),
            Self::ImpulseNoise => noise::impulse(image, level, rng),
            Self::DefocusBlur => blur::defocus(&image, level),
            Self::GlassBlur => blur::glass(image, level, rng),
            Self::MotionBlur => blur::motion(&image, level, rng),
            Self::ZoomBlur => blur::zoom(&image, level),
            Self::Snow => weather::snow(image, level, rng),
            Self::Frost => frost::frost(image, level, rng),
            Self::Fog => weather::fog(image, level, rng),
            Self::Brightness => weather::brightness(image, level),
            Self::Contrast => digital::contrast(image, level),
            Self::ElasticTransform => geometry::elastic(&image, level, rng),
            Self::Pixelate => digital::pixelate(&image, level),
            Self::JpegCompression => digital::jpeg(&image, level)?,
        })
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Corruption {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = NAMED.iter().find(|(_, name)| *name == text);
        found.map(|&(corruption, _)| corruption).ok_or_else(|| {
            let names: Vec<&str> = NAMED.iter().map(|(_, name)| *name).collect();
            Error::setting(
                "corruptions",
                format!("expected names among {}, found `{text}`", names.join(", ")),
            )
        })
    }
}

/// How much an image is corrupted: 1 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Severity(u8);

impl Severity {
    /// All five, ascending.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=5).map(Self)
    }

    /// Severity `level`, which must be 1 to 5.
    pub fn new(level: u8) -> Option<Self> {
        (1..=5).contains(&level).then_some(Self(level))
    }

    /// 1 to 5.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Place in a table of five.
    fn place(self) -> usize {
        usize::from(self.0) - 1
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Severity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| {
            Error::setting(
                "severities",
                format!("expected whole numbers from 1 to 5, found `{text}`"),
            )
        })
    }
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
