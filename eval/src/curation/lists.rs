//! An inverted file: rows in lists around the centroids of a k-means, queries compared with the rows of the few lists
//! nearest to them. Queries of one list are searched together, so that the work is matrix products and the memory beside
//! the rows is a few MiB a thread. The rows are not copied. (Jégou, Douze & Schmid 2011, without product quantisation.)
//!
//! Processes that divide the rows show each other those of some lists at a time, and each looks among them for the neighbours of its
//! own rows.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::index::Hit;
use crate::linalg::filled_up;
use crate::linalg::gemm::{Operand, Threads, matmul};
use crate::linalg::kmeans::{KMeansConfig, assign, by_cluster, kmeans_of};
use crate::linalg::topk::{self, Reservoir};
use crate::{Error, Matrix, MatrixView, Result, Share};

use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Queries searched together.
const QUERIES: usize = 256;
/// Rows of a list in one product, whole tiles of them.
const ROWS: usize = 6 * TILE;
/// Rows in one product are a multiple of this, the rest being zeros, and queries at least so many: then the product of a pair is the same
/// to the bit whatever it is computed with (`linalg::neighbours`). Products of up to 256 values have a kernel of their own.
const TILE: usize = 96;
const FEWEST_QUERIES: usize = 3;
/// Groups of queries whose hits are held before they are visited, for each thread.
const GROUPS_PER_THREAD: usize = 16;
/// Rows for each centroid that the clustering is trained on.
const TRAINING_ROWS: usize = 32;
/// Rows for each centroid that the first centroids are chosen among.
const SEEDING_ROWS: usize = 8;
/// A list of a query with more hits than this many times `k` is cut back to `k`.
const SURPLUS: usize = 4;
/// Rows that processes show each other at a time.
const SHOWN_ROWS: usize = 1 << 15;

/// How lists are made and searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListsConfig {
    /// Number of lists; none (the default) for twice the square root of the rows.
    pub lists: Option<usize>,
    /// Lists a query is compared with, 16 by default.
    pub probes: usize,
    /// Lloyd iterations of the clustering, 8 by default.
    pub iterations: usize,
}

impl Default for ListsConfig {
    fn default() -> Self {
        Self {
            lists: None,
            probes: 16,
            iterations: 8,
        }
    }
}

/// Rows in lists, which every process knows; it holds its share of the rows.
pub struct InvertedLists<'a> {
    database: Share<'a>,
    centroids: Matrix,    // [lists, d]
    half_norms: Vec<f32>, // [lists]
    rows: Vec<u32>,       // of one list after the other
    starts: Vec<usize>,   // [lists + 1]
    probes: usize,
}

/// Queries of one list, and what has been found of them so far.
struct Group {
    /// Their places among the queries.
    members: Vec<u32>,
    /// (list, place in the group) for the lists nearest to each query, sorted.
    probed: Vec<(u32, u32)>,
    /// Keys (`topk`) of what each query has found.
    keys: Vec<Vec<u64>>,
}

/// The lists whose rows can be looked at.
enum Open<'a> {
    /// All, in the order of the database.
    All(MatrixView<'a>),
    /// Some, one after the other, from a place in the order of lists on.
    Some {
        lists: Range<usize>,
        from: usize,
        rows: MatrixView<'a>,
    },
}

impl<'a> InvertedLists<'a> {
    /// Clusters the rows of all processes into lists; `seed` draws the rows that the clustering sees.
    ///
    /// # Errors
    /// No row, no list or probe, more lists than rows, NaN or infinity, processes that cannot reach each other.
    pub fn build(database: &Share<'a>, config: &ListsConfig, seed: u64) -> Result<Self> {
        let n = database.total();
        let by_size = (2.0 * (n as f64).sqrt()) as usize;
        let k = config.lists.unwrap_or_else(|| by_size.min(n / 4).max(1));
        if config.probes == 0 {
            return Err(Error::config("probes", "expected at least 1 list, found 0"));
        }
        let settings = KMeansConfig {
            k,
            iterations: config.iterations,
            seeding_rows: Some(SEEDING_ROWS * k),
            seed,
        };
        let centroids = match TRAINING_ROWS * k {
            few if few < n => {
                let drawn = index::sample(&mut ChaCha8Rng::seed_from_u64(seed), n, few).into_vec();
                let drawn = database.select(&drawn)?;
                kmeans_of(&Share::of_all(drawn.view(), database.team()), &settings)?.centroids
            }
            _ => kmeans_of(database, &settings)?.centroids,
        };
        let own = assign(database.rows(), centroids.view())?.clusters;
        let (rows, starts) = by_cluster(&database.team().gather_numbers(&own)?, k);
        let half_norm = |row: &[f32]| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / 2.0;
        let half_norms = (0..k)
            .map(|list| half_norm(centroids.view().row(list)) as f32)
            .collect();
        Ok(Self {
            database: *database,
            centroids,
            half_norms,
            rows,
            starts,
            probes: config.probes.min(k),
        })
    }

