//! What results speak of: which model with which of its outputs, and which images. Two results belong to one row of a
//! report when both are the same, by hash where there is one; names are for people and are made different where two would
//! look alike.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::results::StoredResult;

/// Digits of a hash that tell two files of one name apart.
const HASH_DIGITS: usize = 6;

/// A model and the column of features that was evaluated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    model: String,
    column: String,
}

/// The name of each result's model, equal exactly where model and column are.
pub fn models(results: &[StoredResult]) -> Vec<String> {
    let identities: Vec<Identity> = results.iter().map(identity).collect();
    let mut names: BTreeMap<Identity, String> = BTreeMap::new();
    // From short to long: the first that no other model has.
    let forms: [fn(&StoredResult) -> String; 3] = [stem, file_name, with_hash];
    for (place, identity) in identities.iter().enumerate() {
        if names.contains_key(identity) {
            continue;
        }
        let clashes = |form: fn(&StoredResult) -> String| {
            let name = form(&results[place]);
            results
                .iter()
                .zip(&identities)
                .any(|(other, its)| its.model != identity.model && form(other) == name)
        };
        let form = forms
            .into_iter()
            .find(|form| !clashes(*form))
            .unwrap_or(with_hash);
        let mut name = form(&results[place]);
        let several = identities
            .iter()
            .any(|other| other.model == identity.model && other.column != identity.column);
        if several {
            name += &format!(" · {}", identity.column);
        }
        names.insert(identity.clone(), name);
    }
    identities
        .iter()
        .map(|identity| names[identity].clone())
        .collect()
}

fn identity(result: &StoredResult) -> Identity {
    let model = match (&result.name, result.settings.get("model")) {
        (Some(name), _) => format!("named {name}"),
        (None, Some(model)) => match model.get("sha256").and_then(Value::as_str) {
            Some(sha256) => sha256.to_owned(),
            None => model.to_string(),
        },
        (None, None) => result.folder().display().to_string(),
    };
    Identity {
        model,
        column: column(result),
    }
}

/// The column, `cls` where the linear probe took others beside it.
fn column(result: &StoredResult) -> String {
    let column = result
        .settings
        .get("column")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let has_cls = column.split(',').any(|part| part == "cls");
    if has_cls {
        "cls".to_owned()
    } else {
        column.to_owned()
    }
}

fn stem(result: &StoredResult) -> String {
    match (&result.name, file(result)) {
        (None, Some(file)) => {
            let stem = Path::new(file).file_stem();
            stem.map_or_else(|| file.to_owned(), |stem| stem.to_string_lossy().into_owned())
        }
        _ => file_name(result),
    }
}

fn file_name(result: &StoredResult) -> String {
    if let Some(name) = &result.name {
        return name.clone();
    }
    if let Some(file) = file(result) {
        return file.to_owned();
    }
    let kind = result.settings.get("model").and_then(|model| model.get("kind"));
    match kind.and_then(Value::as_str) {
        Some(kind) => kind.to_owned(),
        None => {
            let folder = result.folder().file_name().unwrap_or_default();
            folder.to_string_lossy().into_owned()
        }
    }
}

fn with_hash(result: &StoredResult) -> String {
    let model = result.settings.get("model");
    let sha256 = model
        .and_then(|model| model.get("sha256"))
        .and_then(Value::as_str);
    let tail = match sha256 {
        Some(sha256) => sha256.chars().take(HASH_DIGITS).collect(),
        None => result.folder().display().to_string(),
    };
    format!("{} ({tail})", file_name(result))
}

fn file(result: &StoredResult) -> Option<&str> {
    result.settings.get("model")?.get("file")?.as_str()
}

/// The images a result was measured on.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// Equal exactly where the images are, as far as the result says.
    pub key: String,
    /// For people.
    pub label: String,
}

/// The images of each result; labels differ where keys do.
pub fn data(results: &[StoredResult]) -> Vec<Data> {
    let mut all: Vec<Data> = results.iter().map(data_of).collect();
    // Equal test images after different training images.
    let clashing = |data: &Data, all: &[Data]| {
        all.iter()
            .any(|other| other.label == data.label && other.key != data.key)
    };
    let before = all.clone();
    for (data, result) in all.iter_mut().zip(results) {
        let same_task: Vec<Data> = before
            .iter()
            .zip(results)
            .filter(|(_, other)| other.task == result.task)
            .map(|(data, _)| data.clone())
            .collect();
        if clashing(data, &same_task) {
            data.label += &format!(", {} train rows", result.n_train);
        }
    }
    all
}

fn data_of(result: &StoredResult) -> Data {
    let source = |role: &str| result.settings.get(&format!("{role}_source"));
    let test = ["test", "query", "features"].into_iter().find_map(source);
    let train = ["train", "database"].into_iter().find_map(source);
    let key = |source: Option<&Value>| {
        let sha256 = source
            .and_then(|source| source.get("sha256"))
            .and_then(Value::as_str);
        match (sha256, source) {
            (Some(sha256), _) => sha256.to_owned(),
            (None, Some(source)) => source.to_string(),
            (None, None) => String::new(),
        }
    };
    match test {
        Some(Value::Object(map)) => Data {
            key: format!("{} after {}", key(test), key(train)),
            label: label(map).unwrap_or_else(|| rows(result)),
        },
        _ => Data {
            key: format!("{} of {}", result.n_test, result.n_train),
            label: rows(result),
        },
    }
}

fn rows(result: &StoredResult) -> String {
    format!("{} test rows", result.n_test)
}

/// A short name of a source: its file or folder, and its split.
fn label(source: &Map<String, Value>) -> Option<String> {
    let text = |key: &str| source.get(key).and_then(Value::as_str);
    let split = text("split");
    if text("kind") == Some("sample") {
        return Some(format!("sample:{}", split.unwrap_or_default()));
    }
    let path = Path::new(text("path")?);
    let mut name = path.file_name()?.to_string_lossy().into_owned();
    // `photos/test` says more than `test`.
    if ["train", "test", "val", "list.csv", "list.parquet"].contains(&name.as_str())
        && let Some(parent) = path.parent().and_then(Path::file_name)
    {
        name = format!("{}/{name}", parent.to_string_lossy());
    }
    Some(match split {
        Some(split) => format!("{name}#{split}"),
        None => name,
    })
}
