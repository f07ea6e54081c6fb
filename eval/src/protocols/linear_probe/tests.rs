//! The protocol on small features whose answer is known.

use super::*;
use crate::{Matrix, Split};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Clusters: the classes are clear in the mean patch token and in the oldest block, hidden by noise in the last CLS.
fn features(rows: usize, seed: u64) -> (ProbeFeatures, Vec<u32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let labels: Vec<u32> = (0..rows).map(|_| rng.random_range(0..3)).collect();
    let mut matrix = |clear: f32| {
        let mut data = Vec::new();
        for &label in &labels {
            for j in 0..4 {
                let centre = if j == label { clear } else { 0.0 };
                data.push(centre + rng.random_range(-1.0..1.0));
            }
        }
        Matrix::new(data, rows, 4).unwrap()
    };
    let features = ProbeFeatures {
        cls_blocks: vec![matrix(3.0), matrix(0.3)],
        patch_mean: Some(matrix(3.0)),
    };
    (features, labels)
}

fn config() -> LinearProbeConfig {
    LinearProbeConfig {
        learning_rates: vec![1e-9, 1.0, 3.0],
        n_last_blocks: vec![1, 2],
        batch_size: 32,
        length: Length::Epochs(10),
        bootstrap_resamples: 200,
        ..LinearProbeConfig::default()
    }
}

fn pair<'a>(
    train: &'a ProbeFeatures,
    train_labels: &'a [u32],
    test: &'a ProbeFeatures,
    test_labels: &'a [u32],
) -> TrainTest<'a, &'a ProbeFeatures> {
    TrainTest::new(Split::new(train, train_labels), Split::new(test, test_labels), 3)
}

fn run(config: &LinearProbeConfig) -> LinearProbeResult {
    let ((train, train_labels), (test, test_labels)) = (features(900, 1), features(300, 2));
    evaluate(&pair(&train, &train_labels, &test, &test_labels), config).unwrap()
}

#[test]
fn the_best_head_comes_first_and_alone_has_test_numbers() {
    let result = run(&config());
    assert_eq!(result.rows.len(), 3 * 4);
    let best = &result.rows[0];
    let scores = best.test.unwrap();
    assert!(scores.top1 > 0.97 && scores.mean_per_class > 0.97, "{scores:?}");
    assert!(scores.top1_low <= scores.top1 && scores.top1 <= scores.top1_high);
    assert_eq!(best.selected_on, "train split 10 %");
    for row in &result.rows[1..] {
        assert!(row.test.is_none() && row.val_top1 <= best.val_top1, "{row:?}");
    }
    let table = result.to_eval_result().unwrap().to_json().unwrap();
    assert_eq!(
        (&table["task"], &table["n_train"]),
        (&json!("linear-probe"), &json!(900))
    );
    assert_eq!(table["rows"][0]["top1"], json!(scores.top1));
    assert_eq!(table["rows"][1]["top1"], json!(null));
    assert_eq!(table["rows"][1]["val_top1"], json!(result.rows[1].val_top1));
    let weak = "classifier_01_1_blocks_avgpool_false_lr_1";
    let weak = result.rows.iter().find(|row| row.head == weak).unwrap();
    assert!(weak.val_top1 < 0.8, "{weak:?}");
}

#[test]
fn threads_and_company_change_nothing() {
    let solve = |threads: usize, config: &LinearProbeConfig| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| run(config))
    };
    assert_eq!(solve(1, &config()), solve(3, &config()));
    let mut seeded = config();
    seeded.seed = 1;
    assert_ne!(solve(1, &config()).rows, solve(1, &seeded).rows);
}

#[test]
fn keys_differ_even_for_tiny_learning_rates() {
    let tiny = LinearProbeConfig {
        learning_rates: vec![1e-6, 1.1e-6, 1.1e-6],
        ..config()
    };
    let mut keys: Vec<String> = run(&tiny).rows.into_iter().map(|row| row.head).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 3 * 4);
}

#[test]
fn inputs_that_the_features_cannot_serve_are_named() {
    let wanted = LinearProbeConfig {
        n_last_blocks: vec![1, 4],
        ..config()
    };
    let result = run(&wanted);
    assert_eq!(result.rows.len(), 3 * 2);
    assert_eq!(
        result.settings["inputs_left_out"],
        json!(["4_blocks_avgpool_false", "4_blocks_avgpool_true"])
    );
}

