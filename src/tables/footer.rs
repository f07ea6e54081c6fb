//! The end of a Parquet file, where it says what it holds. The reader reserves room for as many elements as a list there claims
//! to have, before it has seen one, and a process that asks for more than there is ends without a word. So the footer's
//! structure is walked first (Thrift's compact protocol, github.com/apache/thrift, doc/specs/thrift-compact-protocol.md), and
//! no list may have more elements than bytes follow it.

use std::io::{Read, Seek, SeekFrom};

use polars::prelude::{PolarsResult, polars_bail, polars_err};
use polars_parquet::read::{FileMetadata, read_metadata};

/// The length of the footer and the file's magic bytes, at its end.
const TAIL: u64 = 8;
/// Structures in structures; Parquet's own footers have 6.
const DEPTH: usize = 24;

/// What a Parquet file says of itself.
///
/// # Errors
/// A footer that is cut off or claims more than it holds.
pub(super) fn read_footer<R: Read + Seek>(file: &mut R) -> PolarsResult<FileMetadata> {
    let length = file.seek(SeekFrom::End(0))?;
    if length >= TAIL {
        let mut tail = [0; TAIL as usize];
        file.seek(SeekFrom::Start(length - TAIL))?;
        file.read_exact(&mut tail)?;
        let [a, b, c, d, ..] = tail;
        let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
        // A longer one is refused by the reader.
        if let Some(start) = (length - TAIL).checked_sub(footer) {
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.by_ref().take(footer).read_to_end(&mut bytes)?;
            let mut walk = Walk { rest: &bytes };
            if walk.fields(DEPTH).is_none() {
                let place = bytes.len() - walk.rest.len();
                polars_bail!(ComputeError: "the footer claims more than its {} bytes hold (byte {})", bytes.len(), place);
            }
        }
    }
    file.seek(SeekFrom::Start(0))?;
    let metadata = read_metadata(file)?;
    let rows: Option<usize> = metadata
        .row_groups
        .iter()
        .try_fold(0_usize, |sum, group| sum.checked_add(group.num_rows()));
    let rows =
        rows.ok_or_else(|| polars_err!(ComputeError: "the row groups have more rows than can be counted"))?;
    if rows != metadata.num_rows {
        polars_bail!(ComputeError: "expected the {} rows that the footer says, found {} in its row groups", metadata.num_rows, rows);
    }
    Ok(metadata)
}

/// A walk over values of Thrift's compact protocol; `None` where the bytes do not hold what they claim.
struct Walk<'a> {
    rest: &'a [u8],
}

impl Walk<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn skip(&mut self, count: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        varint(&mut self.rest)
    }

    /// A number of elements, each of which takes a byte or more.
    fn count(&mut self, number: u64) -> Option<u64> {
        (number <= self.rest.len() as u64).then_some(number)
    }

    /// The fields of a structure up to its end.
    fn fields(&mut self, depth: usize) -> Option<()> {
        loop {
            let header = self.byte()?;
            if header & 15 == 0 {
                return Some(());
            }
            if header >> 4 == 0 {
                self.varint()?;
            }
            // Truth values of a structure's fields are in the header.
            if !matches!(header & 15, 1 | 2) {
                self.value(header & 15, depth)?;
            }
        }
    }

    /// A value of a type by its number.
    fn value(&mut self, kind: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip(8),
            8 => {
                let length = self.varint()?;
                self.skip(length)
            }
            9 | 10 => {
                let header = self.byte()?;
                let number = match header >> 4 {
                    15 => self.varint()?,
                    few => u64::from(few),
                };
                for _ in 0..self.count(number)? {
                    self.value(header & 15, depth)?;
                }
                Some(())
            }
            11 => {
                let number = self.varint()?;
                if number == 0 {
                    return Some(());
                }
                let kinds = self.byte()?;
                for _ in 0..self.count(number)? {
                    self.value(kinds >> 4, depth)?;
                    self.value(kinds & 15, depth)?;
                }
                Some(())
            }
            12 => self.fields(depth),
            13 => self.skip(16),
            _ => None,
        }
    }
}

/// The number at the beginning of `bytes`, in 7 bits a byte, which is taken from them.
pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(bytes: &[u8]) -> bool {
        let mut walk = Walk { rest: bytes };
        walk.fields(DEPTH).is_some() && walk.rest.is_empty()
    }

    #[test]
    fn every_type_is_walked_to_its_end() {
        // Field 1: i32; 2: true; 3: bytes; 4: a list of two i64; 5: a double; 6: a map; 7: a structure; 40: a UUID.
        let mut bytes = vec![
            0x15, 0x80, 0x01, 0x11, 0x18, 2, b'a', b'b', 0x19, 0x26, 1, 2, 0x17,
        ];
        bytes.extend([0; 8]);
        bytes.extend([0x1b, 1, 0x85, 1, b'c', 9, 0x1c, 0x11, 0, 0x0d, 80]);
        bytes.extend([7; 16]);
        bytes.push(0);
        assert!(holds(&bytes));
        for end in 0..bytes.len() {
            assert!(!holds(&bytes[..end]), "{end}");
        }
    }

    #[test]
    fn no_list_claims_more_than_follows_and_no_structure_is_without_end() {
        // A list of 2^40 structures.
        assert!(!holds(&[0x19, 0xfc, 128, 128, 128, 128, 128, 32, 0, 0]));
        // A list of 3 truth values, of which 2 follow.
        assert!(!holds(&[0x19, 0x31, 1, 1]));
        assert!(!holds(&vec![0x1c; 10_000]));
        assert!(!holds(&vec![0x19; 10_000]));
    }
}
