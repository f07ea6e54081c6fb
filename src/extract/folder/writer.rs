//! Writes a feature folder: parts whole and in order, failed rows to `errors.csv`, `_SUCCESS` last.

use std::fs;
use std::path::{Path, PathBuf};

use polars::prelude::*;

use super::super::sink::{FeatureSink, PartRows};
use super::{ERRORS_FILE, Layout, META_FILE, Meta, OutputSpec, SUCCESS_FILE, identity, meta, part_name};
use crate::device::Dtype;
use crate::files::{TEMPORARY_PREFIX, write_whole};
use crate::lock::FolderLock;
use crate::{Error, Result};

/// A feature folder being written.
#[derive(Debug)]
pub struct FolderWriter {
    path: PathBuf,
    meta: Meta,
    next_part: u64,
    n_written: u64,
    errors: Vec<(u64, String, String)>,
    created: bool,
    lock: FolderLock,
}

impl FeatureSink for FolderWriter {
    /// Writes the next part; the folder keeps its finished parts where that fails.
    fn write(&mut self, mut part: PartRows) -> Result<()> {
        let path = self.path.join(part_name(self.next_part));
        self.refuse_overflow(&path, &part)?;
        self.n_written += part.present.iter().filter(|present| **present).count() as u64;
        // Errors go first: a part that stands has its failed rows on record.
        if !part.errors.is_empty() {
            self.errors.append(&mut part.errors);
            self.write_errors()?;
        }
        // So do the files beside it.
        let (folder, outputs, dtype) = (&self.path, &self.meta.outputs, self.meta.dtype);
        match self.meta.layout {
            Layout::Parquet => {}
            Layout::Npy => {
                let width = outputs.first().map_or(1, OutputSpec::width);
                super::npy::write(folder, self.next_part, &part, width, dtype)?;
            }
            Layout::Safetensors => super::tensors::write(folder, self.next_part, &part, outputs, dtype)?,
        }
        let mut frame = frame_of(part, outputs, dtype).map_err(|e| table_error(&path, &e))?;
        let metadata = vec![
            (
                "macula.format_version".to_owned(),
                self.meta.format_version.to_string(),
            ),
            (
                "macula.outputs".to_owned(),
                serde_json::to_string(&self.meta.outputs).unwrap_or_default(),
            ),
        ];
        write_whole(&path, |file| {
            ParquetWriter::new(file)
                .with_compression(ParquetCompression::Uncompressed)
                .with_statistics(StatisticsOptions::empty())
                .with_key_value_metadata(Some(KeyValueMetadata::from_static(metadata)))
                .finish(&mut frame)
                .map_err(|e| table_error(&path, &e))?;
            Ok(())
        })?;
        self.next_part += 1;
        Ok(())
    }
}

impl FolderWriter {
    /// Starts a folder, or with `resume` continues one after its last finished part.
    ///
    /// # Errors
    /// A folder that another run is writing; one that exists without `force` or `resume`; with `force`, one that is not a feature folder; with
    /// `resume`, one made with other settings (named).
    pub fn open(path: &Path, meta: Meta, force: bool, resume: bool) -> Result<Self> {
        if path.exists() && !path.is_dir() {
            crate::files::refuse_existing(path, force)?;
            remove_feature_folder(path)?;
        }
        let created = !path.exists();
        let mut writer = Self {
            path: path.to_owned(),
            meta,
            next_part: 0,
            n_written: 0,
            errors: Vec::new(),
            created,
            lock: FolderLock::acquire(path)?,
        };
        if !FolderLock::is_alone_in(path) {
            if resume {
                writer.resume()?;
                return Ok(writer);
            }
            if !force && path.join(META_FILE).is_file() && !path.join(SUCCESS_FILE).is_file() {
                return Err(Error::input(
                    path.display().to_string(),
                    "holds an unfinished extraction; --resume continues it, --force replaces it",
                ));
            }
            crate::files::refuse_existing(path, force)?;
            remove_feature_folder(path)?;
            writer.created = true;
        }
        fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        writer.meta.write(path)?;
        Ok(writer)
    }

    /// Rows that are finished already; extraction starts after them.
    pub fn finished_rows(&self) -> u64 {
        (self.next_part * self.meta.part_rows).min(self.meta.n_rows)
    }

    fn resume(&mut self) -> Result<()> {
        let found = Meta::read(&self.path)?;
        let difference = identity::mixed(&self.meta, &found).or_else(|| {
            let share = |meta: &Meta| serde_json::json!({ "n_rows": meta.n_rows, "shard": meta.shard });
            crate::identity::difference("", &share(&self.meta), &share(&found))
        });
        if let Some(difference) = difference {
            return Err(Error::mismatch(
                self.path.join(META_FILE).display().to_string(),
                format!(
                    "holds features made with other settings ({difference}); give --force to replace them, or another \
                     folder"
                ),
            ));
        }
        // What is the same is described as it was found: an older folder gets no fingerprint that it did not earn.
        self.meta.fingerprint = found.fingerprint;
        remove_unfinished(&self.path)?;
        while self.next_part < self.meta.n_parts() && self.path.join(part_name(self.next_part)).is_file() {
            let part = self.path.join(part_name(self.next_part));
            self.n_written += super::reader::count_present(&part)?;
            self.next_part += 1;
        }
        let finished = self.finished_rows();
        let place = |row: &u64| (row - self.meta.shard.index) / self.meta.shard.count;
        self.errors = read_errors(&self.path.join(ERRORS_FILE))?;
        self.errors.retain(|(row, _, _)| place(row) < finished);
        Ok(())
    }

