//! Weighted k-nearest-neighbour classification of frozen features, as in DINO and DINOv2 (`dinov2/eval/knn.py`).
//!
//! Every training row votes for its class with weight `exp(similarity / temperature)`, normalised once over the largest
//! k; the score of a class for a smaller k is the sum over the first k neighbours.

use polars::prelude::{Column, DataFrame};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::draws::draw_per_class;
use crate::linalg::normalise::l2_normalise;
use crate::linalg::{Neighbours, QUERY_BLOCK, nearest_neighbours};
use crate::metrics::classification::{accuracy, hits_at, mean_per_class, rank_of};
use crate::protocols::checks;
use crate::protocols::predictions::{Predictions, predicted_class};
use crate::stats::spread::{mean, sample_std};
use crate::stats::{BootstrapConfig, bootstrap_mean};
use crate::table::EvalResult;
use crate::team::{Alone, Team, part_of};
use crate::{Error, Result, Split, TrainTest};

/// Settings of the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KnnConfig {
    /// Numbers of neighbours, each at least 1; `[10, 20, 100, 200]` by default, as in the reference. Reported in
    /// ascending order, each once.
    pub ks: Vec<usize>,
    /// Temperature of the votes, above 0; 0.07 by default.
    pub temperature: f64,
    /// Whether rows are L2-normalised first, so that similarity is the cosine; true by default. A row of zeros stays
    /// zero and is similar to nothing (similarity 0).
    pub normalise: bool,
    /// Few-shot: how many training rows of each class to draw (all of a class that has fewer); none by default, which
    /// means the whole training set. The ks above this number are left out and the number itself is added.
    pub n_per_class: Option<usize>,
    /// Few-shot: how many draws to average, 1 by default.
    pub n_tries: usize,
    /// Seed of the draws (draw t is number t of the stream `few-shot`) and of the intervals; 0 by default.
    pub seed: u64,
    /// Resamples of the 95 % bootstrap interval of top-1, 1,000 by default; 0 leaves the interval out.
    pub bootstrap_resamples: usize,
    /// Whether test rows may have labels that no training row has: they count as wrong, and their classes in
    /// `mean_per_class`. False by default.
    pub allow_unknown_labels: bool,
}

/// Numbers of neighbours of the reference.
const KS: [usize; 4] = [10, 20, 100, 200];

impl Default for KnnConfig {
    fn default() -> Self {
        Self {
            ks: KS.to_vec(),
            temperature: 0.07,
            normalise: true,
            n_per_class: None,
            n_tries: 1,
            seed: 0,
            bootstrap_resamples: 1_000,
            allow_unknown_labels: false,
        }
    }
}

impl KnnConfig {
    /// The ks to report where nobody asked for any: those of the reference that fit `rows` training rows, or all rows
    /// where even the least is too large.
    pub fn default_ks(rows: usize) -> Vec<usize> {
        match KS.iter().position(|&k| k > rows) {
            Some(0) => vec![rows.max(1)],
            Some(fitting) => KS[..fitting].to_vec(),
            None => KS.to_vec(),
        }
    }

    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.ks.is_empty() && self.n_per_class.is_none() {
            return Err(Error::config("ks", "expected at least one k, found none"));
        }
        if self.ks.contains(&0) {
            return Err(Error::config("ks", "expected k of at least 1, found 0"));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            let found = self.temperature;
            return Err(Error::config(
                "temperature",
                format!("expected a number above 0, found {found}"),
            ));
        }
        if self.n_per_class == Some(0) {
            return Err(Error::config("n_per_class", "expected at least 1, found 0"));
        }
        if self.n_tries == 0 {
            return Err(Error::config("n_tries", "expected at least 1, found 0"));
        }
        if self.n_tries > 1 && self.n_per_class.is_none() {
            return Err(Error::config(
                "n_tries",
                format!(
                    "{} draws need n_per_class: the whole training set is always the same",
                    self.n_tries
                ),
            ));
        }
        Ok(())
    }

    /// The ks that are reported: ascending, each once; few-shot: those up to n, and n, or the rows of a draw where those
    /// are fewer.
    fn reported_ks(&self, train_labels: &[u32], n_classes: usize) -> Vec<usize> {
        let mut ks = self.ks.clone();
        if let Some(n) = self.n_per_class {
            let drawn = draw_per_class(train_labels, n_classes, n, self.seed, 0).len();
            ks.retain(|&k| k <= n);
            ks.push(n.min(drawn));
        }
        ks.sort_unstable();
        ks.dedup();
        ks
    }
}

