//! WebDataset shards: tar files whose neighbouring entries with one key are a sample (`key.jpg`, `key.cls`, ..). The entries
//! are listed once when the source is opened, without reading what is in them; images are then read in place, in any order.
//!
//! A key is all before the first point of the file's name, as WebDataset has it. The image of a sample is the first entry
//! called `key.EXTENSION`; further images of that sample (`key.mask.png`) are no rows. Where a key has no such image, its
//! images have points in their names (`IMG.2020.01.01.png`): each is a row, and what belongs to it has its whole name up to
//! the last point (`IMG.2020.01.01.cls`) or the key alone (`IMG.cls`). A link is the image that it leads to within the tar.
//! Whatever is no row is counted and named once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use serde_json::json;

use super::kind::{self, EXTENSIONS, Kind, is_passed_over};
use super::notice::{PassedOver, say_once, warn_once};
use super::{
    Bytes, EncodedImage, Record, RowError, Source, Stamp, beginning, compressed, lossless, place, sha256,
    shards,
};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::{Error, Result};

/// A label larger than this is none.
const LABEL_BYTES: u64 = 1 << 20;
/// The unit of a tar.
const BLOCK: u64 = 512;
/// Links that lead to links; more are a loop.
const MAX_LINKS: usize = 40;
/// How names of tars end, compressed ones among them: those are refused unless they are none.
const ENDINGS: [&str; 7] = [
    ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tbz2",
];

/// The images of tar shards, shard by shard, in the order of their entries.
pub(super) struct Tars {
    spec: String,
    shards: Vec<PathBuf>,
    rows: Vec<Row>,
    labelled: bool,
    sha256: String,
}

/// One image.
struct Row {
    shard: u32,
    /// Where its bytes begin in the shard, and how many there are.
    offset: u64,
    size: u64,
    name: String,
    label: Option<String>,
}

/// Where an image's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Here {
        offset: u64,
        size: u64,
    },
    /// With the entry of this name, as [`plain`] writes it.
    Linked(String),
}

/// An image of a sample.
struct Image {
    name: String,
    content: Content,
}

/// A sample while its entries are read.
#[derive(Default)]
struct Sample {
    key: String,
    images: Vec<Image>,
    /// Labels by the name of their file up to its last point.
    labels: BTreeMap<String, String>,
    others: Vec<String>,
}

/// What is read of one shard.
struct Scan<'a> {
    number: u32,
    rows: &'a mut Vec<(Row, Content)>,
    passed: &'a mut PassedOver,
    /// Of every file, where its bytes are.
    files: BTreeMap<String, (u64, u64)>,
    links: BTreeMap<String, String>,
    sample: Sample,
}

impl Tars {
    /// Whether `place` names tars.
    pub(super) fn is_meant(place: &str) -> bool {
        let lower = place.to_ascii_lowercase();
        ENDINGS.iter().any(|end| lower.ends_with(end))
    }

    /// Lists the images of `spec`: a tar, `shards/{000..012}.tar`, or a pattern with `*` in the file's name.
    pub(super) fn open(spec: &str) -> Result<Self> {
        let shards = shards::expand(spec)?;
        let (mut rows, mut passed) = (Vec::new(), PassedOver::default());
        for (number, shard) in (0..).zip(&shards) {
            if let Some(error) = compressed(shard, &beginning(shard)?) {
                return Err(error);
            }
            scan(shard, number, &mut rows, &mut passed)?;
        }
        if rows.is_empty() {
            let known = EXTENSIONS.join(", ");
            let passed = passed.line().map_or(String::new(), |line| format!("; {line}"));
            return Err(Error::input(
                spec,
                format!("no image in it (looked for {known}){passed}"),
            ));
        }
        passed.say(spec);
        let listing: String = rows
            .iter()
            .map(|row| format!("{} {} {}\n", row.shard, row.name, row.size))
            .collect();
        Ok(Self {
            spec: spec.to_owned(),
            shards,
            labelled: rows.iter().all(|row| row.label.is_some()),
            rows,
            sha256: sha256(&[listing.as_bytes()]),
        })
    }

