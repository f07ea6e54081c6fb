//! Zero-shot classification as CLIP does it (Radford et al. 2021, section 3.1): a class is a direction that texts give, an image is of
//! the class whose direction it is nearest to by cosine. Nothing is learned, so there are no train rows.

use polars::prelude::{Column, DataFrame, df};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::linalg::normalise::{EPS, l2_normalise};
use crate::linalg::score_rows;
use crate::metrics::classification::{accuracy, hits_at, mean_per_class, rank_of};
use crate::protocols::checks;
use crate::protocols::predictions::{Predictions, predicted_class};
use crate::stats::{BootstrapConfig, Interval, bootstrap_mean};
use crate::{Error, EvalResult, Matrix, MatrixView, Result};

/// Settings of the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZeroShotConfig {
    /// What cosines are multiplied with before the softmax, above 0: the model's own factor, 100 in most of CLIP's. It has no say in
    /// accuracies; with it the result has the cross-entropy. None by default.
    pub logit_scale: Option<f64>,
    /// Seed of the intervals; 0 by default.
    pub seed: u64,
    /// Resamples of the 95 % bootstrap intervals over test rows, 1,000 by default; 0 leaves them out.
    pub bootstrap_resamples: usize,
    /// Whether rows may have labels that no text has: they count as wrong, and their classes in `mean_per_class`. False by default.
    pub allow_unknown_labels: bool,
}

impl Default for ZeroShotConfig {
    fn default() -> Self {
        Self {
            logit_scale: None,
            seed: 0,
            bootstrap_resamples: 1_000,
            allow_unknown_labels: false,
        }
    }
}

impl ZeroShotConfig {
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] for a logit scale that is no number above 0.
    pub fn validate(&self) -> Result<()> {
        match self.logit_scale {
            Some(scale) if !(scale > 0.0 && scale.is_finite()) => {
                let reason = format!("expected a number above 0, found {scale}");
                Err(Error::config("logit_scale", reason))
            }
            _ => Ok(()),
        }
    }
}

/// The direction of each of `n_classes` classes, `[K, d]`: its texts' vectors are normalised, averaged, and the mean normalised
/// again. `classes` are those of the texts.
///
/// # Errors
/// [`Error::Data`] for texts and classes that do not go together, NaN or infinity, a class without a text, and texts that have no
/// direction because they cancel out or are 0.
pub fn class_directions(texts: MatrixView<'_>, classes: &[u32], n_classes: usize) -> Result<Matrix> {
    const WHAT: &str = "text vectors";
    checks::rows_with_labels(WHAT, texts, classes)?;
    checks::labels("classes of texts", texts.rows(), classes, n_classes)?;
    let dim = texts.dim();
    let unit = l2_normalise(texts)?;
    let mut sums = vec![0f64; n_classes * dim];
    let mut counts = vec![0usize; n_classes];
    for (row, &class) in classes.iter().enumerate() {
        let class = class as usize;
        counts[class] += 1;
        let sum = &mut sums[class * dim..(class + 1) * dim];
        for (sum, &value) in sum.iter_mut().zip(unit.view().row(row)) {
            *sum += f64::from(value);
        }
    }
    let mut directions = Vec::with_capacity(sums.len());
    for (class, (sum, &count)) in sums.chunks_exact(dim).zip(&counts).enumerate() {
        if count == 0 {
            return Err(Error::data(
                WHAT,
                format!("expected a text for class {class}, found none"),
            ));
        }
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        // Of unit vectors; what is shorter is rounding.
        if length / (count as f64) < f64::from(f32::EPSILON) {
            let reason =
                format!("expected a direction for class {class}, found {count} texts whose mean is 0");
            return Err(Error::data(WHAT, reason));
        }
        directions.extend(sum.iter().map(|value| (value / length.max(EPS)) as f32));
    }
    Matrix::new(directions, n_classes, dim)
}

/// What the protocol gives.
#[derive(Debug, Clone, PartialEq)]
pub struct ZeroShotResult {
    /// The settings it ran with.
    pub config: ZeroShotConfig,
    /// Share of rows whose class is the nearest, with its interval.
    pub top1: (f64, Interval),
    /// Share of rows whose class is among the five nearest, with its interval; all rows of a known class where there are no more.
    pub top5: (f64, Interval),
    /// Mean over the classes that occur of their own top-1 accuracy.
    pub mean_per_class: f64,
    /// Mean over rows of a known class of the negative logarithm of its probability, where there is a logit scale.
    pub cross_entropy: Option<f64>,
    /// The nearest class of each row.
    pub predictions: Predictions,
    /// Classes.
    pub n_classes: usize,
    /// Classes that no row has.
    pub n_classes_without_rows: usize,
    /// Rows.
    pub n_test: usize,
}

