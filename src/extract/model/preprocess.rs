//! Which preprocessing an extraction uses: the user's flags first, then what the model's file says, then ImageNet's.

use macula_models::weights::{Checkpoint, PREPROCESS_KEY};

use crate::data::{Interpolation, Preprocess};
use crate::{Error, Result};

/// Preprocessing as far as flags gave it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PreprocessOverrides {
    /// Shorter side after resizing, in pixels; 0 for no resizing.
    pub resize: Option<u32>,
    /// Side of the centre crop, in pixels; 0 for no crop.
    pub crop: Option<u32>,
    /// Filter of the resize.
    pub interpolation: Option<Interpolation>,
    /// Mean per channel, in [0, 1].
    pub mean: Option<[f32; 3]>,
    /// Standard deviation per channel, in [0, 1].
    pub std: Option<[f32; 3]>,
}

impl PreprocessOverrides {
    /// `base` with the flags laid over it.
    pub fn over(&self, base: Preprocess) -> Preprocess {
        let side = |given: Option<u32>| given.map(|side| Some(side).filter(|side| *side > 0));
        Preprocess {
            resize: side(self.resize).unwrap_or(base.resize),
            crop: side(self.crop)
                .map(|crop| crop.map(|side| (side, side)))
                .unwrap_or(base.crop),
            interpolation: self.interpolation.unwrap_or(base.interpolation),
            mean: self.mean.unwrap_or(base.mean),
            std: self.std.unwrap_or(base.std),
        }
    }
}

/// ImageNet's evaluation preprocessing for an input of `height x width`: at 224, the shorter side to 256, then the
/// crop; other sizes in the same proportion (DINOv2 `make_classification_eval_transform`).
pub fn imagenet(height: u32, width: u32) -> Preprocess {
    let resize = (f64::from(height.max(width)) * 256.0 / 224.0).round() as u32;
    Preprocess {
        crop: Some((height, width)),
        ..Preprocess::imagenet(resize, height)
    }
}

/// How images are prepared for a checkpoint at `height x width`: as its file says, at that size, or as for ImageNet.
///
/// # Errors
/// A file whose preprocessing cannot be read.
pub fn of_checkpoint(checkpoint: &Checkpoint, height: u32, width: u32) -> Result<Preprocess> {
    let Some(json) = &checkpoint.preprocess else {
        return Ok(imagenet(height, width));
    };
    let stored = Preprocess::from_json(PREPROCESS_KEY, json)?;
    // Another size keeps the proportion of resize and crop.
    let longest = |(height, width): (u32, u32)| height.max(width);
    let resize = match (stored.resize, stored.crop) {
        (Some(resize), Some(crop)) => {
            let scale = f64::from(longest((height, width))) / f64::from(longest(crop));
            Some((f64::from(resize) * scale).round() as u32)
        }
        (resize, _) => resize,
    };
    Ok(Preprocess {
        resize,
        crop: Some((height, width)),
        ..stored
    })
}

/// Checks that the images will have the size that `file` takes: `expected` is its fixed height and width.
///
/// # Errors
/// Names the file, the size it takes and the crop.
pub fn check_size(
    file: &str,
    preprocess: &Preprocess,
    expected: (Option<usize>, Option<usize>),
) -> Result<()> {
    let Some((height, width)) = preprocess.crop else {
        return Err(Error::input(
            "--crop",
            "expected a size above 0, found none: a network needs images of one size",
        ));
    };
    let fits = |side: u32, expected: Option<usize>| expected.is_none_or(|expected| expected == side as usize);
    if fits(height, expected.0) && fits(width, expected.1) {
        return Ok(());
    }
    let side = |side: Option<usize>| side.map_or("any".to_owned(), |side| side.to_string());
    Err(Error::input(
        file,
        format!(
            "expects images of {}x{} (height x width), the preprocessing gives {height}x{width}",
            side(expected.0),
            side(expected.1)
        ),
    ))
}
