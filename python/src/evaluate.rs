//! Protocols on arrays. Seeds are derived as the command derives them, so that the same rows give the same table.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use macula::rng::derived_seed;
use macula::{Error, Result};
use macula_eval::labels::UnknownLabels;
use macula_eval::protocols::cluster::{self as clusters, ClusterConfig};
use macula_eval::protocols::knn::{self as neighbours, KnnConfig};
use macula_eval::protocols::linear_probe::{self as probe, Length, LinearProbeConfig, ProbeFeatures};
use macula_eval::protocols::logistic::{self, CSelection, FewShotConfig, LogregConfig};
use macula_eval::protocols::predictions::Predictions;
use macula_eval::protocols::retrieval::{RetrievalConfig, by_labels};
use macula_eval::{EvalResult, LabelSet, MatrixView, Split, TrainTest};
use pyo3::prelude::*;

use crate::arrays::{Given, Values, matrix};
use crate::errors::{raised, returned};
use crate::interruptible;
use crate::pools;
use crate::settings::Settings;
use crate::table::{Frames, Table};

/// What an evaluation found.
#[pyclass(frozen, module = "macula._macula")]
pub struct Outcome {
    result: EvalResult,
    predictions: Vec<Predictions>,
    classes: Vec<String>,
}

/// Features `[n, d]` of one side with their labels.
type Side = (Given, Vec<String>);

#[pymethods]
impl Outcome {
    /// The result as the command's JSON.
    #[getter]
    fn json(&self) -> PyResult<String> {
        let json = self.result.to_json().map_err(Error::from);
        returned(json).map(|json| json.to_string())
    }

    /// The table as the command prints it.
    #[getter]
    fn text(&self) -> PyResult<String> {
        returned(self.result.to_text().map_err(Error::from))
    }

    /// The table for Arrow.
    #[getter]
    fn table(&self) -> Table {
        Table {
            frames: Frames::Whole(self.result.table.clone()),
        }
    }

    /// Names of the classes that predictions count through.
    #[getter]
    fn classes(&self) -> Vec<String> {
        self.classes.clone()
    }

    /// Predicted classes of the test rows, -1 where there is none, with the k that they are of.
    #[getter]
    fn predictions(&self) -> Vec<(Option<usize>, Values)> {
        let number = |class: &Option<u32>| class.map_or(-1, i64::from);
        let all = self.predictions.iter();
        all.map(|one| {
            let classes: Vec<i64> = one.classes.iter().map(number).collect();
            (one.k, classes.into())
        })
        .collect()
    }

    /// Keeps `result.json`, `table.parquet`, `table.csv` and `table.md`.
    fn save(&self, folder: PathBuf) -> PyResult<()> {
        returned(self.result.save(&folder).map_err(Error::from))
    }
}

/// One side, as protocols take it.
struct Rows<'a> {
    features: MatrixView<'a>,
    labels: &'a [String],
}

fn rows<'a>(what: &str, (features, labels): &'a Side) -> PyResult<Rows<'a>> {
    let view = returned(matrix(what, features))?;
    let n = view.rows();
    if labels.len() != n {
        let reason = format!(
            "expected one label a row, found {} labels of {n} rows",
            labels.len()
        );
        return Err(raised(&Error::setting(what, reason)));
    }
    Ok(Rows {
        features: view,
        labels,
    })
}

fn numbered(classes: &LabelSet, labels: &[String]) -> Result<Vec<u32>> {
    Ok(classes.encode(labels.iter().map(String::as_str))?)
}

