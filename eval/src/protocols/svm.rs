//! Linear support vector machines on few rows a class, one class against the rest, as vissl measures frozen features on VOC07
//! (Goyal et al. 2019, section 6; Misra and van der Maaten 2020): several numbers of rows, several draws of each, the mean average
//! precision over classes. Its differences: the hinge itself and not its square (linfa-svm), and a cost that test rows have no say in.

use std::collections::BTreeMap;

use linfa::Dataset;
use linfa::traits::Fit as _;
use linfa_svm::Svm;
use ndarray::{Array1, Array2};
use polars::prelude::df;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::draws::draw_per_class;
use crate::linalg::gemm::{Operand, Threads, matmul};
use crate::linalg::normalise::l2_normalise;
use crate::metrics::classification::{accuracy, hits_at, mean_per_class};
use crate::metrics::micro_ap::{ScoredPair, micro_ap, pooled};
use crate::protocols::predictions::Predictions;
use crate::protocols::{checks, scores};
use crate::stats::spread::{mean, sample_std};
use crate::stats::{BootstrapConfig, bootstrap_mean};
use crate::{Error, EvalResult, MatrixView, Result, Split, TrainTest};

/// Train rows of one fit at most: linfa holds the products of all pairs, in f64.
const MAX_ROWS: usize = 8_192;
/// Folds of the train rows on which one of several costs is chosen.
const FOLDS: usize = 3;
/// How far from its optimum a fit may end.
const TOLERANCE: f64 = 1e-3;

/// Settings of the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SvmConfig {
    /// Train rows a class, each at least 1, all of a class that has fewer; 1, 2, 4, 8, 16, 32, 64 and 96 by default.
    pub n_per_class: Vec<usize>,
    /// Draws of each number, at least 1; 5 by default.
    pub n_tries: usize,
    /// Costs of an error, each above 0; of several the one with the best mean average precision in three folds of the rows drawn.
    /// 1 by default.
    pub costs: Vec<f64>,
    /// How much more an error on a row of the class costs than one on the rest, above 0; 2 by default, as in vissl.
    pub positive_weight: f64,
    /// Whether rows are L2-normalised first; true by default.
    pub normalise: bool,
    /// Seed of the draws and of the bootstrap; 0 by default.
    pub seed: u64,
    /// Resamples of the interval of `top1`, 1,000 by default; 0 for none.
    pub bootstrap_resamples: usize,
    /// Whether test rows may have labels that no training row has: they count as wrong.
    pub allow_unknown_labels: bool,
}

impl Default for SvmConfig {
    fn default() -> Self {
        Self {
            n_per_class: vec![1, 2, 4, 8, 16, 32, 64, 96],
            n_tries: 5,
            costs: vec![1.0],
            positive_weight: 2.0,
            normalise: true,
            seed: 0,
            bootstrap_resamples: 1_000,
            allow_unknown_labels: false,
        }
    }
}

impl SvmConfig {
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.n_per_class.is_empty() || self.n_per_class.contains(&0) {
            let reason = format!("expected numbers of at least 1, found {:?}", self.n_per_class);
            return Err(Error::config("n_per_class", reason));
        }
        if self.n_tries == 0 {
            return Err(Error::config("n_tries", "expected at least 1, found 0"));
        }
        let is_positive = |value: f64| value > 0.0 && value.is_finite();
        if self.costs.is_empty() || !self.costs.iter().all(|&cost| is_positive(cost)) {
            let reason = format!("expected numbers above 0, found {:?}", self.costs);
            return Err(Error::config("costs", reason));
        }
        if !is_positive(self.positive_weight) {
            let reason = format!("expected a number above 0, found {}", self.positive_weight);
            return Err(Error::config("positive_weight", reason));
        }
        Ok(())
    }
}

/// Scores for one number of rows a class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SvmRow {
    /// Train rows a class.
    pub n_per_class: usize,
    /// Train rows of a draw.
    pub n_train: usize,
    /// Mean over classes of the average precision on the test rows, of each draw.
    pub map: Vec<f64>,
    /// Test accuracy of the class of the highest score, of each draw.
    pub top1: Vec<f64>,
    /// 95 % bootstrap interval over test rows of the mean of `top1` over the draws; NaN without resamples.
    pub top1_interval: (f64, f64),
    /// Mean over classes of their accuracy, the mean over the draws.
    pub mean_per_class: f64,
    /// The cost of each draw.
    pub costs: Vec<f64>,
}

