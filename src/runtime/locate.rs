//! Where an ONNX Runtime library may be: `--ort-lib`, `ORT_DYLIB_PATH`, macula's cache, an installed Python
//! `onnxruntime`, the system, in that order. Nothing is loaded here.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use super::cache::cache_dir;
use super::manifest::Depth;
use super::provision::installed;
use super::wheels::{Flavor, OLDEST_SUPPORTED, pinned};

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
    fn new(path: &Path, origin: Origin, reason: impl Into<String>) -> Self {
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

/// A library to try, or the reason why a place has none that can be tried.
pub type Candidate = std::result::Result<Library, Rejected>;

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `--ort-lib`: a file, or a folder with the library in it.
    pub flag: Option<PathBuf>,
    /// `ORT_DYLIB_PATH`: likewise, or a bare name that the system's loader resolves.
    pub variable: Option<PathBuf>,
    /// macula's cache.
    pub cache: Option<PathBuf>,
    /// Programs to ask for Python's library.
    pub pythons: Vec<String>,
    /// The system's folders.
    pub system: Vec<PathBuf>,
}

impl Places {
    /// The places of this process, with `flag` for `--ort-lib`.
    pub fn of_this_process(flag: Option<PathBuf>) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            flag,
            variable: set("ORT_DYLIB_PATH").map(PathBuf::from),
            cache: cache_dir().ok(),
            pythons: ["python3", "python"].map(str::to_owned).to_vec(),
            system: system_folders(set),
        }
    }

    /// The candidates that `origin` names, best first. `wanted` chooses among the builds in the cache; without it,
    /// the plain one comes first.
    pub fn candidates(&self, origin: Origin, wanted: Option<Flavor>) -> Vec<Candidate> {
        match origin {
            Origin::Flag => self.flag.iter().map(|path| named(path, origin)).collect(),
            Origin::Variable => self.variable.iter().map(|path| named(path, origin)).collect(),
            Origin::Cache => self.in_cache(wanted),
            Origin::Python => {
                let folder = self.pythons.iter().find_map(|python| python_folder(python));
                folder
                    .iter()
                    .flat_map(|folder| in_folder(folder, origin))
                    .map(check_version)
                    .collect()
            }
            Origin::System => self
                .system
                .iter()
                .flat_map(|folder| in_folder(folder, origin))
                .map(check_version)
                .collect(),
        }
    }

    fn in_cache(&self, wanted: Option<Flavor>) -> Vec<Candidate> {
        let Some(cache) = &self.cache else {
            return Vec::new();
        };
        let flavors = wanted.map_or(Flavor::ALL.to_vec(), |flavor| vec![flavor]);
        let wheels = flavors.into_iter().filter_map(|flavor| pinned(flavor).ok());
        wheels
            .filter_map(|wheel| match installed(cache, wheel, Depth::Library) {
                Ok(library) => library.map(Ok),
                Err(damage) => {
                    let folder = super::cache::install_dir(cache, wheel);
                    let reason = format!(
                        "{damage}; mended by `macula runtime install --flavor {}`",
                        wheel.flavor
                    );
                    Some(Err(Rejected {
                        repair: Some(wheel.flavor),
                        ..Rejected::new(&folder, Origin::Cache, reason)
                    }))
                }
            })
            .collect()
    }
}

/// A library that the user named: a file, a folder with one, or (without any separator) a name for the loader.
fn named(path: &Path, origin: Origin) -> Candidate {
    let library = |path: &Path| Library {
        path: path.to_path_buf(),
        origin,
        version: version_of(path),
    };
    if path.is_dir() {
        let reason = "expected an ONNX Runtime library in this folder, found none";
        let found = in_folder(path, origin).into_iter().next();
        return found
            .ok_or_else(|| Rejected::new(path, origin, reason))
            .and_then(check_version);
    }
    let for_the_loader = origin == Origin::Variable && path.components().count() == 1 && !path.exists();
    if !path.is_file() && !for_the_loader {
        return Err(Rejected::new(
            path,
            origin,
            "expected an ONNX Runtime library, found no such file",
        ));
    }
    check_version(library(path))
}

