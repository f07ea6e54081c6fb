//! Robustness to corrupted test images, as with ImageNet-C (Hendrycks & Dietterich 2019): a classifier is fitted once on
//! clean training features, and the error on test features is measured clean and under every corruption and severity. The
//! corruption error CE of a corruption is the sum of its errors over the severities, divided by the same sum of a baseline;
//! the relative one takes the clean error from every error first. mCE is the mean over corruptions.

use polars::prelude::{Column, DataFrame};
use serde::Serialize;

use crate::linalg::normalise::l2_normalise;
use crate::protocols::knn::{self, KnnConfig};
use crate::protocols::logistic::{self, LogisticModel, LogregConfig};
use crate::protocols::predictions::{Predictions, predicted_class};
use crate::stats::{BootstrapConfig, bootstrap_mean};
use crate::{Error, EvalResult, Matrix, Result, Split, TrainTest};

/// The row of the clean test images.
pub const CLEAN: &str = "clean";
/// The row of the mean over corruptions.
pub const MEAN: &str = "mean";

/// What tells the classes apart.
#[derive(Debug, Clone, PartialEq)]
pub enum ClassifierConfig {
    /// Weighted k nearest neighbours by cosine; `ks` holds one k.
    Knn(KnnConfig),
    /// Logistic regression; C is chosen once, on a split of train.
    Logreg(LogregConfig),
}

/// A classifier that has seen the training rows.
pub struct Classifier<'a> {
    kind: Fitted,
    train_labels: &'a [u32],
    n_classes: usize,
}

enum Fitted {
    /// Training features of length 1.
    Knn { train: Matrix, config: KnnConfig },
    Logreg {
        model: LogisticModel,
        /// The chosen C.
        c: f64,
    },
}

impl<'a> Classifier<'a> {
    /// Fits on clean training rows, and says of each clean test row whether it is taken for another class.
    ///
    /// # Errors
    /// As [`knn::evaluate`] and [`logistic::evaluate`]; another number of ks than one.
    pub fn fit(data: &TrainTest<'a>, config: &ClassifierConfig) -> Result<(Self, Vec<bool>)> {
        let (train_labels, n_classes) = (data.train.labels, data.n_classes);
        match config {
            ClassifierConfig::Knn(config) => {
                if config.ks.len() != 1 || config.n_per_class.is_some() {
                    return Err(Error::config(
                        "ks",
                        format!("expected one k and the whole training set, found {:?}", config.ks),
                    ));
                }
                // Checked before anything is normalised, and normalised once for all conditions.
                data.train.features.check_finite("train features")?;
                let classifier = Self {
                    kind: Fitted::Knn {
                        train: l2_normalise(data.train.features)?,
                        config: KnnConfig {
                            normalise: false,
                            bootstrap_resamples: 0,
                            ..config.clone()
                        },
                    },
                    train_labels,
                    n_classes,
                };
                let wrong = classifier.wrong(data.test)?;
                Ok((classifier, wrong))
            }
            ClassifierConfig::Logreg(config) => {
                let config = LogregConfig {
                    bootstrap_resamples: 0,
                    ..config.clone()
                };
                let result = logistic::evaluate(data, &config)?;
                let classifier = Self {
                    kind: Fitted::Logreg {
                        c: result.rows[0].c,
                        model: result.model,
                    },
                    train_labels,
                    n_classes,
                };
                Ok((classifier, wrong_of(&result.predictions, data.test.labels)))
            }
        }
    }

    /// The C that logistic regression chose.
    pub fn c(&self) -> Option<f64> {
        match &self.kind {
            Fitted::Knn { .. } => None,
            Fitted::Logreg { c, .. } => Some(*c),
        }
    }

    /// Whether each test row is taken for another class.
    ///
    /// # Errors
    /// Another width than the training rows', NaN or infinity, labels that do not fit.
    pub fn wrong(&self, test: Split<'_>) -> Result<Vec<bool>> {
        let predictions = match &self.kind {
            Fitted::Knn { train, config } => {
                let features = l2_normalise(test.features)?;
                let data = TrainTest {
                    train: Split::new(train.view(), self.train_labels),
                    test: Split::new(features.view(), test.labels),
                    n_classes: self.n_classes,
                };
                let mut result = knn::evaluate(&data, config)?;
                result.predictions.swap_remove(0)
            }
            Fitted::Logreg { model, .. } => Predictions {
                k: None,
                classes: model
                    .logits(test.features)?
                    .chunks_exact(self.n_classes)
                    .map(predicted_class)
                    .collect(),
            },
        };
        Ok(wrong_of(&predictions, test.labels))
    }
}

