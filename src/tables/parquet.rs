//! Parquet of any writer, on the layer below Polars' own columns, which knows types that Polars is built without. Types are
//! those of the Parquet file; what Arrow writers add about theirs is left aside (a dictionary is read as its values).

use std::fs::File;
use std::path::{Path, PathBuf};

use polars::prelude::{PolarsResult, polars_bail};
use polars_arrow::array::{Array, BinaryViewArray, FixedSizeBinaryArray, StructArray, Utf8ViewArray};
use polars_arrow::datatypes::{ArrowDataType, ArrowSchema, Field};
use polars_parquet::read::schema::parquet_to_arrow_schema;
use polars_parquet::read::{ColumnChunkMetadata, FileMetadata, column_iter_to_arrays};

use super::footer::read_footer;
use super::vectors::{self, Vectors};
use super::{extent, guarded, text};
use crate::files::lossless;
use crate::{Error, Result};

/// Fields of a struct that holds an image, as the datasets of Hugging Face have it.
const BYTES: &str = "bytes";
const PATH: &str = "path";
/// Where those datasets say what their columns are.
const HUGGING_FACE: &str = "huggingface";

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text.
    Text,
    /// Bytes, which may be images.
    Bytes,
    /// Structs of bytes and the path of an image.
    Image,
    /// Numbers, truth values, dates, times.
    Value,
    /// Lists, maps, other structs.
    Nested,
}

/// An image of a row as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Encoded {
    /// The image's file.
    Bytes(Vec<u8>),
    /// Where the image's file is.
    Path(String),
    /// Nothing.
    None,
}

/// A Parquet file of which only the end has been read.
pub(crate) struct ParquetTable {
    path: PathBuf,
    length: u64,
    metadata: FileMetadata,
    schema: ArrowSchema,
}

impl ParquetTable {
    /// Reads what the file says of itself.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
        let length = file.metadata().map_err(|error| Error::io(path, error))?.len();
        guarded(path, || {
            let metadata = read_footer(&mut file)?;
            let schema = parquet_to_arrow_schema(metadata.schema().fields());
            Ok(Self {
                path: path.to_owned(),
                length,
                metadata,
                schema,
            })
        })
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.schema.iter_names().map(|name| name.as_str()).collect()
    }

    /// The number of rows in each row group.
    pub(crate) fn group_sizes(&self) -> Vec<usize> {
        self.metadata
            .row_groups
            .iter()
            .map(|group| group.num_rows())
            .collect()
    }

    /// What column `name` holds; `None` when there is no such column.
    pub(crate) fn kind(&self, name: &str) -> Option<Kind> {
        Some(kind_of(self.schema.get(name)?.dtype()))
    }

    /// The values of column `name` as text.
    pub(crate) fn text(&self, name: &str) -> Result<Vec<Option<String>>> {
        let mut texts = Vec::new();
        for group in 0..self.metadata.row_groups.len() {
            for array in self.arrays(name, group)? {
                text::append(array.as_ref(), &mut texts).map_err(|(row, found)| {
                    let reason =
                        format!("column `{name}`, row {row}: expected text or values, found {found}");
                    Error::input(lossless(&self.path), reason)
                })?;
            }
        }
        Ok(texts
            .into_iter()
            .map(|text: Option<String>| text.filter(|text| !text.is_empty()))
            .collect())
    }

    /// The vectors in column `name`.
    ///
    /// # Errors
    /// A row without one, one of another length than the first, or damage.
    pub(crate) fn vectors(&self, name: &str) -> Result<Vectors> {
        let mut found = Vectors::default();
        for group in 0..self.metadata.row_groups.len() {
            for array in self.arrays(name, group)? {
                vectors::append(array.as_ref(), &mut found).map_err(|(row, reason)| {
                    Error::input(
                        lossless(&self.path),
                        format!("column `{name}`, row {row}: {reason}"),
                    )
                })?;
            }
        }
        Ok(found)
    }

    /// The images in column `name` of one row group.
    pub(crate) fn images(&self, name: &str, group: usize) -> Result<Vec<Encoded>> {
        let mut images = Vec::new();
        for array in self.arrays(name, group)? {
            match array.as_any().downcast_ref::<StructArray>() {
                Some(structs) => append_structs(structs, &mut images),
                None => images.extend(bytes_of(array.as_ref()).into_iter().map(|bytes| match bytes {
                    Some(bytes) => Encoded::Bytes(bytes.to_vec()),
                    None => Encoded::None,
                })),
            }
        }
        Ok(images)
    }

    /// The names of the classes that column `name` holds the numbers of, from what Hugging Face writes beside its columns.
    pub(super) fn class_names(&self, name: &str) -> Option<Vec<String>> {
        let noted = self.metadata.key_value_metadata().as_ref()?;
        let noted = noted.iter().find(|noted| noted.key == HUGGING_FACE)?;
        let noted: serde_json::Value = serde_json::from_str(noted.value.as_deref()?).ok()?;
        let feature = &noted["info"]["features"][name];
        if feature["_type"] != "ClassLabel" {
            return None;
        }
        let names = feature["names"].as_array()?.iter();
        names.map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// The arrays of column `name` in one row group, as many values as the group has rows.
    fn arrays(&self, name: &str, group: usize) -> Result<Vec<Box<dyn Array>>> {
        let mut file = File::open(&self.path).map_err(|error| Error::io(&self.path, error))?;
        guarded(&self.path, || self.decoded(&mut file, name, group))
    }

    fn decoded(&self, file: &mut File, name: &str, group: usize) -> PolarsResult<Vec<Box<dyn Array>>> {
        let Some(field) = self.schema.get(name) else {
            polars_bail!(ColumnNotFound: "no column `{}`", name);
        };
        let group = &self.metadata.row_groups[group];
        let chunks: Vec<&ColumnChunkMetadata> = group
            .columns_under_root_iter(name)
            .into_iter()
            .flatten()
            .collect();
        if chunks.len() != leaves(field.dtype()) {
            polars_bail!(ComputeError: "expected one column `{}`, found {}", name, chunks.len());
        }
        let (mut decompressed, mut types) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let bytes = extent::read_chunk(file, self.length, chunk, group.num_rows())?;
            decompressed.push(extent::pages(bytes, chunk));
            types.push(&chunk.descriptor().descriptor.primitive_type);
        }
        let (arrays, _) = column_iter_to_arrays(decompressed, types, field.clone(), None)?;
        let found: usize = arrays.iter().map(|array| array.len()).sum();
        if found != group.num_rows() {
            polars_bail!(ComputeError: "column `{}`: expected {} values in a row group, found {}", name, group.num_rows(), found);
        }
        Ok(arrays)
    }
}

