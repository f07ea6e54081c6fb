use super::*;

/// Twelve images of 2 x 2 patches and 4 x 4 pixels: the depth is one over the first channel.
fn data() -> DepthData {
    let (mut features, mut depths) = (Vec::new(), Vec::new());
    for image in 0..12usize {
        let of_patches: Vec<f32> = (0..4)
            .map(|patch| 1.0 + 0.4 * ((image * 5 + patch * 3) % 8) as f32)
            .collect();
        for depth in &of_patches {
            features.extend([10.0 / depth, (depth * 9.0).sin()]);
        }
        for y in 0..4 {
            depths.extend((0..4).map(|x| {
                if (x, y) == (3, 0) {
                    0.0
                } else {
                    of_patches[y / 2 * 2 + x / 2]
                }
            }));
        }
    }
    DepthData {
        features: PatchFeatures::new(features, (2, 2), 2).unwrap(),
        depths,
        size: (4, 4),
        image_of: (0..12).collect(),
    }
}

fn config() -> DepthConfig {
    DepthConfig {
        range: (0.1, 5.0),
        bins: 32,
        training: HeadTraining {
            learning_rates: vec![1e-9, 0.1],
            iterations: 200,
            batch_size: 4,
            val_fraction: 0.25,
            ..DepthConfig::default().training
        },
        bootstrap_resamples: 50,
        ..DepthConfig::default()
    }
}

#[test]
fn depth_that_the_features_tell_beats_the_mean() {
    let data = data();
    let estimator = DepthEstimator::fit(&data, &config()).unwrap();
    assert_eq!(
        estimator.trials[estimator.chosen].learning_rate, 0.1,
        "{:?}",
        estimator.trials
    );
    let known: Vec<f32> = data.depths.iter().copied().filter(|depth| *depth > 0.0).collect();
    let mean = known.iter().sum::<f32>() / known.len() as f32;
    assert!((estimator.mean() - mean).abs() < 1e-5);
    let images: Vec<ImageErrors> = (0..12)
        .map(|image| {
            let map = estimator.depths(data.features.window(image));
            let predicted = estimator.to_pixels().resize(&map, 1);
            assert!(predicted.iter().all(|depth| (0.1..=5.0).contains(depth)));
            let truth = &data.depths[image * 16..(image + 1) * 16];
            let errors = |predicted: &[f32]| DepthErrors::compare(predicted, truth, config().range).unwrap();
            ImageErrors {
                head: errors(&predicted),
                mean: errors(&[estimator.mean(); 16]),
            }
        })
        .collect();
    let result = DepthResult::new(&estimator, images, &config()).unwrap();
    let json = result.to_eval_result().unwrap().to_json().unwrap();
    let (linear, mean) = (&json["rows"][0], &json["rows"][1]);
    assert_eq!(
        (&linear["head"], &mean["head"]),
        (&"linear".into(), &"mean".into())
    );
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    assert!(number(linear, "rmse_high") < number(mean, "rmse_low"), "{json}");
    assert!(
        number(linear, "abs_rel") < 0.6 * number(mean, "abs_rel"),
        "{json}"
    );
    assert!(number(linear, "delta1") > number(mean, "delta1"), "{json}");
    assert_eq!((&json["n_train"], &json["n_test"]), (&12.into(), &12.into()));
    assert_eq!(json["settings"]["bins"], 32);
}

#[test]
fn what_cannot_be_trained_on_is_named() {
    let error =
        |data: &DepthData, config: &DepthConfig| DepthEstimator::fit(data, config).unwrap_err().to_string();
    let good = data();
    let far = DepthConfig {
        range: (100.0, 200.0),
        ..config()
    };
    assert_eq!(
        error(&good, &far),
        "train depths: expected depths above 100 and at most 200, found none"
    );
    for (bad, field) in [
        (
            DepthConfig {
                range: (2.0, 2.0),
                ..config()
            },
            "min_depth, max_depth",
        ),
        (
            DepthConfig {
                range: (f32::NAN, 2.0),
                ..config()
            },
            "min_depth, max_depth",
        ),
        (DepthConfig { bins: 1, ..config() }, "bins"),
        (
            DepthConfig {
                training: HeadTraining {
                    iterations: 0,
                    ..config().training
                },
                ..config()
            },
            "iterations",
        ),
    ] {
        let error = error(&good, &bad);
        assert!(error.starts_with(field), "{error}");
    }
    let short = DepthData {
        depths: vec![1.0; 16],
        ..good
    };
    assert!(error(&short, &config()).starts_with("train depths: expected 12 windows of 16 pixels"));
}

