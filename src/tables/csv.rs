//! CSV as it is found: fields parted by commas, semicolons, tabs or bars (the header says which), blanks around names and
//! values, either end of line, a byte-order mark, UTF-8 or UTF-16. The first line names the columns.

use std::path::{Path, PathBuf};

use ::csv::{ByteRecord, Reader, ReaderBuilder};

use crate::files::lossless;
use crate::{Error, Result};

/// What may part fields; of those that are equally frequent in the header, the first.
const SEPARATORS: [u8; 4] = [b',', b';', b'\t', b'|'];
/// Parts the fields of a table with one column: no text holds it.
const NONE: u8 = 0;
/// How a compressed file begins.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// A CSV file in memory.
pub(crate) struct CsvTable {
    path: PathBuf,
    text: Vec<u8>,
    separator: u8,
    names: Vec<String>,
}

impl CsvTable {
    /// Reads the file and the names of its columns.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
        let wrong = |reason: &str| Error::input(lossless(path), reason);
        if bytes.starts_with(GZIP_MAGIC) {
            return Err(wrong("compressed with gzip: decompress it first"));
        }
        let text = as_utf8(bytes).map_err(wrong)?;
        if text.contains(&0) {
            return Err(wrong(
                "expected a CSV in UTF-8, or in UTF-16 with its byte-order mark, found bytes of zero",
            ));
        }
        let (separator, text) = separator_of(text);
        let mut table = Self {
            path: path.to_owned(),
            text,
            separator,
            names: Vec::new(),
        };
        let mut header = ByteRecord::new();
        let mut reader = table.reader();
        reader
            .read_byte_record(&mut header)
            .map_err(|error| wrong(&error.to_string()))?;
        table.names = header
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim().to_owned())
            .collect();
        if table.names.iter().all(String::is_empty) {
            return Err(wrong("expected a line that names the columns, found none"));
        }
        Ok(table)
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    /// The values of column `name`, without the blanks around them; lines that are empty are no rows.
    pub(super) fn text(&self, name: &str) -> Result<Vec<Option<String>>> {
        let wrong = |reason: String| Error::input(lossless(&self.path), reason);
        let mut places = (0..self.names.len()).filter(|&place| self.names[place] == name);
        let place = places
            .next()
            .ok_or_else(|| wrong(format!("no column `{name}`")))?;
        if places.next().is_some() {
            return Err(wrong(format!(
                "expected one column `{name}`, found two of that name"
            )));
        }
        let (mut values, mut record) = (Vec::new(), ByteRecord::new());
        let mut reader = self.reader();
        let mut is_header = true;
        while reader
            .read_byte_record(&mut record)
            .map_err(|error| wrong(error.to_string()))?
        {
            let line = record.position().map_or(0, ::csv::Position::line);
            if std::mem::take(&mut is_header) || record.iter().all(|field| field.trim_ascii().is_empty()) {
                continue;
            }
            // A separator too many at the end of a line says nothing; a field too many means that they are out of place.
            let spare = record
                .iter()
                .skip(self.names.len())
                .find(|field| !field.trim_ascii().is_empty());
            if spare.is_some() {
                return Err(wrong(format!(
                    "line {line}: expected {} fields as in the first line, found {}: put fields that hold a separator in quotes",
                    self.names.len(),
                    record.len()
                )));
            }
            let value = std::str::from_utf8(record.get(place).unwrap_or_default())
                .map_err(|_| wrong(format!("line {line}, column `{name}`: bytes that are not UTF-8")))?;
            let value = value.trim();
            values.push((!value.is_empty()).then(|| value.to_owned()));
        }
        Ok(values)
    }

    fn reader(&self) -> Reader<&[u8]> {
        ReaderBuilder::new()
            .delimiter(self.separator)
            .has_headers(false)
            .flexible(true)
            .from_reader(&self.text)
    }
}

/// The text in UTF-8, without a byte-order mark.
fn as_utf8(bytes: Vec<u8>) -> std::result::Result<Vec<u8>, &'static str> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks::<2>();
        let text: std::result::Result<String, _> =
            char::decode_utf16(pairs.iter().map(|&pair| unit(pair))).collect();
        match (text, rest) {
            (Ok(text), []) => Ok(text.into_bytes()),
            _ => Err("expected UTF-16, as its byte-order mark says, found something else"),
        }
    };
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => Ok(rest.to_vec()),
        _ => Ok(bytes),
    }
}

/// What parts the fields, and the text that begins with the header: a line `sep=;`, as spreadsheets write it, says so itself.
fn separator_of(text: Vec<u8>) -> (u8, Vec<u8>) {
    let end = text.iter().position(|&byte| byte == b'\n').unwrap_or(text.len());
    if let [b's', b'e', b'p', b'=', separator] = text[..end].trim_ascii_end() {
        let rest = text.get(end + 1..).unwrap_or_default();
        return (*separator, rest.to_vec());
    }
    let mut counts = [0; SEPARATORS.len()];
    let mut quoted = false;
    for &byte in text.trim_ascii_start() {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' | b'\r' if !quoted => break,
            _ if quoted => {}
            _ => {
                if let Some(place) = SEPARATORS.iter().position(|&separator| separator == byte) {
                    counts[place] += 1;
                }
            }
        }
    }
    let max = counts.iter().copied().max().unwrap_or_default();
    let place = counts.iter().position(|&count| count == max && max > 0);
    (place.map_or(NONE, |place| SEPARATORS[place]), text)
}
