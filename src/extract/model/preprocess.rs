//! Which preprocessing an extraction uses: the user's flags first, then what the model's file says, then what the files beside
//! it say, then ImageNet's, with a notice.

use std::path::Path;

use macula_models::weights::{Checkpoint, PREPROCESS_KEY};

use super::stated;
use crate::data::transform::{Resize, of_colours};
use crate::data::{Bands, Interpolation, Preprocess, SampleRange};
use crate::{Error, Result};

/// Preprocessing as far as flags gave it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PreprocessOverrides {
    /// What images are resized to, in pixels; a shorter side of 0 for no resizing.
    pub resize: Option<Resize>,
    /// Side of the centre crop, in pixels; 0 for no crop.
    pub crop: Option<u32>,
    /// Filter of the resize.
    pub interpolation: Option<Interpolation>,
    /// Mean per channel, in [0, 1].
    pub mean: Option<Vec<f32>>,
    /// Standard deviation per channel, in [0, 1].
    pub std: Option<Vec<f32>>,
    /// What samples of more than 8 bits become.
    pub sample_range: Option<SampleRange>,
}

impl PreprocessOverrides {
    /// `base` with the flags laid over it. Where images are squeezed into the crop, another crop takes that size with it.
    pub fn over(&self, base: Preprocess) -> Preprocess {
        let crop = match self.crop {
            Some(0) => None,
            Some(side) => Some((side, side)),
            None => base.crop,
        };
        let squeezed = |resize: Resize| match (resize, base.crop, crop) {
            (Resize::Exact(height, width), Some(before), Some((crop_height, crop_width)))
                if before == (height, width) =>
            {
                Resize::Exact(crop_height, crop_width)
            }
            (resize, _, _) => resize,
        };
        Preprocess {
            resize: match self.resize {
                Some(Resize::Shorter(0)) => None,
                Some(resize) => Some(resize),
                None => base.resize.map(squeezed),
            },
            crop,
            crop_start: base.crop_start,
            interpolation: self.interpolation.unwrap_or(base.interpolation),
            mean: self.mean.clone().unwrap_or(base.mean),
            std: self.std.clone().unwrap_or(base.std),
            sample_range: self.sample_range.unwrap_or(base.sample_range),
            bands: base.bands,
        }
    }

