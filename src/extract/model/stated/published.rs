//! How images are prepared for a released network that is opened by name, where no file says it.

use macula_models::weights::open_clip_name;

use super::open_clip::{CLIP_MEAN, CLIP_STD};
use crate::data::transform::{IMAGENET_MEAN, IMAGENET_STD, Resize};
use crate::data::{Interpolation, Preprocess};

/// Mean and deviation of DINOv3's weights of satellite images.
const SATELLITE: ([f32; 3], [f32; 3]) = ([0.43, 0.411, 0.296], [0.213, 0.156, 0.143]);

/// The preprocessing of `name`, a name of [`macula_models::weights::published`]; `None` where it is ImageNet's, or of an architecture
/// alone.
pub(in crate::extract::model) fn by_name(name: &str) -> Option<Preprocess> {
    if let Some(parts) = open_clip_name(name) {
        return Some(of_open_clip(parts.model, parts.side, parts.tag));
    }
    let (family, network) = name.split_once('-')?;
    match family {
        // As transformers' processor of DINOv3 does.
        "dinov3" | "eupe" => {
            let (mean, std) = match network.ends_with("-sat") {
                true => SATELLITE,
                false => (IMAGENET_MEAN, IMAGENET_STD),
            };
            Some(squashed(224, Interpolation::Bilinear, mean, std))
        }
        "lingbot" => Some(squashed(
            512,
            Interpolation::Bilinear,
            IMAGENET_MEAN,
            IMAGENET_STD,
        )),
        "tipsv2" => Some(squashed(448, Interpolation::Bilinear, [0.; 3], [1.; 3])),
        _ => None,
    }
}

fn squashed(side: u32, interpolation: Interpolation, mean: [f32; 3], std: [f32; 3]) -> Preprocess {
    Preprocess {
        resize: Some(Resize::Exact(side, side)),
        crop: Some((side, side)),
        interpolation,
        mean: mean.to_vec(),
        std: std.to_vec(),
        ..Preprocess::imagenet(side, side)
    }
}

/// As open_clip's `pretrained.py` says of its weights.
fn of_open_clip(model: &str, side: u32, tag: &str) -> Preprocess {
    let half = [0.5; 3];
    if model.starts_with("PE-Core") {
        return squashed(side, Interpolation::Bilinear, half, half);
    }
    if model.contains("SigLIP") {
        return squashed(side, Interpolation::Bicubic, half, half);
    }
    if tag.starts_with("dfn5b") {
        return squashed(side, Interpolation::Bicubic, CLIP_MEAN, CLIP_STD);
    }
    let (mean, std) = match model == "ViT-L-14" && tag.starts_with("laion2b") {
        true => (half, half),
        false => (CLIP_MEAN, CLIP_STD),
    };
    Preprocess {
        resize: Some(Resize::Shorter(side)),
        ..squashed(side, Interpolation::Bicubic, mean, std)
    }
}
