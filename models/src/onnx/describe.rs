//! What an ONNX file holds, read without running it and without its weights in memory.

use std::collections::BTreeMap;
use std::path::Path;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use serde::Serialize;

use super::proto::{DimensionValue, ModelProto, TypeValue, ValueInfoProto};
use crate::{Error, Result};

/// What an ONNX file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OnnxDescription {
    /// The program that wrote it.
    pub producer: String,
    /// Version of the file format.
    pub ir_version: i64,
    /// Operator sets by domain; the standard one is called `ai.onnx`.
    pub opsets: BTreeMap<String, i64>,
    /// Inputs with their shapes: `pixel_values [batch, 3, 224, 224]`.
    pub inputs: Vec<String>,
    /// Outputs with their shapes.
    pub outputs: Vec<String>,
    /// Number of nodes by operator.
    pub operators: BTreeMap<String, usize>,
    /// Scalars in all constants.
    pub constants: u64,
    /// Files beside this one that hold constants.
    pub external_files: Vec<String>,
    /// Entries of `metadata_props`.
    pub metadata: BTreeMap<String, String>,
}

/// Reads the file at `path`.
///
/// # Errors
/// A file that cannot be read, or that is no ONNX model.
pub fn describe(path: &Path) -> Result<OnnxDescription> {
    let io = |e| Error::io(path, e);
    let other = |reason: String| {
        Error::corrupt(
            path,
            format!("expected an ONNX model, found other bytes ({reason})"),
        )
    };
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let bytes = match without_values(&mut BufReader::new(file), length, Message::Model) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(other(e.to_string())),
        Err(e) => return Err(io(e)),
    };
    let model = ModelProto::decode(bytes.as_slice()).map_err(|e| other(e.to_string()))?;
    let graph = model
        .graph
        .ok_or_else(|| Error::corrupt(path, "expected an ONNX model, found one without a graph"))?;
    let mut operators = BTreeMap::new();
    for node in &graph.node {
        *operators.entry(node.op_type.clone()).or_insert(0) += 1;
    }
    let entries = |tensor: &super::proto::TensorProto| -> Vec<String> {
        let location = tensor
            .external_data
            .iter()
            .filter(|entry| entry.key == "location");
        location.map(|entry| entry.value.clone()).collect()
    };
    let mut external_files: Vec<String> = graph.initializer.iter().flat_map(entries).collect();
    external_files.sort();
    external_files.dedup();
    let scalars = |dims: &[i64]| {
        dims.iter()
            .fold(1u64, |n, dim| n.saturating_mul(dim.unsigned_abs()))
    };
    let named = |domain: String| {
        if domain.is_empty() {
            "ai.onnx".to_owned()
        } else {
            domain
        }
    };
    Ok(OnnxDescription {
        producer: format!("{} {}", model.producer_name, model.producer_version)
            .trim()
            .to_owned(),
        ir_version: model.ir_version,
        opsets: model
            .opset_import
            .into_iter()
            .map(|set| (named(set.domain), set.version))
            .collect(),
        inputs: graph.input.iter().map(value_text).collect(),
        outputs: graph.output.iter().map(value_text).collect(),
        operators,
        constants: graph
            .initializer
            .iter()
            .map(|tensor| scalars(&tensor.dims))
            .fold(0, u64::saturating_add),
        external_files,
        metadata: model
            .metadata_props
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect(),
    })
}

/// The messages of a model on the way to its weights.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Tensor,
    /// A node or an attribute, whose tensors are constants too.
    Node,
    Attribute,
}

impl Message {
    /// The kind of field `number`, where the way goes on there.
    fn field(self, number: u32) -> Option<Self> {
        match (self, number) {
            (Self::Model, 7) => Some(Self::Graph),
            (Self::Graph, 1) => Some(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5) => Some(Self::Tensor),
            (Self::Node, 5) => Some(Self::Attribute),
            _ => None,
        }
    }

    /// Whether field `number` holds the values of a tensor: as floats, integers, doubles or bytes.
    fn is_values(self, number: u32) -> bool {
        matches!((self, number), (Self::Tensor, 4 | 5 | 7 | 9 | 10 | 11))
    }
}

/// The `length` bytes of a message of `kind` with the values of all tensors left out.
fn without_values(reader: &mut (impl Read + Seek), length: u64, kind: Message) -> io::Result<Vec<u8>> {
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let mut left = length;
    let mut kept = Vec::new();
    while left > 0 {
        let key = varint(reader, &mut left)?;
        let number = u32::try_from(key >> 3).map_err(|_| invalid("a field number above 2^32"))?;
        let wire = WireType::try_from(key & 7).map_err(|e| invalid(&e.to_string()))?;
        let size = match wire {
            WireType::Varint => {
                let value = varint(reader, &mut left)?;
                if !kind.is_values(number) {
                    encode_key(number, wire, &mut kept);
                    encode_varint(value, &mut kept);
                }
                continue;
            }
            WireType::LengthDelimited => varint(reader, &mut left)?,
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            _ => return Err(invalid("a group, which ONNX has none of")),
        };
        left = left
            .checked_sub(size)
            .ok_or_else(|| invalid("a field longer than its message"))?;
        if kind.is_values(number) {
            let over = i64::try_from(size).map_err(|_| invalid("a field above 2^63 bytes"))?;
            reader.seek(SeekFrom::Current(over))?;
            continue;
        }
        let value = match (wire, kind.field(number)) {
            (WireType::LengthDelimited, Some(inner)) => without_values(reader, size, inner)?,
            _ => {
                let mut value = Vec::new();
                let read = reader.by_ref().take(size).read_to_end(&mut value)?;
                if read as u64 != size {
                    return Err(invalid("its end is missing"));
                }
                value
            }
        };
        encode_key(number, wire, &mut kept);
        if wire == WireType::LengthDelimited {
            encode_varint(value.len() as u64, &mut kept);
        }
        kept.extend(value);
    }
    Ok(kept)
}

/// The next number of a message of which `left` bytes are left.
fn varint(reader: &mut impl Read, left: &mut u64) -> io::Result<u64> {
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let mut value = 0;
    for place in 0..10 {
        let mut byte = [0];
        *left = left.checked_sub(1).ok_or_else(|| invalid("a number cut short"))?;
        reader.read_exact(&mut byte).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => invalid("its end is missing"),
            _ => e,
        })?;
        value |= u64::from(byte[0] & 0x7f) << (7 * place);
        if byte[0] < 0x80 {
            return Ok(value);
        }
    }
    Err(invalid("a number of more than 64 bits"))
}

fn value_text(value: &ValueInfoProto) -> String {
    let Some(TypeValue::TensorType(tensor)) = value.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        return format!("{} (no tensor)", value.name);
    };
    let dims: Vec<String> = tensor
        .shape
        .iter()
        .flat_map(|shape| &shape.dim)
        .map(|dim| match &dim.value {
            Some(DimensionValue::DimValue(size)) => size.to_string(),
            Some(DimensionValue::DimParam(name)) => name.clone(),
            None => "?".to_owned(),
        })
        .collect();
    format!("{} [{}]", value.name, dims.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, bytes) in [("text.onnx", &b"this is no model"[..]), ("empty.onnx", &b""[..])] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            let error = describe(&path).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains("ONNX"), "{error}");
        }
    }
}