/// What is kept of a row.
struct Answer {
    rank: usize,
    predicted: Option<u32>,
    /// None without a scale, and of a class that no text has.
    loss: Option<f64>,
}

/// Classifies `features` `[n, d]` with `labels` by `directions` `[K, d]` of [`class_directions`]. A label of K or more is a class
/// that no text has.
///
/// # Errors
/// Settings out of range, features, labels and directions that do not go together, NaN or infinity.
pub fn evaluate(
    features: MatrixView<'_>,
    labels: &[u32],
    directions: MatrixView<'_>,
    config: &ZeroShotConfig,
) -> Result<ZeroShotResult> {
    config.validate()?;
    checks::rows_with_labels("features", features, labels)?;
    checks::rows_with_values("text vectors", directions)?;
    checks::same_width("text vectors", directions, "the features", features)?;
    let n_classes = directions.rows();
    let known: Vec<u32> = (0..n_classes as u32).collect();
    checks::labels_of_test(features.rows(), labels, &known, config.allow_unknown_labels)?;
    let unit = l2_normalise(features)?;
    let answers = score_rows(unit.view(), directions, |row, cosines| {
        let label = labels[row];
        Ok(Answer {
            rank: rank_of(cosines, label),
            predicted: predicted_class(cosines),
            loss: config
                .logit_scale
                .filter(|_| (label as usize) < n_classes)
                .map(|scale| cross_entropy(cosines, label, scale)),
        })
    })?;
    let ranks: Vec<usize> = answers.iter().map(|answer| answer.rank).collect();
    let bootstrap = BootstrapConfig {
        resamples: config.bootstrap_resamples,
        seed: config.seed,
        ..BootstrapConfig::default()
    };
    let within = |k: usize| {
        let hits = hits_at(&ranks, k);
        (accuracy(&hits), bootstrap_mean(&hits, &bootstrap))
    };
    let losses: Vec<f64> = answers.iter().filter_map(|answer| answer.loss).collect();
    let mut seen = vec![false; n_classes];
    for &label in labels {
        if let Some(seen) = seen.get_mut(label as usize) {
            *seen = true;
        }
    }
    Ok(ZeroShotResult {
        config: config.clone(),
        top1: within(1),
        top5: within(5),
        mean_per_class: mean_per_class(&hits_at(&ranks, 1), labels),
        cross_entropy: (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64),
        predictions: Predictions {
            k: None,
            classes: answers.iter().map(|answer| answer.predicted).collect(),
        },
        n_classes,
        n_classes_without_rows: seen.iter().filter(|seen| !**seen).count(),
        n_test: labels.len(),
    })
}

/// The negative logarithm of the softmax of `scale * cosines` at `label`.
fn cross_entropy(cosines: &[f32], label: u32, scale: f64) -> f64 {
    let logits = || cosines.iter().map(|&cosine| scale * f64::from(cosine));
    let greatest = logits().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits().map(|logit| (logit - greatest).exp()).sum();
    greatest + sum.ln() - scale * f64::from(cosines[label as usize])
}

impl ZeroShotResult {
    /// The result as a table: `classes`, `top1`, `top5`, `top1_low`, `top1_high`, `top5_low`, `top5_high`, `mean_per_class`, and
    /// `cross_entropy` where there is one. There are no train rows.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let ((top1, of_top1), (top5, of_top5)) = (self.top1, self.top5);
        let mut table: DataFrame = df!(
            "classes" => [self.n_classes as u64],
            "top1" => [top1],
            "top5" => [top5],
            "top1_low" => [of_top1.low],
            "top1_high" => [of_top1.high],
            "top5_low" => [of_top5.low],
            "top5_high" => [of_top5.high],
            "mean_per_class" => [self.mean_per_class],
        )?;
        if let Some(loss) = self.cross_entropy {
            table.with_column(Column::new("cross_entropy".into(), [loss]))?;
        }
        let mut settings = json!(self.config);
        settings["n_classes"] = json!(self.n_classes);
        settings["n_classes_without_rows"] = json!(self.n_classes_without_rows);
        EvalResult::new("zero-shot", settings, 0, self.n_test, table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: &[&[f32]]) -> Matrix {
        Matrix::new(rows.concat(), rows.len(), rows[0].len()).unwrap()
    }

