use super::*;
use crate::protocols::dense::Canvas;

/// Ten images of 2 x 2 patches and 4 x 4 pixels: the first channel says the class of the patch, the second is noise.
fn data() -> SegmentData {
    let (mut features, mut labels) = (Vec::new(), Vec::new());
    for image in 0..10usize {
        let classes: Vec<usize> = (0..4)
            .map(|patch| (image * 3 + patch * patch + image / 4) % 3)
            .collect();
        for (patch, &class) in classes.iter().enumerate() {
            features.extend([10.0 + 5.0 * class as f32, ((image + patch) as f32 * 1.7).sin()]);
            features.push(if class == 1 { 1.0 } else { 0.0 });
        }
        for y in 0..4 {
            labels.extend((0..4).map(|x| {
                if (x, y) == (0, 0) {
                    VOID
                } else {
                    classes[y / 2 * 2 + x / 2] as u8
                }
            }));
        }
    }
    SegmentData {
        features: PatchFeatures::new(features, (2, 2), 3).unwrap(),
        labels,
        size: (4, 4),
        image_of: (0..10).collect(),
    }
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|class| format!("c{class}")).collect()
}

fn config() -> SegmentConfig {
    SegmentConfig {
        training: HeadTraining {
            learning_rates: vec![1e-9, 0.1],
            iterations: 150,
            batch_size: 4,
            val_fraction: 0.3,
            ..SegmentConfig::default().training
        },
        bootstrap_resamples: 50,
        ..SegmentConfig::default()
    }
}

#[test]
fn classes_that_the_features_tell_are_found() {
    let data = data();
    let segmenter = Segmenter::fit(&data, &names(3), &config()).unwrap();
    assert_eq!(
        segmenter.trials[segmenter.chosen].learning_rate, 0.1,
        "{:?}",
        segmenter.trials
    );
    let images: Vec<PixelCounts> = (0..10)
        .map(|image| {
            let mut canvas = Canvas::new((4, 4), segmenter.classes());
            canvas.add(
                &segmenter.logits(data.features.window(image)),
                segmenter.to_pixels(),
                0,
                0,
            );
            let predicted = canvas.finish((4, 4), class_of);
            PixelCounts::count(&predicted, &data.labels[image * 16..(image + 1) * 16], 3)
        })
        .collect();
    let result = SegmentResult::new(&segmenter, &names(3), &images, &config());
    // Pixels between patches are a blend of both and not all of them are right.
    assert!(result.counts.mean_iou() > 0.7, "{:?}", result.counts);
    assert!(result.mean_interval.low <= result.counts.mean_iou());
    assert!(result.counts.mean_iou() <= result.mean_interval.high);

    let json = result.to_eval_result().unwrap().to_json().unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(
        (rows.len(), &json["n_train"], &json["n_test"]),
        (4, &10.into(), &10.into())
    );
    assert_eq!(
        (&rows[0]["class"], &rows[3]["class"]),
        (&"c0".into(), &"mean".into())
    );
    assert_eq!(rows[3]["n_pixels"], 150);
    assert_eq!(rows[3]["iou"], result.counts.mean_iou());
    assert!(rows[0]["pixel_accuracy"].is_null() && rows[3]["pixel_accuracy"].is_number());
    assert_eq!(json["settings"]["selected_on"], "train split 30 %");
    assert_eq!(json["settings"]["learning_rate"], 0.1);
}

