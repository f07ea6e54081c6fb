//! `eval robustness` from images to its result: the classifier sees clean training images once, the test images come clean
//! and under every corruption ([`images`]), and `macula_eval::protocols::robustness` counts. One condition's features are
//! held at a time, in memory. [`baseline`] reads an earlier result, [`picture`] draws one
//! image under everything.

mod baseline;
mod images;
mod picture;

use std::path::PathBuf;

use macula_eval::protocols::knn::KnnConfig;
use macula_eval::protocols::robustness::{Classifier, ClassifierConfig, Corrupted, RobustnessResult};
use macula_eval::stats::BootstrapConfig;
use macula_eval::table::EvalResult;
use macula_eval::{Split, TrainTest};
use serde_json::{Value, json};

use self::baseline::Earlier;
use self::images::TestImages;
use super::labels::{self, Classes, Side};
use super::{Labelled, all_labelled, encode, labelled};
use crate::data::corrupt::{Corruption, Severity};
use crate::data::{self, Preprocess, Source, SourceIdentity};
use crate::extract::model::{self, FeatureModel, ModelOptions, OpenModel};
use crate::extract::{ExtractOptions, extract_matrix, with_features};
use crate::identity::Fingerprint;
use crate::{Error, Result, files, rng};

/// What an evaluation of robustness is asked for.
#[derive(Debug, Clone)]
pub struct RobustnessRequest {
    /// The model: an ONNX file, a checkpoint, `pixels` or `hog`.
    pub model: String,
    /// Source of the training images, with labels.
    pub train_data: String,
    /// Source of the test images, with labels that train has.
    pub test_data: String,
    /// Whether the number of neighbours is a default, which gives way where train has fewer rows.
    pub k_by_default: bool,
    /// Whether test images may have labels that train lacks: they count as wrong under every corruption.
    pub allow_unknown_labels: bool,
    /// How to open the model; its first output is evaluated.
    pub options: ModelOptions,
    /// How to extract.
    pub extract: ExtractOptions,
    /// Corruptions, each once, at least one.
    pub corruptions: Vec<Corruption>,
    /// Severities, each once, at least one.
    pub severities: Vec<Severity>,
    /// Test images drawn at random; all where there are no more.
    pub max_test: Option<usize>,
    /// A result of this protocol, or its folder: another model on the same test images.
    pub baseline: Option<PathBuf>,
    /// Seed of the draw of test images, of the corruptions' random numbers and of the intervals.
    pub seed: u64,
    /// Resamples of the 95 % intervals; 0 for none.
    pub bootstrap_resamples: usize,
    /// PNG of one test image under every corruption and severity.
    pub pictures: Option<PathBuf>,
}

impl RobustnessRequest {
    fn names(&self) -> Vec<&'static str> {
        self.corruptions
            .iter()
            .map(|corruption| corruption.name())
            .collect()
    }

    fn levels(&self) -> Vec<u8> {
        self.severities.iter().map(|severity| severity.get()).collect()
    }
}

