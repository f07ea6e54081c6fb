//! How files become pixels, and pixels network input.

use clap::Args;

use super::PREPROCESSING;
use crate::data::transform::Resize;
use crate::data::{DecodeOptions, Interpolation, SampleRange};
use crate::extract::model::PreprocessOverrides;

/// How images become network input.
#[derive(Debug, Args, Default)]
#[command(next_help_heading = PREPROCESSING)]
pub struct PreprocessArgs {
    /// Shorter side after resizing, in pixels; HxW for height and width whatever the proportions; 0 for none [default: what
    /// the model states]
    #[arg(long, value_name = "N or HxW", value_parser = resize)]
    pub resize: Option<Resize>,
    /// Side of the centre crop, in pixels; 0 for none [default: what the model states]
    #[arg(long, value_name = "N")]
    pub crop: Option<u32>,
    /// Filter of the resize [default: what the model states, else bicubic]
    #[arg(long, value_enum)]
    pub interpolation: Option<Interpolation>,
    /// Samples of more than 8 bits that become black and white: auto for the range of their type (0 to 1 of floats), two
    /// numbers, or clip, as Pillow does: grey of 16 bits and floats are cut off above 255 [default: what the model states,
    /// else clip]
    #[arg(long, value_name = "auto|LOW,HIGH", allow_hyphen_values = true)]
    pub sample_range: Option<SampleRange>,
    /// Mean per channel, or per band, in [0, 1] [default: what the model states, else ImageNet's]
    #[arg(long, value_name = "R,G,B", value_parser = channels)]
    pub mean: Option<Channels>,
    /// Standard deviation per channel, or per band, in [0, 1] [default: what the model states, else ImageNet's]
    #[arg(long, value_name = "R,G,B", value_parser = channels)]
    pub std: Option<Channels>,
}

/// How files become pixels.
#[derive(Debug, Args)]
#[command(next_help_heading = PREPROCESSING)]
pub struct DecodeArgs {
    /// Turn images as their EXIF says (the reference does not)
    #[arg(long)]
    exif: bool,
    /// Largest image, in pixels
    #[arg(long, value_name = "N", default_value_t = DecodeOptions::default().max_pixels)]
    max_pixels: u64,
    /// Colour under transparent pixels, 0 to 255 each [default: none, alpha is dropped as the reference does]
    #[arg(long, value_name = "R,G,B", value_parser = colour)]
    background: Option<[u8; 3]>,
}

fn resize(text: &str) -> std::result::Result<Resize, String> {
    let pixels = |text: &str| text.trim().parse::<u32>().ok();
    let read = match text.split_once('x') {
        None => pixels(text).map(Resize::Shorter),
        Some((height, width)) => pixels(height)
            .zip(pixels(width))
            .map(|(h, w)| Resize::Exact(h, w)),
    };
    read.ok_or_else(|| format!("expected a number of pixels or HxW, found `{text}`"))
}

/// A number for each channel; a list of its own, as clap takes one for a flag that is repeated.
type Channels = Box<[f32]>;

fn channels(text: &str) -> std::result::Result<Channels, String> {
    let values = text.split(',').map(|value| value.trim().parse().ok());
    let values: Option<Channels> = values.collect();
    values.ok_or_else(|| format!("expected three numbers r,g,b, or one a band, found `{text}`"))
}

/// Three whole numbers from 0 to 255.
pub fn colour(text: &str) -> std::result::Result<[u8; 3], String> {
    three(text).ok_or_else(|| format!("expected three whole numbers from 0 to 255 r,g,b, found `{text}`"))
}

/// Three values with commas between them.
fn three<T: std::str::FromStr>(text: &str) -> Option<[T; 3]> {
    let values = text.split(',').map(|value| value.trim().parse::<T>().ok());
    values.collect::<Option<Vec<T>>>()?.try_into().ok()
}

impl PreprocessArgs {
    /// The flags as overrides.
    pub fn overrides(&self) -> PreprocessOverrides {
        PreprocessOverrides {
            resize: self.resize,
            crop: self.crop,
            interpolation: self.interpolation,
            mean: self.mean.as_deref().map(<[f32]>::to_vec),
            std: self.std.as_deref().map(<[f32]>::to_vec),
            sample_range: self.sample_range,
        }
    }
}

impl DecodeArgs {
    /// The flags as a decoder takes them.
    pub fn options(&self) -> DecodeOptions {
        DecodeOptions {
            exif: self.exif,
            max_pixels: self.max_pixels,
            background: self.background,
            ..DecodeOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_is_a_side_or_both() {
        assert_eq!(resize("256"), Ok(Resize::Shorter(256)));
        assert_eq!(resize("224x196"), Ok(Resize::Exact(224, 196)));
        for wrong in ["", "x", "1x", "1x2x3", "-1", "2.5"] {
            assert!(resize(wrong).unwrap_err().ends_with(&format!("found `{wrong}`")));
        }
    }

    #[test]
    fn three_values_are_read_or_quoted() {
        assert_eq!(colour("255, 0,7"), Ok([255, 0, 7]));
        assert_eq!(channels("0.5,1,-2"), Ok([0.5, 1.0, -2.0].into()));
        for wrong in ["1,,2", "white", ""] {
            assert!(
                channels(wrong)
                    .unwrap_err()
                    .ends_with(&format!("found `{wrong}`"))
            );
        }
        for wrong in ["1,2", "1,2,3,4", "1,2,256", "1,2,-1", "1,,2", "white"] {
            assert!(colour(wrong).unwrap_err().ends_with(&format!("found `{wrong}`")));
        }
    }
}
