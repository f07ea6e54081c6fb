//! The logistic regression against scikit-learn (fixtures written by `LogisticRegression(tol=1e-10)` in f64) and
//! against linfa-logistic.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use linfa::prelude::*;
use linfa_logistic::MultiLogisticRegression;
use macula_eval::protocols::logistic::{
    CSelection, LogisticParams, LogisticSolver, LogregConfig, evaluate, fit,
};
use macula_eval::{Error, Matrix, Split, TrainTest};
use ndarray::{Array1, Array2};
use safetensors::SafeTensors;

struct Features {
    train: Matrix,
    train_labels: Vec<u32>,
    test: Matrix,
    test_labels: Vec<u32>,
}

const CLASSES: usize = 7;

fn features() -> Features {
    let bytes = include_bytes!("fixtures/linear_features.safetensors");
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    let matrix = |name: &str| {
        let tensor = tensors.tensor(name).unwrap();
        let words = tensor.data().chunks_exact(4);
        let values = words
            .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        Matrix::new(values, tensor.shape()[0], tensor.shape()[1]).unwrap()
    };
    let labels = |name: &str| -> Vec<u32> {
        let words = tensors.tensor(name).unwrap().data().chunks_exact(8);
        words
            .map(|word| i64::from_le_bytes(word.try_into().unwrap()) as u32)
            .collect()
    };
    Features {
        train: matrix("train"),
        train_labels: labels("train_labels"),
        test: matrix("test"),
        test_labels: labels("test_labels"),
    }
}

fn expected() -> serde_json::Value {
    serde_json::from_str(include_str!("fixtures/linear_expected.json")).unwrap()
}

fn accuracy(predicted: &[u32], labels: &[u32]) -> f64 {
    let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
    right as f64 / labels.len() as f64
}

fn assert_close(found: f64, expected: f64, relative: f64, what: &str) {
    let error = (found / expected - 1.0).abs();
    assert!(
        error < relative,
        "{what}: found {found}, expected {expected}, off by {error:e}"
    );
}

#[test]
fn every_class_matches_scikit_learn() {
    let data = features();
    let expected = expected();
    let mut solver = LogisticSolver::new(data.train.view(), &data.train_labels, CLASSES).unwrap();
    let mut before = None;
    for (key, c) in [("0.001", 0.001), ("0.1", 0.1), ("1.0", 1.0), ("100.0", 100.0)] {
        let expected = &expected["multinomial"][key];
        let params = LogisticParams::new(c).check().unwrap();
        for start in [None, before.as_ref()] {
            let model = solver.fit(&params, start).unwrap();
            assert!(model.converged(), "C {c}");
            assert_close(
                model.objective(),
                expected["objective"].as_f64().unwrap(),
                1e-6,
                "objective",
            );
            let loss = model.log_loss(data.test.view(), &data.test_labels).unwrap();
            assert_close(
                loss,
                expected["test_log_loss"].as_f64().unwrap(),
                2e-3,
                "test log loss",
            );
            let predicted = model.predict(data.test.view()).unwrap();
            assert_close(
                accuracy(&predicted, &data.test_labels),
                expected["accuracy"].as_f64().unwrap(),
                1e-12,
                "accuracy",
            );
        }
        before = Some(solver.fit(&params, None).unwrap());
    }
}

#[test]
fn two_classes_have_the_objective_of_one_weight_vector() {
    let data = features();
    let expected = expected();
    let halves = |labels: &[u32]| -> Vec<u32> { labels.iter().map(|label| u32::from(*label < 3)).collect() };
    let labels = halves(&data.train_labels);
    for (key, c) in [("0.01", 0.01), ("1.0", 1.0), ("50.0", 50.0)] {
        let expected = &expected["two_classes_below_3"][key];
        let model = fit(data.train.view(), &labels, 2, &LogisticParams::new(c)).unwrap();
        assert_close(
            model.objective(),
            expected["objective"].as_f64().unwrap(),
            1e-6,
            "objective",
        );
        let predicted = model.predict(data.test.view()).unwrap();
        assert_close(
            accuracy(&predicted, &halves(&data.test_labels)),
            expected["accuracy"].as_f64().unwrap(),
            1e-12,
            "accuracy",
        );
    }
}

/// Columns of mean 0 and deviation 1, as linfa-logistic needs them.
fn standardised(x: &Matrix) -> Array2<f32> {
    let view = x.view();
    let array = Array2::from_shape_vec((view.rows(), view.dim()), view.data().to_vec()).unwrap();
    let mean = array.mean_axis(ndarray::Axis(0)).unwrap();
    let deviation = array.std_axis(ndarray::Axis(0), 0.0);
    (array - mean) / deviation
}

