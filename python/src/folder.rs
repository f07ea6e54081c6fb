//! A feature folder: columns as arrays, and all of it as a table.

use std::path::PathBuf;

use macula::extract::folder::{META_FILE, part_name};
use macula::extract::{FeatureFolder, default_column};
use macula::{Error, Result};
use pyo3::prelude::*;

use crate::arrays::Values;
use crate::errors::returned;
use crate::table::{Frames, Table};

/// A feature folder that is complete.
#[pyclass(frozen, module = "macula._macula")]
pub struct Folder(FeatureFolder);

/// A column: values `[n * width]`, width, rows, paths, labels, rows without features.
type Column = (Values, usize, Values, Vec<String>, Vec<Option<String>>, u64);

#[pymethods]
impl Folder {
    /// Opens the folder and checks that it is complete.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        returned(py.detach(|| FeatureFolder::open(&path))).map(Self)
    }

    /// `meta.json` of the folder, or of its first shard.
    #[getter]
    fn meta(&self) -> PyResult<String> {
        serde_json::to_string(self.0.meta())
            .map_err(|error| crate::errors::raised(&Error::failed("meta", error.to_string())))
    }

    /// The column to take where none is named.
    #[getter]
    fn default_column(&self) -> String {
        default_column(&self.0)
    }

    /// Rows with features, and rows that failed.
    #[getter]
    fn counts(&self) -> (u64, u64) {
        (self.0.n_written(), self.0.n_failed())
    }

    /// Reads one column.
    fn read(&self, py: Python<'_>, column: &str) -> PyResult<Column> {
        let read = returned(py.detach(|| self.0.read(column)))?;
        let width = read.matrix.view().dim();
        Ok((
            read.matrix.into_data().into(),
            width,
            read.rows.into(),
            read.paths,
            read.labels,
            read.n_null,
        ))
    }

    /// All parts as one table, shard after shard.
    fn table(&self) -> PyResult<Table> {
        returned(self.parts()).map(|files| Table {
            frames: Frames::Files(files),
        })
    }
}

impl Folder {
    fn parts(&self) -> Result<Vec<PathBuf>> {
        let path = self.0.path();
        let mut folders = vec![path.to_owned()];
        if !path.join(META_FILE).is_file() {
            let entries = std::fs::read_dir(path).map_err(|error| Error::io(path, error))?;
            folders = entries
                .filter_map(|entry| entry.ok().map(|entry| entry.path()))
                .filter(|entry| entry.join(META_FILE).is_file())
                .collect();
            folders.sort();
        }
        let mut files = Vec::new();
        for folder in folders {
            let meta = macula::extract::Meta::read(&folder)?;
            files.extend((0..meta.n_parts()).map(|part| folder.join(part_name(part))));
        }
        Ok(files)
    }
}