/// Measures the errors of `classifier` on the features of `request.model`, clean and corrupted.
///
/// # Errors
/// One line that names the option or file: sources without labels, a test label that train lacks, a baseline of other
/// corruptions, severities, test rows or classifier, and whatever opening and extracting have to say.
pub fn robustness(request: &RobustnessRequest, classifier: &ClassifierConfig) -> Result<EvalResult> {
    let train = data::open(&request.train_data)?;
    let test = data::open(&request.test_data)?;
    let rows = test_rows(request, test.len())?;
    let Classes {
        names,
        known,
        unknown,
        ..
    } = classes(request, train.as_ref(), test.as_ref(), &rows)?;
    let classifier = &fitting(classifier, request.k_by_default, train.len())?;
    let mut settings = settings(request, classifier, test.as_ref(), &rows)?;
    settings["unknown_labels"] = labels::describe_unknown(unknown.as_ref());
    let images_of_test = SourceIdentity::from_source(test.as_ref());
    let baseline = match &request.baseline {
        Some(path) => Some(Earlier::read(path, &settings, &images_of_test)?),
        None => None,
    };
    let OpenModel { model, preprocess } = model::open(&request.model, train.as_ref(), &request.options)?;
    preprocess.need_rgb(&request.model)?;
    let images = TestImages::new(test.as_ref(), &rows, &preprocess);
    if let Some(file) = &request.pictures {
        picture::draw(&images, request, file)?;
    }
    let mut run = Run::new(request, model)?;
    let clean_train = run.features(train.as_ref(), &preprocess, &request.train_data)?;
    let train_labels = encode(&names, &clean_train.labels)?;
    let clean = run.features(&images, images.preprocess(), &request.test_data)?;
    let labels = encode(&names, &clean.labels)?;
    if let Some(baseline) = &baseline {
        baseline.check_counts(train_labels.len(), labels.len())?;
    }
    let data = TrainTest {
        train: Split::new(clean_train.matrix.view(), &train_labels),
        test: Split::new(clean.matrix.view(), &labels),
        n_classes: known,
    };
    let (fitted, wrong) = Classifier::fit(&data, classifier)?;
    tracing::info!("clean: error {:.4}", error(&wrong));
    let corrupted = run.corrupted(&images, &clean.rows, &fitted, &labels)?;
    let bootstrap = BootstrapConfig {
        resamples: request.bootstrap_resamples,
        seed: rng::derived_seed(request.seed, "robustness"),
        ..BootstrapConfig::default()
    };
    let errors = baseline.as_ref().map(Earlier::errors);
    let result = RobustnessResult::new(&request.levels(), &wrong, &corrupted, errors, &bootstrap)?;
    settings["c"] = json!(fitted.c());
    settings["column"] = json!(run.column);
    settings["model"] = run.model.describe();
    settings["preprocess"] = json!(preprocess);
    settings["train_source"] = train.describe();
    for (role, images) in [
        ("train", SourceIdentity::from_source(train.as_ref())),
        ("test", images_of_test),
    ] {
        let made = Fingerprint::new(&settings["model"], &preprocess, &request.extract.decode, images)?;
        settings[format!("{role}_fingerprint")] = json!(made);
    }
    settings["baseline"] = json!(baseline.as_ref().map(Earlier::describe));
    Ok(result.to_eval_result(settings, train_labels.len(), labels.len())?)
}

/// The rows of the test source that are used, ascending.
fn test_rows(request: &RobustnessRequest, len: u64) -> Result<Vec<u64>> {
    let mut rows: Vec<u64> = (0..len).collect();
    let Some(max) = request.max_test else {
        return Ok(rows);
    };
    if max == 0 {
        return Err(Error::setting("max_test", "expected at least 1, found 0"));
    }
    if max < rows.len() {
        use rand::seq::SliceRandom as _;
        let mut rng = rng::stream(request.seed, "robustness/test-rows", 0);
        rows.partial_shuffle(&mut rng, max);
        rows.truncate(max);
        rows.sort_unstable();
    }
    Ok(rows)
}

/// The classes of train, once every row is known to have a label and the test labels to be among them or allowed. No image
/// is read.
fn classes(
    request: &RobustnessRequest,
    train: &dyn Source,
    test: &dyn Source,
    rows: &[u64],
) -> Result<Classes> {
    let labelled = |what: &str, source: &dyn Source, rows: &mut dyn Iterator<Item = u64>| {
        let records = rows.map(|row| source.record(row));
        let (labels, paths): (Vec<_>, Vec<_>) = records.map(|record| (record.label, record.path)).unzip();
        Ok::<_, Error>((all_labelled(what, labels, &paths, None)?, paths))
    };
    let (train_name, test_name) = (
        format!("train data {}", request.train_data),
        format!("test data {}", request.test_data),
    );
    let of_setting = |error: Error| match error {
        Error::Input { what, reason } if what == train_name => {
            Error::setting(format!("train_data {}", request.train_data), reason)
        }
        Error::Input { what, reason } if what == test_name => {
            Error::setting(format!("test_data {}", request.test_data), reason)
        }
        other => other,
    };
    let (train_labels, train_paths) =
        labelled(&train_name, train, &mut (0..train.len())).map_err(of_setting)?;
    let (test_labels, test_paths) =
        labelled(&test_name, test, &mut rows.iter().copied()).map_err(of_setting)?;
    labels::classes(
        Side {
            what: &train_name,
            labels: &train_labels,
            paths: &train_paths,
        },
        Side {
            what: &test_name,
            labels: &test_labels,
            paths: &test_paths,
        },
        request.allow_unknown_labels,
    )
    .map_err(of_setting)
}

/// The classifier with as many neighbours as train has, where it has fewer and nobody asked for a number; a number that was
/// asked for is refused before anything is extracted.
fn fitting(classifier: &ClassifierConfig, k_by_default: bool, n_train: u64) -> Result<ClassifierConfig> {
    match classifier {
        ClassifierConfig::Knn(config) if config.ks.iter().any(|&k| k as u64 > n_train) => {
            if !k_by_default {
                let reason = format!(
                    "expected at most the {n_train} training rows, found {:?}",
                    config.ks
                );
                return Err(Error::setting("k", reason));
            }
            tracing::warn!("k = {n_train}, as there are no more training rows");
            Ok(ClassifierConfig::Knn(KnnConfig {
                ks: vec![n_train as usize],
                ..config.clone()
            }))
        }
        _ => Ok(classifier.clone()),
    }
}

