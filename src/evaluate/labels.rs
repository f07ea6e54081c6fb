//! The classes of an evaluation: those of train. Test labels that train lacks are an error that names them, or rows that
//! count as wrong where that is asked for.

use macula_eval::LabelSet;
use macula_eval::labels::{UnknownLabels, alike};
use serde_json::{Value, json};

use super::encode;
use crate::{Error, Result};

/// Labels of one side, and where each is from.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The folder or the option with its source.
    pub what: &'a str,
    /// Label of each row.
    pub labels: &'a [String],
    /// Path of each row.
    pub paths: &'a [String],
}

/// The classes of train and the numbers of both sides' labels.
#[derive(Debug)]
pub struct Classes {
    /// The classes of train, and behind them those that only test has.
    pub names: LabelSet,
    /// How many of them train has.
    pub known: usize,
    /// Class of each train row.
    pub train: Vec<u32>,
    /// Class of each test row, `known` or more where train has no such label.
    pub test: Vec<u32>,
    /// The labels that train lacks, where they are allowed.
    pub unknown: Option<UnknownLabels>,
}

/// Holds the labels of test against those of train. With `allow_unknown`, labels that train lacks become a notice.
///
/// # Errors
/// Train rows of a single class, named; without `allow_unknown`, test labels that train lacks: which, in how many rows,
/// the first row's path, and the class that each may mean.
pub fn classes(train: Side<'_>, test: Side<'_>, allow_unknown: bool) -> Result<Classes> {
    let known = LabelSet::from_labels(train.labels.iter().map(String::as_str));
    if let [only] = known.names.as_slice() {
        let reason = format!(
            "expected at least two classes, found only `{only}` in {} rows",
            train.labels.len()
        );
        return Err(Error::input(train.what, reason));
    }
    tell_alike(train.what, &known);
    let unknown = UnknownLabels::find(&known, test.labels.iter().map(String::as_str));
    if let Some(unknown) = &unknown {
        if !allow_unknown {
            return Err(refused(unknown, &known, train, test));
        }
        tracing::warn!(
            "{}: rows of labels that {} lacks count as wrong: {unknown}",
            test.what,
            train.what
        );
    }
    let more = unknown.iter().flat_map(|unknown| &unknown.labels);
    let names = known.clone().followed_by(more.map(|label| label.name.as_str()));
    Ok(Classes {
        train: encode(&names, train.labels)?,
        test: encode(&names, test.labels)?,
        known: known.len(),
        names,
        unknown,
    })
}

fn refused(unknown: &UnknownLabels, known: &LabelSet, train: Side<'_>, test: Side<'_>) -> Error {
    let stranger = |label: &String| !known.names.contains(label);
    let first = test
        .labels
        .iter()
        .position(stranger)
        .and_then(|row| test.paths.get(row));
    let first = first.map_or_else(String::new, |path| format!(", first {path}"));
    Error::input(
        test.what,
        format!(
            "expected labels that {} has, found {unknown}{first}; --allow-unknown-labels counts such rows as wrong",
            train.what
        ),
    )
}

/// Warns of classes that may be meant to be one.
pub fn tell_alike(what: &str, classes: &LabelSet) {
    for (first, second) in alike(classes) {
        tracing::warn!("{what}: `{first}` and `{second}` are two classes, spelt alike");
    }
}

/// Holds the labels of queries against those of a database, where a query without a match is allowed: it has none to find.
///
/// # Errors
/// Query labels that a label of the database is spelt like, unless `allow_unknown`.
pub fn queries(query: Side<'_>, database: Side<'_>, allow_unknown: bool) -> Result<()> {
    let known = LabelSet::from_labels(database.labels.iter().map(String::as_str));
    tell_alike(database.what, &known);
    let Some(unknown) = UnknownLabels::find(&known, query.labels.iter().map(String::as_str)) else {
        return Ok(());
    };
    match unknown.misspelt() {
        Some(misspelt) if !allow_unknown => Err(Error::input(
            query.what,
            format!(
                "expected labels as {} spells them, found {misspelt}; --allow-unknown-labels takes such rows for queries \
                 without a match",
                database.what
            ),
        )),
        _ => {
            tracing::warn!(
                "{}: queries without a match in {}: {unknown}",
                query.what,
                database.what
            );
            Ok(())
        }
    }
}

/// What a result says of labels that count as wrong; null where there are none.
pub fn describe_unknown(unknown: Option<&UnknownLabels>) -> Value {
    match unknown {
        None => Value::Null,
        Some(unknown) => json!({
            "rows": unknown.rows(),
            "classes": unknown.labels.iter().map(|label| &label.name).collect::<Vec<_>>(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|label| (*label).to_owned()).collect()
    }

    fn side<'a>(what: &'a str, labels: &'a [String]) -> Side<'a> {
        Side {
            what,
            labels,
            paths: labels,
        }
    }

    #[test]
    fn the_error_names_labels_rows_and_what_is_meant() {
        let (train, test) = (texts(&["0", "1", "0"]), texts(&["0", "1.0", "7", "1.0"]));
        let error = classes(
            side("features/train", &train),
            side("features/test", &test),
            false,
        )
        .unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(
            error.to_string(),
            "features/test: expected labels that features/train has, found 2 classes in 3 of 4 rows: `1.0` (2 rows; is it \
             `1`?), `7` (1 row), first 1.0; --allow-unknown-labels counts such rows as wrong"
        );
        let one = texts(&["0", "0"]);
        let error = classes(side("train", &one), side("test", &test), true)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "train: expected at least two classes, found only `0` in 2 rows"
        );
    }

    #[test]
    fn allowed_labels_stand_behind_the_classes_of_train() {
        let (train, test) = (texts(&["b", "c"]), texts(&["c", "a", "b"]));
        let found = classes(side("train", &train), side("test", &test), true).unwrap();
        assert_eq!(found.names.names, ["b", "c", "a"]);
        assert_eq!(
            (found.known, found.train, found.test),
            (2, vec![0, 1], vec![1, 2, 0])
        );
        assert_eq!(
            describe_unknown(found.unknown.as_ref()),
            json!({ "rows": 1, "classes": ["a"] })
        );
        let same = classes(side("train", &train), side("test", &train), false).unwrap();
        assert_eq!(describe_unknown(same.unknown.as_ref()), Value::Null);
    }

    #[test]
    fn queries_may_lack_a_match_but_not_by_their_spelling() {
        let (base, strange, misspelt) = (
            texts(&["cat", "dog"]),
            texts(&["cat", "eel"]),
            texts(&["eel", "Cat"]),
        );
        let run = |labels: &[String], allow| queries(side("query", labels), side("base", &base), allow);
        assert!(run(&base, false).is_ok() && run(&strange, false).is_ok() && run(&misspelt, true).is_ok());
        assert_eq!(
            run(&misspelt, false).unwrap_err().to_string(),
            "query: expected labels as base spells them, found 1 class in 1 of 2 rows: `Cat` (1 row; is it `cat`?); \
             --allow-unknown-labels takes such rows for queries without a match"
        );
    }
}
