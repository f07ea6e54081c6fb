//! `preprocessor_config.json`, which transformers' image processors write. An image is resized (Pillow's `resize`), its
//! centre cut out, multiplied by `rescale_factor` and normalised; each step has a switch `do_..`.

use serde_json::Value;

use super::{Fields, GEOMETRY_FLAGS, has_geometry, pixels};
use crate::Result;
use crate::data::transform::{CropStart, Resize};
use crate::data::{Interpolation, Preprocess};
use crate::extract::model::preprocess::PreprocessOverrides;

/// What a class of processors does where its file does not say.
struct Class {
    /// Its name without `ImageProcessor`, `ImageProcessorFast`, `ImageProcessorPil` or `FeatureExtractor`.
    name: &'static str,
    /// Whether a `size` of one number is the shorter side, rather than both.
    shorter: bool,
    crops: bool,
    filter: Interpolation,
}

const fn class(name: &'static str, shorter: bool, crops: bool, filter: Interpolation) -> Class {
    Class {
        name,
        shorter,
        crops,
        filter,
    }
}

const CLASSES: [Class; 10] = [
    class("Bit", true, true, Interpolation::Bicubic),
    class("CLIP", true, true, Interpolation::Bicubic),
    class("ChineseCLIP", true, true, Interpolation::Bicubic),
    class("ViT", false, false, Interpolation::Bilinear),
    class("DeiT", false, true, Interpolation::Bicubic),
    class("Beit", false, false, Interpolation::Bicubic),
    class("Siglip", false, false, Interpolation::Bicubic),
    class("DINOv3ViT", false, false, Interpolation::Bilinear),
    class("ConvNext", true, false, Interpolation::Bicubic),
    class("Levit", true, true, Interpolation::Bicubic),
];

/// Steps that have their own reading below, or change nothing here: images are RGB already, and there are no labels.
const KNOWN_STEPS: [&str; 6] = [
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    "do_reduce_labels",
];

/// Reads `preprocessor_config.json`.
pub(super) fn read(fields: &Fields, flags: &PreprocessOverrides) -> Result<Option<Preprocess>> {
    let name = fields
        .text("image_processor_type")
        .or_else(|| fields.text("feature_extractor_type"));
    let name = name.unwrap_or_default();
    let base = [
        "ImageProcessorFast",
        "ImageProcessorPil",
        "ImageProcessor",
        "FeatureExtractor",
    ]
    .iter()
    .find_map(|end| name.strip_suffix(end));
    let class = base.and_then(|base| CLASSES.iter().find(|class| class.name == base));
    for (step, value) in fields.map {
        if step.starts_with("do_") && !KNOWN_STEPS.contains(&step.as_str()) && *value == Value::Bool(true) {
            return Err(fields.refuse(step, "false: a step that macula does not do", ""));
        }
    }
    let (mean, std) = normalisation(fields, flags)?;
    let (resize, crop) = match has_geometry(flags) {
        true => (None, None),
        false => geometry(fields, class)?,
    };
    let interpolation = match flags.interpolation {
        Some(filter) => filter,
        None if resize.is_none() => Interpolation::Bicubic, // nothing is resized by it
        None => filter(fields, class)?,
    };
    Ok(Some(Preprocess {
        resize,
        crop,
        crop_start: CropStart::Down,
        interpolation,
        mean,
        std,
        ..Preprocess::imagenet(1, 1)
    }))
}

/// Reads `processor_config.json`, which holds the same as `image_processor` beside what is no image.
pub(super) fn read_nested(fields: &Fields, flags: &PreprocessOverrides) -> Result<Option<Preprocess>> {
    match fields.object("image_processor") {
        Some(inner) => read(&inner, flags),
        None => Ok(None),
    }
}

type Geometry = (Option<Resize>, Option<(u32, u32)>);

fn geometry(fields: &Fields, class: Option<&Class>) -> Result<Geometry> {
    let resizes = fields.truth("do_resize")?.unwrap_or(true);
    let resize = match resizes {
        true => Some(size(fields, class)?),
        false => None,
    };
    if let (Some(Resize::Shorter(side)), Some("ConvNext")) = (resize, class.map(|class| class.name)) {
        return convnext(fields, side);
    }
    if fields.get("crop_pct").is_some() {
        return Err(fields.refuse("crop_pct", "none but from ConvNextImageProcessor", GEOMETRY_FLAGS));
    }
    let crops = match fields.truth("do_center_crop")? {
        Some(crops) => crops,
        None if fields.map.contains_key("do_center_crop") => false,
        None => class.map_or(fields.get("crop_size").is_some(), |class| class.crops),
    };
    let crop = match crops {
        true => Some(crop(fields)?),
        // What has one size whatever the image needs no crop to have it.
        false => match resize {
            Some(Resize::Exact(height, width)) => Some((height, width)),
            _ => None,
        },
    };
    let resize = match (resize, class.map(|class| class.name)) {
        // LevitImageProcessor.resize
        (Some(Resize::Shorter(side)), Some("Levit")) => {
            Some(Resize::Shorter((256.0 / 224.0 * f64::from(side)) as u32))
        }
        (resize, _) => resize,
    };
    Ok((resize, crop))
}

