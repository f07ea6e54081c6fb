//! Where images come from: one trait, and [`open`], which reads what a user typed. A source knows its rows before any
//! image is read; a row whose file is missing or damaged fails alone, when it is loaded.

mod columns;
mod embedded;
mod folder;
mod identity;
mod idx;
mod kind;
mod layouts;
mod list;
mod notice;
mod paths;
mod shards;
mod spec;
mod tars;
mod video;

pub use identity::{Bytes, SourceIdentity, Stamp};
pub use spec::Columns;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::decode::{DecodeError, DecodeOptions, decode_bands, decode_named};
use super::image::{Image, RgbImage};
use crate::files::{hex, lossless};
use crate::tables::{Table, is_parquet};
use crate::{Error, Result};

/// The forms that [`open`] reads, for error messages.
const FORMS: &str = "a folder, list.csv, list.parquet, IMAGES.parquet, idx:FOLDER#train, idx:FOLDER#test, SHARDS.tar, video:FILE, sample:train, sample:test, ade20k:FOLDER#train, voc:FOLDER#train, nyu:FOLDER#train or - (paths on stdin)";
/// How compressed files begin, and what undoes it.
const COMPRESSED: [(&[u8], &str, &str); 4] = [
    (&[0x1f, 0x8b], "gzip", "gunzip"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "unzstd"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"BZh", "bzip2", "bunzip2"),
];
/// Where a tar has its magic, and what it is.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");
/// Bytes that tell what a file is.
const HEADER_BYTES: u64 = 512;

/// A numbered set of images. Rows run from 0 to `len() - 1` and never change while the source is open.
pub trait Source: Send + Sync {
    /// The number of rows, at least 1.
    fn len(&self) -> u64;

    /// Always false: an empty source cannot be opened.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known of a row without reading its image. Panics when `row` is not below [`Source::len`].
    fn record(&self, row: u64) -> Record;

    /// Reads and decodes the image of a row. Panics when `row` is not below [`Source::len`].
    ///
    /// # Errors
    /// One row's trouble: a file that is missing, unreadable, damaged or too large.
    fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError>;

    /// The encoded image of a row, and what errors call it; by default that of [`Source::file`]. Panics when `row` is not below
    /// [`Source::len`].
    ///
    /// # Errors
    /// As [`Source::load`]; a source whose images are not encoded.
    fn encoded(&self, row: u64) -> std::result::Result<EncodedImage, RowError> {
        match self.file(row) {
            Some(path) => read_file(&path),
            None => Err(RowError {
                path: self.record(row).path,
                reason: "expected an image file that bands are read from, found a source without".to_owned(),
            }),
        }
    }

    /// Reads and decodes the image of a row as `options` ask: a picture as [`Source::load`] gives it, or bands. Panics when `row`
    /// is not below [`Source::len`].
    ///
    /// # Errors
    /// As [`Source::load`].
    fn load_image(&self, row: u64, options: &DecodeOptions) -> std::result::Result<Image, RowError> {
        let Some(bands) = options.bands else {
            return self.load(row, options).map(Image::from);
        };
        let image = self
            .encoded(row)?
            .decoded(|bytes, name| decode_bands(bytes, options, bands, || name.to_owned()));
        image.map(Image::from)
    }

    /// The file of a row, where each row has one. Panics when `row` is not below [`Source::len`].
    fn file(&self, row: u64) -> Option<PathBuf> {
        let _ = row;
        None
    }

    /// What tells the image of a row from any other, for [`SourceIdentity`]. A source whose rows are named by how it was
    /// spelled, or have no file each, says so itself. Panics when `row` is not below [`Source::len`].
    fn stamp(&self, row: u64) -> Stamp<'_> {
        Stamp::new(self.record(row), self.file(row))
    }

    /// What was read, for `meta.json`: the kind of source, where it is, how many images, and a hash where that is cheap.
    fn describe(&self) -> serde_json::Value;

    /// Whether the pixels lie in memory already, so that keeping decoded images would keep them twice.
    fn in_memory(&self) -> bool {
        false
    }

    /// Whether rows are read quickly only in order, so that drawing them at random would take for ever.
    fn in_order_only(&self) -> bool {
        false
    }

    /// Whether all images are known to be grey.
    fn is_grey(&self) -> bool {
        false
    }
}

