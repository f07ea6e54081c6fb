//! The safetensors reader: a JSON header, then the tensors end to end.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata};

use super::element::ElementType;
use super::raw::{Format, RawTensor, RawTensors, row_major};
use super::source::{Container, Place, Source, Storage};
use crate::{Error, Result};

/// Larger headers are refused, as the format's own reader does.
const LARGEST_HEADER: u64 = 100_000_000;

/// Opens a safetensors file of `len` bytes. The header must tile the rest of the file exactly.
pub(super) fn open(path: &Path, mut file: File, len: u64) -> Result<RawTensors> {
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(|e| Error::io(path, e))?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > LARGEST_HEADER || header_len > len - 8 {
        let reason = format!("expected a safetensors header of {header_len} bytes in a file of {len}");
        return Err(Error::corrupt(path, reason));
    }
    let mut header = Vec::new();
    (&mut file)
        .take(header_len)
        .read_to_end(&mut header)
        .map_err(|e| Error::io(path, e))?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| Error::corrupt(path, format!("damaged safetensors header: {e}")))?;
    let expected = (metadata.data_len() as u64).saturating_add(8 + header_len);
    if expected != len {
        let reason = format!("expected {expected} bytes from the safetensors header, found {len}");
        return Err(Error::corrupt(path, reason));
    }
    let mut raw = RawTensors {
        path: path.into(),
        files: vec![path.into()],
        format: Format::Safetensors,
        tensors: Default::default(),
        unreadable: Default::default(),
        metadata: metadata
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        storages: Vec::new(),
        sources: vec![Source {
            path: path.into(),
            container: Container::Plain(file),
        }],
    };
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else {
            continue;
        };
        let Some(element) = element(info.dtype) else {
            let reason = format!("its elements are of type {:?}, which is not read", info.dtype);
            raw.unreadable.insert(name, reason);
            continue;
        };
        raw.storages.push(Storage {
            source: 0,
            place: Place::Offset(8 + header_len + info.data_offsets.0 as u64),
            len: info.data_offsets.1 - info.data_offsets.0,
        });
        let tensor = RawTensor {
            element,
            strides: row_major(&info.shape),
            shape: info.shape.clone(),
            storage: raw.storages.len() - 1,
            offset: 0,
        };
        raw.tensors.insert(name, tensor);
    }
    Ok(raw)
}

fn element(dtype: Dtype) -> Option<ElementType> {
    Some(match dtype {
        Dtype::F64 => ElementType::F64,
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::Bf16,
        Dtype::I64 => ElementType::I64,
        Dtype::I32 => ElementType::I32,
        Dtype::I16 => ElementType::I16,
        Dtype::I8 => ElementType::I8,
        Dtype::U64 => ElementType::U64,
        Dtype::U32 => ElementType::U32,
        Dtype::U16 => ElementType::U16,
        Dtype::U8 => ElementType::U8,
        Dtype::BOOL => ElementType::Bool,
        _ => return None,
    })
}
