//! Installing ONNX Runtime into the cache: fetch one pinned wheel, check its SHA-256, unpack the libraries, rename the
//! folder into place.
//!
//! Everything happens in a temporary folder inside the cache, so that a reader sees a whole installation or none, and
//! under a lock, so that of two processes one installs and the other finds it done. The wheel is copied while its checksum is
//! taken, and the copy, which has no name, is what is unpacked: a file that others can write may change at any time.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::cache::{cache_dir, install_dir, libraries_dir};
use super::library::{Library, Origin};
use super::manifest::{Depth, Manifest, UnpackedFile};
use super::messages::say;
use super::pip;
use super::wheels::{Flavor, Wheel, pinned, with_checksum};
use crate::{Error, Result, files};

/// How a wheel gets into a folder: given the wheel and the folder, the path of the file. pip in earnest, something
/// smaller in tests.
pub type Fetch<'a> = &'a dyn Fn(&Wheel, &Path) -> Result<PathBuf>;

/// Temporary folders in the cache begin with this; what a killed process left is known by it.
const PARTIAL: &str = ".partial-";
const LOCK: &str = ".lock";

/// Installs the pinned wheel of `flavor` for this machine into the cache: from the file `wheel` where one is given,
/// else fetched with pip. An installation that is whole is left as it is; a damaged one is replaced.
///
/// # Errors
/// When there is no wheel for this machine, when it cannot be fetched (the error says what to do by hand), when its
/// checksum is not the pinned one, and when the cache cannot be written.
pub fn install(flavor: Flavor, wheel: Option<&Path>) -> Result<Library> {
    let pinned = pinned(flavor)?;
    let cache = cache_dir()?;
    match wheel {
        Some(file) => {
            // Also where the installation is whole already: a wrong file must not pass for installed.
            check_wheel(file, pinned)?;
            install_with(&cache, pinned, &|_, _| Ok(file.to_path_buf()))
        }
        None => install_with(&cache, pinned, &|wheel, folder| {
            say(&format!(
                "macula: fetching {} ({} MB) with pip into {}",
                wheel.requirement(),
                wheel.megabytes,
                libraries_dir(&cache).display()
            ));
            pip::download(wheel, folder)
        }),
    }
}

/// [`install`] of `wheel` into `cache`, the file coming from `fetch`.
///
/// # Errors
/// As [`install`].
pub fn install_with(cache: &Path, wheel: &Wheel, fetch: Fetch) -> Result<Library> {
    let libraries = libraries_dir(cache);
    std::fs::create_dir_all(&libraries).map_err(|e| Error::io(&libraries, e))?;
    let _lock = lock(&libraries)?;
    remove_leftovers(&libraries)?;
    let target = install_dir(cache, wheel);
    match installed(cache, wheel, Depth::Everything) {
        Ok(Some(library)) => return Ok(library),
        Ok(None) => {}
        Err(damage) => say(&format!("macula: {damage}; installing it again")),
    }
    let partial = tempfile::Builder::new()
        .prefix(PARTIAL)
        .tempdir_in(&libraries)
        .map_err(|e| Error::io(&libraries, e))?;
    let file = fetch(wheel, partial.path())?;
    let copy = checked_copy(&file, wheel, partial.path())?;
    let unpacked = partial.path().join("unpacked");
    std::fs::create_dir(&unpacked).map_err(|e| Error::io(&unpacked, e))?;
    unpack(copy, &file, wheel, &unpacked)?;
    put_in_place(&partial, &unpacked, &target)?;
    installed(cache, wheel, Depth::Library)?.ok_or_else(|| {
        Error::failed(
            target.display().to_string(),
            "vanished while it was being installed",
        )
    })
}

/// The whole installation of `wheel` in `cache`; none when there is no folder for it.
///
/// # Errors
/// When there is one and it is damaged.
pub fn installed(cache: &Path, wheel: &Wheel, depth: Depth) -> Result<Option<Library>> {
    let folder = install_dir(cache, wheel);
    if !folder.exists() {
        return Ok(None);
    }
    let manifest = Manifest::read(&folder)?;
    if manifest.wheel_sha256 != wheel.sha256 {
        let reason = format!("made from another wheel than {}", wheel.file_name);
        return Err(Error::failed(folder.display().to_string(), reason));
    }
    let path = manifest.check(&folder, depth)?;
    let version = manifest.version.parse().ok();
    Ok(Some(Library {
        path,
        origin: Origin::Cache,
        version,
    }))
}

