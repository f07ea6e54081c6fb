//! What a weight file holds, before anyone asks which network it is: names, element types, shapes, metadata.
//! Numbers stay on disk until a tensor is read.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::element::ElementType;
use super::source::{Source, Storage, open, sha256};
use super::{safetensors_file, torch_legacy, torch_zip};
use crate::{Error, Result};

/// The kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// `torch.save`, PyTorch 1.6 and later: a zip archive with a pickle.
    TorchZip,
    /// `torch.save` of earlier versions: pickles followed by raw storages.
    TorchLegacy,
}

/// A tensor as stored: a strided view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTensor {
    /// Type of the stored numbers.
    pub element: ElementType,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Index into the storages.
    pub(super) storage: usize,
    /// First element, counted in elements of the storage.
    pub(super) offset: usize,
    /// Elements between neighbours, an axis each.
    pub(super) strides: Vec<usize>,
}

/// An opened checkpoint. Nested dictionaries of a `.pth` are joined by dots: `teacher.backbone.cls_token`.
pub struct RawTensors {
    /// The file or folder that was asked for.
    pub path: PathBuf,
    /// The files that hold the tensors: one, or the shards in the order of their names.
    pub files: Vec<PathBuf>,
    /// The kind of file.
    pub format: Format,
    /// The tensors by name.
    pub tensors: BTreeMap<String, RawTensor>,
    /// Tensors that are there and cannot be rebuilt, and why. Only one that the network needs is an error.
    pub unreadable: BTreeMap<String, String>,
    /// `__metadata__` of a safetensors file; empty for a `.pth`.
    pub metadata: BTreeMap<String, String>,
    pub(super) storages: Vec<Storage>,
    pub(super) sources: Vec<Source>,
}

impl RawTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn is_contiguous(&self) -> bool {
        self.strides == row_major(&self.shape)
    }

    /// Checks the view against a storage of `elements` elements: every index inside it, and no more elements than it
    /// has (a broadcast view could name any number of them).
    pub(super) fn check(&self, elements: usize) -> std::result::Result<(), String> {
        if self.shape.len() != self.strides.len() {
            return Err(format!(
                "{} sizes but {} strides",
                self.shape.len(),
                self.strides.len()
            ));
        }
        let count = self.shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
        let count = count.ok_or_else(|| format!("shape {:?} overflows", self.shape))?;
        if count == 0 {
            return Ok(());
        }
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (side, stride)| {
                at.checked_add((side - 1).checked_mul(*stride)?)
            });
        match last {
            Some(last) if last < elements && count <= elements => Ok(()),
            _ => Err(format!(
                "a view of shape {:?}, strides {:?}, offset {} does not fit its storage of {elements} elements",
                self.shape, self.strides, self.offset
            )),
        }
    }
}

/// Strides of a contiguous tensor.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

impl RawTensors {
    /// SHA-256 of the weight file in hexadecimal; of several shards, that of their bytes one after another.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sha256(&self) -> Result<String> {
        sha256(&self.files)
    }

    /// Reads one tensor as f32, on the CPU.
    ///
    /// # Errors
    /// An unknown name, integers, or a file that cannot be read or whose checksum is wrong.
    pub fn read(&mut self, name: &str) -> Result<Tensor> {
        let mut read = None;
        self.read_each(&[name], |_, tensor| {
            read = Some(tensor);
            Ok(())
        })?;
        read.ok_or_else(|| Error::corrupt(&self.path, format!("no tensor `{name}`")))
    }

    /// Reads the named tensors as f32, each storage once, and hands each to `take`. Holds one storage at a time.
    pub(super) fn read_each(
        &mut self,
        names: &[&str],
        mut take: impl FnMut(&str, Tensor) -> Result<()>,
    ) -> Result<()> {
        let mut by_storage: BTreeMap<usize, Vec<(&str, &RawTensor)>> = BTreeMap::new();
        for name in names {
            let found = self.tensors.get_key_value(*name);
            let (name, tensor) =
                found.ok_or_else(|| Error::corrupt(&self.path, format!("no tensor `{name}`")))?;
            by_storage.entry(tensor.storage).or_default().push((name, tensor));
        }
        for (index, tensors) in by_storage {
            let storage = self.storages[index];
            let source = &mut self.sources[storage.source];
            let bytes = source.read(&storage)?;
            for (name, tensor) in tensors {
                let values = view(tensor, &bytes).ok_or_else(|| {
                    let reason = format!("{name}: expected floats, found {}", tensor.element);
                    Error::corrupt(&source.path, reason)
                })?;
                take(
                    name,
                    Tensor::from_vec(values, tensor.shape.as_slice(), &Device::Cpu)?,
                )?;
            }
        }
        Ok(())
    }
}

