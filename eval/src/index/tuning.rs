//! Choosing the width of the walk by measurement. Some rows are held back while the graph is built, serve as queries that
//! it has not seen, and are inserted afterwards: rows of the graph itself would be easier to find than a user's queries.

use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::hnsw::Builder;
use super::score::recall;
use super::{HnswConfig, HnswIndex, prepare_rows};
use crate::linalg::score_rows;
use crate::linalg::topk::{self, Reservoir};
use crate::{Error, Matrix, MatrixView, Result};

/// Most rows held back.
const MAX_QUERIES: usize = 1_000;
/// Widths that are tried, in this order.
const WIDTHS: [usize; 13] = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];

/// What was asked for and what came out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// The smallest width tried that reaches the recall, or the largest.
    pub ef_search: usize,
    /// Recall measured at that width.
    pub recall: f64,
    /// Rows that served as queries.
    pub n_queries: usize,
}

/// Builds an index as [`HnswIndex::build`] does and finds the width at which `k` neighbours of unseen rows are found with
/// a recall of `target`. `seed` draws the rows held back.
///
/// # Errors
/// As [`HnswIndex::build`]; a target that is not in (0, 1]; fewer than `k + 1` rows beside those held back.
pub fn build_for_recall(
    features: MatrixView<'_>,
    config: &HnswConfig,
    target: f64,
    k: usize,
    seed: u64,
    progress: impl Fn(usize),
) -> Result<(HnswIndex, Tuning)> {
    config.validate()?;
    let held_back = HeldBack::draw(features.rows(), target, k, seed)?;
    let unit = prepare_rows(features)?;
    let queries = unit.view().select(&held_back.rows);
    let thresholds = kth_similarities(&queries, unit.view(), &held_back.rows, k)?;
    let [rows, others] = [&held_back.rows, &held_back.others]
        .map(|rows| rows.iter().map(|&row| row as u32).collect::<Vec<u32>>());
    let builder = Builder::new(unit, config)?;
    builder.insert(&others, &progress);
    let index = builder.index();
    let tuning = held_back.smallest_width(target, k, |ef| {
        Ok(recall(&index.search_unit(queries.view(), k, ef), &thresholds, k))
    })?;
    builder.insert(&rows, |done| progress(others.len() + done));
    Ok((builder.index(), tuning))
}

/// Rows that are inserted after the others, and serve as queries before.
pub(super) struct HeldBack {
    /// Them, ascending.
    pub(super) rows: Vec<usize>,
    /// The others, ascending.
    pub(super) others: Vec<usize>,
}

impl HeldBack {
    /// A tenth of `n` rows, up to a thousand, drawn by `seed`.
    ///
    /// # Errors
    /// A target that is not in (0, 1]; fewer than `k` rows beside them.
    pub(super) fn draw(n: usize, target: f64, k: usize, seed: u64) -> Result<Self> {
        if !(target > 0.0 && target <= 1.0) {
            return Err(Error::config(
                "recall",
                format!("expected a number above 0 and up to 1, found {target}"),
            ));
        }
        let n_queries = (n / 10).clamp(1, MAX_QUERIES);
        if k == 0 || n < n_queries + k {
            return Err(Error::config(
                "k",
                format!(
                    "expected 1 to {} (the rows beside the held-out ones), found {k}",
                    n.saturating_sub(n_queries)
                ),
            ));
        }
        let mut rows = index::sample(&mut ChaCha8Rng::seed_from_u64(seed), n, n_queries).into_vec();
        rows.sort_unstable();
        let others = (0..n).filter(|row| rows.binary_search(row).is_err()).collect();
        Ok(Self { rows, others })
    }

    /// The smallest width tried whose recall reaches `target`, or the largest.
    ///
    /// # Errors
    /// What `recall` returns.
    pub(super) fn smallest_width(
        &self,
        target: f64,
        k: usize,
        recall: impl Fn(usize) -> Result<f64>,
    ) -> Result<Tuning> {
        let mut tuning = Tuning {
            ef_search: k,
            recall: 0.0,
            n_queries: self.rows.len(),
        };
        for ef in WIDTHS
            .into_iter()
            .filter(|&ef| ef >= k)
            .chain((k > WIDTHS[WIDTHS.len() - 1]).then_some(k))
        {
            tuning.ef_search = ef;
            tuning.recall = recall(ef)?;
            if tuning.recall >= target {
                break;
            }
        }
        Ok(tuning)
    }
}

/// Similarity of each query's k-th nearest row of `unit`, the rows of `left_out` apart.
fn kth_similarities(
    queries: &Matrix,
    unit: MatrixView<'_>,
    left_out: &[usize],
    k: usize,
) -> Result<Vec<f32>> {
    score_rows(queries.view(), unit, |_, scores| {
        let mut scores = scores.to_vec();
        left_out.iter().for_each(|&row| scores[row] = f32::NEG_INFINITY);
        let mut best = Reservoir::new(k);
        best.offer(&scores, 0);
        let keys = best.into_keys();
        let smallest = keys
            .iter()
            .min()
            .expect("k is at least 1 and there are more rows");
        Ok(topk::similarity(*smallest))
    })
}