fn check_version(library: Library) -> Candidate {
    match library.version {
        Some(version) if !version.supported() => Err(Rejected::new(
            &library.path,
            library.origin,
            too_old(&version.to_string()),
        )),
        _ => Ok(library),
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
fn in_folder(folder: &Path, origin: Origin) -> Vec<Library> {
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
fn version_of(path: &Path) -> Option<Version> {
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

/// The folder of the native libraries of the `onnxruntime` that `python` would import. The package is not imported.
fn python_folder(python: &str) -> Option<PathBuf> {
    const ASK: &str = "import importlib.util, os\n\
                       spec = importlib.util.find_spec('onnxruntime')\n\
                       print(os.path.join(os.path.dirname(spec.origin), 'capi') if spec and spec.origin else '')";
    let said = output_within(Command::new(python).args(["-c", ASK]), Duration::from_secs(10))?;
    let folder = said.trim();
    (!folder.is_empty()).then(|| PathBuf::from(folder))
}

/// What `command` prints, when it ends well within `limit`.
fn output_within(command: &mut Command, limit: Duration) -> Option<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + limit;
    // The answer is one short line: it fits the pipe, so the child never waits for a reader.
    while child.try_wait().ok()?.is_none() {
        if Instant::now() >= deadline {
            child.kill().ok()?;
            child.wait().ok()?;
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The folders in which this system looks for libraries, with those that `variable` names first.
fn system_folders(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let listed =
        |name: &str| variable(name).map_or(Vec::new(), |value| std::env::split_paths(&value).collect());
    let fixed = |folders: &[&str]| folders.iter().map(PathBuf::from).collect::<Vec<_>>();
    let mut folders = match std::env::consts::OS {
        // The library that Windows itself brings in System32 is older than what is needed: it is not looked at.
        "windows" => listed("PATH")
            .into_iter()
            .filter(|folder| !is_system32(folder))
            .collect(),
        "macos" => {
            let mut folders = listed("DYLD_LIBRARY_PATH");
            folders.extend(fixed(&["/opt/homebrew/lib", "/usr/local/lib"]));
            folders
        }
        _ => {
            let mut folders = listed("LD_LIBRARY_PATH");
            folders.extend(fixed(&["/usr/local/lib", "/usr/lib", "/usr/lib64"]));
            folders.push(PathBuf::from(format!(
                "/usr/lib/{}-linux-gnu",
                std::env::consts::ARCH
            )));
            folders
        }
    };
    folders.retain(|folder| folder.is_absolute());
    folders
}

fn is_system32(folder: &Path) -> bool {
    folder.to_string_lossy().to_lowercase().contains("system32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path, bytes: &[u8]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn found(places: &Places, origin: Origin) -> Vec<(String, Option<String>)> {
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        places
            .candidates(origin, None)
            .into_iter()
            .map(|candidate| candidate.unwrap())
            .map(|library| (name(&library.path), library.version.map(|v| v.to_string())))
            .collect()
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
    fn a_folder_gives_the_newest_library_and_no_provider() {
        let place = tempfile::tempdir().unwrap();
        for name in [
            "libonnxruntime.so.1.24.1",
            "libonnxruntime.so.1.31.0",
            "libonnxruntime_providers_shared.so",
            "x.so",
        ] {
            touch(&place.path().join(name), b"");
        }
        let places = Places {
            system: vec![place.path().to_path_buf()],
            ..Places::default()
        };
        let expected = [
            ("libonnxruntime.so.1.31.0", "1.31.0"),
            ("libonnxruntime.so.1.24.1", "1.24.1"),
        ];
        let expected = expected.map(|(name, version)| (name.to_owned(), Some(version.to_owned())));
        assert_eq!(found(&places, Origin::System), expected);
        let named = Places {
            flag: Some(place.path().to_path_buf()),
            ..Places::default()
        };
        assert_eq!(found(&named, Origin::Flag), expected[..1]);
    }

    #[test]
    fn the_symbols_tell_the_version_when_the_name_does_not() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("libonnxruntime.so");
        touch(&path, b"\x7fELF....VERS_1.27.3\0...");
        let places = Places {
            flag: Some(path.clone()),
            ..Places::default()
        };
        assert_eq!(
            found(&places, Origin::Flag),
            [("libonnxruntime.so".to_owned(), Some("1.27.3".to_owned()))]
        );
        touch(&path, b"nothing");
        assert_eq!(
            found(&places, Origin::Flag),
            [("libonnxruntime.so".to_owned(), None)]
        );
    }

    #[test]
    fn older_libraries_are_rejected_by_version() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("libonnxruntime.so.1.19.2");
        touch(&path, b"");
        let places = Places {
            system: vec![place.path().to_path_buf()],
            ..Places::default()
        };
        let rejected = places.candidates(Origin::System, None).remove(0).unwrap_err();
        let expected = format!(
            "{} (the system): ONNX Runtime 1.19.2 is too old, 1.24 or later is needed",
            path.display()
        );
        assert_eq!(rejected.to_string(), expected);
    }

    #[test]
    fn what_the_user_names_must_be_there() {
        let place = tempfile::tempdir().unwrap();
        let reason = |flag: PathBuf| {
            let places = Places {
                flag: Some(flag),
                ..Places::default()
            };
            places
                .candidates(Origin::Flag, None)
                .remove(0)
                .unwrap_err()
                .reason
        };
        assert_eq!(
            reason(place.path().join("none.so")),
            "expected an ONNX Runtime library, found no such file"
        );
        let empty = place.path().to_path_buf();
        assert_eq!(
            reason(empty),
            "expected an ONNX Runtime library in this folder, found none"
        );
        // A bare name in the variable is the loader's business.
        let places = Places {
            variable: Some("libonnxruntime.so".into()),
            ..Places::default()
        };
        assert!(places.candidates(Origin::Variable, None)[0].is_ok());
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

    #[cfg(unix)]
    #[test]
    fn python_is_asked_and_not_waited_for_long() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().unwrap();
        let capi = place.path().join("capi");
        touch(&capi.join("libonnxruntime.so.1.30.0"), b"");
        let python = place.path().join("python3");
        std::fs::write(&python, format!("#!/bin/sh\necho {}\n", capi.display())).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        let places = Places {
            pythons: vec!["/nonexistent/python".into(), python.display().to_string()],
            ..Places::default()
        };
        let expected = ("libonnxruntime.so.1.30.0".to_owned(), Some("1.30.0".to_owned()));
        assert_eq!(found(&places, Origin::Python), [expected]);

        let start = Instant::now();
        assert_eq!(
            output_within(Command::new("sleep").arg("20"), Duration::from_millis(50)),
            None
        );
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn relative_folders_are_not_searched() {
        let folders = system_folders(|_| Some("/here:relative:".into()));
        assert!(folders.iter().all(|folder| folder.is_absolute()));
        #[cfg(unix)]
        assert_eq!(folders[0], Path::new("/here"));
    }
}
