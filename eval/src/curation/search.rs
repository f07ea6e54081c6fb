//! Neighbours above a similarity: for each query at most `k` rows of a database whose inner product with it is greater
//! than a threshold, best first. Three ways to find them: against every row, in the nearest of many inverted lists, or by
//! a walk through a graph. Rows and queries are unit vectors, so that the inner product is the cosine.

use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::lists::{InvertedLists, ListsConfig};
use crate::index::{Hit, HnswConfig, HnswIndex, Index};
use crate::linalg::nearest_neighbours;
use crate::{Matrix, MatrixView, Result, Share};

/// Rows up to which [`Search::Auto`] compares with every row: a minute on two cores at width 384.
pub const EXACT_ROWS: usize = 50_000;
/// Queries searched at a time: their hits are held, `k` of 8 bytes each.
const QUERY_BLOCK: usize = 8192;
/// The narrowest walk through a graph.
const MIN_EF: usize = 128;

/// How neighbours are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// `exact` up to [`EXACT_ROWS`] rows, `lists` above.
    #[default]
    Auto,
    /// Every query against every row.
    Exact,
    /// Every query against the rows of the lists nearest to it (an inverted file): misses pairs whose rows lie far apart
    /// in the clustering, few at a high threshold.
    Lists,
    /// A graph (HNSW); differs a little from run to run on several threads.
    Hnsw,
}

impl Search {
    /// The method for a database of `rows`: what was asked for, or by size.
    pub fn resolved(self, rows: usize) -> Self {
        match self {
            Self::Auto if rows <= EXACT_ROWS => Self::Exact,
            Self::Auto => Self::Lists,
            chosen => chosen,
        }
    }

    /// Name as in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Exact => "exact",
            Self::Lists => "lists",
            Self::Hnsw => "hnsw",
        }
    }
}

/// A database made ready for one method. Where processes divide its rows, lists leave them where they are, and the other methods let
/// every process have all.
pub struct Searcher<'a> {
    database: Share<'a>,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Exact(Whole<'a>),
    Lists(InvertedLists<'a>),
    Graph(Index, Whole<'a>),
}

/// All rows of a database.
enum Whole<'a> {
    Here(MatrixView<'a>),
    Gathered(Matrix),
}

impl<'a> Whole<'a> {
    fn of(database: &Share<'a>) -> Result<Self> {
        if database.team().size() == 1 {
            return Ok(Self::Here(database.rows()));
        }
        let all: Vec<usize> = (0..database.total()).collect();
        database.select(&all).map(Self::Gathered)
    }

    fn view(&self) -> MatrixView<'_> {
        match self {
            Self::Here(view) => *view,
            Self::Gathered(matrix) => matrix.view(),
        }
    }
}

impl<'a> Searcher<'a> {
    /// Prepares `database` (unit rows) for `search`; `seed` is that of the lists' clustering.
    ///
    /// # Errors
    /// No row, NaN or infinity.
    pub fn new(database: MatrixView<'a>, search: Search, seed: u64) -> Result<Self> {
        Self::shared(&Share::alone(database), search, seed)
    }

    /// As [`Self::new`], where each process has a share of the rows.
    ///
    /// # Errors
    /// As [`Self::new`]; processes that cannot reach each other.
    pub fn shared(database: &Share<'a>, search: Search, seed: u64) -> Result<Self> {
        let kind = match search.resolved(database.total()) {
            Search::Exact | Search::Auto => Kind::Exact(Whole::of(database)?),
            Search::Lists => Kind::Lists(InvertedLists::build(database, &ListsConfig::default(), seed)?),
            Search::Hnsw => {
                let whole = Whole::of(database)?;
                let graph = HnswIndex::build(whole.view(), &HnswConfig::default(), |_| {})?;
                Kind::Graph(Index::Hnsw(graph), whole)
            }
        };
        Ok(Self {
            database: *database,
            kind,
        })
    }

