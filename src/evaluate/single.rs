//! One feature folder at a time: a column with its labels, for protocols that have no training set.

use std::collections::BTreeMap;
use std::path::Path;

use macula_eval::table::EvalResult;
use macula_eval::{LabelSet, Matrix, Share, Team};
use serde_json::json;

use super::labels::Side;
use crate::extract::folder::Features;
use crate::extract::{FeatureFolder, read_column, read_names};
use crate::{Error, Result};

/// One column of a folder, every row with its label.
#[derive(Debug)]
pub struct Labelled {
    /// Features, `[n, d]`, or those of this process's share of the rows.
    pub matrix: Matrix,
    /// Label of each row.
    pub labels: Vec<String>,
    /// Place of each row in its source.
    pub rows: Vec<u64>,
    /// Path of each row.
    pub paths: Vec<String>,
}

impl Labelled {
    /// The labels, under the name of their folder.
    pub fn side<'a>(&'a self, what: &'a str) -> Side<'a> {
        Side {
            what,
            labels: &self.labels,
            paths: &self.paths,
        }
    }
}

/// Reads a column with its labels.
///
/// # Errors
/// As [`read_column`]; rows without a label, with their number and the first.
pub fn read_labelled(folder: &FeatureFolder, column: &str) -> Result<Labelled> {
    let (what, why) = described(folder);
    labelled(&what, read_column(folder, column)?, why)
}

/// As [`read_labelled`], where this process of `team` keeps the features of its share of the rows alone.
///
/// # Errors
/// As there.
pub fn read_labelled_share(folder: &FeatureFolder, column: &str, team: &dyn Team) -> Result<Labelled> {
    if team.size() == 1 {
        return read_labelled(folder, column);
    }
    let names = read_names(folder, column)?;
    let own = &names.rows[Share::range(names.rows.len(), team)];
    let matrix = folder.values(column, own)?;
    let (what, why) = described(folder);
    labelled(&what, Features::new(matrix, names), why)
}

/// The name of `folder`, and why its rows may have no label.
fn described(folder: &FeatureFolder) -> (String, Option<&str>) {
    let why = folder.meta().source["no_labels"].as_str();
    (folder.path().display().to_string(), why)
}

/// Features of `what` with the label of every row; `why` says why there may be none.
///
/// # Errors
/// Rows without a label, with their number and the first.
pub fn labelled(what: &str, features: Features, why: Option<&str>) -> Result<Labelled> {
    let labels = all_labelled(what, features.labels, &features.paths, why)?;
    Ok(Labelled {
        matrix: features.matrix,
        labels,
        rows: features.rows,
        paths: features.paths,
    })
}

/// The label of every row of `what`, whose paths are `paths`.
///
/// # Errors
/// Rows without a label: how many, and the first.
pub fn all_labelled(
    what: &str,
    labels: Vec<Option<String>>,
    paths: &[String],
    why: Option<&str>,
) -> Result<Vec<String>> {
    let n = labels.len();
    let Some(first) = labels.iter().position(Option::is_none) else {
        return Ok(labels.into_iter().flatten().collect());
    };
    let without = labels.iter().filter(|label| label.is_none()).count();
    Err(Error::input(
        what,
        format!(
            "expected a label for every row, found none for {without} of {n} rows, first {}{}",
            paths.get(first).map_or("", String::as_str),
            why.map_or(String::new(), |why| format!("; {why}"))
        ),
    ))
}

/// Numbers of `labels` among `classes`.
///
/// # Errors
/// Names a label that is in no class.
pub fn encode(classes: &LabelSet, labels: &[String]) -> Result<Vec<u32>> {
    Ok(classes.encode(labels.iter().map(String::as_str))?)
}

/// The rows of `features` in the order of `names`, matched by file name without folder and ending.
///
/// # Errors
/// Names `folder` and a name that no row or more than one row has.
pub fn by_name(folder: &Path, features: &Features, names: &[String]) -> Result<Matrix> {
    let stem = |path: &str| -> String {
        let stem = Path::new(path).file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    };
    let mut rows: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (row, path) in features.paths.iter().enumerate() {
        rows.entry(stem(path)).or_default().push(row);
    }
    let find = |name: &String| match rows.get(&stem(name)).map(Vec::as_slice) {
        Some([row]) => Ok(*row),
        found => Err(Error::input(
            folder.display().to_string(),
            format!(
                "expected one row for the image `{name}` of the ground truth, found {}",
                found.map_or(0, <[usize]>::len)
            ),
        )),
    };
    let order = names.iter().map(find).collect::<Result<Vec<usize>>>()?;
    Ok(features.matrix.view().select(&order))
}

/// Writes into a result's settings which column of which folders (each under its role) and which model it speaks of.
pub fn describe_folders(result: &mut EvalResult, column: &str, folders: &[(&str, &FeatureFolder)]) {
    let serde_json::Value::Object(map) = &mut result.settings else {
        return;
    };
    map.insert("column".to_owned(), json!(column));
    for (role, folder) in folders {
        map.insert((*role).to_owned(), json!(folder.path().display().to_string()));
        map.insert(format!("{role}_source"), folder.meta().source.clone());
        map.insert(format!("{role}_fingerprint"), json!(folder.meta().fingerprint));
    }
    if let Some((_, first)) = folders.first() {
        map.insert("model".to_owned(), first.meta().model.clone());
    }
    map.insert("tool_version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
}
