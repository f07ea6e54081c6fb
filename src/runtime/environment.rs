//! The one ONNX Runtime environment of the process: which library it uses is decided once, when it is first opened.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::LoadDynamicError;
use ort::logging::LogLevel;

use super::library::{Library, Origin, too_old};
use super::locate::Places;
use super::messages::{one_line, say};
use super::provision::install;
use super::wheels::Flavor;
use crate::{Error, Result};

/// How [`Runtime::open`] finds its library.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// `--ort-lib`: this library and no other.
    pub ort_lib: Option<PathBuf>,
    /// Whether the pinned wheel may be fetched when no library is found.
    pub allow_install: bool,
    /// The build that is needed, for instance [`Flavor::Cuda`] for `--device cuda`; none when any will do. A library
    /// that the user named is taken whatever it offers.
    pub flavor: Option<Flavor>,
}

impl Default for RuntimeOptions {
    /// Any library; the plain one is fetched when there is none.
    fn default() -> Self {
        Self {
            ort_lib: None,
            allow_install: true,
            flavor: None,
        }
    }
}

/// ONNX Runtime, loaded.
#[derive(Debug)]
pub struct Runtime {
    environment: ort::environment::Environment,
    library: Library,
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static OPENING: Mutex<()> = Mutex::new(());

impl Runtime {
    /// Opens ONNX Runtime, or returns the one that is open: a process has one library and one environment.
    ///
    /// The places of [`Origin::ORDER`] are tried in turn. A library that the user named and that cannot be used is an
    /// error; any other is passed over with a line on stderr. With `allow_install` the pinned wheel is fetched when
    /// none is found, and a damaged installation in the cache is replaced.
    ///
    /// ONNX Runtime's own builds tell their makers what is run unless `ORT_DISABLE_TELEMETRY=1` is in the environment by now. The
    /// command and the Python module see to that; a program of its own should before it has other threads.
    ///
    /// # Errors
    /// When no library can be used (the error says what to do), and when `ort_lib` is not the library that is open.
    pub fn open(options: &RuntimeOptions) -> Result<&'static Self> {
        let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = RUNTIME.get() {
            return runtime.agrees_with(options).map(|()| runtime);
        }
        let runtime = open_first(&Places::of_this_process(options.ort_lib.clone()), options)?;
        Ok(RUNTIME.get_or_init(|| runtime))
    }

    /// The runtime that is open, if one is.
    pub fn opened() -> Option<&'static Self> {
        RUNTIME.get()
    }

    /// The library in use.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// What the library says about its build: commit and compiler flags.
    pub fn build_info(&self) -> String {
        one_line(ort::info())
    }

    pub(crate) fn environment(&self) -> &ort::environment::Environment {
        &self.environment
    }

    fn agrees_with(&self, options: &RuntimeOptions) -> Result<()> {
        let Some(requested) = &options.ort_lib else {
            return Ok(());
        };
        let same =
            |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
        let folder = self.library.path.parent().unwrap_or(&self.library.path);
        if same(requested, &self.library.path) || same(requested, folder) {
            return Ok(());
        }
        let reason = format!(
            "this process already uses {}; it can load one library only",
            self.library.path.display()
        );
        Err(Error::setting(format!("ort_lib {}", requested.display()), reason))
    }
}

