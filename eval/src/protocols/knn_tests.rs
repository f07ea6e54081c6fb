use super::*;
use crate::Matrix;
use crate::curation::testing::clustered;
use crate::team::threads::on_team;

/// Two clusters on the axes: class 0 along x, class 1 along y, class 2 between.
fn toy() -> (Matrix, Vec<u32>) {
    let data = vec![1.0, 0.0, 1.0, 0.1, 0.0, 1.0, 0.1, 1.0, 1.0, 1.0];
    (Matrix::new(data, 5, 2).unwrap(), vec![0, 0, 1, 1, 2])
}

fn config(ks: &[usize]) -> KnnConfig {
    KnnConfig {
        ks: ks.to_vec(),
        ..KnnConfig::default()
    }
}

fn pair<'a>(
    train: &'a Matrix,
    labels: &'a [u32],
    test: &'a Matrix,
    test_labels: &'a [u32],
    n_classes: usize,
) -> TrainTest<'a> {
    TrainTest::new(
        Split::new(train.view(), labels),
        Split::new(test.view(), test_labels),
        n_classes,
    )
}

fn error(train: &Matrix, labels: &[u32], test: &Matrix, test_labels: &[u32], config: &KnnConfig) -> String {
    evaluate(&pair(train, labels, test, test_labels, 3), config)
        .unwrap_err()
        .to_string()
}

/// Test rows that no number of processes divides evenly, whole training set and draws.
#[test]
fn processes_find_together_what_one_finds() {
    let train = clustered(300, 6, 12, 0.5, 1);
    let test = clustered(2 * QUERY_BLOCK + 100, 6, 12, 0.5, 2);
    let labels = |rows: usize| -> Vec<u32> { (0..rows as u32).map(|row| row * row % 7 % 3).collect() };
    let (train_labels, test_labels) = (labels(300), labels(2 * QUERY_BLOCK + 100));
    let data = pair(&train, &train_labels, &test, &test_labels, 3);
    for n_per_class in [None, Some(8)] {
        let config = KnnConfig {
            n_per_class,
            n_tries: 1 + usize::from(n_per_class.is_some()),
            ..config(&[1, 5, 20])
        };
        let one = evaluate(&data, &config).unwrap();
        assert!(one.rows[0].top1 > 0.0 && one.rows[0].top1 < 1.0);
        for size in [2, 3, 5] {
            let found = on_team(size, |team| evaluate_with(&data, &config, team).unwrap());
            assert!(found.iter().all(|found| *found == one), "{size}");
        }
    }
}

/// The vote written down again, one score at a time, in f64 from the features.
#[test]
fn scores_are_those_of_the_definition() {
    let neighbours = Neighbours {
        k: 3,
        indices: vec![2, 0, 1],
        similarities: vec![0.9, 0.8, 0.79],
    };
    // One neighbour: class 1 alone has a vote. Three: the two weaker votes of class 0 win at a warm temperature, not at a cold one.
    let (train, test) = (Matrix::new(vec![1.0; 3], 3, 1), Matrix::new(vec![1.0], 1, 1));
    let (train, test) = (train.unwrap(), test.unwrap());
    let ranks = |t| -> Vec<Vec<usize>> {
        let found = votes(&neighbours, &pair(&train, &[0, 0, 1], &test, &[0], 3), &[1, 3], t);
        found
            .iter()
            .map(|votes| votes.iter().map(|vote| vote.rank).collect())
            .collect()
    };
    assert_eq!(ranks(0.5), [[usize::MAX, 0]]);
    assert_eq!(ranks(0.01), [[usize::MAX, 1]]);
    // A vote that rounds to nothing is a vote.
    assert_eq!(ranks(1e-5), [[usize::MAX, 1]]);
    let weights = vote_weights(&[0.9, 0.8, 0.79], 0.5);
    let z: f64 = [0.9f32, 0.8, 0.79]
        .iter()
        .map(|&s| (f64::from(s) / 0.5).exp())
        .sum();
    assert!((weights[1] - (f64::from(0.8f32) / 0.5).exp() / z).abs() < 1e-15);
    assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-15);
}

#[test]
fn toy_set_by_hand() {
    let (train, labels) = toy();
    let test = Matrix::new(vec![2.0, 0.1, 0.0, 3.0, 0.5, 0.4, 0.0, 0.0], 4, 2).unwrap();
    let data = pair(&train, &labels, &test, &[0, 1, 2, 0], 3);
    let result = evaluate(&data, &config(&[1, 2])).unwrap();
    // The row of zeros is as near to all: its neighbours are the first rows, both of class 0.
    assert_eq!(result.rows.len(), 2);
    assert_eq!(result.rows[0].top1, 1.0);
    assert_eq!(result.rows[0].mean_per_class, 1.0);
    assert_eq!((result.rows[0].top1_low, result.rows[0].top1_high), (1.0, 1.0));
    assert_eq!(result.rows[1].top5, 1.0);
    assert_eq!(result.predictions.len(), 2);
    assert_eq!(result.predictions[0].k, Some(1));
    assert_eq!(
        result.predictions[0].classes,
        [Some(0), Some(1), Some(2), Some(0)]
    );
    let table = result.to_eval_result().unwrap();
    let json = table.to_json().unwrap();
    assert_eq!(json["settings"]["ks"], serde_json::json!([1, 2]));
    assert_eq!(json["rows"][1]["k"], 2);
    let names = table.table.get_column_names();
    assert_eq!(
        names,
        [
            "k",
            "temperature",
            "top1",
            "top5",
            "top1_low",
            "top1_high",
            "mean_per_class"
        ]
    );
}

