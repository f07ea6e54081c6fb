//! Which images a source has, found without decoding any: their names, sizes, labels and order, and the bytes of a few. How
//! the source was spelled is no part of it: `photos`, `./photos` and its absolute path are one, and so is a copy elsewhere.
//!
//! A million images cost a million calls for a file's size and at most [`SAMPLES`] short reads, on all threads.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Record, Source};
use crate::files::hex;

/// Rows whose bytes are looked at, spread over the source: a replaced set of images is noticed by them where its names and
/// sizes are the same.
const SAMPLES: u64 = 256;
/// Most bytes that are read of one of them, half from its beginning and half from its end.
const SAMPLE_BYTES: u64 = 64 << 10;
/// Blocks that are read of a file that holds many images.
const FILE_BLOCKS: u64 = 32;
/// Bytes of such a block.
const FILE_BLOCK_BYTES: u64 = 16 << 10;
/// Rows that are looked at together, so that memory does not grow with the source.
const ROWS: u64 = 1 << 16;

/// A row as the identity of its source has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Stamp<'a> {
    /// What the image is called within the source: no part of where the source lies or how that was spelled.
    pub name: String,
    /// Where its encoded bytes are.
    pub bytes: Bytes<'a>,
}

/// Where the encoded bytes of an image are.
#[derive(Debug, PartialEq, Eq)]
pub enum Bytes<'a> {
    /// A file of its own.
    File(PathBuf),
    /// A part of a file: where it begins, how long it is.
    Part(PathBuf, u64, u64),
    /// Somewhere in a file of many images, whose places are not known before they are decoded.
    Within(&'a Path),
    /// In memory.
    Held(&'a [u8]),
    /// Nowhere that can be looked at.
    Unknown,
}

impl Stamp<'_> {
    /// A row that `record` names well and that has a file of its own, or none.
    pub(super) fn new(record: Record, file: Option<PathBuf>) -> Self {
        Self {
            name: record.path,
            bytes: file.map_or(Bytes::Unknown, Bytes::File),
        }
    }
}

/// Which images a source has. Two sources with equal identities have, as far as can be told without reading all of them, the
/// same images with the same labels in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// Number of rows.
    pub images: u64,
    /// Bytes of all encoded images whose size is known.
    pub bytes: u64,
    /// Hash of the labels in order.
    pub labels: String,
    /// Hash of the names in order.
    pub names: String,
    /// Hash of the sizes in bytes in order, of masks and depths too.
    pub sizes: String,
    /// Hash of the bytes of a few images.
    pub samples: String,
}

impl SourceIdentity {
    /// Looks at the rows of `source`.
    pub fn from_source(source: &dyn Source) -> Self {
        let mut hashes = Hashes::default();
        for first in (0..source.len()).step_by(ROWS as usize) {
            let rows = first..(first + ROWS).min(source.len());
            let looked: Vec<Row> = rows.into_par_iter().map(|row| Row::look(source, row)).collect();
            looked.iter().for_each(|row| hashes.add(row));
        }
        hashes.samples(source);
        let text = |hash: Sha256| hex(&hash.finalize());
        Self {
            images: source.len(),
            bytes: hashes.bytes,
            names: text(hashes.names),
            labels: text(hashes.labels),
            sizes: text(hashes.sizes),
            samples: text(hashes.samples),
        }
    }

    /// The same images, whatever their labels are.
    pub fn without_labels(&self) -> Self {
        Self {
            labels: String::new(),
            ..self.clone()
        }
    }
}

/// What is looked at in every row.
struct Row {
    name: String,
    label: Option<String>,
    /// Of the image, its mask and its depth; none where there is no such file, or its size is not known.
    sizes: [Option<u64>; 3],
    /// Bytes in memory are hashed in every row, they cost no reading.
    held: Option<[u8; 32]>,
    within: Option<PathBuf>,
}

