//! Writing a model to disk: one weight in memory at a time, inside the file or beside it, nothing visible before it
//! is whole.
//!
//! Protobuf wants the length of a message before its content, and prost would hold every weight to compute it.
//! Lengths follow from the shapes, so the graph's header is written first and the constants are streamed after it
//! (the order of the fields of a message is free).

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tempfile::NamedTempFile;

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
/// Constants that total more than `external_over` bytes go to `NAME.onnx.data` in the same folder.
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
    let (headers, data) = if constant_bytes > limit {
        let data_path = data_path(path)?;
        let (headers, file) = write_external(constants, &data_path)?;
        (headers, Some((data_path, file)))
    } else {
        (constants.iter().map(header).collect(), None)
    };
    let mut file = temporary_beside(path)?;
    write_model(file.as_file_mut(), path, model, graph, constants, &headers)?;
    // The data first: a model must never name a file that is not there.
    let data = match data {
        Some((data_path, file)) => {
            persist(file, &data_path)?;
            Some(data_path)
        }
        None => None,
    };
    persist(file, path)?;
    Ok(Written { data, constant_bytes })
}

/// `NAME.onnx.data` for `NAME.onnx`.
fn data_path(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::config(
            "out",
            format!("expected a UTF-8 file name, found `{}`", path.display()),
        )
    })?;
    Ok(path.with_file_name(format!("{name}.data")))
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

/// Writes the large constants to a temporary file beside `path`, and returns the headers that point into it.
fn write_external(constants: &[Initializer<'_>], path: &Path) -> Result<(Vec<TensorProto>, NamedTempFile)> {
    let location = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut file = temporary_beside(path)?;
    let mut headers = Vec::with_capacity(constants.len());
    let mut writer = BufWriter::new(file.as_file_mut());
    let mut end = 0_u64;
    for constant in constants {
        let mut header = header(constant);
        let length = constant.byte_len();
        if !matches!(constant.data, Data::Integers(_)) && length >= SMALLEST_EXTERNAL {
            let offset = end.next_multiple_of(ALIGNMENT);
            let padding = vec![0; (offset - end) as usize];
            writer.write_all(&padding).map_err(|e| Error::io(path, e))?;
            writer
                .write_all(&constant.bytes()?)
                .map_err(|e| Error::io(path, e))?;
            end = offset + length;
            header.data_location = DataLocation::External as i32;
            header.external_data = vec![
                entry("location", &location),
                entry("offset", &offset.to_string()),
                entry("length", &length.to_string()),
            ];
        }
        headers.push(header);
    }
    writer.flush().map_err(|e| Error::io(path, e))?;
    drop(writer);
    Ok((headers, file))
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

fn temporary_beside(path: &Path) -> Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".macula-onnx-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any other new file: readable as far as the umask lets it.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).map_err(|e| Error::io(path, e))
}

fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    file.persist(path).map(drop).map_err(|e| Error::io(path, e.error))
}
