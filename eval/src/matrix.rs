//! Features in memory: a row-major `n x d` matrix of f32 and the labels that go with its rows.

use std::ops::Range;

use crate::{Error, Result};

/// A row-major `n x d` matrix of f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    data: Vec<f32>,
    rows: usize,
    dim: usize,
}

/// A borrowed [`Matrix`].
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    data: &'a [f32],
    rows: usize,
    dim: usize,
}

/// A value that is NaN or infinite, the first of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct NotFinite {
    /// Its row.
    pub row: usize,
    /// Its place in the row.
    pub column: usize,
    /// The value.
    pub value: f32,
    /// Rows that hold such a value.
    pub rows: usize,
}

impl Matrix {
    /// Wraps `data` as `rows x dim`.
    ///
    /// # Errors
    /// A length other than `rows * dim`, or a width of zero.
    pub fn new(data: Vec<f32>, rows: usize, dim: usize) -> Result<Self> {
        MatrixView::new(&data, rows, dim)?;
        Ok(Self { data, rows, dim })
    }

    /// A view of the whole matrix.
    pub fn view(&self) -> MatrixView<'_> {
        MatrixView {
            data: &self.data,
            rows: self.rows,
            dim: self.dim,
        }
    }

    /// The values, row after row.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }
}

impl<'a> MatrixView<'a> {
    /// Views `data` as `rows x dim`.
    ///
    /// # Errors
    /// A length other than `rows * dim`, or a width of zero.
    pub fn new(data: &'a [f32], rows: usize, dim: usize) -> Result<Self> {
        if dim == 0 || rows.checked_mul(dim) != Some(data.len()) {
            return Err(Error::data(
                "features",
                format!("expected {rows} x {dim} values, found {}", data.len()),
            ));
        }
        Ok(Self { data, rows, dim })
    }

    /// Number of rows n.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width d.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All values, row after row.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Row `index`. Panics past the end, like a slice.
    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.dim..(index + 1) * self.dim]
    }

    /// The rows of `range`. Panics past the end, like a slice.
    pub fn range(&self, range: Range<usize>) -> Self {
        Self {
            data: &self.data[range.start * self.dim..range.end * self.dim],
            rows: range.len(),
            dim: self.dim,
        }
    }

    /// The rows of `indices`, copied in that order. Panics past the end, like a slice.
    pub fn select(&self, indices: &[usize]) -> Matrix {
        let mut data = Vec::with_capacity(indices.len() * self.dim);
        for &index in indices {
            data.extend_from_slice(self.row(index));
        }
        Matrix {
            data,
            rows: indices.len(),
            dim: self.dim,
        }
    }

    /// Refuses NaN and infinity.
    ///
    /// # Errors
    /// Names `what`, the first offending value with its row and column, and the number of such rows.
    pub fn check_finite(&self, what: &str) -> Result<()> {
        match self.first_not_finite() {
            None => Ok(()),
            Some(found) => Err(Error::data(
                what,
                format!(
                    "expected finite values, found NaN or infinity in {} of {} rows, first {} in row {}, column {}",
                    found.rows, self.rows, found.value, found.row, found.column
                ),
            )),
        }
    }

    /// The first value that is NaN or infinite.
    pub fn first_not_finite(&self) -> Option<NotFinite> {
        let bad = |value: &f32| !value.is_finite();
        let mut rows = self
            .data
            .chunks_exact(self.dim)
            .enumerate()
            .filter(|(_, values)| values.iter().any(bad));
        let (row, values) = rows.next()?;
        let column = values.iter().position(bad)?;
        Some(NotFinite {
            row,
            column,
            value: values[column],
            rows: 1 + rows.count(),
        })
    }
}

/// Class labels as numbers `0..names.len()`, shared by train and test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet {
    /// Class names: numeric labels in numeric order, otherwise sorted as bytes.
    pub names: Vec<String>,
}

impl LabelSet {
    /// The classes of all labels given.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a str>) -> Self {
        let unique: std::collections::BTreeSet<&str> = labels.into_iter().collect();
        let mut names: Vec<String> = unique.into_iter().map(str::to_owned).collect();
        if let Ok(mut numbers) = names
            .iter()
            .map(|name| name.parse::<i64>().map(|number| (number, name.clone())))
            .collect::<std::result::Result<Vec<_>, _>>()
        {
            numbers.sort();
            names = numbers.into_iter().map(|(_, name)| name).collect();
        }
        Self { names }
    }

    /// The same classes with `more` behind them, in their order: what a test set has beyond them.
    #[must_use]
    pub fn followed_by<'a>(mut self, more: impl IntoIterator<Item = &'a str>) -> Self {
        self.names.extend(more.into_iter().map(str::to_owned));
        self
    }

    /// Number of classes.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no class.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Numbers of `labels`.
    ///
    /// # Errors
    /// Names the first label that is in no class.
    pub fn encode<'a>(&self, labels: impl IntoIterator<Item = &'a str>) -> Result<Vec<u32>> {
        let index: std::collections::BTreeMap<&str, u32> = self
            .names
            .iter()
            .enumerate()
            .map(|(i, name)| (name.as_str(), i as u32))
            .collect();
        labels
            .into_iter()
            .map(|label| {
                index
                    .get(label)
                    .copied()
                    .ok_or_else(|| Error::data("labels", format!("`{label}` is in no known class")))
            })
            .collect()
    }
}