/// Tries the places in order, then the cache after an installation.
fn open_first(places: &Places, options: &RuntimeOptions) -> Result<Runtime> {
    for origin in Origin::ORDER {
        for candidate in places.candidates(origin, options.flavor) {
            let library = match candidate {
                Ok(library) => library,
                Err(rejected) if origin.is_explicit() => {
                    return Err(Error::input(
                        format!("{origin} {}", rejected.path.display()),
                        rejected.reason,
                    ));
                }
                Err(rejected) => {
                    say(&format!("macula: passing over {rejected}"));
                    match rejected.repair.filter(|_| options.allow_install) {
                        Some(flavor) => install(flavor, None)?,
                        None => continue,
                    }
                }
            };
            if let Some(runtime) = try_library(library, options.flavor)? {
                return Ok(runtime);
            }
        }
    }
    let flavor = options.flavor.unwrap_or_default();
    if !options.allow_install {
        let places = "--ort-lib, ORT_DYLIB_PATH, macula's cache, Python's onnxruntime and the system";
        let mend = format!("run `macula runtime install --flavor {flavor}` or name one with --ort-lib FILE");
        return Err(Error::failed(
            "ONNX Runtime",
            format!("no usable library found in {places}; {mend}"),
        ));
    }
    let library = install(flavor, None)?;
    let path = library.path.display().to_string();
    let unusable = || Error::failed(path, "the installed library cannot be loaded (see above)");
    try_library(library, options.flavor)?.ok_or_else(unusable)
}

/// Loads `library`; none, with a line on stderr, when it is passed over.
fn try_library(library: Library, wanted: Option<Flavor>) -> Result<Option<Runtime>> {
    let (origin, path) = (library.origin, library.path.clone());
    let explicit = origin.is_explicit();
    let reason = match wanted.filter(|&flavor| !explicit && !library.offers(flavor)) {
        Some(flavor) => format!("it has no {flavor} execution provider"),
        None => match load(library)? {
            Ok(runtime) => return Ok(Some(runtime)),
            Err(reason) => reason,
        },
    };
    if explicit {
        return Err(Error::input(format!("{origin} {}", path.display()), reason));
    }
    say(&format!(
        "macula: passing over {} ({origin}): {reason}",
        path.display()
    ));
    Ok(None)
}

/// Loads `library` and makes the environment. The inner error leaves the process free to load another library, the
/// outer one does not.
fn load(library: Library) -> Result<std::result::Result<Runtime, String>> {
    // Absolute, or a bare name that the loader resolves (`Places` gives no others): never a file of the working directory.
    let builder = match ort::init_from(&library.path) {
        Ok(builder) => builder
            .with_name("macula")
            .with_telemetry(false)
            .with_logger(Arc::new(log)),
        Err(error) => return Ok(Err(load_problem(&library.path, &error))),
    };
    let failed = |e: ort::Error| Error::failed(library.path.display().to_string(), one_line(e.message()));
    let environment = builder.build().map_err(failed)?;
    environment.set_log_level(LogLevel::Warning);
    Ok(Ok(Runtime { environment, library }))
}

/// Why a library cannot be loaded, in one line that does not repeat its path.
fn load_problem(path: &Path, error: &LoadDynamicError) -> String {
    match error {
        LoadDynamicError::Dlopen { error, .. } => {
            let detail =
                std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
            let said = one_line(&detail);
            let prefix = format!("{}: ", path.display());
            format!(
                "cannot be loaded as a library: {}",
                said.strip_prefix(&prefix).unwrap_or(&said)
            )
        }
        LoadDynamicError::MissingApi { .. } => {
            "not an ONNX Runtime library (it has no OrtGetApiBase)".to_owned()
        }
        LoadDynamicError::InvalidVersionString => {
            "not an ONNX Runtime library (its version cannot be read)".to_owned()
        }
        LoadDynamicError::BadVersion { version_str, .. } => too_old(version_str),
    }
}

/// Passes ONNX Runtime's own messages on. Its errors come back as results too, so they are shown only when asked for.
fn log(level: LogLevel, category: &str, _id: &str, _location: &str, message: &str) {
    let message = one_line(message);
    match level {
        LogLevel::Fatal => tracing::error!(target: "onnxruntime", category, "{message}"),
        LogLevel::Warning => tracing::warn!(target: "onnxruntime", category, "{message}"),
        LogLevel::Error => tracing::debug!(target: "onnxruntime", category, "{message}"),
        LogLevel::Info | LogLevel::Verbose => tracing::trace!(target: "onnxruntime", category, "{message}"),
    }
}

