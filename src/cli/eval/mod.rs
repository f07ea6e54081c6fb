//! `macula eval`, one subcommand a protocol: the classifiers, which take train and test, stand here; `retrieval`,
//! `cluster` and `compare` have a file each and share what `folders` and `kept` hold, `segment` and `depth` what `dense`
//! holds. `robustness` stands alone.

mod cluster;
mod compare;
mod dense;
mod depth;
mod folders;
mod kept;
mod retrieval;
mod robustness;
mod segment;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use macula_eval::protocols::knn::{self, KnnConfig};
use macula_eval::protocols::linear_probe::{self, Length, LinearProbeConfig};
use macula_eval::protocols::logistic::{self, CSelection, FewShotConfig, LogregConfig};
use macula_eval::protocols::predictions::Predictions;
use macula_eval::table::EvalResult;

use self::kept::Kept;
use super::args::{ColumnArgs, ReadArgs};
use super::output;
use crate::evaluate::labels::describe_unknown;
use crate::evaluate::{Folders, LabelledPair, ModelRequest, OpenFolders, near_duplicates, probe_features};
use crate::extract::model::OutputChoice;
use crate::lock::FolderLock;
use crate::{Error, Result, rng};

/// Arguments of `macula eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    protocol: Protocol,
}

#[derive(Debug, Subcommand)]
enum Protocol {
    /// Weighted k-nearest neighbours (DINOv2 eval/knn.py)
    Knn(KnnArgs),
    /// Linear heads by SGD over a grid of learning rates, blocks and pooling (DINOv2 eval/linear.py)
    LinearProbe(LinearProbeArgs),
    /// L2-regularised multinomial logistic regression (DINOv2 eval/log_regression.py)
    Logreg(LogregArgs),
    /// Retrieval: mAP, R@k, mP@k, GAP; revisited Oxford/Paris with --ground-truth; copy detection
    Retrieval(retrieval::RetrievalArgs),
    /// k-means on the features: NMI, adjusted Rand index, accuracy
    Cluster(cluster::ClusterArgs),
    /// Linear segmentation of patch tokens: mean intersection over union, by class and in the mean
    Segment(segment::SegmentArgs),
    /// Linear depth from patch tokens: RMSE, absolute relative error and delta1 beside the mean depth
    Depth(depth::DepthArgs),
    /// Errors under the 15 corruptions of ImageNet-C at five severities, and mCE against another model's
    Robustness(Box<robustness::RobustnessArgs>),
    /// Two results on the same test rows: paired bootstrap and McNemar's test
    Compare(compare::CompareArgs),
}

/// Where features come from, and where the result goes.
#[derive(Debug, Args)]
struct CommonArgs {
    /// Feature folder of the train rows
    #[arg(long, value_name = "FEATURES", requires = "test", conflicts_with_all = ["model", "train_data", "test_data"])]
    train: Option<PathBuf>,
    /// Feature folder of the test rows
    #[arg(long, value_name = "FEATURES", requires = "train")]
    test: Option<PathBuf>,
    /// Model to extract with first: ONNX file, checkpoint, pixels, or hog
    #[arg(long, value_name = "MODEL", requires_all = ["train_data", "test_data"])]
    model: Option<String>,
    /// Images of the train rows, with labels
    #[arg(long, value_name = "SRC", requires = "model")]
    train_data: Option<String>,
    /// Images of the test rows, with labels
    #[arg(long, value_name = "SRC", requires = "model")]
    test_data: Option<String>,
    /// Where --model keeps the features; by default OUT/features, or macula-features/NAME
    #[arg(long, value_name = "DIR", requires = "model")]
    features: Option<PathBuf>,
    /// Column to evaluate; by default cls, or else the first
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Folder for result.json, table.parquet, table.csv and table.md, predictions.parquet, per_class.csv and confusion.csv
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace what --out or --features hold
    #[arg(long)]
    force: bool,
    /// Print the result as JSON and nothing else
    #[arg(long)]
    json: bool,
    /// Seed of splits, subsets and the bootstrap
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Bootstrap resamples of the 95 % interval
    #[arg(long, default_value_t = 1000)]
    bootstrap_resamples: usize,
    /// Go on where test rows have labels that no train row has; they count as wrong
    #[arg(long)]
    allow_unknown_labels: bool,
    /// Print the accuracy of every class as well
    #[arg(long)]
    per_class: bool,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    read: ReadArgs,
}