/// What the protocol gives.
#[derive(Debug, Clone, PartialEq)]
pub struct SvmResult {
    /// The settings it ran with.
    pub config: SvmConfig,
    /// One row a number of train rows, ascending.
    pub rows: Vec<SvmRow>,
    /// What the machines of the first draw of the greatest number said of the test rows.
    pub predictions: Predictions,
    /// Test rows.
    pub n_test: usize,
}

/// Fits machines on draws of the train rows and scores them on the test rows.
///
/// # Errors
/// Settings out of range, features and labels that do not fit, NaN or infinity, fewer than two classes, more rows in a draw than a fit
/// can hold, too few rows for folds where there are several costs.
pub fn evaluate(data: &TrainTest<'_>, config: &SvmConfig) -> Result<SvmResult> {
    config.validate()?;
    checks::pair(data, config.allow_unknown_labels)?;
    let TrainTest {
        train: Split {
            features: train,
            labels: train_labels,
        },
        test: Split {
            features: test,
            labels: test_labels,
        },
        n_classes,
    } = *data;
    let unit = match config.normalise {
        true => Some((l2_normalise(train)?, l2_normalise(test)?)),
        false => None,
    };
    let (train, test) = unit
        .as_ref()
        .map_or((train, test), |(train, test)| (train.view(), test.view()));
    let mut numbers = config.n_per_class.clone();
    numbers.sort_unstable();
    numbers.dedup();
    let largest = numbers[numbers.len() - 1];
    let n_largest = draw_per_class(train_labels, n_classes, largest, config.seed, 0).len();
    if n_largest > MAX_ROWS {
        let reason = format!(
            "expected at most {MAX_ROWS} train rows in a draw, found {n_largest} of {n_classes} classes with {largest} each"
        );
        return Err(Error::config("n_per_class", reason));
    }
    let mut predictions = None;
    let mut rows = Vec::new();
    for &number in &numbers {
        let mut row = SvmRow {
            n_per_class: number,
            n_train: 0,
            map: Vec::new(),
            top1: Vec::new(),
            top1_interval: (f64::NAN, f64::NAN),
            mean_per_class: 0.0,
            costs: Vec::new(),
        };
        let mut hits_of_tries = vec![0f32; test_labels.len()];
        for number_of_draw in 0..config.n_tries {
            let chosen = draw_per_class(
                train_labels,
                n_classes,
                number,
                config.seed,
                number_of_draw as u64,
            );
            let labels: Vec<u32> = chosen.iter().map(|&row| train_labels[row]).collect();
            let drawn = train.select(&chosen);
            let cost = choose_cost(drawn.view(), &labels, n_classes, config)?;
            let machines = Machines::fit(drawn.view(), &labels, n_classes, cost, config)?;
            let scores_of_rows = machines.scores(test);
            let hits = hits_at(&scores::ranks(&scores_of_rows, test_labels, n_classes), 1);
            row.n_train = chosen.len();
            row.map
                .push(mean_average_precision(&scores_of_rows, test_labels, n_classes));
            row.top1.push(accuracy(&hits));
            row.mean_per_class += mean_per_class(&hits, test_labels) / config.n_tries as f64;
            row.costs.push(cost);
            for (sum, hit) in hits_of_tries.iter_mut().zip(&hits) {
                *sum += hit / config.n_tries as f32;
            }
            if number == largest && number_of_draw == 0 {
                predictions = Some(scores::predictions(&scores_of_rows, n_classes));
            }
        }
        let interval = bootstrap_mean(
            &hits_of_tries,
            &BootstrapConfig {
                resamples: config.bootstrap_resamples,
                seed: config.seed,
                ..BootstrapConfig::default()
            },
        );
        row.top1_interval = (interval.low, interval.high);
        rows.push(row);
    }
    Ok(SvmResult {
        config: SvmConfig {
            n_per_class: numbers,
            ..config.clone()
        },
        rows,
        predictions: predictions.expect("there is a number of rows and a draw of it"),
        n_test: test_labels.len(),
    })
}

