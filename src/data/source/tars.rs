//! WebDataset shards: tar files whose neighbouring entries with one key are a sample (`key.jpg`, `key.cls`, ..). The entries
//! are listed once when the source is opened, without reading what is in them; images are then read in place, in any order.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Bytes, EXTENSIONS, Record, RowError, Source, Stamp, lossless, place, sha256, shards};
use crate::data::decode::{DecodeOptions, decode};
use crate::data::image::RgbImage;
use crate::{Error, Result};

/// A label larger than this is none.
const LABEL_BYTES: u64 = 1 << 20;

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

/// A sample while its entries are read.
#[derive(Default)]
struct Sample {
    key: String,
    image: Option<(String, u64, u64)>,
    label: Option<String>,
}

impl Tars {
    /// Whether `spec` names tars.
    pub(super) fn is_meant(spec: &str) -> bool {
        spec.to_ascii_lowercase().ends_with(".tar")
    }

    /// Lists the images of `spec`: a tar, `shards/{000..012}.tar`, or a pattern with `*` in the file's name.
    pub(super) fn open(spec: &str) -> Result<Self> {
        let shards = shards::expand(spec)?;
        let mut rows = Vec::new();
        for (number, shard) in (0..).zip(&shards) {
            scan(shard, number, &mut rows)?;
        }
        if rows.is_empty() {
            let known = EXTENSIONS.join(", ");
            return Err(Error::input(spec, format!("no image in it (looked for {known})")));
        }
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
fn scan(shard: &Path, number: u32, rows: &mut Vec<Row>) -> Result<()> {
    let failed =
        |error: std::io::Error| Error::input(lossless(shard), format!("no tar that can be read: {error}"));
    let file = File::open(shard).map_err(|error| Error::io(shard, error))?;
    let length = file.metadata().map_err(|error| Error::io(shard, error))?.len();
    let mut archive = tar::Archive::new(file);
    let mut sample = Sample::default();
    let mut end = 0;
    for entry in archive.entries_with_seek().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let (offset, size) = (entry.raw_file_position(), entry.size());
        end = offset + size.next_multiple_of(512);
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = lossless(&entry.path().map_err(failed)?);
        let (key, extension) = key_of(&name);
        if key != sample.key {
            std::mem::take(&mut sample).finish(number, rows);
            key.clone_into(&mut sample.key);
        }
        let is_image = EXTENSIONS.contains(&extension.as_str());
        if is_image && sample.image.is_none() {
            sample.image = Some((name, offset, size));
        } else if matches!(extension.as_str(), "cls" | "json") && size <= LABEL_BYTES {
            let mut text = String::new();
            if entry.read_to_string(&mut text).is_ok() {
                sample.label = label_of(&extension, &text).or(sample.label);
            }
        }
    }
    sample.finish(number, rows);
    // A tar ends with a block of zeros.
    if end + 512 > length {
        tracing::warn!(
            "{} ends without the mark of a whole tar after {length} bytes: it may have been cut",
            lossless(shard)
        );
    }
    Ok(())
}

impl Sample {
    fn finish(self, shard: u32, rows: &mut Vec<Row>) {
        if let Some((name, offset, size)) = self.image {
            rows.push(Row {
                shard,
                offset,
                size,
                name,
                label: self.label,
            });
        }
    }
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
        decode(&bytes, options).map_err(|cause| error(cause.to_string()))
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
