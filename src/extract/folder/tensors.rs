//! Features as safetensors, beside the parts: `safetensors/part-KKKKK.safetensors` holds every output of the rows that have
//! features, in the shape of its name in `meta.json`, and `row`, the place of each in the source.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{self, TensorView};

use super::meta;
use super::{OutputSpec, remove_inner};
use crate::device::Dtype;
use crate::extract::sink::PartRows;
use crate::{Error, Result, files};

const FOLDER: &str = "safetensors";

fn file(folder: &Path, index: u64) -> PathBuf {
    folder.join(FOLDER).join(format!("part-{index:05}.safetensors"))
}

/// Writes the outputs of `part`.
///
/// # Errors
/// The system's word with the path.
pub(super) fn write(
    folder: &Path,
    index: u64,
    part: &PartRows,
    outputs: &[OutputSpec],
    dtype: Dtype,
) -> Result<()> {
    let path = file(folder, index);
    let failed = |e: safetensors::SafeTensorError| Error::failed(path.display().to_string(), e.to_string());
    let parent = path.parent().unwrap_or(folder);
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    let present = part
        .rows
        .iter()
        .zip(&part.present)
        .filter(|(_, present)| **present);
    let rows: Vec<u8> = present.flat_map(|(row, _)| (*row as i64).to_le_bytes()).collect();
    let count = rows.len() / 8;
    let buffers: Vec<Vec<u8>> = part
        .values
        .iter()
        .map(|values| meta::bytes(dtype, values))
        .collect();
    let mut tensors = HashMap::new();
    for (output, bytes) in outputs.iter().zip(&buffers) {
        let shape = std::iter::once(count)
            .chain(output.shape.iter().copied())
            .collect();
        let kind = match dtype {
            Dtype::F16 => tensor::Dtype::F16,
            _ => tensor::Dtype::F32,
        };
        let view = TensorView::new(kind, shape, bytes).map_err(failed)?;
        tensors.insert(output.name.clone(), view);
    }
    let row = TensorView::new(tensor::Dtype::I64, vec![count], &rows).map_err(failed)?;
    tensors.insert("row".to_owned(), row);
    let bytes = safetensors::serialize(tensors, None).map_err(failed)?;
    files::write_bytes(&path, &bytes)
}

/// Removes what [`write()`] made, and the folder where nothing else is in it.
///
/// # Errors
/// The system's word with the path.
pub(super) fn remove(folder: &Path) -> Result<()> {
    remove_inner(&folder.join(FOLDER), "part-", ".safetensors")
}