    #[test]
    fn texts_are_normalised_before_and_after_they_are_averaged() {
        // Class 0: a long vector counts no more than a short one. (1, 0) and (0, 1) give the diagonal.
        let texts = matrix(&[&[10.0, 0.0], &[0.0, 0.1], &[-3.0, 0.0]]);
        let directions = class_directions(texts.view(), &[0, 0, 1], 2).unwrap();
        let half = 0.5f32.sqrt();
        for (found, expected) in directions.into_data().iter().zip([half, half, -1.0, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn rows_go_to_the_nearest_class() {
        let directions = matrix(&[&[1.0, 0.0], &[0.0, 1.0], &[-1.0, 0.0]]);
        let features = matrix(&[&[5.0, 1.0], &[0.1, 3.0], &[-1.0, 0.5], &[0.2, 0.1]]);
        let config = ZeroShotConfig {
            logit_scale: Some(2.0),
            ..ZeroShotConfig::default()
        };
        let result = evaluate(features.view(), &[0, 1, 1, 0], directions.view(), &config).unwrap();
        assert_eq!((result.top1.0, result.top5.0), (0.75, 1.0));
        assert_eq!(result.predictions.classes, [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(result.mean_per_class, 0.75, "all of class 0, half of class 1");
        assert_eq!(result.n_classes_without_rows, 1);
        assert!(result.top1.1.low < 0.75 && result.top1.1.high > 0.75);
        // By hand: cosines (c, s, -c) of each row's angle.
        let loss = |x: f64, y: f64, place: usize| {
            let length = x.hypot(y);
            let logits = [x, y, -x].map(|value| 2.0 * value / length);
            logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[place]
        };
        let expected = (loss(5.0, 1.0, 0) + loss(0.1, 3.0, 1) + loss(-1.0, 0.5, 1) + loss(0.2, 0.1, 0)) / 4.0;
        assert!((result.cross_entropy.unwrap() - expected).abs() < 1e-6);
        let table = result.to_eval_result().unwrap();
        assert_eq!(table.settings["n_classes"], 3);
        assert_eq!(table.table.column("cross_entropy").unwrap().len(), 1);
    }

    #[test]
    fn a_scale_has_no_say_in_accuracies() {
        let directions = matrix(&[&[1.0, 0.0], &[0.0, 1.0]]);
        let features = matrix(&[&[1.0, 0.9], &[0.9, 1.0], &[0.4, 0.5]]);
        let plain = evaluate(
            features.view(),
            &[0, 1, 0],
            directions.view(),
            &ZeroShotConfig::default(),
        );
        let plain = plain.unwrap();
        assert_eq!(plain.cross_entropy, None);
        let config = ZeroShotConfig {
            logit_scale: Some(100.0),
            ..ZeroShotConfig::default()
        };
        let scaled = evaluate(features.view(), &[0, 1, 0], directions.view(), &config).unwrap();
        assert_eq!((plain.top1, plain.predictions), (scaled.top1, scaled.predictions));
    }

    #[test]
    fn a_class_that_no_text_has_is_wrong_where_it_is_allowed() {
        let directions = matrix(&[&[1.0, 0.0], &[0.0, 1.0]]);
        let features = matrix(&[&[1.0, 0.0], &[0.0, 1.0]]);
        let refused = evaluate(
            features.view(),
            &[0, 2],
            directions.view(),
            &ZeroShotConfig::default(),
        );
        assert!(refused.unwrap_err().to_string().contains("found 1 others"));
        let config = ZeroShotConfig {
            allow_unknown_labels: true,
            logit_scale: Some(1.0),
            ..ZeroShotConfig::default()
        };
        let result = evaluate(features.view(), &[0, 2], directions.view(), &config).unwrap();
        assert_eq!((result.top1.0, result.top5.0), (0.5, 0.5));
        // Of the row whose class is known: 1 against 0.
        let expected = (1.0f64.exp() + 1.0).ln() - 1.0;
        assert!((result.cross_entropy.unwrap() - expected).abs() < 1e-6);
    }

    #[test]
    fn what_gives_no_direction_is_refused() {
        let error = |texts: &Matrix, classes: &[u32], n: usize| {
            class_directions(texts.view(), classes, n)
                .unwrap_err()
                .to_string()
        };
        let texts = matrix(&[&[1.0, 0.0], &[-1.0, 0.0], &[0.0, 1.0]]);
        assert!(error(&texts, &[0, 0, 1], 2).contains("class 0, found 2 texts whose mean is 0"));
        assert!(error(&texts, &[0, 2, 2], 3).contains("class 1, found none"));
        assert!(error(&texts, &[0, 1], 2).contains("expected 3 labels"));
        let none = matrix(&[&[f32::NAN, 0.0], &[1.0, 0.0]]);
        assert!(error(&none, &[0, 1], 2).contains("NaN"));
        let wide = matrix(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0]]);
        let found = evaluate(texts.view(), &[0, 0, 1], wide.view(), &ZeroShotConfig::default());
        assert!(found.unwrap_err().to_string().contains("expected width 2"));
        let config = ZeroShotConfig {
            logit_scale: Some(0.0),
            ..ZeroShotConfig::default()
        };
        assert!(config.validate().unwrap_err().to_string().contains("logit_scale"));
    }
}
