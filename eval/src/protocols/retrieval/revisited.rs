//! Revisited Oxford and Paris (Radenovic et al. 2018): each query lists easy, hard and junk images. Easy counts the easy
//! ones and ignores the hard, Medium counts both, Hard counts the hard ones and ignores the easy; junk is always ignored.
//! Queries are expected as the protocol crops them; `bbx` is carried for whoever extracts.

use serde::Deserialize;
use serde_json::json;

use super::{RetrievalConfig, RetrievalResult, RetrievalRow, settings};
use crate::linalg::normalise::l2_normalise;
use crate::linalg::score_rows;
use crate::metrics::precision_at::precision_at;
use crate::metrics::ranks::positive_ranks;
use crate::metrics::trapezoid_ap;
use crate::protocols::checks;
use crate::{Error, MatrixView, Result};

/// The ground-truth file of the two datasets (`gnd_roxford5k.pkl`), as JSON.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GroundTruth {
    /// Names of the database images; the lists below are places in it.
    pub imlist: Vec<String>,
    /// Names of the query images.
    pub qimlist: Vec<String>,
    /// One entry a query.
    pub gnd: Vec<QueryTruth>,
}

/// What one query should find.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct QueryTruth {
    /// Box of the object in the query image: x0, y0, x1, y1 in pixels.
    #[serde(default)]
    pub bbx: Vec<f64>,
    /// Rows of the database that clearly show the object.
    #[serde(default)]
    pub easy: Vec<u32>,
    /// Rows that show it under difficult conditions.
    #[serde(default)]
    pub hard: Vec<u32>,
    /// Rows that are neither hits nor misses.
    #[serde(default)]
    pub junk: Vec<u32>,
}

impl GroundTruth {
    /// Checks that every list holds rows of the database and that there is one entry a query.
    ///
    /// # Errors
    /// [`Error::Data`] naming the query and the list.
    pub fn validate(&self) -> Result<()> {
        if self.gnd.len() != self.qimlist.len() {
            return Err(Error::data(
                "ground truth",
                format!(
                    "expected {} entries in `gnd`, one a name in `qimlist`, found {}",
                    self.qimlist.len(),
                    self.gnd.len()
                ),
            ));
        }
        let n = self.imlist.len();
        for (query, truth) in self.gnd.iter().enumerate() {
            for (list, rows) in [
                ("easy", &truth.easy),
                ("hard", &truth.hard),
                ("junk", &truth.junk),
            ] {
                if let Some(row) = rows.iter().find(|row| **row as usize >= n) {
                    return Err(Error::data(
                        "ground truth",
                        format!(
                            "query {query}, `{list}`: expected rows below {n} (the names in `imlist`), found {row}"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The three setups.
const SETUPS: [&str; 3] = ["easy", "medium", "hard"];

impl QueryTruth {
    /// Positives and junk of a setup.
    fn lists(&self, setup: &str) -> (Vec<u32>, Vec<u32>) {
        let join = |a: &[u32], b: &[u32]| [a, b].concat();
        match setup {
            "easy" => (self.easy.clone(), join(&self.junk, &self.hard)),
            "hard" => (self.hard.clone(), join(&self.junk, &self.easy)),
            _ => (join(&self.easy, &self.hard), self.junk.clone()),
        }
    }
}

/// Ranks `database` (in the order of `imlist`) for every row of `queries` (in that of `qimlist`): `mAP` by the trapezoid
/// rule and `mP@k`, for each setup.
///
/// # Errors
/// Settings out of range, numbers of rows that are not those of the ground truth, widths that differ, NaN or infinity.
pub fn evaluate(
    queries: MatrixView<'_>,
    database: MatrixView<'_>,
    truth: &GroundTruth,
    config: &RetrievalConfig,
) -> Result<RetrievalResult> {
    config.validate()?;
    truth.validate()?;
    for (what, rows, names, list) in [
        ("query features", queries.rows(), truth.qimlist.len(), "qimlist"),
        ("database features", database.rows(), truth.imlist.len(), "imlist"),
    ] {
        if rows != names || rows == 0 {
            return Err(Error::data(
                what,
                format!("expected {names} rows, the names in `{list}`, found {rows}"),
            ));
        }
    }
    checks::same_width("query features", queries, "the database", database)?;
    let rank = |queries: MatrixView<'_>, database: MatrixView<'_>| {
        score_rows(queries, database, |query, scores| {
            Ok(SETUPS.map(|setup| {
                let (positives, junk) = truth.gnd[query].lists(setup);
                positive_ranks(scores, &positives, &junk)
            }))
        })
    };
    let ranks = if config.normalise {
        rank(l2_normalise(queries)?.view(), l2_normalise(database)?.view())?
    } else {
        rank(queries, database)?
    };
    of_ranks(&ranks, database.rows(), config)
}

/// Scores of ranks `[query][setup]`, junk taken out.
pub(super) fn of_ranks(
    ranks: &[[Vec<usize>; 3]],
    n_database: usize,
    config: &RetrievalConfig,
) -> Result<RetrievalResult> {
    let bootstrap = config.bootstrap();
    let mut rows = Vec::new();
    let mut skipped = serde_json::Map::new();
    for (place, setup) in SETUPS.iter().enumerate() {
        let found: Vec<&Vec<usize>> = ranks
            .iter()
            .map(|query| &query[place])
            .filter(|ranks| !ranks.is_empty())
            .collect();
        skipped.insert((*setup).to_owned(), json!(ranks.len() - found.len()));
        let mean = |metric: String, value: &dyn Fn(&[usize]) -> f64| {
            let values: Vec<f64> = found.iter().map(|ranks| value(ranks)).collect();
            RetrievalRow::mean(metric, &values, &bootstrap)
        };
        rows.push(mean(format!("{setup} mAP"), &|ranks| {
            trapezoid_ap(ranks, ranks.len())
        }));
        for &k in &config.ks {
            rows.push(mean(format!("{setup} mP@{k}"), &|ranks| precision_at(ranks, k)));
        }
    }
    Ok(RetrievalResult {
        rows,
        settings: settings(
            config,
            json!({ "pairing": "ground truth", "n_queries_without_positives": skipped }),
        )?,
        n_database,
        n_queries: ranks.len(),
    })
}