/// Accuracy for one k.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KnnRow {
    /// Number of neighbours.
    pub k: usize,
    /// Temperature of the votes.
    pub temperature: f64,
    /// Micro top-1 accuracy, 0 to 1; few-shot: the mean over the draws.
    pub top1: f64,
    /// Micro top-5 accuracy, likewise: the class is among the five with the greatest votes.
    pub top5: f64,
    /// Lower end of the 95 % bootstrap interval of top-1 over the test rows; NaN without resamples.
    pub top1_low: f64,
    /// Upper end.
    pub top1_high: f64,
    /// Mean over the classes of the test set of each class's top-1 accuracy, likewise.
    pub mean_per_class: f64,
    /// Few-shot with two draws or more: standard deviation of top-1 over the draws (n - 1 in the denominator).
    pub top1_std: Option<f64>,
}

/// What the protocol gives.
#[derive(Debug, Clone, PartialEq)]
pub struct KnnResult {
    /// The settings it ran with.
    pub config: KnnConfig,
    /// Training rows given.
    pub n_train: usize,
    /// Test rows.
    pub n_test: usize,
    /// One row a k, ascending.
    pub rows: Vec<KnnRow>,
    /// What each k said of the test rows; none for few-shot, where every draw says something else.
    pub predictions: Vec<Predictions>,
}

/// Classifies the test rows by their neighbours among the training rows. Top-5 counts the classes that had a vote and no
/// others.
///
/// # Errors
/// [`Error::Config`] for settings out of range or a k above the number of training rows; [`Error::Data`] for empty
/// sets, widths or label counts that differ, labels past `n_classes`, NaN or infinity, a single training class, or test
/// labels that training lacks.
pub fn evaluate(data: &TrainTest<'_>, config: &KnnConfig) -> Result<KnnResult> {
    evaluate_with(data, config, &Alone)
}

/// As [`evaluate`], where each process of `team` has all rows and classifies some of the test rows: the result of one process, on all.
///
/// # Errors
/// As [`evaluate`]; processes that cannot reach each other.
pub fn evaluate_with(data: &TrainTest<'_>, config: &KnnConfig, team: &dyn Team) -> Result<KnnResult> {
    config.validate()?;
    checks::pair(data, config.allow_unknown_labels)?;
    let TrainTest {
        train,
        test,
        n_classes,
    } = *data;
    let ks = config.reported_ks(train.labels, n_classes);

    let tries = if config.normalise {
        let normalised = (l2_normalise(train.features)?, l2_normalise(test.features)?);
        let data = TrainTest {
            train: Split::new(normalised.0.view(), train.labels),
            test: Split::new(normalised.1.view(), test.labels),
            n_classes,
        };
        run_tries(&data, &ks, config, team)?
    } else {
        run_tries(data, &ks, config, team)?
    };
    let rows = ks
        .iter()
        .enumerate()
        .map(|(place, &k)| {
            let votes: Vec<&[Vote]> = tries.iter().map(|votes| votes[place].as_slice()).collect();
            summarise(k, &votes, test.labels, config)
        })
        .collect();
    let whole = if config.n_per_class.is_none() {
        &tries[0][..]
    } else {
        &[]
    };
    let predictions = ks.iter().zip(whole).map(|(&k, votes)| Predictions {
        k: Some(k),
        classes: votes.iter().map(|vote| vote.predicted).collect(),
    });
    Ok(KnnResult {
        config: config.clone(),
        n_train: train.features.rows(),
        n_test: test.features.rows(),
        rows,
        predictions: predictions.collect(),
    })
}

