//! `meta.json`: what a feature folder holds and how it was made.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::device::Dtype;
use crate::identity::Fingerprint;
use crate::{Error, Result};

/// Version of the feature folder's layout. A folder of a later version is refused.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the description.
pub const META_FILE: &str = "meta.json";
/// Name of the marker that a folder is complete.
pub const SUCCESS_FILE: &str = "_SUCCESS";

/// One output of a model, and one column of the parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Column name: `cls`, `patch`, `patch_mean`, `reg`, `layer:9.cls`, `pixels`.
    pub name: String,
    /// Shape of one image's output: `[D]`, or `[N, D]`, stored row-major in one `Array(Float32, N*D)` (or Float16).
    pub shape: Vec<usize>,
}

impl OutputSpec {
    /// Values per image.
    pub fn width(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Which rows of the source a folder holds: `index, index + count, ..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardMeta {
    /// Number of this shard, from 0.
    pub index: u64,
    /// Number of shards; 1 for an undivided source.
    pub count: u64,
}

/// Which files a feature folder holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Parquet parts.
    #[default]
    Parquet,
    /// Parquet parts, and the first output as `img_emb/img_emb_K.npy` with `metadata/metadata_K.parquet`, which
    /// clip-retrieval and autofaiss read.
    Npy,
    /// Parquet parts, and every output as `safetensors/part-KKKKK.safetensors`.
    Safetensors,
}

/// What values of features can be stored in.
pub const STORED: [Dtype; 2] = [Dtype::F32, Dtype::F16];

/// The greatest number that f16 holds; beyond it lies infinity.
const LARGEST_F16: f32 = 65_504.0;

/// The first of `values` that cannot be stored in `dtype`: its place, and what was expected and found.
pub fn unusable(dtype: Dtype, values: &[f32]) -> Option<(usize, String)> {
    let place = values
        .iter()
        .position(|value| !value.is_finite() || overflows(dtype, *value))?;
    let value = values[place];
    let why = match value.is_finite() {
        false => format!("expected finite values, found {value}"),
        true => format!("expected values up to {LARGEST_F16} for f16, found {value}"),
    };
    Some((place, why))
}

/// Whether a finite value would become infinite.
pub(super) fn overflows(dtype: Dtype, value: f32) -> bool {
    dtype == Dtype::F16 && value.is_finite() && value.abs() > LARGEST_F16
}

/// `values` in a type of [`STORED`], little endian.
pub(super) fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values
            .iter()
            .flat_map(|value| half::f16::from_f32(*value).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// The type of a value in a table, of a type of [`STORED`].
pub(super) fn column_type(dtype: Dtype) -> polars::prelude::DataType {
    match dtype {
        Dtype::F16 => polars::prelude::DataType::Float16,
        _ => polars::prelude::DataType::Float32,
    }
}

/// What a feature folder holds and how it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Version of the layout.
    pub format_version: u32,
    /// Version of macula that wrote it.
    pub tool_version: String,
    /// The model: kind, file name, SHA-256, and what its file says of itself.
    pub model: serde_json::Value,
    /// Pixels to network input: resize, crop, interpolation, mean, std; background, where one was asked for.
    pub preprocess: serde_json::Value,
    /// Outputs, one column each.
    pub outputs: Vec<OutputSpec>,
    /// The source and its size.
    pub source: serde_json::Value,
    /// What its features were computed from, to be compared; none in a folder written before there were fingerprints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// Rows of this folder's share of the source.
    pub n_rows: u64,
    /// Which share that is.
    pub shard: ShardMeta,
    /// Rows per part; the last part may be shorter.
    pub part_rows: u64,
    /// `fail`, `skip` or `null`.
    pub on_error: String,
    /// Which files there are.
    #[serde(default)]
    pub layout: Layout,
    /// What values are stored in; without, `f32`.
    #[serde(default)]
    pub dtype: Dtype,
    /// Rows with features; set when complete.
    #[serde(default)]
    pub n_written: Option<u64>,
    /// Rows that failed; set when complete.
    #[serde(default)]
    pub n_failed: Option<u64>,
}

impl Meta {
    /// Reads `folder/meta.json`.
    ///
    /// # Errors
    /// A missing or damaged file, or a version later than [`FORMAT_VERSION`].
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(META_FILE);
        let name = || path.display().to_string();
        let text = fs::read_to_string(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::input(
                folder.display().to_string(),
                format!("expected a feature folder, found no {META_FILE} in it"),
            ),
            _ => Error::io(&path, e),
        })?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| Error::input(name(), format!("not JSON: {e}")))?;
        let version = value.get("format_version").and_then(serde_json::Value::as_u64);
        if version.is_some_and(|version| version > u64::from(FORMAT_VERSION)) {
            return Err(Error::input(
                name(),
                format!(
                    "expected format_version up to {FORMAT_VERSION}, found {}: written by a later macula",
                    version.unwrap_or_default()
                ),
            ));
        }
        let meta: Self = serde_json::from_value(value).map_err(|e| Error::input(name(), e.to_string()))?;
        meta.dtype.check("dtype", &STORED).map_err(|e| e.in_file(&path))?;
        if meta.part_rows == 0 || meta.shard.count == 0 || meta.shard.index >= meta.shard.count {
            return Err(Error::input(name(), "part_rows or shard out of range"));
        }
        Ok(meta)
    }

    /// Writes `folder/meta.json`, whole.
    ///
    /// # Errors
    /// The system's word with the path.
    pub fn write(&self, folder: &Path) -> Result<()> {
        crate::files::write_json(&folder.join(META_FILE), self)
    }

    /// Number of parts of a complete folder.
    pub fn n_parts(&self) -> u64 {
        self.n_rows.div_ceil(self.part_rows)
    }

    /// The output called `name`.
    pub fn output(&self, name: &str) -> Option<&OutputSpec> {
        self.outputs.iter().find(|output| output.name == name)
    }

    /// Names of all outputs, for error messages.
    pub fn output_names(&self) -> String {
        let names: Vec<&str> = self.outputs.iter().map(|output| output.name.as_str()).collect();
        names.join(", ")
    }
}
