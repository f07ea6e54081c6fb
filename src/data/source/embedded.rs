//! Parquet files whose rows carry the image itself, as the datasets of Hugging Face do: a column of bytes, or of structs with
//! `bytes`, beside labels. Only the labels are read when the source is opened. Images come out of a file a row group at a
//! time: the last groups stay in memory, which is all that reading in order needs; a group that is asked for again after
//! it was let go is then kept in a temporary file, so that reading in any order decodes each group at most twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use polars::prelude::{
    BinaryChunked, DataFrame, DataType, ParquetReader, PolarsError, PolarsResult, SerReader as _,
};
use serde_json::json;

use super::list::{column, one_line};
use super::{Bytes, Record, RowError, Source, Stamp, lossless, place, sha256, shards};
use crate::data::decode::{DecodeOptions, decode};
use crate::data::image::RgbImage;
use crate::{Error, Result};

/// Names that a column of images may have, the first that is there being taken.
const COLUMNS: [&str; 8] = [
    "image",
    "img",
    "image_bytes",
    "bytes",
    "jpg",
    "jpeg",
    "png",
    "webp",
];
/// The field with the bytes, where the column holds structs.
const FIELD: &str = "bytes";
/// Row groups in memory.
const RECENT: usize = 2;

/// The images of Parquet files, file by file.
pub(super) struct Embedded {
    spec: String,
    files: Vec<PathBuf>,
    column: String,
    groups: Vec<Group>,
    rows: Vec<Row>,
    labelled: bool,
    sha256: String,
    held: Mutex<Held>,
}

/// Rows that are read together.
#[derive(Debug, Clone, Copy)]
struct Group {
    file: usize,
    /// Its first row within the file and within the source.
    first_in_file: usize,
    first: usize,
    rows: usize,
}

struct Row {
    path: String,
    label: Option<String>,
}

/// Encoded images of a group; none where the table has none.
type Images = Arc<Vec<Option<Vec<u8>>>>;

/// Groups that need not be read from their files.
#[derive(Default)]
struct Held {
    recent: VecDeque<(usize, Images)>,
    let_go: BTreeSet<usize>,
    kept: Option<File>,
    /// Of each group in `kept`, where every image begins and how long it is.
    places: BTreeMap<usize, Vec<Option<(u64, usize)>>>,
}

impl Embedded {
    /// Whether `spec` names Parquet files with images in them.
    pub(super) fn is_meant(spec: &str) -> bool {
        let files = match spec.to_ascii_lowercase().ends_with(".parquet") {
            true => shards::expand(spec).unwrap_or_default(),
            false => Vec::new(),
        };
        let first = files.first().map(|file| image_column(file));
        files.len() > 1 || matches!(first, Some(Ok(Some(_))))
    }

    /// Reads the labels of `spec`: a file, `data/{000..012}.parquet`, or a pattern with `*` in the file's name.
    pub(super) fn open(spec: &str) -> Result<Self> {
        let files = shards::expand(spec)?;
        let (mut groups, mut rows, mut listing) = (Vec::new(), Vec::new(), String::new());
        let mut chosen: Option<String> = None;
        for (number, file) in files.iter().enumerate() {
            let found = image_column(file)?;
            let expected = chosen.clone().or(found.clone());
            if found.is_none() || found != expected {
                let reason = format!(
                    "expected a column of bytes, or of structs with `{FIELD}`, called {}, found {}",
                    expected.map_or(COLUMNS.join(", "), |name| format!(
                        "`{name}` as in the file before"
                    )),
                    found.map_or("none".to_owned(), |name| format!("`{name}`")),
                );
                return Err(Error::input(lossless(file), reason));
            }
            chosen = expected;
            let before = rows.len();
            groups.extend(row_groups(file, number, before)?);
            rows.extend(names_and_labels(file)?);
            let length = std::fs::metadata(file).map_err(|e| Error::io(file, e))?.len();
            listing.push_str(&format!("{} {length} {}\n", lossless(file), rows.len() - before));
        }
        if rows.is_empty() {
            return Err(Error::input(spec, "no rows: expected at least one image"));
        }
        Ok(Self {
            spec: spec.to_owned(),
            column: chosen.unwrap_or_default(),
            labelled: rows.iter().all(|row: &Row| row.label.is_some()),
            sha256: sha256(&[listing.as_bytes()]),
            files,
            groups,
            rows,
            held: Mutex::default(),
        })
    }

