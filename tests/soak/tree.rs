//! A few files in memory: what a seed is, and what a mutated input is before it is written.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Files by their path below a folder; `None` is an empty folder.
pub type Files = BTreeMap<String, Option<Vec<u8>>>;

/// A sound input, and where it names its own files by checksum or length.
#[derive(Debug, Clone)]
pub struct Seed {
    /// The files.
    pub files: Files,
    /// SHA-256 (hexadecimal) of a file that a text file of the seed holds, by the file's name.
    checksums: BTreeMap<String, String>,
}

impl Seed {
    /// The files below `folder`. Links are followed, so that what is written is files.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut files = Files::new();
        collect(folder, "", &mut files)?;
        let texts: Vec<&[u8]> = files
            .values()
            .flatten()
            .filter(|bytes| is_text(bytes))
            .map(Vec::as_slice)
            .collect();
        let checksums = files
            .iter()
            .filter_map(|(name, bytes)| Some((name.clone(), hexadecimal(bytes.as_deref()?))))
            .filter(|(_, checksum)| texts.iter().any(|text| find(text, checksum.as_bytes()).is_some()))
            .collect();
        Ok(Self { files, checksums })
    }

    /// Writes the new checksum and length of every changed file where the seed had the old ones, so that a reader looks
    /// behind its checksums.
    pub fn mend_checksums(&self, files: &mut Files) {
        for (name, old) in &self.checksums {
            let (Some(Some(now)), Some(Some(before))) = (files.get(name), self.files.get(name)) else {
                continue;
            };
            if now == before {
                continue;
            }
            let new = hexadecimal(now);
            let (length, old_length) = (
                format!("\"bytes\": {},", now.len()),
                format!("\"bytes\": {},", before.len()),
            );
            for text in files.values_mut().flatten().filter(|bytes| is_text(bytes)) {
                if find(text, old.as_bytes()).is_some() {
                    replace(text, old.as_bytes(), new.as_bytes());
                    replace(text, old_length.as_bytes(), length.as_bytes());
                }
            }
        }
    }
}

/// Writes `files` below `folder`, which is made anew.
pub fn write(files: &Files, folder: &Path) -> io::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    for (name, bytes) in files {
        let path = folder.join(name);
        let Some(bytes) = bytes else {
            fs::create_dir_all(&path)?;
            continue;
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, bytes)?;
    }
    Ok(())
}

/// Whether bytes are text that can be edited by its words.
pub fn is_text(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(1 << 16)];
    let valid = match std::str::from_utf8(start) {
        Ok(_) => true,
        // Cut within a character.
        Err(error) => error.error_len().is_none(),
    };
    valid && !start.contains(&0)
}

/// Where `needle` first stands.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

fn replace(bytes: &mut Vec<u8>, old: &[u8], new: &[u8]) {
    if let Some(place) = find(bytes, old) {
        bytes.splice(place..place + old.len(), new.iter().copied());
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn collect(folder: &Path, prefix: &str, files: &mut Files) -> io::Result<()> {
    let mut empty = true;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        empty = false;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = if prefix.is_empty() {
            name.into_owned()
        } else {
            format!("{prefix}/{name}")
        };
        if path.is_dir() {
            collect(&path, &name, files)?;
        } else {
            files.insert(name, Some(fs::read(&path)?));
        }
    }
    if empty && !prefix.is_empty() {
        files.insert(prefix.to_owned(), None);
    }
    Ok(())
}
