//! Images that Python has, as a source: files, encoded bytes, and pixels of arrays. Each is read when its batch is, so a list
//! of a million paths costs a list.

use std::path::{Path, PathBuf};

use macula::data::decode::decode_named;
use macula::data::{DecodeOptions, Record, RgbImage, RowError, Source};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

/// One image.
pub enum Item {
    /// A file.
    Path(PathBuf),
    /// The bytes of a file.
    Bytes(PyBackedBytes),
    /// An array of bytes `[height, width, 3]`, with height and width.
    Pixels(Py<PyAny>, u32, u32),
}

impl Item {
    /// What `python/macula/_images.py` makes of a user's image.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok((pixels, height, width)) = object.extract::<(Py<PyAny>, u32, u32)>() {
            return Ok(Self::Pixels(pixels, height, width));
        }
        match object.extract::<PyBackedBytes>() {
            Ok(bytes) => Ok(Self::Bytes(bytes)),
            Err(_) => Ok(Self::Path(object.extract()?)),
        }
    }

    fn name(&self, row: u64) -> String {
        match self {
            Self::Path(path) => path.to_string_lossy().into_owned(),
            _ => format!("image {row}"),
        }
    }

    fn load(&self, name: impl Fn() -> String, options: &DecodeOptions) -> Result<RgbImage, String> {
        match self {
            Self::Path(path) => decoded(&read(path)?, options, name),
            Self::Bytes(bytes) => decoded(bytes, options, name),
            Self::Pixels(pixels, height, width) => copied(pixels, *height, *width),
        }
    }
}

fn decoded(bytes: &[u8], options: &DecodeOptions, name: impl Fn() -> String) -> Result<RgbImage, String> {
    decode_named(bytes, options, name).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    // Opening a pipe would wait for ever.
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a file".to_owned());
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

fn copied(pixels: &Py<PyAny>, height: u32, width: u32) -> Result<RgbImage, String> {
    let samples = Python::attach(|py| {
        let bytes = pixels.bind(py).call_method0("tobytes")?;
        bytes.extract::<PyBackedBytes>().map_err(PyErr::from)
    });
    let samples = samples.map_err(|error| error.to_string())?;
    RgbImage::new(width, height, samples.to_vec()).ok_or_else(|| {
        format!(
            "expected pixels [{height}, {width}, 3], found {} bytes",
            samples.len()
        )
    })
}

/// Images in the order they were given.
pub struct Images(pub Vec<Item>);

impl Images {
    fn item(&self, row: u64) -> &Item {
        &self.0[row as usize]
    }
}

impl Source for Images {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn record(&self, row: u64) -> Record {
        Record {
            row,
            path: self.item(row).name(row),
            label: None,
            mask: None,
            depth: None,
        }
    }

    fn load(&self, row: u64, options: &DecodeOptions) -> Result<RgbImage, RowError> {
        let item = self.item(row);
        item.load(|| item.name(row), options).map_err(|reason| RowError {
            path: item.name(row),
            reason,
        })
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::json!({"kind": "python", "images": self.0.len()})
    }
}