fn wrong_of(predictions: &Predictions, labels: &[u32]) -> Vec<bool> {
    predictions.right(labels).iter().map(|right| !right).collect()
}

/// One corruption: which test rows were taken for another class, at each severity.
#[derive(Debug, Clone, PartialEq)]
pub struct Corrupted {
    /// Its name.
    pub name: String,
    /// `[severity][test row]`, in the order of the severities.
    pub wrong: Vec<Vec<bool>>,
}

/// Errors of another model on the same corrupted images.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// Error on the clean images.
    pub clean: f64,
    /// `[corruption][severity]`, in the order of the result's.
    pub errors: Vec<Vec<f64>>,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct RobustnessRow {
    /// Name of the corruption, [`CLEAN`] or [`MEAN`].
    pub corruption: String,
    /// Error at each severity, 0 to 1; none for the clean images.
    pub by_severity: Vec<Option<f64>>,
    /// Mean of those, or the clean error.
    pub error: f64,
    /// Lower end of the 95 % bootstrap interval of `error` over test images; NaN without resamples.
    pub error_low: f64,
    /// Upper end.
    pub error_high: f64,
    /// Corruption error against the baseline, 1 for as many errors as it has; none without one, or where it has none.
    pub ce: Option<f64>,
    /// The same of what corruption adds to the clean error; none also where it adds nothing to the baseline's.
    pub relative_ce: Option<f64>,
}

/// What the protocol gives.
#[derive(Debug, Clone, PartialEq)]
pub struct RobustnessResult {
    /// Severities, one column each.
    pub severities: Vec<u8>,
    /// [`CLEAN`], one a corruption, [`MEAN`].
    pub rows: Vec<RobustnessRow>,
}

impl RobustnessResult {
    /// Puts together what was wrong clean and corrupted; every list has one entry a test row.
    ///
    /// # Errors
    /// No corruption or severity, no test row, or lists of different lengths.
    pub fn new(
        severities: &[u8],
        clean: &[bool],
        corrupted: &[Corrupted],
        baseline: Option<&Baseline>,
        bootstrap: &BootstrapConfig,
    ) -> Result<Self> {
        check(severities, clean, corrupted)?;
        let mut rows = vec![summarised(CLEAN, &[clean], severities.len(), bootstrap)];
        rows[0].by_severity.fill(None);
        for (place, one) in corrupted.iter().enumerate() {
            let wrong: Vec<&[bool]> = one.wrong.iter().map(Vec::as_slice).collect();
            let mut row = summarised(&one.name, &wrong, severities.len(), bootstrap);
            if let Some(baseline) = baseline {
                let theirs = mean(&baseline.errors[place]);
                row.ce = ratio(row.error, theirs);
                row.relative_ce = ratio(row.error - rows[0].error, theirs - baseline.clean);
            }
            rows.push(row);
        }
        let all: Vec<&[bool]> = corrupted
            .iter()
            .flat_map(|one| &one.wrong)
            .map(Vec::as_slice)
            .collect();
        let mut last = summarised(MEAN, &all, severities.len(), bootstrap);
        let of_corruptions = |value: &dyn Fn(&RobustnessRow) -> Option<f64>| -> Option<f64> {
            let values = rows[1..].iter().map(value).collect::<Option<Vec<f64>>>()?;
            Some(mean(&values))
        };
        for place in 0..severities.len() {
            last.by_severity[place] = of_corruptions(&|row| row.by_severity[place]);
        }
        last.ce = of_corruptions(&|row| row.ce);
        last.relative_ce = of_corruptions(&|row| row.relative_ce);
        rows.push(last);
        Ok(Self {
            severities: severities.to_vec(),
            rows,
        })
    }