/// The runtime of the unit tests, fetched into the user's cache when the machine has none.
#[cfg(test)]
pub(crate) fn runtime_for_tests() -> &'static Runtime {
    Runtime::open(&RuntimeOptions::default())
        .expect("the tests need an ONNX Runtime library or a pip that can fetch it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explicit(path: &Path) -> Library {
        Library {
            path: path.to_path_buf(),
            origin: Origin::Flag,
            version: None,
        }
    }

    /// Runs `body` in a process of its own: a process loads one library only, and other tests of this one load theirs.
    /// `name` is the test's, without the path of this module.
    fn alone(name: &str, body: impl FnOnce()) {
        const ALONE: &str = "MACULA_TEST_ALONE";
        if std::env::var(ALONE).is_ok_and(|running| running == name) {
            return body();
        }
        let test = format!("{}::{name}", module_path!().split_once("::").expect("a module").1);
        let output = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args([test.as_str(), "--exact", "--nocapture"])
            .env(ALONE, name)
            .output()
            .expect("it runs");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{stdout}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            stdout.contains("1 passed"),
            "expected one test called {test}: {stdout}"
        );
    }

    #[test]
    fn a_file_that_is_no_library_is_one_clear_line() {
        alone("a_file_that_is_no_library_is_one_clear_line", no_library);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_is_not_onnx_runtime_is_refused() {
        alone("a_library_that_is_not_onnx_runtime_is_refused", || {
            let reason = load(explicit(Path::new("libc.so.6"))).unwrap().unwrap_err();
            assert_eq!(reason, "not an ONNX Runtime library (it has no OrtGetApiBase)");
        });
    }

    #[test]
    fn a_found_library_that_cannot_be_used_is_passed_over() {
        alone("a_found_library_that_cannot_be_used_is_passed_over", passed_over);
    }

    fn no_library() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("libonnxruntime.so");
        std::fs::write(&path, "plain text\n").unwrap();
        let reason = load(explicit(&path)).unwrap().unwrap_err();
        assert!(reason.starts_with("cannot be loaded as a library: "), "{reason}");
        assert!(
            !reason.contains('\n') && !reason.contains(&path.display().to_string()),
            "{reason}"
        );
        let error = try_library(explicit(&path), None).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error
                .to_string()
                .starts_with(&format!("--ort-lib {}: cannot be loaded", path.display())),
            "{error}"
        );
    }

    fn passed_over() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("libonnxruntime.so.1.30.0"), "plain text").unwrap();
        let places = Places {
            system: vec![place.path().to_path_buf()],
            ..Places::default()
        };
        for flavor in [None, Some(Flavor::Cuda)] {
            let options = RuntimeOptions {
                allow_install: false,
                flavor,
                ..RuntimeOptions::default()
            };
            let error = open_first(&places, &options).unwrap_err().to_string();
            assert!(
                error.starts_with("ONNX Runtime: no usable library found in --ort-lib"),
                "{error}"
            );
            let mend = format!(
                "run `macula runtime install --flavor {}`",
                flavor.unwrap_or_default()
            );
            assert!(error.contains(&mend), "{error}");
        }
    }

    #[test]
    fn the_library_is_chosen_once() {
        let runtime = runtime_for_tests();
        assert!(std::ptr::eq(runtime, runtime_for_tests()));
        let path = runtime.library().path.clone();
        let asking = |path: PathBuf| RuntimeOptions {
            ort_lib: Some(path),
            ..RuntimeOptions::default()
        };
        assert!(Runtime::open(&asking(path.clone())).is_ok());
        let error = Runtime::open(&asking("/nonexistent/libonnxruntime.so".into()))
            .unwrap_err()
            .to_string();
        let expected = format!(
            "this process already uses {}; it can load one library only",
            path.display()
        );
        assert!(error.ends_with(&expected), "{error}");
        assert!(
            runtime
                .library()
                .version
                .is_none_or(|version| version.supported())
        );
        assert!(runtime.build_info().contains("Build"), "{}", runtime.build_info());
    }
}
