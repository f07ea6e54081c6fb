//! A library of ONNX Runtime as a file: who named it, its version, what lies beside it. Nothing is loaded here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::wheels::{Flavor, OLDEST_SUPPORTED};

/// A version of ONNX Runtime: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Whether the bindings can use a library of this version.
    pub fn supported(self) -> bool {
        (self.0, self.1) >= OLDEST_SUPPORTED
    }
}

impl FromStr for Version {
    type Err = ();

    /// Reads `1.32.0`, also with something behind it (`1.32.0.dylib`).
    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let mut numbers = text.split('.').map(|part| part.parse::<u32>().map_err(|_| ()));
        let mut next = || numbers.next().unwrap_or(Err(()));
        Ok(Self(next()?, next()?, next()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Who named a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The flag `--ort-lib`.
    Flag,
    /// The variable `ORT_DYLIB_PATH`.
    Variable,
    /// macula's cache.
    Cache,
    /// The Python package `onnxruntime` (or one of its kin) that `python3` would import.
    Python,
    /// A folder in which the system looks for libraries.
    System,
}

impl Origin {
    /// All origins, in the order searched.
    pub const ORDER: [Self; 5] = [
        Self::Flag,
        Self::Variable,
        Self::Cache,
        Self::Python,
        Self::System,
    ];

    /// Whether the user named this very library: then its faults are errors, not a reason to look further.
    pub fn is_explicit(self) -> bool {
        matches!(self, Self::Flag | Self::Variable)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "--ort-lib",
            Self::Variable => "ORT_DYLIB_PATH",
            Self::Cache => "macula's cache",
            Self::Python => "Python's onnxruntime",
            Self::System => "the system",
        })
    }
}

/// An ONNX Runtime library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Library {
    /// The file.
    pub path: PathBuf,
    /// Who named it.
    pub origin: Origin,
    /// Its version, where the file's name, the manifest or the file itself tells.
    pub version: Option<Version>,
}

impl Library {
    /// Whether the provider library of `flavor` lies beside it; always so for the plain build.
    pub fn offers(&self, flavor: Flavor) -> bool {
        let Some(provider) = flavor.provider_library() else {
            return true;
        };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let stem = |name: &str| name.trim_start_matches("lib").split('.').next() == Some(provider);
        file_names(folder).iter().any(|name| stem(name))
    }
}

/// What is wrong with a place that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The file or folder.
    pub path: PathBuf,
    /// Who named it.
    pub origin: Origin,
    /// Why it is not used, and what to do about it.
    pub reason: String,
    /// For a damaged installation in the cache: what to install again.
    pub repair: Option<Flavor>,
}

impl Rejected {
    pub(super) fn new(path: &Path, origin: Origin, reason: impl Into<String>) -> Self {
        Self {
            path: path.to_path_buf(),
            origin,
            reason: reason.into(),
            repair: None,
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.path.display(), self.origin, self.reason)
    }
}

/// Why a library of this version is not used.
pub fn too_old(version: &str) -> String {
    format!(
        "ONNX Runtime {version} is too old, {}.{} or later is needed",
        OLDEST_SUPPORTED.0, OLDEST_SUPPORTED.1
    )
}

/// The libraries in `folder`, newest first.
pub(super) fn in_folder(folder: &Path, origin: Origin) -> Vec<Library> {
    let names = file_names(folder).into_iter().filter(|name| is_library(name));
    let mut libraries: Vec<Library> = names
        .map(|name| folder.join(name))
        .map(|path| Library {
            version: version_of(&path),
            path,
            origin,
        })
        .collect();
    // A name without a version is usually a link to one with it.
    libraries.sort_by(|a, b| b.version.cmp(&a.version).then_with(|| b.path.cmp(&a.path)));
    libraries.dedup_by(|a, b| same_file(&a.path, &b.path));
    libraries
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The names of the files in `folder`, sorted; none when it cannot be read.
fn file_names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Whether `name` is that of the library itself, on any system, and not of one of its providers.
fn is_library(name: &str) -> bool {
    let apple = name
        .strip_prefix("libonnxruntime.")
        .is_some_and(|rest| rest.ends_with("dylib"));
    name == "onnxruntime.dll"
        || name == "libonnxruntime.so"
        || name.starts_with("libonnxruntime.so.")
        || apple
}

/// The version of a library: from its name, the name of what it links to, or the version of its symbols (`VERS_1.32.0`
/// in the builds for Linux). None when nothing tells; the loader then asks the library itself.
pub(super) fn version_of(path: &Path) -> Option<Version> {
    let by_name = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let numbers = name.find(|c: char| c.is_ascii_digit())?;
        name[numbers..].parse().ok()
    };
    by_name(path)
        .or_else(|| by_name(&path.canonicalize().ok()?))
        .or_else(|| version_in_symbols(path))
}

fn version_in_symbols(path: &Path) -> Option<Version> {
    const MARK: &[u8] = b"VERS_";
    let bytes = std::fs::read(path).ok()?;
    let at = bytes.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let end = bytes[at..]
        .iter()
        .position(|b| !b.is_ascii_digit() && *b != b'.')?
        + at;
    std::str::from_utf8(&bytes[at..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path, bytes: &[u8]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn versions_are_read_compared_and_judged() {
        let version: Version = "1.32.0.dylib".parse().unwrap();
        assert_eq!(version, Version(1, 32, 0));
        assert!("1.32".parse::<Version>().is_err() && "x.1.2".parse::<Version>().is_err());
        assert!(
            Version(1, 24, 0).supported() && Version(2, 0, 0).supported() && !Version(1, 23, 9).supported()
        );
    }

    #[test]
    fn a_provider_library_beside_it_tells_the_flavor() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("libonnxruntime.so.1.31.1");
        touch(&path, b"");
        let library = Library {
            path,
            origin: Origin::System,
            version: None,
        };
        assert!(library.offers(Flavor::Cpu) && !library.offers(Flavor::Cuda));
        touch(&place.path().join("libonnxruntime_providers_cuda.so"), b"");
        assert!(library.offers(Flavor::Cuda) && !library.offers(Flavor::Openvino));
    }
}