    /// The encoded image of a row.
    fn bytes(&self, row: usize) -> Result<Option<Vec<u8>>> {
        let number = self.groups.partition_point(|group| group.first <= row) - 1;
        let inside = row - self.groups[number].first;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = held.take(number, inside) {
            return found.map_err(|e| Error::failed("temporary file", e.to_string()));
        }
        let images = Arc::new(self.read_aside(self.groups[number])?);
        let image = images[inside].clone();
        held.put(number, images)
            .map_err(|e| Error::failed("temporary file", e.to_string()))?;
        Ok(image)
    }

    /// Reads a group on a thread of its own: a thread of rayon's that waits for Polars' pool would take up another row
    /// meanwhile, and wait for ever for the lock that it holds itself.
    fn read_aside(&self, group: Group) -> Result<Vec<Option<Vec<u8>>>> {
        std::thread::scope(|scope| scope.spawn(|| self.read(group)).join()).unwrap_or_else(|_| {
            Err(Error::failed(
                lossless(&self.files[group.file]),
                "its reader panicked",
            ))
        })
    }

    fn read(&self, group: Group) -> Result<Vec<Option<Vec<u8>>>> {
        let file = &self.files[group.file];
        let frame = table(
            file,
            Some(&[&self.column]),
            Some((group.first_in_file, group.rows)),
        )?;
        let images = image_bytes(&frame, &self.column).map_err(|e| unreadable(file, &e))?;
        if images.len() != group.rows {
            let reason = format!("expected {} rows in a group, found {}", group.rows, images.len());
            return Err(Error::input(lossless(file), reason));
        }
        Ok(images.iter().map(|bytes| bytes.map(<[u8]>::to_vec)).collect())
    }
}