impl CommonArgs {
    /// The features, and the lock of the folder of the result, to be held until that is written.
    fn open(&self, outputs: OutputChoice) -> Result<(OpenFolders, Option<FolderLock>)> {
        self.read.run.start_threads()?;
        let lock = output::take_result_folder(self.out.as_deref(), self.force)?;
        let folders = match (
            &self.train,
            &self.test,
            &self.model,
            &self.train_data,
            &self.test_data,
        ) {
            (Some(train), Some(test), ..) => {
                self.columns.need("--train-data and --test-data")?;
                Folders {
                    train: train.clone(),
                    test: test.clone(),
                }
            }
            (_, _, Some(model), Some(train_data), Some(test_data)) => {
                let [train_data, test_data] = self.columns.of_both(train_data, test_data)?;
                ModelRequest {
                    model: model.clone(),
                    train_data,
                    test_data,
                    keep: self.keep(model),
                    options: self.read.model_options(outputs),
                    extract: self.read.extract_options(None, self.force, false),
                }
                .run()?
            }
            _ => {
                return Err(Error::input(
                    "eval",
                    "expected --train F --test F, or --model M --train-data SRC --test-data SRC",
                ));
            }
        };
        Ok((folders.open()?, lock))
    }

    /// `--features`, or OUT/features, or `macula-features/NAME` with the name of the model.
    fn keep(&self, model: &str) -> PathBuf {
        match (&self.features, &self.out) {
            (Some(folder), _) => folder.clone(),
            (None, Some(out)) => out.join("features"),
            (None, None) => {
                let name = Path::new(model).file_stem().unwrap_or_default().to_string_lossy();
                PathBuf::from("macula-features").join(name.replace(':', "-"))
            }
        }
    }

    fn column(&self, folders: &OpenFolders) -> String {
        self.column.clone().unwrap_or_else(|| folders.default_column())
    }

    fn outputs(&self) -> OutputChoice {
        OutputChoice::named(self.column.as_slice())
    }

    /// Describes the folders in `result`, keeps it and what was said of each row, prints.
    fn finish(
        &self,
        mut result: EvalResult,
        folders: &OpenFolders,
        column: &str,
        kept: &Kept<'_>,
    ) -> Result<()> {
        folders.describe_into(&mut result, column);
        result.settings["unknown_labels"] = describe_unknown(kept.unknown);
        if let Some(out) = &self.out {
            kept.save(out)?;
        }
        if self.per_class {
            return kept.print_with_classes(&result, self.json, self.out.as_deref());
        }
        output::print_result(&result, self.json, self.out.as_deref())
    }
}

