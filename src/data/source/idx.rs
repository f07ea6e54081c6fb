//! MNIST-style IDX pairs, gzipped or not, and the sample of Fashion-MNIST that is built in. An IDX file is four bytes of
//! magic (0, 0, the kind of the values, the number of dimensions), the dimensions as big-endian u32, and the values
//! (yann.lecun.com/exdb/mnist, "the IDX file format").

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::json;

use super::{Bytes, Record, RowError, Source, Stamp, lossless, place, sha256};
use crate::data::decode::DecodeOptions;
use crate::data::image::RgbImage;
use crate::{Error, Result};

/// How a gzipped file begins, whatever its name.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
/// The kind of value that is an unsigned byte.
const UNSIGNED_BYTE: u8 = 8;

/// The bundled sample: images and labels of the two splits. See `src/data/sample/LICENSE`.
const SAMPLE_TRAIN: [&[u8]; 2] = [
    include_bytes!("../sample/train-images-idx3-ubyte.gz"),
    include_bytes!("../sample/train-labels-idx1-ubyte.gz"),
];
const SAMPLE_TEST: [&[u8]; 2] = [
    include_bytes!("../sample/t10k-images-idx3-ubyte.gz"),
    include_bytes!("../sample/t10k-labels-idx1-ubyte.gz"),
];

/// Grey images of one size with a number from 0 to 255 each as their class, all in memory.
pub(super) struct Idx {
    name: String, // what a row's path begins with
    height: u32,
    width: u32,
    images: Vec<u8>, // [labels, height, width]
    labels: Vec<u8>,
    description: serde_json::Value,
}

impl Idx {
    /// Opens `FOLDER#train` or `FOLDER#test`.
    pub(super) fn open(place: &str) -> Result<Self> {
        let expected = || {
            Error::input(
                format!("idx:{place}"),
                "expected idx:FOLDER#train or idx:FOLDER#test",
            )
        };
        let (folder, split) = place.rsplit_once('#').ok_or_else(expected)?;
        let prefix = match split {
            "train" => "train",
            "test" => "t10k",
            _ => return Err(expected()),
        };
        let folder = Path::new(folder);
        let images = read_file(folder, &format!("{prefix}-images-idx3-ubyte"))?;
        let labels = read_file(folder, &format!("{prefix}-labels-idx1-ubyte"))?;
        let origin = json!({ "kind": "idx", "path": lossless(folder), "split": split });
        Self::new(&format!("{prefix}-images-idx3-ubyte"), images, labels, origin)
    }

    /// Opens the built-in sample: split `train` or `test`.
    pub(super) fn sample(split: &str) -> Result<Self> {
        let name = format!("sample:{split}");
        let [images, labels] = match split {
            "train" => SAMPLE_TRAIN,
            "test" => SAMPLE_TEST,
            _ => return Err(Error::input(name, "expected sample:train or sample:test")),
        };
        let images = read(&format!("{name} images"), MultiGzDecoder::new(images))?;
        let labels = read(&format!("{name} labels"), MultiGzDecoder::new(labels))?;
        Self::new(&name, images, labels, json!({ "kind": "sample", "split": split }))
    }

    fn new(name: &str, images: Values, labels: Values, mut description: serde_json::Value) -> Result<Self> {
        let [count, height, width] = images.dimensions::<3>()?;
        let [label_count] = labels.dimensions::<1>()?;
        if count != label_count {
            let reason = format!("expected a label for each of {count} images, found {label_count}");
            return Err(Error::input(labels.name, reason));
        }
        if count == 0 || height == 0 || width == 0 {
            let reason = format!("expected images, found {count} of {height}x{width} pixels");
            return Err(Error::input(images.name, reason));
        }
        let mut classes = labels.bytes.clone();
        classes.sort_unstable();
        classes.dedup();
        description["images"] = json!(count);
        description["height"] = json!(height);
        description["width"] = json!(width);
        description["classes"] = json!(classes.len());
        description["sha256"] = json!(sha256(&[&images.bytes, &labels.bytes]));
        Ok(Self {
            name: name.to_owned(),
            height,
            width,
            images: images.bytes,
            labels: labels.bytes,
            description,
        })
    }
}

/// The contents of an IDX file of unsigned bytes.
struct Values {
    name: String,
    sizes: Vec<u32>,
    bytes: Vec<u8>,
}

