//! Where an ONNX Runtime library may be: `--ort-lib`, `ORT_DYLIB_PATH`, macula's cache, an installed Python
//! `onnxruntime`, the system, in that order. Nothing is loaded here.
//!
//! The working directory is not among the places: Python and the system are asked as from elsewhere, and what they name below
//! it is rejected. Only `--ort-lib`, typed there, is read as a path from it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::cache::cache_dir;
use super::library::{Library, Origin, Rejected, in_folder, too_old, version_of};
use super::manifest::Depth;
use super::provision::installed;
use super::wheels::{Flavor, Wheel, pinned};
use crate::programs;

/// A library to try, or the reason why a place has none that can be tried.
pub type Candidate = std::result::Result<Library, Rejected>;

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `--ort-lib`: a file, or a folder with the library in it.
    pub flag: Option<PathBuf>,
    /// `ORT_DYLIB_PATH`: likewise with an absolute path, or a bare name that the system's loader resolves.
    pub variable: Option<PathBuf>,
    /// macula's cache.
    pub cache: Option<PathBuf>,
    /// Programs to ask for Python's library, with absolute paths.
    pub pythons: Vec<PathBuf>,
    /// The system's folders.
    pub system: Vec<PathBuf>,
}

impl Places {
    /// The places of this process, with `flag` for `--ort-lib`.
    pub fn of_this_process(flag: Option<PathBuf>) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Self {
            flag: flag.map(absolute),
            variable: set("ORT_DYLIB_PATH").map(PathBuf::from),
            cache: cache_dir().ok(),
            pythons: ["python3", "python"]
                .into_iter()
                .filter_map(programs::find)
                .collect(),
            system: system_folders(set),
        }
    }

    /// The candidates that `origin` names, best first. `wanted` chooses among the builds in the cache; without it,
    /// the plain one comes first. Each is looked at when it is asked for: to check one takes a tenth of a second.
    pub fn candidates(
        &self,
        origin: Origin,
        wanted: Option<Flavor>,
    ) -> Box<dyn Iterator<Item = Candidate> + '_> {
        match origin {
            Origin::Flag => Box::new(self.flag.iter().map(move |path| named(path, origin))),
            Origin::Variable => Box::new(self.variable.iter().map(|path| by_variable(path))),
            Origin::Cache => Box::new(self.in_cache(wanted)),
            Origin::Python => {
                let answer = self.pythons.iter().find_map(|python| ask_python(python));
                Box::new(answer.into_iter().flat_map(move |answer| {
                    let libraries = in_folder(&answer.folder, origin);
                    libraries
                        .into_iter()
                        .map(move |library| check_place(library, &answer.own))
                }))
            }
            Origin::System => {
                let libraries = self
                    .system
                    .iter()
                    .flat_map(move |folder| in_folder(folder, origin));
                Box::new(libraries.map(|library| check_place(library, &[])))
            }
        }
    }

    fn in_cache(&self, wanted: Option<Flavor>) -> impl Iterator<Item = Candidate> + '_ {
        let flavors = wanted.map_or(Flavor::ALL.to_vec(), |flavor| vec![flavor]);
        let wheels = flavors.into_iter().filter_map(|flavor| pinned(flavor).ok());
        wheels.filter_map(|wheel| of_wheel(self.cache.as_deref()?, wheel))
    }
}

/// The installation of `wheel` in `cache`, if there is one.
fn of_wheel(cache: &Path, wheel: &Wheel) -> Option<Candidate> {
    match installed(cache, wheel, Depth::Library) {
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
    }
}

/// What `ORT_DYLIB_PATH` names. It holds in every working directory, so a path relative to one is refused, and a bare name
/// is the loader's alone.
fn by_variable(path: &Path) -> Candidate {
    let origin = Origin::Variable;
    if path.is_absolute() {
        return named(path, origin);
    }
    if path.file_name() != Some(path.as_os_str()) {
        let reason = "expected an absolute path or a name for the system's loader, found a relative path";
        return Err(Rejected::new(path, origin, reason));
    }
    if let Some(variable) = loader_looks_here() {
        let reason = format!(
            "the system's loader would look in the working directory, which {variable} names by an empty or relative element; \
             expected an absolute path"
        );
        return Err(Rejected::new(path, origin, reason));
    }
    check_version(Library {
        path: path.to_path_buf(),
        origin,
        version: None,
    })
}

