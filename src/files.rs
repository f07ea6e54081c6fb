//! Writing files and folders whole (`macula-files`, with this package's errors), checksums, and outputs that exist.

use std::fs;
use std::io::{Seek as _, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

pub use macula_files::TEMPORARY_PREFIX;

use crate::{Error, Result};

/// Writes `path` through `write`: a temporary file in the same folder, synced and renamed when `write` has succeeded.
///
/// # Errors
/// Whatever `write` returns, or the system's word with the path; nothing is left behind then.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut fs::File) -> Result<()>) -> Result<()> {
    macula_files::write_whole(path, |e| Error::io(path, e), write)
}

/// A path as text that names it and no other: a byte that is not UTF-8 is written `\xHH`, and so is a backslash that
/// stands before an `x`.
pub(crate) fn lossless(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        text.push_str(&chunk.valid().replace("\\x", "\\x5cx"));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Writes folder `out` through `write`, which fills an empty folder beside it: renamed to `out` when `write` has succeeded,
/// in place of one that stands there. The folders above `out` are made if need be.
///
/// # Errors
/// Whatever `write` returns, or the system's word with the path; nothing is left behind then.
pub fn write_folder(out: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    macula_files::write_folder(out, |path, e| Error::io(path, e), write)
}

/// Removes what is in `folder` but for what `keep` says of its name.
///
/// # Errors
/// The system's word with the path.
pub fn empty_folder(folder: &Path, keep: impl Fn(&std::ffi::OsStr) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        if keep(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let is_folder = entry.file_type().map_err(|e| Error::io(&path, e))?.is_dir();
        let removed = if is_folder {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(|e| Error::io(&path, e))?;
    }
    Ok(())
}

/// Writes `bytes` to `path` whole.
///
/// # Errors
/// As [`write_whole`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |file| file.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// Writes `value` as indented JSON to `path`, whole.
///
/// # Errors
/// As [`write_whole`].
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::failed(path.display().to_string(), e.to_string()))?;
    text.push('\n');
    write_bytes(path, text.as_bytes())
}

/// SHA-256 of everything `reader` gives, in lower-case hexadecimal, with the number of bytes. `each` sees every piece,
/// so that a stream can be checked and written in one pass.
///
/// # Errors
/// When reading fails, or `each` does.
pub fn sha256_of(
    mut reader: impl std::io::Read,
    mut each: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok((hex(&hash.finalize()), total)),
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(&buffer[..read]);
        each(&buffer[..read])?;
        total += read as u64;
    }
}

/// SHA-256 of a file, in hexadecimal, without holding it in memory.
///
/// # Errors
/// The system's word with the path.
pub fn sha256(path: &Path) -> Result<String> {
    let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let (sha256, _) = sha256_of(file, |_| Ok(())).map_err(|e| Error::io(path, e))?;
    Ok(sha256)
}

/// A nameless copy of `file` in `folder`, from its start, with the SHA-256 of what was copied: what is checked is what is read then,
/// whatever becomes of `file`.
///
/// # Errors
/// The system's word with the path.
pub fn nameless_copy(file: &Path, folder: &Path) -> Result<(fs::File, String)> {
    let io = |e| Error::io(file, e);
    let mut copy = tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
    let original = fs::File::open(file).map_err(io)?;
    let (sha256, _) = sha256_of(original, |bytes| copy.write_all(bytes)).map_err(io)?;
    copy.rewind().map_err(|e| Error::io(folder, e))?;
    Ok((copy, sha256))
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Refuses an output that exists unless `force`, in which case it is the caller's to replace.
///
/// # Errors
/// [`Error::Exists`] with the path.
pub fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    if path.exists() && !force {
        return Err(Error::Exists {
            path: path.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_the_published_value() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("abc");
        write_bytes(&path, b"abc").expect("written");
        assert_eq!(
            sha256(&path).expect("hashed"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