/// What is known beforehand; what a baseline must share is among it.
fn settings(
    request: &RobustnessRequest,
    classifier: &ClassifierConfig,
    test: &dyn Source,
    rows: &[u64],
) -> Result<Value> {
    let classifier = match classifier {
        ClassifierConfig::Knn(config) => json!({
            "kind": "knn",
            "k": config.ks,
            "temperature": config.temperature,
            "normalise": config.normalise,
        }),
        ClassifierConfig::Logreg(config) => json!({
            "kind": "logreg",
            "max_iterations": config.max_iterations,
            "tolerance": config.tolerance,
            "val_fraction": config.val_fraction,
        }),
    };
    Ok(json!({
        "corruptions": request.names(),
        "severities": request.levels(),
        "classifier": classifier,
        "max_test": request.max_test,
        "test_rows_sha256": rows_sha256(test, rows)?,
        "seed": request.seed,
        "bootstrap_resamples": request.bootstrap_resamples,
        "train": request.train_data,
        "test": request.test_data,
        "test_source": test.describe(),
        "tool_version": env!("CARGO_PKG_VERSION"),
    }))
}

/// A hash of which test rows are used: place, name and label of each, and the source's own hash where it has one.
fn rows_sha256(test: &dyn Source, rows: &[u64]) -> Result<String> {
    let mut text = test
        .describe()
        .get("sha256")
        .map(Value::to_string)
        .unwrap_or_default();
    for &row in rows {
        let record = test.record(row);
        text += &format!("\n{row}\t{}\t{}", record.path, record.label.unwrap_or_default());
    }
    let (sha256, _) = files::sha256_of(text.as_bytes(), |_| Ok(())).map_err(|e| Error::io("test rows", e))?;
    Ok(sha256)
}

/// The model at work.
struct Run<'a> {
    request: &'a RobustnessRequest,
    model: Box<dyn FeatureModel>,
    column: String,
}

impl<'a> Run<'a> {
    fn new(request: &'a RobustnessRequest, model: Box<dyn FeatureModel>) -> Result<Self> {
        let column = model.outputs().first().map(|output| output.name.clone());
        let none = || Error::setting("model", "expected a model with an output, found none");
        Ok(Self {
            request,
            column: column.ok_or_else(none)?,
            model,
        })
    }

    /// Features of a source in the model's first output, with labels.
    fn features(&mut self, source: &dyn Source, preprocess: &Preprocess, what: &str) -> Result<Labelled> {
        let model = self.model.as_mut();
        let features = extract_matrix(source, model, preprocess, &self.request.extract, 0)?;
        labelled(what, with_features(what, features)?, None)
    }

    /// What is wrong under every corruption, in the request's order; `rows` are those that could be read clean.
    fn corrupted(
        &mut self,
        images: &TestImages<'_>,
        rows: &[u64],
        classifier: &Classifier<'_>,
        labels: &[u32],
    ) -> Result<Vec<Corrupted>> {
        let request = self.request;
        let mut all = Vec::with_capacity(request.corruptions.len());
        for &corruption in &request.corruptions {
            let mut wrong = Vec::with_capacity(request.severities.len());
            for &severity in &request.severities {
                let corrupted = images.corrupted(corruption, severity, request.seed);
                let features = self.features(&corrupted, corrupted.preprocess(), &request.test_data)?;
                check_same_rows(corruption, rows, &features.rows)?;
                wrong.push(classifier.wrong(Split::new(features.matrix.view(), labels))?);
            }
            let errors: Vec<String> = wrong.iter().map(|wrong| format!("{:.4}", error(wrong))).collect();
            tracing::info!(
                "{corruption}: error {} ({} of {})",
                errors.join(" "),
                all.len() + 1,
                request.corruptions.len()
            );
            all.push(Corrupted {
                name: corruption.name().to_owned(),
                wrong,
            });
        }
        Ok(all)
    }
}

/// A file that changes during the run would shift rows against labels.
fn check_same_rows(corruption: Corruption, expected: &[u64], found: &[u64]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::failed(
        format!("test images under {corruption}"),
        format!(
            "expected the {} rows that could be read clean, found {}",
            expected.len(),
            found.len()
        ),
    ))
}

fn error(wrong: &[bool]) -> f64 {
    wrong.iter().filter(|wrong| **wrong).count() as f64 / wrong.len().max(1) as f64
}
