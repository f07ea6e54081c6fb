//! `manifest.json`: what an index folder holds, how it was made, and what its files must be.

use std::collections::BTreeMap;
use std::path::Path;

use macula_eval::index::{HnswConfig, Scalar};
use serde::{Deserialize, Serialize};

use crate::extract::FeatureFolder;
use crate::identity::{self, Fingerprint, Made};
use crate::{Error, Result, files};

/// Version of the layout. A folder of another version is refused.
pub const FORMAT_VERSION: u32 = 2;
/// Name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// How similar rows are measured; the only one there is.
pub(super) const METRIC: &str = "cosine";

/// Kind of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Compares with every row.
    Exact,
    /// Walks a graph and may miss rows.
    Hnsw,
    /// Walks a graph in a usearch file, which is mapped into memory (feature `usearch`).
    Usearch,
}

impl Kind {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Hnsw => "hnsw",
            Self::Usearch => "usearch",
        }
    }
}

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// What `--recall` measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredRecall {
    /// Recall asked for.
    pub target: f64,
    /// Recall reached at `ef_search`.
    pub reached: f64,
    /// Neighbours asked for.
    pub k: usize,
    /// Held-out rows that served as queries.
    pub n_queries: usize,
}

/// What an index folder holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout.
    pub format_version: u32,
    /// Version of macula that wrote it.
    pub tool_version: String,
    /// Kind of the index.
    pub kind: Kind,
    /// `cosine`.
    pub metric: String,
    /// Width of the vectors.
    pub dim: usize,
    /// Number of vectors.
    pub count: usize,
    /// Column of the feature folder.
    pub column: String,
    /// The feature folder, where it was at the time.
    pub source: String,
    /// The model that made the features.
    pub model: serde_json::Value,
    /// What the features were computed from; none in an index built before there were fingerprints, or over such features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// How the graph was made; none for an exact index.
    pub parameters: Option<HnswConfig>,
    /// How a usearch file stores numbers; none for the other kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scalar: Option<Scalar>,
    /// Width of the walk that searches use unless told otherwise; none for an exact index.
    pub ef_search: Option<usize>,
    /// How `ef_search` was chosen, where it was measured.
    pub measured: Option<MeasuredRecall>,
    /// Seconds the build took.
    pub build_seconds: f64,
    /// Every other file of the folder.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// Reads the manifest of `folder` and checks what it says of itself; the files are [`Self::check_files`]'s.
    ///
    /// # Errors
    /// A folder without manifest, one that is damaged, or of another version or metric.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST_FILE);
        let name = || path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::input(
                folder.display().to_string(),
                format!("expected an index folder, found no {MANIFEST_FILE} in it"),
            ),
            _ => Error::io(&path, e),
        })?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| Error::input(name(), format!("not JSON: {e}")))?;
        let version = value.get("format_version").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(FORMAT_VERSION)) {
            let found = version.map_or("none".to_owned(), |version| version.to_string());
            return Err(Error::input(
                name(),
                format!("expected format_version {FORMAT_VERSION}, found {found}; build the index again"),
            ));
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|e| Error::input(name(), e.to_string()))?;
        manifest.check_fields(&name())?;
        Ok(manifest)
    }

    fn check_fields(&self, name: &str) -> Result<()> {
        let wrong = |field: &str, expected: String, found: String| {
            Err(Error::input(
                name,
                format!("{field}: expected {expected}, found {found}"),
            ))
        };
        if let Some(expected) = super::usearch::missing(self.kind) {
            return wrong("kind", expected.to_owned(), self.kind.name().to_owned());
        }
        if self.metric != METRIC {
            return wrong("metric", METRIC.to_owned(), self.metric.clone());
        }
        if self.dim == 0 || self.count == 0 || self.count > u32::MAX as usize {
            return wrong(
                "count, dim",
                "1 to 4294967295 vectors of width 1 or more".to_owned(),
                format!("{} of {}", self.count, self.dim),
            );
        }
        let mut expected: Vec<&str> = super::build::vector_files(self.kind).to_vec();
        expected.push(super::ROWS_FILE);
        expected.sort_unstable();
        let found: Vec<&str> = self.files.keys().map(String::as_str).collect();
        if found != expected {
            return wrong("files", expected.join(", "), found.join(", "));
        }
        if self.kind != Kind::Exact && (self.ef_search.is_none() || self.parameters.is_none()) {
            return wrong(
                "ef_search, parameters",
                format!("values for an index of kind {}", self.kind.name()),
                "none".to_owned(),
            );
        }
        if self.kind == Kind::Usearch && self.scalar.is_none() {
            return wrong("scalar", "f32, f16 or i8".to_owned(), "none".to_owned());
        }
        Ok(())
    }

    /// Checks that every file is what was written, by length and then by checksum.
    ///
    /// # Errors
    /// Names the first file that is missing, cut off or changed.
    pub fn check_files(&self, folder: &Path) -> Result<()> {
        for (file, entry) in &self.files {
            let path = folder.join(file);
            let name = || path.display().to_string();
            let length = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
            if length != entry.bytes {
                return Err(Error::input(
                    name(),
                    format!(
                        "damaged: expected {} bytes as in {MANIFEST_FILE}, found {length}",
                        entry.bytes
                    ),
                ));
            }
            let sha256 = files::sha256(&path)?;
            if sha256 != entry.sha256 {
                return Err(Error::input(
                    name(),
                    format!(
                        "damaged: expected SHA-256 {} as in {MANIFEST_FILE}, found {sha256}",
                        entry.sha256
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Why searching rows like those of `queries` in this index, which lies at `path`, is unfair, a line each.
    pub fn unfair(&self, path: &Path, queries: &FeatureFolder) -> Vec<String> {
        let (index, folder) = (path.display().to_string(), queries.path().display().to_string());
        let prepared = |made: &Option<Fingerprint>| made.as_ref().map(|made| made.preprocess.clone());
        let (own, asking) = (prepared(&self.fingerprint), prepared(&queries.meta().fingerprint));
        let rows = Made {
            name: &index,
            model: &self.model,
            preprocess: own.as_ref(),
        };
        let queries = Made {
            name: &folder,
            model: &queries.meta().model,
            preprocess: asking.as_ref(),
        };
        identity::unfair(&queries, &rows)
    }

    /// Bytes on disk for each vector, rows' names apart.
    pub fn bytes_per_vector(&self) -> f64 {
        let vectors = self.files.iter().filter(|(name, _)| *name != super::ROWS_FILE);
        vectors.map(|(_, entry)| entry.bytes).sum::<u64>() as f64 / self.count as f64
    }

    /// Records `file` of `folder`.
    ///
    /// # Errors
    /// The system's word with the path.
    pub(super) fn add_file(&mut self, folder: &Path, file: &str) -> Result<()> {
        let path = folder.join(file);
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        let sha256 = files::sha256(&path)?;
        self.files.insert(file.to_owned(), FileEntry { bytes, sha256 });
        Ok(())
    }
}
