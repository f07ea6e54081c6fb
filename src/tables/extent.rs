//! What a column chunk of a Parquet file says of its own size, held against the file before the reader goes by it. The reader
//! reserves room for all values that are claimed before it decodes one; where that is more than there is, the process ends
//! without a word. In a sound file the numbers of values in the footer, in the rows and in the pages are equal.

use std::io::{Cursor, Read, Seek, SeekFrom};

use polars::prelude::{PolarsResult, polars_bail};
use polars_buffer::Buffer;
use polars_parquet::parquet::encoding::Encoding;
use polars_parquet::parquet::page::{DataPage, split_buffer};
use polars_parquet::parquet::schema::types::PhysicalType;
use polars_parquet::read::{BasicDecompressor, ColumnChunkMetadata, PageReader};

use super::footer::varint;

/// Bytes of a value for each byte of the file that a file of equal values, packed well, is trusted with.
const EXPANSION: u64 = 1024;
/// Bytes that every file is trusted with.
const ALWAYS: u64 = 1 << 28;
/// Values in a block of the delta encodings; writers use 128.
const BLOCK: u64 = 1 << 20;

/// The bytes of a column chunk of a file of `length` bytes, of a row group of `rows` rows.
///
/// # Errors
/// A chunk that reaches out of the file, or whose pages do not hold what it claims.
pub(super) fn read_chunk<R: Read + Seek>(
    file: &mut R,
    length: u64,
    chunk: &ColumnChunkMetadata,
    rows: usize,
) -> PolarsResult<Buffer<u8>> {
    let name = || chunk.descriptor().path_in_schema.join(".");
    let range = chunk.byte_range();
    if range.start > range.end || range.end > length {
        polars_bail!(ComputeError: "column `{}`: expected bytes within the file's {}, found {:?}", name(), length, range);
    }
    let descriptor = &chunk.descriptor().descriptor;
    let width = width(descriptor.primitive_type.physical_type);
    let values = u64::try_from(chunk.num_values()).unwrap_or(u64::MAX);
    let trusted = ALWAYS.max(length.saturating_mul(EXPANSION));
    if values.checked_mul(width).is_none_or(|bytes| bytes > trusted) {
        polars_bail!(ComputeError: "column `{}`: {} values of {} bytes are not in a file of {} bytes", name(), chunk.num_values(), width, length);
    }
    if descriptor.max_rep_level == 0 && values != rows as u64 {
        polars_bail!(ComputeError: "column `{}`: expected {} values in a row group, found {}", name(), rows, values);
    }
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.seek(SeekFrom::Start(range.start))?;
    file.read_exact(&mut bytes)?;
    let bytes = Buffer::from_vec(bytes);
    check_pages(&bytes, chunk, values)?;
    Ok(bytes)
}

/// The pages of a chunk, for decoding.
pub(super) fn pages(bytes: Buffer<u8>, chunk: &ColumnChunkMetadata) -> BasicDecompressor {
    let reader = PageReader::new(Cursor::new(bytes), chunk, Vec::new(), usize::MAX);
    BasicDecompressor::new(reader, Vec::new())
}

/// Bytes of a value in memory.
fn width(kind: PhysicalType) -> u64 {
    match kind {
        PhysicalType::FixedLenByteArray(width) => width.max(1) as u64,
        PhysicalType::ByteArray => 16,
        PhysicalType::Int96 => 12,
        _ => 8,
    }
}

fn check_pages(bytes: &Buffer<u8>, chunk: &ColumnChunkMetadata, values: u64) -> PolarsResult<()> {
    let name = || chunk.descriptor().path_in_schema.join(".");
    if bytes.is_empty() {
        return match values {
            0 => Ok(()),
            _ => {
                polars_bail!(ComputeError: "column `{}`: expected pages with {} values, found none", name(), values)
            }
        };
    }
    let mut pages = pages(bytes.clone(), chunk);
    if let Some(dictionary) = pages.read_dict_page()?
        && dictionary.num_values > dictionary.buffer.len()
    {
        polars_bail!(
            ComputeError: "column `{}`: {} values are not in a dictionary of {} bytes",
            name(), dictionary.num_values, dictionary.buffer.len()
        );
    }
    let mut found = 0_u64;
    while let Some(page) = pages.next() {
        let page = page?;
        found = found.saturating_add(page.num_values() as u64);
        if found > values {
            break;
        }
        let encoding = Encoding::try_from(page.page().header().encoding());
        if encoding.is_ok_and(is_delta) {
            check_delta(&page.decompress(&mut pages)?)?;
        }
    }
    if found != values {
        polars_bail!(ComputeError: "column `{}`: expected {} values in its pages, found {}", name(), values, found);
    }
    Ok(())
}

fn is_delta(encoding: Encoding) -> bool {
    matches!(
        encoding,
        Encoding::DeltaBinaryPacked | Encoding::DeltaLengthByteArray | Encoding::DeltaByteArray
    )
}

/// Holds the heads of delta-encoded numbers against the page that they are in.
fn check_delta(page: &DataPage) -> PolarsResult<()> {
    let rest = skip_delta(split_buffer(page)?.values, page.num_values())?;
    if page.encoding() == Encoding::DeltaByteArray {
        skip_delta(rest, page.num_values())?;
    }
    Ok(())
}

/// What follows a sequence of delta-encoded numbers (parquet-format, Encodings.md, DELTA_BINARY_PACKED) of at most `max`.
fn skip_delta(values: &[u8], max: usize) -> PolarsResult<&[u8]> {
    match delta_end(values, max as u64) {
        Some(rest) => Ok(rest),
        None => polars_bail!(ComputeError: "delta-encoded numbers are not in a page of {} values", max),
    }
}

fn delta_end(mut rest: &[u8], max: u64) -> Option<&[u8]> {
    let block = varint(&mut rest)?;
    let miniblocks = varint(&mut rest)?;
    let count = varint(&mut rest)?;
    varint(&mut rest)?; // the first value
    let sound = block <= BLOCK && block % 128 == 0 && miniblocks > 0 && count <= max;
    if !sound || block % miniblocks != 0 || (block / miniblocks) % 32 != 0 || block == 0 {
        return None;
    }
    let size = block / miniblocks;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        varint(&mut rest)?; // the least difference
        let widths;
        (widths, rest) = rest.split_at_checked(miniblocks as usize)?;
        let used = miniblocks.min(left.div_ceil(size)) as usize;
        let bits: u64 = widths[..used].iter().map(|&bits| u64::from(bits)).sum();
        rest = rest.get((bits * size).div_ceil(8) as usize..)?;
        left = left.saturating_sub(block);
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delta_encoded_numbers_end_where_their_heads_say() {
        // 7, 5, 3, 1, 2 as in parquet-format's example: block of 128, 4 miniblocks, 5 numbers, first 7, least difference -2,
        // widths 2, 0, 0, 0, and 32 numbers of 2 bits.
        let mut bytes = vec![128, 1, 4, 5, 14, 3, 2, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"rest");
        assert_eq!(delta_end(&bytes, 5), Some(&b"rest"[..]));
        assert_eq!(delta_end(&bytes, 4), None, "more numbers than the page has");
        assert_eq!(delta_end(&bytes[..12], 5), None, "cut off");
        let huge = [128, 128, 128, 128, 128, 128, 128, 64, 4, 5, 14, 3, 2, 0, 0, 0];
        assert_eq!(delta_end(&huge, 5), None, "a block of 2^55 numbers");
        assert_eq!(delta_end(&[128, 1, 0, 5, 14], 5), None, "no miniblocks");
    }
}
