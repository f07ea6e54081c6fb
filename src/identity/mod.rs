//! What was computed: a [`Fingerprint`] of model, preprocessing and source, made here and nowhere else, and compared wherever
//! two things meet. `model` hashes the files of a model; the images are [`SourceIdentity`]'s; preprocessing is the whole of
//! the structs that decide about pixels, so that an option added to them is covered without a word here. [`difference`]
//! names the first field in which two of anything differ.

mod model;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::{DecodeOptions, Preprocess, SourceIdentity};
use crate::{Error, Result};

pub use model::OnnxFiles;

/// Fields of a model's description that say where it was and what ran it, not which model it is.
const CIRCUMSTANCES: [&str; 3] = [FILE, "runtime", "providers"];
/// The one of them that says nothing about the numbers: a renamed file is the same model.
const FILE: &str = "file";
/// Where the options of decoding stand among those of preprocessing.
const DECODE: &str = "decode";
/// Digits of a hash in a message.
const HASH_DIGITS: usize = 12;
/// Characters of any other value in a message.
const VALUE_CHARACTERS: usize = 60;

/// What features were computed from. Equal fingerprints mean equal features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The model: the hash of its files, and the settings that its file does not hold.
    pub model: Value,
    /// Everything between a file's bytes and network input: decoding and preprocessing.
    pub preprocess: Value,
    /// The images.
    pub source: SourceIdentity,
}

impl Fingerprint {
    /// That of the model that describes itself as `model`, on the images of `source`, decoded and prepared so.
    ///
    /// # Errors
    /// None for any options; the type follows serde's.
    pub fn new(
        model: &Value,
        preprocess: &Preprocess,
        decode: &DecodeOptions,
        source: SourceIdentity,
    ) -> Result<Self> {
        Ok(Self {
            model: model_of(model),
            preprocess: preprocess_of(preprocess, decode)?,
            source,
        })
    }

    /// The part of preprocessing that no model needs to have of its own: how files are decoded.
    pub fn decoding(&self) -> &Value {
        &self.preprocess[DECODE]
    }
}

/// Which model a description speaks of, wherever its file lies and whatever runs it.
pub fn model_of(description: &Value) -> Value {
    without(description, &CIRCUMSTANCES)
}

/// The same with what runs it: rows that lie in one folder are made in one way to the last bit.
pub fn model_and_runtime_of(description: &Value) -> Value {
    without(description, &[FILE])
}

fn without(description: &Value, fields: &[&str]) -> Value {
    match description {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, _)| !fields.contains(&key.as_str()));
            Value::Object(kept.map(|(key, value)| (key.clone(), value.clone())).collect())
        }
        other => other.clone(),
    }
}

/// Every option between a file's bytes and network input.
///
/// # Errors
/// None for any options; the type follows serde's.
pub fn preprocess_of(preprocess: &Preprocess, decode: &DecodeOptions) -> Result<Value> {
    let mut fields = plain(preprocess)?;
    fields[DECODE] = decoding_of(decode)?;
    Ok(fields)
}

/// Every option of decoding.
///
/// # Errors
/// None for any options; the type follows serde's.
pub fn decoding_of(decode: &DecodeOptions) -> Result<Value> {
    plain(decode)
}

/// `options` as they stand in a file: through text, in which numbers are as short as they can be.
fn plain(options: &impl Serialize) -> Result<Value> {
    serde_json::to_string(options)
        .and_then(|text| serde_json::from_str(&text))
        .map_err(|e| Error::failed("fingerprint", e.to_string()))
}

/// The fingerprint that the settings of a kept result have of its `train`, `test` or other rows; none in an older result.
pub fn fingerprint_in(settings: &Map<String, Value>, role: &str) -> Option<Fingerprint> {
    let found = settings.get(&format!("{role}_fingerprint"))?;
    serde_json::from_value(found.clone()).ok()
}

/// A field in which two things differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field, with points between names: `source.labels`.
    pub field: String,
    /// Its value in the first, shortened.
    pub first: String,
    /// Its value in the second, shortened.
    pub second: String,
}

impl fmt::Display for Difference {
    /// As an error says it: the first is what was expected.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: expected {}, found {}",
            self.field, self.first, self.second
        )
    }
}

impl Difference {
    /// As a notice says it, where neither is more right than the other.
    pub fn both(&self) -> String {
        format!("{} {} and {}", self.field, self.first, self.second)
    }
}

/// The first field of `first` or `second` that differs, under the name `field`; none where they are the same.
pub fn difference(field: &str, first: &Value, second: &Value) -> Option<Difference> {
    if let (Value::Object(a), Value::Object(b)) = (first, second) {
        let inner = |key: &str| match field {
            "" => key.to_owned(),
            field => format!("{field}.{key}"),
        };
        let own = a
            .iter()
            .map(|(key, value)| (key, value, b.get(key).unwrap_or(&Value::Null)));
        let spare = b.iter().filter(|(key, _)| !a.contains_key(*key));
        return own
            .chain(spare.map(|(key, value)| (key, &Value::Null, value)))
            .find_map(|(key, a, b)| difference(&inner(key), a, b));
    }
    (!same(first, second)).then(|| Difference {
        field: field.to_owned(),
        first: short(first),
        second: short(second),
    })
}

/// [`difference`] of two sources of images.
pub fn source_difference(first: &SourceIdentity, second: &SourceIdentity) -> Option<Difference> {
    // In the order of the struct: what people can read comes before hashes.
    let fields: [fn(&SourceIdentity) -> Value; 6] = [
        |source| source.images.into(),
        |source| source.bytes.into(),
        |source| source.labels.as_str().into(),
        |source| source.names.as_str().into(),
        |source| source.sizes.as_str().into(),
        |source| source.samples.as_str().into(),
    ];
    let names = ["images", "bytes", "labels", "names", "sizes", "samples"];
    names
        .iter()
        .zip(fields)
        .find_map(|(name, of)| difference(&format!("source.{name}"), &of(first), &of(second)))
}

/// How features were made, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub struct Made<'a> {
    /// What the features are called in a notice: their folder.
    pub name: &'a str,
    /// The description of their model.
    pub model: &'a Value,
    /// Their preprocessing.
    pub preprocess: Option<&'a Value>,
}

/// Why comparing features made so and so is unfair, a line each: other models, other preprocessing.
pub fn unfair(a: &Made, b: &Made) -> Vec<String> {
    let both = |what: &str, found: Difference| {
        format!("{} and {} were made {what} ({})", a.name, b.name, found.both())
    };
    let model = difference("model", &model_of(a.model), &model_of(b.model));
    let preprocess = a.preprocess.zip(b.preprocess);
    let preprocess = preprocess.and_then(|(a, b)| difference("preprocess", a, b));
    let notices = [
        model.map(|found| both("by different models", found)),
        preprocess.map(|found| both("with different preprocessing", found)),
    ];
    notices.into_iter().flatten().collect()
}

/// Equal values; fractions may differ by what writing and reading them does.
fn same(first: &Value, second: &Value) -> bool {
    match (first, second) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            (a - b).abs() <= 1e-12 * a.abs().max(b.abs())
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b,
    }
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let is_hash = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let max = if is_hash { HASH_DIGITS } else { VALUE_CHARACTERS };
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
