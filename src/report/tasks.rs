//! Which numbers of a protocol's table stand for it among many: the rows and columns a report shows, what they are called,
//! and whether more is better.

use serde_json::{Map, Value};

use crate::results::StoredResult;
use crate::{Error, Result};

/// One number of a result, as a report shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Number {
    /// Place of its protocol in a report.
    pub order: usize,
    /// Place among the numbers of its protocol.
    pub place: usize,
    /// The protocol and what of it varies: `k-NN, k = 20`.
    pub task: String,
    /// What is measured: `top-1`, `mAP`.
    pub metric: String,
    /// The value; fractions from 0 to 1.
    pub value: f64,
    /// Ends of the 95 % interval, where there is one.
    pub interval: Option<(f64, f64)>,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Whether it is the share of test rows predicted rightly, so that kept predictions can be compared.
    pub accuracy: bool,
    /// Which of several classifiers of one result it belongs to.
    pub k: Option<u64>,
}

/// Which rows of a table are shown.
enum Rows {
    /// The first: the one the protocol chose.
    First,
    /// The last: the one with most train rows.
    Last,
    /// The one of a number of neighbours or clusters that all results have, this one where they do.
    ByK(Option<u64>),
    /// Those whose `metric` is among these; all where none is.
    Metrics(&'static [&'static str]),
    /// The one that has this text in this column, or the last.
    Named(&'static str, &'static str),
}

/// A column that is shown.
struct Measure {
    column: &'static str,
    title: &'static str,
    low: &'static str,
    high: &'static str,
    higher_is_better: bool,
    accuracy: bool,
}

const TOP1: Measure = Measure {
    column: "top1",
    title: "top-1",
    low: "top1_low",
    high: "top1_high",
    higher_is_better: true,
    accuracy: true,
};

/// A fraction for which more is better.
const fn score(column: &'static str, title: &'static str, low: &'static str, high: &'static str) -> Measure {
    Measure {
        column,
        title,
        low,
        high,
        higher_is_better: true,
        accuracy: false,
    }
}

const CLUSTERS: [Measure; 2] = [
    score("nmi", "NMI", "nmi_low", "nmi_high"),
    score("accuracy", "accuracy", "accuracy_low", "accuracy_high"),
];

/// An error, for which less is better.
const fn deviation(
    column: &'static str,
    title: &'static str,
    low: &'static str,
    high: &'static str,
) -> Measure {
    Measure {
        higher_is_better: false,
        ..score(column, title, low, high)
    }
}

struct Task {
    name: &'static str,
    title: &'static str,
    rows: Rows,
    measures: &'static [Measure],
    /// Settings that must be equal for two models to be comparable.
    settings: &'static [&'static str],
}