    /// The result as a table: `corruption`, `severity_1` and so on, `error`, `error_low`, `error_high`, `ce`, `relative_ce`
    /// (the last two empty without a baseline).
    ///
    /// # Errors
    /// Settings that JSON cannot hold.
    pub fn to_eval_result(
        &self,
        settings: impl Serialize,
        n_train: usize,
        n_test: usize,
    ) -> Result<EvalResult> {
        let column = |name: &str, value: &dyn Fn(&RobustnessRow) -> Option<f64>| {
            Column::new(name.into(), self.rows.iter().map(value).collect::<Vec<_>>())
        };
        let names: Vec<&str> = self.rows.iter().map(|row| row.corruption.as_str()).collect();
        let mut columns = vec![Column::new("corruption".into(), names)];
        for (place, severity) in self.severities.iter().enumerate() {
            columns.push(column(&severity_column(*severity), &|row| row.by_severity[place]));
        }
        columns.push(column("error", &|row| Some(row.error)));
        columns.push(column("error_low", &|row| Some(row.error_low)));
        columns.push(column("error_high", &|row| Some(row.error_high)));
        columns.push(column("ce", &|row| row.ce));
        columns.push(column("relative_ce", &|row| row.relative_ce));
        let table = DataFrame::new(self.rows.len(), columns)?;
        EvalResult::new("robustness", settings, n_train, n_test, table)
    }
}

/// The column with the errors at one severity.
pub fn severity_column(severity: u8) -> String {
    format!("severity_{severity}")
}

fn check(severities: &[u8], clean: &[bool], corrupted: &[Corrupted]) -> Result<()> {
    if severities.is_empty() || corrupted.is_empty() {
        return Err(Error::config(
            "corruptions and severities",
            "expected at least one of each, found none",
        ));
    }
    if clean.is_empty() {
        return Err(Error::data(
            "test features",
            "expected at least one row, found none",
        ));
    }
    for one in corrupted {
        let fits =
            one.wrong.len() == severities.len() && one.wrong.iter().all(|wrong| wrong.len() == clean.len());
        if !fits {
            return Err(Error::data(
                format!("test rows under {}", one.name),
                format!(
                    "expected {} at each of {} severities",
                    clean.len(),
                    severities.len()
                ),
            ));
        }
    }
    Ok(())
}

