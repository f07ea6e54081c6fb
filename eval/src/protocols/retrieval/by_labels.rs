//! Instance retrieval from labels: the positives of a query are the rows of the database with its label. One folder
//! against itself leaves the query out of its own ranking.

use std::collections::BTreeMap;

use serde_json::json;

use super::{AP_PLACES, RetrievalConfig, RetrievalResult, RetrievalRow, settings};
use crate::linalg::normalise::l2_normalise;
use crate::linalg::score_rows;
use crate::metrics::gap::{Prediction, by_confidence, gap};
use crate::metrics::precision_at::precision_at;
use crate::metrics::ranks::positive_ranks;
use crate::metrics::recall_at::recall_any_at;
use crate::metrics::{ap_at, trapezoid_ap};
use crate::protocols::checks;
use crate::{Error, MatrixView, Result};

/// Ranks `database` for every row of `queries`. Labels are numbers shared by both sides. Metrics: `mAP` (trapezoid),
/// `mAP@100` (Google Landmarks), `R@k` (any positive among the first k), `mP@k` (revisited), and `GAP`, the recognition
/// of each query by its nearest row with the similarity as confidence. A query whose label the database does not hold is
/// a distractor: it counts in `GAP` alone.
///
/// # Errors
/// Settings out of range, sides that do not fit each other, NaN or infinity, or no query with a positive.
pub fn evaluate(
    queries: MatrixView<'_>,
    query_labels: &[u32],
    database: MatrixView<'_>,
    database_labels: &[u32],
    config: &RetrievalConfig,
) -> Result<RetrievalResult> {
    config.validate()?;
    checks::rows_with_labels("query", queries, query_labels)?;
    checks::rows_with_labels("database", database, database_labels)?;
    checks::same_width("query features", queries, "the database", database)?;
    let found = if config.normalise {
        let (queries, database) = (l2_normalise(queries)?, l2_normalise(database)?);
        rank_all(
            queries.view(),
            query_labels,
            database.view(),
            database_labels,
            false,
            config,
        )?
    } else {
        rank_all(queries, query_labels, database, database_labels, false, config)?
    };
    summarise(&found, database.rows(), "query against database", config)
}

/// Ranks all other rows for every row of `features`.
///
/// # Errors
/// As [`evaluate`].
pub fn leave_one_out(
    features: MatrixView<'_>,
    labels: &[u32],
    config: &RetrievalConfig,
) -> Result<RetrievalResult> {
    config.validate()?;
    checks::rows_with_labels("features", features, labels)?;
    let found = if config.normalise {
        let unit = l2_normalise(features)?;
        rank_all(unit.view(), labels, unit.view(), labels, true, config)?
    } else {
        rank_all(features, labels, features, labels, true, config)?
    };
    summarise(&found, features.rows(), "leave one out", config)
}

/// What one query's ranking gives.
struct Ranked {
    prediction: Prediction,
    /// None without positives.
    scores: Option<Scores>,
}

struct Scores {
    trapezoid: f64,
    at_places: f64,
    /// One a cut-off.
    recalls: Vec<f64>,
    precisions: Vec<f64>,
}

fn rank_all(
    queries: MatrixView<'_>,
    query_labels: &[u32],
    database: MatrixView<'_>,
    database_labels: &[u32],
    self_is_junk: bool,
    config: &RetrievalConfig,
) -> Result<Vec<Ranked>> {
    let mut members: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (row, &label) in database_labels.iter().enumerate() {
        members.entry(label).or_default().push(row as u32);
    }
    score_rows(queries, database, |query, scores| {
        let itself = [query as u32];
        let junk = if self_is_junk { &itself[..] } else { &[] };
        let positives = members.get(&query_labels[query]).map_or(&[][..], Vec::as_slice);
        let ranks = positive_ranks(scores, positives, junk);
        let others = scores
            .iter()
            .enumerate()
            .filter(|(row, _)| !self_is_junk || *row != query);
        let best = others.map(|(_, &score)| score).fold(f32::NEG_INFINITY, f32::max);
        Ok(Ranked {
            prediction: Prediction {
                query,
                score: best,
                correct: ranks.first() == Some(&0),
            },
            scores: (!ranks.is_empty()).then(|| Scores {
                trapezoid: trapezoid_ap(&ranks, ranks.len()),
                at_places: ap_at(&ranks, ranks.len(), AP_PLACES),
                recalls: config.ks.iter().map(|&k| recall_any_at(&ranks, k)).collect(),
                precisions: config.ks.iter().map(|&k| precision_at(&ranks, k)).collect(),
            }),
        })
    })
}

fn summarise(
    found: &[Ranked],
    n_database: usize,
    pairing: &str,
    config: &RetrievalConfig,
) -> Result<RetrievalResult> {
    let scored: Vec<&Scores> = found.iter().filter_map(|ranked| ranked.scores.as_ref()).collect();
    if scored.is_empty() {
        return Err(Error::data(
            "labels",
            "expected a query with another row of its label in the database, found none",
        ));
    }
    let bootstrap = config.bootstrap();
    let mean = |metric: String, value: &dyn Fn(&Scores) -> f64| {
        let values: Vec<f64> = scored.iter().map(|scores| value(scores)).collect();
        RetrievalRow::mean(metric, &values, &bootstrap)
    };
    let mut rows = vec![
        mean("mAP".to_owned(), &|scores| scores.trapezoid),
        mean(format!("mAP@{AP_PLACES}"), &|scores| scores.at_places),
    ];
    for (place, k) in config.ks.iter().enumerate() {
        rows.push(mean(format!("R@{k}"), &|scores| scores.recalls[place]));
    }
    for (place, k) in config.ks.iter().enumerate() {
        rows.push(mean(format!("mP@{k}"), &|scores| scores.precisions[place]));
    }
    let ordered = by_confidence(found.iter().map(|ranked| ranked.prediction).collect());
    rows.push(RetrievalRow::over_queries(
        "GAP",
        found.len(),
        &bootstrap,
        |counts| {
            let answerable = found
                .iter()
                .zip(counts)
                .filter(|(ranked, _)| ranked.scores.is_some());
            let n = answerable.map(|(_, &count)| count as usize).sum();
            gap(&ordered, n, |query| counts[query])
        },
    ));
    Ok(RetrievalResult {
        rows,
        settings: settings(
            config,
            json!({
                "pairing": pairing,
                "recall": "any positive among the first k",
                "n_queries_without_positives": found.len() - scored.len(),
            }),
        )?,
        n_database,
        n_queries: found.len(),
    })
}
