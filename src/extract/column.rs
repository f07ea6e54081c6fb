//! Columns of a feature folder by name: the one to take where none was named, class tokens of blocks, rows with features.

use super::FeatureFolder;
use super::folder::{Features, Names};
use crate::{Error, Result};

/// The column to use where none was named: `cls` where there is one, else the class token of the last block that is there,
/// else the first output.
pub fn default_column(folder: &FeatureFolder) -> String {
    let outputs = &folder.meta().outputs;
    if outputs.iter().any(|output| output.name == "cls") {
        return "cls".to_owned();
    }
    match (cls_blocks(folder).last(), outputs.first()) {
        (Some(&block), _) => cls_of(block),
        (None, Some(first)) => first.name.clone(),
        (None, None) => "cls".to_owned(),
    }
}

/// The blocks whose class tokens a folder holds as `layer:I.cls`, in order.
pub fn cls_blocks(folder: &FeatureFolder) -> Vec<usize> {
    let block = |name: &str| name.strip_prefix("layer:")?.strip_suffix(".cls")?.parse().ok();
    let outputs = folder.meta().outputs.iter();
    let mut blocks: Vec<usize> = outputs.filter_map(|output| block(&output.name)).collect();
    blocks.sort_unstable();
    blocks
}

/// The column of a block's class token.
pub fn cls_of(block: usize) -> String {
    format!("layer:{block}.cls")
}

/// Reads a column; rows without features are left out with a notice.
///
/// # Errors
/// A column that is not there, a damaged part, or no row with features.
pub fn read_column(folder: &FeatureFolder, column: &str) -> Result<Features> {
    with_features(&folder.path().display().to_string(), folder.read(column)?)
}

/// The features of `what`, with a notice where rows are left out.
///
/// # Errors
/// No row with features.
pub fn with_features(what: &str, features: Features) -> Result<Features> {
    check_rows(what, features.rows.len(), features.n_null)?;
    Ok(features)
}

/// As [`read_column`], without the features.
///
/// # Errors
/// As there.
pub fn read_names(folder: &FeatureFolder, column: &str) -> Result<Names> {
    let names = folder.names(column)?;
    check_rows(
        &folder.path().display().to_string(),
        names.rows.len(),
        names.n_null,
    )?;
    Ok(names)
}

fn check_rows(what: &str, rows: usize, null: u64) -> Result<()> {
    if null > 0 {
        tracing::warn!("{what}: {null} rows without features are left out");
    }
    if rows == 0 {
        return Err(Error::input(
            what,
            "expected at least one row with features, found none",
        ));
    }
    Ok(())
}
