//! How a sound input becomes a damaged one: edits of bytes ([`bytes`]) and of words ([`text`]), edits that know a format's
//! parts and put checksums and lengths right ([`images`], [`archives`], [`tables`]), and edits of a folder. Everything is drawn
//! from one generator, so that a seed and a number give the same input again.

mod archives;
mod bytes;
mod images;
mod parts;
mod tables;
mod text;

use rand::Rng as _;

use super::tree::{Files, Seed, is_text};

/// What every choice is drawn from.
pub type Rng = rand_chacha::ChaCha8Rng;

/// A damaged copy of one of `seeds`. Only files that `may_change` names are edited; `whole_folder` allows files to vanish, to
/// be exchanged and renamed.
pub fn mutated(seeds: &[Seed], may_change: fn(&str) -> bool, whole_folder: bool, rng: &mut Rng) -> Files {
    let seed = &seeds[rng.random_range(0..seeds.len())];
    let mut files = seed.files.clone();
    let names: Vec<String> = files.keys().filter(|name| may_change(name)).cloned().collect();
    if names.is_empty() {
        return files;
    }
    let name = &names[rng.random_range(0..names.len())];
    if whole_folder && rng.random_bool(0.05) {
        edit_folder(&mut files, name, &names, rng);
        return files;
    }
    let other = &seeds[rng.random_range(0..seeds.len())];
    let other = other.files.get(name).or_else(|| other.files.values().next());
    let other = other.and_then(Option::as_deref).unwrap_or_default();
    if let Some(Some(bytes)) = files.get_mut(name) {
        for _ in 0..[1, 1, 1, 2, 3, 6][rng.random_range(0..6)] {
            content(bytes, other, rng);
        }
    }
    if rng.random_bool(0.75) {
        seed.mend_checksums(&mut files);
    }
    files
}

/// One edit of a file's content: by what it is, or as bytes.
fn content(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    if rng.random_bool(0.35) {
        return bytes::edit(file, other, rng);
    }
    let edit: fn(&mut Vec<u8>, &[u8], &mut Rng) = match file.as_slice() {
        [0x89, b'P', b'N', b'G', ..] => images::png,
        [0xff, 0xd8, ..] => images::jpeg,
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => images::tiff,
        [b'P', b'K', 3, 4, ..] => archives::zip,
        [0x1f, 0x8b, ..] => archives::gzip,
        [b'P', b'A', b'R', b'1', ..] => tables::parquet,
        // The version of the format is an ONNX file's first field.
        [8, 1..=20, ..] => tables::protobuf,
        bytes if bytes.get(257..262) == Some(b"ustar") => archives::tar,
        bytes if bytes.get(8) == Some(&b'{') && tables::safetensors_parts(bytes).is_some() => {
            tables::safetensors
        }
        bytes if is_text(bytes) => text::edit,
        _ => bytes::edit,
    };
    edit(file, other, rng);
}

/// Names that files get.
const NAMES: [&str; 10] = [
    "._a.jpg",
    ".hidden",
    "a b.jpg",
    "ä.png",
    "x",
    "con.csv",
    "a\nb.jpg",
    "new/deep/er.png",
    "__MACOSX/a.jpg",
    "a.JPEG",
];

/// Takes a file out, empties it, makes a folder of it, renames it, or exchanges it with another.
fn edit_folder(files: &mut Files, name: &str, names: &[String], rng: &mut Rng) {
    let Some(content) = files.remove(name) else {
        return;
    };
    match rng.random_range(0..6) {
        0 => {}
        1 => drop(files.insert(name.to_owned(), Some(Vec::new()))),
        2 => drop(files.insert(name.to_owned(), None)),
        3 => drop(files.insert(NAMES[rng.random_range(0..NAMES.len())].to_owned(), content)),
        _ => {
            let other = &names[rng.random_range(0..names.len())];
            let exchanged = files.insert(other.clone(), content).flatten();
            files.entry(name.to_owned()).or_insert(exchanged);
        }
    }
}