/// Errors of `wrong`, `[condition][test row]`, and of their mean over conditions with its interval: images are drawn
/// again, each with all its conditions.
fn summarised(
    name: &str,
    wrong: &[&[bool]],
    n_severities: usize,
    bootstrap: &BootstrapConfig,
) -> RobustnessRow {
    let share = |wrong: &&[bool]| wrong.iter().filter(|wrong| **wrong).count() as f64 / wrong.len() as f64;
    let errors: Vec<f64> = wrong.iter().map(share).collect();
    let of_image = |row: usize| wrong.iter().filter(|wrong| wrong[row]).count() as f32 / wrong.len() as f32;
    let of_images: Vec<f32> = (0..wrong[0].len()).map(of_image).collect();
    let interval = bootstrap_mean(&of_images, bootstrap);
    RobustnessRow {
        corruption: name.to_owned(),
        by_severity: (0..n_severities)
            .map(|place| errors.get(place).copied())
            .collect(),
        error: mean(&errors),
        error_low: interval.low,
        error_high: interval.high,
        ce: None,
        relative_ce: None,
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// `ours / theirs` where theirs is above 0.
fn ratio(ours: f64, theirs: f64) -> Option<f64> {
    (theirs > 0.0).then(|| ours / theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bootstrap(resamples: usize) -> BootstrapConfig {
        BootstrapConfig {
            resamples,
            ..BootstrapConfig::default()
        }
    }

    /// Ten rows of which the first `n` are wrong.
    fn first(n: usize) -> Vec<bool> {
        (0..10).map(|row| row < n).collect()
    }

    fn two_corruptions() -> Vec<Corrupted> {
        let of = |name: &str, counts: [usize; 2]| Corrupted {
            name: name.to_owned(),
            wrong: counts.map(first).to_vec(),
        };
        vec![of("fog", [2, 4]), of("snow", [5, 9])]
    }

    #[test]
    fn corruption_errors_are_ratios_of_sums() {
        let baseline = Baseline {
            clean: 0.2,
            errors: vec![vec![0.4, 0.8], vec![0.5, 0.9]],
        };
        let result = RobustnessResult::new(
            &[1, 3],
            &first(1),
            &two_corruptions(),
            Some(&baseline),
            &bootstrap(200),
        )
        .unwrap();
        let names: Vec<&str> = result.rows.iter().map(|row| row.corruption.as_str()).collect();
        assert_eq!(names, ["clean", "fog", "snow", "mean"]);
        let close =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        close(result.rows[0].error, 0.1);
        assert_eq!(result.rows[0].by_severity, [None, None]);
        close(result.rows[1].error, 0.3);
        close(result.rows[1].ce.unwrap(), 0.6 / 1.2);
        close(result.rows[1].relative_ce.unwrap(), (0.6 - 0.2) / (1.2 - 0.4));
        close(result.rows[2].ce.unwrap(), 1.0);
        close(result.rows[3].error, 0.5);
        close(result.rows[3].by_severity[1].unwrap(), 0.65);
        close(result.rows[3].ce.unwrap(), 0.75);
        close(result.rows[3].relative_ce.unwrap(), (0.5 + 1.2) / 2.0);
        for row in &result.rows {
            assert!(
                row.error_low <= row.error && row.error <= row.error_high,
                "{row:?}"
            );
        }
        assert!(result.rows[3].error_low < result.rows[3].error_high);
        let table = result.to_eval_result((), 5, 10).unwrap().table;
        let columns: Vec<&str> = table
            .columns()
            .iter()
            .map(|column| column.name().as_str())
            .collect();
        let expected = "corruption severity_1 severity_3 error error_low error_high ce relative_ce";
        assert_eq!(columns.join(" "), expected);
    }

    #[test]
    fn a_baseline_without_errors_leaves_no_ratio() {
        let baseline = Baseline {
            clean: 0.5,
            errors: vec![vec![0.0, 0.0], vec![0.5, 0.5]],
        };
        let result = RobustnessResult::new(
            &[1, 2],
            &first(1),
            &two_corruptions(),
            Some(&baseline),
            &bootstrap(0),
        )
        .unwrap();
        assert_eq!((result.rows[1].ce, result.rows[1].relative_ce), (None, None));
        assert!(result.rows[2].ce.is_some() && result.rows[2].relative_ce.is_none());
        assert_eq!(result.rows[3].ce, None, "no mean over some of the corruptions");
        assert!(result.rows[3].error_low.is_nan());
        let plain =
            RobustnessResult::new(&[1, 2], &first(1), &two_corruptions(), None, &bootstrap(0)).unwrap();
        assert!(plain.rows.iter().all(|row| row.ce.is_none()));
        let error =
            RobustnessResult::new(&[1], &first(1), &two_corruptions(), None, &bootstrap(0)).unwrap_err();
        assert!(error.to_string().contains("fog"), "{error}");
    }

    #[test]
    fn both_classifiers_say_what_their_protocols_say() {
        let value = |i: usize| [if i.is_multiple_of(2) { 1.0 } else { -1.0 }, (i % 5) as f32 * 0.3];
        let train = Matrix::new((0..40).flat_map(value).collect(), 40, 2).unwrap();
        let train_labels: Vec<u32> = (0..40).map(|i| i % 2).collect();
        let test = Matrix::new((0..10).flat_map(value).collect(), 10, 2).unwrap();
        // The first three are mislabelled.
        let labels: Vec<u32> = (0..10u32)
            .map(|i| if i < 3 { 1 - i % 2 } else { i % 2 })
            .collect();
        let knn = KnnConfig {
            ks: vec![5],
            ..KnnConfig::default()
        };
        let logreg = LogregConfig {
            c: logistic::CSelection::Grid(vec![0.1, 1.0]),
            ..LogregConfig::default()
        };
        let data = TrainTest::new(
            Split::new(train.view(), &train_labels),
            Split::new(test.view(), &labels),
            2,
        );
        for config in [ClassifierConfig::Knn(knn), ClassifierConfig::Logreg(logreg)] {
            let (classifier, wrong) = Classifier::fit(&data, &config).unwrap();
            assert_eq!(wrong, first(3));
            assert_eq!(classifier.wrong(data.test).unwrap(), wrong);
            let narrow = Matrix::new(vec![0.5; 10], 10, 1).unwrap();
            assert!(
                classifier
                    .wrong(Split::new(narrow.view(), &labels))
                    .unwrap_err()
                    .to_string()
                    .contains("width 2")
            );
        }
        let several = ClassifierConfig::Knn(KnnConfig::default());
        assert!(Classifier::fit(&data, &several).is_err());
    }
}