    fn read(&self, row: &Row) -> std::io::Result<Vec<u8>> {
        let mut file = File::open(&self.shards[row.shard as usize])?;
        file.seek(SeekFrom::Start(row.offset))?;
        let mut bytes = Vec::new();
        file.take(row.size).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn name(&self, row: &Row) -> String {
        format!("{}/{}", lossless(&self.shards[row.shard as usize]), row.name)
    }
}

/// Adds the images of one shard to `rows`.
fn scan(shard: &Path, number: u32, rows: &mut Vec<Row>, passed: &mut PassedOver) -> Result<()> {
    let failed =
        |error: std::io::Error| Error::input(lossless(shard), format!("no tar that can be read: {error}"));
    let file = File::open(shard).map_err(|error| Error::io(shard, error))?;
    let length = file.metadata().map_err(|error| Error::io(shard, error))?.len();
    let mut archive = tar::Archive::new(file);
    // A tar may stand behind another, with the mark of the end between them.
    archive.set_ignore_zeros(true);
    let mut found = Vec::new();
    let mut scan = Scan {
        number,
        rows: &mut found,
        passed,
        files: BTreeMap::new(),
        links: BTreeMap::new(),
        sample: Sample::default(),
    };
    let mut beside = File::open(shard).map_err(|error| Error::io(shard, error))?;
    let (mut end, mut is_second) = (0, false);
    for entry in archive.entries_with_seek().map_err(failed)? {
        let mut entry = match entry {
            Ok(entry) => entry,
            // What stands behind a whole tar need not be one.
            Err(_) if end > 0 && is_mark(&mut beside, end) => break,
            Err(error) => return Err(failed(error)),
        };
        let is_apart = end > 0 && entry.raw_header_position() >= end + BLOCK;
        if !is_second && is_apart && is_mark(&mut beside, end) {
            is_second = true;
            say_once(format!(
                "{}: a second archive stands behind the first in this tar, and is read too",
                lossless(shard)
            ));
        }
        end = entry.raw_file_position() + entry.size().next_multiple_of(BLOCK);
        scan.take(&mut entry).map_err(failed)?;
    }
    scan.finish_sample();
    scan.resolve();
    rows.extend(found.into_iter().map(|(row, _)| row));
    // A tar ends with a block of zeros.
    if end + BLOCK > length {
        warn_once(format!(
            "{} ends without the mark of a whole tar after {length} bytes: it may have been cut",
            lossless(shard)
        ));
    }
    Ok(())
}

/// Whether a block of zeros stands at `at`.
fn is_mark(file: &mut File, at: u64) -> bool {
    let mut read = || -> std::io::Result<bool> {
        file.seek(SeekFrom::Start(at))?;
        let mut block = [1; BLOCK as usize];
        file.read_exact(&mut block)?;
        Ok(block.iter().all(|&byte| byte == 0))
    };
    read().unwrap_or(false)
}

impl Scan<'_> {
    /// Takes up one entry.
    fn take(&mut self, entry: &mut tar::Entry<'_, File>) -> std::io::Result<()> {
        use tar::EntryType as Type;
        let entry_type = entry.header().entry_type();
        let path = entry.path()?.into_owned();
        let name = lossless(&path);
        if let Some(reason) = path.components().find_map(|part| match part {
            Component::Normal(part) => is_passed_over(&part.to_string_lossy()),
            _ => None,
        }) {
            self.passed.count(reason, &name);
            return Ok(());
        }
        let (offset, size) = (entry.raw_file_position(), entry.size());
        let content = match entry_type {
            Type::Regular | Type::Continuous => {
                self.files.insert(plain(&path), (offset, size));
                Content::Here { offset, size }
            }
            Type::Link | Type::Symlink => {
                let Some(target) = entry.link_name()? else {
                    self.passed.count("links that lead nowhere", &name);
                    return Ok(());
                };
                // A hard link names an entry of the tar, a symbolic one a file beside itself.
                let target = match entry_type {
                    Type::Link => plain(&target),
                    _ => plain(&path.with_file_name("").join(&target)),
                };
                self.links.insert(plain(&path), target.clone());
                Content::Linked(target)
            }
            Type::Directory | Type::XGlobalHeader => return Ok(()),
            _ => {
                self.passed
                    .count("neither files nor links (pipes, devices, sparse files)", &name);
                return Ok(());
            }
        };
        let (key, extension) = key_of(&name);
        if key != self.sample.key {
            self.finish_sample();
            key.clone_into(&mut self.sample.key);
        }
        let is_image = match kind::by_name(&path) {
            Kind::Image => true,
            Kind::Other => false,
            Kind::Unknown => matches!(content, Content::Here { .. }) && kind::begins_like_image(&mut *entry),
        };
        let last = extension.rsplit('.').next().unwrap_or_default();
        if is_image {
            self.sample.images.push(Image { name, content });
        } else if matches!(last, "cls" | "json") && size <= LABEL_BYTES {
            let mut text = String::new();
            if entry.read_to_string(&mut text).is_ok()
                && let Some(label) = label_of(last, &text)
            {
                self.sample.labels.insert(stem(&name).to_owned(), label);
            }
        } else {
            self.sample.others.push(name);
        }
        Ok(())
    }

