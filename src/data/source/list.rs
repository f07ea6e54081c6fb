//! A table of files: `list.csv` or `list.parquet` with a column `path` (or `image`, or another of [`columns`]), and perhaps
//! `label`, `mask` and `depth`. Paths are relative to the table's folder. A list that curation wrote says more: rows with `kept` false are left
//! out, and where `source` names a source without files (`idx:`, `sample:`, tars, tables of images), the image is its row
//! `row`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::columns::{self, choose, choose_label, listed};
use super::{
    Columns, EncodedImage, Record, RowError, Source, Stamp, load_file, lossless, place, read_file, sha256,
};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::tables::Table;
use crate::{Error, Result};

/// The images that a table names.
pub(super) struct List {
    table: PathBuf,
    folder: PathBuf,
    rows: Vec<Row>,
    sources: Vec<Box<dyn Source>>,
    columns: Columns,
    sha256: String,
}

struct Row {
    path: String, // as written in the table
    label: Option<String>,
    mask: Option<String>,
    depth: Option<String>,
    elsewhere: Option<(usize, u64)>, // which of the list's sources, and its row
}

impl List {
    /// Reads the table; the files that it names are not looked at. `requested` are the columns that the user names.
    pub(super) fn open(table: &Path, requested: &Columns) -> Result<Self> {
        let bytes = std::fs::read(table).map_err(|error| Error::io(table, error))?;
        if let Some(column) = &requested.image {
            let reason = format!(
                "expected a Parquet file with images in column `{column}` (--image-column), found a list of paths"
            );
            return Err(Error::input(lossless(table), reason));
        }
        let frame = Table::open(table)?;
        let path_column =
            choose(&frame, table, &columns::PATH, requested.path.as_deref())?.ok_or_else(|| {
                let reason = format!(
                    "expected a column `path` or `image` (--path-column names another), found {}",
                    listed(&frame.names())
                );
                Error::input(lossless(table), reason)
            })?;
        let path = frame.text(&path_column)?.unwrap_or_default();
        if path.is_empty() {
            return Err(Error::input(
                lossless(table),
                "no rows: expected at least one image",
            ));
        }
        let count = path.len();
        let optional = |name| -> Result<Vec<Option<String>>> {
            Ok(frame.text(name)?.unwrap_or_else(|| vec![None; count]))
        };
        let label_column = choose_label(&frame, table, requested.label.as_deref())?;
        let labels = match &label_column {
            Some(column) => columns::labels(&frame, table, column)?,
            None => vec![None; count],
        };
        let (masks, depths) = (optional("mask")?, optional("depth")?);
        let kept = kept_rows(&frame, table, count)?;
        let (sources, elsewhere) = open_sources(&frame, table, &path, &kept)?;
        let mut rows = Vec::with_capacity(count);
        for (row, (((path, label), mask), depth)) in
            path.into_iter().zip(labels).zip(masks).zip(depths).enumerate()
        {
            if !kept[row] {
                continue;
            }
            let missing = || Error::input(lossless(table), format!("row {row} has no `{path_column}`"));
            rows.push(Row {
                path: path.ok_or_else(missing)?,
                label,
                mask,
                depth,
                elsewhere: elsewhere[row],
            });
        }
        if rows.is_empty() {
            return Err(Error::input(
                lossless(table),
                "no rows: `kept` is false in every one",
            ));
        }
        Ok(Self {
            table: table.to_path_buf(),
            folder: table.parent().map(Path::to_path_buf).unwrap_or_default(),
            rows,
            sources,
            columns: Columns {
                path: Some(path_column),
                label: label_column,
                image: None,
            },
            sha256: sha256(&[&bytes]),
        })
    }
}

/// Which rows are kept: all without a column `kept`.
fn kept_rows(frame: &Table, table: &Path, count: usize) -> Result<Vec<bool>> {
    let Some(kept) = frame.text("kept")? else {
        return Ok(vec![true; count]);
    };
    let read = |(row, value): (usize, Option<String>)| match value.as_deref() {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        other => Err(Error::input(
            lossless(table),
            format!(
                "column `kept`: expected true or false in row {row}, found `{}`",
                other.unwrap_or_default()
            ),
        )),
    };
    kept.into_iter().enumerate().map(read).collect()
}