/// Waits for the cache's lock; it is released when the file is dropped, also by a crash.
fn lock(libraries: &Path) -> Result<File> {
    let path = libraries.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io(&path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say("macula: waiting for another process that installs ONNX Runtime");
            file.lock().map_err(|e| Error::io(&path, e))?;
        }
        Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
    }
    Ok(file)
}

/// Removes what processes that were killed left behind. Only under the lock: nobody else works in the folder.
fn remove_leftovers(libraries: &Path) -> Result<()> {
    let entries = std::fs::read_dir(libraries).map_err(|e| Error::io(libraries, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(libraries, e))?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            std::fs::remove_dir_all(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    Ok(())
}

fn check_wheel(file: &Path, wheel: &Wheel) -> Result<()> {
    let found = files::sha256(file)?;
    if found == wheel.sha256 {
        Ok(())
    } else {
        Err(other_wheel(file, wheel, &found))
    }
}

/// A nameless copy in `folder` of what `file` held when its checksum was taken.
fn checked_copy(file: &Path, wheel: &Wheel, folder: &Path) -> Result<File> {
    let (copy, found) = files::nameless_copy(file, folder)?;
    match found == wheel.sha256 {
        true => Ok(copy),
        false => Err(other_wheel(file, wheel, &found)),
    }
}

/// The error about a `file` whose checksum is `found` and not that of `wheel`.
fn other_wheel(file: &Path, wheel: &Wheel, found: &str) -> Error {
    let which = match with_checksum(found) {
        Some(other) => format!("{} for {} {}", other.requirement(), other.os, other.arch),
        None => format!("SHA-256 {found}"),
    };
    let expected = format!(
        "expected {} with SHA-256 {}, found {which}",
        wheel.file_name, wheel.sha256
    );
    Error::input(
        file.display().to_string(),
        format!("{expected}; nothing was installed"),
    )
}

/// Whether `name`, a path inside a wheel, is unpacked: the libraries and the licences, without Python's own module.
fn wanted(name: &str) -> Option<&str> {
    let in_package = name.strip_prefix("onnxruntime/")?;
    if in_package == "LICENSE" || in_package == "ThirdPartyNotices.txt" {
        return Some(in_package);
    }
    let file = in_package
        .strip_prefix("capi/")
        .filter(|file| !file.contains(['/', '\\']))?;
    let is_library = file.contains(".so") || file.ends_with(".dylib") || file.ends_with(".dll");
    (is_library && !file.starts_with("onnxruntime_pybind11_state")).then_some(file)
}

/// Unpacks the wanted files of the wheel in `reader`, which came from `file`, into the flat folder `target` and writes the
/// manifest.
fn unpack(reader: File, file: &Path, wheel: &Wheel, target: &Path) -> Result<()> {
    let bad = |reason: String| Error::input(file.display().to_string(), reason);
    let mut archive = zip::ZipArchive::new(reader).map_err(|e| bad(format!("not a wheel: {e}")))?;
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let mut member = archive
            .by_index(index)
            .map_err(|e| bad(format!("member {index}: {e}")))?;
        let name = member
            .name()
            .map_err(|e| bad(format!("member {index}: {e}")))?
            .into_owned();
        let Some(short) = wanted(&name) else { continue };
        let path = target.join(short);
        let mut out = File::create_new(&path).map_err(|e| Error::io(&path, e))?;
        let written = files::sha256_of(&mut member, |bytes| out.write_all(bytes));
        let (sha256, bytes) = written.map_err(|e| bad(format!("{name} could not be unpacked: {e}")))?;
        files.push(UnpackedFile {
            name: short.to_owned(),
            bytes,
            sha256,
        });
    }
    if !files.iter().any(|file| file.name == wheel.library_name()) {
        return Err(bad(format!("expected a member {}, found none", wheel.library)));
    }
    Manifest::new(wheel, files).write(target)
}

/// Renames the finished folder to its name; a damaged one there is moved into the temporary folder and goes with it.
fn put_in_place(partial: &TempDir, unpacked: &Path, target: &Path) -> Result<()> {
    if target.exists() {
        std::fs::rename(target, partial.path().join("damaged")).map_err(|e| Error::io(target, e))?;
    }
    std::fs::rename(unpacked, target).map_err(|e| Error::io(target, e))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::manifest::MANIFEST;
    use super::super::wheels::WHEELS;
    use super::*;

    const MEMBERS: &[(&str, &str)] = &[
        ("onnxruntime/LICENSE", "licence"),
        ("onnxruntime/ThirdPartyNotices.txt", "notices"),
        ("onnxruntime/__init__.py", "import nothing"),
        ("onnxruntime/capi/libonnxruntime.so.1.32.0", "the library"),
        ("onnxruntime/capi/libonnxruntime_providers_shared.so", "shared"),
        (
            "onnxruntime/capi/onnxruntime_pybind11_state.cpython-312-x86_64-linux-gnu.so",
            "python's",
        ),
        ("onnxruntime/capi/deep/other.so", "deep"),
        ("onnxruntime/capi/../../escape.so", "escape"),
    ];

    /// Writes a small wheel at `path` and returns the table's line for it.
    fn fake_wheel(path: &Path, members: &[(&str, &str)]) -> Wheel {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        for (name, text) in members {
            zip.start_file(*name, zip::write::SimpleFileOptions::default())
                .unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        let sha256 = Box::leak(files::sha256(path).unwrap().into_boxed_str());
        Wheel { sha256, ..WHEELS[0] }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn libraries_and_licences_are_unpacked_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("fake.whl");
        let wheel = fake_wheel(&file, MEMBERS);
        let cache = place.path().join("cache");
        let library = install_with(&cache, &wheel, &|_, _| Ok(file.clone())).unwrap();
        assert_eq!(
            library.path,
            cache.join("onnxruntime/cpu-1.32.0/libonnxruntime.so.1.32.0")
        );
        assert_eq!(std::fs::read_to_string(&library.path).unwrap(), "the library");
        assert_eq!(library.version.unwrap().to_string(), "1.32.0");
        let unpacked = names(library.path.parent().unwrap());
        let expected = [
            "LICENSE",
            "ThirdPartyNotices.txt",
            "libonnxruntime.so.1.32.0",
            "libonnxruntime_providers_shared.so",
            MANIFEST,
        ];
        assert_eq!(unpacked, expected);
        assert_eq!(names(&cache.join("onnxruntime")), [".lock", "cpu-1.32.0"]);
        assert!(file.exists(), "a wheel that the user brought is not touched");
    }

    #[test]
    fn a_doctored_wheel_is_refused_and_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("fake.whl");
        let wheel = fake_wheel(&file, MEMBERS);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.push(b' ');
        let fetch = |_: &Wheel, folder: &Path| {
            let path = folder.join("fake.whl");
            std::fs::write(&path, &bytes).unwrap();
            Ok(path)
        };
        let cache = place.path().join("cache");
        let error = install_with(&cache, &wheel, &fetch).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!(
                "expected {} with SHA-256 {}, found SHA-256 ",
                wheel.file_name, wheel.sha256
            )),
            "{text}"
        );
        assert!(
            text.ends_with("; nothing was installed") && !text.contains('\n'),
            "{text}"
        );
        assert_eq!(error.exit_code(), 2);
        assert_eq!(names(&cache.join("onnxruntime")), [".lock"]);
    }

    #[test]
    fn what_is_unpacked_is_what_the_checksum_was_taken_of() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("fake.whl");
        let wheel = fake_wheel(&file, MEMBERS);
        let copy = checked_copy(&file, &wheel, place.path()).unwrap();
        // Whoever can write the file puts another library into it, in place and by another name.
        let other = place.path().join("other.whl");
        fake_wheel(
            &other,
            &[("onnxruntime/capi/libonnxruntime.so.1.32.0", "another library")],
        );
        std::fs::write(&file, std::fs::read(&other).unwrap()).unwrap();
        std::fs::rename(&other, &file).unwrap();
        let target = place.path().join("unpacked");
        std::fs::create_dir(&target).unwrap();
        unpack(copy, &file, &wheel, &target).unwrap();
        let library = std::fs::read_to_string(target.join("libonnxruntime.so.1.32.0")).unwrap();
        assert_eq!(library, "the library");
        assert!(checked_copy(&file, &wheel, place.path()).is_err());
    }

    #[test]
    fn a_wheel_without_the_library_and_a_file_that_is_no_wheel_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("fake.whl");
        let wheel = fake_wheel(&file, &MEMBERS[..3]);
        let error = install_with(place.path(), &wheel, &|_, _| Ok(file.clone()))
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("expected a member onnxruntime/capi/libonnxruntime.so.1.32.0, found none"),
            "{error}"
        );
        std::fs::write(&file, "plain text").unwrap();
        let sha256 = Box::leak(files::sha256(&file).unwrap().into_boxed_str());
        let wheel = Wheel { sha256, ..wheel };
        let error = install_with(place.path(), &wheel, &|_, _| Ok(file.clone()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("not a wheel"), "{error}");
        assert_eq!(names(&place.path().join("onnxruntime")), [".lock"]);
    }

    #[test]
    fn a_second_install_fetches_nothing_and_a_damaged_one_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("fake.whl");
        let wheel = fake_wheel(&file, MEMBERS);
        let fetched = AtomicUsize::new(0);
        let fetch = |_: &Wheel, _: &Path| {
            fetched.fetch_add(1, Ordering::SeqCst);
            Ok(file.clone())
        };
        let library = install_with(place.path(), &wheel, &fetch).unwrap();
        install_with(place.path(), &wheel, &fetch).unwrap();
        assert_eq!(fetched.load(Ordering::SeqCst), 1);
        std::fs::write(&library.path, "the LIBRARY").unwrap();
        let error = installed(place.path(), &wheel, Depth::Library)
            .unwrap_err()
            .to_string();
        assert!(error.contains("damaged: expected SHA-256"), "{error}");
        install_with(place.path(), &wheel, &fetch).unwrap();
        assert_eq!(fetched.load(Ordering::SeqCst), 2);
        assert_eq!(std::fs::read_to_string(&library.path).unwrap(), "the library");
        assert_eq!(names(&place.path().join("onnxruntime")), [".lock", "cpu-1.32.0"]);
    }

    #[test]
    fn of_many_that_install_at_once_one_fetches_and_all_find_the_same_whole_library() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("fake.whl");
        let wheel = fake_wheel(&file, MEMBERS);
        std::fs::create_dir_all(place.path().join("onnxruntime/.partial-left/unpacked")).unwrap();
        let fetched = AtomicUsize::new(0);
        let fetch = |_: &Wheel, folder: &Path| {
            fetched.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(50));
            let path = folder.join("fake.whl");
            std::fs::copy(&file, &path).unwrap();
            Ok(path)
        };
        let paths: Vec<PathBuf> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| install_with(place.path(), &wheel, &fetch).unwrap().path))
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!(fetched.load(Ordering::SeqCst), 1);
        assert!(paths.iter().all(|path| path == &paths[0]));
        assert_eq!(names(&place.path().join("onnxruntime")), [".lock", "cpu-1.32.0"]);
    }

    #[test]
    fn a_wheel_for_another_machine_is_named() {
        let place = tempfile::tempdir().unwrap();
        let error = other_wheel(Path::new("x.whl"), &WHEELS[0], WHEELS[2].sha256).to_string();
        assert!(
            error.ends_with("found onnxruntime==1.32.0 for macos aarch64; nothing was installed"),
            "{error}"
        );
        let missing = check_wheel(&place.path().join("none.whl"), &WHEELS[0]).unwrap_err();
        assert_eq!(missing.exit_code(), 2);
    }
}
