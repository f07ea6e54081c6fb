//! `config.json` of a timm repository: `pretrained_cfg`, as `timm.data.resolve_data_config` and
//! `transforms_imagenet_eval` read it.

use super::{Fields, GEOMETRY_FLAGS, has_geometry, pixels};
use crate::Result;
use crate::data::Preprocess;
use crate::data::transform::{IMAGENET_MEAN, IMAGENET_STD, Resize};
use crate::extract::model::preprocess::PreprocessOverrides;

/// `DEFAULT_CROP_PCT`.
const CROP_SHARE: f64 = 0.875;

/// Reads the `pretrained_cfg`, or the whole file where it is one; other `config.json` say nothing.
pub(super) fn read(fields: &Fields, flags: &PreprocessOverrides) -> Result<Option<Preprocess>> {
    let inner = match fields.object("pretrained_cfg") {
        Some(inner) => inner,
        None if fields.text("architecture").is_some() && fields.get("input_size").is_some() => Fields {
            file: fields.file,
            map: fields.map,
        },
        None => return Ok(None),
    };
    let (resize, crop) = match has_geometry(flags) {
        true => (None, None),
        false => geometry(&inner)?,
    };
    let interpolation = inner.filter_or_bicubic(flags)?;
    let (mean, std) = inner.mean_and_std(flags, IMAGENET_MEAN, IMAGENET_STD)?;
    Ok(Some(Preprocess {
        resize,
        crop,
        interpolation,
        mean,
        std,
        ..Preprocess::imagenet(1, 1)
    }))
}

type Geometry = (Option<Resize>, Option<(u32, u32)>);

fn geometry(fields: &Fields) -> Result<Geometry> {
    let refuse = |key: &str, expected: &str| fields.refuse(key, expected, GEOMETRY_FLAGS);
    let sizes = match fields.get("input_size") {
        None => vec![3, 224, 224],
        Some(value) => {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(pixels).collect()
        }
    };
    let [3, height, width] = sizes[..] else {
        return Err(refuse("input_size", "[3, height, width]"));
    };
    if let Some(border) = fields.number("crop_border_pixels")?
        && border != 0.0
    {
        return Err(refuse("crop_border_pixels", "0"));
    }
    let share = match fields.number("crop_pct")? {
        Some(share) if share != 0.0 => share,
        _ => CROP_SHARE,
    };
    if !(share > 0.0 && share.is_finite()) {
        return Err(refuse("crop_pct", "a number above 0"));
    }
    let scaled = |side: u32| (f64::from(side) / share).floor() as u32;
    let resize = match fields.text("crop_mode").unwrap_or("center") {
        "squash" => Resize::Exact(scaled(height), scaled(width)),
        "center" if scaled(height) == scaled(width) => Resize::Shorter(scaled(height)),
        "center" => return Err(refuse("input_size", "a square with crop_mode center")),
        _ => return Err(refuse("crop_mode", "center or squash")),
    };
    Ok((Some(resize), Some((height, width))))
}
