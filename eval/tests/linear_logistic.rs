//! The logistic regression against scikit-learn (fixtures written by `LogisticRegression(tol=1e-10)` in f64) and
//! against linfa-logistic.

use linfa::prelude::*;
use linfa_logistic::MultiLogisticRegression;
use macula_eval::protocols::logistic::{LogisticParams, LogisticSolver, fit};
use macula_eval::{Error, Matrix};
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
            assert_eq!(
                accuracy(&predicted, &data.test_labels),
                expected["accuracy"].as_f64().unwrap()
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
        assert_eq!(
            accuracy(&predicted, &halves(&data.test_labels)),
            expected["accuracy"].as_f64().unwrap()
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