    /// As `Searcher::search`, of one process.
    pub(super) fn search(
        &self,
        queries: MatrixView<'_>,
        k: usize,
        threshold: f32,
        visit: impl FnMut(usize, &[Hit]),
    ) -> Result<()> {
        let nearest = assign(queries, self.centroids.view())?.clusters;
        let (order, starts) = by_cluster(&nearest, self.starts.len() - 1);
        let groups = grouped(&order, &starts, 0..queries.rows());
        self.stream(queries, groups, None, (k, threshold), visit);
        Ok(())
    }

    /// As `Searcher::search_itself`.
    pub(super) fn search_itself(
        &self,
        k: usize,
        threshold: f32,
        mut visit: impl FnMut(usize, &[Hit]),
    ) -> Result<()> {
        let first = self.database.first();
        let own = self.database.rows();
        let groups = grouped(&self.rows, &self.starts, first..first + own.rows());
        if self.database.team().size() == 1 {
            self.stream(own, groups, Some(0), (k, threshold), visit);
            return Ok(());
        }
        let mut groups: Vec<Group> = groups
            .into_par_iter()
            .map(|members| self.group(own, members))
            .collect();
        for lists in self.rounds() {
            let from = self.starts[lists.start];
            let shown = &self.rows[from..self.starts[lists.end]];
            let shown: Vec<usize> = shown.iter().map(|&row| row as usize).collect();
            let rows = self.database.select(&shown)?;
            let open = Open::Some {
                lists,
                from,
                rows: rows.view(),
            };
            groups
                .par_iter_mut()
                .for_each(|group| self.look(own, group, &open, Some(first), (k, threshold)));
        }
        for group in groups {
            for (&member, keys) in group.members.iter().zip(group.keys) {
                visit(first + member as usize, &best_first(keys, k));
            }
        }
        Ok(())
    }

    /// Searches all lists, which are here, some groups at a time.
    fn stream(
        &self,
        queries: MatrixView<'_>,
        groups: Vec<Vec<u32>>,
        own: Option<usize>,
        (k, threshold): (usize, f32),
        mut visit: impl FnMut(usize, &[Hit]),
    ) {
        let open = Open::All(self.database.rows());
        for groups in groups.chunks(GROUPS_PER_THREAD * rayon::current_num_threads()) {
            let found: Vec<Group> = groups
                .par_iter()
                .map(|members| {
                    let mut group = self.group(queries, members.clone());
                    self.look(queries, &mut group, &open, own, (k, threshold));
                    group
                })
                .collect();
            for group in found {
                for (&member, keys) in group.members.iter().zip(group.keys) {
                    visit(member as usize, &best_first(keys, k));
                }
            }
        }
    }

    /// Lists in the order of their numbers, as many as may be shown at a time.
    fn rounds(&self) -> Vec<Range<usize>> {
        let mut rounds: Vec<Range<usize>> = Vec::new();
        for list in 0..self.half_norms.len() {
            match rounds.last_mut() {
                Some(round) if self.starts[list + 1] - self.starts[round.start] <= SHOWN_ROWS => {
                    round.end = list + 1;
                }
                _ => rounds.push(list..list + 1),
            }
        }
        rounds
    }

    /// The queries `members`, nothing found yet.
    fn group(&self, queries: MatrixView<'_>, members: Vec<u32>) -> Group {
        let lists = self.half_norms.len();
        let dim = queries.dim();
        let block = gathered(queries, &members); // [members, d]
        let mut scores = product(&block, self.centroids.view().data(), dim); // [members.., lists..]
        let width = scores.len() / members.len().max(FEWEST_QUERIES);
        let mut probed = Vec::with_capacity(members.len() * self.probes);
        for (member, scores) in scores.chunks_exact_mut(width).take(members.len()).enumerate() {
            for (score, half_norm) in scores.iter_mut().zip(&self.half_norms) {
                *score -= half_norm;
            }
            let mut best = Reservoir::new(self.probes);
            best.offer(&scores[..lists], 0);
            let best = best.into_keys();
            probed.extend(best.iter().map(|&key| (topk::index(key), member as u32)));
        }
        probed.sort_unstable();
        Group {
            keys: vec![Vec::new(); members.len()],
            members,
            probed,
        }
    }