/// ConvNextImageProcessor.resize: below 384 the shorter side becomes larger by `crop_pct`, and its centre is cut out.
fn convnext(fields: &Fields, side: u32) -> Result<Geometry> {
    if side >= 384 {
        return Ok((Some(Resize::Exact(side, side)), Some((side, side))));
    }
    let share = fields.number("crop_pct")?.unwrap_or(224.0 / 256.0);
    if !(share > 0.0 && share <= 1.0) {
        return Err(fields.refuse("crop_pct", "a number above 0 and up to 1", GEOMETRY_FLAGS));
    }
    let resize = (f64::from(side) / share) as u32;
    Ok((Some(Resize::Shorter(resize)), Some((side, side))))
}

fn size(fields: &Fields, class: Option<&Class>) -> Result<Resize> {
    let refuse = || {
        let expected =
            "{\"shortest_edge\": n}, {\"height\": n, \"width\": n} or a number of a class that macula knows";
        fields.refuse("size", expected, GEOMETRY_FLAGS)
    };
    let value = fields.get("size").ok_or_else(refuse)?;
    if let (Some(side), Some(class)) = (pixels(value), class) {
        return Ok(match class.shorter {
            true => Resize::Shorter(side),
            false => Resize::Exact(side, side),
        });
    }
    let inner = fields.object("size").ok_or_else(refuse)?;
    let keys: Vec<&str> = inner
        .map
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, _)| key.as_str())
        .collect();
    let side = |key: &str| inner.get(key).and_then(pixels).ok_or_else(refuse);
    match keys[..] {
        ["shortest_edge"] => Ok(Resize::Shorter(side("shortest_edge")?)),
        ["height", "width"] | ["width", "height"] => Ok(Resize::Exact(side("height")?, side("width")?)),
        _ => Err(refuse()),
    }
}

fn crop(fields: &Fields) -> Result<(u32, u32)> {
    let refuse = || {
        let expected = "a number of pixels or {\"height\": n, \"width\": n}";
        fields.refuse("crop_size", expected, GEOMETRY_FLAGS)
    };
    let value = fields.get("crop_size").ok_or_else(refuse)?;
    if let Some(side) = pixels(value) {
        return Ok((side, side));
    }
    let inner = fields.object("crop_size").ok_or_else(refuse)?;
    let side = |key: &str| inner.get(key).and_then(pixels).ok_or_else(refuse);
    match inner.get("shortest_edge") {
        Some(_) => Ok((side("shortest_edge")?, side("shortest_edge")?)),
        None => Ok((side("height")?, side("width")?)),
    }
}

/// Pillow's number of a filter.
fn filter(fields: &Fields, class: Option<&Class>) -> Result<Interpolation> {
    let refuse = || fields.refuse("resample", "2 (bilinear) or 3 (bicubic)", "--interpolation");
    match fields.get("resample") {
        None => class.map(|class| class.filter).ok_or_else(refuse),
        Some(value) => match value.as_u64() {
            Some(2) => Ok(Interpolation::Bilinear),
            Some(3) => Ok(Interpolation::Bicubic),
            _ => Err(refuse()),
        },
    }
}

/// Mean and deviation of pixels from 0 to 1, for any factor: `(level * factor - shift - mean) / std` is
/// `(level / 255 - m) / s` with `m = (mean + shift) / k` and `s = std / k`, where `k = 255 * factor`.
fn normalisation(fields: &Fields, flags: &PreprocessOverrides) -> Result<(Vec<f32>, Vec<f32>)> {
    if let (Some(mean), Some(std)) = (&flags.mean, &flags.std) {
        return Ok((mean.clone(), std.clone()));
    }
    let factor = match fields.truth("do_rescale")?.unwrap_or(true) {
        true => fields.number("rescale_factor")?.unwrap_or(1.0 / 255.0),
        false => 1.0,
    };
    if !(factor.is_finite() && factor > 0.0) {
        return Err(fields.refuse("rescale_factor", "a number above 0", ""));
    }
    let shift = match fields.truth("rescale_offset")?.unwrap_or(false) {
        true => 1.0,
        false => 0.0,
    };
    let (mean, std) = match fields.truth("do_normalize")?.unwrap_or(true) {
        false => ([0.0; 3], [1.0; 3]),
        true => {
            let three = |key, flag| {
                fields
                    .triple(key, flag)?
                    .ok_or_else(|| fields.refuse(key, "three numbers, one a channel", flag))
            };
            (three("image_mean", "--mean")?, three("image_std", "--std")?)
        }
    };
    // 0.00392156862745098 and 1/255 are one number.
    let scale = factor * 255.0;
    let scale = if (scale - 1.0).abs() < 1e-9 { 1.0 } else { scale };
    let mean = mean.map(|mean| ((mean + shift) / scale) as f32);
    let std = std.map(|std| (std / scale) as f32);
    let given = |flag: &Option<Vec<f32>>, stated: [f32; 3]| flag.clone().unwrap_or(stated.to_vec());
    Ok((given(&flags.mean, mean), given(&flags.std, std)))
}
