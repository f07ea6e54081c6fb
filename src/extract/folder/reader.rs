//! Reads a feature folder back, whole or as shards, one column at a time.

use std::fs;
use std::path::{Path, PathBuf};

use macula_eval::Matrix;
use polars::prelude::*;

use super::{META_FILE, Meta, SUCCESS_FILE, identity, meta, part_name};
use crate::data::{Source, SourceIdentity};
use crate::device::Dtype;
use crate::identity::source_difference;
use crate::tables::{guarded, own_columns, read_own};
use crate::{Error, Result};

/// A complete feature folder: one run, or all shards of one.
#[derive(Debug)]
pub struct FeatureFolder {
    path: PathBuf,
    shards: Vec<(PathBuf, Meta)>,
}

/// The rows of a feature folder that have features in some column, in the order of the source.
#[derive(Debug, Default)]
pub struct Names {
    /// Place of each row in the source.
    pub rows: Vec<u64>,
    /// Path of each row.
    pub paths: Vec<String>,
    /// Label of each row, where there is one.
    pub labels: Vec<Option<String>>,
    /// Rows left out because they are null.
    pub n_null: u64,
}

impl Names {
    fn append(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.paths.extend(other.paths);
        self.labels.extend(other.labels);
        self.n_null += other.n_null;
    }

    /// The rows at `order`, each place once.
    fn select(mut self, order: &[usize]) -> Self {
        Self {
            rows: order.iter().map(|&i| self.rows[i]).collect(),
            paths: order
                .iter()
                .map(|&i| std::mem::take(&mut self.paths[i]))
                .collect(),
            labels: order.iter().map(|&i| self.labels[i].take()).collect(),
            n_null: self.n_null,
        }
    }
}

/// One column of a feature folder, in the order of the source.
#[derive(Debug)]
pub struct Features {
    /// Features of the rows that have them.
    pub matrix: Matrix,
    /// Place of each row in the source.
    pub rows: Vec<u64>,
    /// Path of each row.
    pub paths: Vec<String>,
    /// Label of each row, where there is one.
    pub labels: Vec<Option<String>>,
    /// Rows left out because they are null.
    pub n_null: u64,
}

impl Features {
    /// The features of the rows `names`, or of some of them.
    pub fn new(matrix: Matrix, names: Names) -> Self {
        Self {
            matrix,
            rows: names.rows,
            paths: names.paths,
            labels: names.labels,
            n_null: names.n_null,
        }
    }

    /// The features, and the rows that they are of.
    pub fn into_parts(self) -> (Matrix, Names) {
        let names = Names {
            rows: self.rows,
            paths: self.paths,
            labels: self.labels,
            n_null: self.n_null,
        };
        (self.matrix, names)
    }

    /// Refuses NaN and infinity: what macula wrote has none, what others wrote may.
    fn check_finite(&self, folder: &Path, column: &str) -> Result<()> {
        let Some(found) = self.matrix.view().first_not_finite() else {
            return Ok(());
        };
        Err(Error::input(
            folder.display().to_string(),
            format!(
                "column `{column}`: expected finite values, found NaN or infinity in {} of {} rows, first {} at place {} of \
                 row {} ({})",
                found.rows,
                self.rows.len(),
                found.value,
                found.column,
                self.rows[found.row],
                self.paths[found.row]
            ),
        ))
    }
}

