//! A graph in a usearch file, which programs in other languages read too. The library builds the file and walks it where it
//! lies, mapped into memory; `layout` reads a file through before, `turns` lets in as many threads as the library has room for.

mod layout;
mod turns;

use std::fmt;
use std::path::Path;

use ::usearch::ffi::Matches;
use ::usearch::{Index as Graph, IndexOptions, MetricKind, ScalarKind};
use rayon::prelude::*;

use self::layout::Expected;
use self::turns::Turns;
use super::score::recall;
use super::tuning::HeldBack;
use super::{Hit, HnswConfig, Scalar, Tuning, check_rows};
use crate::linalg::normalise::l2_normalise;
use crate::{Error, MatrixView, Result};

/// Rows inserted between two reports of progress, enough for all threads to share; only they are normalised at a time.
const INSERT_BLOCK: usize = 4096;

/// A graph and its vectors as the library holds them: in memory where it was built, in the file where it was opened. A row's
/// number is its key.
pub struct UsearchIndex {
    graph: Graph,
    turns: Turns,
    rows: usize,
    dim: usize,
}

impl fmt::Debug for UsearchIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsearchIndex")
            .field("rows", &self.rows)
            .field("dim", &self.dim)
            .finish_non_exhaustive()
    }
}

impl UsearchIndex {
    /// Builds the graph over the rows of `features` on all threads of the rayon pool. The order in which threads insert is
    /// not fixed, so two builds may differ in a few links; on one thread they are equal. `progress` hears the number of rows
    /// inserted so far.
    ///
    /// # Errors
    /// Settings out of range, no row, NaN or infinity; the library's word.
    pub fn build(
        features: MatrixView<'_>,
        config: &HnswConfig,
        scalar: Scalar,
        progress: impl Fn(usize),
    ) -> Result<Self> {
        let index = Self::empty(features, config, scalar)?;
        let rows: Vec<usize> = (0..features.rows()).collect();
        index.insert(features, &rows, progress)?;
        Ok(index)
    }