    /// The method in use.
    pub fn method(&self) -> Search {
        match self.kind {
            Kind::Exact(_) => Search::Exact,
            Kind::Lists(_) => Search::Lists,
            Kind::Graph(..) => Search::Hnsw,
        }
    }

    /// Visits the neighbours of every query: `visit(query, hits)`, each query once, in no promised order, `hits` being at
    /// most `k` rows with a similarity above `threshold`, best first. Queries without a hit may be passed over. For one process.
    ///
    /// # Errors
    /// Widths that differ, `k` of 0, NaN or infinity.
    pub fn search(
        &self,
        queries: MatrixView<'_>,
        k: usize,
        threshold: f32,
        mut visit: impl FnMut(usize, &[Hit]),
    ) -> Result<()> {
        check(k)?;
        match &self.kind {
            Kind::Lists(lists) => lists.search(queries, k, threshold, visit),
            _ => self.blocks(queries, 0, k, |query, mut hits| {
                hits.retain(|hit| hit.similarity > threshold);
                visit(query, &hits);
            }),
        }
    }

    /// As [`Self::search`] for the database's own rows, each without itself. Every process visits some of them, and all of them
    /// together each row once. `progress` hears how many are done here.
    ///
    /// # Errors
    /// As [`Self::search`]; processes that cannot reach each other.
    pub fn search_itself(
        &self,
        k: usize,
        threshold: f32,
        mut progress: impl FnMut(usize),
        mut visit: impl FnMut(usize, &[Hit]),
    ) -> Result<()> {
        check(k)?;
        let mut done = 0;
        let mut counted = |query: usize, hits: &[Hit]| {
            done += 1;
            if done % QUERY_BLOCK == 0 {
                progress(done);
            }
            visit(query, hits);
        };
        let whole = match &self.kind {
            Kind::Lists(lists) => return lists.search_itself(k, threshold, counted),
            Kind::Exact(whole) | Kind::Graph(_, whole) => whole.view(),
        };
        let range = Share::range(whole.rows(), self.database.team());
        self.blocks(
            whole.range(range.clone()),
            range.start,
            k + 1,
            |query, mut hits| {
                hits.retain(|hit| hit.similarity > threshold && hit.row as usize != query);
                hits.truncate(k);
                counted(query, &hits);
            },
        )
    }

    /// The `k` nearest of each of `queries`, which are numbered from `first` on, best first.
    fn blocks(
        &self,
        queries: MatrixView<'_>,
        first: usize,
        k: usize,
        mut visit: impl FnMut(usize, Vec<Hit>),
    ) -> Result<()> {
        let k = k.min(self.database.total());
        for start in (0..queries.rows()).step_by(QUERY_BLOCK) {
            let block = queries.range(start..(start + QUERY_BLOCK).min(queries.rows()));
            for (place, hits) in self.block(block, k)?.into_iter().enumerate() {
                visit(first + start + place, hits);
            }
        }
        Ok(())
    }

    /// The `k` nearest of each query of a block, best first.
    fn block(&self, queries: MatrixView<'_>, k: usize) -> Result<Vec<Vec<Hit>>> {
        match &self.kind {
            Kind::Graph(index, _) => index.search(queries, k, (2 * k).max(MIN_EF)),
            Kind::Exact(whole) => exact(queries, whole.view(), k),
            Kind::Lists(_) => Ok(Vec::new()),
        }
    }
}

fn check(k: usize) -> Result<()> {
    match k {
        0 => Err(crate::Error::config(
            "k",
            "expected at least 1 neighbour, found 0",
        )),
        _ => Ok(()),
    }
}

/// The `k` rows of `database` nearest to each query, best first.
fn exact(queries: MatrixView<'_>, database: MatrixView<'_>, k: usize) -> Result<Vec<Vec<Hit>>> {
    let found = nearest_neighbours(queries, database, k)?;
    let hits = |query| {
        let pairs = found.indices_of(query).iter().zip(found.similarities_of(query));
        pairs.map(|(&row, &similarity)| Hit { row, similarity }).collect()
    };
    Ok((0..queries.rows()).map(hits).collect())
}

