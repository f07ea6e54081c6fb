//! What every protocol asks of its data, in the same words.

use crate::{Error, MatrixView, Result};

/// Features and labels of train and test that go together: rows on both sides, one width, finite values, labels within
/// the classes, and at least two classes to tell apart.
///
/// # Errors
/// [`Error::Data`] for the first of these that does not hold.
pub(crate) fn pair(
    train: MatrixView<'_>,
    train_labels: &[u32],
    test: MatrixView<'_>,
    test_labels: &[u32],
    n_classes: usize,
) -> Result<()> {
    side("train", train, train_labels, n_classes)?;
    side("test", test, test_labels, n_classes)?;
    if train.dim() != test.dim() {
        return Err(Error::data(
            "test features",
            format!(
                "expected width {} as in training, found {}",
                train.dim(),
                test.dim()
            ),
        ));
    }
    two_classes(train_labels)
}

/// One side of [`pair`], `train` or `test`: at least one row, finite values, labels within the classes.
///
/// # Errors
/// [`Error::Data`] for the first of these that does not hold.
pub(crate) fn side(
    name: &str,
    features: MatrixView<'_>,
    side_labels: &[u32],
    n_classes: usize,
) -> Result<()> {
    let what = format!("{name} features");
    if features.rows() == 0 {
        return Err(Error::data(what, "expected at least one row, found none"));
    }
    features.check_finite(&what)?;
    labels(&format!("{name} labels"), features.rows(), side_labels, n_classes)
}

/// One label a row, each below `n_classes`, of which there are at least two.
///
/// # Errors
/// [`Error::Data`] about `what`.
pub(crate) fn labels(what: &str, rows: usize, labels: &[u32], n_classes: usize) -> Result<()> {
    if n_classes < 2 {
        return Err(Error::data(
            what,
            format!("expected at least two classes, found {n_classes}"),
        ));
    }
    if labels.len() != rows {
        return Err(Error::data(
            what,
            format!("expected {rows} labels, one a row, found {}", labels.len()),
        ));
    }
    match labels.iter().position(|&label| label as usize >= n_classes) {
        None => Ok(()),
        Some(row) => Err(Error::data(
            what,
            format!(
                "expected labels below {n_classes}, found {} in row {row}",
                labels[row]
            ),
        )),
    }
}

/// Training rows of more than one class.
///
/// # Errors
/// [`Error::Data`] naming the only class.
pub(crate) fn two_classes(train_labels: &[u32]) -> Result<()> {
    match train_labels.first() {
        Some(first) if train_labels.iter().all(|label| label == first) => Err(Error::data(
            "train labels",
            format!("expected at least two classes, found only class {first}"),
        )),
        _ => Ok(()),
    }
}

/// At least one row, finite values and one label a row.
///
/// # Errors
/// [`Error::Data`] about the side `name`.
pub(crate) fn rows_with_labels(name: &str, features: MatrixView<'_>, labels: &[u32]) -> Result<()> {
    if features.rows() == 0 {
        return Err(Error::data(name, "expected at least one row, found none"));
    }
    if labels.len() != features.rows() {
        return Err(Error::data(
            format!("{name} labels"),
            format!(
                "expected {} labels, one a row, found {}",
                features.rows(),
                labels.len()
            ),
        ));
    }
    features.check_finite(name)
}

/// Two matrices of one width.
///
/// # Errors
/// [`Error::Data`] about `what`, naming the width of `other`.
pub(crate) fn same_width(
    what: &str,
    features: MatrixView<'_>,
    other: &str,
    expected: MatrixView<'_>,
) -> Result<()> {
    if features.dim() == expected.dim() {
        return Ok(());
    }
    Err(Error::data(
        what,
        format!(
            "expected width {} as {other}, found {}",
            expected.dim(),
            features.dim()
        ),
    ))
}