#[test]
fn linfa_gives_the_same_weights_through_the_same_traits() {
    let data = features();
    let x = standardised(&data.train);
    let labels: Array1<usize> = data
        .train_labels
        .iter()
        .map(|label| *label as usize * 10)
        .collect();
    let c = 0.5;
    let dataset = Dataset::new(x.clone(), labels.clone());
    let ours = Fit::<_, _, Error>::fit(&LogisticParams::new(c), &dataset).unwrap();
    let wide = Dataset::new(x.mapv(f64::from), labels);
    let theirs = MultiLogisticRegression::default()
        .alpha(1.0 / c)
        .max_iterations(2000)
        .gradient_tolerance(1e-7)
        .fit(&wide)
        .unwrap();
    for (k, weights) in ours.model().weights().chunks_exact(x.ncols()).enumerate() {
        for (j, weight) in weights.iter().enumerate() {
            let other = theirs.params()[[j, k]];
            assert!(
                (weight - other).abs() < 1e-3,
                "class {k} column {j}: {weight} and {other}"
            );
        }
    }
    assert_eq!(ours.classes(), [0, 10, 20, 30, 40, 50, 60]);
    assert_eq!(ours.predict(&x), theirs.predict(&wide.records));
}

fn protocol(config: &LogregConfig) -> macula_eval::Result<macula_eval::protocols::logistic::LogregResult> {
    let data = features();
    evaluate(&pair(&data, &data.test), config)
}

/// The features, with `test` in the place of the test rows.
fn pair<'a>(data: &'a Features, test: &'a Matrix) -> TrainTest<'a> {
    TrainTest::new(
        Split::new(data.train.view(), &data.train_labels),
        Split::new(test.view(), &data.test_labels),
        CLASSES,
    )
}

#[test]
fn a_given_c_gives_the_numbers_of_scikit_learn() {
    let expected = expected();
    let config = LogregConfig {
        c: CSelection::Fixed(0.001),
        ..LogregConfig::default()
    };
    let result = protocol(&config).unwrap();
    let [row] = result.rows.as_slice() else {
        panic!("one row, found {:?}", result.rows);
    };
    let scores = row.test.unwrap();
    assert_close(
        scores.top1,
        expected["multinomial"]["0.001"]["accuracy"].as_f64().unwrap(),
        1e-12,
        "top1",
    );
    assert!(scores.top1_low < scores.top1 && scores.top1 < scores.top1_high && scores.top5 >= scores.top1);
    assert_eq!((row.selected_on.as_str(), row.val_top1), ("given", None));
}

#[test]
fn c_is_chosen_on_training_rows_and_only_the_chosen_one_sees_the_test_rows() {
    let result = protocol(&LogregConfig::default()).unwrap();
    assert_eq!(result.rows.len(), 45);
    let chosen = &result.rows[0];
    let scores = chosen.test.unwrap();
    assert!(scores.top1 > 0.95, "{scores:?}");
    for row in &result.rows[1..] {
        assert!(row.test.is_none() && row.val_top1 <= chosen.val_top1);
        // The first of equals in ascending order.
        assert!(row.val_top1 < chosen.val_top1 || row.c > chosen.c);
    }
    let table = result.to_eval_result().unwrap().to_json().unwrap();
    assert_eq!(table["task"], "logreg");
    assert_eq!(table["n_test"], 120);
    assert_eq!(table["rows"][0]["c"], chosen.c);
    assert_eq!(table["rows"][0]["top1"], scores.top1);
    assert!(table["rows"][1]["top1"].is_null() && table["rows"][1]["val_top1"].is_number());
    assert_eq!(table["rows"][1]["selected_on"], "train split 10 %");
    // The grid's ends are those of the reference.
    let mut all: Vec<f64> = result.rows.iter().map(|row| row.c).collect();
    all.sort_by(f64::total_cmp);
    assert_close(all[0], 1e-6, 1e-12, "first C");
    assert_close(all[44], 1e5, 1e-12, "last C");
}

#[test]
fn the_protocol_refuses_what_it_cannot_use() {
    let message = |config: LogregConfig| protocol(&config).unwrap_err().to_string();
    let of = |values: Vec<f64>| LogregConfig {
        c: CSelection::Grid(values),
        ..LogregConfig::default()
    };
    assert_eq!(message(of(vec![])), "c: expected at least one value, found none");
    assert_eq!(
        message(of(vec![1.0, 0.0])),
        "c: expected a number above 0, found 0"
    );
    let tiny = LogregConfig {
        val_fraction: 0.001,
        ..LogregConfig::default()
    };
    assert!(message(tiny).starts_with("val_fraction: expected at least one row"));
    let data = features();
    let narrow = Matrix::new(vec![0.0; 240], 120, 2).unwrap();
    let error = evaluate(&pair(&data, &narrow), &LogregConfig::default());
    assert_eq!(
        error.unwrap_err().to_string(),
        "test features: expected width 16 as in training, found 2"
    );
}