/// What is known of a row without reading its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Place in the source, from 0.
    pub row: u64,
    /// The image's name within the source, without loss: bytes that are not UTF-8 are written `\xHH`.
    pub path: String,
    /// The class, where the source has classes.
    pub label: Option<String>,
    /// The file of the segmentation mask, where the source names one.
    pub mask: Option<PathBuf>,
    /// The file of the depth map, where the source names one.
    pub depth: Option<PathBuf>,
}

impl Record {
    fn new(row: u64, path: String, label: Option<String>) -> Self {
        Self {
            row,
            path,
            label,
            mask: None,
            depth: None,
        }
    }
}

/// The bytes of an image, and what errors call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedImage {
    /// The file, or the image's name in the source.
    pub name: String,
    /// As they are stored.
    pub bytes: Vec<u8>,
}

impl EncodedImage {
    /// The picture that they are.
    fn picture(self, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        self.decoded(|bytes, name| decode_named(bytes, options, || name.to_owned()))
    }

    /// What `decode` makes of the bytes and the name.
    fn decoded<T>(
        self,
        decode: impl FnOnce(&[u8], &str) -> std::result::Result<T, DecodeError>,
    ) -> std::result::Result<T, RowError> {
        decode(&self.bytes, &self.name).map_err(|cause| RowError {
            reason: cause.to_string(),
            path: self.name,
        })
    }
}

/// Why the image of one row cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct RowError {
    /// The file, or the image's name in the source.
    pub path: String,
    /// What is wrong, in one line.
    pub reason: String,
}

impl From<RowError> for Error {
    fn from(error: RowError) -> Self {
        Self::input(error.path, error.reason)
    }
}

/// Opens what a user typed as a source of images.
///
/// # Errors
/// [`Error::Input`] or [`Error::Io`] when `spec` is of no known form, names nothing readable, or holds no image.
pub fn open(spec: &str) -> Result<Box<dyn Source>> {
    if spec == "-" {
        return Ok(Box::new(paths::Paths::read("-", std::io::stdin().lock())?));
    }
    if let Some(split) = spec.strip_prefix("sample:") {
        return Ok(Box::new(idx::Idx::sample(split)?));
    }
    if let Some(place) = spec.strip_prefix("idx:") {
        return Ok(Box::new(idx::Idx::open(place)?));
    }
    if let Some(layout) = layouts::Layout::open(spec) {
        return Ok(Box::new(layout?));
    }
    if video::Video::is_meant(spec) {
        return Ok(Box::new(video::Video::open(spec)?));
    }
    let (place, columns) = spec::split(spec)?;
    let path = Path::new(place);
    if path.is_dir() {
        return Ok(Box::new(folder::Folder::open(path)?));
    }
    if tars::Tars::is_meant(place) {
        return Ok(Box::new(tars::Tars::open(place)?));
    }
    if spec::is_table_name(place) {
        return open_table(place, &columns);
    }
    if path.is_file() {
        return open_by_content(place, &columns);
    }
    match fs::metadata(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
        Err(_) => Err(Error::input(spec, format!("no such folder; expected {FORMS}"))),
        Ok(_) => Err(not_a_source(spec)),
    }
}

/// Opens a source whose rows are no files of their own; `None` where `spec` names another. A list can name these, and never
/// itself.
fn open_without_files(spec: &str) -> Result<Option<Box<dyn Source>>> {
    if let Some(split) = spec.strip_prefix("sample:") {
        return Ok(Some(Box::new(idx::Idx::sample(split)?)));
    }
    if let Some(place) = spec.strip_prefix("idx:") {
        return Ok(Some(Box::new(idx::Idx::open(place)?)));
    }
    let (place, columns) = spec::split(spec)?;
    if tars::Tars::is_meant(place) {
        return Ok(Some(Box::new(tars::Tars::open(place)?)));
    }
    if spec::is_table_name(place) && columns.image.is_some() {
        return Ok(Some(Box::new(embedded::Embedded::open(place, &columns)?)));
    }
    Ok(None)
}

