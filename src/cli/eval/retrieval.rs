//! `macula eval retrieval`.

use std::path::{Path, PathBuf};

use clap::Args;
use macula_eval::protocols::retrieval::copies::{self, CopyConfig, ScoreNormalisation};
use macula_eval::protocols::retrieval::revisited::{self, GroundTruth};
use macula_eval::protocols::retrieval::{RetrievalConfig, RetrievalResult, by_labels, captions};
use macula_eval::{LabelSet, Matrix};

use super::super::args::{INPUT, examples};
use super::PROTOCOL;
use super::folders::FolderArgs;
use crate::evaluate::labels::{self, tell_alike};
use crate::evaluate::text::{TextOf, Texts};
use crate::evaluate::{Labelled, by_name, encode, read_labelled};
use crate::extract::FeatureFolder;
use crate::extract::read_column;
use crate::{Error, Result};

/// Arguments of `macula eval retrieval`.
#[derive(Debug, Args)]
#[command(next_help_heading = PROTOCOL, after_help = examples(&[
    "macula eval retrieval --features features/photos",
    "macula eval retrieval --query q --database base --ground-truth gnd_roxford5k.json",
    "macula eval retrieval --features features/coco --text captions.parquet",
]))]
pub(super) struct RetrievalArgs {
    /// Cut-offs of R@k and mP@k [default: 1,5,10, or 1,10 with --copies]
    #[arg(long, value_delimiter = ',', value_name = "KS")]
    k: Vec<usize>,
    /// Copy detection: micro-AP over the pooled candidates of all queries; a pair is right when its labels agree
    #[arg(long, requires = "query", conflicts_with = "ground_truth")]
    copies: bool,
    /// Candidates of each query in copy detection
    #[arg(long, value_name = "N", default_value_t = CopyConfig::default().candidates, requires = "copies")]
    candidates: usize,
    /// PCA-whiten the descriptors of copy detection
    #[arg(long, requires = "training")]
    whiten: bool,
    /// Components kept by --whiten [default: all that the training rows span]
    #[arg(long, value_name = "N", requires = "whiten")]
    components: Option<usize>,
    /// Take from each score WEIGHT times the mean similarity of the query to its nearest training rows, 1 where none is given
    /// [default: no normalisation]
    #[arg(long, value_name = "WEIGHT", num_args = 0..=1, require_equals = true, default_missing_value = "1", requires = "training")]
    score_normalisation: Option<f64>,
    /// Feature folder of the queries
    #[arg(
        long,
        value_name = "FEATURES",
        requires = "database",
        conflicts_with = "features",
        help_heading = INPUT
    )]
    query: Option<PathBuf>,
    /// Feature folder that is searched
    #[arg(long, value_name = "FEATURES", requires = "query", help_heading = INPUT)]
    database: Option<PathBuf>,
    /// One feature folder against itself: each row is a query, left out of its own ranking
    #[arg(long, value_name = "FEATURES", required_unless_present = "query", help_heading = INPUT)]
    features: Option<PathBuf>,
    /// Vectors of texts by the same model, which images search for and the reverse: a Parquet file of columns image (path or file
    /// name) and vector [default: none, labels say what matches]
    #[arg(long, value_name = "TEXT.parquet", requires = "features", conflicts_with = "query", help_heading = INPUT)]
    text: Option<PathBuf>,
    /// Revisited Oxford/Paris ground truth as JSON: imlist, qimlist, gnd with easy, hard and junk; images go by file name
    /// [default: none, labels say what matches]
    #[arg(long, value_name = "GND.json", requires = "query", help_heading = INPUT)]
    ground_truth: Option<PathBuf>,
    /// Feature folder that whitening and score normalisation are fitted on; it must share no image with the other two [default:
    /// none]
    #[arg(long, value_name = "FEATURES", requires = "copies", help_heading = INPUT)]
    training: Option<PathBuf>,
    /// Go on where a query's label is only spelt otherwise than the database's: it has no match then
    #[arg(long, requires = "query", help_heading = INPUT)]
    allow_unknown_labels: bool,
    #[command(flatten)]
    common: FolderArgs,
}

impl RetrievalArgs {
    /// Ranks and prints the table.
    pub fn run(&self) -> Result<()> {
        self.config().validate()?;
        if self.copies {
            self.copy_config().validate()?;
        }
        let _lock = self.common.start()?;
        match (&self.query, &self.database, &self.features) {
            (Some(query), Some(database), _) => self.against(query, database),
            (_, _, Some(features)) => match &self.text {
                Some(text) => self.texts(features, text),
                None => self.leave_one_out(features),
            },
            _ => Err(Error::input(
                "eval retrieval",
                "expected --query F --database F, or --features F",
            )),
        }
    }

    fn leave_one_out(&self, features: &Path) -> Result<()> {
        let folder = FeatureFolder::open(features)?;
        let column = self.common.column(&folder);
        let rows = read_labelled(&folder, &column)?;
        let classes = LabelSet::from_labels(rows.labels.iter().map(String::as_str));
        tell_alike(&features.display().to_string(), &classes);
        let labels = encode(&classes, &rows.labels)?;
        let result = by_labels::leave_one_out(rows.matrix.view(), &labels, &self.config())?;
        self.common
            .finish(result.to_eval_result()?, &column, &[("features", &folder)])
    }

