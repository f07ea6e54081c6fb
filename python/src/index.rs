//! Nearest neighbours by cosine similarity.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use macula::index::{Manifest, OpenIndex};
use macula::{Error, Result};
use macula_eval::MatrixView;
use macula_eval::index::{ExactIndex, HnswConfig, HnswIndex, Index as Search, build_for_recall};
use pyo3::prelude::*;

use crate::arrays::{Given, Values, matrix};
use crate::errors::returned;
use crate::interruptible;
use crate::pools;
use crate::settings::Settings;

/// Neighbours that the width of a walk is chosen for.
const RECALL_AT: usize = 10;

/// An index over the rows of a matrix.
#[pyclass(frozen, module = "macula._macula")]
pub struct Index {
    index: Search,
    /// The width of the walk that was chosen when the index was built.
    ef: Option<usize>,
    /// Rows, paths and labels of the source, for an index that was opened.
    named: Option<Named>,
}

/// What an index folder says of its rows.
type Named = (Vec<u64>, Vec<String>, Vec<Option<String>>);

/// Similarities and rows, `[n * k]` each.
type Hits = (Values, Values);

#[pymethods]
impl Index {
    /// Builds an index over `features` `[n, d]` with settings as JSON.
    #[staticmethod]
    fn build(py: Python<'_>, features: Given, settings: &str) -> PyResult<Self> {
        let mut settings = returned(Settings::parse(settings))?;
        let stop = AtomicBool::new(false);
        interruptible::run(py, None, &stop, || {
            let defaults = HnswConfig::default();
            let kind = settings.or("kind", "exact".to_owned())?;
            let config = HnswConfig {
                m: settings.or("m", defaults.m)?,
                ef_construction: settings.or("ef_construction", defaults.ef_construction)?,
            };
            let recall: Option<f64> = settings.take("recall")?;
            let (seed, threads) = (settings.or("seed", 0)?, settings.or("threads", 0)?);
            settings.end()?;
            let view = matrix("features", &features)?;
            pools::shared(threads)?.install(|| built(&kind, view, &config, recall, seed))
        })
    }

    /// Opens an index folder.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let open = py.detach(|| {
            let manifest = Manifest::read(&path)?;
            OpenIndex::open(&path, manifest.dim)
        });
        let open = returned(open)?;
        Ok(Self {
            index: open.index,
            ef: open.manifest.ef_search,
            named: Some((open.rows, open.paths, open.labels)),
        })
    }

    /// Kind, rows, width and the chosen width of the walk.
    #[getter]
    fn facts(&self) -> (&'static str, usize, usize, Option<usize>) {
        (self.index.kind(), self.index.len(), self.index.dim(), self.ef)
    }

    /// Rows, paths and labels of an index that was opened.
    #[getter]
    fn named(&self) -> Option<Named> {
        self.named.clone()
    }

    /// The `k` best rows of each query; where fewer were reached, row -1 and NaN.
    #[pyo3(signature = (queries, k, ef=None, threads=0))]
    fn search(
        &self,
        py: Python<'_>,
        queries: Given,
        k: usize,
        ef: Option<usize>,
        threads: usize,
    ) -> PyResult<Hits> {
        let ef = ef.or(self.ef).unwrap_or(k).max(k);
        let stop = AtomicBool::new(false);
        let (similarities, rows) = interruptible::run(py, None, &stop, || {
            let view = matrix("queries", &queries)?;
            let n = view.rows();
            let hits = pools::shared(threads)?.install(|| self.index.search(view, k, ef))?;
            let (mut similarities, mut rows) = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
            for found in hits {
                similarities.extend(found.iter().map(|hit| hit.similarity));
                rows.extend(found.iter().map(|hit| i64::from(hit.row)));
                similarities.resize(similarities.len() + k - found.len(), f32::NAN);
                rows.resize(similarities.len(), -1);
            }
            Ok((similarities, rows))
        })?;
        Ok((similarities.into(), rows.into()))
    }
}

fn built(
    kind: &str,
    features: MatrixView<'_>,
    config: &HnswConfig,
    recall: Option<f64>,
    seed: u64,
) -> Result<Index> {
    let (index, ef) = match (kind, recall) {
        ("exact", _) => (Search::Exact(ExactIndex::build(features)?), None),
        ("hnsw", None) => (Search::Hnsw(HnswIndex::build(features, config, |_| {})?), None),
        ("hnsw", Some(target)) => {
            let (index, tuning) = build_for_recall(features, config, target, RECALL_AT, seed, |_| {})?;
            (Search::Hnsw(index), Some(tuning.ef_search))
        }
        _ => {
            let reason = format!("expected exact or hnsw, found `{kind}`");
            return Err(Error::setting("kind", reason));
        }
    };
    Ok(Index {
        index,
        ef,
        named: None,
    })
}