#[test]
fn scale_matters_only_without_normalisation() {
    let (train, labels) = toy();
    let test = Matrix::new(vec![2.0, 0.1], 1, 2).unwrap();
    let raw = KnnConfig {
        normalise: false,
        ..config(&[1])
    };
    let top1 = |config: &KnnConfig| {
        let result = evaluate(&pair(&train, &labels, &test, &[0], 3), config).unwrap();
        result.rows[0].top1
    };
    assert_eq!(top1(&config(&[1])), 1.0);
    assert_eq!(top1(&raw), 0.0); // (1, 1) has the greatest inner product
}

#[test]
fn few_shot_draws_are_balanced_seeded_and_averaged() {
    let labels: Vec<u32> = (0..60).map(|row| row % 3).collect();
    let drawn = draw_per_class(&labels, 3, 5, 7, 0);
    assert!(drawn.is_sorted() && drawn.len() == 15);
    for class in 0..3 {
        assert_eq!(drawn.iter().filter(|&&row| labels[row] == class).count(), 5);
    }
    assert_eq!(drawn, draw_per_class(&labels, 3, 5, 7, 0));
    assert_ne!(drawn, draw_per_class(&labels, 3, 5, 7, 1));
    assert_ne!(drawn, draw_per_class(&labels, 3, 5, 8, 0));
    assert_eq!(draw_per_class(&labels, 3, 500, 7, 0).len(), 60);

    // features that say little, so that draws differ
    let data: Vec<f32> = (0..120u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 - 2048.0)
        .collect();
    let features = Matrix::new(data, 60, 2).unwrap();
    let config = KnnConfig {
        n_per_class: Some(5),
        n_tries: 4,
        ..config(&[1, 3, 10])
    };
    let run =
        |config: &KnnConfig| evaluate(&pair(&features, &labels, &features, &labels, 3), config).unwrap();
    let result = run(&config);
    assert_eq!(result.rows.iter().map(|row| row.k).collect::<Vec<_>>(), [1, 3, 5]);
    let singles: Vec<f64> = (0..4u64)
        .map(|number| {
            let rows = draw_per_class(&labels, 3, 5, 0, number);
            let few = features.view().select(&rows);
            let few_labels: Vec<u32> = rows.iter().map(|&row| labels[row]).collect();
            let one = KnnConfig {
                ks: vec![3],
                ..KnnConfig::default()
            };
            evaluate(&pair(&few, &few_labels, &features, &labels, 3), &one)
                .unwrap()
                .rows[0]
                .top1
        })
        .collect();
    let row = &result.rows[1];
    assert!((row.top1 - mean(&singles)).abs() < 1e-12);
    assert!((row.top1_std.unwrap() - sample_std(&singles)).abs() < 1e-12 && sample_std(&singles) > 0.0);
    assert!(row.top1_low <= row.top1 && row.top1 <= row.top1_high);
    let table = result.to_eval_result().unwrap();
    assert_eq!(table.to_json().unwrap()["rows"][0]["n_per_class"], 5);
    assert!(result.predictions.is_empty(), "every draw says something else");
    let once = run(&KnnConfig { n_tries: 1, ..config });
    assert_eq!(once.rows[0].top1_std, None);
}

