//! The identity model: the pixels themselves, in [0, 1], as features. It is the floor that a network must beat.

use serde_json::json;

use super::{FeatureModel, ModelOptions, OpenModel};
use crate::data::{DecodeOptions, Preprocess, Source};
use crate::extract::OutputSpec;
use crate::{Error, Result};

/// Which channels become features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// One channel for a grey source, three for any other.
    Auto,
    Rgb,
    Gray,
}

/// Reads `pixels`, `pixels:rgb` or `pixels:gray`; `None` when `spec` is no pixel model at all.
pub(super) fn parse(spec: &str) -> Option<Result<PixelMode>> {
    let mode = match spec.strip_prefix("pixels")? {
        "" => Ok(Mode::Auto),
        ":rgb" => Ok(Mode::Rgb),
        ":gray" => Ok(Mode::Gray),
        rest if rest.starts_with(':') => Err(Error::setting(
            "model",
            format!("expected pixels, pixels:rgb or pixels:gray, found `{spec}`"),
        )),
        _ => return None,
    };
    Some(mode.map(PixelMode))
}

/// A parsed `pixels[:mode]`.
pub(super) struct PixelMode(Mode);

/// Pixels as features, `[C * H * W]` in the order of the network's input.
pub struct PixelModel {
    output: OutputSpec,
    gray: bool,
    plane: usize,
}

pub(super) fn open(mode: PixelMode, source: &dyn Source, options: &ModelOptions) -> Result<OpenModel> {
    options.outputs.choose("pixels", &["pixels".to_owned()])?;
    let preprocess = as_they_are(source, options)?;
    let (height, width) = preprocess.crop.unwrap_or((1, 1));
    let plane = height as usize * width as usize;
    let gray = match mode.0 {
        Mode::Auto => source.is_grey(),
        Mode::Rgb => false,
        Mode::Gray => true,
    };
    let model = PixelModel {
        output: OutputSpec {
            name: "pixels".to_owned(),
            shape: vec![if gray { 1 } else { 3 }, height as usize, width as usize],
        },
        gray,
        plane,
    };
    Ok(OpenModel {
        model: Box::new(model),
        preprocess,
    })
}

/// Pixels in [0, 1], without a resize, cropped to the size of the first image; flags say otherwise.
pub(super) fn as_they_are(source: &dyn Source, options: &ModelOptions) -> Result<Preprocess> {
    let base = Preprocess {
        resize: None,
        crop: None,
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
        ..Preprocess::imagenet(1, 1)
    };
    let mut preprocess = options.preprocess.over(base);
    if preprocess.crop.is_none() {
        preprocess.crop = Some(first_size(source, &preprocess)?);
    }
    preprocess.validate()?;
    Ok(preprocess)
}

/// Height and width of the first image that can be read, after resizing.
fn first_size(source: &dyn Source, preprocess: &Preprocess) -> Result<(u32, u32)> {
    let mut reason = "the source is empty".to_owned();
    for row in 0..source.len().min(100) {
        match source.load(row, &DecodeOptions::for_size()) {
            Ok(image) => {
                let image = preprocess.pixels(&image)?;
                return Ok((image.height(), image.width()));
            }
            Err(error) => reason = format!("{}: {}", error.path, error.reason),
        }
    }
    Err(Error::setting(
        "crop",
        format!("needed, since no image gives a size ({reason})"),
    ))
}

impl FeatureModel for PixelModel {
    fn outputs(&self) -> &[OutputSpec] {
        std::slice::from_ref(&self.output)
    }

    fn describe(&self) -> serde_json::Value {
        json!({ "kind": "pixels", "channels": if self.gray { 1 } else { 3 } })
    }

    fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        let out = &mut outputs[0];
        if !self.gray {
            out.extend_from_slice(pixels);
            return Ok(());
        }
        for image in pixels.chunks_exact(3 * self.plane).take(n) {
            let (red, rest) = image.split_at(self.plane);
            let (green, blue) = rest.split_at(self.plane);
            // The channels of a grey image are equal, and then this is the channel itself.
            out.extend(red.iter().zip(green).zip(blue).map(|((r, g), b)| {
                if r == g && g == b {
                    *r
                } else {
                    0.299 * r + 0.587 * g + 0.114 * b
                }
            }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_is_the_luma_of_colours_and_the_channel_itself_where_all_are_equal() -> Result<()> {
        let mut model = PixelModel {
            output: OutputSpec {
                name: "pixels".to_owned(),
                shape: vec![1, 1, 4],
            },
            gray: true,
            plane: 4,
        };
        // Two images of four pixels, [3, 1, 4] each.
        let image = [0.3, 0.2, 0.9, 0.5, 0.3, 0.2, 0.1, 0.1, 0.3, 0.7, 0.1, 0.8];
        let mut outputs = [Vec::new()];
        model.run(&[image, image].concat(), 2, &mut outputs)?;
        let luma = |r: f32, g: f32, b: f32| 0.299 * r + 0.587 * g + 0.114 * b;
        let grey = [0.3, luma(0.2, 0.2, 0.7), luma(0.9, 0.1, 0.1), luma(0.5, 0.1, 0.8)];
        assert_eq!(outputs[0].len(), 8);
        for (found, expected) in outputs[0].iter().zip(grey.iter().chain(&grey)) {
            assert!((found - expected).abs() < 1e-6, "{found} beside {expected}");
        }
        assert_eq!(outputs[0][0].to_bits(), 0.3_f32.to_bits());
        Ok(())
    }

    #[test]
    fn only_pixels_and_its_kinds_are_pixels() {
        assert!(parse("pixels-of-mine.onnx").is_none());
        assert!(parse("pixels:rgb").is_some_and(|mode| mode.is_ok()));
        assert!(parse("pixels:hsv").is_some_and(|mode| mode.is_err()));
    }
}