impl FeatureFolder {
    /// Opens `path` and checks that it is complete: `_SUCCESS`, every part, and every shard of the same run.
    ///
    /// # Errors
    /// Names the folder and what is missing or does not fit.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::input(
                path.display().to_string(),
                "no such file or folder; expected a feature folder",
            ));
        }
        let shards = if path.join(META_FILE).is_file() {
            vec![open_one(path)?]
        } else {
            open_shards(path)?
        };
        Ok(Self {
            path: path.to_owned(),
            shards,
        })
    }

    /// Description of the folder, or of its first shard.
    pub fn meta(&self) -> &Meta {
        &self.shards[0].1
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says on stderr where features of this folder and of `other` are of different models or preprocessing, so that
    /// comparing them is unfair.
    pub fn notice_unfair(&self, other: &Self) {
        let name = |folder: &Self| folder.path.display().to_string();
        for notice in identity::unfair((&name(self), self.meta()), (&name(other), other.meta())) {
            tracing::warn!("{notice}");
        }
    }

    /// Checks that `source`, opened from `spec`, has the images that the features of this folder were made from; what they are
    /// labelled does not matter. A folder without a fingerprint is held against the path in each of `rows`.
    ///
    /// # Errors
    /// Names the first row, or else the first field, that differs.
    pub fn check_source(
        &self,
        (rows, paths): (&[u64], &[String]),
        source: &dyn Source,
        spec: &str,
    ) -> Result<()> {
        let made_from = |found: String| {
            let folder = self.path.display();
            Error::mismatch(
                spec,
                format!("expected the images that {folder} was made from, {found}"),
            )
        };
        let differs = match &self.meta().fingerprint {
            None => None,
            Some(made) => {
                let found = SourceIdentity::from_source(source).without_labels();
                match source_difference(&made.source.without_labels(), &found) {
                    None => return Ok(()),
                    differs => differs,
                }
            }
        };
        for (&row, path) in rows.iter().zip(paths) {
            let found = (row < source.len()).then(|| source.record(row).path);
            if found.as_deref() != Some(path) {
                let found = found.map_or(format!("{} rows", source.len()), |found| format!("`{found}`"));
                return Err(made_from(format!("with `{path}` in row {row}, found {found}")));
            }
        }
        differs.map_or(Ok(()), |differs| {
            Err(made_from(format!("found others: {differs}")))
        })
    }

    /// Rows with features, over all shards.
    pub fn n_written(&self) -> u64 {
        let written = self.shards.iter().filter_map(|(_, meta)| meta.n_written);
        written.fold(0, u64::saturating_add)
    }

    /// Rows that failed, over all shards.
    pub fn n_failed(&self) -> u64 {
        let failed = self.shards.iter().filter_map(|(_, meta)| meta.n_failed);
        failed.fold(0, u64::saturating_add)
    }

    /// Reads one column with the rows' paths and labels, in the order of the source.
    ///
    /// # Errors
    /// A column that is not there (the others are named), a part that is damaged, or features that are NaN or infinite: the
    /// column, how many rows, and the first with its path.
    pub fn read(&self, column: &str) -> Result<Features> {
        let width = self.width(column)?;
        // One part at a time beside the whole: features may fill half the memory.
        let mut data = Vec::new();
        // `n_written` is a number in a file: it may be any.
        let values = usize::try_from(self.n_written())
            .unwrap_or(usize::MAX)
            .saturating_mul(width);
        data.try_reserve_exact(values).map_err(|_| {
            Error::input(
                self.path.join(META_FILE).display().to_string(),
                format!(
                    "n_written: expected rows of {width} values that fit the memory, found {}",
                    self.n_written()
                ),
            )
        })?;
        let mut names = Names::default();
        for (path, meta) in self.parts() {
            let part = read_part(&path, column, width, meta.dtype)?;
            data.extend_from_slice(&part.data);
            names.append(part.names);
        }
        let mut matrix = Matrix::new(data, names.rows.len(), width)?;
        if self.shards.len() > 1 {
            let order = by_row(&names.rows);
            matrix = matrix.view().select(&order);
            names = names.select(&order);
        }
        let features = Features::new(matrix, names);
        features.check_finite(&self.path, column)?;
        Ok(features)
    }

    /// As [`FeatureFolder::read`] without the features, which are read where some may be null alone.
    ///
    /// # Errors
    /// As there.
    pub fn names(&self, column: &str) -> Result<Names> {
        let width = self.width(column)?;
        let mut names = Names::default();
        for (path, meta) in self.parts() {
            names.append(match meta.n_failed {
                Some(0) => read_names(&path)?,
                _ => read_part(&path, column, width, meta.dtype)?.names,
            });
        }
        match self.shards.len() {
            1 => Ok(names),
            _ => {
                let order = by_row(&names.rows);
                Ok(names.select(&order))
            }
        }
    }

    /// The features of `rows`, places in the source that rise, one part in memory beside them.
    ///
    /// # Errors
    /// As [`FeatureFolder::read`]; a row without features.
    pub fn values(&self, column: &str, rows: &[u64]) -> Result<Matrix> {
        let width = self.width(column)?;
        let name = || self.path.display().to_string();
        let mut data = vec![0.0; rows.len() * width];
        let mut found = 0;
        for (path, meta) in self.parts() {
            if !read_names(&path)?
                .rows
                .iter()
                .any(|row| rows.binary_search(row).is_ok())
            {
                continue;
            }
            let part = read_part(&path, column, width, meta.dtype)?;
            for (row, values) in part.names.rows.iter().zip(part.data.chunks_exact(width)) {
                if let Ok(place) = rows.binary_search(row) {
                    data[place * width..(place + 1) * width].copy_from_slice(values);
                    found += 1;
                }
            }
        }
        if found != rows.len() {
            let reason = format!(
                "column `{column}`: expected features of {} rows, found {found}",
                rows.len()
            );
            return Err(Error::input(name(), reason));
        }
        let matrix = Matrix::new(data, rows.len(), width)?;
        matrix.view().check_finite(&name())?;
        Ok(matrix)
    }

    /// The width of a column.
    fn width(&self, column: &str) -> Result<usize> {
        let Some(output) = self.meta().output(column) else {
            return Err(Error::input(
                self.path.display().to_string(),
                format!(
                    "no column `{column}`; the folder holds {}",
                    self.meta().output_names()
                ),
            ));
        };
        Ok(output.width())
    }

    /// The files of all shards.
    fn parts(&self) -> impl Iterator<Item = (PathBuf, &Meta)> {
        self.shards.iter().flat_map(|(folder, meta)| {
            (0..meta.n_parts()).map(move |index| (folder.join(part_name(index)), meta))
        })
    }
}

/// Places of `rows` in the order of the source.
fn by_row(rows: &[u64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&i| rows[i]);
    order
}

