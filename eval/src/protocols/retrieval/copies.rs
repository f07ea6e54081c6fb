//! Copy detection: all candidate pairs of all queries in one ranking, so that scores must mean the same for every query
//! (Douze et al. 2021). Descriptors can be whitened and scores normalised on training images, as SSCD does (Pizzi et al.
//! 2022, `disc_eval.py`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{RetrievalResult, RetrievalRow, settings};
use crate::linalg::nearest_neighbours;
use crate::linalg::normalise::l2_normalise;
use crate::linalg::whiten::Whitening;
use crate::metrics::micro_ap::{ScoredPair, micro_ap, pooled, recall_at_precision};
use crate::metrics::recall_at::recall_any_at;
use crate::protocols::checks;
use crate::stats::BootstrapConfig;
use crate::{Error, Matrix, MatrixView, Result};

/// Precision at which the recall is read.
const PRECISION: f64 = 0.9;

/// Settings of copy detection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CopyConfig {
    /// Candidates of each query, its nearest rows of the database; 10 by default, as in SSCD.
    pub candidates: usize,
    /// Cut-offs of `R@k`, at most `candidates`; 1 and 10 by default.
    pub ks: Vec<usize>,
    /// Whether descriptors are PCA-whitened before they are normalised; false by default. Needs training rows.
    pub whiten: bool,
    /// Components kept by the whitening; none (the default) means all that the training rows span.
    pub components: Option<usize>,
    /// Score normalisation; none by default. Needs training rows.
    pub score_normalisation: Option<ScoreNormalisation>,
    /// Seed of the intervals; 0 by default.
    pub seed: u64,
    /// Resamples of the 95 % bootstrap intervals over queries, 1,000 by default; 0 leaves them out.
    pub bootstrap_resamples: usize,
}

/// `score(q, r) = q . r - weight * mean(similarities of q to its training neighbours ranked first..=last)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreNormalisation {
    /// Weight of the mean, 1 by default.
    pub weight: f64,
    /// First training neighbour, from 0; 0 by default.
    pub first: usize,
    /// Last training neighbour, included; 2 by default.
    pub last: usize,
}

impl Default for ScoreNormalisation {
    fn default() -> Self {
        Self {
            weight: 1.0,
            first: 0,
            last: 2,
        }
    }
}

impl Default for CopyConfig {
    fn default() -> Self {
        Self {
            candidates: 10,
            ks: vec![1, 10],
            whiten: false,
            components: None,
            score_normalisation: None,
            seed: 0,
            bootstrap_resamples: 1_000,
        }
    }
}

impl CopyConfig {
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.candidates == 0 {
            return Err(Error::config("candidates", "expected at least 1, found 0"));
        }
        if let Some(k) = self.ks.iter().find(|&&k| k == 0 || k > self.candidates) {
            return Err(Error::config(
                "ks",
                format!("expected 1 to {} (the candidates), found {k}", self.candidates),
            ));
        }
        if let Some(score) = self.score_normalisation
            && (score.first > score.last || !score.weight.is_finite())
        {
            return Err(Error::config(
                "score_normalisation",
                format!(
                    "expected a finite weight and first <= last, found {} and {}..={}",
                    score.weight, score.first, score.last
                ),
            ));
        }
        Ok(())
    }
}

/// Detects copies of database rows among the queries: a pair is right when its labels agree. Queries whose label the
/// database does not hold are distractors. Metrics: `muAP`, `R@P90` (recall at precision 0.9) and `R@k` (any copy among
/// the first k). `training` serves the whitening and the score normalisation, and must share no image with either side.
///
/// # Errors
/// Settings out of range, missing or too few training rows, sides that do not fit each other, NaN or infinity, or no
/// pair in the ground truth.
pub fn evaluate(
    queries: MatrixView<'_>,
    query_labels: &[u32],
    database: MatrixView<'_>,
    database_labels: &[u32],
    training: Option<MatrixView<'_>>,
    config: &CopyConfig,
) -> Result<RetrievalResult> {
    config.validate()?;
    checks::rows_with_labels("query", queries, query_labels)?;
    checks::rows_with_labels("database", database, database_labels)?;
    checks::same_width("query features", queries, "the database", database)?;
    if let Some(training) = training {
        checks::same_width("training features", training, "the database", database)?;
        training.check_finite("training features")?;
    } else if config.whiten || config.score_normalisation.is_some() {
        return Err(Error::config(
            "training",
            "whitening and score normalisation need training features, found none",
        ));
    }
    let descriptors = Descriptors::new(queries, database, training, config)?;
    let pairs = candidate_pairs(&descriptors, query_labels, database_labels, config)?;

    let mut truth: BTreeMap<u32, usize> = BTreeMap::new();
    database_labels
        .iter()
        .for_each(|&label| *truth.entry(label).or_default() += 1);
    let copies: Vec<usize> = query_labels
        .iter()
        .map(|label| truth.get(label).copied().unwrap_or(0))
        .collect();
    if copies.iter().all(|&copies| copies == 0) {
        return Err(Error::data(
            "labels",
            "expected a query with the label of a row of the database, found none",
        ));
    }
    Ok(RetrievalResult {
        rows: summarise(&pairs, &copies, config),
        settings: settings(
            config,
            json!({
                "pairing": "copy detection",
                "recall": "any copy among the first k",
                "n_distractors": copies.iter().filter(|&&copies| copies == 0).count(),
                "n_training": training.map(|training| training.rows()),
                "width": descriptors.queries.view().dim(),
            }),
        )?,
        n_database: database.rows(),
        n_queries: queries.rows(),
    })
}