/// The only cost, or the one with the best mean average precision in folds, the smallest of equals.
fn choose_cost(train: MatrixView<'_>, labels: &[u32], n_classes: usize, config: &SvmConfig) -> Result<f64> {
    let mut costs = config.costs.clone();
    costs.sort_unstable_by(f64::total_cmp);
    costs.dedup();
    if let [cost] = costs[..] {
        return Ok(cost);
    }
    let fold_of = folds(labels);
    let in_fold = |fold: usize| fold_of.iter().filter(move |&&found| found == fold).count();
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    labels
        .iter()
        .for_each(|&label| *counts.entry(label).or_default() += 1);
    let fewest = counts.values().min().copied().unwrap_or(0);
    if fewest < FOLDS || (0..FOLDS).any(|fold| in_fold(fold) == 0) {
        let reason = format!(
            "expected one, as {FOLDS} folds to choose among several need at least {FOLDS} rows of every class, found {fewest}"
        );
        return Err(Error::config("costs", reason));
    }
    let mut best = (f64::NEG_INFINITY, costs[0]);
    for cost in costs {
        let mut sum = 0.0;
        for fold in 0..FOLDS {
            let rows = |held_out: bool| -> Vec<usize> {
                (0..labels.len())
                    .filter(|&row| (fold_of[row] == fold) == held_out)
                    .collect()
            };
            let labels_of = |rows: &[usize]| -> Vec<u32> { rows.iter().map(|&row| labels[row]).collect() };
            let (kept, held_out) = (rows(false), rows(true));
            let machines = Machines::fit(
                train.select(&kept).view(),
                &labels_of(&kept),
                n_classes,
                cost,
                config,
            )?;
            let scores = machines.scores(train.select(&held_out).view());
            sum += mean_average_precision(&scores, &labels_of(&held_out), n_classes);
        }
        if sum > best.0 {
            best = (sum, cost);
        }
    }
    Ok(best.1)
}

/// The fold of each row: rows of a class go to the folds in turn.
fn folds(labels: &[u32]) -> Vec<usize> {
    let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
    labels
        .iter()
        .map(|&label| {
            let count = seen.entry(label).or_default();
            *count += 1;
            (*count - 1) % FOLDS
        })
        .collect()
}

/// A machine a class: the score of a row is `w x + b`.
struct Machines {
    /// `[K, d]`.
    weights: Vec<f32>,
    /// `[K]`; of a class without a row negative infinity.
    biases: Vec<f32>,
    dim: usize,
}

impl Machines {
    fn fit(
        train: MatrixView<'_>,
        labels: &[u32],
        n_classes: usize,
        cost: f64,
        config: &SvmConfig,
    ) -> Result<Self> {
        let dim = train.dim();
        let values: Vec<f64> = train.data().iter().map(|&value| f64::from(value)).collect();
        let records = Array2::from_shape_vec((train.rows(), dim), values).expect("a value for each place");
        let fit = |class: u32| -> Result<(Vec<f32>, f32)> {
            let targets: Array1<bool> = labels.iter().map(|&label| label == class).collect();
            if !targets.iter().any(|&target| target) {
                return Ok((vec![0.0; dim], f32::NEG_INFINITY));
            }
            let machine = Svm::<f64, bool>::params()
                .pos_neg_weights(config.positive_weight * cost, cost)
                .eps(TOLERANCE)
                .linear_kernel()
                .fit(&Dataset::new(records.clone(), targets))
                .map_err(|error| {
                    Error::data("train features", format!("no machine for class {class}: {error}"))
                })?;
            // Linfa keeps the hyperplane to itself: its values along the axes are the weights.
            let mut axis = Array1::<f64>::zeros(dim);
            let weights = (0..dim)
                .map(|place| {
                    axis[place] = 1.0;
                    let weight = machine.weighted_sum(&axis) as f32;
                    axis[place] = 0.0;
                    weight
                })
                .collect();
            Ok((weights, -machine.rho as f32))
        };
        let machines: Vec<(Vec<f32>, f32)> = (0..n_classes as u32)
            .into_par_iter()
            .map(fit)
            .collect::<Result<_>>()?;
        let (weights, biases): (Vec<Vec<f32>>, Vec<f32>) = machines.into_iter().unzip();
        Ok(Self {
            weights: weights.concat(),
            biases,
            dim,
        })
    }

    /// `[n, K]`.
    fn scores(&self, rows: MatrixView<'_>) -> Vec<f32> {
        let n_classes = self.biases.len();
        let mut scores = vec![0.0f32; rows.rows() * n_classes];
        matmul(
            &mut scores,
            Operand::row_major(rows.data(), rows.rows(), self.dim),
            Operand::row_major(&self.weights, n_classes, self.dim).transposed(),
            Threads::Pool,
        );
        for (score, bias) in scores.iter_mut().zip(self.biases.iter().cycle()) {
            *score += bias;
        }
        scores
    }
}

