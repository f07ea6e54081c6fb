//! `curate overlap`: what the pool shares with evaluation sets goes, whole components of it (Oquab et al. 2023, appendix A.3):
//! rows with a cosine above the threshold to an evaluation row, and all that are joined to them by copies in the pool.

use std::path::PathBuf;

use clap::Args;
use macula_eval::curation::{Components, Search, Searcher};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::dedup::{check_threshold, join_neighbours, search};
use super::input::{InputOptions, Pool, open_other};
use super::pairs::{self, Pair};
use super::{Judged, Step};
use crate::cluster::OneRank;
use crate::{Error, Result, rng};

/// Evaluation rows listed for a row of the pool at most.
const PAIRS_PER_ROW: usize = 4;

/// Settings of `curate overlap`.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OverlapOptions {
    /// Feature folders of evaluation sets, all of their splits; may be given more than once
    #[arg(long, value_name = "FEATURES", required = true)]
    pub against: Vec<PathBuf>,
    /// Rows with a cosine similarity above this to an evaluation row match it, -1 to 1
    #[arg(long, default_value_t = Self::default().threshold, allow_negative_numbers = true)]
    pub threshold: f64,
    /// Rows of the pool above this belong to one component, 1 for none but the row itself [default: --threshold]
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true)]
    pub component_threshold: Option<f64>,
    /// Nearest neighbours looked at within the pool
    #[arg(long, default_value_t = Self::default().k)]
    pub k: usize,
    /// How neighbours are found: auto (exact up to 50,000 rows, else lists), exact, lists, hnsw
    #[arg(long, value_parser = search, default_value = "auto")]
    pub search: Search,
}

impl Default for OverlapOptions {
    fn default() -> Self {
        Self {
            against: Vec::new(),
            threshold: 0.45,
            component_threshold: None,
            k: 64,
            search: Search::Auto,
        }
    }
}

impl Step for OverlapOptions {
    fn name(&self) -> &'static str {
        "overlap"
    }

    fn settings(&self) -> Value {
        json!(self)
    }

    fn other_inputs(&self) -> Vec<(&'static str, PathBuf)> {
        self.against
            .iter()
            .map(|path| ("against", path.clone()))
            .collect()
    }

    fn judge(&self, input: &InputOptions, seed: u64) -> Result<Judged> {
        check_threshold("threshold", self.threshold)?;
        let within = self.component_threshold.unwrap_or(self.threshold);
        check_threshold("component_threshold", within)?;
        if self.against.is_empty() {
            return Err(Error::input(
                "against",
                "expected the features of an evaluation set, found none",
            ));
        }
        let mut pool = Pool::open(input)?;
        let seed = rng::derived_seed(seed, "curate-overlap");
        let n = pool.len();
        let mut others: Vec<(String, Pool)> = Vec::with_capacity(self.against.len());
        for path in &self.against {
            let other = open_other("against", path, None, input.column.as_deref(), &pool)?;
            others.push((path.display().to_string(), other));
        }
        let pairs = self.matches(&pool, &others, seed)?;
        // The pairs of a row come from near to far: the first is its nearest.
        let mut nearest: Vec<Option<&Pair>> = vec![None; n];
        for pair in &pairs {
            nearest[pair.place].get_or_insert(pair);
        }
        let matched = nearest.iter().flatten().count();

        let mut components = Components::new(n);
        // No cosine is above 1 but by rounding.
        if within < 1.0 && matched > 0 {
            let searcher = Searcher::new(pool.unit.view(), self.search, seed)?;
            join_neighbours(
                &searcher,
                &mut components,
                self.k,
                within as f32,
                &OneRank,
                |_, _| {},
            )?;
        }
        let (numbers, count) = components.numbered();
        let mut spoiled: Vec<Option<&Pair>> = vec![None; count];
        for pair in &pairs {
            spoiled[numbers[pair.place] as usize].get_or_insert(pair);
        }

        let table = pairs::table(&pairs, &pool, &others)?;
        let title = format!("Overlap above cosine {}", self.threshold);
        let sheet = (!pairs.is_empty()).then(|| pairs::sheet(&pairs, &pool, &others, title));
        let rows: Vec<u64> = (0..n).map(|place| pool.row(place)).collect();
        let mut ledger = pool.ledger("component");
        for place in 0..n {
            let all = pool.judged[place];
            ledger.groups[all] = Some(numbers[place]);
            if let Some(pair) = nearest[place] {
                ledger.drop_row(all, format!("matches {}", others[pair.other.0].0));
                ledger.of[all] = Some(others[pair.other.0].1.row(pair.other.1));
                ledger.similarities[all] = Some(pair.similarity);
            } else if let Some(pair) = spoiled[numbers[place] as usize] {
                ledger.drop_row(all, "component of a match");
                ledger.of[all] = Some(rows[pair.place]);
            }
        }
        let removed = n - ledger.n_kept();
        let mut judged = Judged::new(ledger, pool.into_origin());
        judged.count("matched", matched);
        judged.count("by_component", removed - matched);
        judged.count("pairs", pairs.len());
        judged.count(
            "evaluation_rows",
            others.iter().map(|(_, other)| other.len()).sum::<usize>(),
        );
        judged.tables.push(("pairs".to_owned(), table));
        match sheet {
            None => {}
            Some(Ok(sheet)) => judged.sheets.push(("pairs".to_owned(), sheet)),
            Some(Err(error)) => judged.notes.push(format!("no contact sheet: {error}")),
        }
        if removed > 2 * matched && removed > n / 20 {
            judged.notes.push(format!(
                "{matched} rows match and {removed} go with their components: with these features a cosine of {within} \
                 chains what are no copies; raise --component-threshold"
            ));
        }
        Ok(judged)
    }
}

impl OverlapOptions {
    /// Pairs above the threshold, the most similar first.
    fn matches(&self, pool: &Pool, others: &[(String, Pool)], seed: u64) -> Result<Vec<Pair>> {
        let mut pairs: Vec<Pair> = Vec::new();
        for (number, (_, other)) in others.iter().enumerate() {
            let searcher = Searcher::new(other.unit.view(), self.search, seed)?;
            searcher.search(
                pool.unit.view(),
                PAIRS_PER_ROW,
                self.threshold as f32,
                |place, hits| {
                    pairs.extend(hits.iter().map(|hit| Pair {
                        place,
                        other: (number, hit.row as usize),
                        similarity: hit.similarity,
                    }));
                },
            )?;
        }
        pairs.sort_by(|a, b| {
            b.similarity
                .total_cmp(&a.similarity)
                .then(a.place.cmp(&b.place))
                .then(a.other.cmp(&b.other))
        });
        Ok(pairs)
    }
}