/// Of each row of a list the source that has its image, and the row there; none where the path is a file.
type Elsewhere = Vec<Option<(usize, u64)>>;

/// Opens the sources that column `source` names, each once.
fn open_sources(
    frame: &Table,
    table: &Path,
    paths: &[Option<String>],
    kept: &[bool],
) -> Result<(Vec<Box<dyn Source>>, Elsewhere)> {
    let Some(specs) = frame.text("source")? else {
        return Ok((Vec::new(), vec![None; paths.len()]));
    };
    let rows = frame.text("row")?.unwrap_or_else(|| vec![None; paths.len()]);
    let mut names: Vec<String> = Vec::new();
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    let mut elsewhere = vec![None; paths.len()];
    for (place, spec) in specs.into_iter().enumerate().filter(|(place, _)| kept[*place]) {
        let Some(spec) = spec else { continue };
        let number = match names.iter().position(|name| *name == spec) {
            Some(number) => number,
            None => {
                let opened = super::open_without_files(&spec)?.ok_or_else(|| {
                    let reason = format!(
                        "column `source`: expected idx:, sample:, tars or Parquet files with images in row {place}, found `{spec}`"
                    );
                    Error::input(lossless(table), reason)
                })?;
                sources.push(opened);
                names.push(spec.clone());
                names.len() - 1
            }
        };
        let row = rows[place].as_deref().and_then(|row| row.parse::<u64>().ok());
        let source = &sources[number];
        match row.filter(|&row| row < source.len()) {
            Some(row) if Some(&source.record(row).path) == paths[place].as_ref() => {
                elsewhere[place] = Some((number, row));
            }
            _ => {
                let path = paths[place].as_deref().unwrap_or_default();
                let reason = format!(
                    "row {place}: expected `{path}` in row {row:?} of {spec}, which has another there"
                );
                return Err(Error::input(lossless(table), reason));
            }
        }
    }
    Ok((sources, elsewhere))
}

impl Source for List {
    fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    fn record(&self, row: u64) -> Record {
        let found = &self.rows[place(row)];
        let resolve = |path: &Option<String>| path.as_ref().map(|path| self.folder.join(path));
        Record {
            mask: resolve(&found.mask),
            depth: resolve(&found.depth),
            ..Record::new(row, found.path.clone(), found.label.clone())
        }
    }

    fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        let found = &self.rows[place(row)];
        match found.elsewhere {
            Some((source, row)) => self.sources[source].load(row, options),
            None => load_file(&self.folder.join(&found.path), options),
        }
    }

    fn encoded(&self, row: u64) -> std::result::Result<EncodedImage, RowError> {
        let found = &self.rows[place(row)];
        match found.elsewhere {
            Some((source, row)) => self.sources[source].encoded(row),
            None => read_file(&self.folder.join(&found.path)),
        }
    }

    fn file(&self, row: u64) -> Option<PathBuf> {
        let found = &self.rows[place(row)];
        match found.elsewhere {
            Some((source, row)) => self.sources[source].file(row),
            None => Some(self.folder.join(&found.path)),
        }
    }

    fn stamp(&self, row: u64) -> Stamp<'_> {
        match self.rows[place(row)].elsewhere {
            Some((source, row)) => self.sources[source].stamp(row),
            None => Stamp::new(self.record(row), self.file(row)),
        }
    }

    fn in_memory(&self) -> bool {
        !self.sources.is_empty()
            && self.rows.iter().all(|row| row.elsewhere.is_some())
            && self.sources.iter().all(|source| source.in_memory())
    }

    fn is_grey(&self) -> bool {
        !self.sources.is_empty()
            && self.rows.iter().all(|row| row.elsewhere.is_some())
            && self.sources.iter().all(|source| source.is_grey())
    }

    fn describe(&self) -> serde_json::Value {
        json!({
            "kind": "list",
            "path": lossless(&self.table),
            "images": self.rows.len(),
            "labelled": self.rows.iter().filter(|row| row.label.is_some()).count(),
            "columns": { "path": self.columns.path, "label": self.columns.label },
            "sha256": self.sha256,
        })
    }
}
