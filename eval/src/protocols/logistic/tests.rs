//! The solver against closed facts: invariances, error lines. Comparisons with other libraries are in `eval/tests`.

use super::*;
use crate::Matrix;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Gaussian-like clusters that overlap, with a shared offset and scales that differ by column.
fn clusters(rows: usize, dim: usize, classes: usize, seed: u64) -> (Matrix, Vec<u32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let centres: Vec<f32> = (0..classes * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut data = Vec::with_capacity(rows * dim);
    let mut labels = Vec::with_capacity(rows);
    for _ in 0..rows {
        let label = rng.random_range(0..classes);
        for j in 0..dim {
            let noise: f32 = (0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum();
            let scale = 1.0 + 3.0 * (j % 5) as f32;
            data.push(2.0 + scale * (centres[label * dim + j] + noise));
        }
        labels.push(label as u32);
    }
    (Matrix::new(data, rows, dim).unwrap(), labels)
}

/// The objective and the largest absolute value of its gradient, in plain f64.
fn check(x: MatrixView<'_>, labels: &[u32], c: f64, model: &LogisticModel) -> (f64, f64) {
    let (dim, classes) = (x.dim(), model.n_classes());
    let mut gradient: Vec<f64> = model.weights().to_vec();
    gradient.extend(vec![0.0; classes]);
    let mut objective = 0.5 * model.weights().iter().map(|w| w * w).sum::<f64>();
    for (i, &label) in labels.iter().enumerate() {
        let row = x.row(i);
        let logits: Vec<f64> = (0..classes)
            .map(|k| {
                let weights = &model.weights()[k * dim..(k + 1) * dim];
                model.biases()[k]
                    + weights
                        .iter()
                        .zip(row)
                        .map(|(w, v)| w * f64::from(*v))
                        .sum::<f64>()
            })
            .collect();
        let max = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
        objective += c * (sum.ln() + max - logits[label as usize]);
        for k in 0..classes {
            let residual = (logits[k] - max).exp() / sum - f64::from(u8::from(k == label as usize));
            for j in 0..dim {
                gradient[k * dim + j] += c * residual * f64::from(row[j]);
            }
            gradient[classes * dim + k] += c * residual;
        }
    }
    (objective, gradient.iter().fold(0.0, |max, g| max.max(g.abs())))
}

#[test]
fn the_gradient_is_zero_at_the_solution() {
    let (x, labels) = clusters(1500, 20, 4, 1);
    for c in [1e-4, 1e-2, 1.0, 100.0] {
        let model = fit(x.view(), &labels, 4, &LogisticParams::new(c)).unwrap();
        assert!(model.converged());
        let (objective, gradient) = check(x.view(), &labels, c, &model);
        let at_zero = c * labels.len() as f64;
        assert!(
            (model.objective() / objective - 1.0).abs() < 1e-7,
            "{} {objective}",
            model.objective()
        );
        assert!(
            gradient < 1e-3 * at_zero,
            "C {c}: gradient {gradient:e}, {} iterations",
            model.iterations()
        );
        assert!(
            model.iterations() < 60,
            "C {c}: {} iterations",
            model.iterations()
        );
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (x, labels) = clusters(3000, 12, 3, 2);
    let solve = |threads: usize| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| fit(x.view(), &labels, 3, &LogisticParams::new(1.0)).unwrap())
    };
    assert_eq!(solve(1), solve(3));
}

#[test]
fn a_warm_start_reaches_the_same_minimum_in_fewer_steps() {
    let (x, labels) = clusters(1500, 20, 4, 3);
    let near = fit(x.view(), &labels, 4, &LogisticParams::new(1.0)).unwrap();
    let cold = fit(x.view(), &labels, 4, &LogisticParams::new(1.5)).unwrap();
    let warm = fit_from(x.view(), &labels, 4, &LogisticParams::new(1.5), &near).unwrap();
    assert!((warm.objective() / cold.objective() - 1.0).abs() < 1e-7);
    assert!(warm.iterations() < cold.iterations());
}

#[test]
fn separable_classes_converge_at_a_large_c() {
    let x = Matrix::new(vec![-2.0, -1.5, -1.0, 1.0, 1.5, 2.0], 6, 1).unwrap();
    let labels = [0, 0, 0, 1, 1, 2];
    let model = fit(x.view(), &labels, 3, &LogisticParams::new(1e5)).unwrap();
    assert!(model.converged());
    let (objective, _) = check(x.view(), &labels, 1e5, &model);
    assert!((model.objective() / objective - 1.0).abs() < 1e-5);
    assert_eq!(model.predict(x.view()).unwrap(), labels);
}

#[test]
fn wide_features_use_the_diagonal_and_still_converge() {
    let (x, labels) = clusters(60, 2100, 3, 4);
    let model = fit(x.view(), &labels, 3, &LogisticParams::new(1e-4)).unwrap();
    assert!(model.converged());
    let (objective, gradient) = check(x.view(), &labels, 1e-4, &model);
    assert!((model.objective() / objective - 1.0).abs() < 1e-6);
    assert!(gradient < 1e-4, "{gradient:e}");
}

#[test]
fn a_class_without_rows_and_a_constant_column_are_fine() {
    let x = Matrix::new(vec![0.0, 1.0, 0.5, 1.0, 3.0, 1.0, 4.0, 1.0], 4, 2).unwrap();
    let model = fit(x.view(), &[0, 0, 2, 2], 4, &LogisticParams::new(1.0)).unwrap();
    assert_eq!(model.predict(x.view()).unwrap(), [0, 0, 2, 2]);
}

#[test]
fn each_error_is_one_line_that_names_what_is_wrong() {
    let x = Matrix::new(vec![0.0, 1.0, 2.0, 3.0], 4, 1).unwrap();
    let nan = Matrix::new(vec![0.0, f32::NAN, 2.0, 3.0], 4, 1).unwrap();
    let labels = [0, 1, 0, 1];
    let message = |x: &Matrix, labels: &[u32], classes, params: LogisticParams| {
        fit(x.view(), labels, classes, &params).unwrap_err().to_string()
    };
    let one = || LogisticParams::new(1.0);
    assert_eq!(
        message(&x, &[1, 1, 1, 1], 2, one()),
        "train labels: expected at least two classes, found only class 1"
    );
    assert_eq!(
        message(&x, &[0; 4], 1, one()),
        "train labels: expected at least two classes, found 1"
    );
    assert_eq!(
        message(&x, &[0, 1], 2, one()),
        "train labels: expected 4 labels, one a row, found 2"
    );
    assert_eq!(
        message(&x, &[0, 1, 5, 0], 2, one()),
        "train labels: expected labels below 2, found 5 in row 2"
    );
    assert!(message(&nan, &labels, 2, one()).contains("in row 1, column"));
    assert_eq!(
        message(&x, &labels, 2, LogisticParams::new(-1.0)),
        "c: expected a number above 0, found -1"
    );
    assert_eq!(
        message(&x, &labels, 2, one().max_iterations(0)),
        "max_iterations: expected at least 1, found 0"
    );
    assert!(message(&x, &labels, 2, one().tolerance(f64::NAN)).starts_with("tolerance: "));
    let empty = Matrix::new(Vec::new(), 0, 3).unwrap();
    assert_eq!(
        message(&empty, &[], 2, one()),
        "train features: expected at least one row, found none"
    );
    let model = fit(x.view(), &labels, 2, &one()).unwrap();
    let wide = Matrix::new(vec![0.0; 4], 2, 2).unwrap();
    assert_eq!(
        model.predict(wide.view()).unwrap_err().to_string(),
        "test features: expected width 1 as in training, found 2"
    );
    let error = model.logits(nan.view()).unwrap_err().to_string();
    assert!(
        error.starts_with("test features: ") && error.contains("in row 1"),
        "{error}"
    );
    assert_eq!(
        fit_from(wide.view(), &[0, 1], 2, &one(), &model)
            .unwrap_err()
            .to_string(),
        "starting model: expected 2 classes of width 2, found 2 of width 1"
    );
}

/// Of two classes the weights are those of scikit-learn's one vector w, the difference: `w = C sum_i (y_i - p_i) x_i`.
#[test]
fn two_classes_have_the_minimum_of_one_weight_vector() {
    let (x, labels) = clusters(300, 3, 2, 5);
    let c = 0.01;
    let model = fit(x.view(), &labels, 2, &LogisticParams::new(c).tolerance(1e-12)).unwrap();
    let w: Vec<f64> = (0..3)
        .map(|j| model.weights()[3 + j] - model.weights()[j])
        .collect();
    let bias = model.biases()[1] - model.biases()[0];
    let mut pulled = vec![0.0; 3];
    let mut objective = 0.5 * w.iter().map(|w| w * w).sum::<f64>();
    for (row, &label) in labels.iter().enumerate() {
        let x: Vec<f64> = x.view().row(row).iter().map(|&value| f64::from(value)).collect();
        let logit = bias + w.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>();
        let residual = f64::from(label) - 1.0 / (1.0 + (-logit).exp());
        objective += c * (1.0 - residual.abs()).ln().abs();
        pulled
            .iter_mut()
            .zip(&x)
            .for_each(|(sum, x)| *sum += c * residual * x);
    }
    let largest = w.iter().fold(0.0f64, |max, w| max.max(w.abs()));
    assert!(largest > 0.01, "{w:?}");
    for (w, pulled) in w.iter().zip(&pulled) {
        assert!((w - pulled).abs() < 1e-3 * largest, "{w} {pulled}");
    }
    assert!((model.objective() / objective - 1.0).abs() < 1e-6);
}

#[test]
fn log_loss_is_the_mean_over_rows() {
    let (x, labels) = clusters(50, 2, 3, 6);
    let model = fit(x.view(), &labels, 3, &LogisticParams::new(0.1)).unwrap();
    let logits = model.logits(x.view()).unwrap();
    let of_row = |(z, &label): (&[f32], &u32)| {
        let sum: f64 = z.iter().map(|z| f64::from(*z).exp()).sum();
        sum.ln() - f64::from(z[label as usize])
    };
    let expected = logits.chunks_exact(3).zip(&labels).map(of_row).sum::<f64>() / 50.0;
    assert!((model.log_loss(x.view(), &labels).unwrap() - expected).abs() < 1e-9);
}
