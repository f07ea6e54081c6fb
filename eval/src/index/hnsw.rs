//! The graph index (Malkov & Yashunin 2016): `hnsw_rs` builds the graph over the places of rows, `links` takes it over, `walk` searches
//! it. The crate panics on parameters it does not like, so everything is checked before it sees them.

use hnsw_rs::hnsw::Hnsw;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::distance::RowDistance;
#[cfg(test)]
use super::integer::WideDot;
use super::links::Links;
use super::order::entering;
use super::rows::Rows;
use super::walk::Walkers;
use super::{Hit, check_unit_rows, prepare_rows};
use crate::{Error, Matrix, MatrixView, Result};

/// Layers the crate allocates.
const LAYERS: usize = 16;
/// Rows inserted between two reports of progress, enough for all threads to share.
const INSERT_BLOCK: usize = 4096;

/// How the graph is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HnswConfig {
    /// Links of a row in a layer (twice as many in the lowest), 2 to 255; 16 by default.
    pub m: usize,
    /// Width of the walk that finds a new row's links, at least `m`; 200 by default.
    pub ef_construction: usize,
}

impl Default for HnswConfig {
    fn default() -> Self {
        Self {
            m: 16,
            ef_construction: 200,
        }
    }
}

impl HnswConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(2..=255).contains(&self.m) {
            return Err(Error::config("m", format!("expected 2 to 255, found {}", self.m)));
        }
        if self.ef_construction < self.m || self.ef_construction > 100_000 {
            return Err(Error::config(
                "ef_construction",
                format!(
                    "expected m = {} to 100000, found {}",
                    self.m, self.ef_construction
                ),
            ));
        }
        Ok(())
    }
}

/// A graph that rows are being inserted into.
pub(super) struct Builder {
    graph: Hnsw<'static, u32, RowDistance>,
    /// Links of a row in a layer, at most; twice as many in the lowest.
    m: usize,
    rows: Rows,
}

impl Builder {
    /// A graph without rows, for those of `unit`, which must be normalised and finite.
    ///
    /// # Errors
    /// As [`Rows::new`].
    pub(super) fn new(unit: Matrix, config: &HnswConfig) -> Result<Self> {
        let rows = Rows::new(unit)?;
        Ok(Self {
            graph: Hnsw::new(
                config.m,
                rows.len(),
                LAYERS,
                config.ef_construction,
                rows.distance(),
            ),
            m: config.m,
            rows,
        })
    }

    /// Inserts rows. `progress` hears how many are inserted so far.
    pub(super) fn insert(&self, rows: &[u32], progress: impl Fn(usize)) {
        let places = self.rows.places();
        let mut places: Vec<u32> = rows.iter().map(|&row| places[row as usize]).collect();
        places.sort_unstable();
        let mut done = 0;
        for block in entering(&places).chunks(INSERT_BLOCK) {
            let insert = |place: &u32| {
                self.graph
                    .insert_slice((std::slice::from_ref(place), *place as usize))
            };
            if rayon::current_num_threads() == 1 {
                block.iter().for_each(insert);
            } else {
                block.par_iter().for_each(insert);
            }
            done += block.len();
            progress(done);
        }
    }

    /// The index of what is inserted.
    pub(super) fn index(&self) -> HnswIndex {
        let mut links = Links::from_graph(&self.graph, self.rows.len());
        links.mend(2 * self.m, self.m / 2, &self.rows.distance());
        HnswIndex {
            links,
            rows: self.rows.clone(),
            walkers: Walkers::default(),
        }
    }
}

/// A graph over normalised rows.
#[derive(Debug)]
pub struct HnswIndex {
    rows: Rows,
    links: Links,
    walkers: Walkers,
}

impl HnswIndex {
    /// Builds the graph over the rows of `features` on all threads of the rayon pool. The order in which threads insert
    /// is not fixed, so two builds may differ in a few links; on one thread they are equal. `progress` hears the number
    /// of rows inserted so far.
    ///
    /// # Errors
    /// Settings out of range, no row, NaN or infinity.
    pub fn build(features: MatrixView<'_>, config: &HnswConfig, progress: impl Fn(usize)) -> Result<Self> {
        config.validate()?;
        let builder = Builder::new(prepare_rows(features)?, config)?;
        let rows: Vec<u32> = (0..features.rows() as u32).collect();
        builder.insert(&rows, progress);
        Ok(builder.index())
    }

    /// An index of the rows that [`Self::vectors`] gave and the words that [`Self::link_words`] gave.
    ///
    /// # Errors
    /// No row, NaN or infinity, links that do not belong to as many rows.
    pub fn from_parts(vectors: Matrix, link_words: &[u32]) -> Result<Self> {
        check_unit_rows(vectors.view())?;
        let links = Links::from_words(link_words, vectors.view().rows())?;
        let rows = Rows::new(vectors)?;
        Ok(Self {
            links: links.renamed(&rows.places()),
            rows,
            walkers: Walkers::default(),
        })
    }

    /// The links as words for a file: the row where walks begin, the number of layers above the lowest, for each row of the
    /// lowest layer the number of its links and these, and for each layer above it the number of its rows and for each of
    /// these the row, the number of its links and these.
    pub fn link_words(&self) -> Vec<u32> {
        self.links.renamed(&self.rows.order).to_words()
    }

    /// The normalised rows, in the order they were given.
    pub fn vectors(&self) -> &Matrix {
        &self.rows.exact
    }

    /// Searches for queries that are normalised already, each on one thread.
    pub(super) fn search_unit(&self, queries: MatrixView<'_>, k: usize, ef: usize) -> Vec<Vec<Hit>> {
        queries
            .data()
            .par_chunks_exact(queries.dim())
            .map(|query| self.walkers.search(&self.rows, &self.links, query, k, ef.max(k)))
            .collect()
    }

    /// The same index, whose walks compare codes by `dot`.
    #[cfg(test)]
    pub(super) fn comparing_by(self, dot: WideDot) -> Self {
        Self {
            walkers: Walkers::with(dot),
            ..self
        }
    }
}
