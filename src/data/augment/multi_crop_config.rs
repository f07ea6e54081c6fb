//! The settings of [`super::multi_crop`]: DINOv2's values and their limits.
//! Values for small images are in [`super::presets`].

use serde::{Deserialize, Serialize};

use crate::data::resize::Interpolation;
use crate::data::transform::{IMAGENET_MEAN, IMAGENET_STD};
use crate::{Error, Result};

/// The largest side of a crop.
const MAX_SIZE: u32 = 2048;
/// The largest number of crops of one kind.
const MAX_COUNT: usize = 64;

/// How an image becomes crops. What a file leaves out has DINOv2's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiCropConfig {
    /// Least and largest width over height of the rectangle a crop is made from, above 0. Default `[3/4, 4/3]`.
    pub aspect: [f64; 2],
    /// The filter of the resize. Default bicubic.
    pub interpolation: Interpolation,
    /// How far each of 4 x 4 control points of a crop moves at most, in x and in y, as a share of its side, 0 to 0.5: a smooth warp, by
    /// which parts come to lie, lean and stretch differently against one another. Not with `crops_on = "gpu"`. Default 0.
    pub warp: f64,
    /// Probability of mirroring left and right. Default 0.5.
    pub flip: f64,
    /// Probability of making a crop grey. Default 0.2.
    pub grey: f64,
    /// Means that are subtracted, red, green and blue or of each band, of pixels from 0 to 1. Default ImageNet's; of bands
    /// (`data.loader.bands`) what was measured on the training images.
    pub mean: Vec<f32>,
    /// Standard deviations that are divided by, above 0. Default likewise.
    pub std: Vec<f32>,
    /// The large crops, which teacher and student see. Default 2 of 224 pixels, 0.32 to 1 of the image.
    #[serde(deserialize_with = "view_or_global")]
    pub global: ViewConfig,
    /// The small crops, which only the student sees. Default 8 of 98 pixels, 0.05 to 0.32 of the image: seven patches of
    /// 14. With patches of 16 the reference's are of 96.
    #[serde(deserialize_with = "view_or_local")]
    pub local: ViewConfig,
    /// Random brightness, contrast, saturation and hue.
    pub jitter: JitterConfig,
    /// Random blur.
    pub blur: BlurConfig,
    /// Random solarisation of every global crop but the first.
    pub solarize: SolarizeConfig,
}

/// Crops of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewConfig {
    /// How many an image becomes: 1 to 64 global ones, 0 to 64 local ones.
    pub count: usize,
    /// Height and width in pixels, 1 to 2048.
    pub size: u32,
    /// Least and largest share of the image's area, above 0, at most 1.
    pub scale: [f64; 2],
}

/// Random changes of colour (torchvision `ColorJitter`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JitterConfig {
    /// Probability that a crop is changed at all. Default 0.8.
    pub probability: f64,
    /// The factor is drawn from 1 - this to 1 + this, never below 0. Default 0.4.
    pub brightness: f64,
    /// As `brightness`. Default 0.4.
    pub contrast: f64,
    /// As `brightness`. Default 0.2.
    pub saturation: f64,
    /// The hue is turned by minus this to this part of the colour circle, at most 0.5. Default 0.1.
    pub hue: f64,
}

/// Random blur by a 9 x 9 Gaussian.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlurConfig {
    /// What the probabilities below mean. Default `as-trained`.
    pub convention: BlurConvention,
    /// Of the first global crop. Default 1.
    pub first_global: f64,
    /// Of the other global crops. Default 0.1.
    pub other_global: f64,
    /// Of the local crops. Default 0.5.
    pub local: f64,
    /// Least and largest standard deviation in pixels, above 0. Default `[0.1, 2]`.
    pub sigma: [f64; 2],
}

/// What a blur probability means. The reference's wrapper hands 1 - p to an operation that takes the probability of being
/// applied, and its authors confirm that the released networks were trained so (facebookresearch/dinov3, issue 286).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlurConvention {
    /// A crop is blurred with probability 1 - p, as the released networks saw it: with the default values the first global
    /// crop never, the second nine times in ten.
    AsTrained,
    /// A crop is blurred with probability p, as the paper's tables read.
    AsDeclared,
}

/// Random inversion of bright samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SolarizeConfig {
    /// Probability for a global crop that is not the first. Default 0.2.
    pub probability: f64,
    /// Samples at or above this level are inverted. Default 128.
    pub threshold: u8,
}

impl Default for MultiCropConfig {
    fn default() -> Self {
        Self {
            aspect: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bicubic,
            warp: 0.0,
            flip: 0.5,
            grey: 0.2,
            mean: IMAGENET_MEAN.to_vec(),
            std: IMAGENET_STD.to_vec(),
            global: default_global(),
            local: default_local(),
            jitter: JitterConfig::default(),
            blur: BlurConfig::default(),
            solarize: SolarizeConfig::default(),
        }
    }
}