    /// Whether nothing but the filter is left to assume.
    fn is_whole(&self) -> bool {
        self.resize.is_some() && self.crop.is_some() && self.mean.is_some() && self.std.is_some()
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

/// What says which size a network's images have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The files that state a preprocessing; this height and width where they state none.
    Stated(u32, u32),
    /// This height and width, whatever the files say.
    Given(u32, u32),
}

/// How images are prepared for the network in `path`, which takes so many `channels` if it says so: by `flags`, by `own` (JSON in the
/// file itself, and what it is called), by the files beside it, or as for ImageNet. stderr says which files, and what was assumed.
///
/// # Errors
/// A statement that cannot be read, that asks for what macula does not do, or that is of other channels.
pub fn of_file(
    path: &Path,
    own: Option<(&str, &str)>,
    channels: Option<usize>,
    size: Size,
    flags: &PreprocessOverrides,
) -> Result<Preprocess> {
    let preprocess = of_file_or_name(path, own, None, size, flags)?;
    for_channels(path, preprocess, channels, flags)
}

/// [`of_file`], where the network may be known by name (`--arch`): that is asked after the files.
fn of_file_or_name(
    path: &Path,
    own: Option<(&str, &str)>,
    arch: Option<&str>,
    size: Size,
    flags: &PreprocessOverrides,
) -> Result<Preprocess> {
    let stated = match own {
        Some((what, json)) => Some(Preprocess::from_json(what, json)?),
        None => match stated::beside(path, flags)? {
            Some(stated) => {
                stated.preprocess.validate().map_err(|error| match error {
                    Error::Input { what, reason } => {
                        Error::input(format!("{}: {what}", stated.file.display()), reason)
                    }
                    other => other,
                })?;
                tracing::info!(
                    "preprocessing from {}: {}",
                    stated.file.display(),
                    flags.over(stated.preprocess.clone()).to_json()?
                );
                Some(stated.preprocess)
            }
            None => match arch.map(|arch| (arch, stated::by_name(arch))) {
                Some((arch, Some(known))) => {
                    tracing::info!(
                        "preprocessing of {arch}: {}",
                        flags.over(known.clone()).to_json()?
                    );
                    Some(known)
                }
                _ => None,
            },
        },
    };
    let (Size::Stated(height, width) | Size::Given(height, width)) = size;
    let base = match (stated, size) {
        (None, _) => {
            let assumed = imagenet(height, width);
            if !flags.is_whole() {
                tracing::warn!(
                    "{} does not say how its images are prepared: ImageNet's preprocessing is assumed, {}",
                    path.display(),
                    flags.over(assumed.clone()).to_json()?
                );
            }
            assumed
        }
        (Some(stated), Size::Given(height, width)) => at_size(stated, height, width),
        (Some(stated), Size::Stated(height, width)) => Preprocess {
            crop: stated.crop.or(Some((height, width))),
            ..stated
        },
    };
    Ok(flags.over(base))
}

/// `preprocess` for a network of `channels`: of bands where they are not three and nothing states so.
///
/// # Errors
/// Other channels than stated, bands whose mean and deviation nobody says.
fn for_channels(
    path: &Path,
    mut preprocess: Preprocess,
    channels: Option<usize>,
    flags: &PreprocessOverrides,
) -> Result<Preprocess> {
    let refuse = |reason: String| Err(Error::input(path.display().to_string(), reason));
    let channels = channels.unwrap_or(preprocess.channels());
    if preprocess.bands.is_none() && channels != 3 {
        if flags.mean.is_none() || flags.std.is_none() {
            return refuse(format!(
                "takes images of {channels} channels and does not say how they are normalised: expected --mean and --std of \
                 {channels} numbers each, found none"
            ));
        }
        preprocess.bands = Some(Bands::new(channels).map_err(|reason| Error::input("channels", reason))?);
    }
    if preprocess.channels() != channels {
        let found = preprocess.channels();
        return refuse(format!(
            "expected a preprocessing of {channels} channels, found one of {found}"
        ));
    }
    preprocess.validate()?;
    Ok(preprocess)
}

/// `stated` for images of another size: the proportion of resize and crop is kept.
fn at_size(stated: Preprocess, height: u32, width: u32) -> Preprocess {
    let longest = |(height, width): (u32, u32)| f64::from(height.max(width));
    let scaled = |side: u32, from: f64, to: f64| (f64::from(side) * to / from).round() as u32;
    let resize = match (stated.resize, stated.crop) {
        (Some(Resize::Shorter(side)), Some(crop)) => Some(Resize::Shorter(scaled(
            side,
            longest(crop),
            longest((height, width)),
        ))),
        (Some(Resize::Exact(rows, columns)), Some(crop)) => Some(Resize::Exact(
            scaled(rows, f64::from(crop.0), f64::from(height)),
            scaled(columns, f64::from(crop.1), f64::from(width)),
        )),
        (resize, _) => resize,
    };
    Preprocess {
        resize,
        crop: Some((height, width)),
        ..stated
    }
}

/// [`of_file`] for a checkpoint, whose own statement is macula's. `arch` is what it was opened as, which may be the name of a
/// released network: that is asked after the files.
///
/// # Errors
/// As [`of_file`].
pub fn of_checkpoint(
    path: &Path,
    (checkpoint, arch): (&Checkpoint, Option<&str>),
    size: Size,
    flags: &PreprocessOverrides,
) -> Result<Preprocess> {
    let own = checkpoint.preprocess.as_deref();
    let preprocess = of_file_or_name(path, own.map(|json| (PREPROCESS_KEY, json)), arch, size, flags)?;
    for_channels(path, preprocess, Some(checkpoint.config.in_channels), flags)
}

/// Mean and deviation alone, for who makes the images otherwise; `given` are the flags'. `own` and notices as in
/// [`of_file`], `arch` as in [`of_checkpoint`].
///
/// # Errors
/// As [`of_file`].
pub fn normalisation_of(
    path: &Path,
    own: Option<(&str, &str)>,
    arch: Option<&str>,
    given: (Option<[f32; 3]>, Option<[f32; 3]>),
) -> Result<([f32; 3], [f32; 3])> {
    let flags = PreprocessOverrides {
        // Not used: parts that flags give are not read.
        resize: Some(Resize::Shorter(1)),
        crop: Some(1),
        interpolation: Some(Interpolation::Bicubic),
        mean: given.0.map(|mean| mean.to_vec()),
        std: given.1.map(|std| std.to_vec()),
        sample_range: None,
    };
    let stated = match own {
        Some((what, json)) => Some(Preprocess::from_json(what, json)?),
        None => stated::beside(path, &flags)?.map(|stated| {
            tracing::info!("mean and deviation of pixels from {}", stated.file.display());
            stated.preprocess
        }),
    };
    let stated = stated.or_else(|| stated::by_name(arch?));
    let stated = stated.unwrap_or_else(|| {
        if given.0.is_none() || given.1.is_none() {
            tracing::warn!(
                "{} does not say how its pixels are normalised: ImageNet's mean and deviation are assumed",
                path.display()
            );
        }
        Preprocess::imagenet(1, 1)
    });
    let colours = |given: Option<[f32; 3]>, field: &str, stated: &[f32]| match given {
        Some(given) => Ok(given),
        None => of_colours(&format!("{}: {field}", path.display()), stated),
    };
    Ok((
        colours(given.0, "mean", &stated.mean)?,
        colours(given.1, "std", &stated.std)?,
    ))
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
        return Err(Error::setting(
            "crop",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_when_nothing_but_the_filter_is_left() {
        let whole = PreprocessOverrides {
            resize: Some(Resize::Shorter(8)),
            crop: Some(8),
            mean: Some(vec![0.5; 3]),
            std: Some(vec![0.5; 3]),
            ..PreprocessOverrides::default()
        };
        assert!(whole.is_whole() && !PreprocessOverrides::default().is_whole());
        let without: [fn(&mut PreprocessOverrides); 4] = [
            |flags| flags.resize = None,
            |flags| flags.crop = None,
            |flags| flags.mean = None,
            |flags| flags.std = None,
        ];
        for (place, take) in without.iter().enumerate() {
            let mut flags = whole.clone();
            take(&mut flags);
            assert!(!flags.is_whole(), "{place}");
        }
    }
}
