//! From a feature folder to an index folder, written beside its name and renamed when whole.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use macula_eval::Matrix;
use macula_eval::index::{ExactIndex, HnswConfig, HnswIndex, Index, Scalar, Tuning, build_for_recall};
use polars::prelude::{DataFrame, ParquetWriter, PolarsError, df};

use super::manifest::{METRIC, MeasuredRecall};
use super::usearch;
use super::{
    FORMAT_VERSION, Kind, LINKS_FILE, MANIFEST_FILE, Manifest, ROWS_FILE, USEARCH_FILE, VECTORS_FILE,
};
use crate::extract::FeatureFolder;
use crate::extract::folder::Features;
use crate::extract::{default_column, read_column};
use crate::lock::FolderLock;
use crate::{Error, Result, files, rng};

/// Width of the walk of a graph whose recall nobody asked for.
pub(super) const DEFAULT_EF_SEARCH: usize = 64;
/// Neighbours that `--recall` speaks of.
pub(super) const RECALL_K: usize = 10;

/// What to build.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Kind of the index.
    pub kind: Kind,
    /// Column of the feature folder; by default `cls`, or else the first.
    pub column: Option<String>,
    /// How the graph is made.
    pub hnsw: HnswConfig,
    /// How an index of kind usearch stores numbers; f32 for the other kinds, which know nothing else.
    pub scalar: Scalar,
    /// Recall of the 10 nearest rows that `ef_search` is chosen for; none for the default width.
    pub recall: Option<f64>,
    /// Seed of the rows held back to measure it.
    pub seed: u64,
    /// Replace an index that stands there.
    pub force: bool,
}

impl IndexOptions {
    /// Checks the settings by themselves.
    fn validate(&self) -> Result<()> {
        if let Some(expected) = usearch::missing(self.kind) {
            return Err(Error::setting(
                "kind",
                format!("expected {expected}, found {}", self.kind.name()),
            ));
        }
        if self.kind != Kind::Usearch && self.scalar != Scalar::F32 {
            return Err(Error::setting(
                "scalar",
                format!(
                    "expected f32, which an {} index stores, found {}; use --kind usearch",
                    self.kind.name(),
                    self.scalar
                ),
            ));
        }
        Ok(self.hnsw.validate()?)
    }

    /// Seed of the rows held back.
    pub(super) fn recall_seed(&self) -> u64 {
        rng::derived_seed(self.seed, "index-recall")
    }
}

/// An index, the width of its searches where it is a graph, and what `--recall` measured.
pub(super) type Built = (Index, Option<usize>, Option<MeasuredRecall>);

/// The files that hold the vectors of a kind.
pub(super) fn vector_files(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Exact => &[VECTORS_FILE],
        Kind::Hnsw => &[VECTORS_FILE, LINKS_FILE],
        Kind::Usearch => &[USEARCH_FILE],
    }
}

/// Builds an index over the rows of `features` that have a vector and writes it to `out`. `progress(done, all)` hears of
/// rows inserted into the graph.
///
/// # Errors
/// An output that another run is writing or that exists (without `force`, or that is no index), a folder or column that cannot be read, settings out of
/// range, NaN or infinity.
pub fn build(
    features: &Path,
    out: &Path,
    options: &IndexOptions,
    progress: impl Fn(usize, usize),
) -> Result<Manifest> {
    options.validate()?;
    let _lock = FolderLock::beside(out)?;
    refuse_existing(out, options.force)?;
    let folder = FeatureFolder::open(features)?;
    let column = options.column.clone().unwrap_or_else(|| default_column(&folder));
    let rows = read_column(&folder, &column)?;
    let start = Instant::now();
    let (index, ef_search, measured) = build_index(&rows, options, progress)?;
    let mut manifest = Manifest {
        format_version: FORMAT_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        kind: options.kind,
        metric: METRIC.to_owned(),
        dim: index.dim(),
        count: index.len(),
        column,
        source: features.display().to_string(),
        model: folder.meta().model.clone(),
        fingerprint: folder.meta().fingerprint.clone(),
        parameters: (options.kind != Kind::Exact).then_some(options.hnsw),
        scalar: (options.kind == Kind::Usearch).then_some(options.scalar),
        ef_search,
        measured,
        build_seconds: start.elapsed().as_secs_f64(),
        files: BTreeMap::new(),
    };
    files::write_folder(out, |temporary| {
        write_vectors(temporary, &index)?;
        write_rows(&temporary.join(ROWS_FILE), &rows)?;
        for file in vector_files(options.kind).iter().chain([&ROWS_FILE]) {
            manifest.add_file(temporary, file)?;
        }
        files::write_json(&temporary.join(MANIFEST_FILE), &manifest)
    })?;
    Ok(manifest)
}