    /// The pipeline has failed rows of such values; whoever else writes must not lose one to infinity.
    fn refuse_overflow(&self, path: &Path, part: &PartRows) -> Result<()> {
        for (output, values) in self.meta.outputs.iter().zip(&part.values) {
            if let Some(value) = values
                .iter()
                .find(|value| meta::overflows(self.meta.dtype, **value))
            {
                return Err(Error::failed(
                    path.display().to_string(),
                    format!("output `{}`: {value} is too large for f16", output.name),
                ));
            }
        }
        Ok(())
    }

    fn write_errors(&self) -> Result<()> {
        let path = self.path.join(ERRORS_FILE);
        let rows: Vec<u64> = self.errors.iter().map(|e| e.0).collect();
        let paths: Vec<&str> = self.errors.iter().map(|e| e.1.as_str()).collect();
        let errors: Vec<&str> = self.errors.iter().map(|e| e.2.as_str()).collect();
        let mut frame =
            df!("row" => rows, "path" => paths, "error" => errors).map_err(|e| table_error(&path, &e))?;
        write_whole(&path, |file| {
            CsvWriter::new(file)
                .finish(&mut frame)
                .map_err(|e| table_error(&path, &e))
        })
    }

    /// Marks the folder complete: counts into `meta.json`, `errors.csv`, then `_SUCCESS`.
    ///
    /// # Errors
    /// The system's word with the path.
    pub fn finish(mut self) -> Result<Meta> {
        self.meta.n_written = Some(self.n_written);
        self.meta.n_failed = Some(self.errors.len() as u64);
        self.write_errors()?;
        self.meta.write(&self.path)?;
        crate::files::write_bytes(&self.path.join(SUCCESS_FILE), b"")?;
        Ok(self.meta)
    }

