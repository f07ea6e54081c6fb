//! The graph index (Malkov & Yashunin 2016) through `hnsw_rs`. That crate ends the process or panics on parameters and
//! files it does not like, so everything is checked before it sees them.

use std::path::Path;

use hnsw_rs::api::AnnT;
use hnsw_rs::hnsw::Hnsw;
use hnsw_rs::hnswio::HnswIo;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::distance::UnitCosine;
use super::{Hit, prepare_rows};
use crate::{Error, Matrix, MatrixView, Result};

/// Layers the crate allocates; it writes no index with fewer.
const LAYERS: usize = 16;
/// Rows inserted between two reports of progress, enough for all threads to share.
const INSERT_BLOCK: usize = 4096;
/// Name of the files of an index before their endings.
const BASENAME: &str = "index";
/// The files that [`HnswIndex::dump`] writes: the graph and the vectors.
pub const DUMP_FILES: [&str; 2] = ["index.hnsw.graph", "index.hnsw.data"];

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

/// A graph over normalised rows.
pub struct HnswIndex {
    graph: Hnsw<'static, f32, UnitCosine>,
    dim: usize,
}

impl std::fmt::Debug for HnswIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HnswIndex")
            .field("rows", &self.len())
            .field("dim", &self.dim)
            .finish_non_exhaustive()
    }
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
        let unit = prepare_rows(features)?;
        let index = Self::empty(unit.view(), config);
        let rows: Vec<usize> = (0..unit.view().rows()).collect();
        index.insert(unit.view(), &rows, progress);
        Ok(index)
    }

    /// A graph without rows, for those of `unit`.
    pub(super) fn empty(unit: MatrixView<'_>, config: &HnswConfig) -> Self {
        Self {
            graph: Hnsw::new(config.m, unit.rows(), LAYERS, config.ef_construction, UnitCosine),
            dim: unit.dim(),
        }
    }

    /// Inserts rows of `unit`, which must be normalised and finite.
    pub(super) fn insert(&self, unit: MatrixView<'_>, rows: &[usize], progress: impl Fn(usize)) {
        let mut done = 0;
        for block in rows.chunks(INSERT_BLOCK) {
            let pairs: Vec<(&[f32], usize)> = block.iter().map(|&row| (unit.row(row), row)).collect();
            if rayon::current_num_threads() == 1 {
                pairs.iter().for_each(|&pair| self.graph.insert_slice(pair));
            } else {
                self.graph.parallel_insert_slice(&pairs);
            }
            done += block.len();
            progress(done);
        }
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.graph.get_nb_point()
    }

    /// Whether no row is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Width of the rows.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Searches for queries that are normalised already, each on one thread.
    pub(super) fn search_unit(&self, queries: MatrixView<'_>, k: usize, ef: usize) -> Vec<Vec<Hit>> {
        queries
            .data()
            .par_chunks_exact(self.dim)
            .map(|query| {
                let found = self.graph.search(query, k, ef.max(k));
                let hits = found.iter().map(|neighbour| Hit {
                    row: neighbour.d_id as u32,
                    similarity: 1.0 - neighbour.distance,
                });
                hits.collect()
            })
            .collect()
    }

    /// The normalised rows, in the order they were given.
    ///
    /// # Errors
    /// A graph that does not hold each of its rows once, which only a damaged file can give.
    pub fn vectors(&self) -> Result<Matrix> {
        let n = self.len();
        let mut data = vec![f32::NAN; n * self.dim];
        for point in self.graph.get_point_indexation() {
            let row = point.get_origin_id();
            let vector = point.get_v();
            if row >= n || vector.len() != self.dim {
                return Err(Error::data(
                    "index",
                    format!(
                        "expected rows below {n} of width {}, found row {row} of {}",
                        self.dim,
                        vector.len()
                    ),
                ));
            }
            data[row * self.dim..(row + 1) * self.dim].copy_from_slice(vector);
        }
        let vectors = Matrix::new(data, n, self.dim)?;
        vectors.view().check_finite("index")?;
        Ok(vectors)
    }

    /// Writes [`DUMP_FILES`] into `folder`, which must exist, be writable and hold neither.
    ///
    /// # Errors
    /// What the system says.
    pub fn dump(&self, folder: &Path) -> Result<()> {
        let failed = |reason: String| Error::Io {
            path: folder.to_owned(),
            source: std::io::Error::other(reason),
        };
        // The crate panics where it cannot create its files, so that is tried first.
        for name in DUMP_FILES {
            let path = folder.join(name);
            std::fs::File::create(&path).map_err(|source| Error::Io { path, source })?;
        }
        for name in DUMP_FILES {
            let path = folder.join(name);
            std::fs::remove_file(&path).map_err(|source| Error::Io { path, source })?;
        }
        let written = self
            .graph
            .file_dump(folder, BASENAME)
            .map_err(|e| failed(e.to_string()))?;
        if written != BASENAME {
            return Err(failed(format!("expected to write {BASENAME}, wrote {written}")));
        }
        Ok(())
    }

    /// Reads what [`Self::dump`] wrote. The crate ends the process on a damaged file: the caller must have checked that
    /// both files are byte for byte what was written, by this version, on a machine of the same word size and byte order.
    ///
    /// # Errors
    /// Files that are missing, or that hold other numbers of rows or widths than `rows` and `dim`.
    pub fn load(folder: &Path, rows: usize, dim: usize) -> Result<Self> {
        for name in DUMP_FILES {
            let path = folder.join(name);
            std::fs::File::open(&path).map_err(|source| Error::Io { path, source })?;
        }
        // The graph borrows from its reader, which holds two paths: they live as long as the process.
        let reader: &'static HnswIo = Box::leak(Box::new(HnswIo::new(folder, BASENAME)));
        let mut graph: Hnsw<'static, f32, UnitCosine> = reader
            .load_hnsw_with_dist(UnitCosine)
            .map_err(|e| Error::data(folder.display().to_string(), e.to_string()))?;
        graph.set_searching_mode(true);
        let found = (
            graph.get_nb_point(),
            graph.get_point_indexation().get_data_dimension(),
        );
        if found != (rows, dim) {
            return Err(Error::data(
                folder.display().to_string(),
                format!(
                    "expected {rows} rows of width {dim}, found {} of {}",
                    found.0, found.1
                ),
            ));
        }
        Ok(Self { graph, dim })
    }
}
