//! One file of the cache: outputs of some views, each with a checksum. Little-endian:
//!
//! ```text
//! 8 bytes  "MACTEACH"      4 bytes  version        4 bytes  records n      8 bytes  values a record v
//! 32 bytes key of the cache
//! n times  8 bytes row, 8 bytes pass, 8 bytes checksum
//! n times  v f32
//! ```

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::{Error, Result, files};

const MAGIC: &[u8; 8] = b"MACTEACH";
const VERSION: u32 = 1;
/// Bytes before the table of records.
const HEADER: u64 = 8 + 4 + 4 + 8 + 32;
/// Bytes of a record in the table.
pub(super) const ENTRY: u64 = 24;

/// A row of the source and the pass whose crops are meant.
pub(super) type View = (u64, u64);

/// Where a record lies, and how to tell that it is whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    offset: u64,
    checksum: u64,
}

/// The first eight bytes of the SHA-256 of cache, view and values.
fn checksum(key: &[u8; 32], view: View, values: &[u8]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(key);
    hash.update(view.0.to_le_bytes());
    hash.update(view.1.to_le_bytes());
    hash.update(values);
    let digest = hash.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes the records to `path`, whole.
pub(super) fn write(
    path: &Path,
    key: &[u8; 32],
    records: &[(View, Vec<f32>)],
) -> Result<Vec<(View, Record)>> {
    let values = records.first().map_or(0, |(_, values)| values.len());
    let mut head = Vec::new();
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&(records.len() as u32).to_le_bytes());
    head.extend_from_slice(&(values as u64).to_le_bytes());
    head.extend_from_slice(key);
    let mut written = Vec::with_capacity(records.len());
    let mut offset = HEADER + ENTRY * records.len() as u64;
    for (view, values) in records {
        let checksum = checksum(key, *view, &bytes(values));
        for number in [view.0, view.1, checksum] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        written.push((*view, Record { offset, checksum }));
        offset += 4 * values.len() as u64;
    }
    files::write_whole(path, |file| {
        let failed = |e| Error::io(path, e);
        file.write_all(&head).map_err(failed)?;
        records
            .iter()
            .try_for_each(|(_, values)| file.write_all(&bytes(values)))
            .map_err(failed)
    })?;
    Ok(written)
}

/// The records of the file at `path`, without their values.
///
/// # Errors
/// A file that is none of this cache, or not whole.
pub(super) fn index(path: &Path, key: &[u8; 32], values: usize) -> Result<Vec<(View, Record)>> {
    let failed = |e| Error::io(path, e);
    let refused = |found: &str| {
        let reason = format!("expected a whole file of this cache, found {found}; remove it");
        Error::input(path.display().to_string(), reason)
    };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut head = [0; HEADER as usize];
    file.read_exact(&mut head)
        .map_err(|_| refused("fewer bytes than a header has"))?;
    let number = |start: usize| u64::from_le_bytes(std::array::from_fn(|i| head[start + i]));
    let short = |start: usize| u32::from_le_bytes(std::array::from_fn(|i| head[start + i]));
    if &head[..8] != MAGIC {
        return Err(refused("another kind of file"));
    }
    if short(8) != VERSION {
        return Err(refused(&format!("version {}", short(8))));
    }
    if &head[24..] != key || number(16) != values as u64 {
        return Err(refused("outputs of another teacher, other crops or another seed"));
    }
    let records = u64::from(short(12));
    let whole = HEADER + records * (ENTRY + 4 * values as u64);
    if length != whole {
        return Err(refused(&format!("{length} bytes instead of {whole}")));
    }
    let mut table = vec![0; (records * ENTRY) as usize];
    file.read_exact(&mut table).map_err(failed)?;
    let data = HEADER + ENTRY * records;
    let entry = |(place, entry): (u64, &[u8])| {
        let number = |part: usize| u64::from_le_bytes(std::array::from_fn(|i| entry[8 * part + i]));
        let record = Record {
            offset: data + place * 4 * values as u64,
            checksum: number(2),
        };
        ((number(0), number(1)), record)
    };
    Ok((0..).zip(table.chunks_exact(ENTRY as usize)).map(entry).collect())
}

/// The values of a record.
///
/// # Errors
/// A file that is gone or cannot be read, values that are not those that were written.
pub(super) fn read(
    path: &Path,
    key: &[u8; 32],
    view: View,
    record: Record,
    values: usize,
) -> Result<Vec<f32>> {
    let mut buffer = vec![0; 4 * values];
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    file.seek(SeekFrom::Start(record.offset))
        .and_then(|_| file.read_exact(&mut buffer))
        .map_err(|e| Error::io(path, e))?;
    if checksum(key, view, &buffer) != record.checksum {
        let reason = format!(
            "damaged: the values of row {} are not those that were written",
            view.0
        );
        return Err(Error::input(path.display().to_string(), reason));
    }
    let value = |bytes: &[u8]| f32::from_le_bytes(std::array::from_fn(|i| bytes[i]));
    Ok(buffer.chunks_exact(4).map(value).collect())
}
