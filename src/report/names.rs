//! What results speak of: which model with which of its outputs, and which images. Two results belong to one row of a
//! report when both are the same, by hash where there is one; names are for people and are made different where two would
//! look alike.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::files;
use crate::identity::{Difference, difference, fingerprint_in, source_difference};
use crate::results::StoredResult;

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
    let keys = keys(results);
    let mut all: Vec<Data> = results
        .iter()
        .zip(keys)
        .map(|(result, key)| Data {
            key,
            label: test_label(result),
        })
        .collect();
    // Equal test images after different training images.
    tell_apart(&mut all, results, |result, _| {
        format!(", {} train rows", result.n_train)
    });
    // Images that were replaced where they lie.
    tell_apart(&mut all, results, |_, key| {
        let digits = files::hex(&Sha256::digest(key))[..HASH_DIGITS].to_owned();
        format!(" ({digits})")
    });
    all
}

/// Adds to the labels of different images that are called alike in one protocol.
fn tell_apart(all: &mut [Data], results: &[StoredResult], more: impl Fn(&StoredResult, &str) -> String) {
    let before = all.to_vec();
    for (data, result) in all.iter_mut().zip(results) {
        let mut same_task = before
            .iter()
            .zip(results)
            .filter(|(_, other)| other.task == result.task);
        if same_task.any(|(other, _)| other.label == data.label && other.key != data.key) {
            data.label += &more(result, &data.key);
        }
    }
}

/// Of each result a text that is equal for equal images: by their fingerprints, or for results without by what they say of
/// their sources. A result without joins those with a fingerprint that say the same of their sources.
fn keys(results: &[StoredResult]) -> Vec<String> {
    let stated: Vec<String> = results.iter().map(stated_key).collect();
    let made: Vec<Option<String>> = results.iter().map(fingerprint_key).collect();
    let known = |stated_here: &String| {
        let mut others = stated.iter().zip(&made);
        others.find_map(|(other, made)| made.clone().filter(|_| other == stated_here))
    };
    stated
        .iter()
        .zip(&made)
        .map(|(stated, made)| {
            made.clone()
                .or_else(|| known(stated))
                .unwrap_or_else(|| stated.clone())
        })
        .collect()
}

const TEST_ROLES: [&str; 3] = ["test", "query", "features"];
const TRAIN_ROLES: [&str; 2] = ["train", "database"];

fn fingerprint_key(result: &StoredResult) -> Option<String> {
    let images = |role: &&str| {
        let made = fingerprint_in(&result.settings, role)?;
        serde_json::to_string(&made.source).ok()
    };
    let test = TEST_ROLES.iter().find_map(images)?;
    let train = TRAIN_ROLES.iter().find_map(images).unwrap_or_default();
    Some(format!("{test} after {train}"))
}

fn stated_key(result: &StoredResult) -> String {
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
    match source(result, &TEST_ROLES) {
        test @ Some(Value::Object(_)) => {
            format!("{} after {}", key(test), key(source(result, &TRAIN_ROLES)))
        }
        _ => format!("{} of {}", result.n_test, result.n_train),
    }
}

fn source<'a>(result: &'a StoredResult, roles: &[&str]) -> Option<&'a Value> {
    roles
        .iter()
        .find_map(|role| result.settings.get(&format!("{role}_source")))
}

fn test_label(result: &StoredResult) -> String {
    match source(result, &TEST_ROLES) {
        Some(Value::Object(map)) => label(map).unwrap_or_else(|| rows(result)),
        _ => rows(result),
    }
}

/// Where results of one protocol speak of other images under one name, a line each: the images were replaced.
pub fn replaced(results: &[StoredResult], data: &[Data]) -> Vec<String> {
    let images = |result: &StoredResult| {
        let mut roles = TEST_ROLES.iter();
        Some(
            roles
                .find_map(|role| fingerprint_in(&result.settings, role))?
                .source,
        )
    };
    let mut notes = Vec::new();
    for (place, result) in results.iter().enumerate() {
        // The first that it differs from is enough.
        let differs = results[..place].iter().zip(data).find_map(|(earlier, its)| {
            let of_one_name = earlier.task == result.task && test_label(earlier) == test_label(result);
            if !of_one_name || its.key == data[place].key {
                return None;
            }
            let differs = source_difference(&images(earlier)?, &images(result)?)?;
            Some((earlier.file(), differs))
        });
        if let Some((earlier, differs)) = differs {
            notes.push(format!(
                "{}: {earlier} and {} speak of different test images ({})",
                test_label(result),
                result.file(),
                differs.both()
            ));
        }
    }
    notes
}

/// The options of decoding in which the test images of two results were read differently: other than size and
/// normalisation, no model needs them to be its own.
pub fn read_differently(a: &StoredResult, b: &StoredResult) -> Option<Difference> {
    let made = |result: &StoredResult| {
        let mut roles = TEST_ROLES.iter();
        roles.find_map(|role| fingerprint_in(&result.settings, role))
    };
    difference("decode", made(a)?.decoding(), made(b)?.decoding())
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
