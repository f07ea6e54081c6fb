//! Parquet files whose rows carry the image itself, as the datasets of Hugging Face do: a column of bytes, or of structs with
//! `bytes` (or the `path` of a file beside the table, where there are none), beside labels. Only the labels are read when the source is opened. Images come out of a file a row group at a
//! time: the last groups stay in memory, which is all that reading in order needs; a group that is asked for again after
//! it was let go is then kept in a temporary file, so that reading in any order decodes each group at most twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use super::columns::{self, choose, choose_label};
use super::notice::say_once;
use super::{
    Bytes, Columns, EncodedImage, Record, RowError, Source, Stamp, lossless, place, read_file, sha256, shards,
};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::tables::{Encoded, Kind, ParquetTable, Table};
use crate::{Error, Result};

/// Row groups in memory.
const RECENT: usize = 2;

/// The images of Parquet files, file by file.
pub(super) struct Embedded {
    spec: String,
    files: Vec<PathBuf>,
    tables: Vec<ParquetTable>,
    column: String,
    label_column: Option<String>,
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
    /// Which of the file's groups it is.
    in_file: usize,
    /// The source's number of its first row.
    first: usize,
}

struct Row {
    path: String,
    label: Option<String>,
}

/// Encoded images of a group.
type Images = Arc<Vec<Encoded>>;

/// Groups that need not be read from their files.
#[derive(Default)]
struct Held {
    recent: VecDeque<(usize, Images)>,
    let_go: BTreeSet<usize>,
    kept: Option<File>,
    /// Of each group in `kept`, where every image is.
    places: BTreeMap<usize, Vec<Place>>,
}

/// An image that was let go.
enum Place {
    /// Where it begins in the temporary file, and how long it is.
    Kept(u64, usize),
    /// What has no bytes, as it is.
    Elsewhere(Encoded),
}

impl Embedded {
    /// Reads the labels of `place`: a file, `data/{000..012}.parquet`, or a pattern with `*` in the file's name. `requested` are
    /// the columns that the user names.
    pub(super) fn open(place: &str, requested: &Columns) -> Result<Self> {
        let files = shards::expand(place)?;
        let (mut tables, mut groups, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut listing = String::new();
        let mut chosen: Option<(String, Option<String>)> = None;
        for (number, file) in files.iter().enumerate() {
            let table = Table::open(file)?;
            // What the first file's columns are called, those of the others are.
            let wanted = match &chosen {
                None => requested.clone(),
                Some((image, label)) => Columns {
                    path: requested.path.clone(),
                    label: Some(label.clone().unwrap_or_else(|| columns::NO_LABELS.to_owned())),
                    image: Some(image.clone()),
                },
            };
            let column = image_column(&table, file, &wanted)?.ok_or_else(|| no_images(&table, file))?;
            let label = choose_label(&table, file, wanted.label.as_deref())?;
            let name = choose(&table, file, &columns::NAME, wanted.path.as_deref())?;
            let before = rows.len();
            rows.extend(names_and_labels(&table, file, name.as_deref(), label.as_deref())?);
            let Table::Parquet(table) = table else {
                return Err(Error::input(lossless(file), "expected Parquet, found text"));
            };
            groups.extend(row_groups(&table, number, before));
            tables.push(*table);
            chosen.get_or_insert((column, label));
            let length = std::fs::metadata(file).map_err(|e| Error::io(file, e))?.len();
            listing.push_str(&format!("{} {length} {}\n", lossless(file), rows.len() - before));
        }
        if rows.is_empty() {
            return Err(Error::input(place, "no rows: expected at least one image"));
        }
        let (column, label_column) = chosen.unwrap_or_default();
        Ok(Self {
            spec: place.to_owned(),
            column,
            label_column,
            labelled: rows.iter().all(|row: &Row| row.label.is_some()),
            sha256: sha256(&[listing.as_bytes()]),
            files,
            tables,
            groups,
            rows,
            held: Mutex::default(),
        })
    }

    /// The group of a row, and its number.
    fn group_of(&self, row: usize) -> (usize, Group) {
        let number = self.groups.partition_point(|group| group.first <= row) - 1;
        (number, self.groups[number])
    }

    /// The encoded image of a row.
    fn image(&self, row: usize) -> Result<Encoded> {
        let (number, group) = self.group_of(row);
        let inside = row - group.first;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = held.take(number, inside) {
            return found.map_err(|e| Error::failed("temporary file", e.to_string()));
        }
        let images = Arc::new(self.tables[group.file].images(&self.column, group.in_file)?);
        let image = images[inside].clone();
        held.put(number, images)
            .map_err(|e| Error::failed("temporary file", e.to_string()))?;
        Ok(image)
    }
}

impl Held {
    /// The image at `inside` of a group that is at hand.
    fn take(&mut self, group: usize, inside: usize) -> Option<std::io::Result<Encoded>> {
        if let Some((_, images)) = self.recent.iter().find(|(number, _)| *number == group) {
            return Some(Ok(images[inside].clone()));
        }
        let (offset, size) = match &self.places.get(&group)?[inside] {
            Place::Elsewhere(image) => return Some(Ok(image.clone())),
            Place::Kept(offset, size) => (*offset, *size),
        };
        let file = self.kept.as_mut()?;
        let mut read = || {
            let mut bytes = vec![0; size];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)?;
            Ok(Encoded::Bytes(bytes))
        };
        Some(read())
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

