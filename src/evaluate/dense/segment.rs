//! `eval segment` from images to its result.

use macula_eval::metrics::iou::{PixelCounts, VOID};
use macula_eval::protocols::dense::Canvas;
use macula_eval::protocols::dense::segment::{
    SegmentConfig, SegmentData, SegmentResult, Segmenter, class_of,
};
use macula_eval::table::EvalResult;
use serde_json::json;

use super::images::Reader;
use super::per_image::PerImage;
use super::targets::Masks;
use super::{DenseRequest, Opened, train_windows};
use crate::{Error, Result};

/// What is known of the classes beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classes {
    /// As many as the training masks have; their names are their numbers.
    FromMasks,
    /// This many; their names are their numbers.
    Count(usize),
    /// These, from label 0.
    Names(Vec<String>),
}

impl Classes {
    /// Number of classes, where it is known.
    fn count(&self) -> Option<usize> {
        match self {
            Self::FromMasks => None,
            Self::Count(count) => Some(*count),
            Self::Names(names) => Some(names.len()),
        }
    }

    /// The names, given the training masks' labels.
    fn names(&self, labels: &[u8]) -> Result<Vec<String>> {
        if let Self::Names(names) = self {
            return Ok(names.clone());
        }
        let seen = labels.iter().filter(|&&label| label != VOID).max();
        let count = match (self.count(), seen) {
            (Some(count), _) => count,
            (None, Some(&highest)) => usize::from(highest) + 1,
            (None, None) => {
                return Err(Error::input(
                    "train masks",
                    "expected labelled pixels, found none",
                ));
            }
        };
        Ok((0..count).map(|class| class.to_string()).collect())
    }
}

/// Trains a linear head on the patch features of `request.model` and scores it on the test images, once.
///
/// # Errors
/// One line that names the file, flag or class: a mask that is missing, of another size than its image or with a label out
/// of range, a class without training pixels, features beyond the memory limit, a model without patch tokens.
pub fn segment(
    request: &DenseRequest,
    masks: Masks,
    classes: &Classes,
    config: &SegmentConfig,
) -> Result<(EvalResult, PerImage)> {
    config.validate()?;
    let masks = Masks {
        classes: classes.count(),
        ..masks
    };
    let mut opened = Opened::new::<Masks>(request, false)?;
    let window = opened.model.window;
    let train = train_windows(request, opened.train.as_ref(), &masks, &mut opened.model)?;
    let names = classes.names(&train.targets)?;
    let data = SegmentData {
        features: train.features,
        labels: train.targets,
        size: window,
        image_of: train.image_of,
    };
    let segmenter = Segmenter::fit(&data, &names, config)?;
    drop(data);
    let masks = Masks {
        classes: Some(names.len()),
        ..masks
    };
    let (images, per_image) = score(request, &mut opened, &masks, &segmenter)?;
    let mut result = SegmentResult::new(&segmenter, &names, &images, config).to_eval_result()?;
    opened.describe_into(&mut result, request)?;
    result.settings["ignore"] = json!(masks.ignore);
    result.settings["reduce_zero_label"] = json!(masks.reduce_zero);
    Ok((result, per_image))
}

/// The pixels of every test image, at the size of its mask.
fn score(
    request: &DenseRequest,
    opened: &mut Opened,
    masks: &Masks,
    segmenter: &Segmenter,
) -> Result<(Vec<PixelCounts>, PerImage)> {
    let reader = Reader {
        source: opened.test.as_ref(),
        target: masks,
        request,
        doing: "test",
    };
    let per_window = opened.model.window_len();
    let (mut images, mut per_image) = (Vec::new(), PerImage::default());
    reader.run(&mut opened.model, |image, features| {
        let mut canvas = Canvas::new(image.size, segmenter.classes());
        for (features, &(top, left)) in features.chunks_exact(per_window).zip(&image.places) {
            canvas.add(&segmenter.logits(features), segmenter.to_pixels(), top, left);
        }
        let predicted = canvas.finish((image.target.height, image.target.width), class_of);
        let counts = PixelCounts::of(&predicted, &image.target.values, segmenter.classes());
        let scores = [
            ("mean_iou", counts.mean_iou()),
            ("pixel_accuracy", counts.pixel_accuracy()),
        ];
        per_image.add(&image.record, &scores);
        images.push(counts);
        Ok(())
    })?;
    Ok((images, per_image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_named_or_counted() {
        let names = |classes: Classes| classes.names(&[0, VOID, 2]);
        assert_eq!(names(Classes::FromMasks).unwrap(), ["0", "1", "2"]);
        assert_eq!(names(Classes::Count(2)).unwrap(), ["0", "1"]);
        assert_eq!(names(Classes::Names(vec!["sky".to_owned()])).unwrap(), ["sky"]);
        let error = Classes::FromMasks.names(&[VOID]).unwrap_err().to_string();
        assert!(error.contains("expected labelled pixels"), "{error}");
    }
}