    /// Gives up: a folder this run made and finished no part of is removed; finished parts stay for `--resume`.
    pub fn abandon(self) {
        if self.created && self.next_part == 0 {
            // The run already ends with an error; a folder that cannot be removed must not hide it.
            let _ = remove_feature_folder(&self.path);
            drop(self.lock);
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Removes what a killed run was writing.
fn remove_unfinished(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let entry = entry.map_err(|e| Error::io(path, e))?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    Ok(())
}

fn table_error(path: &Path, error: &PolarsError) -> Error {
    let text = error.to_string();
    Error::failed(
        path.display().to_string(),
        text.lines().next().unwrap_or_default(),
    )
}

/// Empties a feature folder, and only that, of files of its own making.
fn remove_feature_folder(path: &Path) -> Result<()> {
    if !path.is_dir() || !path.join(META_FILE).is_file() {
        return Err(Error::input(
            path.display().to_string(),
            "exists and is no feature folder; --force replaces feature folders only",
        ));
    }
    let own = |name: &str| {
        [META_FILE, ERRORS_FILE, SUCCESS_FILE].contains(&name)
            || (name.starts_with("part-") && name.ends_with(".parquet"))
            || name.starts_with(TEMPORARY_PREFIX)
    };
    // The marker goes first: a folder half removed must not pass for complete.
    let marker = path.join(SUCCESS_FILE);
    if marker.exists() {
        fs::remove_file(&marker).map_err(|e| Error::io(&marker, e))?;
    }
    for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let entry = entry.map_err(|e| Error::io(path, e))?;
        if entry.file_name().to_str().is_some_and(own) {
            fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    super::npy::remove(path)?;
    super::tensors::remove(path)
}

fn read_errors(path: &Path) -> Result<Vec<(u64, String, String)>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let read = || -> PolarsResult<Vec<(u64, String, String)>> {
        // Text stays as it was written: a file called `007` is not the number 7.
        let frame = CsvReadOptions::default()
            .with_infer_schema_length(Some(0))
            .into_reader_with_file_handle(file)
            .finish()?;
        let rows = frame.column("row")?.cast(&DataType::UInt64)?;
        let paths = frame.column("path")?.cast(&DataType::String)?;
        let errors = frame.column("error")?.cast(&DataType::String)?;
        let texts = |column: &Column| -> PolarsResult<Vec<String>> {
            Ok(column
                .str()?
                .iter()
                .map(|text| text.unwrap_or_default().to_owned())
                .collect())
        };
        let rows: Vec<u64> = rows.u64()?.iter().flatten().collect();
        Ok(rows
            .into_iter()
            .zip(texts(&paths)?)
            .zip(texts(&errors)?)
            .map(|((row, path), error)| (row, path, error))
            .collect())
    };
    read().map_err(|e| table_error(path, &e))
}

fn frame_of(part: PartRows, outputs: &[OutputSpec], dtype: Dtype) -> PolarsResult<DataFrame> {
    let height = part.rows.len();
    let mut columns = vec![
        Column::new("row".into(), part.rows),
        Column::new("path".into(), part.paths),
        Series::new("label".into(), part.labels)
            .cast(&DataType::String)?
            .into(),
    ];
    for (output, values) in outputs.iter().zip(part.values) {
        let column = array_column(output, values, &part.present)?;
        let stored = DataType::Array(Box::new(meta::column_type(dtype)), output.width());
        columns.push(column.cast(&stored)?.into());
    }
    DataFrame::new(height, columns)
}

/// An `Array(Float32, width)` column: `values` holds the present rows only, the others become null.
fn array_column(output: &OutputSpec, values: Vec<f32>, present: &[bool]) -> PolarsResult<Series> {
    let width = output.width();
    let name = PlSmallStr::from_str(&output.name);
    let dtype = DataType::Array(Box::new(DataType::Float32), width);
    let shape = [ReshapeDimension::Infer, ReshapeDimension::new(width as i64)];
    if present.iter().all(|present| *present) && !present.is_empty() {
        return Series::new(name, values).reshape_array(&shape);
    }
    let mut column = Series::full_null(name.clone(), 0, &dtype);
    let (mut row, mut taken) = (0, 0);
    while row < present.len() {
        let run = present[row..].iter().take_while(|p| **p == present[row]).count();
        let piece = if present[row] {
            let slice = &values[taken * width..(taken + run) * width];
            taken += run;
            Series::new(name.clone(), slice).reshape_array(&shape)?
        } else {
            Series::full_null(name.clone(), run, &dtype)
        };
        column.append(&piece)?;
        row += run;
    }
    Ok(column.rechunk())
}

#[cfg(test)]
mod tests {
    use super::super::ShardMeta;
    use super::*;

    /// Eight rows in parts of two; this is the second of two shares, so its rows are 1, 3, 5 and on.
    fn meta() -> Meta {
        Meta {
            format_version: 1,
            tool_version: "test".to_owned(),
            model: serde_json::json!({ "kind": "test" }),
            preprocess: serde_json::Value::Null,
            outputs: vec![OutputSpec {
                name: "cls".to_owned(),
                shape: vec![1],
            }],
            source: serde_json::json!({ "kind": "test" }),
            fingerprint: None,
            n_rows: 8,
            shard: ShardMeta { index: 1, count: 2 },
            part_rows: 2,
            on_error: "null".to_owned(),
            layout: Layout::Parquet,
            dtype: Dtype::F32,
            n_written: None,
            n_failed: None,
        }
    }

    /// A part of two rows, the second of which failed.
    fn part(number: u64) -> PartRows {
        let rows: Vec<u64> = (0..2).map(|k| 1 + 2 * (2 * number + k)).collect();
        let paths: Vec<String> = rows.iter().map(|row| format!("00{row}")).collect();
        PartRows {
            errors: vec![(rows[1], paths[1].clone(), "1e5".to_owned())],
            rows,
            paths,
            labels: vec![None; 2],
            present: vec![true, false],
            values: vec![vec![0.5]],
        }
    }

    #[test]
    fn a_resumed_folder_has_the_errors_of_its_finished_parts() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let path = folder.path().join("features");
        let mut first = FolderWriter::open(&path, meta(), false, false)?;
        (0..3).try_for_each(|number| first.write(part(number)))?;
        drop(first);
        // The third part is lost; its failed row is on record still.
        fs::remove_file(path.join(part_name(2))).map_err(|e| Error::io(&path, e))?;

        let mut second = FolderWriter::open(&path, meta(), false, true)?;
        assert_eq!(second.finished_rows(), 4);
        let failed = |row: u64| (row, format!("00{row}"), "1e5".to_owned());
        assert_eq!(second.errors, [failed(3), failed(7)]);
        (2..4).try_for_each(|number| second.write(part(number)))?;
        let meta = second.finish()?;
        assert_eq!((meta.n_written, meta.n_failed), (Some(4), Some(4)));
        assert_eq!(
            read_errors(&path.join(ERRORS_FILE))?,
            [failed(3), failed(7), failed(11), failed(15)]
        );
        Ok(())
    }

    #[test]
    fn only_an_own_folder_without_a_part_is_taken_away() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let path = folder.path().join("features");
        FolderWriter::open(&path, meta(), false, false)?.abandon();
        assert!(!path.exists(), "nothing was finished in it");

        let mut begun = FolderWriter::open(&path, meta(), false, false)?;
        begun.write(part(0))?;
        begun.abandon();
        assert!(path.join(part_name(0)).is_file(), "a finished part stays");

        fs::remove_file(path.join(part_name(0))).map_err(|e| Error::io(&path, e))?;
        FolderWriter::open(&path, meta(), false, true)?.abandon();
        assert!(path.join(META_FILE).is_file(), "another run made it");
        Ok(())
    }
}