    /// The sample's images become rows.
    fn finish_sample(&mut self) {
        let Sample {
            key,
            images,
            labels,
            others,
        } = std::mem::take(&mut self.sample);
        if images.is_empty() {
            others.iter().for_each(|name| self.passed.count_kind(name));
            return;
        }
        // `key.EXTENSION`: nothing but the extension stands behind the key.
        let own = images.iter().position(|image| stem(&image.name) == key);
        for (place, image) in images.into_iter().enumerate() {
            if own.is_some_and(|own| own != place) {
                self.passed
                    .count("further images of a sample that has one", &image.name);
                continue;
            }
            let label = labels
                .get(stem(&image.name))
                .or_else(|| labels.get(&key))
                .cloned();
            let (offset, size) = match image.content {
                Content::Here { offset, size } => (offset, size),
                Content::Linked(_) => (0, 0),
            };
            let row = Row {
                shard: self.number,
                offset,
                size,
                name: image.name,
                label,
            };
            self.rows.push((row, image.content));
        }
    }

    /// Gives links the bytes that they lead to; those that lead out of the tar are counted.
    fn resolve(&mut self) {
        let (files, links, passed) = (&self.files, &self.links, &mut *self.passed);
        self.rows.retain_mut(|(row, content)| {
            let Content::Linked(target) = content else {
                return true;
            };
            let mut at = &*target;
            for _ in 0..MAX_LINKS {
                if let Some(&(offset, size)) = files.get(at) {
                    (row.offset, row.size) = (offset, size);
                    return true;
                }
                let Some(next) = links.get(at) else { break };
                at = next;
            }
            passed.count("links that lead to nothing in the tar", &row.name);
            false
        });
    }
}

/// A name within the tar without `.` and `..`.
fn plain(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(lossless(Path::new(part))),
            Component::ParentDir => {
                parts.pop();
            }
            _ => {}
        }
    }
    parts.join("/")
}

/// The key of an entry, all before the first point of its file name, and the extension behind it in lower case.
fn key_of(name: &str) -> (&str, String) {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[start..].find('.') {
        Some(point) => {
            let at = start + point;
            (&name[..at], name[at + 1..].to_ascii_lowercase())
        }
        None => (name, String::new()),
    }
}

/// A name up to its last point.
fn stem(name: &str) -> &str {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    name[start..]
        .rfind('.')
        .map_or(name, |point| &name[..start + point])
}

/// The class in a `cls` file, or in the field `cls` or `label` of a `json` file.
fn label_of(extension: &str, text: &str) -> Option<String> {
    let text = match extension {
        "cls" => text.trim().to_owned(),
        _ => {
            let value: serde_json::Value = serde_json::from_str(text).ok()?;
            match value.get("cls").or_else(|| value.get("label"))? {
                serde_json::Value::String(text) => text.clone(),
                serde_json::Value::Number(number) => number.to_string(),
                _ => return None,
            }
        }
    };
    (!text.is_empty()).then_some(text)
}

impl Source for Tars {
    fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    fn record(&self, row: u64) -> Record {
        let found = &self.rows[place(row)];
        Record::new(row, self.name(found), found.label.clone())
    }

    fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        self.encoded(row)?.picture(options)
    }

    fn encoded(&self, row: u64) -> std::result::Result<EncodedImage, RowError> {
        let found = &self.rows[place(row)];
        let error = |reason: String| RowError {
            path: self.name(found),
            reason,
        };
        let bytes = self.read(found).map_err(|cause| error(cause.to_string()))?;
        if (bytes.len() as u64) < found.size {
            let reason = format!(
                "expected {} bytes, found {}: the tar is cut",
                found.size,
                bytes.len()
            );
            return Err(error(reason));
        }
        Ok(EncodedImage {
            name: self.name(found),
            bytes,
        })
    }

    fn stamp(&self, row: u64) -> Stamp<'_> {
        let found = &self.rows[place(row)];
        let shard = self.shards[found.shard as usize].clone();
        Stamp {
            name: found.name.clone(),
            bytes: Bytes::Part(shard, found.offset, found.size),
        }
    }

    fn describe(&self) -> serde_json::Value {
        json!({
            "kind": "tar",
            "path": self.spec,
            "shards": self.shards.len(),
            "images": self.rows.len(),
            "labels": self.labelled,
            "sha256": self.sha256,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::tests::png;
    use std::io::Write as _;

    fn write(path: &Path, entries: &[(&str, Vec<u8>)]) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
        builder.finish().unwrap();
    }

    fn spec(folder: &Path, name: &str) -> String {
        folder.join(name).to_str().unwrap().to_owned()
    }

    fn shards(folder: &Path) {
        let text = |text: &str| text.as_bytes().to_vec();
        write(
            &folder.join("s-00.tar"),
            &[
                ("a/one.png", png(10)),
                ("a/one.cls", text("7\n")),
                ("a/two.v2.txt", text("a caption")),
                ("three.json", text(r#"{"label": "cat", "caption": "x"}"#)),
                ("three.PNG", png(30)),
            ],
        );
        let long = format!("{}/four.png", "folder".repeat(30));
        write(
            &folder.join("s-01.tar"),
            &[
                (&long, png(40)),
                ("four.cls", text("dog")),
                ("five.cls", text("dog")),
            ],
        );
    }

    #[test]
    fn samples_are_neighbours_with_one_key() {
        let folder = tempfile::tempdir().unwrap();
        shards(folder.path());
        for name in ["s-{00..01}.tar", "s-*.tar", "*.tar"] {
            let source = Tars::open(&spec(folder.path(), name)).unwrap();
            assert_eq!(source.len(), 3, "{name}");
            let labels: Vec<Option<String>> = (0..3).map(|row| source.record(row).label).collect();
            assert_eq!(labels, [Some("7".into()), Some("cat".into()), None]);
            for (row, value) in [(2, 40), (0, 10), (1, 30)] {
                let image = source.load(row, &DecodeOptions::default()).unwrap();
                assert_eq!(image.data()[0], value, "row {row}");
            }
            assert!(source.record(0).path.ends_with("s-00.tar/a/one.png"));
            assert_eq!(source.describe()["shards"], 2);
        }
        let one = Tars::open(&spec(folder.path(), "s-01.tar")).unwrap();
        assert_eq!(one.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        shards(folder.path());
        let message = |name: &str| match Tars::open(&spec(folder.path(), name)) {
            Ok(_) => panic!("{name} was read"),
            Err(error) => error.to_string(),
        };
        assert!(message("s-{00..02}.tar").contains("s-02.tar: no such shard of"));
        assert!(message("s-{1..0}.tar").contains("expected a range such as {000..012}"));
        assert!(message("s-{a..b}.tar").contains("expected a range"));
        assert!(message("t-*.tar").contains("no shard matches"));
        write(&folder.path().join("none.tar"), &[("a.txt", vec![1])]);
        assert!(message("none.tar").contains("no image in it"));
        File::create(folder.path().join("bad.tar"))
            .unwrap()
            .write_all(&[7; 2048])
            .unwrap();
        assert!(message("bad.tar").contains("bad.tar: no tar that can be read"));
    }

    #[test]
    fn a_cut_tar_loses_the_entries_behind_the_cut_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.tar");
        write(&path, &[("a.png", png(1)), ("b.png", png(2))]);
        let whole = Tars::open(path.to_str().unwrap()).unwrap();
        let cut = whole.rows[1].offset + whole.rows[1].size / 2;
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(cut)
            .unwrap();
        let source = Tars::open(path.to_str().unwrap()).unwrap();
        assert_eq!(source.len(), 2);
        assert!(source.load(0, &DecodeOptions::default()).is_ok());
        let error = source.load(1, &DecodeOptions::default()).unwrap_err();
        assert!(error.reason.ends_with("the tar is cut"), "{error}");
    }
}