#[test]
fn each_error_is_one_line_that_names_what_is_wrong() {
    let (train, labels) = features(40, 1);
    let message =
        |train: &ProbeFeatures, labels: &[u32], test: &ProbeFeatures, config: &LinearProbeConfig| {
            let test_labels = vec![0; test.cls_blocks.last().map_or(0, |block| block.view().rows())];
            evaluate(&pair(train, labels, test, &test_labels), config)
                .unwrap_err()
                .to_string()
        };
    let with = |change: fn(&mut LinearProbeConfig)| {
        let mut config = config();
        change(&mut config);
        message(&train, &labels, &train, &config)
    };
    assert_eq!(
        with(|c| c.learning_rates[1] = -1.0),
        "learning_rates: expected numbers above 0, found -1"
    );
    assert_eq!(
        with(|c| c.learning_rates.clear()),
        "learning_rates: expected at least one value, found none"
    );
    assert_eq!(
        with(|c| c.length = Length::Epochs(0)),
        "epochs: expected at least 1, found 0"
    );
    assert_eq!(
        with(|c| c.length = Length::Steps(0)),
        "steps: expected at least 1, found 0"
    );
    assert_eq!(
        with(|c| c.batch_size = 0),
        "batch_size: expected at least 1, found 0"
    );
    assert_eq!(
        with(|c| c.n_last_blocks = vec![0]),
        "n_last_blocks: expected at least 1, found 0"
    );
    assert!(with(|c| c.val_fraction = 0.001).starts_with("val_fraction: expected at least one row"));
    assert_eq!(
        with(|c| c.n_last_blocks = vec![7]),
        "n_last_blocks, average_pool: expected a variant that the features can serve, found only \
         7_blocks_avgpool_false, 7_blocks_avgpool_true with 2 CLS blocks and a mean patch token"
    );
    let mut plain = train.clone();
    plain.patch_mean = None;
    assert!(
        message(&train, &labels, &plain, &config())
            .starts_with("test features: expected CLS block 0 of width 4")
    );
    let (short, _) = features(30, 1);
    let mut uneven = train.clone();
    uneven.patch_mean = short.patch_mean;
    assert_eq!(
        message(&uneven, &labels, &train, &config()),
        "train features, mean patch token: expected 40 rows as in the last CLS block, found 30"
    );
    assert_eq!(
        message(&train, &[2; 40], &train, &config()),
        "train labels: expected at least two classes, found only class 2"
    );
    assert_eq!(
        message(&train, &labels[..5], &train, &config()),
        "train labels: expected 40 labels, one a row, found 5"
    );
    let none = ProbeFeatures {
        cls_blocks: Vec::new(),
        patch_mean: None,
    };
    assert_eq!(
        message(&none, &[], &none, &config()),
        "train features: expected the CLS token of at least one block, found none"
    );
    let mut broken = train.clone();
    broken.cls_blocks[1] = Matrix::new(vec![f32::NAN; 160], 40, 4).unwrap();
    assert!(
        message(&broken, &labels, &train, &config())
            .starts_with("train features, CLS block 1: expected finite")
    );
}

#[test]
fn the_settings_say_how_long_heads_were_trained() {
    let result = run(&config());
    for (key, value) in [
        ("length", json!("10 epochs")),
        ("steps_to_choose", json!(253)),
        ("steps", json!(281)),
        ("batch_size", json!(32)),
    ] {
        assert_eq!(result.settings[key], value, "{key}");
    }
    assert_eq!(result.settings["epochs"], json!(281.0 * 32.0 / 900.0));
}

/// Few rows whose classes differ by little: 10 passes leave the heads near their start, where the reference's 12,500 steps
/// do not.
#[test]
fn the_default_length_is_enough_for_few_rows() {
    let ((train, train_labels), (test, test_labels)) = (features(150, 1), features(600, 2));
    let small = |features: &ProbeFeatures| ProbeFeatures {
        cls_blocks: vec![
            Matrix::new(
                features.cls_blocks[0]
                    .view()
                    .data()
                    .iter()
                    .map(|value| 0.05 * value)
                    .collect(),
                features.cls_blocks[0].view().rows(),
                4,
            )
            .unwrap(),
        ],
        patch_mean: None,
    };
    let top1 = |length: Length| {
        let config = LinearProbeConfig {
            length,
            bootstrap_resamples: 0,
            learning_rates: vec![0.1],
            ..LinearProbeConfig::default()
        };
        let (train, test) = (small(&train), small(&test));
        let result = evaluate(&pair(&train, &train_labels, &test, &test_labels), &config).unwrap();
        result.rows[0].test.unwrap().top1
    };
    let (short, default) = (top1(Length::Epochs(1)), top1(Length::default()));
    assert!(default > 0.95 && default > short + 0.1, "{short} {default}");
}

#[test]
fn rows_of_classes_that_train_lacks_are_refused_or_wrong() {
    let ((train, train_labels), (test, mut test_labels)) = (features(300, 1), features(100, 2));
    test_labels[..10].fill(7);
    let of = |config: &LinearProbeConfig| evaluate(&pair(&train, &train_labels, &test, &test_labels), config);
    assert_eq!(
        of(&config()).unwrap_err().to_string(),
        "test labels: expected labels that the train rows have, found 1 others in 10 of 100 rows, first 7"
    );
    let open = LinearProbeConfig {
        allow_unknown_labels: true,
        ..config()
    };
    let scores = of(&open).unwrap().rows[0].test.unwrap();
    assert_eq!(scores.top5, 0.9);
    assert!(scores.top1 <= 0.9 && scores.mean_per_class <= 0.75);
}

#[test]
fn one_row_is_enough_to_look_at_and_none_is_refused() {
    let of = |rows: usize| ProbeFeatures {
        cls_blocks: vec![Matrix::new(vec![0.5; rows * 2], rows, 2).unwrap()],
        patch_mean: None,
    };
    assert_eq!(of(1).check("test").unwrap(), 1);
    assert_eq!(
        of(0).check("test").unwrap_err().to_string(),
        "test: expected at least one row, found none"
    );
}
