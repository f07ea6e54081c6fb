//! What a usearch file holds, read through before the library maps it: the library follows links without asking where they lead.
//!
//! A file is the number of vectors and the bytes of each (u32), the vectors, a head of 64 bytes, five u64 about the graph, the
//! layer that each slot reaches up to (i16), and for each slot its key (u64), that layer once more, and for each layer from the
//! lowest on the number of its links (u32) and room for as many as there may be (u32). A slot is the place of a vector in the
//! file, its key the row that it belongs to. All little endian.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read as _};
use std::path::Path;

use crate::index::Scalar;
use crate::{Error, Result};

/// How a head begins.
const MAGIC: &[u8; 7] = b"usearch";
/// Version of the layout, and the first of it that has today's codes of types.
const VERSION: (u16, u16) = (2, 10);
/// Code of the cosine.
const COSINE: u8 = b'c';
/// Code of u64, the type of keys.
const U64: u8 = 14;
/// Code of u32, the type of slots.
const U32: u8 = 15;
/// The most links of a slot in a layer, far above what a build may ask for.
const MOST_LINKS: u64 = 4096;

/// What a file must hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) rows: usize,
    pub(super) dim: usize,
    pub(super) scalar: Scalar,
}

/// What is said of the graph before its slots.
struct Graph {
    /// Room for links in the lowest layer, and in the others.
    lowest: usize,
    above: usize,
    /// The layer that each slot reaches up to.
    tops: Vec<i16>,
}

/// Reads the file through.
///
/// # Errors
/// Names the file and the first field that is not as it must be; the system's word.
pub(super) fn check(path: &Path, expected: &Expected) -> Result<()> {
    let mut words = Words::open(path)?;
    let rows = expected.rows as u64;
    let bytes = expected.dim.checked_mul(expected.scalar.bytes());
    let Some(bytes) = bytes.and_then(|bytes| u32::try_from(bytes).ok()).map(u64::from) else {
        return words.wrong("width", "a vector of up to 4294967295 bytes", expected.dim);
    };
    words.expect("vectors", rows, |words| words.u32().map(u64::from))?;
    words.expect("bytes of a vector", bytes, |words| words.u32().map(u64::from))?;
    words.pass(rows * bytes)?;
    check_head(&mut words, expected)?;
    let graph = read_graph(&mut words, expected.rows)?;
    check_slots(&mut words, &graph)?;
    words.end()
}

fn check_head(words: &mut Words<'_>, expected: &Expected) -> Result<()> {
    let head: [u8; 64] = words.take()?;
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|place| head[at + place]));
    if head[..7] != *MAGIC {
        return words.wrong("head", "`usearch`", "another text");
    }
    let version = (half(7), half(9));
    if version.0 != VERSION.0 || version.1 < VERSION.1 {
        let found = format!("{}.{}", version.0, version.1);
        return words.wrong("version", format!("2.{} or a later 2", VERSION.1), found);
    }
    let scalar = match expected.scalar {
        Scalar::F32 => 11,
        Scalar::F16 => 12,
        Scalar::I8 => 23,
    };
    let codes = [
        ("metric", COSINE),
        ("scalar", scalar),
        ("key", U64),
        ("slot", U32),
    ];
    for ((field, code), found) in codes.into_iter().zip(&head[13..17]) {
        words.same(field, code, *found)?;
    }
    words.same("rows", expected.rows as u64, number(17))?;
    words.same("deleted rows", 0, number(25))?;
    words.same("width", expected.dim as u64, number(33))?;
    words.same("several vectors of a row", 0, head[41])
}

fn read_graph(words: &mut Words<'_>, rows: usize) -> Result<Graph> {
    words.expect("slots", rows as u64, Words::u64)?;
    let (above, lowest) = (words.u64()?, words.u64()?);
    for links in [above, lowest] {
        if !(1..=MOST_LINKS).contains(&links) {
            return words.wrong("links", format!("1 to {MOST_LINKS}"), links);
        }
    }
    let (top, entry) = (words.u64()?, words.u64()?);
    let mut tops = vec![0; rows];
    for place in &mut tops {
        *place = i16::from_le_bytes(words.take()?);
        if *place < 0 {
            return words.wrong("layer", "0 or more", *place);
        }
    }
    match usize::try_from(entry).ok().and_then(|entry| tops.get(entry)) {
        Some(&reached) if top <= reached as u64 => Ok(Graph {
            lowest: lowest as usize,
            above: above as usize,
            tops,
        }),
        Some(reached) => words.wrong("layers", format!("up to {reached}"), top),
        None => words.wrong("entry", format!("below {rows}"), entry),
    }
}

fn check_slots(words: &mut Words<'_>, graph: &Graph) -> Result<()> {
    let rows = graph.tops.len();
    let mut seen = vec![false; rows];
    for &top in &graph.tops {
        let key = words.u64()?;
        match usize::try_from(key).ok().and_then(|key| seen.get_mut(key)) {
            Some(seen) if !*seen => *seen = true,
            _ => return words.wrong("key", format!("every row below {rows} once"), key),
        }
        let again = i16::from_le_bytes(words.take()?);
        words.same("layer", top, again)?;
        for layer in 0..=top {
            check_links(words, graph, layer)?;
        }
    }
    Ok(())
}

/// Links of a layer lead to slots that reach up to it.
fn check_links(words: &mut Words<'_>, graph: &Graph, layer: i16) -> Result<()> {
    let room = if layer == 0 { graph.lowest } else { graph.above };
    let count = words.u32()?;
    if count as usize > room {
        return words.wrong("links", format!("up to {room}"), count);
    }
    for place in 0..room {
        let slot = words.u32()?;
        let leads = graph.tops.get(slot as usize).is_some_and(|&top| top >= layer);
        if place < count as usize && !leads {
            return words.wrong("link", format!("a slot of layer {layer}"), slot);
        }
    }
    Ok(())
}

/// A file, read word by word.
struct Words<'a> {
    path: &'a Path,
    file: BufReader<File>,
}

impl<'a> Words<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| io(path, source))?;
        Ok(Self {
            path,
            file: BufReader::with_capacity(1 << 16, file),
        })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.file.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(Error::data(self.path.display().to_string(), "cut off"))
            }
            Err(error) => Err(io(self.path, error)),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// Goes past `bytes`, which may be more than there are.
    fn pass(&mut self, bytes: u64) -> Result<()> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.file
            .seek_relative(bytes)
            .map_err(|source| io(self.path, source))
    }

    /// Nothing follows.
    fn end(&mut self) -> Result<()> {
        let mut more = [0];
        match self.file.read(&mut more) {
            Ok(0) => Ok(()),
            Ok(_) => self.wrong("end", "nothing behind the last slot", "more"),
            Err(error) => Err(io(self.path, error)),
        }
    }

    fn expect(&mut self, field: &str, expected: u64, read: impl Fn(&mut Self) -> Result<u64>) -> Result<()> {
        let found = read(self)?;
        self.same(field, expected, found)
    }

    fn same<T: PartialEq + Display>(&self, field: &str, expected: T, found: T) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        self.wrong(field, expected, found)
    }

    fn wrong<T>(&self, field: &str, expected: impl Display, found: impl Display) -> Result<T> {
        Err(Error::data(
            self.path.display().to_string(),
            format!("{field}: expected {expected}, found {found}"),
        ))
    }
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}
