//! `curate sample`: a balanced subset by hierarchical k-means (Vo et al. 2024), with flat clusters and plain chance as
//! baselines.

use std::fmt;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use macula_eval::curation::{HierarchyConfig, Level, SampleOrder, balanced_sample, hierarchy, random_sample};
use macula_eval::{Error as EvalError, Share};
use polars::prelude::{Column, DataFrame};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::input::{InputOptions, Pool};
use super::{Judged, Step};
use crate::cluster::{OfRanks, OneRank, Ranks};
use crate::{Result, rng};

/// Rows for each cluster of the lowest level, where levels are not given.
const ROWS_PER_CLUSTER: usize = 20;
/// How many times fewer clusters the next level has.
const FACTOR: usize = 10;
/// Levels at most, and the fewest clusters a level may have, where levels are not given.
const MAX_LEVELS: usize = 4;
const MIN_CLUSTERS: usize = 10;
/// Rows nearest to a centroid that a level above the lowest is resampled from.
const RESAMPLED: usize = 5;

/// How many rows to take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum SampleSize {
    /// So many.
    Rows(usize),
    /// This share of the rows, above 0 and up to 1.
    Fraction(f64),
}

impl SampleSize {
    fn count(self, n: usize) -> usize {
        match self {
            Self::Rows(rows) => rows.min(n),
            Self::Fraction(fraction) => ((fraction * n as f64).round() as usize).clamp(1, n),
        }
    }
}

impl FromStr for SampleSize {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let expected =
            || format!("expected a number of rows, or a fraction above 0.0 and up to 1.0, found `{text}`");
        if let Ok(rows) = text.parse::<usize>() {
            return if rows > 0 {
                Ok(Self::Rows(rows))
            } else {
                Err(expected())
            };
        }
        match text.parse::<f64>() {
            Ok(fraction) if fraction > 0.0 && fraction <= 1.0 => Ok(Self::Fraction(fraction)),
            _ => Err(expected()),
        }
    }
}

impl TryFrom<Value> for SampleSize {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<Self, String> {
        match &value {
            // `1.0` is a fraction and `1` a row, and JSON keeps them apart.
            Value::Number(number) if number.is_f64() => {
                format!("{:?}", number.as_f64().unwrap_or_default()).parse()
            }
            other => other.to_string().parse(),
        }
    }
}

impl From<SampleSize> for Value {
    fn from(size: SampleSize) -> Self {
        match size {
            SampleSize::Rows(rows) => json!(rows),
            SampleSize::Fraction(fraction) => json!(fraction),
        }
    }
}

impl fmt::Display for SampleSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(rows) => write!(f, "{rows}"),
            Self::Fraction(fraction) => write!(f, "{fraction:?}"),
        }
    }
}

/// How rows are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SampleMethod {
    /// As evenly as they go from the clusters of every level.
    #[default]
    Hierarchical,
    /// As evenly as they go from the clusters of one k-means, without resampling.
    Flat,
    /// By chance alone.
    Random,
}

/// Settings of `curate sample`.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleOptions {
    /// Rows to take: a number, or a fraction like 0.2
    #[arg(long, value_name = "N|FRACTION")]
    pub size: SampleSize,
    /// How rows are chosen
    #[arg(long, value_enum, default_value = "hierarchical")]
    pub method: SampleMethod,
    /// Clusters of each level, the lowest first [default: a 20th of the rows, a 200th, .., up to 4 levels of 10 at least]
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    pub levels: Vec<usize>,
    /// Rows nearest to each centroid that a level is resampled from, one number a level, 1 for no resampling [default: 1
    /// for the lowest of several levels and 5 for the others]
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    pub sample_sizes: Vec<usize>,
    /// Resampling steps
    #[arg(long, default_value_t = Self::default().resampling)]
    pub resampling: usize,
    /// Most Lloyd iterations of every k-means
    #[arg(long, default_value_t = Self::default().iterations)]
    pub iterations: usize,
    /// Parents that the lowest level is split from, 0 for one k-means of all rows [default: split where that would take long]
    #[arg(long, value_name = "N")]
    pub split: Option<usize>,
    /// Of a cluster take the rows nearest to its centroid instead of any
    #[arg(long)]
    pub closest: bool,
    /// Cluster the features as they are, not normalised
    #[arg(long)]
    pub raw: bool,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self {
            size: SampleSize::Fraction(0.1),
            method: SampleMethod::Hierarchical,
            levels: Vec::new(),
            sample_sizes: Vec::new(),
            resampling: 10,
            iterations: 50,
            split: None,
            closest: false,
            raw: false,
        }
    }
}

impl Step for SampleOptions {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn settings(&self) -> Value {
        json!(self)
    }

    fn judge(&self, input: &InputOptions, seed: u64) -> Result<Judged> {
        self.judge_with(input, seed, &OneRank)
    }

    /// The clusters; without any there is nothing to help with.
    fn help(&self, input: &InputOptions, seed: u64, ranks: &dyn Ranks) -> Result<()> {
        if self.method != SampleMethod::Random {
            let pool = self.open(input, ranks)?;
            self.levels(&pool, derived(seed), ranks)?;
        }
        Ok(())
    }

