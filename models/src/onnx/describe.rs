//! What an ONNX file holds, read without running it.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message as _;
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
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let model = ModelProto::decode(bytes.as_slice())
        .map_err(|e| Error::corrupt(path, format!("expected an ONNX model, found other bytes ({e})")))?;
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
