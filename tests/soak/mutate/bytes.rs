//! Edits of bytes of any kind.

use rand::Rng as _;

use super::Rng;

/// Bytes at which parsers turn.
const BYTES: [u8; 10] = [0x00, 0x01, 0x7f, 0x80, 0xff, 0xfe, b'\n', b'"', b'/', 0x20];
/// Numbers at which lengths, counts and offsets turn.
const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    64,
    127,
    128,
    255,
    256,
    4096,
    0x7fff,
    0xffff,
    0x10_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
];

/// A place in `len` bytes, more often near an end, where headers and directories lie. `len` is above 0.
pub fn place(len: usize, rng: &mut Rng) -> usize {
    match rng.random_range(0..10) {
        0..4 => rng.random_range(0..len.min(256)),
        4..6 => len - 1 - rng.random_range(0..len.min(1024)),
        _ => rng.random_range(0..len),
    }
}

/// The end of a stretch of bytes that starts at `start`, mostly short.
fn end(start: usize, len: usize, rng: &mut Rng) -> usize {
    let max = [4, 16, 64, 512, len][rng.random_range(0..5)];
    (start + rng.random_range(1..=max.max(1))).min(len)
}

/// A number at which something turns.
pub fn number(rng: &mut Rng) -> u64 {
    match rng.random_range(0..4) {
        0 => rng.random::<u64>() >> rng.random_range(0..64),
        _ => NUMBERS[rng.random_range(0..NUMBERS.len())],
    }
}

/// One edit of `bytes`; `other` is what a splice takes its bytes from.
pub fn edit(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    if bytes.is_empty() {
        bytes.extend(other.iter().take(rng.random_range(1..64)));
        return;
    }
    let len = bytes.len();
    let start = place(len, rng);
    match rng.random_range(0..14) {
        0..3 => bytes[start] ^= 1 << rng.random_range(0..8),
        3 => bytes[start] = BYTES[rng.random_range(0..BYTES.len())],
        4 => bytes[start] = rng.random(),
        5 => bytes.truncate(start),
        6 => drop(bytes.drain(start..end(start, len, rng))),
        7 => {
            let block = bytes[start..end(start, len, rng)].to_vec();
            let at = place(len, rng);
            let times = [1, 1, 2, 50][rng.random_range(0..4)];
            bytes.splice(at..at, block.repeat(times));
        }
        8 => {
            let block = bytes[start..end(start, len, rng)].to_vec();
            let at = place(len, rng);
            for (target, value) in bytes[at..].iter_mut().zip(block) {
                *target = value;
            }
        }
        9 => {
            let block: Vec<u8> = (0..rng.random_range(1..40)).map(|_| rng.random()).collect();
            bytes.splice(start..start, block);
        }
        10 => splice(bytes, start, other, rng),
        11 => {
            let stop = end(start, len, rng);
            let value = BYTES[rng.random_range(0..BYTES.len())];
            bytes[start..stop].fill(value);
        }
        _ => number_at(bytes, start, rng),
    }
}

/// The beginning of `bytes` up to `start` and the end of `other`.
fn splice(bytes: &mut Vec<u8>, start: usize, other: &[u8], rng: &mut Rng) {
    if other.is_empty() {
        return;
    }
    let from = place(other.len(), rng);
    if rng.random_bool(0.5) {
        bytes.truncate(start);
        bytes.extend(&other[from..]);
    } else {
        let block = &other[from..end(from, other.len(), rng)];
        bytes.splice(start..start, block.iter().copied());
    }
}

/// Makes the 2, 4 or 8 bytes at `start` another number: one that means something, or one more or less than what is there.
pub fn number_at(bytes: &mut [u8], start: usize, rng: &mut Rng) {
    let width = [2, 4, 4, 8][rng.random_range(0..4)];
    let Some(field) = bytes.get_mut(start..start + width) else {
        return;
    };
    let big = rng.random_bool(0.5);
    let mut whole = [0; 8];
    whole[..width].copy_from_slice(field);
    if big {
        whole[..width].reverse();
    }
    let old = u64::from_le_bytes(whole);
    let new = match rng.random_range(0..4) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => old.wrapping_mul(2),
        _ => number(rng),
    };
    let mut new = new.to_le_bytes();
    if big {
        new[..width].reverse();
    }
    field.copy_from_slice(&new[..width]);
}
