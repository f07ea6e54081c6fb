use super::copies::{CopyConfig, ScoreNormalisation};
use super::revisited::{GroundTruth, QueryTruth};
use super::*;
use crate::metrics::contingency::Contingency;
use crate::metrics::{nmi::nmi, rand_index::adjusted_rand_index};
use crate::{Matrix, MatrixView};

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/fixtures/retrieval.expected.json")).unwrap()
}

fn one_hot_angles(angles: &[f32]) -> Matrix {
    let data = angles
        .iter()
        .flat_map(|angle| [angle.cos(), angle.sin()])
        .collect();
    Matrix::new(data, angles.len(), 2).unwrap()
}

/// The whole protocol on features that rank the database as revisitop's ranks do: queries are unit vectors, and column
/// q of the database falls with the rank.
#[test]
fn the_reference_of_revisited_oxford() {
    let golden = &golden()["revisitop"];
    let ranks: Vec<Vec<usize>> = serde_json::from_value(golden["ranks"].clone()).unwrap();
    let gnd: Vec<QueryTruth> = serde_json::from_value(golden["gnd"].clone()).unwrap();
    let (n_queries, n) = (ranks.len(), ranks[0].len());
    let mut database = vec![0.0f32; n * n_queries];
    for (query, order) in ranks.iter().enumerate() {
        for (place, &row) in order.iter().enumerate() {
            database[row * n_queries + query] = 1.0 - place as f32 / 64.0;
        }
    }
    let queries: Vec<f32> = (0..n_queries * n_queries)
        .map(|i| f32::from(u8::from(i % (n_queries + 1) == 0)))
        .collect();
    let truth = GroundTruth {
        imlist: (0..n).map(|i| format!("{i}.jpg")).collect(),
        qimlist: (0..n_queries).map(|i| format!("q{i}.jpg")).collect(),
        gnd,
    };
    let config = RetrievalConfig {
        normalise: false, // the ranks are made of plain products
        ..RetrievalConfig::default()
    };
    let result = revisited::evaluate(
        MatrixView::new(&queries, n_queries, n_queries).unwrap(),
        MatrixView::new(&database, n, n_queries).unwrap(),
        &truth,
        &config,
    )
    .unwrap();
    for setup in ["easy", "medium", "hard"] {
        let expected = &golden[setup];
        let close = |metric: &str, expected: &Value| {
            let found = result.value(&format!("{setup} {metric}")).unwrap();
            let expected = expected.as_f64().unwrap();
            assert!(
                (found - expected).abs() < 1e-9,
                "{setup} {metric}: {found} {expected}"
            );
        };
        close("mAP", &expected["map"]);
        for (place, metric) in ["mP@1", "mP@5", "mP@10"].into_iter().enumerate() {
            close(metric, &expected["mp@1,5,10"][place]);
        }
    }
    assert_eq!(result.settings["n_queries_without_positives"]["easy"], 1);
    for row in &result.rows {
        assert!(row.low <= row.value && row.value <= row.high, "{row:?}");
    }
}

#[test]
fn the_reference_of_clustering_scores() {
    let golden = golden();
    let clusters: Vec<u32> = serde_json::from_value(golden["clusters"].clone()).unwrap();
    let labels: Vec<u32> = serde_json::from_value(golden["test_labels"].clone()).unwrap();
    let table = Contingency::new(&clusters, &labels);
    assert!((nmi(&table) - golden["nmi"].as_f64().unwrap()).abs() < 1e-9);
    assert!((adjusted_rand_index(&table) - golden["ari"].as_f64().unwrap()).abs() < 1e-9);
}

