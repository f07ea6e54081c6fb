//! Finding and reading `result.json` files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use macula_eval::table::RESULT_VERSION;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The file an evaluation keeps its result in.
pub const RESULT_FILE: &str = "result.json";
/// Folders below a given one that are looked into, so that a link to a parent ends.
const DEPTH: usize = 8;

/// One kept result.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredResult {
    /// The file.
    pub path: PathBuf,
    /// The name the user gave its model, if any.
    pub name: Option<String>,
    /// The protocol.
    pub task: String,
    /// What it ran with, and which model and rows it speaks of.
    pub settings: Map<String, Value>,
    /// Training rows.
    pub n_train: u64,
    /// Test rows.
    pub n_test: u64,
    /// The table, at least one row.
    pub rows: Vec<Map<String, Value>>,
}

impl StoredResult {
    /// The folder the result stands in, where its predictions are too.
    pub fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// The file, for messages.
    pub fn file(&self) -> String {
        self.path.display().to_string()
    }
}

/// Reads the results that `specs` name, in their order: a file, a folder with `result.json`, a folder with results below
/// it, and any of these as `NAME=PATH` to name the model. A file named twice counts once.
///
/// # Errors
/// Names the path or file, the field, what was expected and what was found.
pub fn read_all(specs: &[String]) -> Result<Vec<StoredResult>> {
    let mut results = Vec::new();
    let mut seen = BTreeSet::new();
    for spec in specs {
        let (name, path) = parse(spec)?;
        for file in files_of(&path)? {
            let identity = fs::canonicalize(&file).map_err(|e| Error::io(&file, e))?;
            if seen.insert(identity) {
                results.push(read(&file, name.clone())?);
            }
        }
    }
    if results.is_empty() {
        return Err(Error::input("report", "expected at least one result, found none"));
    }
    Ok(results)
}

/// `PATH` or `NAME=PATH`; a path that exists is a path, whatever it is called.
fn parse(spec: &str) -> Result<(Option<String>, PathBuf)> {
    if Path::new(spec).exists() {
        return Ok((None, PathBuf::from(spec)));
    }
    match spec.split_once('=') {
        Some((name, path)) if !name.trim().is_empty() && Path::new(path).exists() => {
            Ok((Some(name.trim().to_owned()), PathBuf::from(path)))
        }
        _ => Err(Error::input(
            spec,
            format!(
                "no such file or folder; expected {RESULT_FILE}, a folder that `macula eval` wrote with --out, a folder \
                 of such folders, or NAME=PATH"
            ),
        )),
    }
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    search(path, DEPTH, &mut found)?;
    if found.is_empty() {
        return Err(Error::input(
            path.display().to_string(),
            format!(
                "expected {RESULT_FILE} in this folder or below it, found none; `macula eval .. --out DIR` writes it"
            ),
        ));
    }
    Ok(found)
}

/// The result of `folder`, or those below it in the order of their names.
fn search(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let file = folder.join(RESULT_FILE);
    if file.is_file() {
        found.push(file);
        return Ok(());
    }
    if depth == 0 {
        return Ok(());
    }
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    folders
        .iter()
        .try_for_each(|below| search(below, depth - 1, found))
}

fn read(path: &Path, name: Option<String>) -> Result<StoredResult> {
    let file = || path.display().to_string();
    let text = fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => {
            Error::input(file(), "not a result: expected JSON text, found other bytes")
        }
        _ => Error::io(path, e),
    })?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Error::input(file(), format!("not a result: not JSON: {e}")))?;
    let wrong = |field: &str, expected: &str, found: Option<&Value>| {
        let found = found.map_or("nothing", kind);
        Error::input(
            file(),
            format!("not a result of `macula eval`: field `{field}`: expected {expected}, found {found}"),
        )
    };
    if let Some(version) = value
        .get("version")
        .and_then(Value::as_u64)
        .filter(|v| *v > RESULT_VERSION)
    {
        return Err(Error::input(
            file(),
            format!("expected version up to {RESULT_VERSION}, found {version}: written by a later macula"),
        ));
    }
    let text = |field: &str| match value.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => Err(wrong(field, "text", other)),
    };
    let whole = |field: &str| match value.get(field).and_then(Value::as_u64) {
        Some(number) => Ok(number),
        None => Err(wrong(field, "a whole number", value.get(field))),
    };
    let task = text("task")?;
    let settings = match value.get("settings") {
        Some(Value::Object(map)) => map.clone(),
        other => return Err(wrong("settings", "an object", other)),
    };
    let rows = match value.get("rows") {
        Some(Value::Array(rows)) => rows,
        other => return Err(wrong("rows", "a list of objects", other)),
    };
    let rows: Vec<Map<String, Value>> = rows
        .iter()
        .map(|row| match row {
            Value::Object(map) => Ok(map.clone()),
            other => Err(wrong("rows", "a list of objects", Some(other))),
        })
        .collect::<Result<_>>()?;
    if rows.is_empty() {
        return Err(Error::input(
            file(),
            "field `rows`: expected at least one row, found none",
        ));
    }
    Ok(StoredResult {
        path: path.to_owned(),
        name,
        task,
        settings,
        n_train: whole("n_train")?,
        n_test: whole("n_test")?,
        rows,
    })
}

/// What a JSON value is, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