/// Mean over the classes that have a row of the average precision of their scores, column by column of `scores` `[n, K]`.
fn mean_average_precision(scores: &[f32], labels: &[u32], n_classes: usize) -> f64 {
    let of_class = |class: usize| {
        let pairs: Vec<ScoredPair> = labels
            .iter()
            .enumerate()
            .map(|(row, &label)| ScoredPair {
                query: row,
                score: scores[row * n_classes + class],
                correct: label as usize == class,
            })
            .collect();
        let n_truth = pairs.iter().filter(|pair| pair.correct).count();
        (n_truth > 0).then(|| micro_ap(&pooled(pairs), n_truth, |_| 1))
    };
    let precisions: Vec<f64> = (0..n_classes).into_par_iter().filter_map(of_class).collect();
    mean(&precisions)
}

impl SvmResult {
    /// The table: `n_per_class`, `map`, `map_std` over draws (missing for one), `top1`, `top1_low`, `top1_high`, `mean_per_class`,
    /// `n_train`, `n_tries`.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let column = |value: &dyn Fn(&SvmRow) -> f64| self.rows.iter().map(value).collect::<Vec<f64>>();
        let std = |row: &SvmRow| (row.map.len() > 1).then(|| sample_std(&row.map));
        let table = df!(
            "n_per_class" => self.rows.iter().map(|row| row.n_per_class as u64).collect::<Vec<_>>(),
            "map" => column(&|row| mean(&row.map)),
            "map_std" => self.rows.iter().map(std).collect::<Vec<_>>(),
            "top1" => column(&|row| mean(&row.top1)),
            "top1_low" => column(&|row| row.top1_interval.0),
            "top1_high" => column(&|row| row.top1_interval.1),
            "mean_per_class" => column(&|row| row.mean_per_class),
            "n_train" => self.rows.iter().map(|row| row.n_train as u64).collect::<Vec<_>>(),
            "n_tries" => self.rows.iter().map(|row| row.map.len() as u64).collect::<Vec<_>>(),
        )?;
        let settings = json!({
            "n_per_class": self.config.n_per_class,
            "n_tries": self.config.n_tries,
            "costs": self.config.costs,
            "positive_weight": self.config.positive_weight,
            "normalise": self.config.normalise,
            "seed": self.config.seed,
            "bootstrap_resamples": self.config.bootstrap_resamples,
            "allow_unknown_labels": self.config.allow_unknown_labels,
            "algorithm": "linear, one class against the rest, hinge loss (linfa-svm)",
            "costs_of_tries": self.rows.iter().map(|row| &row.costs).collect::<Vec<_>>(),
            "map_of_tries": self.rows.iter().map(|row| &row.map).collect::<Vec<_>>(),
        });
        let n_train = self.rows.iter().map(|row| row.n_train).max().unwrap_or(0);
        EvalResult::new("svm", settings, n_train, self.n_test, table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;
    use crate::rng::stream;
    use rand::Rng as _;

    /// Three overlapping clusters in the plane, shifted away from the origin.
    fn clusters(n: usize, seed: u64) -> (Matrix, Vec<u32>) {
        let mut rng = stream(seed, "clusters", 0);
        let labels: Vec<u32> = (0..n as u32).map(|row| row % 3).collect();
        let data = labels
            .iter()
            .flat_map(|&label| {
                let angle = f64::from(label) * 2.1;
                [5.0 + 2.0 * angle.cos(), 3.0 + 2.0 * angle.sin()]
                    .map(|centre| (centre + rng.random_range(-1.0..1.0)) as f32)
            })
            .collect();
        (Matrix::new(data, n, 2).unwrap(), labels)
    }

    fn run(change: impl FnOnce(&mut SvmConfig)) -> Result<SvmResult> {
        let ((train, train_labels), (test, test_labels)) = (clusters(300, 1), clusters(300, 2));
        let mut config = SvmConfig {
            n_per_class: vec![20, 1],
            n_tries: 3,
            normalise: false,
            bootstrap_resamples: 100,
            ..SvmConfig::default()
        };
        change(&mut config);
        let data = TrainTest::new(
            Split::new(train.view(), &train_labels),
            Split::new(test.view(), &test_labels),
            3,
        );
        evaluate(&data, &config)
    }

    #[test]
    fn more_rows_are_better_and_draws_repeat() {
        let result = run(|_| {}).unwrap();
        let [one, twenty] = &result.rows[..] else { panic!() };
        assert_eq!((one.n_train, twenty.n_train), (3, 60));
        assert!(
            mean(&twenty.top1) > 0.95 && mean(&twenty.top1) > mean(&one.top1),
            "{result:?}"
        );
        assert!(mean(&twenty.map) > 0.97, "{result:?}");
        assert!(twenty.top1_interval.0 <= mean(&twenty.top1) && mean(&twenty.top1) <= twenty.top1_interval.1);
        assert_eq!(result, run(|_| {}).unwrap());
        assert_ne!(result.rows, run(|config| config.seed = 1).unwrap().rows);
        let json = result.to_eval_result().unwrap().to_json().unwrap();
        assert_eq!(
            (&json["task"], &json["rows"][1]["n_per_class"]),
            (&"svm".into(), &20.into())
        );
    }

    /// The machine of two rows lies half way between them, and as far from each as the margin says.
    #[test]
    fn two_rows_have_the_widest_margin() {
        let rows = Matrix::new(vec![1.0, 0.0, 3.0, 0.0], 2, 2).unwrap();
        let config = SvmConfig {
            positive_weight: 1.0,
            ..SvmConfig::default()
        };
        let machines = Machines::fit(rows.view(), &[0, 1], 2, 100.0, &config).unwrap();
        let probes = Matrix::new(vec![2.0, 7.0, 1.0, 0.0, 3.0, 1.0], 3, 2).unwrap();
        let found = machines.scores(probes.view());
        for (found, expected) in found.iter().zip([0.0, 0.0, 1.0, -1.0, -1.0, 1.0]) {
            assert!((found - expected).abs() < 2e-3, "{found}, expected {expected}");
        }
    }

    #[test]
    fn a_cost_is_chosen_in_folds_of_the_rows_drawn() {
        // One column tells the classes, the other is far louder: where errors cost next to nothing, it decides.
        let mut rng = stream(4, "columns", 0);
        let labels: Vec<u32> = (0..24).map(|row| row % 2).collect();
        let data = labels
            .iter()
            .flat_map(|&label| {
                [
                    label as f32 + rng.random_range(-0.3..0.3),
                    rng.random_range(-50.0..50.0),
                ]
            })
            .collect();
        let rows = Matrix::new(data, 24, 2).unwrap();
        let config = SvmConfig {
            costs: vec![10.0, 1e-9],
            ..SvmConfig::default()
        };
        assert_eq!(choose_cost(rows.view(), &labels, 2, &config).unwrap(), 10.0);
        let error = run(|config| config.costs = vec![1.0, 2.0])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("costs: expected one") && error.contains("found 1"),
            "{error}"
        );
        assert_eq!(folds(&[5, 5, 7, 5, 5, 7]), [0, 1, 0, 2, 0, 1]);
    }