    /// Compares the queries of a group with the rows of those of their lists that are open. Where `own` is given, a query is the row
    /// so many places behind its own, and no neighbour of itself.
    fn look(
        &self,
        queries: MatrixView<'_>,
        group: &mut Group,
        open: &Open<'_>,
        own: Option<usize>,
        (k, threshold): (usize, f32),
    ) {
        for same_list in group.probed.chunk_by(|a, b| a.0 == b.0) {
            let list = same_list[0].0 as usize;
            if !open.has(list) {
                continue;
            }
            let chosen: Vec<u32> = same_list
                .iter()
                .map(|&(_, place)| group.members[place as usize])
                .collect();
            let block = gathered(queries, &chosen); // [chosen, d]
            for from in (self.starts[list]..self.starts[list + 1]).step_by(ROWS) {
                let places = from..(from + ROWS).min(self.starts[list + 1]);
                let rows = &self.rows[places.clone()];
                let products = product(&block, &open.rows(rows, places), queries.dim());
                let width = products.len() / chosen.len().max(FEWEST_QUERIES);
                for (scores, &(_, place)) in products.chunks_exact(width).zip(same_list) {
                    let itself = own.map(|first| (first + group.members[place as usize] as usize) as u32);
                    let keys = &mut group.keys[place as usize];
                    for (&score, &row) in scores.iter().zip(rows) {
                        if score > threshold && Some(row) != itself {
                            keys.push(topk::key(score, row));
                        }
                    }
                    if keys.len() > SURPLUS * k {
                        topk::keep_top(keys, k);
                    }
                }
            }
        }
    }
}

impl Open<'_> {
    fn has(&self, list: usize) -> bool {
        match self {
            Self::All(_) => true,
            Self::Some { lists, .. } => lists.contains(&list),
        }
    }

    /// The features of `rows`, which are at `places` in the order of lists.
    fn rows(&self, rows: &[u32], places: Range<usize>) -> Cow<'_, [f32]> {
        match self {
            Self::All(database) => Cow::Owned(gathered(*database, rows)),
            Self::Some { from, rows, .. } => {
                Cow::Borrowed(rows.range(places.start - from..places.end - from).data())
            }
        }
    }
}

/// The rows of `range` among `order`, list by list, a few at a time; by their places in the range.
fn grouped(order: &[u32], starts: &[usize], range: Range<usize>) -> Vec<Vec<u32>> {
    let of_list = |ends: &[usize]| -> Vec<Vec<u32>> {
        let list = order[ends[0]..ends[1]].iter().map(|&row| row as usize);
        let here: Vec<u32> = list
            .filter(|row| range.contains(row))
            .map(|row| (row - range.start) as u32)
            .collect();
        here.chunks(QUERIES).map(<[u32]>::to_vec).collect()
    };
    starts.windows(2).flat_map(of_list).collect()
}

fn best_first(mut keys: Vec<u64>, k: usize) -> Vec<Hit> {
    topk::keep_top(&mut keys, k);
    keys.sort_unstable_by(|a, b| b.cmp(a));
    let hit = |&key: &u64| Hit {
        row: topk::index(key),
        similarity: topk::similarity(key),
    };
    keys.iter().map(hit).collect()
}

fn gathered(rows: MatrixView<'_>, places: &[u32]) -> Vec<f32> {
    let mut copied = Vec::with_capacity(places.len() * rows.dim());
    for &place in places {
        copied.extend_from_slice(rows.row(place as usize));
    }
    copied
}

/// Inner products of the rows of `a` and `b`, `[n, m]`, where n is at least [`FEWEST_QUERIES`] and m a multiple of [`TILE`].
fn product(a: &[f32], b: &[f32], dim: usize) -> Vec<f32> {
    let (a, b) = (
        filled_up(a, FEWEST_QUERIES * dim),
        filled_up(b, b.len().next_multiple_of(TILE * dim)),
    );
    let (n, m) = (a.len() / dim, b.len() / dim);
    let mut products = vec![0.0f32; n * m];
    matmul(
        &mut products,
        Operand::row_major(&a, n, dim),
        Operand::row_major(&b, m, dim).transposed(),
        Threads::One,
    );
    products
}