static TASKS: [Task; 12] = [
    Task {
        name: "knn",
        title: "k-NN",
        rows: Rows::ByK(Some(20)),
        measures: &[TOP1],
        settings: &["temperature", "n_per_class", "n_tries", "normalise"],
    },
    Task {
        name: "linear-probe",
        title: "linear probe",
        rows: Rows::First,
        measures: &[TOP1],
        settings: &["learning_rates", "epochs", "batch_size", "val_fraction"],
    },
    Task {
        name: "logreg",
        title: "logistic regression",
        rows: Rows::First,
        measures: &[TOP1],
        settings: &["c", "max_iterations", "tolerance", "val_fraction"],
    },
    Task {
        name: "svm",
        title: "SVM",
        rows: Rows::Last,
        measures: &[
            score("map", "mAP", "map_low", "map_high"),
            score("top1", "top-1", "top1_low", "top1_high"),
        ],
        settings: &["n_tries", "costs", "positive_weight", "normalise"],
    },
    Task {
        name: "zero-shot",
        title: "zero-shot",
        rows: Rows::First,
        measures: &[TOP1],
        settings: &["n_classes", "n_texts"],
    },
    Task {
        name: "retrieval",
        title: "retrieval",
        rows: Rows::Metrics(&[
            "mAP",
            "R@1",
            "easy mAP",
            "medium mAP",
            "hard mAP",
            "muAP",
            "R@P90",
            "image to text R@1",
            "text to image R@1",
        ]),
        measures: &[score("value", "", "low", "high")],
        settings: &[
            "normalise",
            "pairing",
            "whiten",
            "components",
            "score_normalisation",
        ],
    },
    Task {
        name: "cluster",
        title: "k-means",
        rows: Rows::ByK(None),
        measures: &CLUSTERS,
        settings: &["normalise", "max_iterations"],
    },
    Task {
        name: "cluster-gmm",
        title: "mixture of Gaussians",
        rows: Rows::ByK(None),
        measures: &CLUSTERS,
        settings: &["normalise", "max_iterations", "components", "max_rows"],
    },
    Task {
        name: "cluster-dbscan",
        title: "DBSCAN",
        rows: Rows::First,
        measures: &CLUSTERS,
        settings: &["normalise", "components", "max_rows", "min_points"],
    },
    Task {
        name: "segment",
        title: "segmentation",
        rows: Rows::Named("class", "mean"),
        measures: &[score("iou", "mIoU", "iou_low", "iou_high")],
        settings: &["protocol", "head", "layers", "epochs", "iterations"],
    },
    Task {
        name: "depth",
        title: "depth",
        rows: Rows::First,
        measures: &[
            deviation("rmse", "RMSE", "rmse_low", "rmse_high"),
            deviation("abs_rel", "abs rel", "abs_rel_low", "abs_rel_high"),
            score("delta1", "delta < 1.25", "delta1_low", "delta1_high"),
        ],
        settings: &["protocol", "eval_crop", "head", "layers", "epochs", "iterations"],
    },
    Task {
        name: "robustness",
        title: "corrupted images",
        rows: Rows::Named("corruption", "mean"),
        measures: &[
            deviation("error", "mean error", "error_low", "error_high"),
            // Without a baseline there is none; the columns of an interval are not in the table.
            deviation("ce", "mCE", "ce_low", "ce_high"),
        ],
        settings: &["corruptions", "severities", "classifier", "seed"],
    },
];

/// The numbers of every result; `k` names the number of neighbours of the k-NN rows to show.
///
/// # Errors
/// A protocol that measures no model, a table without the columns of its protocol, or a k that a result does not have.
pub fn numbers(results: &[StoredResult], k: Option<u64>) -> Result<Vec<Vec<Number>>> {
    results
        .iter()
        .map(
            |result| match TASKS.iter().position(|task| task.name == result.task) {
                Some(place) => {
                    let task = &TASKS[place];
                    task.numbers(result, place, task.k_of(result, results, k)?)
                }
                None => others(result),
            },
        )
        .collect()
}

/// Settings in which two results of one protocol differ and that bear on their numbers.
pub fn differing_settings(a: &StoredResult, b: &StoredResult) -> Vec<&'static str> {
    let task = TASKS.iter().find(|task| task.name == a.task);
    let settings = task.map_or(&[][..], |task| task.settings);
    let differs = |key: &&&str| a.settings.get(**key) != b.settings.get(**key);
    settings.iter().filter(differs).copied().collect()
}

impl Task {
    /// The k to show of `result`: the one asked for, the preferred one, or the least that all `results` of this protocol
    /// have. Few-shot results, whose k may be bounded by their rows, keep to themselves.
    fn k_of(
        &self,
        result: &StoredResult,
        results: &[StoredResult],
        requested: Option<u64>,
    ) -> Result<Option<u64>> {
        let Rows::ByK(preferred) = self.rows else {
            return Ok(None);
        };
        let requested = requested.filter(|_| preferred.is_some());
        let mut common = ks(result);
        if let Some(k) = requested
            && few_shot(result).is_none()
            && !common.contains(&k)
        {
            return Err(Error::input(
                result.file(),
                format!("expected k = {k} (--k), found {common:?}"),
            ));
        }
        for other in results {
            if other.task == self.name && few_shot(other) == few_shot(result) {
                let held = ks(other);
                common.retain(|k| held.contains(k));
            }
        }
        let wanted = |k: &u64| common.contains(k);
        let chosen = requested.filter(wanted).or(preferred.filter(wanted));
        Ok(chosen.or_else(|| common.iter().copied().min()))
    }