    /// Builds an index as [`Self::build`] does and finds the width at which `k` neighbours of unseen rows are found with a
    /// recall of `target`, as `build_for_recall` does for other graphs. What is right is what exact search finds among the
    /// vectors as they are stored.
    ///
    /// # Errors
    /// As [`Self::build`]; a target that is not in (0, 1]; fewer than `k + 1` rows beside those held back.
    pub fn build_for_recall(
        features: MatrixView<'_>,
        config: &HnswConfig,
        scalar: Scalar,
        (target, k, seed): (f64, usize, u64),
        progress: impl Fn(usize),
    ) -> Result<(Self, Tuning)> {
        let held_back = HeldBack::draw(features.rows(), target, k, seed)?;
        let index = Self::empty(features, config, scalar)?;
        index.insert(features, &held_back.others, &progress)?;
        let queries = l2_normalise(features.select(&held_back.rows).view())?;
        let thresholds = index.kth_similarities(queries.view(), k)?;
        let tuning = held_back.smallest_width(target, k, |ef| {
            Ok(recall(&index.search_unit(queries.view(), k, ef)?, &thresholds, k))
        })?;
        let inserted = held_back.others.len();
        index.insert(features, &held_back.rows, |done| progress(inserted + done))?;
        Ok((index, tuning))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// A path that is not UTF-8, which the library cannot be given; its word where it cannot write.
    pub fn save(&self, path: &Path) -> Result<()> {
        let name = utf8(path)?;
        self.graph.save(name).map_err(|e| failed_at(name, e))
    }

    /// Maps the file at `path`, which must hold `rows` vectors of width `dim`. It is read through once; a search then reads
    /// what it walks over.
    ///
    /// # Errors
    /// A file that is damaged or holds something else; a path that is not UTF-8; the system's or the library's word.
    pub fn view(path: &Path, rows: usize, dim: usize, scalar: Scalar) -> Result<Self> {
        layout::check(path, &Expected { rows, dim, scalar })?;
        let index = Self::new(&options(dim, scalar, &HnswConfig::default()), rows, 1)?;
        let name = utf8(path)?;
        index.graph.view(name).map_err(|e| failed_at(name, e))?;
        Ok(index)
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether no row is held; no constructor makes such an index.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Width of the rows.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Searches for queries that are normalised already, each on one thread.
    pub(super) fn search_unit(&self, queries: MatrixView<'_>, k: usize, ef: usize) -> Result<Vec<Vec<Hit>>> {
        // The library walks as wide as the number of rows that it is asked for. Its own setting of the width is one for all
        // searches, also those of other threads.
        let width = ef.max(k).min(self.rows);
        let ask = |query: &[f32]| self.graph.search(query, width);
        self.for_each_query(queries, ask, |mut hits| {
            hits.truncate(k);
            hits
        })
    }

    /// Similarity of the `k`-th nearest row of each query by exact search.
    pub(super) fn kth_similarities(&self, queries: MatrixView<'_>, k: usize) -> Result<Vec<f32>> {
        let ask = |query: &[f32]| self.graph.exact_search(query, k);
        self.for_each_query(queries, ask, |hits| {
            hits.last().map_or(f32::NEG_INFINITY, |hit| hit.similarity)
        })
    }

    fn for_each_query<T: Send, E: fmt::Display>(
        &self,
        queries: MatrixView<'_>,
        ask: impl Fn(&[f32]) -> std::result::Result<Matches, E> + Sync,
        answer: impl Fn(Vec<Hit>) -> T + Sync,
    ) -> Result<Vec<T>> {
        let queries = queries.data().par_chunks_exact(self.dim);
        queries
            .map(|query| {
                let found = self.turns.take(|| ask(query)).map_err(failed)?;
                Ok(answer(hits(query, &found)))
            })
            .collect()
    }

    /// An index without rows, for those of `features`.
    fn empty(features: MatrixView<'_>, config: &HnswConfig, scalar: Scalar) -> Result<Self> {
        config.validate()?;
        check_rows(features)?;
        let (rows, dim) = (features.rows(), features.dim());
        Self::new(&options(dim, scalar, config), rows, rows)
    }

    /// An index of `rows` rows with room for `room` of them in memory.
    fn new(options: &IndexOptions, rows: usize, room: usize) -> Result<Self> {
        let graph = Graph::new(options).map_err(failed)?;
        let threads = rayon::current_num_threads();
        graph
            .reserve_capacity_and_threads(room, threads)
            .map_err(failed)?;
        Ok(Self {
            graph,
            turns: Turns::new(threads),
            rows,
            dim: options.dimensions,
        })
    }

    fn insert(&self, features: MatrixView<'_>, rows: &[usize], progress: impl Fn(usize)) -> Result<()> {
        let mut done = 0;
        for block in rows.chunks(INSERT_BLOCK) {
            let unit = l2_normalise(features.select(block).view())?;
            let vectors = unit.view().data().par_chunks_exact(self.dim);
            block.par_iter().zip(vectors).try_for_each(|(&row, vector)| {
                self.turns
                    .take(|| self.graph.add(row as u64, vector))
                    .map_err(failed)
            })?;
            done += block.len();
            progress(done);
        }
        Ok(())
    }
}

fn options(dim: usize, scalar: Scalar, config: &HnswConfig) -> IndexOptions {
    IndexOptions {
        dimensions: dim,
        metric: MetricKind::Cos,
        quantization: match scalar {
            Scalar::F32 => ScalarKind::F32,
            Scalar::F16 => ScalarKind::F16,
            Scalar::I8 => ScalarKind::I8,
        },
        connectivity: config.m,
        expansion_add: config.ef_construction,
        // Of this and the number of rows asked for the library takes the larger one.
        expansion_search: 1,
        multi: false,
    }
}

/// What the library found, best first and of equal rows the lower one first.
fn hits(query: &[f32], found: &Matches) -> Vec<Hit> {
    // The library has two zero vectors alike; to others nothing is like a zero vector.
    let nothing = query.iter().all(|&value| value == 0.0);
    let similarity = |distance: f32| {
        if nothing {
            0.0
        } else {
            (1.0 - distance).clamp(-1.0, 1.0)
        }
    };
    let pairs = found.keys.iter().zip(&found.distances);
    let mut hits: Vec<Hit> = pairs
        .map(|(&key, &distance)| Hit {
            // Keys are numbers of rows, of which there are no more than u32 counts.
            row: key as u32,
            similarity: similarity(distance),
        })
        .collect();
    hits.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.row.cmp(&b.row)));
    hits
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::data(path.display().to_string(), "expected a path in UTF-8"))
}

fn failed(error: impl fmt::Display) -> Error {
    Error::data("usearch", error.to_string())
}

fn failed_at(path: &str, error: impl fmt::Display) -> Error {
    Error::data(path, format!("usearch: {error}"))
}

#[cfg(test)]
mod tests;
