//! The reader of `torch.save` before PyTorch 1.6: five pickles (magic number, protocol, system, object, storage keys),
//! then every storage as its number of elements and its bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::pickle::{LARGEST_PICKLE, Machine, Parsed, Value};
use super::raw::{Format, RawTensors};
use super::source::{Container, Place, Source, Storage};
use super::torch_objects::{Named, StorageRef};
use crate::{Error, Result};

/// The magic number 0x1950a86a20f9469cfc6c as protocols 2 to 5 pickle it, after the number of the protocol and a frame,
/// and as protocols 0 and 1 do.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const MAGIC_LINE: &[u8] = b"L119547037146038801333356L\n.";
/// First bytes of a file by which its kind is recognised.
pub(super) const HEAD: usize = 32;
const PROTOCOL: i64 = 1001;

/// Whether a file that begins so is of this kind.
pub(super) fn is_legacy(head: &[u8]) -> bool {
    head.starts_with(MAGIC_LINE)
        || head.starts_with(b"\x80") && head.windows(MAGIC.len()).any(|part| part == MAGIC)
}

/// Opens the file of `len` bytes and lists the tensors of its pickle.
pub(super) fn open(path: &Path, mut file: File, len: u64) -> Result<RawTensors> {
    let mut head = Vec::new();
    (&mut file)
        .take(LARGEST_PICKLE)
        .read_to_end(&mut head)
        .map_err(|e| Error::io(path, e))?;
    let (named, storages) = read(&head, &mut file, len).map_err(|reason| Error::corrupt(path, reason))?;
    Ok(RawTensors {
        path: path.into(),
        files: vec![path.into()],
        format: Format::TorchLegacy,
        tensors: named.tensors,
        unreadable: named.unreadable,
        metadata: BTreeMap::new(),
        storages,
        sources: vec![Source {
            path: path.into(),
            container: Container::Plain(file),
        }],
    })
}

type Listed = (Named, Vec<Storage>);

fn read(head: &[u8], file: &mut File, len: u64) -> Parsed<Listed> {
    let mut machine = Machine::new(head);
    machine.run()?;
    match machine.run()? {
        Value::Int(PROTOCOL) => {}
        _ => return Err(format!("expected protocol {PROTOCOL} of torch.save")),
    }
    let system = machine.run()?;
    check_byte_order(&machine, system)?;
    let object = machine.run()?;
    let Value::Sequence(keys) = machine.run()? else {
        return Err("expected the list of storages after the object".into());
    };
    let named = machine.named_tensors(object)?;
    let mut at = machine.position() as u64;
    let mut storages: Vec<Option<Storage>> = vec![None; machine.storages.len()];
    for key in &machine.arena[keys] {
        let known = match key {
            Value::Text(key) => machine.storage_index.get(key),
            _ => None,
        };
        let index = *known.ok_or("the list of storages names one that no tensor uses")?;
        let storage = locate(&machine.storages[index], file, at, len)?;
        at += 8 + storage.len as u64;
        storages[index] = Some(storage);
    }
    let storages: Option<Vec<Storage>> = storages.into_iter().collect();
    let storages = storages.ok_or("the list of storages is not complete")?;
    Ok((named, storages))
}

fn check_byte_order(machine: &Machine<'_>, system: Value<'_>) -> Parsed<()> {
    let little = match system {
        Value::Dict(items) => machine.arena[items]
            .chunks_exact(2)
            .any(|pair| pair == [Value::Text("little_endian"), Value::Bool(true)]),
        _ => false,
    };
    if little {
        Ok(())
    } else {
        Err("little_endian: expected True, found a file of another byte order".into())
    }
}

/// Checks the element count at `at` and that the bytes after it are all there.
fn locate(storage: &StorageRef, file: &mut File, at: u64, len: u64) -> Parsed<Storage> {
    let mut count = [0; 8];
    file.seek(SeekFrom::Start(at))
        .and_then(|_| file.read_exact(&mut count))
        .map_err(|e| format!("storage `{}`: {e}", storage.key.escape_debug()))?;
    let bytes = storage.bytes()?;
    let found = u64::from_le_bytes(count);
    let rest = len.saturating_sub(at + 8);
    if found != storage.elements as u64 || bytes as u64 > rest {
        return Err(format!(
            "storage `{}`: expected {} elements of {}, found {found} and {rest} bytes of file",
            storage.key.escape_debug(),
            storage.elements,
            storage.element
        ));
    }
    Ok(Storage {
        source: 0,
        place: Place::Offset(at + 8),
        len: bytes,
    })
}