#[test]
fn the_interval_is_of_pooled_pixels() {
    let segmenter = Segmenter::fit(
        &data(),
        &names(3),
        &SegmentConfig {
            training: HeadTraining {
                iterations: 1,
                ..config().training
            },
            ..config()
        },
    )
    .unwrap();
    assert_eq!((segmenter.images, segmenter.windows), (10, 10));
    // One image all right and one all wrong: every draw of two has a mean of 0, 1 or what both give.
    let images = [
        PixelCounts::count(&[0, 1, 2], &[0, 1, 2], 3),
        PixelCounts::count(&[1, 2, 0], &[0, 1, 2], 3),
    ];
    let result = SegmentResult::new(&segmenter, &names(3), &images, &config());
    assert!((result.counts.mean_iou() - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!((result.mean_interval.low, result.mean_interval.high), (0.0, 1.0));
    assert_eq!(
        (result.class_intervals[2].low, result.accuracy_interval.high),
        (0.0, 1.0)
    );
    let none = SegmentConfig {
        bootstrap_resamples: 0,
        ..config()
    };
    assert!(
        SegmentResult::new(&segmenter, &names(3), &images, &none)
            .mean_interval
            .low
            .is_nan()
    );
}

#[test]
fn what_cannot_be_trained_on_is_named() {
    let error = |data: &SegmentData, classes: usize| {
        Segmenter::fit(data, &names(classes), &config())
            .unwrap_err()
            .to_string()
    };
    let good = data();
    assert_eq!(
        error(&good, 4),
        "class 3 (`c3`): expected labelled pixels in the train masks, found none"
    );
    let lenient = SegmentConfig {
        allow_empty_classes: true,
        training: HeadTraining {
            iterations: 1,
            ..config().training
        },
        ..config()
    };
    assert!(Segmenter::fit(&good, &names(4), &lenient).is_ok());
    assert_eq!(
        error(&good, 2),
        "train labels: expected labels below 2 or 255, found 2"
    );
    assert_eq!(error(&good, 1), "classes: expected 2 to 255, found 1");
    let short = SegmentData {
        labels: vec![0; 16],
        ..good.clone()
    };
    assert!(error(&short, 3).starts_with("train labels: expected 10 windows of 16 pixels"));
    let none = SegmentData {
        features: PatchFeatures::new(Vec::new(), (2, 2), 3).unwrap(),
        ..good
    };
    assert_eq!(error(&none, 3), "train images: expected at least one, found none");
}

#[test]
fn the_first_of_equal_logits_is_the_class() {
    assert_eq!(class_of(&[0.5, 0.7, 0.7]), 1);
    assert_eq!(class_of(&[f32::NAN, 0.0]), 0);
}

/// Steps of the reference's head and mmseg's loss, schedule and optimizer (`tests/fixtures/make_reference.py`), from its
/// weights.
#[test]
fn the_papers_training_is_the_references() {
    use crate::protocols::dense::head::Layer;
    use crate::testing::{assert_near, reference};

    let expected = reference("segmentation");
    let (grid, size, dim) = (
        expected.pair("grid"),
        expected.pair("size"),
        expected.count("dim"),
    );
    let features = PatchFeatures::new(expected.f32s("features"), grid, dim).unwrap();
    let classes = expected.count("classes");
    let paper = SegmentConfig {
        training: HeadTraining {
            iterations: expected.count("iterations"),
            weight_decay: expected.number("weight_decay"),
            ..SegmentConfig::for_protocol(Protocol::Paper).training
        },
        ..SegmentConfig::for_protocol(Protocol::Paper)
    };
    let loss = PixelCrossEntropy {
        to_pixels: &Bilinear::new(grid, size),
        labels: &expected.named("labels").bytes(),
        classes,
        over_all: true,
    };
    let training = paper.common().training(expected.number("learning_rate"));
    let windows: Vec<usize> = (0..expected.count("windows")).collect();
    let mut layer = Layer::new(&features, &windows, classes, 0, &training.recipe);
    layer.set(expected.f32s("start"), vec![0.0; classes]);
    let losses = layer.train(&features, &loss, &training, |batch| batch.clone_from(&windows));
    let losses: Vec<f32> = losses.iter().map(|&loss| loss as f32).collect();
    assert_near(&losses, &expected.f32s("losses"), 1e-5, "losses");
    let head = layer.head();
    let logits: Vec<f32> = windows
        .iter()
        .flat_map(|&window| head.logits(features.window(window)))
        .collect();
    assert_near(&logits, &expected.f32s("logits"), 1e-4, "logits");
}

#[test]
fn the_paper_has_one_rate_and_no_held_out_images() {
    let config = SegmentConfig {
        training: HeadTraining {
            iterations: 3,
            ..SegmentConfig::for_protocol(Protocol::Paper).training
        },
        bootstrap_resamples: 0,
        ..SegmentConfig::for_protocol(Protocol::Paper)
    };
    let segmenter = Segmenter::fit(&data(), &names(3), &config).unwrap();
    let settings = segmenter.settings(&config);
    assert_eq!(
        (
            &settings["protocol"],
            &settings["selected_on"],
            &settings["learning_rate"]
        ),
        (
            &"paper".into(),
            &"nothing: one learning rate".into(),
            &0.001.into()
        )
    );
    assert_eq!(
        SegmentConfig::for_protocol(Protocol::Paper).training.iterations,
        40_000
    );
}