/// Normalised, and whitened where asked for.
struct Descriptors {
    queries: Matrix,
    database: Matrix,
    training: Option<Matrix>,
}

impl Descriptors {
    fn new(
        queries: MatrixView<'_>,
        database: MatrixView<'_>,
        training: Option<MatrixView<'_>>,
        config: &CopyConfig,
    ) -> Result<Self> {
        let whitening = match training {
            Some(training) if config.whiten => Some(Whitening::fit(training, config.components)?),
            _ => None,
        };
        let prepare = |features: MatrixView<'_>| match &whitening {
            Some(whitening) => l2_normalise(whitening.apply(features)?.view()),
            None => l2_normalise(features),
        };
        Ok(Self {
            queries: prepare(queries)?,
            database: prepare(database)?,
            training: training.map(prepare).transpose()?,
        })
    }

    /// What is taken from every score of each query.
    fn biases(&self, config: &CopyConfig) -> Result<Vec<f32>> {
        let (Some(score), Some(training)) = (config.score_normalisation, &self.training) else {
            return Ok(vec![0.0; self.queries.view().rows()]);
        };
        let n = training.view().rows();
        if score.last >= n {
            return Err(Error::data(
                "training features",
                format!(
                    "expected more than {} rows for the score normalisation, found {n}",
                    score.last
                ),
            ));
        }
        let nearest = nearest_neighbours(self.queries.view(), training.view(), score.last + 1)?;
        let biases = (0..self.queries.view().rows()).map(|query| {
            let ranked = &nearest.similarities_of(query)[score.first..];
            let mean = ranked.iter().map(|&s| f64::from(s)).sum::<f64>() / ranked.len() as f64;
            (score.weight * mean) as f32
        });
        Ok(biases.collect())
    }
}

/// Candidate pairs of each query, best first, in the order of the queries.
fn candidate_pairs(
    descriptors: &Descriptors,
    query_labels: &[u32],
    database_labels: &[u32],
    config: &CopyConfig,
) -> Result<Vec<ScoredPair>> {
    let k = config.candidates.min(database_labels.len());
    let nearest = nearest_neighbours(descriptors.queries.view(), descriptors.database.view(), k)?;
    let biases = descriptors.biases(config)?;
    let pairs = (0..query_labels.len()).flat_map(|query| {
        let rows = nearest
            .indices_of(query)
            .iter()
            .zip(nearest.similarities_of(query));
        let bias = biases[query];
        rows.map(move |(&row, &similarity)| ScoredPair {
            query,
            score: similarity - bias,
            correct: database_labels[row as usize] == query_labels[query],
        })
    });
    Ok(pairs.collect())
}

fn summarise(pairs: &[ScoredPair], copies: &[usize], config: &CopyConfig) -> Vec<RetrievalRow> {
    let bootstrap = BootstrapConfig {
        resamples: config.bootstrap_resamples,
        seed: config.seed,
        ..BootstrapConfig::default()
    };
    let recalls: Vec<RetrievalRow> = config
        .ks
        .iter()
        .map(|&k| {
            let of_query = pairs.chunk_by(|a, b| a.query == b.query).filter_map(|pairs| {
                let ranks: Vec<usize> = (0..pairs.len()).filter(|&rank| pairs[rank].correct).collect();
                (copies[pairs[0].query] > 0).then(|| recall_any_at(&ranks, k))
            });
            RetrievalRow::mean(format!("R@{k}"), &of_query.collect::<Vec<f64>>(), &bootstrap)
        })
        .collect();
    let ordered = pooled(pairs.to_vec());
    let n_truth = |counts: &[u32]| -> usize {
        let pairs = counts.iter().zip(copies);
        pairs.map(|(&count, n)| count as usize * n).sum()
    };
    let over_pairs = |metric: &str, value: &(dyn Fn(&[u32], usize) -> f64 + Sync)| {
        RetrievalRow::over_queries(metric, copies.len(), &bootstrap, |counts| {
            value(counts, n_truth(counts))
        })
    };
    let mut rows = vec![
        over_pairs("muAP", &|counts, n| micro_ap(&ordered, n, |query| counts[query])),
        over_pairs("R@P90", &|counts, n| {
            recall_at_precision(&ordered, n, PRECISION, |query| counts[query])
        }),
    ];
    rows.extend(recalls);
    rows
}