fn build_index(rows: &Features, options: &IndexOptions, progress: impl Fn(usize, usize)) -> Result<Built> {
    let view = rows.matrix.view();
    let report = |done| progress(done, view.rows());
    match (options.kind, options.recall) {
        (Kind::Exact, None) => Ok((Index::Exact(ExactIndex::build(view)?), None, None)),
        (Kind::Exact, Some(_)) => Err(Error::setting(
            "recall",
            "an exact index finds every row; use --kind hnsw",
        )),
        (Kind::Hnsw, None) => {
            let index = HnswIndex::build(view, &options.hnsw, report)?;
            Ok((Index::Hnsw(index), Some(DEFAULT_EF_SEARCH), None))
        }
        (Kind::Hnsw, Some(target)) => {
            let seed = options.recall_seed();
            let (index, tuning) = build_for_recall(view, &options.hnsw, target, RECALL_K, seed, report)?;
            let measured = recall_of(target, &tuning);
            Ok((Index::Hnsw(index), Some(tuning.ef_search), Some(measured)))
        }
        (Kind::Usearch, _) => usearch::build(view, options, report),
    }
}

/// What the manifest says of a measured recall; one that is too low is said at once.
pub(super) fn recall_of(target: f64, tuning: &Tuning) -> MeasuredRecall {
    if tuning.recall < target {
        tracing::warn!(
            "recall {:.4} at ef {}, below the {target} asked for: raise --m or --ef-construction",
            tuning.recall,
            tuning.ef_search
        );
    }
    MeasuredRecall {
        target,
        reached: tuning.recall,
        k: RECALL_K,
        n_queries: tuning.n_queries,
    }
}

/// Only an index is ever replaced: `--force` on a wrong path must not cost anybody a folder.
fn refuse_existing(out: &Path, force: bool) -> Result<()> {
    files::refuse_existing(out, force)?;
    if out.exists() && !out.join(MANIFEST_FILE).is_file() {
        return Err(Error::input(
            out.display().to_string(),
            format!("exists and is no index (no {MANIFEST_FILE}); it is not replaced"),
        ));
    }
    Ok(())
}

fn write_vectors(folder: &Path, index: &Index) -> Result<()> {
    match index {
        Index::Exact(index) => write_matrix(folder, index.vectors()),
        Index::Hnsw(index) => {
            write_matrix(folder, index.vectors())?;
            let links = index.link_words().into_iter();
            write_words(&folder.join(LINKS_FILE), links.map(u32::to_le_bytes))
        }
        #[cfg(feature = "usearch")]
        Index::Usearch(index) => Ok(index.save(&folder.join(USEARCH_FILE))?),
    }
}

fn write_matrix(folder: &Path, vectors: &Matrix) -> Result<()> {
    let values = vectors.view().data().iter();
    write_words(
        &folder.join(VECTORS_FILE),
        values.map(|value| value.to_le_bytes()),
    )
}

fn write_words(path: &Path, mut words: impl Iterator<Item = [u8; 4]>) -> Result<()> {
    files::write_whole(path, |file| {
        let mut file = std::io::BufWriter::new(file);
        words
            .try_for_each(|word| file.write_all(&word))
            .and_then(|()| file.flush())
            .map_err(|e| Error::io(path, e))
    })
}

fn write_rows(path: &Path, rows: &Features) -> Result<()> {
    let failed = |e: PolarsError| Error::failed(path.display().to_string(), e.to_string());
    let labels: Vec<Option<&str>> = rows.labels.iter().map(Option::as_deref).collect();
    let paths: Vec<&str> = rows.paths.iter().map(String::as_str).collect();
    let mut table: DataFrame =
        df!("row" => &rows.rows, "path" => paths, "label" => labels).map_err(failed)?;
    files::write_whole(path, |file| {
        ParquetWriter::new(file).finish(&mut table).map_err(failed)?;
        Ok(())
    })
}
