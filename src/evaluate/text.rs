//! Vectors of texts, as the program made them that has the text tower: classes by name for zero-shot classification, or captions of
//! images, to search with. A Parquet file, a row a text.

use std::collections::BTreeMap;
use std::path::Path;

use macula_eval::Matrix;
use macula_eval::linalg::normalise::norm;

use super::labels::Side;
use crate::extract::{FeatureFolder, default_column};
use crate::tables::{ParquetTable, Table};
use crate::{Error, Result};

/// Column of the vectors, lists of f32 or f64.
const VECTOR: &str = "vector";
/// Column of what cosines are multiplied with, the same in every row.
const LOGIT_SCALE: &str = "logit_scale";
/// The output that is in one space with texts.
const EMBEDDING: &str = "embedding";

/// What a text is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextOf {
    /// A class, in column `class`; a class may have several.
    Class,
    /// An image of the folder, by path or file name, in column `image`; an image may have several.
    Image,
}

impl TextOf {
    fn column(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Image => "image",
        }
    }
}

/// Texts.
#[derive(Debug)]
pub struct Texts {
    /// The file.
    pub file: String,
    /// The class or image of each.
    pub keys: Vec<String>,
    /// Vectors, `[n, d]`, none of them 0.
    pub vectors: Matrix,
    /// What cosines are multiplied with before a softmax, where the file says so.
    pub logit_scale: Option<f64>,
}

impl Texts {
    /// Reads `path`.
    ///
    /// # Errors
    /// A file that is no Parquet or damaged, a column that is not there, no rows, a row without class, image or vector, vectors of
    /// different lengths, of zeros or with NaN or infinity, several logit scales or one that is no number above 0.
    pub fn read(path: &Path, of: TextOf) -> Result<Self> {
        let file = path.display().to_string();
        let fault = |reason: String| Error::input(&file, reason);
        let Table::Parquet(table) = Table::open(path)? else {
            let reason = format!(
                "expected a Parquet file of columns {} and {VECTOR}, found none",
                of.column()
            );
            return Err(fault(reason));
        };
        for name in [of.column(), VECTOR] {
            if table.kind(name).is_none() {
                let found = table.names().join(", ");
                let reason = format!("expected columns {} and {VECTOR}, found {found}", of.column());
                return Err(fault(reason));
            }
        }
        let found = table.vectors(VECTOR)?;
        if found.rows == 0 {
            return Err(fault("expected at least one row, found none".to_owned()));
        }
        let vectors = Matrix::new(found.values, found.rows, found.width)?;
        vectors
            .view()
            .check_finite(&format!("{file}: column `{VECTOR}`"))?;
        if let Some(row) = (0..found.rows).find(|&row| norm(vectors.view().row(row)) == 0.0) {
            let reason = format!("column `{VECTOR}`, row {row}: expected a direction, found zeros");
            return Err(fault(reason));
        }
        let keys = table.text(of.column())?;
        if let Some(row) = keys.iter().position(Option::is_none) {
            let reason = format!("column `{}`, row {row}: expected a name, found none", of.column());
            return Err(fault(reason));
        }
        Ok(Self {
            logit_scale: logit_scale(&file, &table)?,
            keys: keys.into_iter().flatten().collect(),
            vectors,
            file,
        })
    }

    /// The texts' classes, under the name of the file.
    pub fn side(&self) -> Side<'_> {
        Side {
            what: &self.file,
            labels: &self.keys,
            paths: &[],
        }
    }

    /// Refuses vectors of another width than column `column` of `folder` has.
    ///
    /// # Errors
    /// Names both files, the column and both widths.
    pub fn fit(&self, folder: &FeatureFolder, column: &str, width: usize) -> Result<()> {
        let found = self.vectors.view().dim();
        if found == width {
            return Ok(());
        }
        let reason = format!(
            "column `{VECTOR}`: expected {width} values as in column `{column}` of {}, found {found}",
            folder.path().display()
        );
        Err(Error::input(&self.file, reason))
    }

    /// For each text the row of its image among `paths`, the images of `folder`: the one of this very path, or else of this file name
    /// without folder and ending.
    ///
    /// # Errors
    /// Texts whose image is not there or there more than once: how many, and the first.
    pub fn images(&self, folder: &FeatureFolder, paths: &[String]) -> Result<Vec<u32>> {
        let mut by_path: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        let mut by_name: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for (row, path) in paths.iter().enumerate() {
            by_path.entry(path).or_default().push(row as u32);
            by_name.entry(stem(path)).or_default().push(row as u32);
        }
        let rows_of = |key: &String| -> &[u32] {
            let found = by_path.get(key.as_str()).or_else(|| by_name.get(&stem(key)));
            found.map_or(&[], Vec::as_slice)
        };
        let found: Vec<&[u32]> = self.keys.iter().map(rows_of).collect();
        let Some(first) = found.iter().position(|rows| rows.len() != 1) else {
            return Ok(found.concat());
        };
        let many = found.iter().filter(|rows| rows.len() != 1).count();
        let reason = format!(
            "column `image`: expected one image of {} for each text, which {many} of {} texts have not; the first is row {first}, \
             `{}`, with {} images",
            folder.path().display(),
            self.keys.len(),
            self.keys[first],
            found[first].len()
        );
        Err(Error::input(&self.file, reason))
    }
}

/// The column that is in one space with texts: `embedding` where there is one.
pub fn embedding_column(folder: &FeatureFolder) -> String {
    match folder.meta().output(EMBEDDING) {
        Some(_) => EMBEDDING.to_owned(),
        None => default_column(folder),
    }
}

/// A file's name without folder and ending.
fn stem(path: &str) -> String {
    let stem = Path::new(path).file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

/// The one value of the column of logit scales; none where there is no column or nothing in it.
fn logit_scale(file: &str, table: &ParquetTable) -> Result<Option<f64>> {
    if table.kind(LOGIT_SCALE).is_none() {
        return Ok(None);
    }
    let texts = table.text(LOGIT_SCALE)?;
    let mut there = texts.iter().flatten();
    let Some(first) = there.next() else {
        return Ok(None);
    };
    let fault = |reason: String| Error::input(file, format!("column `{LOGIT_SCALE}`: {reason}"));
    if let Some(other) = there.find(|text| *text != first) {
        return Err(fault(format!("expected one value, found {first} and {other}")));
    }
    match first.parse::<f64>() {
        Ok(scale) if scale > 0.0 && scale.is_finite() => Ok(Some(scale)),
        _ => Err(fault(format!("expected a number above 0, found {first}"))),
    }
}
