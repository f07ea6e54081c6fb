//! `curate retrieve`: rows of the pool that resemble a curated seed, the nearest to each of its rows or those of the clusters
//! that its rows fall into (Oquab et al. 2023, appendix A.4). Several seeds add up.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use macula_eval::curation::{
    ClusterRetrieval, NearestSeed, Search, Searcher, retrieve_by_cluster, retrieve_by_sample,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::dedup::search;
use super::input::{InputOptions, Pool, open_other};
use super::{Judged, Step};
use crate::{Error, Result, rng};

/// Reason of a row that no seed asks for.
const NOT_RETRIEVED: &str = "not retrieved";

/// How rows are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RetrieveMethod {
    /// The k nearest of every seed row: for large seeds.
    #[default]
    Sample,
    /// Rows of the clusters that several seed rows fall into: for small seeds.
    Cluster,
}

/// Settings of `curate retrieve`.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrieveOptions {
    /// Feature folders of curated images; may be given more than once
    #[arg(long, value_name = "FEATURES", required = true)]
    pub seeds: Vec<PathBuf>,
    /// The nearest of every seed row, or rows of the clusters that seed rows fall into
    #[arg(long, value_enum, default_value = "sample")]
    pub method: RetrieveMethod,
    /// Method sample: rows of the pool for each seed row; one that several ask for counts once
    #[arg(long, default_value_t = Self::default().k)]
    pub k: usize,
    /// Method cluster: clusters of the pool [default: a 1,000th of its rows, at least 10]
    #[arg(long, value_name = "N")]
    pub clusters: Option<usize>,
    /// Method cluster: a cluster is taken from when more than this many seed rows fall into it
    #[arg(long, value_name = "N", default_value_t = Self::default().more_than)]
    pub more_than: usize,
    /// Method cluster: rows taken from one cluster at most
    #[arg(long, value_name = "N", default_value_t = Self::default().per_cluster)]
    pub per_cluster: usize,
    /// Rows taken for one seed folder at most [default: all]
    #[arg(long, value_name = "N")]
    pub target: Option<usize>,
    /// Method sample: how neighbours are found: auto (exact up to 50,000 rows, else lists), exact, lists, hnsw
    #[arg(long, value_parser = search, default_value = "auto")]
    pub search: Search,
}

impl Default for RetrieveOptions {
    fn default() -> Self {
        Self {
            seeds: Vec::new(),
            method: RetrieveMethod::Sample,
            k: 4,
            clusters: None,
            more_than: 3,
            per_cluster: 10_000,
            target: None,
            search: Search::Auto,
        }
    }
}

impl Step for RetrieveOptions {
    fn name(&self) -> &'static str {
        "retrieve"
    }

    fn settings(&self) -> Value {
        json!(self)
    }

    fn other_inputs(&self) -> Vec<(&'static str, PathBuf)> {
        self.seeds.iter().map(|path| ("seeds", path.clone())).collect()
    }

    fn judge(&self, input: &InputOptions, seed: u64) -> Result<Judged> {
        if self.seeds.is_empty() {
            return Err(Error::input(
                "seeds",
                "expected the features of curated images, found none",
            ));
        }
        if self.target == Some(0) {
            return Err(Error::setting("target", "expected at least 1 row, found 0"));
        }
        let pool = Pool::open(input)?;
        let seed = rng::derived_seed(seed, "curate-retrieve");
        match self.method {
            RetrieveMethod::Sample => self.by_sample(pool, input, seed),
            RetrieveMethod::Cluster => self.by_cluster(pool, input, seed),
        }
    }
}

impl RetrieveOptions {
    fn by_sample(&self, mut pool: Pool, input: &InputOptions, seed: u64) -> Result<Judged> {
        let n = pool.len();
        let mut best: Vec<Option<(NearestSeed, u64)>> = vec![None; n];
        let (mut n_seeds, mut requested, mut once) = (0, 0u64, 0);
        let searcher = Searcher::new(pool.unit.view(), self.search, seed)?;
        for path in &self.seeds {
            let seeds = open_other("seeds", path, None, input.column.as_deref(), &pool)?;
            let found = retrieve_by_sample(&searcher, n, seeds.unit.view(), self.k, self.target)?;
            n_seeds += seeds.len();
            for (best, found) in best.iter_mut().zip(found) {
                let Some(found) = found else { continue };
                requested += u64::from(found.hits);
                once += 1;
                if best.is_none_or(|(before, _)| found.similarity > before.similarity) {
                    *best = Some((found, seeds.row(found.seed as usize)));
                }
            }
        }
        let method = searcher.method();
        let mut ledger = pool.ledger("cluster");
        for (&all, best) in pool.judged.iter().zip(&best) {
            match best {
                None => ledger.drop_row(all, NOT_RETRIEVED),
                Some((found, row)) => {
                    ledger.reasons[all] = "near a seed".into();
                    ledger.of[all] = Some(*row);
                    ledger.similarities[all] = Some(found.similarity);
                }
            }
        }
        let mut judged = Judged::new(ledger, pool.into_origin());
        judged.count("seeds", n_seeds);
        judged.count("collisions", requested - once);
        judged.count("search", method.name());
        Ok(judged)
    }

    fn by_cluster(&self, mut pool: Pool, input: &InputOptions, seed: u64) -> Result<Judged> {
        let n = pool.len();
        let clusters = self.clusters.unwrap_or_else(|| (n / 1000).max(10).min(n));
        let mut taken = vec![false; n];
        let mut numbers: Vec<u32> = Vec::new();
        let (mut n_seeds, mut n_hit) = (0, 0);
        for (number, path) in self.seeds.iter().enumerate() {
            let seeds = open_other("seeds", path, None, input.column.as_deref(), &pool)?;
            let config = ClusterRetrieval {
                clusters,
                more_than: self.more_than,
                per_cluster: self.per_cluster,
                target: self.target,
                seed: seed.wrapping_add(number as u64 * 2),
                ..ClusterRetrieval::default()
            };
            let (found, clusters, hits) = retrieve_by_cluster(pool.unit.view(), seeds.unit.view(), &config)?;
            taken
                .iter_mut()
                .zip(found)
                .for_each(|(taken, found)| *taken |= found);
            n_seeds += seeds.len();
            n_hit += hits
                .iter()
                .filter(|&&hits| hits as usize > self.more_than)
                .count();
            numbers = clusters;
        }
        // Of several seeds each has a clustering of its own, and a row no one number.
        let named = self.seeds.len() == 1;
        let mut ledger = pool.ledger("cluster");
        for (place, &all) in pool.judged.iter().enumerate() {
            ledger.groups[all] = named.then_some(numbers[place]);
            if taken[place] {
                ledger.reasons[all] = "cluster of seeds".into();
            } else {
                ledger.drop_row(all, NOT_RETRIEVED);
            }
        }
        let mut judged = Judged::new(ledger, pool.into_origin());
        judged.count("seeds", n_seeds);
        judged.count("clusters", clusters);
        judged.count("clusters_taken_from", n_hit);
        Ok(judged)
    }
}
