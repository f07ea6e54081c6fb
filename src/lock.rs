//! One writer a folder. The lock is the system's own (advisory, on a small file), so it ends with the process that holds it,
//! however that ends: what a killed run leaves behind is an unlocked file, which the next run takes over and removes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Name of the file that is locked.
pub const LOCK_FILE: &str = ".macula.lock";
/// Attempts to lock a file that others remove at the same moment.
const ATTEMPTS: usize = 100;

/// The right to write a folder, until it is dropped.
#[derive(Debug)]
#[must_use = "the folder is locked for as long as this lives"]
pub struct FolderLock {
    file: Option<File>,
    path: PathBuf,
    /// Folders made for the lock, the innermost first, which go with it where nothing else came into them.
    made: Vec<PathBuf>,
}

impl FolderLock {
    /// Locks `folder`, which is made if need be. The lock's file lies in it.
    ///
    /// # Errors
    /// A folder that another run writes, or that cannot be made.
    pub fn acquire(folder: &Path) -> Result<Self> {
        Self::take(folder, folder.join(LOCK_FILE), folder)
    }

    /// Locks `folder`, which will be put in its place as a whole. The lock's file lies beside it.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn beside(folder: &Path) -> Result<Self> {
        let whole = std::path::absolute(folder).map_err(|e| Error::io(folder, e))?;
        let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
            return Self::acquire(folder);
        };
        let mut file = std::ffi::OsString::from(LOCK_FILE);
        file.push(".");
        file.push(name);
        Self::take(folder, parent.join(file), parent)
    }

    /// Refuses a folder that another run is writing; nothing is made or kept.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn check(folder: &Path) -> Result<()> {
        match folder.join(LOCK_FILE).is_file() {
            true => Self::acquire(folder).map(drop),
            false => Ok(()),
        }
    }

    /// Whether `name` is that of a lock's file.
    pub fn is_lock(name: &std::ffi::OsStr) -> bool {
        name.as_encoded_bytes().starts_with(LOCK_FILE.as_bytes())
    }

    /// Whether there is nothing in `folder` but perhaps a lock.
    pub fn is_alone_in(folder: &Path) -> bool {
        let is_own =
            |entry: std::io::Result<fs::DirEntry>| entry.is_ok_and(|entry| Self::is_lock(&entry.file_name()));
        fs::read_dir(folder).is_ok_and(|mut entries| entries.all(is_own))
    }

    fn take(locked: &Path, path: PathBuf, inside: &Path) -> Result<Self> {
        let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let made: Vec<PathBuf> = inside
            .ancestors()
            .take_while(missing)
            .map(Path::to_path_buf)
            .collect();
        for _ in 0..ATTEMPTS {
            fs::create_dir_all(inside).map_err(|e| Error::io(inside, e))?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let file = match options.open(&path) {
                Ok(file) => file,
                // A holder that has just ended removed the folder that it had made.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(&path, e)),
            };
            match file.try_lock() {
                // A holder that has just ended removed this very file: the name is another file's by now.
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => return Ok(Self::held(file, path, made)),
                Err(TryLockError::WouldBlock) => return Err(busy(locked, file)),
                Err(TryLockError::Error(error)) => {
                    // Some network file systems have no locks; a run there goes on as it did without them.
                    tracing::warn!(
                        "{}: cannot be locked against other runs: {error}",
                        locked.display()
                    );
                    drop(fs::remove_file(&path));
                    let file = None;
                    return Ok(Self { file, path, made });
                }
            }
        }
        Err(Error::failed(
            locked.display().to_string(),
            "other runs take and leave this folder all the time",
        ))
    }

    fn held(mut file: File, path: PathBuf, made: Vec<PathBuf>) -> Self {
        // For the message of the run that is refused; the lock does not depend on it.
        let written = file
            .set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::debug!("{}: {error}", path.display());
        }
        Self {
            file: Some(file),
            path,
            made,
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // The name goes first: whoever locks the file afterwards sees that it is no longer there (`is_at`).
        if let Some(file) = self.file.take() {
            drop(fs::remove_file(&self.path));
            drop(file);
        }
        // Fails, as it should, where the run left something in it.
        for folder in &self.made {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

fn busy(locked: &Path, mut file: File) -> Error {
    let mut holder = String::new();
    let holder = match file.read_to_string(&mut holder) {
        Ok(_) if !holder.is_empty() => format!(" (process {holder})"),
        _ => String::new(),
    };
    Error::input(
        locked.display().to_string(),
        format!("another run{holder} is writing this folder; wait for it to end, or choose another folder"),
    )
}

/// Whether `path` still names `file`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// A file that is open cannot be removed there and replaced.
#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_second_is_refused_until_the_first_has_ended() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("new/run");
        for lock in [FolderLock::acquire, FolderLock::beside] {
            let first = lock(&folder).unwrap();
            let error = lock(&folder).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let holder = format!(
                "another run (process {}) is writing this folder",
                std::process::id()
            );
            let text = error.to_string();
            assert!(text.contains("new/run: ") && text.contains(&holder), "{text}");
            drop(first);
            drop(lock(&folder).unwrap());
        }
        assert!(names(place.path()).is_empty(), "nothing is left behind");
    }

    #[test]
    fn what_a_killed_run_left_is_taken_over_and_removed() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(LOCK_FILE), "12345").unwrap();
        FolderLock::check(place.path()).unwrap();
        fs::write(place.path().join(LOCK_FILE), "12345").unwrap();
        let lock = FolderLock::acquire(place.path()).unwrap();
        assert!(FolderLock::check(place.path()).is_err());
        drop(lock);
        assert!(names(place.path()).is_empty());
    }

    #[test]
    fn a_folder_that_got_a_file_stays() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("run");
        let lock = FolderLock::acquire(&folder).unwrap();
        fs::write(folder.join("result.json"), "{}").unwrap();
        drop(lock);
        assert_eq!(names(&folder), ["result.json"]);
    }

    #[test]
    fn only_one_of_many_has_it_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let Ok(_lock) = FolderLock::acquire(place.path()) else {
                            continue;
                        };
                        use std::sync::atomic::Ordering::SeqCst;
                        assert_eq!(inside.fetch_add(1, SeqCst), 0);
                        inside.fetch_sub(1, SeqCst);
                    }
                });
            }
        });
    }
}
