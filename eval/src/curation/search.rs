//! Neighbours above a similarity: for each query at most `k` rows of a database whose inner product with it is greater
//! than a threshold, best first. Three ways to find them: against every row, in the nearest of many inverted lists, or by
//! a walk through a graph. Rows and queries are unit vectors, so that the inner product is the cosine.

use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::lists::{InvertedLists, ListsConfig};
use super::team::{Alone, Team};
use crate::index::{Hit, HnswConfig, HnswIndex, Index};
use crate::linalg::nearest_neighbours;
use crate::{MatrixView, Result};

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

/// A database made ready for one method.
#[derive(Debug)]
pub struct Searcher<'a> {
    database: MatrixView<'a>,
    kind: Kind<'a>,
}

#[derive(Debug)]
enum Kind<'a> {
    Exact,
    Lists(InvertedLists<'a>),
    Graph(Index),
}

impl<'a> Searcher<'a> {
    /// Prepares `database` (unit rows) for `search`; `seed` is that of the lists' clustering.
    ///
    /// # Errors
    /// No row, NaN or infinity.
    pub fn new(database: MatrixView<'a>, search: Search, seed: u64) -> Result<Self> {
        Self::shared(database, search, seed, &Alone)
    }

    /// As [`Self::new`], where the processes of `team` prepare the same rows together.
    ///
    /// # Errors
    /// As [`Self::new`]; processes that cannot reach each other.
    pub fn shared(database: MatrixView<'a>, search: Search, seed: u64, team: &dyn Team) -> Result<Self> {
        let kind = match search.resolved(database.rows()) {
            Search::Exact | Search::Auto => Kind::Exact,
            Search::Lists => Kind::Lists(InvertedLists::build(
                database,
                &ListsConfig::default(),
                seed,
                team,
            )?),
            Search::Hnsw => {
                let graph = HnswIndex::build(database, &HnswConfig::default(), |_| {})?;
                Kind::Graph(Index::Hnsw(graph))
            }
        };
        Ok(Self { database, kind })
    }

    /// The method in use.
    pub fn method(&self) -> Search {
        match self.kind {
            Kind::Exact => Search::Exact,
            Kind::Lists(_) => Search::Lists,
            Kind::Graph(_) => Search::Hnsw,
        }
    }

    /// Visits the neighbours of every query: `visit(query, hits)`, each query once, in no promised order, `hits` being at
    /// most `k` rows with a similarity above `threshold`, best first. Queries without a hit may be passed over.
    ///
    /// # Errors
    /// Widths that differ, `k` of 0, NaN or infinity.
    pub fn search(
        &self,
        queries: MatrixView<'_>,
        k: usize,
        threshold: f32,
        visit: impl FnMut(usize, &[Hit]),
    ) -> Result<()> {
        self.run(queries, None, &Alone, k, threshold, visit)
    }

    /// As [`Self::search`] for the database's own rows, each without itself. Every process of `team` visits some of them, and all of
    /// them together each row once. `progress` hears how many are done here.
    ///
    /// # Errors
    /// As [`Self::search`].
    pub fn search_itself(
        &self,
        team: &dyn Team,
        k: usize,
        threshold: f32,
        mut progress: impl FnMut(usize),
        mut visit: impl FnMut(usize, &[Hit]),
    ) -> Result<()> {
        let rows: Vec<u32> = (0..self.database.rows() as u32).collect();
        let mut done = 0;
        self.run(self.database, Some(&rows), team, k, threshold, |query, hits| {
            done += 1;
            if done % QUERY_BLOCK == 0 {
                progress(done);
            }
            visit(query, hits);
        })
    }

    /// Neighbours of this process's share of `queries`; where `own` is given, query `i` is row `own[i]` of the database and is no
    /// neighbour of its own.
    fn run(
        &self,
        queries: MatrixView<'_>,
        own: Option<&[u32]>,
        team: &dyn Team,
        k: usize,
        threshold: f32,
        mut visit: impl FnMut(usize, &[Hit]),
    ) -> Result<()> {
        if k == 0 {
            return Err(crate::Error::config(
                "k",
                "expected at least 1 neighbour, found 0",
            ));
        }
        if let Kind::Lists(lists) = &self.kind {
            return lists.search(queries, own, team, k, threshold, visit);
        }
        let max = (k + usize::from(own.is_some())).min(self.database.rows());
        let dim = queries.dim();
        let blocks = queries.data().chunks(QUERY_BLOCK * dim).enumerate();
        for (number, block) in blocks.skip(team.rank()).step_by(team.size()) {
            let block = MatrixView::new(block, block.len() / dim, dim)?;
            let first = number * QUERY_BLOCK;
            for (place, found) in self.block(block, max)?.into_iter().enumerate() {
                let query = first + place;
                let itself = own.map(|own| own[query]);
                let mut hits = found;
                hits.retain(|hit| hit.similarity > threshold && Some(hit.row) != itself);
                hits.truncate(k);
                visit(query, &hits);
            }
        }
        Ok(())
    }

