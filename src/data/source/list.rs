//! A table of files: `list.csv` or `list.parquet` with a column `path` (or `image`), and perhaps `label`, `mask` and
//! `depth`. Paths are relative to the table's folder. A list that curation wrote says more: rows with `kept` false are left
//! out, and where `source` names a source without files (`idx:`, `sample:`), the image is its row `row`.

use std::fs::File;
use std::path::{Path, PathBuf};

use polars::prelude::{CsvReadOptions, DataFrame, DataType, ParquetReader, SerReader};
use serde_json::json;

use super::{Record, RowError, Source, Stamp, load_file, lossless, place, sha256};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::{Error, Result};

/// The images that a table names.
pub(super) struct List {
    table: PathBuf,
    folder: PathBuf,
    rows: Vec<Row>,
    sources: Vec<Box<dyn Source>>,
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
    /// Reads the table; the files that it names are not looked at.
    pub(super) fn open(table: &Path) -> Result<Self> {
        let bytes = std::fs::read(table).map_err(|error| Error::io(table, error))?;
        let frame = read_frame(table)?;
        let path = match column(&frame, table, "path")? {
            None => column(&frame, table, "image")?,
            found => found,
        };
        let path = path.ok_or_else(|| {
            let found: Vec<String> = frame
                .get_column_names()
                .iter()
                .map(|name| format!("`{name}`"))
                .collect();
            Error::input(
                lossless(table),
                format!("expected a column `path` or `image`, found {}", found.join(", ")),
            )
        })?;
        if path.is_empty() {
            return Err(Error::input(
                lossless(table),
                "no rows: expected at least one image",
            ));
        }
        let count = path.len();
        let optional = |name| -> Result<Vec<Option<String>>> {
            Ok(column(&frame, table, name)?.unwrap_or_else(|| vec![None; count]))
        };
        let (labels, masks, depths) = (optional("label")?, optional("mask")?, optional("depth")?);
        let kept = kept_rows(&frame, table, count)?;
        let (sources, elsewhere) = open_sources(&frame, table, &path, &kept)?;
        let mut rows = Vec::with_capacity(count);
        for (row, (((path, label), mask), depth)) in
            path.into_iter().zip(labels).zip(masks).zip(depths).enumerate()
        {
            if !kept[row] {
                continue;
            }
            let missing = || Error::input(lossless(table), format!("row {row} has no `path`"));
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
            sha256: sha256(&[&bytes]),
        })
    }
}

/// Which rows are kept: all without a column `kept`.
fn kept_rows(frame: &DataFrame, table: &Path, count: usize) -> Result<Vec<bool>> {
    let Some(kept) = column(frame, table, "kept")? else {
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
    frame: &DataFrame,
    table: &Path,
    paths: &[Option<String>],
    kept: &[bool],
) -> Result<(Vec<Box<dyn Source>>, Elsewhere)> {
    let Some(specs) = column(frame, table, "source")? else {
        return Ok((Vec::new(), vec![None; paths.len()]));
    };
    let rows = column(frame, table, "row")?.unwrap_or_else(|| vec![None; paths.len()]);
    let mut names: Vec<String> = Vec::new();
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    let mut elsewhere = vec![None; paths.len()];
    for (place, spec) in specs.into_iter().enumerate().filter(|(place, _)| kept[*place]) {
        let Some(spec) = spec else { continue };
        let number = match names.iter().position(|name| *name == spec) {
            Some(number) => number,
            None if spec.starts_with("idx:") || spec.starts_with("sample:") => {
                sources.push(super::open(&spec)?);
                names.push(spec.clone());
                names.len() - 1
            }
            None => {
                let reason =
                    format!("column `source`: expected idx: or sample: in row {place}, found `{spec}`");
                return Err(Error::input(lossless(table), reason));
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

/// The table, with every CSV column read as text.
///
/// # Errors
/// A file that cannot be read or is no such table.
pub fn read_frame(table: &Path) -> Result<DataFrame> {
    let unreadable =
        |error: polars::prelude::PolarsError| Error::input(lossless(table), one_line(&error.to_string()));
    let is_csv = table
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    if is_csv {
        let options = CsvReadOptions::default()
            .with_has_header(true)
            .with_infer_schema_length(Some(0));
        let reader = options.try_into_reader_with_file_path(Some(table.to_path_buf()));
        return reader.and_then(SerReader::finish).map_err(unreadable);
    }
    let file = File::open(table).map_err(|error| Error::io(table, error))?;
    ParquetReader::new(file).finish().map_err(unreadable)
}

/// The values of a column as text, empty ones as `None`; `None` when there is no such column.
pub(super) fn column(frame: &DataFrame, table: &Path, name: &str) -> Result<Option<Vec<Option<String>>>> {
    let Ok(column) = frame.column(name) else {
        return Ok(None);
    };
    let unfit = || {
        let found = column.dtype();
        Error::input(
            lossless(table),
            format!("column `{name}`: expected text, found {found}"),
        )
    };
    let text = match column.dtype() {
        kind if kind.is_primitive() || kind.is_bool() => {
            column.cast(&DataType::String).map_err(|_| unfit())?
        }
        _ => column.clone(),
    };
    let text = text.str().map_err(|_| unfit())?;
    let values = text
        .iter()
        .map(|value| value.filter(|value| !value.is_empty()).map(str::to_owned));
    Ok(Some(values.collect()))
}

/// The first line of a library's message.
pub(super) fn one_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
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
            None => Stamp::of(self.record(row), self.file(row)),
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
            "sha256": self.sha256,
        })
    }
}