/// Outcome of one vote: the rank of the true class, 0 for the first and [`usize::MAX`] without a vote, and the class that
/// came first.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Vote {
    rank: usize,
    predicted: Option<u32>,
}

/// Votes: `[try][k][test row]`.
fn run_tries(
    data: &TrainTest<'_>,
    ks: &[usize],
    config: &KnnConfig,
    team: &dyn Team,
) -> Result<Vec<Vec<Vec<Vote>>>> {
    let own = part_of(data.test.features.rows(), QUERY_BLOCK, team);
    let test = Split::new(data.test.features.range(own.clone()), &data.test.labels[own]);
    let classify = |train: Split<'_>| {
        let max_k = *ks.last().expect("validate() refuses an empty list of ks");
        let rows = train.features.rows();
        if max_k > rows {
            return Err(Error::config(
                "ks",
                format!("k = {max_k} is more than the {rows} training rows"),
            ));
        }
        let neighbours = nearest_neighbours(test.features, train.features, max_k)?;
        let data = TrainTest { train, test, ..*data };
        let by_row = of_all(votes(&neighbours, &data, ks, config.temperature), ks.len(), team)?;
        let of_k = |place: usize| -> Vec<Vote> { by_row.iter().map(|votes| votes[place]).collect() };
        Ok((0..ks.len()).map(of_k).collect::<Vec<_>>())
    };
    let Some(n) = config.n_per_class else {
        return Ok(vec![classify(data.train)?]);
    };
    (0..config.n_tries)
        .map(|number| {
            let chosen = draw_per_class(data.train.labels, data.n_classes, n, config.seed, number as u64);
            let features = data.train.features.select(&chosen);
            classify(Split::new(features.view(), &data.train.labels_of(&chosen)))
        })
        .collect()
}

/// Score of a class that no neighbour has: below every sum of votes, the smallest of which round to 0.
const NO_VOTE: f64 = -1.0;

/// Place of class `label` among those that had a vote.
fn rank_of_voted(scores: &[f64], label: u32) -> usize {
    match scores.get(label as usize) {
        Some(&score) if score > NO_VOTE => rank_of(scores, label),
        _ => usize::MAX,
    }
}

/// The vote of each k on each test row: `[test row][k]`.
fn votes(neighbours: &Neighbours, data: &TrainTest<'_>, ks: &[usize], temperature: f64) -> Vec<Vec<Vote>> {
    let train_labels = data.train.labels;
    data.test
        .labels
        .par_iter()
        .enumerate()
        .map_init(
            || vec![NO_VOTE; data.n_classes],
            |scores, (row, &label)| {
                scores.fill(NO_VOTE);
                let weights = vote_weights(neighbours.similarities_of(row), temperature);
                let voters = neighbours.indices_of(row);
                let mut counted = 0;
                ks.iter()
                    .map(|&k| {
                        for place in counted..k {
                            let score = &mut scores[train_labels[voters[place] as usize] as usize];
                            *score = score.max(0.0) + weights[place];
                        }
                        counted = k;
                        Vote {
                            rank: rank_of_voted(scores, label),
                            predicted: predicted_class(scores),
                        }
                    })
                    .collect()
            },
        )
        .collect()
}

/// Votes of all processes, each of which has those of some rows: `[test row][k]`.
fn of_all(own: Vec<Vec<Vote>>, ks: usize, team: &dyn Team) -> Result<Vec<Vec<Vote>>> {
    if team.size() == 1 {
        return Ok(own);
    }
    // No class has this number, and no rank.
    const NONE: u32 = u32::MAX;
    let sent = |vote: &Vote| {
        let rank = u32::try_from(vote.rank).unwrap_or(NONE);
        [rank, vote.predicted.unwrap_or(NONE)]
    };
    let numbers: Vec<u32> = own.iter().flatten().flat_map(sent).collect();
    let received = |&[rank, predicted]: &[u32; 2]| Vote {
        rank: if rank == NONE { usize::MAX } else { rank as usize },
        predicted: (predicted != NONE).then_some(predicted),
    };
    let all = team.gather_numbers(&numbers)?;
    let rows = all.as_chunks::<2>().0.chunks(ks);
    Ok(rows.map(|votes| votes.iter().map(received).collect()).collect())
}

