//! Edits of images that know their parts: chunks of PNG with the right checksums, segments of JPEG with the right lengths,
//! entries of TIFF directories.

use std::io::{Read as _, Write as _};

use rand::Rng as _;

use super::{Rng, bytes, parts};

const PNG_SIGNATURE: usize = 8;
const SOI: [u8; 2] = [0xff, 0xd8];

/// A chunk of a PNG, or a segment of a JPEG.
type Part = ([u8; 4], Vec<u8>);

/// One edit of a PNG, by its chunks.
pub fn png(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let Some(mut chunks) = png_chunks(file) else {
        return bytes::edit(file, other, rng);
    };
    let which = rng.random_range(0..chunks.len());
    let (name, data) = &mut chunks[which];
    match rng.random_range(0..8) {
        0..4 => bytes::edit(data, other, rng),
        4 => {
            *name = *[
                b"IDAT", b"PLTE", b"tRNS", b"fcTL", b"fdAT", b"acTL", b"eXIf", b"iCCP", b"gAMA", b"sBIT",
            ][rng.random_range(0..10)]
        }
        5 if name == b"IDAT" => {
            let mut raw = Vec::new();
            // A stream that is damaged already gives what it can.
            let _ = flate2::read::ZlibDecoder::new(data.as_slice()).read_to_end(&mut raw);
            bytes::edit(&mut raw, other, rng);
            *data = deflated(&raw);
        }
        _ => parts::edit(&mut chunks, rng),
    }
    let mut written = file[..PNG_SIGNATURE].to_vec();
    for (name, data) in &chunks {
        written.extend((data.len() as u32).to_be_bytes());
        written.extend(name);
        written.extend(data);
        let mut crc = flate2::Crc::new();
        crc.update(name);
        crc.update(data);
        written.extend(crc.sum().to_be_bytes());
    }
    *file = written;
}

fn deflated(raw: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let written = encoder.write_all(raw).and_then(|()| encoder.finish());
    written.unwrap_or_default()
}

fn png_chunks(file: &[u8]) -> Option<Vec<Part>> {
    let mut rest = file.get(PNG_SIGNATURE..)?;
    let mut chunks = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(data) = tail.get(..len) else {
            break;
        };
        chunks.push(([head[4], head[5], head[6], head[7]], data.to_vec()));
        rest = tail.get(len + 4..).unwrap_or_default();
    }
    (!chunks.is_empty()).then_some(chunks)
}

/// One edit of a JPEG, by its segments; what follows a start of scan belongs to its segment.
pub fn jpeg(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let Some(mut segments) = jpeg_segments(file) else {
        return bytes::edit(file, other, rng);
    };
    let which = rng.random_range(0..segments.len());
    let (marker, data) = &mut segments[which];
    match rng.random_range(0..8) {
        0..4 => bytes::edit(data, other, rng),
        4 => marker[0] = rng.random_range(0xc0..=0xff),
        5 => {
            let interval = (bytes::number(rng) as u16).to_be_bytes().to_vec();
            segments.insert(which, ([0xdd, 1, 0, 0], interval));
        }
        6 => small_field(data, rng),
        _ => parts::edit(&mut segments, rng),
    }
    let mut written = SOI.to_vec();
    for ([marker, with_length, ..], data) in &segments {
        written.extend([0xff, *marker]);
        if *with_length == 1 {
            let scan = if *marker == 0xda {
                scan_header(data)
            } else {
                data.len()
            };
            written.extend(((scan + 2).min(0xffff) as u16).to_be_bytes());
        }
        written.extend(data);
    }
    *file = written;
}

/// A byte near the start becomes a small number: component counts, sampling factors, table numbers, precisions.
fn small_field(data: &mut [u8], rng: &mut Rng) {
    let len = data.len().min(24);
    if len > 0 {
        data[rng.random_range(0..len)] =
            [0, 1, 2, 3, 4, 5, 8, 16, 0x11, 0x12, 0x21, 0x22, 0x41, 0x44][rng.random_range(0..14)];
    }
}

/// Length of a scan's header, which says how many components it has.
fn scan_header(data: &[u8]) -> usize {
    let components = usize::from(data.first().copied().unwrap_or(0).min(4));
    (4 + 2 * components).min(data.len())
}

fn jpeg_segments(file: &[u8]) -> Option<Vec<Part>> {
    let mut rest = file.strip_prefix(&SOI)?;
    let mut segments = Vec::new();
    while let [0xff, marker, tail @ ..] = rest {
        let alone = matches!(marker, 0x01 | 0xd0..=0xd9);
        let len = match tail {
            _ if alone => 0,
            [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
            _ => break,
        };
        let start = if alone { 0 } else { 2 };
        let mut end = len.max(start).min(tail.len());
        if *marker == 0xda {
            // The scan itself: up to the next marker that is none of its own.
            while end + 1 < tail.len() && (tail[end] != 0xff || matches!(tail[end + 1], 0 | 0xd0..=0xd7)) {
                end += 1;
            }
            if end + 1 >= tail.len() {
                end = tail.len();
            }
        }
        segments.push(([*marker, u8::from(!alone), 0, 0], tail.get(start..end)?.to_vec()));
        rest = &tail[end..];
    }
    (!segments.is_empty()).then_some(segments)
}

/// One edit of an entry of a TIFF's first directory: its tag, type, count or value.
pub fn tiff(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let big = file.starts_with(b"MM");
    let word = |at: usize| -> Option<usize> {
        let bytes: [u8; 2] = file.get(at..at + 2)?.try_into().ok()?;
        Some(usize::from(if big {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }))
    };
    let directory = || -> Option<(usize, usize)> {
        let bytes: [u8; 4] = file.get(4..8)?.try_into().ok()?;
        let start = if big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        } as usize;
        Some((start, word(start)?))
    };
    let Some((start, count)) = directory().filter(|(_, count)| *count > 0) else {
        return bytes::edit(file, other, rng);
    };
    let entry = start + 2 + 12 * rng.random_range(0..count);
    let (at, width) = [(0, 2), (2, 2), (4, 4), (8, 4), (8, 2)][rng.random_range(0..5)];
    let Some(field) = file.get_mut(entry + at..entry + at + width) else {
        return bytes::edit(file, other, rng);
    };
    let value = match at {
        0 => [
            254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338,
            339, 347, 530,
        ][rng.random_range(0..22)],
        2 => rng.random_range(0..19),
        _ => bytes::number(rng),
    };
    let value = if big {
        value.to_be_bytes()[8 - width..].to_vec()
    } else {
        value.to_le_bytes()[..width].to_vec()
    };
    field.copy_from_slice(&value);
}
