//! What a run learns from, as its folder keeps it: a run that goes on does so on the same images and from the same teacher,
//! wherever they lie by then.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::SourceIdentity;
use crate::identity::{difference, source_difference};
use crate::{Error, Result, files};

/// Name of the file in a run folder.
pub const IDENTITY_FILE: &str = "fingerprint.json";

/// What a run learns from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The images; without labels where the run does not learn from them.
    pub source: SourceIdentity,
    /// The labelled images of the online k-NN.
    #[serde(default)]
    pub knn_source: Option<SourceIdentity>,
    /// What else decides about the targets of a distillation: weights and pixels of its teacher.
    #[serde(default)]
    pub teacher: Option<Value>,
    /// Whether it began with weights that were trained elsewhere (`--from`), which its folder keeps from its first checkpoint on.
    #[serde(default)]
    pub from_elsewhere: bool,
}

impl RunIdentity {
    /// That of the run in `folder`; none where it was begun before runs kept one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(IDENTITY_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|e| Error::input(path.display().to_string(), e.to_string())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path, e)),
        }
    }

    /// Writes it into `folder`.
    ///
    /// # Errors
    /// The system's word with the path.
    pub fn write(&self, folder: &Path) -> Result<()> {
        files::write_json(&folder.join(IDENTITY_FILE), self)
    }

    /// Checks that a run which begun as this says goes on as `now`. Other images for the online k-NN change no weights: they
    /// are a notice, since its numbers cannot be compared.
    ///
    /// # Errors
    /// Names the file and the field that differs.
    pub fn check(&self, now: &Self, folder: &Path) -> Result<()> {
        let teachers = [&self.teacher, &now.teacher].map(|teacher| teacher.clone().unwrap_or_default());
        let differs = source_difference(&self.source, &now.source)
            .or_else(|| difference("teacher", &teachers[0], &teachers[1]));
        let file = folder.join(IDENTITY_FILE).display().to_string();
        if let Some(differs) = differs {
            let reason = format!("the run began with other data or another teacher: {differs}");
            return Err(Error::mismatch(file, reason));
        }
        let knn = self.knn_source.as_ref().zip(now.knn_source.as_ref());
        if let Some(differs) = knn.and_then(|(began, now)| source_difference(began, now)) {
            tracing::warn!(
                "{file}: the online k-NN of earlier steps saw other images ({})",
                differs.both()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::open;

    fn identity_of(spec: &str, teacher: Option<Value>) -> RunIdentity {
        RunIdentity {
            source: SourceIdentity::from_source(open(spec).unwrap().as_ref()),
            knn_source: None,
            teacher,
            from_elsewhere: false,
        }
    }

    #[test]
    fn what_a_run_learns_from_may_not_change() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(RunIdentity::read(folder.path()).unwrap(), None);
        let began = identity_of("sample:test", Some(json!({ "sha256": "11" })));
        began.write(folder.path()).unwrap();
        assert_eq!(RunIdentity::read(folder.path()).unwrap().unwrap(), began);
        began.check(&began, folder.path()).unwrap();
        for (now, words) in [
            (
                identity_of("sample:train", began.teacher.clone()),
                "source.images: expected 1000, found 6000",
            ),
            (
                identity_of("sample:test", Some(json!({ "sha256": "22" }))),
                "teacher.sha256: expected 11, found 22",
            ),
            (identity_of("sample:test", None), "teacher: expected "),
        ] {
            let error = began.check(&now, folder.path()).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains(words) && text.contains(IDENTITY_FILE), "{text}");
        }
        std::fs::write(folder.path().join(IDENTITY_FILE), "{").unwrap();
        assert!(
            RunIdentity::read(folder.path())
                .unwrap_err()
                .to_string()
                .contains(IDENTITY_FILE)
        );
    }
}