/// Some rows of a database, on which the recall of an inexact search is measured.
pub struct EdgeSample {
    /// Their places among all, rising.
    rows: Vec<usize>,
    /// Neighbours of them that the search has found here.
    found: usize,
}

impl EdgeSample {
    /// `sample` of `total` rows, drawn by `seed`.
    pub fn draw(total: usize, sample: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rows = index::sample(&mut rng, total, sample.min(total)).into_vec();
        rows.sort_unstable();
        Self { rows, found: 0 }
    }

    /// Takes notice of what a search has found for `row`.
    pub fn see(&mut self, row: usize, hits: &[Hit]) {
        if self.rows.binary_search(&row).is_ok() {
            self.found += hits.len();
        }
    }

    /// The share of the rows' neighbours above `threshold`, at most `k` a row, that the processes of `database` have seen together;
    /// none where these rows have no such neighbour.
    ///
    /// # Errors
    /// As [`Searcher::search`]; processes that cannot reach each other.
    pub fn recall(&self, database: &Share<'_>, k: usize, threshold: f32) -> Result<Option<f64>> {
        let queries = database.select(&self.rows)?;
        let (own, first) = (database.rows(), database.first());
        let near = match (k + 1).min(own.rows()) {
            0 => vec![Vec::new(); self.rows.len()],
            most => exact(queries.view(), own, most)?,
        };
        // Of each row, then what was found of all.
        let mut counts: Vec<f64> = near
            .iter()
            .zip(&self.rows)
            .map(|(hits, &row)| {
                let other = |hit: &&Hit| hit.similarity > threshold && first + hit.row as usize != row;
                hits.iter().filter(other).count() as f64
            })
            .collect();
        counts.push(self.found as f64);
        database.team().sum(&mut counts)?;
        let found = counts.pop().unwrap_or_default();
        let all: f64 = counts.iter().map(|&count| count.min(k as f64)).sum();
        // Rounding may put a pair on either side of the threshold.
        Ok((all > 0.0).then(|| (found / all).min(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curation::testing::{clustered, dot};
    use crate::team::threads::on_team;

    type Edges = Vec<(usize, u32)>;

    fn edges(searcher: &Searcher<'_>, k: usize, threshold: f32) -> Edges {
        let mut found = Vec::new();
        let visit = |query: usize, hits: &[Hit]| {
            assert!(
                hits.windows(2)
                    .all(|pair| pair[0].similarity >= pair[1].similarity)
            );
            found.extend(hits.iter().map(|hit| (query, hit.row)));
        };
        searcher.search_itself(k, threshold, |_| {}, visit).unwrap();
        found.sort_unstable();
        found
    }

    fn naive(rows: MatrixView<'_>, k: usize, threshold: f64) -> Edges {
        let mut edges = Vec::new();
        for query in 0..rows.rows() {
            let mut near: Vec<(f64, u32)> = (0..rows.rows())
                .filter(|&row| row != query)
                .map(|row| (dot(rows.row(query), rows.row(row)), row as u32))
                .filter(|pair| pair.0 > threshold)
                .collect();
            near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            edges.extend(near.iter().take(k).map(|&(_, row)| (query, row)));
        }
        edges.sort_unstable();
        edges
    }

    #[test]
    fn processes_find_together_what_one_finds() {
        let rows = clustered(2 * Share::BLOCK + 100, 8, 300, 0.1, 5);
        for search in [Search::Exact, Search::Lists] {
            let find = |share: &Share<'_>| {
                let searcher = Searcher::shared(share, search, 3).unwrap();
                let mut sample = EdgeSample::draw(share.total(), 200, 4);
                let mut found = Vec::new();
                let visit = |query: usize, hits: &[Hit]| {
                    sample.see(query, hits);
                    let bits = |hit: &Hit| (query, hit.row, hit.similarity.to_bits());
                    found.extend(hits.iter().map(bits));
                };
                searcher.search_itself(5, 0.5, |_| {}, visit).unwrap();
                (found, sample.recall(share, 5, 0.5).unwrap())
            };
            let (mut expected, recall) = find(&Share::alone(rows.view()));
            expected.sort_unstable();
            assert!(!expected.is_empty() && recall.is_some_and(|recall| recall > 0.9));
            for size in [2, 3, 4] {
                let found = on_team(size, |team| find(&Share::of_all(rows.view(), team)));
                assert!(found.iter().all(|found| found.1 == recall), "{search:?}");
                let mut found: Vec<_> = found.into_iter().flat_map(|found| found.0).collect();
                found.sort_unstable();
                assert!(found == expected, "{search:?} on {size}");
            }
        }
    }

    #[test]
    fn exact_edges_are_those_of_two_loops() {
        let rows = clustered(300, 24, 20, 0.4, 1);
        for (k, threshold) in [(64, 0.6), (3, 0.6), (64, -0.2), (400, 0.9)] {
            let searcher = Searcher::new(rows.view(), Search::Exact, 0).unwrap();
            let expected = naive(rows.view(), k, f64::from(threshold));
            assert_eq!(edges(&searcher, k, threshold), expected, "{k} {threshold}");
            assert!(!expected.is_empty());
        }
    }

    #[test]
    fn lists_and_graph_find_nearly_all() {
        let rows = clustered(4000, 32, 300, 0.5, 2);
        let exact: std::collections::BTreeSet<_> = naive(rows.view(), 64, 0.6).into_iter().collect();
        assert!(exact.len() > 10_000, "{}", exact.len());
        for method in [Search::Lists, Search::Hnsw] {
            let searcher = Searcher::new(rows.view(), method, 5).unwrap();
            assert_eq!(searcher.method(), method);
            let found: std::collections::BTreeSet<_> = edges(&searcher, 64, 0.6).into_iter().collect();
            let right = found.intersection(&exact).count();
            assert!(
                right as f64 > 0.99 * exact.len() as f64,
                "{method:?}: {right} of {}",
                exact.len()
            );
            // A pair within rounding of the threshold or of the k-th place may be new; no more.
            assert!(
                found.len() - right <= 20,
                "{method:?}: {} spare",
                found.len() - right
            );
            let share = Share::alone(rows.view());
            let mut sample = EdgeSample::draw(4000, 400, 9);
            let see = |row: usize, hits: &[Hit]| sample.see(row, hits);
            searcher.search_itself(64, 0.6, |_| {}, see).unwrap();
            let recall = sample.recall(&share, 64, 0.6).unwrap().unwrap();
            assert!(recall > 0.98, "{method:?}: {recall}");
        }
    }

    #[test]
    fn lists_do_not_depend_on_threads() {
        let rows = clustered(2000, 16, 50, 0.4, 3);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| edges(&Searcher::new(rows.view(), Search::Lists, 1).unwrap(), 8, 0.7))
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn size_decides_where_nothing_else_does() {
        assert_eq!(Search::Auto.resolved(EXACT_ROWS), Search::Exact);
        assert_eq!(Search::Auto.resolved(EXACT_ROWS + 1), Search::Lists);
        assert_eq!(Search::Hnsw.resolved(3), Search::Hnsw);
        let rows = clustered(5, 4, 2, 0.1, 1);
        let searcher = Searcher::new(rows.view(), Search::Auto, 0).unwrap();
        assert!(searcher.search(rows.view(), 0, 0.5, |_, _| {}).is_err());
        // More neighbours than rows is no error: there are as many as there are.
        searcher
            .search(rows.view(), 64, -2.0, |_, hits| assert_eq!(hits.len(), 5))
            .unwrap();
    }
}
