//! The parsers, and how bytes reach each of them.

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};

use macula::data::samples::read_samples;
use macula::data::{self, DecodeOptions};
use macula::extract::FeatureFolder;
use macula::index::OpenIndex;
use macula::train::recipes::Overrides;
use macula_models::onnx;
use macula_models::weights::{self, LoadOptions};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A parser.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Answers bytes; files are written into the folder.
    pub read: fn(&Path, &[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "jpeg",
        read: |_, bytes| image(b"\xff\xd8\xff", bytes),
    },
    Target {
        name: "tiff",
        read: |_, bytes| image(b"II*\0", bytes),
    },
    Target {
        name: "gif",
        read: |_, bytes| image(b"GIF89a", bytes),
    },
    Target {
        name: "image",
        read: |_, bytes| image(b"", bytes),
    },
    Target {
        name: "samples",
        read: |_, bytes| drop(read_samples(bytes, 1 << 20)),
    },
    Target {
        name: "pickle",
        read: pickle,
    },
    Target {
        name: "checkpoint",
        read: |folder, bytes| checkpoint(&written(folder, "w", bytes)),
    },
    Target {
        name: "safetensors",
        read: safetensors,
    },
    Target {
        name: "onnx",
        read: |folder, bytes| drop(onnx::describe(&written(folder, "m.onnx", bytes))),
    },
    Target {
        name: "list",
        read: |folder, bytes| source(&written(folder, "list.csv", bytes)),
    },
    Target {
        name: "tar",
        read: |folder, bytes| source(&written(folder, "images.tar", bytes)),
    },
    Target {
        name: "idx",
        read: idx,
    },
    Target {
        name: "features",
        read: features,
    },
    Target {
        name: "index",
        read: index,
    },
    Target {
        name: "recipe",
        read: |folder, bytes| drop(Overrides::from_file(&written(folder, "r.toml", bytes))),
    },
    Target {
        name: "pipeline",
        read: |folder, bytes| {
            drop(macula::curate::Pipeline::read(&written(folder, "p.toml", bytes)).map(drop))
        },
    },
];

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("written");
    path
}

/// Bytes that begin as the format does.
fn image(start: &[u8], bytes: &[u8]) {
    let whole = [start, bytes].concat();
    let whole = if bytes.starts_with(&start[..start.len().min(2)]) {
        bytes
    } else {
        whole.as_slice()
    };
    let options = DecodeOptions {
        max_pixels: 1 << 20,
        exif: true,
        ..DecodeOptions::default()
    };
    drop(data::decode(whole, &options));
}

/// The bytes as the pickle of an archive that is sound otherwise.
fn pickle(folder: &Path, bytes: &[u8]) {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let members: [(&str, &[u8]); 3] = [
        ("archive/data.pkl", bytes),
        ("archive/byteorder", b"little"),
        ("archive/data/0", &[0; 96]),
    ];
    for (name, bytes) in members {
        zip.start_file(name, options).expect("started");
        zip.write_all(bytes).expect("written");
    }
    checkpoint(&written(
        folder,
        "w.pth",
        &zip.finish().expect("finished").into_inner(),
    ));
}

/// The bytes as the JSON header of a file with the right length.
fn safetensors(folder: &Path, bytes: &[u8]) {
    let length = (bytes.len() as u64).to_le_bytes();
    checkpoint(&written(
        folder,
        "w.safetensors",
        &[&length, bytes, &[0; 256]].concat(),
    ));
}

fn checkpoint(path: &Path) {
    if let Ok(mut raw) = weights::read_tensors(path) {
        let names: Vec<String> = raw.tensors.keys().cloned().collect();
        for name in names {
            drop(raw.read(&name));
        }
    }
    drop(weights::load(path, &LoadOptions::default()));
}

fn source(path: &Path) {
    let Ok(source) = data::open(&path.display().to_string()) else {
        return;
    };
    let options = DecodeOptions {
        max_pixels: 1 << 20,
        ..DecodeOptions::default()
    };
    let _ = source.describe();
    for row in (0..source.len().min(4)).chain([source.len() - 1]) {
        let _ = (source.record(row), source.file(row));
        drop(source.load(row, &options));
    }
}

fn idx(folder: &Path, bytes: &[u8]) {
    let half = bytes.len() / 2;
    written(folder, "train-images-idx3-ubyte", &bytes[..half]);
    written(folder, "train-labels-idx1-ubyte", &bytes[half..]);
    drop(data::open(&format!("idx:{}#train", folder.display())));
}

/// The bytes as `meta.json` of a folder whose parts are empty files.
fn features(folder: &Path, bytes: &[u8]) {
    written(folder, "meta.json", bytes);
    written(folder, "_SUCCESS", b"");
    written(folder, "part-00000.parquet", b"");
    let Ok(open) = FeatureFolder::open(folder) else {
        return;
    };
    let names: Vec<String> = open
        .meta()
        .outputs
        .iter()
        .map(|output| output.name.clone())
        .collect();
    for name in names {
        drop(open.read(&name));
    }
}

/// The bytes as `manifest.json` of an index.
fn index(folder: &Path, bytes: &[u8]) {
    written(folder, "manifest.json", bytes);
    written(folder, "vectors.f32", &[0; 16]);
    drop(OpenIndex::open(folder, 4));
}