impl Row {
    fn look(source: &dyn Source, row: u64) -> Self {
        let record = source.record(row);
        let stamp = source.stamp(row);
        let (mut held, mut within) = (None, None);
        let size = match &stamp.bytes {
            Bytes::File(path) => length(path),
            Bytes::Part(_, _, size) => Some(*size),
            Bytes::Within(path) => {
                within = Some(path.to_path_buf());
                None
            }
            Bytes::Held(bytes) => {
                held = Some(Sha256::digest(bytes).into());
                Some(bytes.len() as u64)
            }
            Bytes::Unknown => None,
        };
        let of = |path: &Option<PathBuf>| path.as_deref().and_then(length);
        Self {
            name: stamp.name,
            label: record.label,
            sizes: [size, of(&record.mask), of(&record.depth)],
            held,
            within,
        }
    }
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.len())
}

#[derive(Default)]
struct Hashes {
    names: Sha256,
    labels: Sha256,
    sizes: Sha256,
    samples: Sha256,
    bytes: u64,
    /// The file of many images that the last row was in.
    file: Option<PathBuf>,
}

impl Hashes {
    fn add(&mut self, row: &Row) {
        text(&mut self.names, Some(&row.name));
        text(&mut self.labels, row.label.as_deref());
        for size in row.sizes {
            number(&mut self.sizes, size);
        }
        self.bytes += row.sizes[0].unwrap_or_default();
        if let Some(held) = row.held {
            self.samples.update(held);
        }
        if row.within.is_some() && row.within != self.file {
            self.file.clone_from(&row.within);
            self.whole_file();
        }
    }

    /// A file of many images: its size, and blocks spread over it from the first byte to the last.
    fn whole_file(&mut self) {
        let Some(path) = &self.file else { return };
        let size = length(path);
        number(&mut self.sizes, size);
        let size = size.unwrap_or_default();
        self.bytes += size;
        let last = size.saturating_sub(FILE_BLOCK_BYTES);
        let starts = (0..FILE_BLOCKS)
            .map(|block| (u128::from(last) * u128::from(block) / u128::from(FILE_BLOCKS - 1)) as u64);
        for start in starts {
            self.samples
                .update(read(path, start, FILE_BLOCK_BYTES).unwrap_or_default());
        }
    }

    fn samples(&mut self, source: &dyn Source) {
        let (len, count) = (source.len(), SAMPLES.min(source.len()));
        let last = u128::from(len.saturating_sub(1));
        let rows =
            (0..count).map(|i| (u128::from(i) * last / u128::from(count.saturating_sub(1).max(1))) as u64);
        let rows: Vec<u64> = rows.collect();
        let read: Vec<Vec<u8>> = rows.into_par_iter().map(|row| sample(source, row)).collect();
        for bytes in read {
            number(&mut self.samples, Some(bytes.len() as u64));
            self.samples.update(bytes);
        }
    }
}

/// Bytes of an image, its mask and its depth; none of what cannot be read, which its size tells too.
fn sample(source: &dyn Source, row: u64) -> Vec<u8> {
    let record = source.record(row);
    let mut bytes = match source.stamp(row).bytes {
        Bytes::File(path) => ends(&path, 0, length(&path).unwrap_or_default()),
        Bytes::Part(path, start, size) => ends(&path, start, size),
        Bytes::Within(_) | Bytes::Held(_) | Bytes::Unknown => Vec::new(),
    };
    for path in [record.mask, record.depth].into_iter().flatten() {
        bytes.extend(ends(&path, 0, length(&path).unwrap_or_default()));
    }
    bytes
}

/// The first and the last bytes of a part of a file, all of a short one.
fn ends(path: &Path, start: u64, size: u64) -> Vec<u8> {
    let half = SAMPLE_BYTES / 2;
    let mut bytes = read(path, start, size.min(half)).unwrap_or_default();
    if size > half {
        let tail = (size - half).min(half);
        bytes.extend(read(path, start + size - tail, tail).unwrap_or_default());
    }
    bytes
}

fn read(path: &Path, start: u64, max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Opening a pipe would wait for ever.
    if !fs::metadata(path)?.is_file() {
        return Ok(bytes);
    }
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Adds a text with its length, so that no two lists of texts look alike.
fn text(hash: &mut Sha256, text: Option<&str>) {
    number(hash, text.map(|text| text.len() as u64));
    hash.update(text.unwrap_or_default());
}

fn number(hash: &mut Sha256, value: Option<u64>) {
    hash.update([u8::from(value.is_some())]);
    hash.update(value.unwrap_or_default().to_le_bytes());
}

#[cfg(test)]
mod tests;