impl Default for JitterConfig {
    fn default() -> Self {
        Self {
            probability: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.2,
            hue: 0.1,
        }
    }
}

impl Default for BlurConfig {
    fn default() -> Self {
        Self {
            convention: BlurConvention::AsTrained,
            first_global: 1.0,
            other_global: 0.1,
            local: 0.5,
            sigma: [0.1, 2.0],
        }
    }
}

impl Default for SolarizeConfig {
    fn default() -> Self {
        Self {
            probability: 0.2,
            threshold: 128,
        }
    }
}

fn default_global() -> ViewConfig {
    ViewConfig {
        count: 2,
        size: 224,
        scale: [0.32, 1.0],
    }
}

fn default_local() -> ViewConfig {
    ViewConfig {
        count: 8,
        size: 98,
        scale: [0.05, 0.32],
    }
}

/// A [`ViewConfig`] of which anything may be left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartialView {
    count: Option<usize>,
    size: Option<u32>,
    scale: Option<[f64; 2]>,
}

impl PartialView {
    fn or(self, default: ViewConfig) -> ViewConfig {
        ViewConfig {
            count: self.count.unwrap_or(default.count),
            size: self.size.unwrap_or(default.size),
            scale: self.scale.unwrap_or(default.scale),
        }
    }
}

fn view_or_global<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<ViewConfig, D::Error> {
    Ok(PartialView::deserialize(deserializer)?.or(default_global()))
}

fn view_or_local<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<ViewConfig, D::Error> {
    Ok(PartialView::deserialize(deserializer)?.or(default_local()))
}

impl ViewConfig {
    /// Values of one normalised crop, `channels * size * size`.
    pub fn values(&self, channels: usize) -> usize {
        channels * self.size as usize * self.size as usize
    }

    fn validate(&self, name: &str, min: usize) -> Result<()> {
        if !(min..=MAX_COUNT).contains(&self.count) {
            return refuse(
                &format!("{name}.count"),
                format!("{min} to {MAX_COUNT} crops"),
                self.count,
            );
        }
        if !(1..=MAX_SIZE).contains(&self.size) {
            return refuse(
                &format!("{name}.size"),
                format!("1 to {MAX_SIZE} pixels"),
                self.size,
            );
        }
        rising(&format!("{name}.scale"), self.scale, 1.0)
    }
}

impl BlurConfig {
    /// The probability that a crop is blurred, of the one that is `declared`.
    pub fn effective(&self, declared: f64) -> f64 {
        match self.convention {
            BlurConvention::AsTrained => 1.0 - declared,
            BlurConvention::AsDeclared => declared,
        }
    }
}

impl MultiCropConfig {
    /// Channels of a crop: 3, or the bands.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Values of one normalised global crop.
    pub fn global_values(&self) -> usize {
        self.global.values(self.channels())
    }

    /// Values of one normalised local crop.
    pub fn local_values(&self) -> usize {
        self.local.values(self.channels())
    }

    /// Refuses changes of colour, which bands have not.
    ///
    /// # Errors
    /// Names the field that is above 0.
    pub fn need_no_colour(&self) -> Result<()> {
        for (field, value) in [
            ("grey", self.grey),
            ("jitter.saturation", self.jitter.saturation),
            ("jitter.hue", self.jitter.hue),
            ("solarize.probability", self.solarize.probability),
        ] {
            if value > 0.0 {
                return refuse(field, "0 with bands, which are no colours", value);
            }
        }
        Ok(())
    }

    /// For bands of this mean and deviation: nothing that needs colours.
    pub fn without_colour(self, mean: Vec<f32>, std: Vec<f32>) -> Self {
        Self {
            grey: 0.0,
            jitter: JitterConfig {
                saturation: 0.0,
                hue: 0.0,
                ..self.jitter
            },
            solarize: SolarizeConfig {
                probability: 0.0,
                ..self.solarize
            },
            mean,
            std,
            ..self
        }
    }

    /// Checks every field's range; the error names the field as it stands in the file.
    pub fn validate(&self) -> Result<()> {
        rising("aspect", self.aspect, f64::MAX)?;
        self.global.validate("global", 1)?;
        self.local.validate("local", 0)?;
        let Self { jitter, blur, .. } = self;
        for (field, value) in [
            ("flip", self.flip),
            ("grey", self.grey),
            ("jitter.probability", jitter.probability),
            ("blur.first_global", blur.first_global),
            ("blur.other_global", blur.other_global),
            ("blur.local", blur.local),
            ("solarize.probability", self.solarize.probability),
        ] {
            within(field, value, 1.0)?;
        }
        for (field, value) in [
            ("jitter.brightness", jitter.brightness),
            ("jitter.contrast", jitter.contrast),
            ("jitter.saturation", jitter.saturation),
        ] {
            within(field, value, f64::MAX)?;
        }
        within("jitter.hue", jitter.hue, 0.5)?;
        within("warp", self.warp, 0.5)?;
        rising("blur.sigma", blur.sigma, f64::MAX)?;
        if self.mean.is_empty() || self.mean.len() != self.std.len() {
            let found = format!("{} and {}", self.mean.len(), self.std.len());
            return refuse("mean", "as many numbers as std, at least one", found);
        }
        if self.mean.iter().any(|value| !value.is_finite()) {
            return refuse("mean", "finite numbers", format!("{:?}", self.mean));
        }
        if self.std.iter().any(|&value| !(value.is_finite() && value > 0.0)) {
            return refuse("std", "finite numbers above 0", format!("{:?}", self.std));
        }
        Ok(())
    }
}

