//! Edits of what archives hold: members of a zip with the right checksums, headers of a tar with the right sums, what a gzip
//! file decompresses to.

use std::io::{Cursor, Read as _, Write as _};

use rand::Rng as _;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::{Rng, bytes, parts};

/// The most that a gzip file is decompressed to.
const MOST: u64 = 1 << 22;
const BLOCK: usize = 512;

/// One edit of a member of a zip archive, or of its names.
pub fn zip(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let Some(mut members) = members(file).filter(|members| !members.is_empty()) else {
        return bytes::edit(file, other, rng);
    };
    let pickle = members.iter().position(|(name, _)| name.ends_with(".pkl"));
    let which = match pickle {
        Some(pickle) if rng.random_bool(0.7) => pickle,
        _ => rng.random_range(0..members.len()),
    };
    match rng.random_range(0..10) {
        0..8 => super::content(&mut members[which].1, other, rng),
        8 => bytes_of_name(&mut members[which].0, rng),
        _ => parts::edit(&mut members, rng),
    }
    let method = [CompressionMethod::Stored, CompressionMethod::Deflated][usize::from(rng.random_bool(0.1))];
    if let Some(written) = zipped(&members, method) {
        *file = written;
    }
}

fn bytes_of_name(name: &mut String, rng: &mut Rng) {
    let mut raw = name.clone().into_bytes();
    bytes::edit(&mut raw, b"../data.pkl", rng);
    *name = String::from_utf8_lossy(&raw).into_owned();
}

fn members(file: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut archive = ZipArchive::new(Cursor::new(file)).ok()?;
    (0..archive.len())
        .map(|index| {
            let member = archive.by_index(index).ok()?;
            let name = member.name().ok()?.into_owned();
            let mut bytes = Vec::new();
            member.take(MOST).read_to_end(&mut bytes).ok()?;
            Some((name, bytes))
        })
        .collect()
}

fn zipped(members: &[(String, Vec<u8>)], method: CompressionMethod) -> Option<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in members {
        zip.start_file(name.as_str(), options).ok()?;
        zip.write_all(bytes).ok()?;
    }
    Some(zip.finish().ok()?.into_inner())
}

/// One edit of what a gzip file holds.
pub fn gzip(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let mut content = Vec::new();
    if flate2::read::GzDecoder::new(file.as_slice())
        .take(MOST)
        .read_to_end(&mut content)
        .is_err()
    {
        return bytes::edit(file, other, rng);
    }
    super::content(&mut content, other, rng);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    if let Ok(written) = encoder.write_all(&content).and_then(|()| encoder.finish()) {
        *file = written;
    }
}

/// Names that members of a tar get.
const NAMES: [&[u8]; 12] = [
    b"../up.jpg",
    b"/abs.jpg",
    b"a.b.c.jpg",
    b"._a.jpg",
    b".jpg",
    b"jpg",
    b"a/",
    b"a.cls",
    b"a.json",
    b"\xff\xfe.png",
    b"a\nb.jpg",
    b"",
];
/// Fields of a header: where, how long.
const FIELDS: [(usize, usize); 8] = [
    (0, 100),
    (100, 8),
    (124, 12),
    (124, 12),
    (136, 12),
    (157, 100),
    (257, 8),
    (345, 155),
];

/// One edit of a tar: a header's field with the sum put right, a member's content, or the order of members.
pub fn tar(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let mut members = tar_members(file);
    if members.is_empty() {
        return bytes::edit(file, other, rng);
    }
    let which = rng.random_range(0..members.len());
    let (header, data) = &mut members[which];
    match rng.random_range(0..10) {
        0..4 => field(header, rng),
        4 => header[156] = b"01234567xgLKSV\0"[rng.random_range(0..15)],
        5 => {
            let name = NAMES[rng.random_range(0..NAMES.len())];
            header[..100].fill(0);
            header[..name.len()].copy_from_slice(name);
        }
        6..8 => {
            super::content(data, other, rng);
            let size = format!("{:011o}\0", data.len());
            header[124..136].copy_from_slice(size.as_bytes());
        }
        _ => parts::edit(&mut members, rng),
    }
    let mut written = Vec::new();
    for (header, data) in &mut members {
        put_sum(header);
        written.extend_from_slice(header);
        written.extend_from_slice(data);
        written.resize(written.len().next_multiple_of(BLOCK), 0);
    }
    // Sometimes without the two empty blocks that end an archive.
    if rng.random_bool(0.8) {
        written.resize(written.len() + 2 * BLOCK, 0);
    }
    *file = written;
}

fn field(header: &mut [u8], rng: &mut Rng) {
    let (at, len) = FIELDS[rng.random_range(0..FIELDS.len())];
    let field = &mut header[at..at + len];
    match rng.random_range(0..4) {
        0 => {
            let text = format!("{:o}", bytes::number(rng));
            field.fill(0);
            for (target, byte) in field.iter_mut().zip(text.bytes()) {
                *target = byte;
            }
        }
        1 => {
            // A number in base 256.
            field.fill(0);
            field[0] = 0x80;
            let number = bytes::number(rng).to_be_bytes();
            let start = len.saturating_sub(8);
            field[start..].copy_from_slice(&number[8 - (len - start)..]);
        }
        2 => field.fill(rng.random()),
        _ => field[rng.random_range(0..len)] = rng.random(),
    }
}

fn put_sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn tar_members(file: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut members = Vec::new();
    let mut rest = file;
    while rest.len() >= BLOCK && rest[..BLOCK].iter().any(|&byte| byte != 0) {
        let (header, tail) = rest.split_at(BLOCK);
        let digits: String = header[124..136].iter().map(|&byte| char::from(byte)).collect();
        let digits = digits.trim_matches(|c: char| !c.is_digit(8));
        let size = usize::from_str_radix(digits, 8).unwrap_or(0).min(tail.len());
        members.push((header.to_vec(), tail[..size].to_vec()));
        rest = &tail[size.next_multiple_of(BLOCK).min(tail.len())..];
    }
    members
}
