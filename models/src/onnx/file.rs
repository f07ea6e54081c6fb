//! Writing a model to disk: one weight in memory at a time, inside the file or beside it, nothing visible before it
//! is whole.
//!
//! Weights beside it have a name with their checksum: a model that is replaced names its own weights until the moment in which
//! the new one, with others, takes its name.
//!
//! Protobuf wants the length of a message before its content, and prost would hold every weight to compute it.
//! Lengths follow from the shapes, so the graph's header is written first and the constants are streamed after it
//! (the order of the fields of a message is free).

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use macula_files::{Beside, beside, folder_of, sync_folder};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use sha2::{Digest as _, Sha256};

use super::graph::{Data, Initializer};
use super::options::EMBEDDED_LIMIT;
use super::proto::{DataLocation, GraphProto, ModelProto, StringStringEntryProto, TensorProto};
use crate::{Error, Result};

/// Field numbers of the messages that are streamed (onnx.proto).
const MODEL_GRAPH: u32 = 7;
const GRAPH_INITIALIZER: u32 = 5;
const TENSOR_RAW_DATA: u32 = 9;

/// ONNX recommends offsets at multiples of the page size, so that readers can map the file.
const ALIGNMENT: u64 = 4096;

/// Constants of fewer bytes stay in the model: shape inference reads them, and a page each would be a waste.
const SMALLEST_EXTERNAL: u64 = 1024;

/// Hexadecimal digits of the checksum in the name of a data file.
const CHECKSUM_DIGITS: usize = 16;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file of external constants, where there is one.
    pub data: Option<PathBuf>,
    /// Size of all constants, in bytes.
    pub constant_bytes: u64,
}

