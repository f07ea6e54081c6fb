//! An inverted file: rows in lists around the centroids of a k-means, queries compared with the rows of the few lists
//! nearest to them. Queries of one list are searched together, so that the work is matrix products and the memory beside
//! the rows is a few MiB a thread. The rows are not copied. (Jégou, Douze & Schmid 2011, without product quantisation.)

use std::borrow::Cow;

use rayon::prelude::*;

use super::team::Team;
use crate::index::Hit;
use crate::linalg::gemm::{Operand, Threads, matmul};
use crate::linalg::kmeans::{KMeansConfig, assign, by_cluster, kmeans};
use crate::linalg::topk::{self, Reservoir};
use crate::{Error, Matrix, MatrixView, Result};

use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Queries searched together.
const QUERIES: usize = 256;
/// Rows of a list in one product.
const ROWS: usize = 512;
/// Rows that one process assigns are a multiple of this: the last rows of a product may be rounded otherwise than the same rows within
/// a longer one.
const ASSIGNED_ROWS: usize = 384;
/// Groups of queries whose hits are held before they are visited, for each thread.
const GROUPS_PER_THREAD: usize = 16;
/// Rows for each centroid that the clustering is trained on.
const TRAINING_ROWS: usize = 32;
/// Rows for each centroid that the first centroids are chosen among.
const SEEDING_ROWS: usize = 8;
/// A list of a query with more hits than this many times `k` is cut back to `k`.
const SURPLUS: usize = 4;

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

/// Rows of a matrix in lists.
#[derive(Debug)]
pub struct InvertedLists<'a> {
    database: MatrixView<'a>,
    centroids: Matrix,    // [lists, d]
    half_norms: Vec<f32>, // [lists]
    rows: Vec<u32>,       // of one list after the other
    starts: Vec<usize>,   // [lists + 1]
    probes: usize,
}