/// The elements of a view in row-major order, as f32. The view was checked when the file was opened.
fn view(tensor: &RawTensor, storage: &[u8]) -> Option<Vec<f32>> {
    let size = tensor.element.size();
    if tensor.elements() == 0 {
        return tensor.element.to_f32(&[]);
    }
    if tensor.is_contiguous() {
        let start = tensor.offset * size;
        return tensor
            .element
            .to_f32(&storage[start..start + tensor.elements() * size]);
    }
    let all = tensor.element.to_f32(storage)?;
    let mut values = Vec::with_capacity(tensor.elements());
    let mut index = vec![0; tensor.shape.len()];
    for _ in 0..tensor.elements() {
        let at: usize = index
            .iter()
            .zip(&tensor.strides)
            .map(|(i, stride)| i * stride)
            .sum();
        values.push(all[tensor.offset + at]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < tensor.shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Some(values)
}

/// The weight file of a folder: a macula run first, then the names that Hugging Face, timm and open_clip use.
const FOLDER_FILES: [&str; 5] = [
    "teacher.safetensors",
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
];
/// The list of shards of a Hugging Face folder.
const FOLDER_INDEXES: [&str; 2] = ["model.safetensors.index.json", "pytorch_model.bin.index.json"];

/// Opens a weight file, or the one in a folder, and lists its tensors. No number is read and nothing in it is executed.
///
/// # Errors
/// A file that cannot be read, is neither safetensors nor `torch.save`, or is damaged; a folder without a weight file; shards that contradict their index.
pub fn read_tensors(path: &Path) -> Result<RawTensors> {
    if !path.is_dir() {
        return open_file(path);
    }
    for name in FOLDER_FILES {
        let file = path.join(name);
        if file.is_file() {
            let raw = open_file(&file)?;
            return Ok(RawTensors {
                path: path.into(),
                ..raw
            });
        }
    }
    for name in FOLDER_INDEXES {
        if path.join(name).is_file() {
            return open_shards(path, name);
        }
    }
    Err(Error::corrupt(path, no_weights(path)))
}

fn no_weights(folder: &Path) -> String {
    if folder.join(".metadata").is_file() {
        return "a distributed checkpoint of PyTorch: make one file of it first \
                (python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE)"
            .into();
    }
    let (names, indexes) = (FOLDER_FILES.join(", "), FOLDER_INDEXES.join(" or "));
    format!("expected {names}, {indexes} in this folder, found none of them")
}

fn open_file(path: &Path) -> Result<RawTensors> {
    let mut file = open(path)?;
    let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut head = Vec::new();
    (&mut file)
        .take(torch_legacy::HEAD as u64)
        .read_to_end(&mut head)
        .and_then(|_| file.seek(SeekFrom::Start(0)))
        .map_err(|e| Error::io(path, e))?;
    if head.starts_with(b"PK\x03\x04") {
        torch_zip::open(path, file)
    } else if torch_legacy::is_legacy(&head) {
        torch_legacy::open(path, file, len)
    } else if head.get(8) == Some(&b'{') {
        safetensors_file::open(path, file, len)
    } else {
        Err(Error::corrupt(path, unknown_kind(&head)))
    }
}

fn unknown_kind(head: &[u8]) -> String {
    let found = match head {
        [] => "an empty file".into(),
        head if head.starts_with(b"version https:/") => "a Git LFS pointer: fetch the file itself".into(),
        head if head.starts_with(b"\x89HDF") => "an HDF5 file (Keras?)".into(),
        head if head.starts_with(b"GGUF") => "a GGUF file".into(),
        head if head.starts_with(b"\x1f\x8b") => "gzip: unpack it first".into(),
        [0x80, 0..=5, ..] => "a plain Python pickle: load it there and write it with torch.save".into(),
        head => format!("bytes {:02x?}", &head[..head.len().min(8)]),
    };
    format!("expected a safetensors or torch.save file, found {found}")
}

fn open_shards(folder: &Path, index_name: &str) -> Result<RawTensors> {
    let index = folder.join(index_name);
    let text = std::fs::read(&index).map_err(|e| Error::io(&index, e))?;
    let value: Value =
        serde_json::from_slice(&text).map_err(|e| Error::corrupt(&index, format!("JSON: {e}")))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Error::corrupt(&index, "expected an object `weight_map`"))?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, shard) in map {
        let shard = shard
            .as_str()
            .filter(|s| !s.is_empty() && !s.contains(['/', '\\']));
        let shard = shard.ok_or_else(|| {
            Error::corrupt(&index, format!("weight_map: expected a file name for `{name}`"))
        })?;
        shards.entry(shard).or_default().push(name);
    }
    let mut all: Option<RawTensors> = None;
    for (shard, mut names) in shards {
        let mut raw = open_file(&folder.join(shard))?;
        names.sort_unstable();
        let mut held: Vec<&str> = raw
            .tensors
            .keys()
            .chain(raw.unreadable.keys())
            .map(String::as_str)
            .collect();
        held.sort_unstable();
        if held != names {
            let reason = format!("expected the {} tensors that {index_name} lists", names.len());
            return Err(Error::corrupt(folder.join(shard), reason));
        }
        match &mut all {
            Some(all) => all.append(raw),
            None => {
                raw.path = folder.into();
                all = Some(raw);
            }
        }
    }
    all.ok_or_else(|| Error::corrupt(&index, "weight_map is empty"))
}

