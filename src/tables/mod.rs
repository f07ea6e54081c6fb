//! Tables that others wrote, read one column at a time: CSV as spreadsheets and scripts write it ([`csv`]), and Parquet of any
//! writer ([`parquet`]). A column that nobody asks for is not read, so what it holds never matters. A value becomes text in
//! one way ([`text`]), whatever type it was stored in; lists of numbers are read as [`vectors`]. Tables of our own (parts of feature folders, predictions, an index's
//! rows) are read whole into Polars by [`read_own`]. Whichever way Parquet is read, what a file claims to hold is held against
//! its bytes first ([`footer`], [`extent`]), and the reader's panics at damaged files end at [`guard`].

mod csv;
mod extent;
mod footer;
mod guard;
mod parquet;
mod text;
mod vectors;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use polars::prelude::{
    DataFrame, ParallelStrategy, ParquetReader, PolarsResult, SerReader as _, polars_bail,
};

use self::csv::CsvTable;
use self::footer::read_footer;
pub use self::guard::guarded;
pub(crate) use self::parquet::{Encoded, Kind, ParquetTable};
use crate::{Error, Result};

/// How every Parquet file begins.
const PARQUET_MAGIC: &[u8] = b"PAR1";

/// A table of either kind.
pub(crate) enum Table {
    Csv(CsvTable),
    Parquet(Box<ParquetTable>),
}

impl Table {
    /// Opens a CSV or Parquet file. Which it is, its first bytes say; one that is called Parquet must be it.
    ///
    /// # Errors
    /// A file that cannot be read, or is no table.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let is_called_parquet = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"));
        Ok(match is_called_parquet || is_parquet(path)? {
            true => Self::Parquet(Box::new(ParquetTable::open(path)?)),
            false => Self::Csv(CsvTable::open(path)?),
        })
    }

    /// The columns' names, in order.
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Self::Csv(table) => table.names(),
            Self::Parquet(table) => table.names(),
        }
    }

    /// What column `name` holds; `None` when there is no such column.
    pub(crate) fn kind(&self, name: &str) -> Option<Kind> {
        match self {
            Self::Csv(table) => table.names().contains(&name).then_some(Kind::Text),
            Self::Parquet(table) => table.kind(name),
        }
    }

    /// The values of column `name` as [`text`] says, empty ones as `None`; `None` when there is no such column.
    ///
    /// # Errors
    /// Values that have no text, or are damaged.
    pub(crate) fn text(&self, name: &str) -> Result<Option<Vec<Option<String>>>> {
        if self.kind(name).is_none() {
            return Ok(None);
        }
        match self {
            Self::Csv(table) => table.text(name),
            Self::Parquet(table) => table.text(name),
        }
        .map(Some)
    }

    /// The names of the classes that column `name` holds the numbers of, where the table says so.
    pub(crate) fn class_names(&self, name: &str) -> Option<Vec<String>> {
        match self {
            Self::Csv(_) => None,
            Self::Parquet(table) => table.class_names(name),
        }
    }
}

/// Whether a file begins as Parquet does.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn is_parquet(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let length = PARQUET_MAGIC.len() as u64;
    file.take(length)
        .read_to_end(&mut start)
        .map_err(|error| Error::io(path, error))?;
    Ok(start == PARQUET_MAGIC)
}

/// A Parquet file of our own, or those of its columns that are asked for, in one chunk.
///
/// # Errors
/// A file that cannot be read, lacks a column, or is damaged.
pub fn read_own(path: &Path, columns: Option<&[&str]>) -> Result<DataFrame> {
    let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
    let length = file.metadata().map_err(|error| Error::io(path, error))?.len();
    guarded(path, || {
        check_extent(&mut file, length, columns)?;
        let columns = columns.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        // On this thread alone, where the guard is.
        let table = ParquetReader::new(file)
            .with_columns(columns)
            .read_parallel(ParallelStrategy::None)
            .set_rechunk(true)
            .finish()?;
        for column in table.columns() {
            if column.len() != table.height() {
                polars_bail!(ComputeError: "column `{}`: expected {} values, found {}", column.name(), table.height(), column.len());
            }
        }
        Ok(table)
    })
}

/// Holds what the file says of its columns, or of those that are asked for, against what is there.
fn check_extent(file: &mut File, length: u64, columns: Option<&[&str]>) -> PolarsResult<()> {
    let metadata = read_footer(file)?;
    for group in &metadata.row_groups {
        for chunk in group.parquet_columns() {
            let root = chunk.descriptor().path_in_schema[0].as_str();
            if columns.is_none_or(|names| names.contains(&root)) {
                extent::read_chunk(file, length, chunk, group.num_rows())?;
            }
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(())
}

/// The columns of a Parquet file of our own, in order.
///
/// # Errors
/// A file that cannot be read or is damaged.
pub fn own_columns(path: &Path) -> Result<Vec<String>> {
    let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
    guarded(path, || {
        read_footer(&mut file)?;
        file.seek(SeekFrom::Start(0))?;
        let schema = ParquetReader::new(file).schema()?;
        Ok(schema.iter_names().map(|name| name.to_string()).collect())
    })
}

#[cfg(test)]
mod tests;
