//! `macula eval robustness`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use macula_eval::protocols::knn::KnnConfig;
use macula_eval::protocols::logistic::LogregConfig;
use macula_eval::protocols::robustness::ClassifierConfig;

use super::super::args::{
    BootstrapArgs, FeatureColumnArgs, INPUT, MODEL, ModelRunArgs, OUTPUT, ResultArgs, RunArgs, TrainTestArgs,
    examples, reworded,
};
use super::PROTOCOL;
use crate::data::corrupt::{Corruption, Severity};
use crate::evaluate::robustness::{RobustnessRequest, robustness};
use crate::extract::model::OutputChoice;
use crate::{Error, Result, files};

/// Neighbours where nobody asks for a number.
const DEFAULT_K: usize = 20;

/// What tells the classes apart.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ClassifierName {
    /// Weighted k nearest neighbours
    Knn,
    /// Logistic regression, C chosen on 10 % of train
    Logreg,
}

/// Arguments of `macula eval robustness`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = PROTOCOL,
    mut_args(reworded(&[
        ("train_data", "Training images, with labels; they stay clean"),
        ("column", "Output to evaluate [default: cls, or else the first]"),
        ("force", "Replace what --out or --pictures hold"),
    ])),
    after_help = examples(&[
        "macula eval robustness --model m.onnx --train-data train/ --test-data test/ --out robust",
        "macula eval robustness --model hog --train-data sample:train --test-data sample:test",
    ])
)]
pub(super) struct RobustnessArgs {
    /// Corruptions, as named in ImageNet-C [default: all 15]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    corruptions: Vec<String>,
    /// Severities, 1 to 5 [default: all]
    #[arg(long, value_delimiter = ',', value_name = "LEVELS")]
    severities: Vec<String>,
    /// Test images drawn at random [default: all]
    #[arg(long, value_name = "N")]
    max_test: Option<usize>,
    /// What tells the classes apart
    #[arg(long, value_enum, default_value = "knn")]
    classifier: ClassifierName,
    /// Neighbours of the k-NN classifier [default: 20, or all training images where there are fewer]
    #[arg(long, value_name = "N")]
    k: Option<usize>,
    /// Temperature of the k-NN vote
    #[arg(long, value_name = "T", default_value_t = KnnConfig::default().temperature)]
    temperature: f64,
    #[command(flatten)]
    images: TrainTestArgs,
    #[command(flatten)]
    column: FeatureColumnArgs,
    /// Go on where test images have labels that no training image has; they count as wrong
    #[arg(long, help_heading = INPUT)]
    allow_unknown_labels: bool,
    /// result.json of this verb, or its folder, from another model on the same test images: gives ce and relative_ce [default:
    /// none]
    #[arg(long, value_name = "RESULT", help_heading = INPUT)]
    baseline: Option<PathBuf>,
    /// Frozen model: ONNX file, checkpoint, pixels, or hog
    #[arg(long, value_name = "MODEL", help_heading = MODEL)]
    model: String,
    #[command(flatten)]
    open: ModelRunArgs,
    /// PNG of one test image under every corruption and severity [default: none]
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pictures: Option<PathBuf>,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    random: BootstrapArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl RobustnessArgs {
    /// Evaluates and prints the table.
    pub fn run(&self) -> Result<()> {
        let classifier = self.classifier()?;
        let [train_data, test_data] = self.images.sources()?;
        let outputs = OutputChoice::named(self.column.column.as_slice());
        let request = RobustnessRequest {
            model: self.model.clone(),
            train_data,
            test_data,
            options: self.open.model_options(outputs, &self.run),
            extract: self.open.extract_options(None, true, false),
            corruptions: read(&self.corruptions, Corruption::all())?,
            severities: read(&self.severities, Severity::all())?,
            max_test: self.max_test,
            k_by_default: self.k.is_none(),
            allow_unknown_labels: self.allow_unknown_labels,
            baseline: self.baseline.clone(),
            seed: self.random.seed.seed,
            bootstrap_resamples: self.random.bootstrap_resamples,
            pictures: self.pictures.clone(),
        };
        self.run.threads.start()?;
        let _lock = self.result.take()?;
        if let Some(pictures) = &self.pictures {
            files::refuse_existing(pictures, self.result.force)?;
        }
        self.result.finish(&robustness(&request, &classifier)?)
    }

    fn classifier(&self) -> Result<ClassifierConfig> {
        let seed = self.random.derived("robustness");
        Ok(match self.classifier {
            ClassifierName::Knn => {
                let config = KnnConfig {
                    ks: vec![self.k.unwrap_or(DEFAULT_K)],
                    temperature: self.temperature,
                    seed,
                    allow_unknown_labels: self.allow_unknown_labels,
                    ..KnnConfig::default()
                };
                config.validate()?;
                ClassifierConfig::Knn(config)
            }
            ClassifierName::Logreg => ClassifierConfig::Logreg(LogregConfig {
                seed,
                allow_unknown_labels: self.allow_unknown_labels,
                ..LogregConfig::default()
            }),
        })
    }
}

/// What `given` names, each once and in the order of `all`; all where nothing is given.
fn read<T: FromStr<Err = Error> + PartialEq>(
    given: &[String],
    all: impl Iterator<Item = T>,
) -> Result<Vec<T>> {
    if given.is_empty() {
        return Ok(all.collect());
    }
    let named = given
        .iter()
        .map(|name| name.trim().parse())
        .collect::<Result<Vec<T>>>()?;
    Ok(all.filter(|one| named.contains(one)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_the_papers_order_and_once() {
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<String>>();
        let read_all = |text: &str| read(&words(text), Corruption::all());
        assert_eq!(
            read_all("fog,snow,fog").unwrap(),
            [Corruption::Snow, Corruption::Fog]
        );
        assert_eq!(read(&[], Corruption::all()).unwrap().len(), 15);
        assert!(
            read(&words("3,0"), Severity::all())
                .unwrap_err()
                .to_string()
                .contains("`0`")
        );
    }
}
