//! The writer: safetensors with the names it is given, the same bytes for the same tensors.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::Tensors;
use crate::vit::VitConfig;
use crate::{Error, Result};

/// Metadata key under which macula keeps the geometry, as JSON of [`VitConfig`].
pub(super) const CONFIG_KEY: &str = "macula.config";
/// Metadata key under which a run keeps how images are prepared for its network, as JSON; this package does not read it.
pub const PREPROCESS_KEY: &str = "macula.preprocess";
/// Metadata key of the version of the file's layout.
pub(super) const VERSION_KEY: &str = "macula.version";
/// The version written. Readers refuse a later one.
pub(super) const VERSION: u32 = 1;

/// The metadata that lets [`super::load`] know the geometry exactly: `macula.config`, for [`save`].
///
/// # Errors
/// A value that JSON cannot hold, such as an epsilon that is not finite.
pub fn config_metadata(config: &VitConfig) -> Result<BTreeMap<String, String>> {
    let text = serde_json::to_string(config).map_err(|e| Error::config(CONFIG_KEY, e.to_string()))?;
    Ok(BTreeMap::from([(CONFIG_KEY.into(), text)]))
}

/// Writes tensors of any shape (f64, f32, f16, bf16, i64, u32 or u8, on any device) as a safetensors file, beside the
/// target and then renamed over it. `metadata` goes into `__metadata__`, with the layout's version added.
///
/// # Errors
/// An element type other than those, a tensor called `__metadata__`, or a folder that cannot be written.
pub fn save(path: &Path, tensors: &Tensors, metadata: &BTreeMap<String, String>) -> Result<()> {
    let layouts = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), Layout::of(tensor)))
        .collect();
    save_each(path, &layouts, metadata, |name| {
        let tensor = tensors.get(name).cloned();
        tensor.ok_or_else(|| Error::corrupt(path, format!("{name}: not there")))
    })
}

/// What a tensor is before its values are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Layout {
    /// That of `tensor`.
    pub fn of(tensor: &Tensor) -> Self {
        Self {
            dtype: tensor.dtype(),
            shape: tensor.dims().to_vec(),
        }
    }

    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size_in_bytes()
    }
}

/// [`save`] of tensors that need not be there together: each is asked for by name when its turn comes.
///
/// # Errors
/// As [`save`]; whatever `tensor` returns, a tensor of another layout than was announced.
pub fn save_each<E: From<Error>>(
    path: &Path,
    layouts: &BTreeMap<String, Layout>,
    metadata: &BTreeMap<String, String>,
    mut tensor: impl FnMut(&str) -> std::result::Result<Tensor, E>,
) -> std::result::Result<(), E> {
    let ordered = by_alignment(layouts);
    let header = header(path, &ordered, metadata)?;
    let io = |e| E::from(Error::io(path, e));
    macula_files::write_whole(path, io, |file| {
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        writer
            .write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| writer.write_all(&header))
            .map_err(io)?;
        for (name, layout) in &ordered {
            let tensor = tensor(name)?;
            let found = Layout::of(&tensor);
            if found != **layout {
                let reason = format!("{name}: expected {layout:?}, found {found:?}");
                return Err(Error::corrupt(path, reason).into());
            }
            writer.write_all(&bytes(&tensor)?).map_err(io)?;
        }
        writer.flush().map_err(io)
    })
}

/// Wider elements first, then by name: every tensor is then aligned to its element.
fn by_alignment(layouts: &BTreeMap<String, Layout>) -> Vec<(&String, &Layout)> {
    let mut ordered: Vec<_> = layouts.iter().collect();
    ordered.sort_by_key(|(_, layout)| Reverse(layout.dtype.size_in_bytes()));
    ordered
}

/// The JSON header, padded with spaces so that the numbers begin at a multiple of 8.
fn header(
    path: &Path,
    layouts: &[(&String, &Layout)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut metadata: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    metadata.insert(VERSION_KEY.into(), json!(VERSION.to_string()));
    let mut map = Map::from_iter([("__metadata__".into(), Value::Object(metadata))]);
    let mut at = 0;
    for (name, layout) in layouts {
        let dtype = dtype(layout.dtype).ok_or_else(|| {
            Error::corrupt(
                path,
                format!("{name}: elements of type {:?} cannot be written", layout.dtype),
            )
        })?;
        let end = at + layout.bytes();
        let entry = json!({"dtype": dtype, "shape": layout.shape, "data_offsets": [at, end]});
        if map.insert((*name).clone(), entry).is_some() {
            return Err(Error::corrupt(path, format!("{name}: not a name for a tensor")));
        }
        at = end;
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn dtype(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::U32 => "U32",
        DType::U8 => "U8",
        _ => return None,
    })
}

/// The elements in row-major order, little-endian.
fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F64 => le(tensor.to_vec1::<f64>()?, f64::to_le_bytes),
        DType::F32 => le(tensor.to_vec1::<f32>()?, f32::to_le_bytes),
        DType::F16 => le(tensor.to_vec1::<half::f16>()?, half::f16::to_le_bytes),
        DType::BF16 => le(tensor.to_vec1::<half::bf16>()?, half::bf16::to_le_bytes),
        DType::I64 => le(tensor.to_vec1::<i64>()?, i64::to_le_bytes),
        DType::U32 => le(tensor.to_vec1::<u32>()?, u32::to_le_bytes),
        _ => tensor.to_vec1::<u8>()?,
    })
}

fn le<T, const N: usize>(values: Vec<T>, bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut all = Vec::with_capacity(values.len() * N);
    for value in values {
        all.extend_from_slice(&bytes(value));
    }
    all
}