impl Held {
    /// The image at `inside` of a group that is at hand.
    fn take(&mut self, group: usize, inside: usize) -> Option<std::io::Result<Option<Vec<u8>>>> {
        if let Some((_, images)) = self.recent.iter().find(|(number, _)| *number == group) {
            return Some(Ok(images[inside].clone()));
        }
        let place = self.places.get(&group)?[inside];
        let file = self.kept.as_mut()?;
        let mut read = |(offset, size): (u64, usize)| {
            let mut bytes = vec![0; size];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        Some(place.map(&mut read).transpose())
    }

    /// Holds a group that was read: in memory, and in the file if it was let go once.
    fn put(&mut self, group: usize, images: Images) -> std::io::Result<()> {
        if self.let_go.contains(&group) {
            return self.keep(group, &images);
        }
        self.recent.push_back((group, images));
        if self.recent.len() > RECENT
            && let Some((oldest, _)) = self.recent.pop_front()
        {
            self.let_go.insert(oldest);
        }
        Ok(())
    }

    fn keep(&mut self, group: usize, images: &[Option<Vec<u8>>]) -> std::io::Result<()> {
        let file = match &mut self.kept {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        let mut at = file.seek(SeekFrom::End(0))?;
        let mut places = Vec::with_capacity(images.len());
        for image in images {
            places.push(image.as_ref().map(|bytes| (at, bytes.len())));
            let bytes = image.as_deref().unwrap_or_default();
            file.write_all(bytes)?;
            at += bytes.len() as u64;
        }
        self.places.insert(group, places);
        Ok(())
    }
}

fn unreadable(file: &Path, error: &PolarsError) -> Error {
    Error::input(lossless(file), one_line(&error.to_string()))
}

/// Columns and rows of a Parquet file; all without `columns` or `slice`.
fn table(file: &Path, columns: Option<&[&str]>, slice: Option<(usize, usize)>) -> Result<DataFrame> {
    let opened = File::open(file).map_err(|e| Error::io(file, e))?;
    let columns = columns.map(|names| names.iter().map(|&name| name.to_owned()).collect());
    let reader = ParquetReader::new(opened).with_columns(columns).with_slice(slice);
    reader.finish().map_err(|e| unreadable(file, &e))
}

/// The column of images, if there is one.
fn image_column(file: &Path) -> Result<Option<String>> {
    let frame = table(file, None, Some((0, 0)))?;
    let holds_images = |name: &&&str| match frame.column(name).map(|column| column.dtype().clone()) {
        Ok(DataType::Binary) => true,
        Ok(DataType::Struct(fields)) => fields
            .iter()
            .any(|field| field.name() == FIELD && *field.dtype() == DataType::Binary),
        _ => false,
    };
    Ok(COLUMNS.iter().find(holds_images).map(|&name| name.to_owned()))
}

/// The bytes in column `name`.
fn image_bytes(frame: &DataFrame, name: &str) -> PolarsResult<BinaryChunked> {
    let column = frame.column(name)?;
    match column.dtype() {
        DataType::Binary => column.binary().cloned(),
        _ => column.struct_()?.field_by_name(FIELD)?.binary().cloned(),
    }
}

/// The row groups of a file, `first` being the source's number of its first row.
fn row_groups(file: &Path, number: usize, first: usize) -> Result<Vec<Group>> {
    let opened = File::open(file).map_err(|e| Error::io(file, e))?;
    let mut reader = ParquetReader::new(opened);
    let metadata = reader.get_metadata().map_err(|e| unreadable(file, &e))?;
    let mut first_in_file = 0;
    let sizes = metadata.row_groups.iter().map(|group| group.num_rows());
    let groups = sizes.filter(|&rows| rows > 0).map(|rows| {
        let group = Group {
            file: number,
            first_in_file,
            first: first + first_in_file,
            rows,
        };
        first_in_file += rows;
        group
    });
    Ok(groups.collect())
}

/// What is known of every row: its name, which is the text in `path` or `file_name` or else its number in the file, and its
/// label.
fn names_and_labels(file: &Path) -> Result<Vec<Row>> {
    let all = table(file, None, Some((0, 0)))?;
    let there = |wanted: &[&'static str]| {
        let is_there = |name: &&&str| {
            all.column(name)
                .is_ok_and(|column| *column.dtype() != DataType::Binary)
        };
        wanted.iter().find(is_there).copied()
    };
    let (name, label) = (there(&["path", "file_name"]), there(&["label", "cls"]));
    let wanted: Vec<&str> = name.into_iter().chain(label).collect();
    let opened = File::open(file).map_err(|e| Error::io(file, e))?;
    let count = ParquetReader::new(opened)
        .num_rows()
        .map_err(|e| unreadable(file, &e))?;
    let frame = match wanted.is_empty() {
        true => DataFrame::empty(),
        false => table(file, Some(&wanted), None)?,
    };
    let texts = |name: Option<&str>| -> Result<Vec<Option<String>>> {
        let found = name.map(|name| column(&frame, file, name)).transpose()?.flatten();
        Ok(found.unwrap_or_else(|| vec![None; count]))
    };
    let rows = texts(name)?.into_iter().zip(texts(label)?).enumerate();
    Ok(rows
        .map(|(row, (path, label))| Row {
            path: path.unwrap_or_else(|| format!("{}#{row}", lossless(file))),
            label,
        })
        .collect())
}

impl Source for Embedded {
    fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    fn record(&self, row: u64) -> Record {
        let found = &self.rows[place(row)];
        Record::new(row, found.path.clone(), found.label.clone())
    }

    fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        let error = |reason: String| RowError {
            path: self.rows[place(row)].path.clone(),
            reason,
        };
        let bytes = self.bytes(place(row)).map_err(|cause| error(cause.to_string()))?;
        let bytes = bytes.ok_or_else(|| error(format!("column `{}` holds no image here", self.column)))?;
        decode(&bytes, options).map_err(|cause| error(cause.to_string()))
    }

    fn stamp(&self, row: u64) -> Stamp<'_> {
        let row = place(row);
        let group = self.groups.partition_point(|group| group.first <= row) - 1;
        let file = &self.files[self.groups[group].file];
        // A row without a name is called after its file, as that was spelled.
        let name = &self.rows[row].path;
        Stamp {
            name: name.strip_prefix(&lossless(file)).unwrap_or(name).to_owned(),
            bytes: Bytes::Within(file),
        }
    }

    fn describe(&self) -> serde_json::Value {
        json!({
            "kind": "parquet",
            "path": self.spec,
            "files": self.files.len(),
            "column": self.column,
            "images": self.rows.len(),
            "labels": self.labelled,
            "sha256": self.sha256,
        })
    }
}

#[cfg(test)]
mod tests {
    use polars::prelude::*;

    use super::*;
    use crate::data::source::tests::png;

