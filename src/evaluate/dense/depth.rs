//! `eval depth` from images to its result.

use macula_eval::metrics::depth::DepthErrors;
use macula_eval::protocols::dense::Canvas;
use macula_eval::protocols::dense::depth::{
    DepthConfig, DepthData, DepthEstimator, DepthResult, ImageErrors,
};
use macula_eval::table::EvalResult;
use serde_json::json;

use super::images::Reader;
use super::per_image::PerImage;
use super::targets::Depths;
use super::{DenseRequest, Opened, request_error, train_windows};
use crate::Result;

/// Trains a linear head on the patch and class tokens of `request.model` and scores it on the test images, once, beside the
/// mean training depth. `depths.crop` says which pixels of the test images count.
///
/// # Errors
/// One line that names the file or flag: a depth map that is missing or of another size than its image, no valid depth,
/// features beyond the memory limit, a model without patch tokens.
pub fn depth(request: &DenseRequest, depths: Depths, config: &DepthConfig) -> Result<(EvalResult, PerImage)> {
    config.validate()?;
    if !(depths.scale.is_finite() && depths.scale > 0.0) {
        return Err(request_error(
            "depth_scale",
            format!("expected a number above 0, found {}", depths.scale),
        ));
    }
    let mut opened = Opened::new::<Depths>(request, true)?;
    let window = opened.model.window;
    let in_training = Depths {
        crop: depths.crop.of_training(&request.train_data),
        ..depths
    };
    let train = train_windows(request, opened.train.as_ref(), &in_training, &mut opened.model)?;
    let data = DepthData {
        features: train.features,
        depths: train.targets,
        size: window,
        image_of: train.image_of,
    };
    let estimator = DepthEstimator::fit(&data, config)?;
    drop(data);
    let (images, per_image) = score(request, &mut opened, &depths, &estimator, config)?;
    let mut result = DepthResult::new(&estimator, images, config)?.to_eval_result()?;
    opened.describe_into(&mut result, request)?;
    result.settings["depth_scale"] = json!(depths.scale);
    result.settings["eval_crop"] = json!(depths.crop);
    result.settings["train_crop"] = json!(in_training.crop);
    Ok((result, per_image))
}

/// Errors on every test image that has valid pixels, at the size of its depth map.
fn score(
    request: &DenseRequest,
    opened: &mut Opened,
    depths: &Depths,
    estimator: &DepthEstimator,
    config: &DepthConfig,
) -> Result<(Vec<ImageErrors>, PerImage)> {
    let reader = Reader {
        source: opened.test.as_ref(),
        target: depths,
        request,
        doing: "test",
    };
    let per_window = opened.model.window_len();
    let (mut images, mut per_image) = (Vec::new(), PerImage::default());
    reader.run(&mut opened.model, |image, features| {
        let mut canvas = Canvas::new(image.size, 1);
        for (features, &(top, left)) in features.chunks_exact(per_window).zip(&image.places) {
            canvas.add(&estimator.depths(features), estimator.to_pixels(), top, left);
        }
        let truth = &image.target;
        let predicted = canvas.finish((truth.height, truth.width), |depth| depth[0]);
        let mean = vec![estimator.mean(); truth.values.len()];
        let errors = |predicted: &[f32]| DepthErrors::compare(predicted, &truth.values, config.range);
        if let (Some(head), Some(mean)) = (errors(&predicted), errors(&mean)) {
            let scores: Vec<(&str, f64)> = DepthErrors::NAMES.into_iter().zip(head.values()).collect();
            per_image.add(&image.record, &scores);
            images.push(ImageErrors { head, mean });
        }
        Ok(())
    })?;
    Ok((images, per_image))
}