/// Opens tables: with images in them, or of paths.
fn open_table(place: &str, columns: &Columns) -> Result<Box<dyn Source>> {
    let path = Path::new(place);
    if !path.is_file() && place.contains(['*', '{']) {
        return Ok(Box::new(embedded::Embedded::open(place, columns)?));
    }
    if is_parquet(path)? {
        let table = Table::open(path)?;
        if embedded::image_column(&table, path, columns)?.is_some() {
            return Ok(Box::new(embedded::Embedded::open(place, columns)?));
        }
    }
    Ok(Box::new(list::List::open(path, columns)?))
}

/// Opens a file whose name does not tell what it is.
fn open_by_content(place: &str, columns: &Columns) -> Result<Box<dyn Source>> {
    let path = Path::new(place);
    let start = beginning(path)?;
    if let Some(error) = compressed(path, &start) {
        return Err(error);
    }
    if is_tar(&start) {
        return Ok(Box::new(tars::Tars::open(place)?));
    }
    if is_parquet(path)? {
        return open_table(place, columns);
    }
    if crate::data::decode::announces_image(&start) {
        let reason =
            "an image, not a source of images: write the folder that it lies in, or its path on stdin with -";
        return Err(Error::input(place, reason));
    }
    Err(not_a_source(place))
}

fn not_a_source(spec: &str) -> Error {
    Error::input(spec, format!("a file that is no source; expected {FORMS}"))
}

/// The first bytes of a file.
fn beginning(path: &Path) -> Result<Vec<u8>> {
    let file = fs::File::open(path).map_err(|error| Error::io(path, error))?;
    let mut start = Vec::new();
    let read = file.take(HEADER_BYTES).read_to_end(&mut start);
    read.map_err(|error| Error::io(path, error))?;
    Ok(start)
}

fn is_tar(start: &[u8]) -> bool {
    let (at, magic) = TAR_MAGIC;
    start.get(at..at + magic.len()) == Some(magic)
}

/// Why a file that begins so cannot be read as it is, if it is compressed.
fn compressed(path: &Path, start: &[u8]) -> Option<Error> {
    let (_, kind, undo) = COMPRESSED.iter().find(|(magic, ..)| start.starts_with(magic))?;
    let reason = format!(
        "compressed with {kind}, which cannot be read in any order: decompress it first with {undo} (images are compressed already)"
    );
    Some(Error::input(lossless(path), reason))
}

/// [`open`] for a reader that draws rows at random, as training does.
///
/// # Errors
/// As [`open`], and for a source that can only be read in order.
pub fn open_shuffled(spec: &str) -> Result<Box<dyn Source>> {
    let source = open(spec)?;
    if source.in_order_only() {
        return Err(Error::input(
            spec,
            "expected images that can be drawn at random, found a video: cut it into images first (ffmpeg -i FILE frames/%06d.png)",
        ));
    }
    Ok(source)
}

/// Reads and decodes the image in a file.
fn load_file(path: &Path, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
    read_file(path)?.picture(options)
}

/// Reads the image in a file.
fn read_file(path: &Path) -> std::result::Result<EncodedImage, RowError> {
    let error = |reason: String| RowError {
        path: lossless(path),
        reason,
    };
    // Opening a pipe would wait for ever.
    let metadata = fs::metadata(path).map_err(|cause| error(cause.to_string()))?;
    if !metadata.is_file() {
        return Err(error("not a file".to_owned()));
    }
    Ok(EncodedImage {
        bytes: fs::read(path).map_err(|cause| error(cause.to_string()))?,
        name: lossless(path),
    })
}

/// `row` as an index.
fn place(row: u64) -> usize {
    usize::try_from(row).expect("a row lies below the number of rows, which came from a usize")
}

/// The SHA-256 of `parts`, one after the other, in hexadecimal.
fn sha256(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod edge_tests;
#[cfg(test)]
mod tests;
