//! Writing files and folders whole: beside first, then renamed, so that a reader never sees half of one, however the writer
//! ended.
//!
//! What has got its name is on the disk: a file is synced before it is renamed and its folder after, so that a power cut leaves
//! the old one or the new one as well. The umask decides who may read it, as for any file that a user makes.
#![warn(missing_docs)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

/// How the names of files and folders begin that are still being written.
pub const TEMPORARY_PREFIX: &str = ".writing-";

/// Writes `path` through `write`: a temporary file in the same folder, renamed when `write` has succeeded. `failed` makes an
/// error of what the system says.
///
/// # Errors
/// Whatever `write` returns, or the system's word; nothing is left behind then.
pub fn write_whole<E>(
    path: &Path,
    failed: impl Fn(io::Error) -> E,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let mut beside = Beside::for_path(path).map_err(&failed)?;
    write(beside.file())?;
    beside.rename_to(path).map_err(&failed)
}

/// A file that is being written beside the one it will be; removed when it is dropped without a name.
#[derive(Debug)]
pub struct Beside(NamedTempFile);

impl Beside {
    /// A new file in the folder of `path`.
    ///
    /// # Errors
    /// The system's word.
    pub fn for_path(path: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY_PREFIX);
        #[cfg(unix)]
        builder.permissions(mode(0o666));
        builder.tempfile_in(folder_of(path)).map(Self)
    }

    /// The file, to write to.
    pub fn file(&mut self) -> &mut File {
        self.0.as_file_mut()
    }

    /// Gives it the name `path`, in the same folder, in place of what has that name now.
    ///
    /// # Errors
    /// The system's word.
    pub fn rename_to(self, path: &Path) -> io::Result<()> {
        self.0.as_file().sync_all()?;
        self.0.persist(path).map_err(|error| error.error)?;
        sync_folder(folder_of(path))
    }
}

/// Writes folder `out` through `write`, which fills an empty folder beside it: renamed to `out` when `write` has succeeded, in
/// place of one that stands there. The folders above `out` are made if need be. `failed` makes an error of what the system says
/// of a path.
///
/// # Errors
/// Whatever `write` returns, or the system's word; nothing is left behind then.
pub fn write_folder<E>(
    out: &Path,
    failed: impl Fn(&Path, io::Error) -> E,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let parent = folder_of(out);
    fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
    let temporary = folder_beside(out).map_err(|error| failed(out, error))?;
    // Inside the temporary folder, which is removed with what was there before.
    let whole = temporary.path().join("whole");
    fs::create_dir(&whole).map_err(|error| failed(&whole, error))?;
    write(&whole)?;
    sync_all(&whole).map_err(|error| failed(out, error))?;
    if out.exists() {
        fs::rename(out, temporary.path().join("replaced")).map_err(|error| failed(out, error))?;
    }
    fs::rename(&whole, out).map_err(|error| failed(out, error))?;
    sync_folder(parent).map_err(|error| failed(parent, error))
}

/// A temporary folder in that of `path`, with the umask's rights; removed when it is dropped.
///
/// # Errors
/// The system's word.
pub fn folder_beside(path: &Path) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    #[cfg(unix)]
    builder.permissions(mode(0o777));
    builder.tempdir_in(folder_of(path))
}

/// Has the names in `folder` on the disk. Where a system cannot sync a folder, it writes names in order by itself.
///
/// # Errors
/// The system's word.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        return File::open(folder)?.sync_all();
    }
    Ok(())
}

/// Has everything in `folder` on the disk.
fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all(&entry.path())?;
        } else if kind.is_file() {
            // Windows syncs what is open for writing only.
            File::options()
                .read(true)
                .write(cfg!(windows))
                .open(entry.path())?
                .sync_all()?;
        }
    }
    sync_folder(folder)
}

/// The folder that `path` lies in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The files in the folder of `path` whose names `matches` accepts, sorted.
///
/// # Errors
/// The system's word.
pub fn beside(path: &Path, matches: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder_of(path))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&matches) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Rights of which the umask takes what it takes.
#[cfg(unix)]
fn mode(bits: u32) -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    fs::Permissions::from_mode(bits)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
        write_whole(path, |error| error, |file| file.write_all(bytes))
    }

    fn names(folder: &Path) -> Vec<String> {
        let all = beside(&folder.join("x"), |_| true).unwrap();
        all.iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        write(&path, b"old").unwrap();
        let failed = write_whole(
            &path,
            |error| error,
            |file| {
                file.write_all(b"half")?;
                Err(io::Error::other("stopped"))
            },
        );
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["result.json"]);
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_failed_folder_leaves_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("made/out");
        let put = |name: &'static str, then: io::Result<()>| {
            write_folder(
                &out,
                |_, error| error,
                |inner| {
                    fs::create_dir(inner.join("deep"))?;
                    write(&inner.join("deep").join(name), b"text")?;
                    then
                },
            )
        };
        put("a", Ok(())).unwrap();
        assert!(put("b", Err(io::Error::other("stopped"))).is_err());
        assert_eq!(names(&out.join("deep")), ["a"]);
        put("b", Ok(())).unwrap();
        assert_eq!(names(&out.join("deep")), ["b"]);
        assert_eq!(names(&folder.path().join("made")), ["out"]);
    }

    /// The umask is the process's, so this test only compares with what the system makes by itself; `tests/cli/modes.rs` sets it.
    #[cfg(unix)]
    #[test]
    fn rights_are_those_of_any_new_file_and_folder() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mode = |name: &str| at(name).metadata().unwrap().permissions().mode();
        File::create(at("plain")).unwrap();
        fs::create_dir(at("plain-folder")).unwrap();
        write(&at("file"), b"text").unwrap();
        write_folder(&at("folder"), |_, error| error, |_| Ok(())).unwrap();
        assert_eq!(mode("file"), mode("plain"));
        assert_eq!(mode("folder"), mode("plain-folder"));
        let temporary = folder_beside(&at("x")).unwrap();
        let name = temporary.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(mode(name), mode("plain-folder"));
    }
}