/// The variable, if any, by which the system's loader takes libraries from the working directory, whatever program runs.
pub(super) fn loader_looks_here() -> Option<&'static str> {
    let variable = match std::env::consts::OS {
        "windows" => return None,
        "macos" => "DYLD_LIBRARY_PATH",
        _ => "LD_LIBRARY_PATH",
    };
    let listed = std::env::var_os(variable).filter(|value| !value.is_empty())?;
    std::env::split_paths(&listed)
        .any(|folder| !folder.is_absolute())
        .then_some(variable)
}

/// A library that was found and not named: not one from the working directory, unless it lies in one of the folders `own`.
fn check_place(library: Library, own: &[PathBuf]) -> Candidate {
    if programs::in_working_folder(&library.path)
        && !own.iter().any(|folder| library.path.starts_with(folder))
    {
        let reason = "it lies in the working directory, from which nothing is loaded; --ort-lib FILE names it if it is meant";
        return Err(Rejected::new(&library.path, library.origin, reason));
    }
    check_version(library)
}

/// A library that the user named: a file, or a folder with one.
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
    if !path.is_file() {
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

/// What a Python says of its `onnxruntime`.
struct Told {
    /// The folder of the native libraries.
    folder: PathBuf,
    /// The folders of that Python and of its user's packages.
    own: Vec<PathBuf>,
}

/// Asks `python` where the `onnxruntime` that it would import lies. The package is not imported.
///
/// Isolated (`-I`), Python takes no module from the working directory, `PYTHONPATH` or the user's own packages. Most who
/// install without a virtual environment have it among the last, so these are searched too, but nothing in them is run.
fn ask_python(python: &Path) -> Option<Told> {
    const ASK: &str = "import importlib.util, os, site, sys\n\
                       own = [sys.prefix, sys.base_prefix]\n\
                       if sys.prefix == sys.base_prefix and not os.environ.get('PYTHONNOUSERSITE'):\n    \
                           sys.path.append(site.getusersitepackages())\n    \
                           own.append(site.getuserbase())\n\
                       spec = importlib.util.find_spec('onnxruntime')\n\
                       print(os.path.join(os.path.dirname(spec.origin), 'capi') if spec and spec.origin else '', *own, sep='\\n')";
    let said = output_within(
        programs::command(python).args(["-I", "-c", ASK]),
        Duration::from_secs(10),
    )?;
    let mut lines = said.lines().map(|line| PathBuf::from(line.trim()));
    let folder = lines.next().filter(|folder| folder.is_absolute())?;
    let own = lines
        .filter(|folder| folder.is_absolute() && folder.parent().is_some())
        .collect();
    Some(Told { folder, own })
}

/// What `command` prints, when it ends well within `limit`.
pub(super) fn output_within(command: &mut Command, limit: Duration) -> Option<String> {
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

    fn all(places: &Places, origin: Origin, wanted: Option<Flavor>) -> Vec<Candidate> {
        places.candidates(origin, wanted).collect()
    }

    fn found(places: &Places, origin: Origin) -> Vec<(String, Option<String>)> {
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        places
            .candidates(origin, None)
            .map(|candidate| candidate.unwrap())
            .map(|library| (name(&library.path), library.version.map(|v| v.to_string())))
            .collect()
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
        let rejected = all(&places, Origin::System, None).remove(0).unwrap_err();
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
            all(&places, Origin::Flag, None).remove(0).unwrap_err().reason
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
    }

    #[test]
    fn the_variable_never_means_the_working_directory() {
        let by_variable = |path: &str| {
            let places = Places {
                variable: Some(path.into()),
                ..Places::default()
            };
            all(&places, Origin::Variable, None).remove(0)
        };
        // Both files are there, in this package's folder; a bare name is the loader's business nonetheless.
        assert_eq!(by_variable("Cargo.toml").unwrap().path, Path::new("Cargo.toml"));
        for path in ["src/lib.rs", "./Cargo.toml", "../x.so", "src/", "."] {
            let reason = by_variable(path).unwrap_err().reason;
            assert!(reason.starts_with("expected an absolute path"), "{reason}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_found_below_the_working_directory_is_rejected_by_name() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        // Tests run in their package's folder.
        let here = tempfile::tempdir_in(".").unwrap();
        let here = here.path().canonicalize().unwrap();
        let capi = here.join("lib/onnxruntime/capi");
        let library = capi.join("libonnxruntime.so.1.30.0");
        touch(&library, b"");
        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("libonnxruntime.so.1.30.0");
        symlink(&library, &link).unwrap();
        let rejected = |places: &Places, origin| all(places, origin, None).remove(0).unwrap_err();
        let system = Places {
            system: vec![elsewhere.path().to_path_buf()],
            ..Places::default()
        };
        let error = rejected(&system, Origin::System).to_string();
        assert!(
            error.contains(&link.display().to_string()) && error.contains("--ort-lib FILE"),
            "{error}"
        );
        let python = |own: &str| {
            let python = elsewhere.path().join("python3");
            std::fs::write(
                &python,
                format!("#!/bin/sh\necho {}\necho {own}\n", capi.display()),
            )
            .unwrap();
            std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
            Places {
                pythons: vec![python],
                ..Places::default()
            }
        };
        let error = rejected(&python("/usr"), Origin::Python).to_string();
        assert!(error.contains("it lies in the working directory"), "{error}");
        // An environment of the project's own, whose Python is on the path.
        let own = here.display().to_string();
        assert_eq!(found(&python(&own), Origin::Python).len(), 1);
    }

    #[test]
    fn a_relative_flag_is_made_absolute() {
        let places = Places::of_this_process(Some("some/lib.so".into()));
        let expected = std::env::current_dir().unwrap().join("some/lib.so");
        assert_eq!(places.flag, Some(expected));
        assert!(places.pythons.iter().all(|python| python.is_absolute()));
    }

    #[cfg(unix)]
    #[test]
    fn python_is_queried_and_not_waited_for_long() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().unwrap();
        let capi = place.path().join("capi");
        touch(&capi.join("libonnxruntime.so.1.30.0"), b"");
        let python = place.path().join("python3");
        std::fs::write(&python, format!("#!/bin/sh\necho {}\n", capi.display())).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        let places = Places {
            pythons: vec!["/nonexistent/python".into(), python],
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
    fn the_cache_gives_whole_installations_and_tells_how_to_mend_damaged_ones() {
        use super::super::cache::install_dir;
        use super::super::manifest::{Manifest, UnpackedFile};
        use crate::files;
        let Ok(wheel) = pinned(Flavor::Cpu) else { return };
        let cache = tempfile::tempdir().unwrap();
        let folder = install_dir(cache.path(), wheel);
        let library = folder.join(wheel.library_name());
        touch(&library, b"library");
        let sha256 = files::sha256(&library).unwrap();
        let file = UnpackedFile {
            name: wheel.library_name().to_owned(),
            bytes: 7,
            sha256,
        };
        Manifest::new(wheel, vec![file]).write(&folder).unwrap();
        let places = Places {
            cache: Some(cache.path().to_path_buf()),
            ..Places::default()
        };
        assert_eq!(
            all(&places, Origin::Cache, Some(Flavor::Cpu))[0]
                .as_ref()
                .unwrap()
                .path,
            library
        );
        assert!(all(&places, Origin::Cache, Some(Flavor::Cuda)).is_empty());
        touch(&library, b"libRary");
        let rejected = all(&places, Origin::Cache, None).remove(0).unwrap_err();
        assert_eq!(
            (rejected.path.as_path(), rejected.repair),
            (folder.as_path(), Some(Flavor::Cpu))
        );
        assert!(
            rejected.reason.contains("damaged: expected SHA-256"),
            "{rejected}"
        );
        assert!(
            rejected
                .reason
                .ends_with("mended by `macula runtime install --flavor cpu`"),
            "{rejected}"
        );
    }

    #[test]
    fn relative_folders_are_not_searched() {
        let folders = system_folders(|_| Some("/here:relative:".into()));
        assert!(folders.iter().all(|folder| folder.is_absolute()));
        #[cfg(unix)]
        assert_eq!(folders[0], Path::new("/here"));
    }
}