    fn judge_with(&self, input: &InputOptions, seed: u64, ranks: &dyn Ranks) -> Result<Judged> {
        let mut pool = match self.method {
            SampleMethod::Random => self.open(input, &OneRank)?,
            _ => self.open(input, ranks)?,
        };
        let n = pool.len();
        let target = self.size.count(n);
        let seed = derived(seed);
        let order = if self.closest {
            SampleOrder::Closest
        } else {
            SampleOrder::Random
        };
        let levels = match self.method {
            SampleMethod::Random => Vec::new(),
            _ => self.levels(&pool, seed, ranks)?,
        };
        let taken = if levels.is_empty() {
            random_sample(n, target, seed)
        } else {
            balanced_sample(&levels, target, order, seed.wrapping_add(1))?
        };
        let mut is_taken = vec![false; n];
        taken.iter().for_each(|&row| is_taken[row as usize] = true);
        let table = (!levels.is_empty())
            .then(|| clusters_table(&pool, &levels))
            .transpose()?;
        let mut ledger = pool.ledger("cluster");
        for (place, &all) in pool.judged.iter().enumerate() {
            ledger.groups[all] = levels.first().map(|level| level.clusters[place]);
            if is_taken[place] {
                ledger.reasons[all] = "sampled".into();
            } else {
                ledger.drop_row(all, "not sampled");
            }
        }
        let mut judged = Judged::new(ledger, pool.into_origin());
        let sizes: Vec<usize> = levels.iter().map(|level| level.centroids.view().rows()).collect();
        judged.count("clusters", json!(sizes));
        judged
            .tables
            .extend(table.map(|table| ("clusters".to_owned(), table)));
        Ok(judged)
    }
}

fn derived(seed: u64) -> u64 {
    rng::derived_seed(seed, "curate-sample")
}

impl SampleOptions {
    /// The rows to judge, of which each of `ranks` has the features of some.
    fn open(&self, input: &InputOptions, ranks: &dyn Ranks) -> Result<Pool> {
        let pool = Pool::open_share(input, self.raw, &OfRanks(ranks))?;
        pool.agree(self, ranks)?;
        Ok(pool)
    }

    /// The clusters of every level, which `ranks` find together.
    fn levels(&self, pool: &Pool, seed: u64, ranks: &dyn Ranks) -> Result<Vec<Level>> {
        let team = OfRanks(ranks);
        let rows = Share::of_own(pool.unit.view(), pool.len(), &team)?;
        let report = |text: &str| tracing::info!("{text}");
        Ok(hierarchy(&rows, &self.hierarchy(pool.len(), seed), report)?)
    }

    /// The hierarchy for `n` rows.
    fn hierarchy(&self, n: usize, seed: u64) -> HierarchyConfig {
        let mut levels = if self.levels.is_empty() {
            default_levels(n)
        } else {
            self.levels.clone()
        };
        let flat = self.method == SampleMethod::Flat;
        if flat {
            levels.truncate(1);
        }
        let default = |level: usize| {
            if level == 0 && levels.len() > 1 {
                1
            } else {
                RESAMPLED
            }
        };
        let sample_sizes = match (flat, self.sample_sizes.is_empty()) {
            (true, _) => vec![1],
            (false, true) => (0..levels.len()).map(default).collect(),
            (false, false) => self.sample_sizes.clone(),
        };
        HierarchyConfig {
            levels,
            sample_sizes,
            resampling: self.resampling,
            iterations: self.iterations,
            split: self.split,
            seed,
        }
    }
}

/// Falling numbers of clusters for `n` rows.
fn default_levels(n: usize) -> Vec<usize> {
    let mut levels = vec![(n / ROWS_PER_CLUSTER).max(MIN_CLUSTERS).min(n)];
    while levels.len() < MAX_LEVELS {
        let next = levels[levels.len() - 1] / FACTOR;
        if next < MIN_CLUSTERS {
            break;
        }
        levels.push(next);
    }
    levels
}

/// `row` and its cluster at every level, `level_1` being the lowest.
fn clusters_table(pool: &Pool, levels: &[Level]) -> Result<DataFrame> {
    let n = pool.len();
    let rows: Vec<u64> = (0..n).map(|place| pool.row(place)).collect();
    let mut columns = vec![Column::new("row".into(), rows)];
    let mut clusters: Vec<u32> = Vec::new();
    for (number, level) in levels.iter().enumerate() {
        clusters = match number {
            0 => level.clusters.clone(),
            _ => clusters
                .iter()
                .map(|&below| level.clusters[below as usize])
                .collect(),
        };
        columns.push(Column::new(
            format!("level_{}", number + 1).into(),
            clusters.as_slice(),
        ));
    }
    Ok(DataFrame::new(n, columns).map_err(EvalError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rows_or_fractions() {
        assert_eq!("5".parse(), Ok(SampleSize::Rows(5)));
        assert_eq!("0.25".parse(), Ok(SampleSize::Fraction(0.25)));
        assert_eq!("1.0".parse(), Ok(SampleSize::Fraction(1.0)));
        for wrong in ["0", "0.0", "1.5", "-3", "many"] {
            let message = wrong.parse::<SampleSize>().unwrap_err();
            assert!(message.ends_with(&format!("found `{wrong}`")), "{message}");
        }
        assert_eq!(SampleSize::Fraction(0.5).count(7), 4);
        assert_eq!(SampleSize::Rows(9).count(7), 7);
        for text in ["1", "1.0", "0.2", "300"] {
            let size: SampleSize = text.parse().unwrap();
            assert_eq!(SampleSize::try_from(Value::from(size)), Ok(size));
            assert_eq!(size.to_string(), text);
        }
    }

    #[test]
    fn levels_follow_the_number_of_rows() {
        assert_eq!(default_levels(1_000_000), [50_000, 5_000, 500, 50]);
        assert_eq!(default_levels(20_000), [1_000, 100, 10]);
        assert_eq!(default_levels(100), [10]);
        assert_eq!(default_levels(4), [4]);
    }
}
