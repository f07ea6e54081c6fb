//! Scores of every test image, kept beside the table: where a model fails, and what two models are compared by.

use std::fs;
use std::path::Path;

use polars::prelude::{Column, CsvWriter, DataFrame, SerWriter as _};

use crate::data::Record;
use crate::{Error, Result, files};

/// Name of the table.
pub const PER_IMAGE_FILE: &str = "images.csv";

/// Scores by image, in the order of the source.
#[derive(Debug, Clone, Default)]
pub struct PerImage {
    rows: Vec<u64>,
    paths: Vec<String>,
    /// Names of the scores, and their values.
    scores: Vec<(&'static str, Vec<f64>)>,
}

impl PerImage {
    /// Adds an image; every image has the same scores.
    pub(super) fn add(&mut self, record: &Record, scores: &[(&'static str, f64)]) {
        self.rows.push(record.row);
        self.paths.push(record.path.clone());
        if self.scores.is_empty() {
            self.scores = scores.iter().map(|&(name, _)| (name, Vec::new())).collect();
        }
        for ((_, column), &(_, value)) in self.scores.iter_mut().zip(scores) {
            column.push(value);
        }
    }

    /// Writes `images.csv` into folder `out`, made if need be: `row`, `path` and the scores.
    ///
    /// # Errors
    /// The system's or Polars' word with the path.
    pub fn save(&self, out: &Path) -> Result<()> {
        fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        let path = out.join(PER_IMAGE_FILE);
        let mut columns = vec![
            Column::new("row".into(), &self.rows),
            Column::new("path".into(), &self.paths),
        ];
        columns.extend(
            self.scores
                .iter()
                .map(|(name, values)| Column::new((*name).into(), values)),
        );
        let failed = |error: polars::prelude::PolarsError| {
            Error::failed(path.display().to_string(), error.to_string())
        };
        let mut table = DataFrame::new(self.rows.len(), columns).map_err(failed)?;
        let mut bytes = Vec::new();
        CsvWriter::new(&mut bytes).finish(&mut table).map_err(failed)?;
        files::write_bytes(&path, &bytes)
    }
}