    fn texts(&self, features: &Path, text: &Path) -> Result<()> {
        let folder = FeatureFolder::open(features)?;
        let column = self.common.embedding_column(&folder);
        let texts = Texts::read(text, TextOf::Image)?;
        let rows = read_column(&folder, &column)?;
        let images = rows.matrix.view();
        texts.fit(&folder, &column, images.dim())?;
        let image_of_text = texts.images(&folder, &rows.paths)?;
        let result = captions::evaluate(images, texts.vectors.view(), &image_of_text, &self.config())?;
        let mut result = result.to_eval_result()?;
        result.settings["text"] = texts.file.into();
        self.common.finish(result, &column, &[("features", &folder)])
    }

    fn against(&self, query: &Path, database: &Path) -> Result<()> {
        let (queries, base) = (FeatureFolder::open(query)?, FeatureFolder::open(database)?);
        let column = self.common.column(&base);
        let mut folders = vec![("database", &base), ("query", &queries)];
        let training = self.training.as_deref().map(FeatureFolder::open).transpose()?;
        folders.extend(training.as_ref().map(|folder| ("training", folder)));
        for (_, folder) in &folders[1..] {
            folder.notice_unfair(&base);
        }
        let result = match &self.ground_truth {
            Some(truth) => self.revisited(&queries, &base, truth, &column)?,
            None => self.labelled(&queries, &base, training.as_ref(), &column)?,
        };
        self.common.finish(result.to_eval_result()?, &column, &folders)
    }

    fn revisited(
        &self,
        queries: &FeatureFolder,
        database: &FeatureFolder,
        truth: &Path,
        column: &str,
    ) -> Result<RetrievalResult> {
        let truth = read_truth(truth)?;
        let ordered = |folder: &FeatureFolder, names: &[String]| -> Result<Matrix> {
            by_name(folder.path(), &read_column(folder, column)?, names)
        };
        let (queries, database) = (
            ordered(queries, &truth.qimlist)?,
            ordered(database, &truth.imlist)?,
        );
        Ok(revisited::evaluate(
            queries.view(),
            database.view(),
            &truth,
            &self.config(),
        )?)
    }

    fn labelled(
        &self,
        queries: &FeatureFolder,
        database: &FeatureFolder,
        training: Option<&FeatureFolder>,
        column: &str,
    ) -> Result<RetrievalResult> {
        let names = [queries, database].map(|folder| folder.path().display().to_string());
        let (queries, database) = (read_labelled(queries, column)?, read_labelled(database, column)?);
        labels::queries(
            queries.side(&names[0]),
            database.side(&names[1]),
            self.allow_unknown_labels,
        )?;
        let all = queries.labels.iter().chain(&database.labels);
        let classes = LabelSet::from_labels(all.map(String::as_str));
        let of = |rows: &Labelled| encode(&classes, &rows.labels);
        let (query_labels, database_labels) = (of(&queries)?, of(&database)?);
        let (queries, database) = (queries.matrix.view(), database.matrix.view());
        if !self.copies {
            let config = self.config();
            return Ok(by_labels::evaluate(
                queries,
                &query_labels,
                database,
                &database_labels,
                &config,
            )?);
        }
        let training = training.map(|folder| read_column(folder, column)).transpose()?;
        let training = training.as_ref().map(|rows| rows.matrix.view());
        let config = self.copy_config();
        Ok(copies::evaluate(
            queries,
            &query_labels,
            database,
            &database_labels,
            training,
            &config,
        )?)
    }

    fn config(&self) -> RetrievalConfig {
        let defaults = RetrievalConfig::default();
        RetrievalConfig {
            ks: if self.k.is_empty() {
                defaults.ks
            } else {
                self.k.clone()
            },
            seed: self.seed(),
            bootstrap_resamples: self.common.random.bootstrap_resamples,
            normalise: defaults.normalise,
        }
    }

    fn copy_config(&self) -> CopyConfig {
        let defaults = CopyConfig::default();
        CopyConfig {
            candidates: self.candidates,
            ks: if self.k.is_empty() {
                defaults
                    .ks
                    .into_iter()
                    .filter(|&k| k <= self.candidates)
                    .collect()
            } else {
                self.k.clone()
            },
            whiten: self.whiten,
            components: self.components,
            score_normalisation: self.score_normalisation.map(|weight| ScoreNormalisation {
                weight,
                ..ScoreNormalisation::default()
            }),
            seed: self.seed(),
            bootstrap_resamples: self.common.random.bootstrap_resamples,
        }
    }

    fn seed(&self) -> u64 {
        self.common.random.derived("retrieval")
    }
}

fn read_truth(path: &Path) -> Result<GroundTruth> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let truth: GroundTruth = serde_json::from_str(&text).map_err(|e| {
        Error::input(
            path.display().to_string(),
            format!("expected imlist, qimlist and gnd as JSON: {e}"),
        )
    })?;
    truth
        .validate()
        .map_err(|e| Error::input(path.display().to_string(), e.to_string()))?;
    Ok(truth)
}