/// Runs a classifier on train and test rows.
fn classified(
    py: Python<'_>,
    (train, test): (&Side, &Side),
    settings: &str,
    work: impl FnOnce(&TrainTest<'_>, Settings, Common) -> Result<(EvalResult, Vec<Predictions>)> + Send,
) -> PyResult<Outcome> {
    let (train, test) = (rows("train", train)?, rows("test", test)?);
    let mut settings = returned(Settings::parse(settings))?;
    let stop = AtomicBool::new(false);
    interruptible::run(py, None, &stop, || {
        let common = Common::take(&mut settings)?;
        let known = LabelSet::from_labels(train.labels.iter().map(String::as_str));
        if let [only] = known.names.as_slice() {
            let reason = format!("expected at least two classes, found only `{only}`");
            return Err(Error::input("train labels", reason));
        }
        let unknown = UnknownLabels::find(&known, test.labels.iter().map(String::as_str));
        if let Some(unknown) = unknown.as_ref().filter(|_| !common.allow_unknown_labels) {
            let reason = format!(
                "expected labels that train has, found {unknown}; allow_unknown_labels=True counts such rows as wrong"
            );
            return Err(Error::input("test labels", reason));
        }
        let more = unknown.iter().flat_map(|unknown| &unknown.labels);
        let n_classes = known.len();
        let classes = known.followed_by(more.map(|label| label.name.as_str()));
        let (train_labels, test_labels) = (
            numbered(&classes, train.labels)?,
            numbered(&classes, test.labels)?,
        );
        let data = TrainTest {
            train: Split::new(train.features, &train_labels),
            test: Split::new(test.features, &test_labels),
            n_classes,
        };
        let (result, predictions) =
            pools::shared(common.threads)?.install(|| work(&data, settings, common))?;
        Ok(Outcome {
            result,
            predictions,
            classes: classes.names,
        })
    })
}

/// Settings of every protocol.
#[derive(Clone, Copy)]
struct Common {
    seed: u64,
    bootstrap_resamples: usize,
    allow_unknown_labels: bool,
    threads: usize,
}

impl Common {
    fn take(settings: &mut Settings) -> Result<Self> {
        Ok(Self {
            seed: settings.or("seed", 0)?,
            bootstrap_resamples: settings.or("bootstrap_resamples", 1_000)?,
            allow_unknown_labels: settings.or("allow_unknown_labels", false)?,
            threads: settings.or("threads", 0)?,
        })
    }
}

/// Weighted k-nearest-neighbour classification.
#[pyfunction]
pub fn knn(py: Python<'_>, train: Side, test: Side, settings: &str) -> PyResult<Outcome> {
    classified(py, (&train, &test), settings, |data, mut settings, common| {
        let defaults = KnnConfig::default();
        let ks: Option<Vec<usize>> = settings.take("k")?;
        let config = KnnConfig {
            ks: ks.unwrap_or_else(|| KnnConfig::default_ks(data.train.labels.len())),
            temperature: settings.or("temperature", defaults.temperature)?,
            n_per_class: settings.take("n_per_class")?,
            n_tries: settings.or("n_tries", defaults.n_tries)?,
            seed: derived_seed(common.seed, "knn"),
            bootstrap_resamples: common.bootstrap_resamples,
            allow_unknown_labels: common.allow_unknown_labels,
            ..defaults
        };
        settings.end()?;
        config.validate()?;
        let result = neighbours::evaluate(data, &config)?;
        Ok((result.to_eval_result()?, result.predictions))
    })
}

/// A linear classifier by SGD, chosen among a grid.
#[pyfunction]
pub fn linear_probe(py: Python<'_>, train: Side, test: Side, settings: &str) -> PyResult<Outcome> {
    classified(py, (&train, &test), settings, |data, mut settings, common| {
        let defaults = LinearProbeConfig::default();
        let length = match (settings.take("epochs")?, settings.take("steps")?) {
            (Some(_), Some(_)) => {
                return Err(Error::setting(
                    "steps",
                    "expected either epochs or steps, found both",
                ));
            }
            (Some(epochs), None) => Length::Epochs(epochs),
            (None, Some(steps)) => Length::Steps(steps),
            (None, None) => defaults.length,
        };
        let config = LinearProbeConfig {
            learning_rates: settings.or("learning_rates", defaults.learning_rates.clone())?,
            length,
            batch_size: settings.or("batch_size", defaults.batch_size)?,
            val_fraction: settings.or("val_fraction", defaults.val_fraction)?,
            seed: derived_seed(common.seed, "linear-probe"),
            bootstrap_resamples: common.bootstrap_resamples,
            allow_unknown_labels: common.allow_unknown_labels,
            ..defaults
        };
        settings.end()?;
        config.validate()?;
        let owned = |view: MatrixView<'_>| -> Result<ProbeFeatures> {
            let all: Vec<usize> = (0..view.rows()).collect();
            Ok(ProbeFeatures {
                cls_blocks: vec![view.select(&all)],
                patch_mean: None,
            })
        };
        let (train, test) = (owned(data.train.features)?, owned(data.test.features)?);
        let data = TrainTest {
            train: Split::new(&train, data.train.labels),
            test: Split::new(&test, data.test.labels),
            n_classes: data.n_classes,
        };
        let result = probe::evaluate(&data, &config)?;
        Ok((result.to_eval_result()?, vec![result.predictions]))
    })
}