/// Arguments of `macula eval knn`.
#[derive(Debug, Args)]
struct KnnArgs {
    /// Numbers of neighbours; by default those of 10,20,100,200 that the train rows allow
    #[arg(long, value_delimiter = ',', value_name = "KS")]
    k: Vec<usize>,
    /// Temperature of the vote
    #[arg(long, default_value_t = 0.07)]
    temperature: f64,
    /// Train rows per class, drawn at random; by default all
    #[arg(long, value_name = "N")]
    n_per_class: Option<usize>,
    /// Draws of --n-per-class to average over
    #[arg(long, default_value_t = 1, requires = "n_per_class")]
    n_tries: usize,
    /// Say which test rows have a near-duplicate among the train rows: cosine of at least THRESHOLD
    #[arg(long, value_name = "THRESHOLD", num_args = 0..=1, require_equals = true, default_missing_value = "0.99")]
    leak_check: Option<f32>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `macula eval linear-probe`.
#[derive(Debug, Args)]
struct LinearProbeArgs {
    /// Learning rates, before scaling by batch/256
    #[arg(long, value_delimiter = ',', value_name = "LRS")]
    learning_rates: Vec<f64>,
    /// Passes over the train rows; by default 10, or as many as 12500 steps make where those are more
    #[arg(long, conflicts_with = "steps")]
    epochs: Option<usize>,
    /// Steps of SGD, instead of passes
    #[arg(long)]
    steps: Option<usize>,
    /// Rows per step
    #[arg(long)]
    batch_size: Option<usize>,
    /// Share of train on which the head is chosen
    #[arg(long)]
    val_fraction: Option<f64>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `macula eval logreg`.
#[derive(Debug, Args)]
struct LogregArgs {
    /// Inverse regularisation strength; several, or none for the paper's 45, are chosen among on a split of train
    #[arg(long, value_delimiter = ',', value_name = "C")]
    c: Vec<f64>,
    /// Most iterations of the solver
    #[arg(long)]
    max_iterations: Option<usize>,
    /// Share of train on which C is chosen
    #[arg(long)]
    val_fraction: Option<f64>,
    /// Train rows per class, drawn at random; by default all. C is 1 then, unless one is given
    #[arg(long, value_name = "N", conflicts_with = "val_fraction")]
    n_per_class: Option<usize>,
    /// Draws of --n-per-class to average over
    #[arg(long, default_value_t = 1, requires = "n_per_class")]
    n_tries: usize,
    #[command(flatten)]
    common: CommonArgs,
}

impl EvalArgs {
    /// Evaluates and prints the table.
    pub fn run(&self) -> Result<()> {
        match &self.protocol {
            Protocol::Knn(args) => args.run(),
            Protocol::LinearProbe(args) => args.run(),
            Protocol::Logreg(args) => args.run(),
            Protocol::Retrieval(args) => args.run(),
            Protocol::Cluster(args) => args.run(),
            Protocol::Segment(args) => args.run(),
            Protocol::Depth(args) => args.run(),
            Protocol::Robustness(args) => args.run(),
            Protocol::Compare(args) => args.run(),
        }
    }
}

impl KnnArgs {
    fn run(&self) -> Result<()> {
        let defaults = KnnConfig::default();
        let mut config = KnnConfig {
            ks: match self.k.is_empty() {
                true => defaults.ks.clone(),
                false => self.k.clone(),
            },
            temperature: self.temperature,
            n_per_class: self.n_per_class,
            n_tries: self.n_tries,
            seed: rng::derived_seed(self.common.seed, "knn"),
            bootstrap_resamples: self.common.bootstrap_resamples,
            allow_unknown_labels: self.common.allow_unknown_labels,
            ..defaults
        };
        config.validate()?;
        let (folders, _lock) = self.common.open(self.common.outputs())?;
        let column = self.common.column(&folders);
        let pair = folders.labelled(&column, self.common.allow_unknown_labels)?;
        if self.k.is_empty() {
            config.ks = fitting_ks(&config.ks, pair.train_labels.len());
        }
        let leaks = match self.leak_check {
            Some(threshold) => Some(near_duplicates(&pair, threshold)?),
            None => None,
        };
        if let Some(leaks) = &leaks {
            tracing::warn!("{}", leaks.notice(pair.test_rows.len()));
        }
        let result = knn::evaluate(
            pair.train.view(),
            &pair.train_labels,
            pair.test.view(),
            &pair.test_labels,
            pair.n_classes,
            &config,
        )?;
        let kept = Kept {
            predictions: &result.predictions,
            rows: &pair.test_rows,
            labels: &pair.test_labels,
            classes: &pair.classes,
            unknown: pair.unknown.as_ref(),
            leaks: leaks.as_ref(),
        };
        if result.predictions.is_empty() && (self.common.per_class || self.common.out.is_some()) {
            tracing::info!("predictions are kept for the whole training set, not for few-shot draws");
        }
        self.common
            .finish(result.to_eval_result()?, &folders, &column, &kept)
    }
}

/// Those of the default numbers of neighbours that fit, with a notice where some do not.
fn fitting_ks(defaults: &[usize], n_train: usize) -> Vec<usize> {
    let ks = KnnConfig::default_ks(n_train);
    if ks != defaults {
        let listed: Vec<String> = ks.iter().map(usize::to_string).collect();
        tracing::warn!("k = {}, as there are {n_train} train rows", listed.join(", "));
    }
    ks
}

impl LinearProbeArgs {
    fn run(&self) -> Result<()> {
        let defaults = LinearProbeConfig::default();
        let config = LinearProbeConfig {
            learning_rates: if self.learning_rates.is_empty() {
                defaults.learning_rates.clone()
            } else {
                self.learning_rates.clone()
            },
            length: match (self.epochs, self.steps) {
                (Some(epochs), _) => Length::Epochs(epochs),
                (None, Some(steps)) => Length::Steps(steps),
                (None, None) => defaults.length,
            },
            batch_size: self.batch_size.unwrap_or(defaults.batch_size),
            val_fraction: self.val_fraction.unwrap_or(defaults.val_fraction),
            seed: rng::derived_seed(self.common.seed, "linear-probe"),
            bootstrap_resamples: self.common.bootstrap_resamples,
            allow_unknown_labels: self.common.allow_unknown_labels,
            ..defaults
        };
        config.validate()?;
        let (folders, _lock) = self.common.open(match self.common.column {
            Some(_) => self.common.outputs(),
            None => OutputChoice::Probe,
        })?;
        let column = self.common.column(&folders);
        let (features, columns) = probe_features(&folders, &column, self.common.allow_unknown_labels)?;
        let result = linear_probe::evaluate(
            &features.train,
            &features.train_labels,
            &features.test,
            &features.test_labels,
            features.n_classes,
            &config,
        )?;
        let kept = Kept {
            predictions: std::slice::from_ref(&result.predictions),
            rows: &features.test_rows,
            labels: &features.test_labels,
            classes: &features.classes,
            unknown: features.unknown.as_ref(),
            leaks: None,
        };
        self.common
            .finish(result.to_eval_result()?, &folders, &columns, &kept)
    }
}

impl LogregArgs {
    /// Lets `evaluate` have the labelled rows, then keeps and prints what it gives.
    fn on_labelled(
        &self,
        evaluate: impl FnOnce(&LabelledPair) -> Result<(EvalResult, Predictions)>,
    ) -> Result<()> {
        let (folders, _lock) = self.common.open(self.common.outputs())?;
        let column = self.common.column(&folders);
        let pair = folders.labelled(&column, self.common.allow_unknown_labels)?;
        let (result, predictions) = evaluate(&pair)?;
        let kept = Kept {
            predictions: std::slice::from_ref(&predictions),
            rows: &pair.test_rows,
            labels: &pair.test_labels,
            classes: &pair.classes,
            unknown: pair.unknown.as_ref(),
            leaks: None,
        };
        self.common.finish(result, &folders, &column, &kept)
    }