impl<'a> InvertedLists<'a> {
    /// Clusters `database` into lists; `seed` draws the rows that the clustering sees. Each process of `team` finds the lists of some of
    /// the rows.
    ///
    /// # Errors
    /// No row, no list or probe, more lists than rows, NaN or infinity, processes that cannot reach each other.
    pub fn build(database: MatrixView<'a>, config: &ListsConfig, seed: u64, team: &dyn Team) -> Result<Self> {
        let n = database.rows();
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
                kmeans(database.select(&drawn).view(), &settings)?.centroids
            }
            _ => kmeans(database, &settings)?.centroids,
        };
        let clusters = assigned(database, centroids.view(), team)?;
        let (rows, starts) = by_cluster(&clusters, k);
        let half_norm = |row: &[f32]| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / 2.0;
        let half_norms = (0..k)
            .map(|list| half_norm(centroids.view().row(list)) as f32)
            .collect();
        Ok(Self {
            database,
            centroids,
            half_norms,
            rows,
            starts,
            probes: config.probes.min(k),
        })
    }

    /// The list of every row.
    #[cfg(test)]
    pub(super) fn assignment(&self) -> Vec<u32> {
        let mut lists = vec![0; self.rows.len()];
        for (list, ends) in self.starts.windows(2).enumerate() {
            for &row in &self.rows[ends[0]..ends[1]] {
                lists[row as usize] = list as u32;
            }
        }
        lists
    }

    /// As `Searcher::run`.
    pub(super) fn search(
        &self,
        queries: MatrixView<'_>,
        own: Option<&[u32]>,
        team: &dyn Team,
        k: usize,
        threshold: f32,
        mut visit: impl FnMut(usize, &[Hit]),
    ) -> Result<()> {
        let (order, starts) = if own.is_some_and(|own| own.len() == self.rows.len()) {
            // The database's own rows lie in lists already.
            (Cow::Borrowed(&self.rows), Cow::Borrowed(&self.starts))
        } else {
            let nearest = assign(queries, self.centroids.view())?.clusters;
            let (order, starts) = by_cluster(&nearest, self.starts.len() - 1);
            (Cow::Owned(order), Cow::Owned(starts))
        };
        let groups: Vec<&[u32]> = starts
            .windows(2)
            .flat_map(|ends| order[ends[0]..ends[1]].chunks(QUERIES))
            .skip(team.rank())
            .step_by(team.size())
            .collect();
        for groups in groups.chunks(GROUPS_PER_THREAD * rayon::current_num_threads()) {
            let found: Vec<Vec<Vec<Hit>>> = groups
                .par_iter()
                .map(|group| self.search_group(queries, group, own, k, threshold))
                .collect();
            for (group, found) in groups.iter().zip(found) {
                for (&query, hits) in group.iter().zip(found) {
                    visit(query as usize, &hits);
                }
            }
        }
        Ok(())
    }

    fn search_group(
        &self,
        queries: MatrixView<'_>,
        group: &[u32],
        own: Option<&[u32]>,
        k: usize,
        threshold: f32,
    ) -> Vec<Vec<Hit>> {
        let block = gathered(queries, group); // [group, d]
        let mut keys: Vec<Vec<u64>> = vec![Vec::new(); group.len()];
        let probed = self.probed(&block, group.len());
        for same_list in probed.chunk_by(|a, b| a.0 == b.0) {
            let list = same_list[0].0 as usize;
            let members: Vec<u32> = same_list.iter().map(|&(_, member)| member).collect();
            let chosen = gathered_from(&block, queries.dim(), &members); // [members, d]
            for rows in self.rows[self.starts[list]..self.starts[list + 1]].chunks(ROWS) {
                let target = gathered(self.database, rows); // [rows, d]
                let products = product(&chosen, members.len(), &target, rows.len(), queries.dim());
                for (scores, &member) in products.chunks_exact(rows.len()).zip(&members) {
                    let itself = own.map(|own| own[group[member as usize] as usize]);
                    let keys = &mut keys[member as usize];
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
        keys.into_iter().map(|keys| best_first(keys, k)).collect()
    }

    /// (list, place in the group) for the lists nearest to each query of the block, sorted.
    fn probed(&self, block: &[f32], n: usize) -> Vec<(u32, u32)> {
        let lists = self.half_norms.len();
        let dim = self.database.dim();
        let mut scores = product(block, n, self.centroids.view().data(), lists, dim); // [n, lists]
        let mut probed = Vec::with_capacity(n * self.probes);
        for (member, scores) in scores.chunks_exact_mut(lists).enumerate() {
            for (score, half_norm) in scores.iter_mut().zip(&self.half_norms) {
                *score -= half_norm;
            }
            let mut best = Reservoir::new(self.probes);
            best.offer(scores, 0);
            probed.extend(
                best.into_keys()
                    .iter()
                    .map(|&key| (topk::index(key), member as u32)),
            );
        }
        probed.sort_unstable();
        probed
    }
}

/// The nearest of `centroids` of every row, of which each process of `team` finds a part.
fn assigned(database: MatrixView<'_>, centroids: MatrixView<'_>, team: &dyn Team) -> Result<Vec<u32>> {
    let share = database
        .rows()
        .div_ceil(team.size())
        .next_multiple_of(ASSIGNED_ROWS);
    let dim = database.dim();
    let own = database.data().chunks(share * dim).nth(team.rank());
    let clusters = match own {
        Some(own) => assign(MatrixView::new(own, own.len() / dim, dim)?, centroids)?.clusters,
        None => Vec::new(),
    };
    match team.size() {
        1 => Ok(clusters),
        _ => team.gather_numbers(&clusters),
    }
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
    gathered_from(rows.data(), rows.dim(), places)
}

fn gathered_from(data: &[f32], dim: usize, places: &[u32]) -> Vec<f32> {
    let mut copied = Vec::with_capacity(places.len() * dim);
    for &place in places {
        copied.extend_from_slice(&data[place as usize * dim..(place as usize + 1) * dim]);
    }
    copied
}

/// Inner products, `[n, m]`.
fn product(a: &[f32], n: usize, b: &[f32], m: usize, dim: usize) -> Vec<f32> {
    let mut products = vec![0.0f32; n * m];
    matmul(
        &mut products,
        Operand::row_major(a, n, dim),
        Operand::row_major(b, m, dim).transposed(),
        Threads::One,
    );
    products
}