/// Writes `model` with `graph` and its constants to `path`, replacing what is there. `model.graph` must be empty.
///
/// Constants that total more than `external_over` bytes go to `NAME.onnx.CHECKSUM.data` in the same folder; such files of an
/// earlier model of this name are removed.
///
/// # Errors
/// A path without a UTF-8 file name, a refusal of the file system, or a weight that cannot be read.
pub fn write(
    model: &ModelProto,
    graph: &GraphProto,
    constants: &[Initializer<'_>],
    path: &Path,
    external_over: u64,
) -> Result<Written> {
    let constant_bytes = constants.iter().map(Initializer::byte_len).sum();
    let limit = external_over.min(EMBEDDED_LIMIT);
    let name = file_name(path)?;
    let (headers, data) = if constant_bytes > limit {
        let external = write_external(constants, name, path)?;
        (external.headers, Some((external.name, external.file)))
    } else {
        (constants.iter().map(header).collect(), None)
    };
    let io = |e| Error::io(path, e);
    let mut model_file = Beside::for_path(path).map_err(io)?;
    write_model(model_file.file(), path, model, graph, constants, &headers)?;
    // The data first: a model must never name a file that is not there.
    let data = match data {
        Some((name, file)) => {
            let data = path.with_file_name(name);
            file.rename_to(&data).map_err(|e| Error::io(&data, e))?;
            Some(data)
        }
        None => None,
    };
    model_file.rename_to(path).map_err(io)?;
    remove_other_data(path, data.as_deref())?;
    Ok(Written { data, constant_bytes })
}

/// Moves the model `draft`, written by [`write`] to another folder of the same file system, and its data to `path`, which has
/// the same file name, in place of a model there. At any moment `path` is the old model or the new one, each with its weights.
///
/// # Errors
/// A refusal of the file system.
pub fn move_into_place(draft: &Path, path: &Path) -> Result<()> {
    let mut moved = None;
    for data in data_files(draft)? {
        let target = path.with_file_name(data.file_name().unwrap_or_default());
        fs::rename(&data, &target).map_err(|e| Error::io(&target, e))?;
        moved = Some(target);
    }
    let in_folder = |e| Error::io(path, e);
    sync_folder(folder_of(path)).map_err(in_folder)?;
    fs::rename(draft, path).map_err(in_folder)?;
    sync_folder(folder_of(path)).map_err(in_folder)?;
    remove_other_data(path, moved.as_deref())
}

/// Removes the data of earlier models that were called `path`.
fn remove_other_data(path: &Path, own: Option<&Path>) -> Result<()> {
    let is_own = |data: &PathBuf| own.is_some_and(|own| own.file_name() == data.file_name());
    for data in data_files(path)?.into_iter().filter(|data| !is_own(data)) {
        fs::remove_file(&data).map_err(|e| Error::io(&data, e))?;
    }
    Ok(())
}

/// The data files in the folder of `path` that have the name of a model called so.
///
/// # Errors
/// A path without a UTF-8 file name, or a folder that cannot be listed.
pub fn data_files(path: &Path) -> Result<Vec<PathBuf>> {
    let model = file_name(path)?;
    let is_data = |name: &str| {
        let rest = name.strip_prefix(model).and_then(|rest| rest.strip_prefix('.'));
        let checksum = rest.and_then(|rest| rest.strip_suffix(".data"));
        checksum.is_some_and(|sum| {
            sum.len() == CHECKSUM_DIGITS
                && sum
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    beside(path, is_data).map_err(|e| Error::io(path, e))
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::config(
            "out",
            format!("expected a UTF-8 file name, found `{}`", path.display()),
        )
    })
}

/// The message of a constant without its values.
fn header(constant: &Initializer<'_>) -> TensorProto {
    TensorProto {
        dims: constant.shape.iter().map(|&side| side as i64).collect(),
        data_type: constant.data_type() as i32,
        name: constant.name.clone(),
        ..Default::default()
    }
}

fn is_external(header: &TensorProto) -> bool {
    header.data_location == DataLocation::External as i32
}

/// The large constants in a file that has no name yet.
struct External {
    /// All constants; those of the large ones point into the file.
    headers: Vec<TensorProto>,
    /// The name that it has to get.
    name: String,
    file: Beside,
}

/// Writes the large constants to a file beside `path`, which is called `model`.
fn write_external(constants: &[Initializer<'_>], model: &str, path: &Path) -> Result<External> {
    let io = |e| Error::io(path, e);
    let mut file = Beside::for_path(path).map_err(io)?;
    let mut headers = Vec::with_capacity(constants.len());
    let mut checksum = Sha256::new();
    let mut writer = BufWriter::new(file.file());
    let mut put = |bytes: &[u8]| {
        checksum.update(bytes);
        writer.write_all(bytes)
    };
    let mut end = 0_u64;
    for constant in constants {
        let mut header = header(constant);
        let length = constant.byte_len();
        if !matches!(constant.data, Data::Integers(_)) && length >= SMALLEST_EXTERNAL {
            let offset = end.next_multiple_of(ALIGNMENT);
            put(&vec![0; (offset - end) as usize]).map_err(io)?;
            put(&constant.bytes()?).map_err(io)?;
            end = offset + length;
            header.data_location = DataLocation::External as i32;
            header.external_data = vec![
                entry("offset", &offset.to_string()),
                entry("length", &length.to_string()),
            ];
        }
        headers.push(header);
    }
    writer.flush().map_err(io)?;
    drop(writer);
    let hex: String = checksum
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = format!("{model}.{}.data", &hex[..CHECKSUM_DIGITS]);
    for header in headers.iter_mut().filter(|header| is_external(header)) {
        header.external_data.insert(0, entry("location", &name));
    }
    Ok(External { headers, name, file })
}

fn write_model(
    file: &mut std::fs::File,
    path: &Path,
    model: &ModelProto,
    graph: &GraphProto,
    constants: &[Initializer<'_>],
    headers: &[TensorProto],
) -> Result<()> {
    let tensor_lens: Vec<u64> = constants
        .iter()
        .zip(headers)
        .map(|(constant, header)| {
            let raw = if is_external(header) {
                0
            } else {
                field_len(TENSOR_RAW_DATA, constant.byte_len())
            };
            header.encoded_len() as u64 + raw
        })
        .collect();
    let graph_len = graph.encoded_len() as u64
        + tensor_lens
            .iter()
            .map(|&len| field_len(GRAPH_INITIALIZER, len))
            .sum::<u64>();

    let mut writer = BufWriter::new(file);
    let mut put = |bytes: &[u8]| writer.write_all(bytes).map_err(|e| Error::io(path, e));
    put(&model.encode_to_vec())?;
    put(&field_start(MODEL_GRAPH, graph_len))?;
    put(&graph.encode_to_vec())?;
    for ((constant, header), len) in constants.iter().zip(headers).zip(tensor_lens) {
        put(&field_start(GRAPH_INITIALIZER, len))?;
        put(&header.encode_to_vec())?;
        if !is_external(header) {
            put(&field_start(TENSOR_RAW_DATA, constant.byte_len()))?;
            put(&constant.bytes()?)?;
        }
    }
    writer.flush().map_err(|e| Error::io(path, e))
}

/// Key and length of a field of `len` bytes.
fn field_start(number: u32, len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut bytes);
    encode_varint(len, &mut bytes);
    bytes
}

/// Size of a field of `len` bytes with its key and length.
fn field_len(number: u32, len: u64) -> u64 {
    key_len(number) as u64 + encoded_len_varint(len) as u64 + len
}

/// A key and a value.
pub fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: key.into(),
        value: value.into(),
    }
}