impl Values {
    /// The sizes, when there are `N` dimensions.
    fn dimensions<const N: usize>(&self) -> Result<[u32; N]> {
        <[u32; N]>::try_from(self.sizes.as_slice()).map_err(|_| {
            let reason = format!("expected {N} dimensions, found {}", self.sizes.len());
            Error::input(&self.name, reason)
        })
    }
}

/// Reads `folder/name`, with a point before `idx` as some copies have it, or either with `.gz` behind.
fn read_file(folder: &Path, name: &str) -> Result<Values> {
    let pointed = name.replace("-idx", ".idx");
    let names = [
        name.to_owned(),
        format!("{name}.gz"),
        pointed.clone(),
        format!("{pointed}.gz"),
    ];
    let Some(path) = names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
    else {
        let reason = format!("expected {name} or {name}.gz in this folder, found neither");
        return Err(Error::input(lossless(folder), reason));
    };
    fs::metadata(&path).map_err(|error| Error::io(&path, error))?;
    let mut file = BufReader::new(File::open(&path).map_err(|error| Error::io(&path, error))?);
    let what = lossless(&path);
    let start = file.fill_buf().map_err(|error| Error::io(&path, error))?;
    if start.starts_with(GZIP_MAGIC) {
        read(&what, MultiGzDecoder::new(file))
    } else {
        read(&what, file)
    }
}

/// Reads an IDX file of unsigned bytes and checks that it is whole. `name` is the file's.
fn read(name: &str, mut from: impl Read) -> Result<Values> {
    let cut = |error: std::io::Error| Error::input(name, format!("cut short or damaged: {error}"));
    let mut magic = [0; 4];
    from.read_exact(&mut magic).map_err(cut)?;
    let [0, 0, UNSIGNED_BYTE, dimensions @ 1..=4] = magic else {
        let reason =
            format!("expected an IDX file of unsigned bytes (magic 00 00 08 0N), found {magic:02x?}");
        return Err(Error::input(name, reason));
    };
    let mut sizes = Vec::new();
    for _ in 0..dimensions {
        let mut size = [0; 4];
        from.read_exact(&mut size).map_err(cut)?;
        sizes.push(u32::from_be_bytes(size));
    }
    let product = sizes
        .iter()
        .try_fold(1_u64, |product, &size| product.checked_mul(u64::from(size)));
    let too_large = || Error::input(name, format!("sizes {sizes:?} are too large"));
    let expected = product
        .filter(|&bytes| bytes < u64::from(u32::MAX) << 8)
        .ok_or_else(too_large)?;
    // One byte more than expected tells a longer file; what the header promises is never allocated ahead.
    let mut bytes = Vec::new();
    from.take(expected + 1).read_to_end(&mut bytes).map_err(cut)?;
    if bytes.len() as u64 != expected {
        let found = if bytes.len() as u64 > expected {
            "more".to_owned()
        } else {
            bytes.len().to_string()
        };
        return Err(Error::input(
            name,
            format!("expected {expected} bytes of sizes {sizes:?}, found {found}"),
        ));
    }
    Ok(Values {
        name: name.to_owned(),
        sizes,
        bytes,
    })
}

impl Source for Idx {
    fn len(&self) -> u64 {
        self.labels.len() as u64
    }

    fn record(&self, row: u64) -> Record {
        let label = self.labels[place(row)].to_string();
        Record::new(row, format!("{}#{row}", self.name), Some(label))
    }

    fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        let error = |reason: &str| RowError {
            path: format!("{}#{row}", self.name),
            reason: reason.to_owned(),
        };
        let size = self.height as usize * self.width as usize;
        if size as u64 > options.max_pixels {
            return Err(error("more pixels than the limit"));
        }
        let start = place(row) * size;
        let image = RgbImage::from_grey(self.width, self.height, &self.images[start..start + size]);
        image.ok_or_else(|| error("no pixels"))
    }

    fn stamp(&self, row: u64) -> Stamp<'_> {
        let size = self.height as usize * self.width as usize;
        let start = place(row) * size;
        Stamp {
            name: format!("{}x{}", self.height, self.width),
            bytes: Bytes::Held(&self.images[start..start + size]),
        }
    }

    fn describe(&self) -> serde_json::Value {
        self.description.clone()
    }

    fn in_memory(&self) -> bool {
        true
    }

    fn is_grey(&self) -> bool {
        true
    }
}
