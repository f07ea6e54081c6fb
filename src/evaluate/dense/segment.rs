//! `eval segment` from images to its result.

use std::collections::BTreeMap;
use std::path::PathBuf;

use macula_eval::metrics::iou::{PixelCounts, VOID};
use macula_eval::protocols::dense::Canvas;
use macula_eval::protocols::dense::segment::{
    SegmentConfig, SegmentData, SegmentResult, Segmenter, class_of,
};
use macula_eval::table::EvalResult;
use rayon::prelude::*;
use serde_json::json;

use super::images::{Pixels, Reader};
use super::per_image::PerImage;
use super::targets::{Masks, Target as _};
use super::{DenseRequest, Opened, train_windows};
use crate::data::Source;
use crate::data::samples::read_samples;
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
        let largest = labels.iter().filter(|&&label| label != VOID).max();
        let count = match (self.count(), largest) {
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
    tell_left_out("train", &train.pixels, &masks);
    let names = classes.names(&train.targets)?;
    if let [only] = names.as_slice() {
        return Err(one_class(only, &train.pixels, &masks));
    }
    check_test_labels(request, opened.test.as_ref(), &masks, &names)?;
    let train_pixels = train.pixels;
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
    let (images, per_image, test_pixels) = score(request, &mut opened, &masks, &segmenter)?;
    tell_left_out("test", &test_pixels, &masks);
    let mut result = SegmentResult::new(&segmenter, &names, &images, config).to_eval_result()?;
    opened.describe_into(&mut result, request)?;
    result.settings["ignore"] = json!(masks.ignore);
    result.settings["reduce_zero_label"] = json!(masks.reduce_zero);
    result.settings["left_out_pixels"] =
        json!({ "train": train_pixels.left_out, "test": test_pixels.left_out });
    Ok((result, per_image))
}

/// The pixels of every test image, at the size of its mask.
fn score(
    request: &DenseRequest,
    opened: &mut Opened,
    masks: &Masks,
    segmenter: &Segmenter,
) -> Result<(Vec<PixelCounts>, PerImage, Pixels)> {
    let reader = Reader {
        source: opened.test.as_ref(),
        target: masks,
        request,
        doing: "test",
    };
    let per_window = opened.model.window_len();
    let (mut images, mut per_image) = (Vec::new(), PerImage::default());
    let pixels = reader.run(&mut opened.model, |image, features| {
        let mut canvas = Canvas::new(image.size, segmenter.classes());
        for (features, &(top, left)) in features.chunks_exact(per_window).zip(&image.places) {
            canvas.add(&segmenter.logits(features), segmenter.to_pixels(), top, left);
        }
        let predicted = canvas.finish((image.target.height, image.target.width), class_of);
        let counts = PixelCounts::count(&predicted, &image.target.values, segmenter.classes());
        let scores = [
            ("mean_iou", counts.mean_iou()),
            ("pixel_accuracy", counts.pixel_accuracy()),
        ];
        per_image.add(&image.record, &scores);
        images.push(counts);
        Ok(())
    })?;
    Ok((images, per_image, pixels))
}

/// The labels that are left out, in words.
fn left_out_labels(masks: &Masks) -> String {
    match masks.reduce_zero {
        true => format!("labels 0 (--reduce-zero-label) and {} (--ignore)", masks.ignore),
        false => format!("label {} (--ignore)", masks.ignore),
    }
}

/// Says how many pixels do not count: 255 may as well be the label of a class.
fn tell_left_out(side: &str, pixels: &Pixels, masks: &Masks) {
    if pixels.left_out > 0 {
        tracing::warn!(
            "{side} masks: {} left out: {} of {} pixels, in {} of {} masks",
            left_out_labels(masks),
            pixels.left_out,
            pixels.all,
            pixels.images_with,
            pixels.images
        );
    }
}

fn one_class(only: &str, pixels: &Pixels, masks: &Masks) -> Error {
    Error::input(
        "train masks",
        format!(
            "expected at least two classes, found only `{only}`; {} left out, {} of {} pixels",
            left_out_labels(masks),
            pixels.left_out,
            pixels.all
        ),
    )
}

/// Refuses test masks with labels beyond the classes before any head is trained. Masks that cannot be read are left to the
/// pass over the test images.
fn check_test_labels(
    request: &DenseRequest,
    test: &dyn Source,
    masks: &Masks,
    names: &[String],
) -> Result<()> {
    let known = Masks {
        classes: Some(names.len()),
        ..*masks
    };
    let strange = |row: u64| -> Option<(BTreeMap<u16, u64>, PathBuf)> {
        let record = test.record(row);
        let file = Masks::file(&record)?;
        let bytes = std::fs::read(file).ok()?;
        let samples = read_samples(&bytes, request.decode.max_pixels).ok()?;
        let mut counts = BTreeMap::new();
        for sample in samples.values {
            if known.value(sample).is_err() {
                *counts.entry(sample).or_default() += 1;
            }
        }
        (!counts.is_empty()).then(|| (counts, file.to_owned()))
    };
    let found: Vec<(BTreeMap<u16, u64>, PathBuf)> =
        (0..test.len()).into_par_iter().filter_map(strange).collect();
    let Some((_, first)) = found.first() else {
        return Ok(());
    };
    let mut labels: BTreeMap<u16, u64> = BTreeMap::new();
    for (label, count) in found.iter().flat_map(|(counts, _)| counts) {
        *labels.entry(*label).or_default() += count;
    }
    let named: Vec<String> = labels
        .iter()
        .take(5)
        .map(|(label, n)| format!("{label} ({n} pixels)"))
        .collect();
    let more = match labels.len().saturating_sub(5) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let last = names.len() - usize::from(!masks.reduce_zero);
    Err(Error::setting(
        format!("test_data {}", request.test_data),
        format!(
            "expected mask labels up to {last} (`{}`) or {} (left out), found {}{more} in {} of {} masks, first {}; \
             --classes N --allow-empty-classes makes classes of labels that no train mask has",
            names.last().map_or("", String::as_str),
            masks.ignore,
            named.join(", "),
            found.len(),
            test.len(),
            first.display()
        ),
    ))
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
