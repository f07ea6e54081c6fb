//! `macula eval robustness`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use macula_eval::protocols::knn::KnnConfig;
use macula_eval::protocols::logistic::LogregConfig;
use macula_eval::protocols::robustness::ClassifierConfig;

use super::super::args::{ColumnArgs, ReadArgs};
use super::output;
use crate::data::corrupt::{Corruption, Severity};
use crate::evaluate::robustness::{RobustnessRequest, robustness};
use crate::extract::model::OutputChoice;
use crate::{Error, Result, files, rng};

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
pub(super) struct RobustnessArgs {
    /// Frozen model: ONNX file, checkpoint, pixels, or hog
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Training images, with labels; they stay clean
    #[arg(long, value_name = "SRC")]
    train_data: String,
    /// Test images, with labels
    #[arg(long, value_name = "SRC")]
    test_data: String,
    /// Corruptions, as named in ImageNet-C; by default all 15
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    corruptions: Vec<String>,
    /// Severities, 1 to 5; by default all
    #[arg(long, value_delimiter = ',', value_name = "LEVELS")]
    severities: Vec<String>,
    /// Test images drawn at random; by default all
    #[arg(long, value_name = "N")]
    max_test: Option<usize>,
    /// What tells the classes apart
    #[arg(long, value_enum, default_value = "knn")]
    classifier: ClassifierName,
    /// Neighbours of the k-NN classifier; by default 20, or all training images where there are fewer
    #[arg(long)]
    k: Option<usize>,
    /// Temperature of the k-NN vote
    #[arg(long, default_value_t = 0.07)]
    temperature: f64,
    /// Go on where test images have labels that no training image has; they count as wrong
    #[arg(long)]
    allow_unknown_labels: bool,
    /// result.json of this verb, or its folder, from another model on the same test images: gives ce and relative_ce
    #[arg(long, value_name = "RESULT")]
    baseline: Option<PathBuf>,
    /// Output to evaluate; by default cls, or else the first
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// PNG of one test image under every corruption and severity
    #[arg(long, value_name = "FILE")]
    pictures: Option<PathBuf>,
    /// Folder for result.json, table.parquet, table.csv and table.md
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace what --out or --pictures hold
    #[arg(long)]
    force: bool,
    /// Print the result as JSON and nothing else
    #[arg(long)]
    json: bool,
    /// Seed of the corruptions, of --max-test, of the split and of the bootstrap
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Bootstrap resamples of the 95 % intervals, over test images
    #[arg(long, default_value_t = 1000)]
    bootstrap_resamples: usize,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    read: ReadArgs,
}

impl RobustnessArgs {
    /// Evaluates and prints the table.
    pub fn run(&self) -> Result<()> {
        let classifier = self.classifier()?;
        let [train_data, test_data] = self.columns.of_both(&self.train_data, &self.test_data)?;
        let request = RobustnessRequest {
            model: self.model.clone(),
            train_data,
            test_data,
            options: self
                .read
                .model_options(OutputChoice::named(self.column.as_slice())),
            extract: self.read.extract_options(None, true, false),
            corruptions: read(&self.corruptions, Corruption::all())?,
            severities: read(&self.severities, Severity::all())?,
            max_test: self.max_test,
            k_by_default: self.k.is_none(),
            allow_unknown_labels: self.allow_unknown_labels,
            baseline: self.baseline.clone(),
            seed: self.seed,
            bootstrap_resamples: self.bootstrap_resamples,
            pictures: self.pictures.clone(),
        };
        self.read.run.start_threads()?;
        let _lock = output::take_result_folder(self.out.as_deref(), self.force)?;
        if let Some(pictures) = &self.pictures {
            files::refuse_existing(pictures, self.force)?;
        }
        output::print_result(
            &robustness(&request, &classifier)?,
            self.json,
            self.out.as_deref(),
        )
    }

    fn classifier(&self) -> Result<ClassifierConfig> {
        let seed = rng::derived_seed(self.seed, "robustness");
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