fn open_one(folder: &Path) -> Result<(PathBuf, Meta)> {
    let meta = Meta::read(folder)?;
    let name = || folder.display().to_string();
    if !folder.join(SUCCESS_FILE).is_file() {
        return Err(Error::input(
            name(),
            format!("not complete (no {SUCCESS_FILE}); finish it with `macula extract .. --resume`"),
        ));
    }
    if let Some(missing) = (0..meta.n_parts()).find(|&i| !folder.join(part_name(i)).is_file()) {
        return Err(Error::input(
            name(),
            format!(
                "expected {} parts, found no {}",
                meta.n_parts(),
                part_name(missing)
            ),
        ));
    }
    Ok((folder.to_owned(), meta))
}

fn open_shards(path: &Path) -> Result<Vec<(PathBuf, Meta)>> {
    let name = || path.display().to_string();
    let mut folders = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
            let entry = entry.map_err(|e| Error::io(path, e))?.path();
            if entry.join(META_FILE).is_file() {
                folders.push(entry);
            }
        }
    }
    folders.sort();
    let shards: Vec<(PathBuf, Meta)> = folders.iter().map(|f| open_one(f)).collect::<Result<_>>()?;
    let Some((_, first)) = shards.first() else {
        return Err(Error::input(
            name(),
            format!("expected a feature folder, found neither {META_FILE} nor shards in it"),
        ));
    };
    let mut indices: Vec<u64> = shards.iter().map(|(_, meta)| meta.shard.index).collect();
    indices.sort_unstable();
    if indices != (0..first.shard.count).collect::<Vec<_>>() {
        return Err(Error::input(
            name(),
            format!(
                "expected shards 0 to {}, found {indices:?}",
                first.shard.count - 1
            ),
        ));
    }
    for (folder, meta) in &shards {
        if let Some(difference) = identity::mixed(first, meta) {
            return Err(Error::input(
                folder.join(META_FILE).display().to_string(),
                format!("made otherwise than the first shard: {difference}"),
            ));
        }
    }
    Ok(shards)
}

struct Part {
    data: Vec<f32>,
    names: Names,
}

/// What columns of every part say of its rows.
const NAMES: [&str; 3] = ["row", "path", "label"];

fn read_names(path: &Path) -> Result<Names> {
    let frame = read_own(path, Some(&NAMES))?;
    guarded(path, || names_of(&frame, |_| true))
}

/// The rows of a part that are kept.
fn names_of(frame: &DataFrame, keep: impl Fn(usize) -> bool) -> PolarsResult<Names> {
    let kept = |index: &usize| keep(*index);
    let rows = frame.column("row")?.u64()?.iter().map(Option::unwrap_or_default);
    let texts = |name: &str| -> PolarsResult<Vec<Option<String>>> {
        let texts = frame.column(name)?.str()?.iter().enumerate();
        let texts = texts.filter(|(index, _)| kept(index));
        Ok(texts.map(|(_, text)| text.map(str::to_owned)).collect())
    };
    let (paths, labels) = (texts("path")?, texts("label")?);
    Ok(Names {
        n_null: (frame.height() - labels.len()) as u64,
        rows: rows
            .enumerate()
            .filter(|(index, _)| kept(index))
            .map(|(_, row)| row)
            .collect(),
        paths: paths.into_iter().map(Option::unwrap_or_default).collect(),
        labels,
    })
}

fn read_part(path: &Path, column: &str, width: usize, dtype: Dtype) -> Result<Part> {
    let [row, name, label] = NAMES;
    let frame = read_own(path, Some(&[row, name, label, column]))?;
    let read = || -> PolarsResult<Part> {
        let features = frame.column(column)?.as_materialized_series().clone();
        let expected = DataType::Array(Box::new(meta::column_type(dtype)), width);
        if features.dtype() != &expected {
            polars_bail!(SchemaMismatch: "column `{}`: expected {}, found {}", column, expected, features.dtype());
        }
        let features = features.cast(&DataType::Array(Box::new(DataType::Float32), width))?;
        let present: Vec<bool> = features.is_not_null().iter().map(|p| p == Some(true)).collect();
        let mut data = Vec::with_capacity(features.len() * width);
        // The inner values of a null row are there too, and are passed over.
        let inner = features.array()?.get_inner().rechunk();
        let values = inner.f32()?.downcast_as_array().values().as_slice();
        for (values, _) in values
            .chunks_exact(width)
            .zip(&present)
            .filter(|(_, present)| **present)
        {
            data.extend_from_slice(values);
        }
        Ok(Part {
            data,
            names: names_of(&frame, |index| present[index])?,
        })
    };
    guarded(path, read)
}

/// Rows of a part that have features.
pub(super) fn count_present(path: &Path) -> Result<u64> {
    let columns = own_columns(path)?;
    let Some(first) = columns.get(3) else {
        return Err(Error::input(
            path.display().to_string(),
            "damaged part: no feature column",
        ));
    };
    let frame = read_own(path, Some(&[first]))?;
    guarded(path, || {
        let column = frame.column(first)?;
        Ok((column.len() - column.null_count()) as u64)
    })
}
