//! An index folder, checked and read.

use std::path::{Path, PathBuf};

use macula_eval::Matrix;
use macula_eval::index::{ExactIndex, HnswIndex, Index};
use polars::prelude::PolarsResult;

use super::usearch;
use super::{Kind, LINKS_FILE, Manifest, ROWS_FILE, VECTORS_FILE};
use crate::tables::{guarded, read_own};
use crate::{Error, Result};

/// An index and the rows it speaks of.
#[derive(Debug)]
pub struct OpenIndex {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// The index.
    pub index: Index,
    /// Place of each vector in the source of its features.
    pub rows: Vec<u64>,
    /// Path of each vector's image.
    pub paths: Vec<String>,
    /// Label of each vector, where there is one.
    pub labels: Vec<Option<String>>,
}

impl OpenIndex {
    /// Opens an index folder for vectors of width `dim`. Everything is checked before anything is used.
    ///
    /// # Errors
    /// A folder that is no index, of another version or width, or with a file that is missing, cut off or changed.
    pub fn open(path: &Path, dim: usize) -> Result<Self> {
        Self::checked(path, dim).map_err(|error| error.in_file(path))
    }

    fn checked(path: &Path, dim: usize) -> Result<Self> {
        let manifest = Manifest::read(path)?;
        if manifest.dim != dim {
            return Err(Error::input(
                path.display().to_string(),
                format!(
                    "expected an index of width {dim} as the features, found {}",
                    manifest.dim
                ),
            ));
        }
        manifest.check_files(path)?;
        let index = match manifest.kind {
            Kind::Exact => Index::Exact(ExactIndex::of_unit_rows(read_vectors(path, &manifest)?)?),
            Kind::Usearch => usearch::open(path, &manifest)?,
            Kind::Hnsw => {
                let links = read_words(&path.join(LINKS_FILE))?;
                let links: Vec<u32> = links.into_iter().map(u32::from_le_bytes).collect();
                let graph = HnswIndex::from_parts(read_vectors(path, &manifest)?, &links);
                Index::Hnsw(graph.map_err(|e| Error::input(path.display().to_string(), e.to_string()))?)
            }
        };
        let mut open = Self {
            path: path.to_owned(),
            manifest,
            index,
            rows: Vec::new(),
            paths: Vec::new(),
            labels: Vec::new(),
        };
        open.read_rows()?;
        Ok(open)
    }

    /// The width of the walk to search `k` rows with: what was asked for, else what the index was built for.
    pub fn ef(&self, requested: Option<usize>, k: usize) -> usize {
        requested.or(self.manifest.ef_search).unwrap_or(k).max(k)
    }

    fn read_rows(&mut self) -> Result<()> {
        let path = self.path.join(ROWS_FILE);
        let table = read_own(&path, Some(&["row", "path", "label"]))?;
        if table.height() != self.manifest.count {
            return Err(Error::input(
                path.display().to_string(),
                format!("expected {} rows, found {}", self.manifest.count, table.height()),
            ));
        }
        let texts = |name: &str| -> PolarsResult<Vec<Option<String>>> {
            let column = table.column(name)?.str()?;
            Ok(column.iter().map(|text| text.map(str::to_owned)).collect())
        };
        guarded(&path, || {
            let rows = table.column("row")?.u64()?;
            self.rows = rows.iter().map(Option::unwrap_or_default).collect();
            self.paths = texts("path")?
                .into_iter()
                .map(Option::unwrap_or_default)
                .collect();
            self.labels = texts("label")?;
            Ok(())
        })
    }
}

fn read_vectors(folder: &Path, manifest: &Manifest) -> Result<Matrix> {
    let path = folder.join(VECTORS_FILE);
    let data = read_words(&path)?.into_iter().map(f32::from_le_bytes).collect();
    Matrix::new(data, manifest.count, manifest.dim)
        .map_err(|e| Error::input(path.display().to_string(), e.to_string()))
}

/// The file, 4 bytes a value.
fn read_words(path: &Path) -> Result<Vec<[u8; 4]>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    match bytes.as_chunks::<4>() {
        (words, []) => Ok(words.to_vec()),
        _ => Err(Error::input(
            path.display().to_string(),
            "expected 4 bytes a value",
        )),
    }
}