#[test]
fn a_folder_against_itself_leaves_the_query_out() {
    // by angle: a a b a | c alone
    let features = one_hot_angles(&[0.0, 0.1, 0.25, 0.45, 3.0]);
    let result =
        by_labels::leave_one_out(features.view(), &[0, 0, 1, 0, 2], &RetrievalConfig::default()).unwrap();
    // rankings of the three a: (a b a), (a b a), (b a a); b and c find nothing
    let trapezoid = |ranks: &[usize]| crate::metrics::trapezoid_ap(ranks, ranks.len());
    let expected = (2.0 * trapezoid(&[0, 2]) + trapezoid(&[1, 2])) / 3.0;
    assert!((result.value("mAP").unwrap() - expected).abs() < 1e-12);
    let at = (2.0 * (1.0 + 2.0 / 3.0) + (1.0 / 2.0 + 2.0 / 3.0)) / 6.0;
    assert!((result.value("mAP@100").unwrap() - at).abs() < 1e-12);
    assert!((result.value("R@1").unwrap() - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(result.value("R@5"), Some(1.0));
    assert!((result.value("mP@5").unwrap() - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(result.settings["n_queries_without_positives"], 2);
    // Confidences: rows 0 and 1 see each other at cos .1 (right), b and the last a at cos .15 and cos .2 (wrong).
    assert!((result.value("GAP").unwrap() - 2.0 / 3.0).abs() < 1e-12);
    let table = result.to_eval_result().unwrap().to_json().unwrap();
    assert_eq!(table["rows"][0]["metric"], "mAP");
}

#[test]
fn queries_against_a_database() {
    let database = one_hot_angles(&[0.0, 1.0, 2.0]);
    let queries = one_hot_angles(&[0.1, 1.9, 1.4]);
    let config = RetrievalConfig::default();
    let run =
        |labels: &[u32]| by_labels::evaluate(queries.view(), labels, database.view(), &[0, 1, 2], &config);
    let result = run(&[0, 2, 9]).unwrap();
    assert_eq!((result.value("mAP"), result.value("R@1")), (Some(1.0), Some(1.0)));
    // the distractor (cos .4) is less sure than both right ones
    assert_eq!(result.value("GAP"), Some(1.0));
    assert_eq!((result.n_database, result.n_queries), (3, 3));
    let error = run(&[7, 8, 9]).unwrap_err().to_string();
    assert!(error.starts_with("labels: expected a query"), "{error}");
    let narrow = Matrix::new(vec![1.0], 1, 1).unwrap();
    let error = by_labels::evaluate(narrow.view(), &[0], database.view(), &[0, 1, 2], &config).unwrap_err();
    assert_eq!(
        error.to_string(),
        "query features: expected width 2 as the database, found 1"
    );
}

#[test]
fn ground_truth_that_does_not_fit_is_named() {
    let features = one_hot_angles(&[0.0, 1.0]);
    let text = r#"{"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [{"bbx": [0, 0, 1, 1], "easy": [0], "hard": [2]}]}"#;
    let mut truth: GroundTruth = serde_json::from_str(text).unwrap();
    let config = RetrievalConfig::default();
    let error = |truth: &GroundTruth| {
        revisited::evaluate(features.view(), features.view(), truth, &config)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(&truth),
        "ground truth: query 0, `hard`: expected rows below 2 (the names in `imlist`), found 2"
    );
    truth.gnd[0].hard.clear();
    assert_eq!(
        error(&truth),
        "query features: expected 1 rows, the names in `qimlist`, found 2"
    );
    truth.gnd.clear();
    assert!(error(&truth).contains("one a name in `qimlist`"));
}

/// Pairs whose scores rank as in the specification's example: .9 right, .8 wrong, .8 right, .5 right, .4 wrong.
#[test]
fn pooled_pairs_of_copies() {
    let angle = |cosine: f32| cosine.acos();
    let database = one_hot_angles(&[0.0, 0.0]);
    let queries = one_hot_angles(&[angle(0.9), angle(0.5)]);
    let config = CopyConfig {
        candidates: 2,
        ks: vec![1, 2],
        ..CopyConfig::default()
    };
    let run = |config: &CopyConfig, training: Option<MatrixView<'_>>| {
        copies::evaluate(
            queries.view(),
            &[1, 0],
            database.view(),
            &[0, 1],
            training,
            config,
        )
        .unwrap()
    };
    let result = run(&config, None);
    // Each query ties its copy with the other row: of equals the wrong one comes first.
    assert!((result.value("muAP").unwrap() - (1.0 / 2.0 + 2.0 / 4.0) / 2.0).abs() < 1e-12);
    assert_eq!(result.value("R@P90"), Some(0.0));
    // Ties within a query rank by row: query 0 looks for row 1, query 1 for row 0.
    assert_eq!((result.value("R@1"), result.value("R@2")), (Some(0.5), Some(1.0)));

    // A training row beside each query takes the same from all its scores, so recalls stay.
    let training = one_hot_angles(&[angle(0.5), angle(0.5), angle(0.5), 3.0]);
    let normalised = CopyConfig {
        score_normalisation: Some(ScoreNormalisation::default()),
        ..config
    };
    let result = run(&normalised, Some(training.view()));
    assert_eq!(result.value("R@1"), Some(0.5));
    assert_eq!(result.settings["n_training"], 4);
}

#[test]
fn score_normalisation_lowers_queries_that_resemble_everything() {
    // Query 0 is a copy of row 0 (cos .9); query 1, a distractor, is nearer to row 1 (cos .95) but as near to training.
    let database = Matrix::new(vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], 2, 3).unwrap();
    let queries = Matrix::new(vec![0.9, 0.0, 0.435_89, 0.0, 0.95, 0.312_25], 2, 3).unwrap();
    let training = Matrix::new(vec![0.0, 0.9, 0.4, 0.0, 0.9, 0.3, 0.0, 0.95, 0.3], 3, 3).unwrap();
    let plain = CopyConfig {
        candidates: 1,
        ks: vec![1],
        ..CopyConfig::default()
    };
    let normalised = CopyConfig {
        score_normalisation: Some(ScoreNormalisation::default()),
        ..plain.clone()
    };
    let value = |config: &CopyConfig| {
        let training = Some(training.view());
        let result = copies::evaluate(
            queries.view(),
            &[0, 9],
            database.view(),
            &[0, 1],
            training,
            config,
        );
        result.unwrap().value("muAP").unwrap()
    };
    assert_eq!(value(&plain), 0.5);
    assert_eq!(value(&normalised), 1.0);
}

#[test]
fn copies_need_what_they_ask_for() {
    let features = one_hot_angles(&[0.0, 1.0]);
    let error = |config: &CopyConfig, training: Option<MatrixView<'_>>| {
        let view = features.view();
        copies::evaluate(view, &[0, 1], view, &[0, 1], training, config)
            .unwrap_err()
            .to_string()
    };
    let config = CopyConfig {
        whiten: true,
        ..CopyConfig::default()
    };
    assert!(error(&config, None).starts_with("training: whitening"));
    let config = CopyConfig {
        score_normalisation: Some(ScoreNormalisation::default()),
        ..CopyConfig::default()
    };
    assert_eq!(
        error(&config, Some(features.view())),
        "training features: expected more than 2 rows for the score normalisation, found 2"
    );
    let config = CopyConfig {
        candidates: 5,
        ..CopyConfig::default()
    };
    assert_eq!(
        error(&config, None),
        "ks: expected 1 to 5 (the candidates), found 10"
    );
}

#[test]
fn lengths_count_only_where_rows_are_not_normalised() {
    // By angle 0 - 1 | 2 - 3; by inner products the long third row is the nearest of all.
    let mut data = one_hot_angles(&[0.0, 0.1, 1.0, 1.1]).into_data();
    data[4..6].iter_mut().for_each(|value| *value *= 100.0);
    let features = Matrix::new(data, 4, 2).unwrap();
    let nearest = |normalise| {
        let config = RetrievalConfig {
            normalise,
            ..RetrievalConfig::default()
        };
        let result = by_labels::leave_one_out(features.view(), &[0, 0, 1, 1], &config).unwrap();
        result.value("R@1").unwrap()
    };
    assert_eq!((nearest(true), nearest(false)), (1.0, 0.5));
}

#[test]
fn the_defaults_of_copies_are_the_documented_ones() {
    let documented = CopyConfig {
        candidates: 10,
        ks: vec![1, 10],
        whiten: false,
        components: None,
        score_normalisation: None,
        seed: 0,
        bootstrap_resamples: 1_000,
    };
    assert_eq!(CopyConfig::default(), documented);
}
