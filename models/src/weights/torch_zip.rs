//! The reader of `torch.save` since PyTorch 1.6: a zip archive of stored entries, `data.pkl` beside `data/0`, `data/1`, ..

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{LARGEST_PICKLE, Machine, Parsed};
use super::raw::{Format, RawTensors};
use super::source::{Container, Place, Source, Storage};
use super::torch_objects::StorageRef;
use crate::{Error, Result};

type Archive = ZipArchive<BufReader<File>>;

/// The archive begins with the file. Were that to be found out, `torch.save`'s records for large archives, which stand in small
/// ones too, would count as part of the directory.
const AT_ITS_BEGINNING: Config = Config {
    archive_offset: ArchiveOffset::Known(0),
};

/// Opens the archive and lists the tensors of its pickle.
pub(super) fn open(path: &Path, file: File) -> Result<RawTensors> {
    let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
    read(file, len, path).map_err(|reason| Error::corrupt(path, reason))
}

fn read(file: File, len: u64, path: &Path) -> Parsed<RawTensors> {
    let mut archive = ZipArchive::with_config(AT_ITS_BEGINNING, BufReader::new(file))
        .map_err(|e| format!("damaged zip: {e}"))?;
    let root = root(&archive)?;
    check_byte_order(&mut archive, &root)?;
    let name = format!("{root}data.pkl");
    let pickle = read_small(&mut archive, &name)?.ok_or_else(|| format!("no zip entry `{name}`"))?;
    let mut machine = Machine::new(&pickle);
    let value = machine.run()?;
    let named = machine.named_tensors(value)?;
    let entries = entries(&archive)?;
    let storages = machine
        .storages
        .iter()
        .map(|storage| locate(&entries, &root, storage, len))
        .collect::<Parsed<_>>()?;
    Ok(RawTensors {
        path: path.into(),
        files: vec![path.into()],
        format: Format::TorchZip,
        tensors: named.tensors,
        unreadable: named.unreadable,
        metadata: BTreeMap::new(),
        storages,
        sources: vec![Source {
            path: path.into(),
            container: Container::Zip(Box::new(archive)),
        }],
    })
}

/// The folder inside the archive that everything lies in, with its slash; empty if there is none.
fn root(archive: &Archive) -> Parsed<String> {
    let mut roots = Vec::new();
    for name in archive.file_names() {
        let name = name.map_err(|e| format!("damaged zip: {e}"))?;
        if let Some(root) = name.strip_suffix("data.pkl")
            && (root.is_empty() || root.ends_with('/'))
        {
            roots.push(root.to_string());
        }
    }
    match roots.as_slice() {
        [root] => Ok(root.clone()),
        _ => Err(format!(
            "expected one `data.pkl` in the zip, as torch.save writes, found {}",
            roots.len()
        )),
    }
}

fn check_byte_order(archive: &mut Archive, root: &str) -> Parsed<()> {
    match read_small(archive, &format!("{root}byteorder"))? {
        Some(order) if order != b"little" => Err(format!(
            "byteorder: expected little, found {}",
            String::from_utf8_lossy(&order[..order.len().min(16)]).escape_debug()
        )),
        _ => Ok(()),
    }
}

/// A stored entry, whole, if there is one of this name.
fn read_small(archive: &mut Archive, name: &str) -> Parsed<Option<Vec<u8>>> {
    let Some(index) = archive.index_for_name(name) else {
        return Ok(None);
    };
    let mut entry = archive.by_index(index).map_err(|e| format!("damaged zip: {e}"))?;
    if entry.size() > LARGEST_PICKLE {
        return Err(format!(
            "zip entry `{name}`: expected at most {LARGEST_PICKLE} bytes, found {}",
            entry.size()
        ));
    }
    let mut bytes = Vec::new();
    (&mut entry)
        .take(LARGEST_PICKLE)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("damaged zip entry `{name}`: {e}"))?;
    Ok(Some(bytes))
}

/// Index, size and whether it is plainly stored, of every entry.
fn entries(archive: &Archive) -> Parsed<BTreeMap<String, (usize, u64, bool)>> {
    let mut entries = BTreeMap::new();
    for index in 0..archive.len() {
        let entry = archive
            .by_index_data(index)
            .map_err(|e| format!("damaged zip: {e}"))?;
        let name = entry.name().map_err(|e| format!("damaged zip: {e}"))?;
        let plain =
            entry.compression() == CompressionMethod::Stored && entry.compressed_size() == entry.size();
        if entries
            .insert(name.to_string(), (index, entry.size(), plain))
            .is_some()
        {
            return Err(format!("two zip entries are called `{}`", name.escape_debug()));
        }
    }
    Ok(entries)
}

fn locate(
    entries: &BTreeMap<String, (usize, u64, bool)>,
    root: &str,
    storage: &StorageRef,
    file_len: u64,
) -> Parsed<Storage> {
    let name = format!("{root}data/{}", storage.key);
    let shown = name.escape_debug();
    let (index, size, plain) = *entries
        .get(&name)
        .ok_or_else(|| format!("no zip entry `{shown}`"))?;
    if !plain {
        return Err(format!(
            "zip entry `{shown}`: expected it stored, found it compressed"
        ));
    }
    let len = storage.bytes()?;
    if size != len as u64 || size > file_len {
        return Err(format!(
            "zip entry `{shown}`: expected {len} bytes for {} elements of {}, found {size}",
            storage.elements, storage.element
        ));
    }
    Ok(Storage {
        source: 0,
        place: Place::Entry(index),
        len,
    })
}