/// Softmax of `similarities / temperature` in f64. Similarities are descending, so the first is the greatest.
fn vote_weights(similarities: &[f32], temperature: f64) -> Vec<f64> {
    let greatest = f64::from(similarities[0]);
    let raw: Vec<f64> = similarities
        .iter()
        .map(|&s| ((f64::from(s) - greatest) / temperature).exp())
        .collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|weight| weight / sum).collect()
}

fn summarise(k: usize, tries: &[&[Vote]], labels: &[u32], config: &KnnConfig) -> KnnRow {
    let ranks: Vec<Vec<usize>> = tries
        .iter()
        .map(|votes| votes.iter().map(|vote| vote.rank).collect())
        .collect();
    let hits: Vec<Vec<f32>> = ranks.iter().map(|ranks| hits_at(ranks, 1)).collect();
    let over_tries = |value: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..tries.len()).map(value).collect() };
    let top1 = over_tries(&|t| accuracy(&hits[t]));
    let top5 = over_tries(&|t| accuracy(&hits_at(&ranks[t], 5)));
    let per_class = over_tries(&|t| mean_per_class(&hits[t], labels));
    let mean_hits: Vec<f32> = (0..labels.len())
        .map(|row| hits.iter().map(|hits| hits[row]).sum::<f32>() / hits.len() as f32)
        .collect();
    let interval = bootstrap_mean(
        &mean_hits,
        &BootstrapConfig {
            resamples: config.bootstrap_resamples,
            seed: config.seed,
            ..BootstrapConfig::default()
        },
    );
    KnnRow {
        k,
        temperature: config.temperature,
        top1: mean(&top1),
        top5: mean(&top5),
        top1_low: interval.low,
        top1_high: interval.high,
        mean_per_class: mean(&per_class),
        top1_std: (top1.len() > 1).then(|| sample_std(&top1)),
    }
}

impl KnnResult {
    /// The result as a table: `k`, `temperature`, `top1`, `top5`, `top1_low`, `top1_high`, `mean_per_class`; few-shot
    /// adds `n_per_class`, `n_tries` and `top1_std`.
    ///
    /// # Errors
    /// Whatever Polars has against the columns; none is known.
    pub fn to_eval_result(&self) -> Result<EvalResult> {
        let fractions = |name: &str, value: fn(&KnnRow) -> f64| {
            Column::new(name.into(), self.rows.iter().map(value).collect::<Vec<_>>())
        };
        let mut columns = vec![
            Column::new(
                "k".into(),
                self.rows.iter().map(|row| row.k as u64).collect::<Vec<_>>(),
            ),
            fractions("temperature", |row| row.temperature),
            fractions("top1", |row| row.top1),
            fractions("top5", |row| row.top5),
            fractions("top1_low", |row| row.top1_low),
            fractions("top1_high", |row| row.top1_high),
            fractions("mean_per_class", |row| row.mean_per_class),
        ];
        if let Some(n) = self.config.n_per_class {
            columns.push(Column::new("n_per_class".into(), vec![n as u64; self.rows.len()]));
            columns.push(Column::new(
                "n_tries".into(),
                vec![self.config.n_tries as u64; self.rows.len()],
            ));
            let deviations: Vec<Option<f64>> = self.rows.iter().map(|row| row.top1_std).collect();
            columns.push(Column::new("top1_std".into(), deviations));
        }
        let table = DataFrame::new(self.rows.len(), columns)?;
        EvalResult::new("knn", &self.config, self.n_train, self.n_test, table)
    }
}

#[cfg(test)]
#[path = "knn_tests.rs"]
mod tests;