    fn images(values: impl Iterator<Item = u8>) -> Series {
        let images: Vec<Option<Vec<u8>>> = values.map(|value| (value != 255).then(|| png(value))).collect();
        Series::new("image".into(), images)
    }

    /// As Hugging Face writes them: structs of bytes and path.
    fn as_structs(images: &Series) -> Series {
        let bytes = images.clone().with_name(FIELD.into());
        let path = Series::new("path".into(), vec!["x.png"; images.len()]);
        StructChunked::from_series("image".into(), images.len(), [bytes, path].iter())
            .unwrap()
            .into_series()
    }

    fn write(path: &Path, mut columns: Vec<Series>, rows_in_a_group: usize) {
        let height = columns[0].len();
        let columns = columns.drain(..).map(Column::from).collect();
        let mut frame = DataFrame::new(height, columns).unwrap();
        ParquetWriter::new(File::create(path).unwrap())
            .with_row_group_size(Some(rows_in_a_group))
            .with_compression(ParquetCompression::Snappy)
            .finish(&mut frame)
            .unwrap();
    }

    fn first_value(source: &dyn Source, row: u64) -> u8 {
        source.load(row, &DecodeOptions::default()).unwrap().data()[0]
    }

    #[test]
    fn rows_are_read_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let spec = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let labels = Series::new("label".into(), (0..10i64).collect::<Vec<_>>());
        write(
            Path::new(&spec("a-0.parquet")),
            vec![images(0..10), labels.clone()],
            3,
        );
        write(
            Path::new(&spec("a-1.parquet")),
            vec![images(10..20), labels.clone()],
            4,
        );
        write(
            Path::new(&spec("b.parquet")),
            vec![as_structs(&images(30..40)), labels],
            2,
        );
        let source = crate::data::open(&spec("a-*.parquet")).unwrap();
        assert_eq!(
            (source.len(), source.describe()["kind"].as_str()),
            (20, Some("parquet"))
        );
        // Forwards, backwards and across: groups are let go, read again and kept.
        for order in [
            (0..20).collect::<Vec<u64>>(),
            (0..20).rev().collect(),
            (0..20).map(|i| i * 7 % 20).collect(),
        ] {
            for row in order {
                assert_eq!(u64::from(first_value(source.as_ref(), row)), row);
            }
        }
        assert_eq!(source.record(13).label.as_deref(), Some("3"));
        assert!(source.record(13).path.ends_with("a-1.parquet#3"));
        let structs = crate::data::open(&spec("b.parquet")).unwrap();
        assert_eq!((structs.len(), first_value(structs.as_ref(), 9)), (10, 39));
    }

    #[test]
    fn threads_may_ask_at_once() {
        use rayon::prelude::*;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, vec![images(0..60)], 7);
        let source = Embedded::open(path.to_str().unwrap()).unwrap();
        (0..300u64).into_par_iter().for_each(|i| {
            let row = i * 37 % 60;
            assert_eq!(u64::from(first_value(&source, row)), row);
        });
    }

    #[test]
    fn a_row_without_image_fails_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let names = Series::new("path".into(), ["one", "two", "three"]);
        write(&path, vec![images([1, 255, 3].into_iter()), names], 10);
        let source = Embedded::open(path.to_str().unwrap()).unwrap();
        let error = source.load(1, &DecodeOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "two: column `image` holds no image here");
        assert_eq!(first_value(&source, 2), 3);
        assert!(source.record(0).label.is_none());
    }

    #[test]
    fn tables_without_images_are_lists_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let spec = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let text = Series::new("image".into(), ["a.png", "b.png"]);
        write(Path::new(&spec("list.parquet")), vec![text], 10);
        let list = crate::data::open(&spec("list.parquet")).unwrap();
        assert_eq!(list.describe()["kind"], "list");
        write(Path::new(&spec("m-0.parquet")), vec![images(0..2)], 10);
        write(
            Path::new(&spec("m-1.parquet")),
            vec![images(0..2).with_name("png".into())],
            10,
        );
        let message = |spec: &str| crate::data::open(spec).err().unwrap().to_string();
        let error = message(&spec("m-*.parquet"));
        assert!(
            error.contains("m-1.parquet") && error.contains("`image` as in the file before, found `png`"),
            "{error}"
        );
        std::fs::write(spec("bad.parquet"), b"no table").unwrap();
        assert!(message(&spec("bad.parquet")).contains("bad.parquet"));
    }
}
