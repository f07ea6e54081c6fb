//! The bytes under a checkpoint: where each storage lies, and the digest of the files.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::{Error, Result};

/// An opened file, in the way its storages are reached.
pub(super) enum Container {
    /// Storages are byte ranges.
    Plain(File),
    /// Storages are entries, read whole so that their checksums are verified.
    Zip(Box<ZipArchive<BufReader<File>>>),
}

/// A file of a checkpoint.
pub(super) struct Source {
    pub path: PathBuf,
    pub container: Container,
}

/// Where the bytes of one storage lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// From this byte of a plain file on.
    Offset(u64),
    /// The zip entry of this index.
    Entry(usize),
}

/// A run of bytes that one or more tensors view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage {
    /// Index into the sources.
    pub source: usize,
    pub place: Place,
    /// Bytes. Already checked against the file, so allocating it is safe.
    pub len: usize,
}

impl Source {
    /// Reads the storage whole.
    pub fn read(&mut self, storage: &Storage) -> Result<Vec<u8>> {
        let mut bytes = vec![0; storage.len];
        let done = match (&mut self.container, storage.place) {
            (Container::Plain(file), Place::Offset(offset)) => file
                .seek(SeekFrom::Start(offset))
                .and_then(|_| file.read_exact(&mut bytes)),
            (Container::Zip(archive), Place::Entry(index)) => {
                read_entry(archive, index, &mut bytes).map_err(|e| Error::corrupt(&self.path, e))?;
                Ok(())
            }
            _ => unreachable!("a place is made together with its container"),
        };
        done.map_err(|e| Error::io(&self.path, e))?;
        Ok(bytes)
    }
}

/// Fills `bytes` with the entry, to its very end, where the checksum is compared.
fn read_entry(
    archive: &mut ZipArchive<BufReader<File>>,
    index: usize,
    bytes: &mut [u8],
) -> std::result::Result<(), String> {
    let mut entry = archive.by_index(index).map_err(|e| format!("damaged zip: {e}"))?;
    let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
    entry
        .read_exact(bytes)
        .and_then(|()| entry.read(&mut [0]))
        .map_err(|e| format!("damaged zip entry `{name}`: {e}"))
        .and_then(|rest| match rest {
            0 => Ok(()),
            _ => Err(format!("zip entry `{name}` is longer than its directory says")),
        })
}

/// SHA-256, in hexadecimal, of the files' bytes one after another.
pub(super) fn sha256(paths: &[PathBuf]) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in paths {
        let mut file = open(path)?;
        loop {
            let read = file.read(&mut buffer).map_err(|e| Error::io(path, e))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Opens a file for reading.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_that_of_the_standard() {
        let folder = tempfile::tempdir().expect("a folder");
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&a, "a").expect("written");
        std::fs::write(&b, "bc").expect("written");
        // FIPS 180-2, appendix B.1: the digest of "abc".
        assert_eq!(
            sha256(&[a, b]).expect("readable"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