    fn few_shot(&self, n_per_class: usize) -> Result<()> {
        let c = match self.c.as_slice() {
            [] => 1.,
            [c] => *c,
            several => {
                let reason = format!("expected one value with --n-per-class, found {}", several.len());
                return Err(Error::input("--c", reason));
            }
        };
        let config = FewShotConfig {
            n_per_class,
            n_tries: self.n_tries,
            c,
            max_iterations: self
                .max_iterations
                .unwrap_or(LogregConfig::default().max_iterations),
            seed: rng::derived_seed(self.common.seed, "logreg"),
            bootstrap_resamples: self.common.bootstrap_resamples,
            allow_unknown_labels: self.common.allow_unknown_labels,
        };
        self.on_labelled(|pair| {
            let result = logistic::few_shot(
                pair.train.view(),
                &pair.train_labels,
                pair.test.view(),
                &pair.test_labels,
                pair.n_classes,
                &config,
            )?;
            Ok((result.to_eval_result()?, result.predictions))
        })
    }

    fn run(&self) -> Result<()> {
        if let Some(n_per_class) = self.n_per_class {
            return self.few_shot(n_per_class);
        }
        let defaults = LogregConfig::default();
        let config = LogregConfig {
            c: match self.c.as_slice() {
                [] => defaults.c.clone(),
                [c] => CSelection::Fixed(*c),
                grid => CSelection::Grid(grid.to_vec()),
            },
            max_iterations: self.max_iterations.unwrap_or(defaults.max_iterations),
            val_fraction: self.val_fraction.unwrap_or(defaults.val_fraction),
            seed: rng::derived_seed(self.common.seed, "logreg"),
            bootstrap_resamples: self.common.bootstrap_resamples,
            allow_unknown_labels: self.common.allow_unknown_labels,
            ..defaults
        };
        config.validate()?;
        self.on_labelled(|pair| {
            let result = logistic::evaluate(
                pair.train.view(),
                &pair.train_labels,
                pair.test.view(),
                &pair.test_labels,
                pair.n_classes,
                &config,
            )?;
            Ok((result.to_eval_result()?, result.predictions))
        })
    }
}
