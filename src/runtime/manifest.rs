//! `manifest.json` beside an installed library: what was unpacked there, so that a damaged file is refused rather than
//! loaded.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::wheels::Flavor;
use crate::{Error, Result, files};

/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";
/// The version of the manifest's format that this program writes and reads.
const FORMAT: u32 = 1;

/// One unpacked file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnpackedFile {
    /// Its name in the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// What an installed folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// The build.
    pub flavor: Flavor,
    /// Version of ONNX Runtime.
    pub version: String,
    /// File name of the wheel it came from.
    pub wheel: String,
    /// SHA-256 of that wheel.
    pub wheel_sha256: String,
    /// Name of the library to load.
    pub library: String,
    /// Every unpacked file, sorted by name.
    pub files: Vec<UnpackedFile>,
}

/// How much of an installed folder [`Manifest::check`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The checksum of the library itself and the sizes of the rest: cheap enough for every start.
    Library,
    /// The checksums of all files.
    Everything,
}

impl Manifest {
    /// A manifest in the current format.
    pub fn new(wheel: &super::wheels::Wheel, mut files: Vec<UnpackedFile>) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            format: FORMAT,
            flavor: wheel.flavor,
            version: wheel.version.to_owned(),
            wheel: wheel.file_name.to_owned(),
            wheel_sha256: wheel.sha256.to_owned(),
            library: wheel.library_name().to_owned(),
            files,
        }
    }

    /// Writes the manifest into `folder`, which nobody else can see yet.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::failed(path.display().to_string(), e.to_string()))?;
        std::fs::write(&path, text + "\n").map_err(|e| Error::io(path, e))
    }

    /// Reads the manifest of `folder`.
    ///
    /// # Errors
    /// When it is missing, damaged, or of a newer format.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let damaged = |reason: String| Error::failed(path.display().to_string(), reason);
        let manifest: Self =
            serde_json::from_str(&text).map_err(|e| damaged(format!("not a manifest: {e}")))?;
        if manifest.format != FORMAT {
            return Err(damaged(format!(
                "format {} is not the {FORMAT} that this macula reads",
                manifest.format
            )));
        }
        let plain = |name: &String| {
            Path::new(name)
                .file_name()
                .is_some_and(|last| last == name.as_str())
        };
        if !plain(&manifest.library) || !manifest.files.iter().all(|file| plain(&file.name)) {
            return Err(damaged("a file name in it is a path".to_owned()));
        }
        Ok(manifest)
    }

    /// Checks the files in `folder` and returns the path of the library.
    ///
    /// # Errors
    /// Names the first file that is missing or differs, with what was expected and found.
    pub fn check(&self, folder: &Path, depth: Depth) -> Result<PathBuf> {
        for file in &self.files {
            let path = folder.join(&file.name);
            let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
            let differs = |expected: String, found: String| {
                let reason = format!("damaged: expected {expected} as in {MANIFEST}, found {found}");
                Err(Error::failed(path.display().to_string(), reason))
            };
            if bytes != file.bytes {
                return differs(format!("{} bytes", file.bytes), format!("{bytes}"));
            }
            if depth == Depth::Everything || file.name == self.library {
                let sha256 = files::sha256(&path)?;
                if sha256 != file.sha256 {
                    return differs(format!("SHA-256 {}", file.sha256), sha256);
                }
            }
        }
        if !self.files.iter().any(|file| file.name == self.library) {
            let path = folder.join(MANIFEST).display().to_string();
            return Err(Error::failed(path, format!("lists no file `{}`", self.library)));
        }
        Ok(folder.join(&self.library))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest_of(folder: &Path) -> Manifest {
        let wheel = super::super::wheels::WHEELS[0];
        let file = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
            let sha256 = files::sha256(&folder.join(name)).unwrap();
            UnpackedFile {
                name: name.to_owned(),
                bytes: text.len() as u64,
                sha256,
            }
        };
        let files = vec![file(wheel.library_name(), "library"), file("LICENSE", "MIT")];
        let manifest = Manifest::new(&wheel, files);
        manifest.write(folder).unwrap();
        manifest
    }

    #[test]
    fn a_changed_byte_or_a_missing_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = manifest_of(folder.path());
        assert_eq!(Manifest::read(folder.path()).unwrap(), manifest);
        let library = manifest.check(folder.path(), Depth::Everything).unwrap();

        std::fs::write(folder.path().join("LICENSE"), "TIM").unwrap();
        assert!(manifest.check(folder.path(), Depth::Library).is_ok());
        let error = manifest
            .check(folder.path(), Depth::Everything)
            .unwrap_err()
            .to_string();
        assert!(error.contains("LICENSE: damaged: expected SHA-256"), "{error}");

        std::fs::write(&library, "libraRy").unwrap();
        let error = manifest
            .check(folder.path(), Depth::Library)
            .unwrap_err()
            .to_string();
        assert!(error.contains("damaged: expected SHA-256"), "{error}");
        std::fs::write(&library, "lib").unwrap();
        let error = manifest
            .check(folder.path(), Depth::Library)
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("damaged: expected 7 bytes as in manifest.json, found 3"),
            "{error}"
        );
        std::fs::remove_file(&library).unwrap();
        assert!(matches!(
            manifest.check(folder.path(), Depth::Library),
            Err(Error::Io { .. })
        ));
    }

    #[test]
    fn newer_damaged_and_straying_manifests_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = manifest_of(folder.path());
        manifest.library = "../elsewhere.so".to_owned();
        manifest.write(folder.path()).unwrap();
        assert!(
            Manifest::read(folder.path())
                .unwrap_err()
                .to_string()
                .ends_with("a file name in it is a path")
        );
        manifest.format = 9;
        manifest.write(folder.path()).unwrap();
        let error = Manifest::read(folder.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("format 9 is not the 1 that this macula reads"),
            "{error}"
        );
        std::fs::write(folder.path().join(MANIFEST), "{").unwrap();
        assert!(
            Manifest::read(folder.path())
                .unwrap_err()
                .to_string()
                .contains("not a manifest")
        );
    }
}