    /// The `k` nearest of each query of a block, best first.
    fn block(&self, queries: MatrixView<'_>, k: usize) -> Result<Vec<Vec<Hit>>> {
        if let Kind::Graph(index) = &self.kind {
            return index.search(queries, k, (2 * k).max(MIN_EF));
        }
        let found = nearest_neighbours(queries, self.database, k)?;
        let hits = |query| {
            let pairs = found.indices_of(query).iter().zip(found.similarities_of(query));
            pairs.map(|(&row, &similarity)| Hit { row, similarity }).collect()
        };
        Ok((0..queries.rows()).map(hits).collect())
    }
}

/// The share of neighbours above `threshold` (at most `k` a row) that `searcher` finds, measured on `sample` rows of its
/// database drawn by `seed`; none where these rows have no such neighbour.
///
/// # Errors
/// As [`Searcher::search`].
pub fn edge_recall(
    searcher: &Searcher<'_>,
    k: usize,
    threshold: f32,
    sample: usize,
    seed: u64,
) -> Result<Option<f64>> {
    let database = searcher.database;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let drawn = index::sample(&mut rng, database.rows(), sample.min(database.rows())).into_vec();
    let own: Vec<u32> = drawn.iter().map(|&row| row as u32).collect();
    let queries = database.select(&drawn);
    let exact = Searcher::new(database, Search::Exact, seed)?;
    let count = |searcher: &Searcher<'_>| -> Result<usize> {
        let mut edges = 0;
        searcher.run(queries.view(), Some(&own), &Alone, k, threshold, |_, hits| {
            edges += hits.len()
        })?;
        Ok(edges)
    };
    let all = count(&exact)?;
    if all == 0 {
        return Ok(None);
    }
    // Rounding may put a pair on either side of the threshold.
    Ok(Some((count(searcher)? as f64 / all as f64).min(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curation::testing::{clustered, dot};

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
        searcher
            .search_itself(&Alone, k, threshold, |_| {}, visit)
            .unwrap();
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

    /// One of three processes that know what the others have.
    struct OneOf {
        rank: usize,
        numbers: Vec<u32>,
    }

    impl Team for OneOf {
        fn rank(&self) -> usize {
            self.rank
        }

        fn size(&self) -> usize {
            3
        }

        fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
            let all: Vec<u8> = self
                .numbers
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect();
            // What this process gives is its part of it.
            assert!(all.windows(own.len()).any(|part| part == own));
            Ok(vec![all])
        }
    }

    #[test]
    fn processes_find_together_what_one_finds() {
        let rows = clustered(2_000, 8, 300, 0.1, 5);
        for search in [Search::Exact, Search::Lists] {
            let whole = Searcher::new(rows.view(), search, 3).unwrap();
            let mut expected = Edges::new();
            let visit = |query: usize, hits: &[Hit]| expected.extend(hits.iter().map(|hit| (query, hit.row)));
            whole.search_itself(&Alone, 5, 0.5, |_| {}, visit).unwrap();
            let numbers = match &whole.kind {
                Kind::Lists(lists) => lists.assignment(),
                _ => Vec::new(),
            };
            let mut found = Edges::new();
            for rank in 0..3 {
                let team = OneOf {
                    rank,
                    numbers: numbers.clone(),
                };
                let searcher = Searcher::shared(rows.view(), search, 3, &team).unwrap();
                let visit =
                    |query: usize, hits: &[Hit]| found.extend(hits.iter().map(|hit| (query, hit.row)));
                searcher.search_itself(&team, 5, 0.5, |_| {}, visit).unwrap();
            }
            expected.sort_unstable();
            found.sort_unstable();
            assert!(!expected.is_empty() && found == expected, "{search:?}");
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
            let recall = edge_recall(&searcher, 64, 0.6, 400, 9).unwrap().unwrap();
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