    fn numbers(&self, result: &StoredResult, order: usize, k: Option<u64>) -> Result<Vec<Number>> {
        let mut numbers = Vec::new();
        for (row_place, row) in self.rows(result, k).into_iter().enumerate() {
            for (place, measure) in self.measures.iter().enumerate() {
                // A column that a later protocol adds is not in older files, but the first always is.
                let Some(value) = number(row, measure.column) else {
                    continue;
                };
                numbers.push(Number {
                    // Few-shot results after those of the whole training set.
                    order: 2 * order + usize::from(few_shot_row(row).is_some()),
                    place: row_place + place,
                    task: self.title_of(row),
                    metric: match self.rows {
                        Rows::Metrics(_) => text(row, "metric"),
                        _ => measure.title.to_owned(),
                    },
                    value,
                    interval: number(row, measure.low).zip(number(row, measure.high)),
                    higher_is_better: measure.higher_is_better,
                    accuracy: measure.accuracy,
                    k: row.get("k").and_then(Value::as_u64),
                });
            }
        }
        if numbers.is_empty() {
            let expected: Vec<&str> = self.measures.iter().map(|measure| measure.column).collect();
            return Err(Error::input(
                result.file(),
                format!(
                    "field `rows`: expected a number in {} for task `{}`, found none",
                    expected.join(" or "),
                    self.name
                ),
            ));
        }
        Ok(numbers)
    }

    fn rows<'a>(&self, result: &'a StoredResult, k: Option<u64>) -> Vec<&'a Map<String, Value>> {
        let rows = &result.rows;
        match &self.rows {
            Rows::First => vec![&rows[0]],
            Rows::Last => vec![&rows[rows.len() - 1]],
            Rows::ByK(preferred) => {
                // Results that have no k in common show their own, each in a column of its own.
                let wanted = k.or(*preferred);
                let of_k = |row: &&Map<String, Value>| row.get("k").and_then(Value::as_u64) == wanted;
                vec![rows.iter().find(of_k).unwrap_or(&rows[0])]
            }
            Rows::Metrics(wanted) => {
                let chosen: Vec<_> = wanted
                    .iter()
                    .flat_map(|name| rows.iter().filter(move |row| text(row, "metric") == *name))
                    .collect();
                if chosen.is_empty() {
                    rows.iter().collect()
                } else {
                    chosen
                }
            }
            Rows::Named(column, name) => {
                let found = rows.iter().find(|row| text(row, column) == *name);
                vec![found.unwrap_or(&rows[rows.len() - 1])]
            }
        }
    }

    fn title_of(&self, row: &Map<String, Value>) -> String {
        let mut title = self.title.to_owned();
        if let (Rows::ByK(_), Some(k)) = (&self.rows, row.get("k").and_then(Value::as_u64)) {
            title += &format!(", k = {k}");
        }
        if let Some(n) = few_shot_row(row) {
            title += &format!(", {n} per class");
        }
        title
    }
}

/// A protocol this file does not know, whose table is `metric`, `value` and perhaps `low`, `high`.
fn others(result: &StoredResult) -> Result<Vec<Number>> {
    let named = |(place, row): (usize, &Map<String, Value>)| {
        let metric = row.get("metric").and_then(Value::as_str)?.to_owned();
        Some(Number {
            order: 2 * TASKS.len(),
            place,
            task: result.task.clone(),
            metric,
            value: number(row, "value")?,
            interval: number(row, "low").zip(number(row, "high")),
            higher_is_better: true,
            accuracy: false,
            k: None,
        })
    };
    let numbers: Vec<Number> = result.rows.iter().enumerate().filter_map(named).collect();
    if numbers.is_empty() {
        let known: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
        return Err(Error::input(
            result.file(),
            format!(
                "task `{}` has no place in a table of models; expected {}",
                result.task,
                known.join(", ")
            ),
        ));
    }
    Ok(numbers)
}

/// Training rows a class that a few-shot result drew.
fn few_shot(result: &StoredResult) -> Option<u64> {
    few_shot_row(&result.rows[0])
}

fn few_shot_row(row: &Map<String, Value>) -> Option<u64> {
    row.get("n_per_class").and_then(Value::as_u64)
}

/// The `k` of each row.
fn ks(result: &StoredResult) -> Vec<u64> {
    let rows = result.rows.iter();
    rows.filter_map(|row| row.get("k").and_then(Value::as_u64))
        .collect()
}

fn number(row: &Map<String, Value>, column: &str) -> Option<f64> {
    row.get(column)
        .and_then(Value::as_f64)
        .filter(|value| value.is_finite())
}

fn text(row: &Map<String, Value>, column: &str) -> String {
    row.get(column)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}