/// Logistic regression by L-BFGS, C chosen on held-out train rows; few-shot with `n_per_class`.
#[pyfunction]
pub fn logreg(py: Python<'_>, train: Side, test: Side, settings: &str) -> PyResult<Outcome> {
    classified(py, (&train, &test), settings, |data, mut settings, common| {
        let defaults = LogregConfig::default();
        let c: Vec<f64> = settings.or("c", Vec::new())?;
        let max_iterations = settings.or("max_iterations", defaults.max_iterations)?;
        let val_fraction = settings.or("val_fraction", defaults.val_fraction)?;
        let (few, n_tries): (Option<usize>, _) = (settings.take("n_per_class")?, settings.or("n_tries", 1)?);
        settings.end()?;
        let seed = derived_seed(common.seed, "logreg");
        if let Some(n_per_class) = few {
            let [c] = *(if c.is_empty() { &[1.0][..] } else { &c[..] }) else {
                let reason = format!("expected one value with n_per_class, found {}", c.len());
                return Err(Error::setting("c", reason));
            };
            let config = FewShotConfig {
                n_per_class,
                n_tries,
                c,
                max_iterations,
                seed,
                bootstrap_resamples: common.bootstrap_resamples,
                allow_unknown_labels: common.allow_unknown_labels,
            };
            let result = logistic::few_shot(data, &config)?;
            return Ok((result.to_eval_result()?, vec![result.predictions]));
        }
        let config = LogregConfig {
            c: match c.as_slice() {
                [] => defaults.c.clone(),
                [c] => CSelection::Fixed(*c),
                grid => CSelection::Grid(grid.to_vec()),
            },
            max_iterations,
            val_fraction,
            seed,
            bootstrap_resamples: common.bootstrap_resamples,
            allow_unknown_labels: common.allow_unknown_labels,
            ..defaults
        };
        config.validate()?;
        let result = logistic::evaluate(data, &config)?;
        Ok((result.to_eval_result()?, vec![result.predictions]))
    })
}

/// Ranking by cosine similarity, each row a query against all others, or queries against a database.
#[pyfunction]
#[pyo3(signature = (queries, database, settings))]
pub fn retrieval(py: Python<'_>, queries: Side, database: Option<Side>, settings: &str) -> PyResult<Outcome> {
    let asked = rows("queries", &queries)?;
    let base = match &database {
        Some(side) => Some(rows("database", side)?),
        None => None,
    };
    let mut settings = returned(Settings::parse(settings))?;
    let stop = AtomicBool::new(false);
    interruptible::run(py, None, &stop, || {
        let common = Common::take(&mut settings)?;
        let defaults = RetrievalConfig::default();
        let config = RetrievalConfig {
            ks: settings.or("k", defaults.ks)?,
            seed: derived_seed(common.seed, "retrieval"),
            bootstrap_resamples: common.bootstrap_resamples,
            normalise: defaults.normalise,
        };
        settings.end()?;
        config.validate()?;
        let based = base.iter().flat_map(|base| base.labels);
        let classes = LabelSet::from_labels(asked.labels.iter().chain(based).map(String::as_str));
        let labels = numbered(&classes, asked.labels)?;
        let result = pools::shared(common.threads)?.install(|| -> Result<_> {
            Ok(match &base {
                None => by_labels::leave_one_out(asked.features, &labels, &config)?,
                Some(base) => {
                    let of_base = numbered(&classes, base.labels)?;
                    by_labels::evaluate(asked.features, &labels, base.features, &of_base, &config)?
                }
            })
        })?;
        Ok(Outcome {
            result: result.to_eval_result()?,
            predictions: Vec::new(),
            classes: classes.names,
        })
    })
}

/// k-means, and how well its clusters match the labels.
#[pyfunction]
pub fn cluster(py: Python<'_>, features: Side, settings: &str) -> PyResult<Outcome> {
    let all = rows("features", &features)?;
    let mut settings = returned(Settings::parse(settings))?;
    let stop = AtomicBool::new(false);
    interruptible::run(py, None, &stop, || {
        let common = Common::take(&mut settings)?;
        let defaults = ClusterConfig::default();
        let config = ClusterConfig {
            ks: settings.or("k", Vec::new())?,
            iterations: settings.or("iterations", defaults.iterations)?,
            seed: derived_seed(common.seed, "cluster"),
            bootstrap_resamples: common.bootstrap_resamples,
            ..defaults
        };
        settings.end()?;
        config.validate()?;
        let classes = LabelSet::from_labels(all.labels.iter().map(String::as_str));
        let labels = numbered(&classes, all.labels)?;
        let result = pools::shared(common.threads)?
            .install(|| clusters::evaluate(all.features, &labels, classes.len(), &config))?;
        Ok(Outcome {
            result: result.to_eval_result()?,
            predictions: Vec::new(),
            classes: classes.names,
        })
    })
}
