//! What a suite's file says: models, data sets and tasks by name. Whatever is not named here is a flag of the verbs that a table's
//! entries come to, so that a suite can say all that the command line can.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use toml::Value;

use crate::{Error, Result};

/// Flags by name, without dashes.
pub(super) type Flags = BTreeMap<String, Value>;

/// A suite.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SuiteFile {
    /// What is compared.
    pub models: BTreeMap<String, Model>,
    /// What it is compared on.
    pub data: BTreeMap<String, Data>,
    /// By which protocols.
    pub tasks: BTreeMap<String, Task>,
    /// Of the report at the end.
    #[serde(default)]
    pub report: Flags,
}

/// A model.
#[derive(Debug, Deserialize)]
pub(super) struct Model {
    /// ONNX file, checkpoint, `pixels` or `hog`.
    pub model: String,
    /// Flags of extraction alone: `output`, `dtype`, `normalize`.
    #[serde(default)]
    pub extract: Flags,
    /// Vectors of texts by its text tower, by data set: of the classes, for zero-shot classification.
    #[serde(default)]
    pub text: BTreeMap<String, String>,
    /// The same of captions, for retrieval between images and texts.
    #[serde(default)]
    pub captions: BTreeMap<String, String>,
    /// Flags of every verb that runs the model: architecture and preprocessing.
    #[serde(flatten)]
    pub flags: Flags,
}

/// A data set. A task is for the data sets that have the parts it needs.
#[derive(Debug, Deserialize)]
pub(super) struct Data {
    /// Images to learn on.
    pub train: Option<String>,
    /// Images that are scored.
    pub test: Option<String>,
    /// Images to search for.
    pub query: Option<String>,
    /// Images that are searched.
    pub database: Option<String>,
    /// Tasks it takes part in; all that it has the parts for where there is no such list.
    pub tasks: Option<Vec<String>>,
    /// Flags of every verb that reads its images: columns.
    #[serde(flatten)]
    pub flags: Flags,
}

/// A task.
#[derive(Debug, Deserialize)]
pub(super) struct Task {
    /// A verb of `macula eval`; the task's own name where none is given.
    pub protocol: Option<String>,
    /// Its flags.
    #[serde(flatten)]
    pub flags: Flags,
}

impl SuiteFile {
    /// Reads `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is no TOML or not a suite; names that are no names of folders; a list of tasks that names others.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| Error::input(&name, error.to_string()))?;
        let suite: Self = toml::from_str(&text).map_err(|error| Error::input(&name, error.to_string()))?;
        suite.check().map_err(|reason| Error::input(&name, reason))?;
        Ok(suite)
    }

    fn check(&self) -> std::result::Result<(), String> {
        for (kind, names) in [
            ("models", self.models.keys().collect::<Vec<_>>()),
            ("data", self.data.keys().collect()),
            ("tasks", self.tasks.keys().collect()),
        ] {
            if names.is_empty() {
                return Err(format!("{kind}: expected at least one, found none"));
            }
            for name in names {
                let fits = |c: char| c.is_alphanumeric() || "-_.".contains(c);
                if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
                    return Err(format!(
                        "{kind}.{name}: expected a name of letters, digits, `-`, `_` and `.` that begins with none of these dots"
                    ));
                }
            }
        }
        for (name, model) in &self.models {
            for (kind, files) in [("text", &model.text), ("captions", &model.captions)] {
                if let Some(data) = files.keys().find(|data| !self.data.contains_key(*data)) {
                    let known: Vec<&str> = self.data.keys().map(String::as_str).collect();
                    return Err(format!(
                        "models.{name}.{kind}: expected {}, found {data}",
                        known.join(", ")
                    ));
                }
            }
        }
        for (name, data) in &self.data {
            for task in data.tasks.iter().flatten() {
                if !self.tasks.contains_key(task) {
                    let known: Vec<&str> = self.tasks.keys().map(String::as_str).collect();
                    return Err(format!(
                        "data.{name}.tasks: expected {}, found {task}",
                        known.join(", ")
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Flags as the command line takes them; `place` names the table in errors.
///
/// # Errors
/// A value that no flag takes.
pub(super) fn arguments(place: &str, flags: &Flags) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for (name, value) in flags {
        let flag = format!("--{}", name.replace('_', "-"));
        match value {
            Value::Boolean(true) => arguments.push(flag),
            Value::Boolean(false) => {}
            // In one word, so that a value may begin with a dash.
            _ => {
                let text = text(value).ok_or_else(|| {
                    let reason =
                        format!("expected a text, a number, true, false or a list of such, found {value}");
                    Error::input(format!("{place}.{name}"), reason)
                })?;
                arguments.push(format!("{flag}={text}"));
            }
        }
    }
    Ok(arguments)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Array(values) => {
            let texts: Option<Vec<String>> = values.iter().map(text).collect();
            Some(texts?.join(","))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_become_flags() {
        let flags: Flags =
            toml::from_str("k = [10, 20]\nlabel_column = 'a b'\nexif = true\nforce = false\nlow = -0.5")
                .unwrap();
        assert_eq!(
            arguments("tasks.knn", &flags).unwrap(),
            ["--exif", "--k=10,20", "--label-column=a b", "--low=-0.5"]
        );
        let flags: Flags = toml::from_str("k = { a = 1 }").unwrap();
        let error = arguments("tasks.knn", &flags).unwrap_err().to_string();
        assert!(error.starts_with("tasks.knn.k: expected a text"), "{error}");
    }
}
