//! Edits of JSON, TOML, CSV and other text by its words and lines.

use rand::Rng as _;

use super::{Rng, bytes};

/// What a number, a text or a whole value becomes.
const VALUES: [&str; 36] = [
    "0",
    "-1",
    "1",
    "2",
    "1e308",
    "-1e308",
    "1e-320",
    "1e999",
    "0.5",
    "9007199254740993",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "9223372036854775807",
    "NaN",
    "nan",
    "inf",
    "null",
    "true",
    "\"\"",
    "\"text\"",
    "[]",
    "{}",
    "[[]]",
    "\"../../x\"",
    "\"/dev/null\"",
    "\"a\\nb\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"ä\u{202e}🙂\"",
    "1979-05-27",
    "0x10",
    "+1",
    "[1,2,3]",
    "{\"a\":{\"b\":1}}",
];
/// Punctuation that is put in or taken out.
const MARKS: &[u8] = b"{}[](),:;=\"'\\.#\n\t \r|";

/// One edit of a text. Bytes that are no UTF-8 are edited as bytes.
pub fn edit(text: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    if text.is_empty() || std::str::from_utf8(text).is_err() {
        return bytes::edit(text, other, rng);
    }
    let words = words(text);
    match rng.random_range(0..10) {
        0..5 => {
            let Some((start, end)) = pick(&words, rng) else {
                return;
            };
            let value = VALUES[rng.random_range(0..VALUES.len())];
            // Within quotes the text stays a text.
            let bare = value.trim_matches('"');
            let value = if rng.random_bool(0.4) { bare } else { value };
            text.splice(start..end, value.bytes());
        }
        5 => {
            let (Some(from), Some(to)) = (pick(&words, rng), pick(&words, rng)) else {
                return;
            };
            let word = text[from.0..from.1].to_vec();
            text.splice(to.0..to.1, word);
        }
        6 => {
            let Some((start, end)) = pick(&words, rng) else {
                return;
            };
            text.drain(start..end);
        }
        7 => lines(text, rng),
        8 => {
            let at = rng.random_range(0..text.len());
            let mark = MARKS[rng.random_range(0..MARKS.len())];
            let times = if rng.random_bool(0.1) { 5000 } else { 1 };
            text.splice(at..at, std::iter::repeat_n(mark, times));
        }
        _ => bytes::edit(text, other, rng),
    }
}

/// Stretches of letters, digits, points, signs and underscores.
fn words(text: &[u8]) -> Vec<(usize, usize)> {
    let of_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-+".contains(byte) || *byte >= 0x80;
    let mut words = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let len = text[start..].iter().take_while(|byte| of_word(byte)).count();
        if len > 0 {
            words.push((start, start + len));
        }
        start += len + 1;
    }
    words
}

fn pick(words: &[(usize, usize)], rng: &mut Rng) -> Option<(usize, usize)> {
    let place = rng.random_range(0..words.len().max(1));
    words.get(place).copied()
}

/// Takes a line out, doubles it or moves it.
fn lines(text: &mut Vec<u8>, rng: &mut Rng) {
    let mut lines: Vec<Vec<u8>> = text
        .split_inclusive(|&byte| byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    let (from, to) = (rng.random_range(0..lines.len()), rng.random_range(0..lines.len()));
    match rng.random_range(0..4) {
        0 => drop(lines.remove(from)),
        1 => {
            let line = lines[from].clone();
            lines.insert(to, line);
        }
        2 => lines.swap(from, to),
        _ => {
            let line = lines[from].clone();
            let many = rng.random_range(2..200);
            lines.splice(to..to, std::iter::repeat_n(line, many));
        }
    }
    *text = lines.concat();
}