#[test]
fn settings_are_checked_and_named() {
    let bad = |change: fn(&mut KnnConfig)| {
        let mut config = KnnConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert_eq!(bad(|c| c.ks.clear()), "ks: expected at least one k, found none");
    assert_eq!(
        bad(|c| c.ks = vec![5, 0]),
        "ks: expected k of at least 1, found 0"
    );
    assert_eq!(
        bad(|c| c.temperature = 0.0),
        "temperature: expected a number above 0, found 0"
    );
    assert!(bad(|c| c.temperature = f64::NAN).starts_with("temperature"));
    assert!(bad(|c| c.n_per_class = Some(0)).starts_with("n_per_class"));
    assert!(bad(|c| c.n_tries = 0).starts_with("n_tries"));
    assert!(bad(|c| c.n_tries = 2).starts_with("n_tries: 2 draws need n_per_class"));

    let parsed: KnnConfig = serde_json::from_str(r#"{"ks": [20]}"#).unwrap();
    assert_eq!(parsed, config(&[20]));
    assert!(serde_json::from_str::<KnnConfig>(r#"{"kernel": "uniform"}"#).is_err());
    assert_eq!(config(&[20, 10, 20]).reported_ks(&[], 0), [10, 20]);
}

#[test]
fn data_that_cannot_be_used_is_named() {
    let (train, labels) = toy();
    let narrow = Matrix::new(vec![1.0], 1, 1).unwrap();
    let empty = Matrix::new(vec![], 0, 2).unwrap();
    let nan = Matrix::new(vec![1.0, f32::NAN], 1, 2).unwrap();
    let one = Matrix::new(vec![1.0, 0.0], 1, 2).unwrap();
    let ok = config(&[1]);
    assert_eq!(
        error(&train, &labels, &one, &[0], &config(&[2, 6])),
        "ks: k = 6 is more than the 5 training rows"
    );
    assert_eq!(
        error(&train, &[1; 5], &one, &[0], &ok),
        "train labels: expected at least two classes, found only class 1"
    );
    assert_eq!(
        error(&train, &labels, &narrow, &[0], &ok),
        "test features: expected width 2 as in training, found 1"
    );
    assert_eq!(
        error(&train, &labels[..4], &one, &[0], &ok),
        "train labels: expected 5 labels, one a row, found 4"
    );
    assert_eq!(
        error(&train, &labels, &one, &[3], &ok),
        "test labels: expected labels that the train rows have, found 1 others in 1 of 1 rows, first 3"
    );
    assert_eq!(
        error(&train, &labels, &empty, &[], &ok),
        "test features: expected at least one row, found none"
    );
    assert_eq!(
        error(&empty, &[], &one, &[0], &ok),
        "train features: expected at least one row, found none"
    );
    assert!(error(&train, &labels, &nan, &[0], &ok).starts_with("test features: expected finite values"));
}

#[test]
fn top5_counts_only_classes_that_had_a_vote() {
    // Seven classes, one training row each, in the order of their similarity to the test row.
    let train: Vec<f32> = (0..7).flat_map(|i| [1.0, 0.1 * i as f32]).collect();
    let train = Matrix::new(train, 7, 2).unwrap();
    let test = Matrix::new(vec![1.0, 0.0], 1, 2).unwrap();
    let top5 = |label: u32| -> Vec<f64> {
        let labels: Vec<u32> = (0..7).collect();
        let data = pair(&train, &labels, &test, std::slice::from_ref(&label), 7);
        let result = evaluate(&data, &config(&[1, 3, 5, 7])).unwrap();
        result.rows.iter().map(|row| row.top5).collect()
    };
    assert_eq!(top5(0), [1.0; 4]);
    assert_eq!(top5(2), [0.0, 1.0, 1.0, 1.0]);
    assert_eq!(top5(4), [0.0, 0.0, 1.0, 1.0]);
    assert_eq!(top5(6), [0.0; 4], "the seventh of seven votes");
}

#[test]
fn rows_of_classes_that_train_lacks_are_refused_or_wrong() {
    let (train, labels) = toy();
    let test = Matrix::new(vec![2.0, 0.1, 0.0, 3.0, 0.5, 0.4], 3, 2).unwrap();
    assert_eq!(
        error(&train, &labels, &test, &[0, 9, 5], &config(&[1])),
        "test labels: expected labels that the train rows have, found 2 others in 2 of 3 rows, first 9"
    );
    let open = KnnConfig {
        allow_unknown_labels: true,
        ..config(&[1, 5])
    };
    let result = evaluate(&pair(&train, &labels, &test, &[0, 9, 5], 3), &open).unwrap();
    for row in &result.rows {
        assert_eq!((row.top5, row.mean_per_class), (1.0 / 3.0, 1.0 / 3.0));
    }
    assert_eq!(result.rows[0].top1, 1.0 / 3.0);
    assert_eq!(
        result.predictions[0].classes,
        [Some(0), Some(1), Some(2)],
        "what is said of them is still said"
    );
}

#[test]
fn ks_that_nobody_requested_fit_the_rows() {
    let expected: [(usize, &[usize]); 7] = [
        (1, &[1]),
        (9, &[9]),
        (10, &[10]),
        (40, &[10, 20]),
        (199, &[10, 20, 100]),
        (200, &[10, 20, 100, 200]),
        (60_000, &[10, 20, 100, 200]),
    ];
    for (rows, ks) in expected {
        assert_eq!(KnnConfig::default_ks(rows), ks, "{rows} rows");
    }
    // Classes of fewer rows than are to be drawn: the number of drawn rows takes the place of n.
    let (train, labels) = toy();
    let few = KnnConfig {
        ks: KnnConfig::default_ks(5),
        n_per_class: Some(50),
        ..KnnConfig::default()
    };
    let result = evaluate(&pair(&train, &labels, &train, &labels, 3), &few).unwrap();
    assert_eq!(result.rows.iter().map(|row| row.k).collect::<Vec<_>>(), [5]);
}