/// The number of columns of the Parquet file that make up a column of this type.
fn leaves(dtype: &ArrowDataType) -> usize {
    match dtype {
        ArrowDataType::Struct(fields) => fields.iter().map(|field| leaves(field.dtype())).sum(),
        ArrowDataType::LargeList(field)
        | ArrowDataType::List(field)
        | ArrowDataType::FixedSizeList(field, _)
        | ArrowDataType::Map(field, _) => leaves(field.dtype()),
        _ => 1,
    }
}

fn kind_of(dtype: &ArrowDataType) -> Kind {
    match dtype {
        ArrowDataType::Utf8View => Kind::Text,
        ArrowDataType::BinaryView | ArrowDataType::FixedSizeBinary(_) => Kind::Bytes,
        ArrowDataType::Struct(fields) if is_image(fields) => Kind::Image,
        ArrowDataType::Struct(_)
        | ArrowDataType::LargeList(_)
        | ArrowDataType::List(_)
        | ArrowDataType::FixedSizeList(..)
        | ArrowDataType::Map(..) => Kind::Nested,
        _ => Kind::Value,
    }
}

/// Bytes, perhaps with a path; bytes that are missing throughout may have any type.
fn is_image(fields: &[Field]) -> bool {
    let kind = |name: &str| {
        let field = fields.iter().find(|field| field.name.as_str() == name)?;
        Some(kind_of(field.dtype()))
    };
    match (kind(BYTES), kind(PATH)) {
        (Some(Kind::Bytes), _) => true,
        (Some(Kind::Value), path) => path == Some(Kind::Text),
        _ => false,
    }
}

fn append_structs(structs: &StructArray, images: &mut Vec<Encoded>) {
    let values = |name: &str| {
        let place = structs
            .fields()
            .iter()
            .position(|field| field.name.as_str() == name)?;
        Some(structs.values()[place].as_ref())
    };
    let bytes = values(BYTES).map_or_else(|| vec![None; structs.len()], bytes_of);
    let paths = values(PATH).and_then(|array| array.as_any().downcast_ref::<Utf8ViewArray>());
    images.extend(bytes.into_iter().enumerate().map(|(row, bytes)| {
        let path = || {
            paths
                .and_then(|paths| paths.get(row))
                .filter(|path| !path.is_empty())
        };
        if !structs.is_valid(row) {
            return Encoded::None;
        }
        match bytes {
            Some(bytes) => Encoded::Bytes(bytes.to_vec()),
            None => path().map_or(Encoded::None, |path| Encoded::Path(path.to_owned())),
        }
    }));
}

/// The values of an array of bytes; nothing in place of every other value.
fn bytes_of(array: &dyn Array) -> Vec<Option<&[u8]>> {
    if let Some(bytes) = array.as_any().downcast_ref::<BinaryViewArray>() {
        return bytes.iter().collect();
    }
    match array.as_any().downcast_ref::<FixedSizeBinaryArray>() {
        Some(bytes) => bytes.iter().collect(),
        None => vec![None; array.len()],
    }
}
