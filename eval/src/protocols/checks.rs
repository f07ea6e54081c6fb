//! What every protocol asks of its data, in the same words.

use std::collections::BTreeSet;

use crate::{Error, MatrixView, Result, Split, TrainTest};

/// Features and labels of train and test that go together: rows on both sides, one width, finite values, training labels
/// within the classes, at least two classes to tell apart, and test labels that training has unless `allow_unknown`.
///
/// # Errors
/// [`Error::Data`] for the first of these that does not hold.
pub(crate) fn pair(data: &TrainTest<'_>, allow_unknown: bool) -> Result<()> {
    let TrainTest {
        train,
        test,
        n_classes,
    } = data;
    side("train", train, *n_classes)?;
    rows_with_values("test features", test.features)?;
    same_width("test features", test.features, "in training", train.features)?;
    two_classes(train.labels)?;
    labels_of_test(test.features.rows(), test.labels, train.labels, allow_unknown)
}

/// One label for each of `rows` test rows; unless `allow_unknown`, one that a training row has.
///
/// # Errors
/// [`Error::Data`] with the labels that training lacks and the number of their rows. Whoever knows the names of the
/// classes checks before ([`crate::labels::UnknownLabels`]); here they are numbers.
pub(crate) fn labels_of_test(
    rows: usize,
    test_labels: &[u32],
    train_labels: &[u32],
    allow_unknown: bool,
) -> Result<()> {
    const WHAT: &str = "test labels";
    one_a_row(WHAT, rows, test_labels)?;
    if allow_unknown {
        return Ok(());
    }
    let known: BTreeSet<u32> = train_labels.iter().copied().collect();
    let unknown: Vec<u32> = test_labels
        .iter()
        .copied()
        .filter(|label| !known.contains(label))
        .collect();
    let Some(first) = unknown.first() else {
        return Ok(());
    };
    let labels: BTreeSet<u32> = unknown.iter().copied().collect();
    Err(Error::data(
        WHAT,
        format!(
            "expected labels that the train rows have, found {} others in {} of {rows} rows, first {first}",
            labels.len(),
            unknown.len()
        ),
    ))
}

pub(crate) fn rows_with_values(what: &str, features: MatrixView<'_>) -> Result<()> {
    if features.rows() == 0 {
        return Err(Error::data(what, "expected at least one row, found none"));
    }
    features.check_finite(what)
}

fn one_a_row(what: &str, rows: usize, labels: &[u32]) -> Result<()> {
    if labels.len() == rows {
        return Ok(());
    }
    Err(Error::data(
        what,
        format!("expected {rows} labels, one a row, found {}", labels.len()),
    ))
}

/// A side of [`pair`]: at least one row, finite values, labels within the classes.
///
/// # Errors
/// [`Error::Data`] for the first of these that does not hold.
pub(crate) fn side(name: &str, side: &Split<'_>, n_classes: usize) -> Result<()> {
    rows_with_values(&format!("{name} features"), side.features)?;
    let rows = side.features.rows();
    labels(&format!("{name} labels"), rows, side.labels, n_classes)
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
    one_a_row(what, rows, labels)?;
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
    one_a_row(&format!("{name} labels"), features.rows(), labels)?;
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