    #[test]
    fn average_precision_is_that_of_each_column() {
        // Of class 0 right, wrong, right: (1 + 2/3) / 2; of class 1 wrong, right, wrong at scores 3, 2, 1: 1/2.
        let scores = [3.0, 3.0, 2.0, 2.0, 1.0, 1.0];
        let found = mean_average_precision(&scores, &[0, 1, 0], 2);
        assert!((found - (5.0 / 6.0 + 0.5) / 2.0).abs() < 1e-12, "{found}");
    }

    #[test]
    fn what_cannot_be_fitted_is_named() {
        let error = |change: fn(&mut SvmConfig)| run(change).unwrap_err().to_string();
        assert!(error(|config| config.n_per_class = vec![0]).starts_with("n_per_class"));
        assert!(error(|config| config.n_tries = 0).starts_with("n_tries"));
        assert!(error(|config| config.costs = vec![]).starts_with("costs"));
        assert!(error(|config| config.positive_weight = f64::NAN).starts_with("positive_weight"));
        let ((rows, _), labels) = (clusters(8200, 1), vec![0; 8200]);
        let mut labels = labels;
        labels[0] = 1;
        let config = SvmConfig {
            n_per_class: vec![9000],
            ..SvmConfig::default()
        };
        let split = Split::new(rows.view(), &labels);
        let error = evaluate(&TrainTest::new(split, split, 2), &config).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("at most 8192 train rows in a draw, found 8200"),
            "{error}"
        );
    }
}