    fn keep(&mut self, group: usize, images: &[Encoded]) -> std::io::Result<()> {
        let file = match &mut self.kept {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        let mut at = file.seek(SeekFrom::End(0))?;
        let mut places = Vec::with_capacity(images.len());
        for image in images {
            let Encoded::Bytes(bytes) = image else {
                places.push(Place::Elsewhere(image.clone()));
                continue;
            };
            places.push(Place::Kept(at, bytes.len()));
            file.write_all(bytes)?;
            at += bytes.len() as u64;
        }
        self.places.insert(group, places);
        Ok(())
    }
}

/// The column of images: the one that the user names, a usual one, or the only one of bytes in a table that has no paths.
pub(super) fn image_column(table: &Table, file: &Path, requested: &Columns) -> Result<Option<String>> {
    let found = choose(table, file, &columns::IMAGE, requested.image.as_deref())?;
    if found.is_some() {
        return Ok(found);
    }
    let names = table.names();
    let of = |kind: Kind| names.iter().filter(move |name| table.kind(name) == Some(kind));
    let has_paths = || {
        let paths = requested.path.as_deref();
        paths.is_some() || matches!(choose(table, file, &columns::PATH, paths), Ok(Some(_)) | Err(_))
    };
    let images: Vec<&&str> = of(Kind::Image).collect();
    let bytes: Vec<&&str> = of(Kind::Bytes).collect();
    let only = match (images.as_slice(), bytes.as_slice()) {
        ([only], _) => only,
        ([], [only]) if !has_paths() => only,
        _ => return Ok(None),
    };
    say_once(format!(
        "{}: images are taken from column `{only}` (--image-column names another)",
        lossless(file)
    ));
    Ok(Some((**only).to_owned()))
}

fn no_images(table: &Table, file: &Path) -> Error {
    let reason = format!(
        "expected a column of images, bytes or structs with `bytes` (--image-column names it), found {}",
        columns::listed(&table.names())
    );
    Error::input(lossless(file), reason)
}

/// The row groups of a file that have rows, `first` being the source's number of its first row.
fn row_groups(table: &ParquetTable, file: usize, mut first: usize) -> Vec<Group> {
    let mut groups = Vec::new();
    for (in_file, rows) in table.group_sizes().into_iter().enumerate() {
        if rows > 0 {
            groups.push(Group { file, in_file, first });
        }
        first += rows;
    }
    groups
}

/// What is known of every row: its name, which is the text in column `name` or else its number in the file, and its label.
fn names_and_labels(table: &Table, file: &Path, name: Option<&str>, label: Option<&str>) -> Result<Vec<Row>> {
    let count: usize = match table {
        Table::Parquet(table) => table.group_sizes().iter().sum(),
        Table::Csv(_) => 0,
    };
    let names = name.map(|name| table.text(name)).transpose()?.flatten();
    let labels = label
        .map(|label| columns::labels(table, file, label))
        .transpose()?;
    let names = names.unwrap_or_else(|| vec![None; count]);
    let labels = labels.unwrap_or_else(|| vec![None; count]);
    let rows = names.into_iter().zip(labels).enumerate();
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
        self.encoded(row)?.picture(options)
    }

    fn encoded(&self, row: u64) -> std::result::Result<EncodedImage, RowError> {
        let error = |reason: String| RowError {
            path: self.rows[place(row)].path.clone(),
            reason,
        };
        match self.image(place(row)).map_err(|cause| error(cause.to_string()))? {
            Encoded::Bytes(bytes) => Ok(EncodedImage {
                name: self.rows[place(row)].path.clone(),
                bytes,
            }),
            Encoded::Path(path) => {
                let file = &self.files[self.group_of(place(row)).1.file];
                read_file(&file.with_file_name("").join(path))
            }
            Encoded::None => Err(error(format!("column `{}` holds no image here", self.column))),
        }
    }

    fn stamp(&self, row: u64) -> Stamp<'_> {
        let row = place(row);
        let file = &self.files[self.group_of(row).1.file];
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
            "label_column": self.label_column,
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

    /// The field with the bytes, where the column holds structs.
    const FIELD: &str = "bytes";

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
        let source = Embedded::open(path.to_str().unwrap(), &Columns::default()).unwrap();
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
        let source = Embedded::open(path.to_str().unwrap(), &Columns::default()).unwrap();
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
            error.contains("m-1.parquet")
                && error.contains("column `image`")
                && error.contains("found `png`"),
            "{error}"
        );
        std::fs::write(spec("bad.parquet"), b"no table").unwrap();
        assert!(message(&spec("bad.parquet")).contains("bad.parquet"));
    }
}
