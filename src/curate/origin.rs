//! Where the image of a row lies: its file, or its row of a source without files. The source is the one that `--data`
//! names, else the one that the feature folder says it was made from.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::data::{self, Columns, Source};
use crate::extract::FeatureFolder;
use crate::extract::folder::Names;
use crate::{Error, Result};

/// The source of a feature folder's rows, where it can be opened.
pub(crate) struct Origin {
    source: Option<(String, Box<dyn Source>)>,
    /// Whether paths are files as they stand (read from stdin).
    paths_are_files: bool,
    /// Why there is no source.
    pub(crate) missing: Option<String>,
}

impl Origin {
    /// Opens the source of the rows `names`: `data` where it is given, else what the folder's `meta.json` says.
    ///
    /// # Errors
    /// A source given by the user that cannot be opened, or is not the one the features were made from.
    pub(crate) fn open(folder: &FeatureFolder, data: Option<&str>, names: &Names) -> Result<Self> {
        let described = &folder.meta().source;
        let check = |spec: &str| -> Result<Box<dyn Source>> {
            let source = data::open(spec)?;
            folder.check_source((&names.rows, &names.paths), source.as_ref(), spec)?;
            Ok(source)
        };
        if let Some(spec) = data {
            return Ok(Self::new(spec, check(spec)?));
        }
        let paths_are_files = described["kind"] == "paths";
        let without = |missing: String| Self {
            source: None,
            paths_are_files,
            missing: Some(missing),
        };
        let Some(spec) = spec_of(described) else {
            let name = folder.path().display();
            return Ok(without(format!(
                "{name} does not say which source it was made from; give --data"
            )));
        };
        Ok(match check(&spec) {
            Ok(source) => Self::new(&spec, source),
            Err(error) => without(format!("{error}; give --data")),
        })
    }

    /// The source that `spec` names.
    pub(crate) fn new(spec: &str, source: Box<dyn Source>) -> Self {
        Self {
            source: Some((absolute_spec(spec, source.as_ref()), source)),
            paths_are_files: false,
            missing: None,
        }
    }

    /// The source, or an error that says why images cannot be read for `what`.
    ///
    /// # Errors
    /// No source.
    pub(crate) fn source(&self, what: &str) -> Result<&dyn Source> {
        let missing = || self.missing.clone().unwrap_or_default();
        let source = self.source.as_ref().map(|(_, source)| source.as_ref());
        source.ok_or_else(|| Error::setting(what, format!("expected images to read: {}", missing())))
    }

    /// The path that a list gives for a row whose path in the features is `path`, and the source it is a row of where it
    /// is no file.
    pub(crate) fn locate(&self, row: u64, path: &str) -> (String, Option<&str>) {
        match &self.source {
            Some((spec, source)) => match source.file(row) {
                Some(file) => (absolute(&file), None),
                None => (path.to_owned(), Some(spec)),
            },
            None if self.paths_are_files => (absolute(Path::new(path)), None),
            None => (path.to_owned(), None),
        }
    }
}

fn absolute(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    whole.to_string_lossy().into_owned()
}

/// What a user would type for the source that `meta.json` describes.
fn spec_of(described: &Value) -> Option<String> {
    let text = |key: &str| described[key].as_str();
    let name = |value: &Value| value.as_str().map(str::to_owned);
    match text("kind")? {
        "folder" | "layout" | "tar" => Some(text("path")?.to_owned()),
        "list" => {
            let columns = Columns {
                path: name(&described["columns"]["path"]),
                label: name(&described["columns"]["label"]),
                image: None,
            };
            Some(columns.behind(text("path")?))
        }
        "parquet" => {
            let columns = Columns {
                path: None,
                label: name(&described["label_column"]),
                image: name(&described["column"]),
            };
            Some(columns.behind(text("path")?))
        }
        "idx" => Some(format!("idx:{}#{}", text("path")?, text("split")?)),
        "sample" => Some(format!("sample:{}", text("split")?)),
        _ => None,
    }
}

/// The same source with an absolute path, so that a list can name it from anywhere.
fn absolute_spec(spec: &str, source: &dyn Source) -> String {
    if let Some((folder, split)) = spec.strip_prefix("idx:").and_then(|place| place.rsplit_once('#')) {
        return format!("idx:{}#{split}", absolute(&PathBuf::from(folder)));
    }
    let described = source.describe();
    match described["kind"].as_str() {
        Some("tar" | "parquet") => {
            let place = described["path"].as_str().unwrap_or_default();
            let whole = json!(absolute(Path::new(place)));
            let mut described = described.clone();
            described["path"] = whole;
            spec_of(&described).unwrap_or_else(|| spec.to_owned())
        }
        _ => spec.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_described_source_is_what_was_typed() {
        let spec = |described: Value| spec_of(&described);
        assert_eq!(
            spec(json!({"kind": "folder", "path": "photos"})).as_deref(),
            Some("photos")
        );
        let idx = json!({"kind": "idx", "path": "/data/fm", "split": "train"});
        assert_eq!(spec(idx).as_deref(), Some("idx:/data/fm#train"));
        assert_eq!(
            spec(json!({"kind": "sample", "split": "test"})).as_deref(),
            Some("sample:test")
        );
        assert_eq!(spec(json!({"kind": "paths", "path": "-"})), None);
        let list = json!({"kind": "list", "path": "l.csv", "columns": {"path": "file", "label": null}});
        assert_eq!(spec(list).as_deref(), Some("l.csv#path=file"));
        assert_eq!(
            spec(json!({"kind": "list", "path": "l.csv"})).as_deref(),
            Some("l.csv")
        );
        let images = json!({"kind": "parquet", "path": "a/*.parquet", "column": "img", "label_column": "y"});
        assert_eq!(spec(images).as_deref(), Some("a/*.parquet#label=y&image=img"));
        let sample = data::open("sample:test").unwrap();
        let absolute = |spec| absolute_spec(spec, sample.as_ref());
        assert_eq!(absolute("idx:/data/fm#test"), "idx:/data/fm#test");
        assert!(absolute("idx:fm#test").starts_with("idx:/"));
        assert_eq!(absolute("sample:test"), "sample:test");
    }
}