#[test]
fn no_valid_test_pixel_is_an_error() {
    let quick = DepthConfig {
        training: HeadTraining {
            iterations: 1,
            ..config().training
        },
        ..config()
    };
    let estimator = DepthEstimator::fit(&data(), &quick).unwrap();
    let error = DepthResult::new(&estimator, Vec::new(), &quick)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("test depths: expected depths above 0.1"),
        "{error}"
    );
}

/// Steps of the reference's head, losses, schedule, momentum and clip (`tests/fixtures/make_reference.py`), from its weights.
#[test]
fn the_papers_training_is_the_references() {
    use crate::protocols::dense::head::{Layer, Training};
    use crate::testing::{assert_near, reference};

    let expected = reference("depth");
    let (grid, size, dim) = (
        expected.pair("grid"),
        expected.pair("size"),
        expected.count("dim"),
    );
    let features = PatchFeatures::new(expected.f32s("features"), grid, dim).unwrap();
    let (depths, bins) = (expected.f32s("depths"), expected.count("bins"));
    let paper = DepthConfig {
        bins,
        training: HeadTraining {
            iterations: expected.count("iterations"),
            weight_decay: expected.number("weight_decay"),
            ..DepthConfig::for_protocol(Protocol::Paper).training
        },
        ..DepthConfig::for_protocol(Protocol::Paper)
    };
    let bins = Bins::new(bins, paper.range, grid, size);
    let to_pixels = Bilinear::new(bins.fine(), size);
    let (range, together, mean_only) = paper.of_loss();
    assert_eq!((together, mean_only), (expected.count("windows"), MEAN_ONLY));
    let loss = SigLoss {
        bins: &bins,
        to_pixels: &to_pixels,
        depths: &depths,
        range,
        together,
        mean_only: expected.count("warmup"),
    };
    let training = Training {
        recipe: Recipe {
            clip: Some(expected.number("clip")),
            ..paper.common().recipe
        },
        ..paper.common().training(expected.number("learning_rate"))
    };
    let windows = [0, 1];
    let mut layer = Layer::new(&features, &windows, paper.bins, 0, &training.recipe);
    let start = expected.named("start");
    layer.set(start.f32s("weights"), start.f32s("biases"));
    let losses = layer.train(&features, &loss, &training, |batch| {
        *batch = windows.to_vec();
    });
    let losses: Vec<f32> = losses.iter().map(|&loss| loss as f32).collect();
    assert_near(&losses, &expected.f32s("losses"), 1e-5, "losses");
    // What is left out is 0 for the two images of a process.
    assert!(expected.f32s("gradient_losses").iter().all(|&loss| loss == 0.0));
    let head = layer.head();
    let end = expected.named("end");
    let (weights, biases) = head.parameters();
    assert_near(weights, &end.f32s("weights"), 1e-4, "weights");
    assert_near(biases, &end.f32s("biases"), 1e-4, "biases");
    let maps = windows.map(|window| bins.depths(&head.logits(features.window(window))));
    assert_near(&maps.concat(), &expected.f32s("predicted"), 1e-4, "depths");
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let fast = DepthConfig {
        protocol: Protocol::Fast,
        range: (0.001, 10.0),
        bins: 256,
        training: HeadTraining {
            learning_rates: vec![1e-4, 1e-3, 1e-2],
            weight_decay: 0.01,
            iterations: 2_000,
            batch_size: 16,
            val_fraction: 0.1,
        },
        seed: 0,
        bootstrap_resamples: 1_000,
    };
    assert_eq!(DepthConfig::default(), fast);
    let paper = DepthConfig {
        protocol: Protocol::Paper,
        training: HeadTraining {
            learning_rates: vec![1e-4],
            iterations: 38_400,
            ..fast.training.clone()
        },
        ..fast
    };
    assert_eq!(DepthConfig::for_protocol(Protocol::Paper), paper);
}
