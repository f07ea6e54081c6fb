//! Which preprocessing an extraction uses: the user's flags first, then what the model's file says, then ImageNet's.

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
