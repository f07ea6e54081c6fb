//! Which other files an ONNX file keeps its values in: `TensorProto.external_data`, wherever in the schema a tensor may
//! stand (onnx/onnx `onnx.proto`). The file is walked message by message and values are stepped over, so that no size of
//! weights costs memory.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use crate::{Error, Result};

/// Nesting of sub-graphs that is followed; what lies deeper is no network that a runtime would take.
const DEPTH: usize = 64;
/// Longest name of a file.
const NAME_BYTES: u64 = 1 << 16;

/// Messages that a tensor may stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
    Training,
    Function,
    ExternalEntry,
}

impl Kind {
    /// What field `tag` holds, as far as it leads to tensors.
    fn field(self, tag: u64) -> Option<Self> {
        match (self, tag) {
            (Self::Model, 7) => Some(Self::Graph),
            (Self::Model, 20) => Some(Self::Training),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Training, 1 | 2) => Some(Self::Graph),
            (Self::Function, 7) => Some(Self::Node),
            (Self::Function, 11) => Some(Self::Attribute),
            (Self::Graph, 1) => Some(Self::Node),
            (Self::Graph, 5) => Some(Self::Tensor),
            (Self::Graph, 15) => Some(Self::SparseTensor),
            (Self::Node, 5) => Some(Self::Attribute),
            (Self::Attribute, 5 | 10) => Some(Self::Tensor),
            (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Attribute, 22 | 23) => Some(Self::SparseTensor),
            (Self::SparseTensor, 1 | 2) => Some(Self::Tensor),
            (Self::Tensor, 13) => Some(Self::ExternalEntry),
            _ => None,
        }
    }
}

/// The `location` of every file with values of the ONNX file at `path`, each once, in the order in which the file first
/// refers to them. Names are relative to its folder.
///
/// # Errors
/// A file that cannot be read, or is no ONNX file.
pub fn external_files(path: &Path) -> Result<Vec<String>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut walk = Walk {
        reader: BufReader::new(file),
        at: 0,
        found: Vec::new(),
    };
    walk.message(Kind::Model, length, 0)
        .map_err(|reason| Error::corrupt(path, format!("not an ONNX file: {reason}")))?;
    Ok(walk.found)
}

struct Walk<R> {
    reader: R,
    at: u64,
    found: Vec<String>,
}

type Step<T> = std::result::Result<T, String>;

impl<R: Read + Seek> Walk<BufReader<R>> {
    fn message(&mut self, kind: Kind, end: u64, depth: usize) -> Step<()> {
        if depth > DEPTH {
            return Err(format!("graphs nested more than {DEPTH} deep"));
        }
        let (mut key, mut value) = (String::new(), String::new());
        while self.at < end {
            let header = self.varint()?;
            let (tag, wire) = (header >> 3, header & 7);
            let length = match wire {
                0 => {
                    self.varint()?;
                    0
                }
                1 => 8,
                5 => 4,
                2 => self.varint()?,
                other => return Err(format!("unknown wire type {other} at byte {}", self.at)),
            };
            let stop = self.at.checked_add(length).filter(|stop| *stop <= end);
            let stop =
                stop.ok_or_else(|| format!("a field of {length} bytes at byte {} of {end}", self.at))?;
            match (kind, tag, wire) {
                (Kind::ExternalEntry, 1, 2) => key = self.text(length)?,
                (Kind::ExternalEntry, 2, 2) => value = self.text(length)?,
                (_, _, 2) => match kind.field(tag) {
                    Some(inner) => self.message(inner, stop, depth + 1)?,
                    None => self.skip(length)?,
                },
                _ => self.skip(length)?,
            }
        }
        if key == "location" && !self.found.contains(&value) {
            self.found.push(value);
        }
        Ok(())
    }

    fn skip(&mut self, length: u64) -> Step<()> {
        let step = i64::try_from(length).map_err(|e| e.to_string())?;
        self.reader.seek_relative(step).map_err(|e| e.to_string())?;
        self.at += length;
        Ok(())
    }

    fn text(&mut self, length: u64) -> Step<String> {
        if length > NAME_BYTES {
            return Err(format!("a name of {length} bytes at byte {}", self.at));
        }
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        self.at += length;
        String::from_utf8(bytes).map_err(|e| format!("a name that is not UTF-8: {e}"))
    }

    fn varint(&mut self) -> Step<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.reader
                .read_exact(&mut byte)
                .map_err(|e| format!("it ends at byte {}: {e}", self.at))?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(format!("a number of more than 64 bits at byte {}", self.at))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::proto::{
        DataLocation, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
    };
    use super::*;

    fn tensor(location: &str) -> TensorProto {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: key.into(),
            value: value.into(),
        };
        TensorProto {
            external_data: vec![entry("location", location), entry("offset", "4096")],
            data_location: DataLocation::External as i32,
            ..TensorProto::default()
        }
    }

    /// A message field of number `tag` around `inner`.
    fn field(tag: u64, inner: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        prost::encoding::encode_varint((tag << 3) | 2, &mut bytes);
        prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
        bytes.extend(inner);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, bytes).unwrap();
        external_files(&path)
    }

    #[test]
    fn files_are_named_once_in_the_order_of_the_graph() {
        let own = TensorProto {
            raw_data: vec![7; 100_000],
            ..TensorProto::default()
        };
        let graph = GraphProto {
            initializer: vec![own, tensor("b.bin"), tensor("a.bin"), tensor("b.bin")],
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: 8,
            producer_name: "test".into(),
            graph: Some(graph),
            ..ModelProto::default()
        };
        assert_eq!(read(&model.encode_to_vec()).unwrap(), ["b.bin", "a.bin"]);
        assert!(read(&ModelProto::default().encode_to_vec()).unwrap().is_empty());
    }

    #[test]
    fn tensors_of_attributes_sub_graphs_functions_and_sparse_tensors_are_found() {
        let tensor = |name: &str| tensor(name).encode_to_vec();
        let graph_of = |name: &str| field(5, &tensor(name));
        let attribute = [
            field(5, &tensor("constant")),
            field(6, &graph_of("branch")),
            field(22, &field(1, &tensor("sparse"))),
        ]
        .concat();
        let mut node = NodeProto::default().encode_to_vec();
        node.extend(field(5, &attribute));
        let model = [
            field(7, &field(1, &node)),
            field(20, &field(2, &graph_of("training"))),
            field(25, &field(7, &field(5, &field(10, &tensor("function"))))),
        ]
        .concat();
        let expected = ["constant", "branch", "sparse", "training", "function"];
        assert_eq!(read(&model).unwrap(), expected);
    }

    #[test]
    fn what_is_no_onnx_file_is_refused() {
        for bytes in [
            &b"not a protobuf at all"[..],
            &[0x3a, 0xff],
            &[0x3a, 0x05, 1],
            &[0xff; 12],
        ] {
            let text = read(bytes).unwrap_err().to_string();
            assert!(text.contains("m.onnx: not an ONNX file"), "{text}");
        }
        let mut nested = Vec::new();
        for _ in 0..100 {
            nested = field(1, &field(5, &field(6, &nested)));
        }
        assert!(
            read(&field(7, &nested))
                .unwrap_err()
                .to_string()
                .contains("64 deep")
        );
    }
}
