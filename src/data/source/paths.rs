//! Paths, one a line, as `find` and `ls` write them.

use std::ffi::OsString;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Record, RowError, Source, Stamp, load_file, lossless, place};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::{Error, Result};

/// How a text of UTF-8 may begin.
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// The images named by lines of text.
pub(super) struct Paths {
    from: String,
    files: Vec<PathBuf>,
    /// The folder that all of them lie in, as deep as there is one.
    common: PathBuf,
}

impl Paths {
    /// Reads paths to the end of `lines`; empty lines are skipped. `from` names the input.
    pub(super) fn read(from: &str, lines: impl BufRead) -> Result<Self> {
        let mut files = Vec::new();
        for line in lines.split(b'\n') {
            let mut line = line.map_err(|error| Error::io(from, error))?;
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            // A byte-order mark, as editors put it before the first line.
            if files.is_empty() && line.starts_with(BYTE_ORDER_MARK) {
                line.drain(..BYTE_ORDER_MARK.len());
            }
            if !line.is_empty() {
                files.push(PathBuf::from(os_string(line)));
            }
        }
        if files.is_empty() {
            return Err(Error::input(from, "no path: expected one path a line"));
        }
        Ok(Self {
            from: from.to_owned(),
            common: common_folder(&files),
            files,
        })
    }
}

/// The deepest folder above all of `files`, absolute.
fn common_folder(files: &[PathBuf]) -> PathBuf {
    let mut common: Option<PathBuf> = None;
    for file in files {
        let folder = whole(file).parent().map(Path::to_path_buf).unwrap_or_default();
        let mut shared = common.unwrap_or_else(|| folder.clone());
        while !folder.starts_with(&shared) && shared.pop() {}
        common = Some(shared);
    }
    common.unwrap_or_default()
}

fn whole(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(unix)]
fn os_string(bytes: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

#[cfg(not(unix))]
fn os_string(bytes: Vec<u8>) -> OsString {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

impl Source for Paths {
    fn len(&self) -> u64 {
        self.files.len() as u64
    }

    fn record(&self, row: u64) -> Record {
        Record::new(row, lossless(&self.files[place(row)]), None)
    }

    fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        load_file(&self.files[place(row)], options)
    }

    fn file(&self, row: u64) -> Option<PathBuf> {
        Some(self.files[place(row)].clone())
    }

    fn stamp(&self, row: u64) -> Stamp<'_> {
        let file = &self.files[place(row)];
        let whole = whole(file);
        Stamp {
            name: lossless(whole.strip_prefix(&self.common).unwrap_or(&whole)),
            ..Stamp::new(self.record(row), Some(file.clone()))
        }
    }

    fn describe(&self) -> serde_json::Value {
        json!({ "kind": "paths", "path": self.from, "images": self.files.len() })
    }
}