impl RawTensors {
    /// Adds the tensors of another shard.
    fn append(&mut self, other: Self) {
        let (storages, sources) = (self.storages.len(), self.sources.len());
        self.files.extend(other.files);
        self.sources.extend(other.sources);
        self.metadata.extend(other.metadata);
        self.unreadable.extend(other.unreadable);
        self.storages.extend(other.storages.into_iter().map(|s| Storage {
            source: s.source + sources,
            ..s
        }));
        self.tensors.extend(other.tensors.into_iter().map(|(name, t)| {
            let storage = t.storage + storages;
            (name, RawTensor { storage, ..t })
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], strides: &[usize], offset: usize) -> RawTensor {
        RawTensor {
            element: ElementType::F32,
            shape: shape.into(),
            storage: 0,
            offset,
            strides: strides.into(),
        }
    }

    #[test]
    fn views_outside_their_storage_are_refused() {
        assert!(tensor(&[2, 3], &[3, 1], 0).check(6).is_ok());
        assert!(tensor(&[3, 2], &[1, 3], 0).check(6).is_ok());
        assert!(tensor(&[], &[], 5).check(6).is_ok());
        assert!(tensor(&[0, 9], &[9, 1], 100).check(6).is_ok());
        for (shape, strides, offset) in [
            (&[2, 3][..], &[3, 1][..], 1),
            (&[2, 3], &[4, 1], 0),
            (&[7], &[0], 0),
            (&[2, 3], &[3], 0),
            (&[usize::MAX, 2], &[1, 1], 0),
            (&[2, 2], &[usize::MAX, 1], 5),
        ] {
            assert!(
                tensor(shape, strides, offset).check(6).is_err(),
                "{shape:?} {strides:?}"
            );
        }
    }

    #[test]
    fn strided_views_are_read_in_row_major_order() {
        let storage: Vec<u8> = (0..7).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let transposed = tensor(&[3, 2], &[1, 3], 1);
        assert_eq!(view(&transposed, &storage), Some(vec![1., 4., 2., 5., 3., 6.]));
        assert_eq!(view(&tensor(&[2], &[1], 5), &storage), Some(vec![5., 6.]));
    }
}