/// An error that names `field`, what was `expected` and what was `found`.
fn refuse(field: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Result<()> {
    Err(Error::input(field, format!("expected {expected}, found {found}")))
}

/// Checks that `value` lies from 0 to `max`.
fn within(field: &str, value: f64, max: f64) -> Result<()> {
    if (0.0..=max).contains(&value) {
        return Ok(());
    }
    let expected = match max {
        f64::MAX => "a finite number, 0 or above".to_owned(),
        _ => format!("a number from 0 to {max}"),
    };
    refuse(field, expected, value)
}

/// Checks that `range` rises, begins above 0 and ends at `max` or below.
fn rising(field: &str, range: [f64; 2], max: f64) -> Result<()> {
    let [min, largest] = range;
    if 0.0 < min && min <= largest && largest <= max {
        return Ok(());
    }
    let expected = match max {
        f64::MAX => "two rising finite numbers above 0".to_owned(),
        _ => format!("two rising numbers above 0, at most {max}"),
    };
    refuse(field, expected, format!("{range:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_read_back() {
        let default: MultiCropConfig = toml::from_str("").unwrap();
        assert_eq!(default, MultiCropConfig::default());
        for config in [
            default,
            MultiCropConfig::small_grey(28, 14),
            MultiCropConfig::small_colour(64, 24),
        ] {
            config.validate().unwrap();
            let written = toml::to_string(&config).unwrap();
            assert_eq!(toml::from_str::<MultiCropConfig>(&written).unwrap(), config);
        }
    }

    #[test]
    fn what_a_file_leaves_out_has_the_references_value() {
        let text = "[global]\nsize = 518\n[local]\ncount = 0\n[blur]\nconvention = \"as-declared\"\n";
        let config: MultiCropConfig = toml::from_str(text).unwrap();
        let mut expected = MultiCropConfig::default();
        expected.global.size = 518;
        expected.local.count = 0;
        expected.blur.convention = BlurConvention::AsDeclared;
        assert_eq!(config, expected);
        config.validate().unwrap();
        for unknown in ["sizes = 1", "[global]\nsizes = 1", "[blur]\np = 1"] {
            assert!(toml::from_str::<MultiCropConfig>(unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn probabilities_follow_the_convention() {
        let mut blur = BlurConfig::default();
        let declared = [blur.first_global, blur.other_global, blur.local];
        assert_eq!(declared.map(|p| blur.effective(p)), [0.0, 0.9, 0.5]);
        blur.convention = BlurConvention::AsDeclared;
        assert_eq!(declared.map(|p| blur.effective(p)), declared);
    }

    #[test]
    fn fields_out_of_range_are_named() {
        for (text, field) in [
            ("aspect = [0.0, 1.0]", "aspect"),
            ("aspect = [1.0, inf]", "aspect"),
            ("flip = 1.1", "flip"),
            ("grey = -0.1", "grey"),
            ("mean = [nan, 0.0, 0.0]", "mean"),
            ("std = [1.0, 0.0, 1.0]", "std"),
            ("[global]\ncount = 0", "global.count"),
            ("[local]\ncount = 65", "local.count"),
            ("[local]\nsize = 0", "local.size"),
            ("[global]\nsize = 4096", "global.size"),
            ("[global]\nscale = [0.5, 1.5]", "global.scale"),
            ("[local]\nscale = [0.5, 0.1]", "local.scale"),
            ("[jitter]\nprobability = 2.0", "jitter.probability"),
            ("[jitter]\nbrightness = inf", "jitter.brightness"),
            ("[jitter]\ncontrast = -1.0", "jitter.contrast"),
            ("[jitter]\nsaturation = nan", "jitter.saturation"),
            ("[jitter]\nhue = 0.6", "jitter.hue"),
            ("[blur]\nfirst_global = 2.0", "blur.first_global"),
            ("[blur]\nother_global = -1.0", "blur.other_global"),
            ("[blur]\nlocal = nan", "blur.local"),
            ("[blur]\nsigma = [0.0, 2.0]", "blur.sigma"),
            ("[solarize]\nprobability = 1.5", "solarize.probability"),
        ] {
            let config: MultiCropConfig = toml::from_str(text).unwrap();
            let error = config.validate().unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("{field}: expected ")),
                "{error}"
            );
            assert_eq!(error.exit_code(), 2);
        }
    }
}
