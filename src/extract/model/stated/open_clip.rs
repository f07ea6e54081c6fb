//! `open_clip_config.json`: `preprocess_cfg`, as open_clip's `image_transform_v2` reads it for evaluation, and the size of
//! the images from `model_cfg`.

use super::{Fields, GEOMETRY_FLAGS, has_geometry};
use crate::Result;
use crate::data::Preprocess;
use crate::data::transform::Resize;
use crate::extract::model::preprocess::PreprocessOverrides;

/// `OPENAI_DATASET_MEAN` and `OPENAI_DATASET_STD`.
pub(super) const CLIP_MEAN: [f32; 3] = [0.481_454_67, 0.457_827_5, 0.408_210_72];
pub(super) const CLIP_STD: [f32; 3] = [0.268_629_55, 0.261_302_6, 0.275_777_1];

/// Reads the file.
pub(super) fn read(fields: &Fields, flags: &PreprocessOverrides) -> Result<Option<Preprocess>> {
    let Some(cfg) = fields.object("preprocess_cfg") else {
        return Ok(None);
    };
    let (resize, crop) = match has_geometry(flags) {
        true => (None, None),
        false => geometry(fields, &cfg)?,
    };
    let interpolation = cfg.filter_or_bicubic(flags)?;
    let (mean, std) = cfg.mean_and_std(flags, CLIP_MEAN, CLIP_STD)?;
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

fn geometry(fields: &Fields, cfg: &Fields) -> Result<Geometry> {
    let vision = fields
        .object("model_cfg")
        .and_then(|model| model.object("vision_cfg"));
    let of_model = match vision {
        Some(vision) => vision.sides("image_size")?,
        None => None,
    };
    let (height, width) = cfg.sides("size")?.or(of_model).unwrap_or((224, 224));
    let resize = match cfg.text("resize_mode").unwrap_or("shortest") {
        "squash" => Resize::Exact(height, width),
        "shortest" if height == width => Resize::Shorter(height),
        "shortest" => return Err(cfg.refuse("size", "a square with resize_mode shortest", GEOMETRY_FLAGS)),
        _ => return Err(cfg.refuse("resize_mode", "shortest or squash", GEOMETRY_FLAGS)),
    };
    Ok((Some(resize), Some((height, width))))
}
