//! What the tests of weight files share: fixtures, and a writer of `torch.save` files in both of its formats.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use macula_models::weights::{Checkpoint, LoadOptions, Tensors, load};
use macula_models::{Error, Result};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The path of a fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The networks of the fixtures have heads of 16, which their files do not tell.
pub fn three_heads() -> LoadOptions {
    LoadOptions {
        num_heads: Some(3),
        ..LoadOptions::default()
    }
}

pub fn load_fixture(name: &str) -> Checkpoint {
    load(&fixture(name), &three_heads()).unwrap()
}

pub fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn assert_same(a: &Tensors, b: &Tensors) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, tensor) in a {
        assert_eq!(tensor.dims(), b[name].dims(), "{name}");
        assert_eq!(numbers(tensor), numbers(&b[name]), "{name}");
    }
}

/// Tensors with numbers of their own, so that a mixed-up one shows.
pub fn tensors(shapes: &[(&str, &[usize])]) -> Tensors {
    let make = |(index, (name, shape)): (usize, &(&str, &[usize]))| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| index as f32 + i as f32 / 1024.0).collect();
        (
            name.to_string(),
            Tensor::from_vec(values, *shape, &Device::Cpu).unwrap(),
        )
    };
    shapes.iter().enumerate().map(make).collect()
}

/// The line of the error that `load` has to give.
pub fn refusal(path: &Path, options: &LoadOptions) -> String {
    let result: Result<Checkpoint> = load(path, options);
    let error: Error = result.expect_err("an error");
    let line = error.to_string();
    assert!(!line.contains('\n'), "one line: {line}");
    assert!(
        line.contains(path.file_name().unwrap().to_str().unwrap()),
        "names the file: {line}"
    );
    line
}

/// Fails unless `line` contains every one of `parts`.
pub fn assert_says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "expected `{part}` in: {line}");
    }
}

/// An object that Python could pickle.
pub enum Object<'a> {
    Dict(Vec<(String, Object<'a>)>),
    Int(i32),
    Tensor(&'a Tensor),
    /// A view: storage numbers, offset, shape, strides.
    View(&'a [f32], i32, Vec<i32>, Vec<i32>),
    /// `argparse.Namespace` with one field.
    Namespace,
    /// A bare global, module and name.
    Global(&'a str, &'a str),
    /// A global called with one text.
    Call(&'a str, &'a str, &'a str),
}

impl<'a> Object<'a> {
    /// A dictionary of tensors, each name with a prefix.
    pub fn tensors(prefix: &str, tensors: &'a Tensors) -> Vec<(String, Self)> {
        tensors
            .iter()
            .map(|(name, tensor)| (format!("{prefix}{name}"), Object::Tensor(tensor)))
            .collect()
    }
}

/// Pickles, protocol 2, collecting the numbers of every storage.
pub struct Pickler {
    pub bytes: Vec<u8>,
    pub storages: Vec<Vec<f32>>,
    /// Old files name a storage with six parts, the last `None`.
    legacy: bool,
    /// Added to the element count that every persistent id names.
    pub lie: i32,
}

impl Pickler {
    pub fn new(legacy: bool) -> Self {
        Self {
            bytes: Vec::new(),
            storages: Vec::new(),
            legacy,
            lie: 0,
        }
    }

    pub fn pickle(&mut self, object: &Object<'_>) {
        self.bytes.extend(b"\x80\x02");
        self.put(object);
        self.bytes.push(b'.');
    }

    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn int(&mut self, number: i32) {
        self.bytes.push(b'J');
        self.bytes.extend(number.to_le_bytes());
    }

    fn ints(&mut self, numbers: &[i32]) {
        self.bytes.push(b'(');
        for number in numbers {
            self.int(*number);
        }
        self.bytes.push(b't');
    }

    /// Adds an object to the pickle at hand.
    pub fn put(&mut self, object: &Object<'_>) {
        match object {
            Object::Dict(items) => {
                self.bytes.extend(b"ccollections\nOrderedDict\n)R(");
                for (key, value) in items {
                    self.text(key);
                    self.put(value);
                }
                self.bytes.push(b'u');
            }
            Object::Int(number) => self.int(*number),
            Object::Tensor(tensor) => {
                let shape: Vec<i32> = tensor.dims().iter().map(|side| *side as i32).collect();
                let mut strides = vec![1; shape.len()];
                for axis in (1..shape.len()).rev() {
                    strides[axis - 1] = strides[axis] * shape[axis];
                }
                self.view(&numbers(tensor), 0, &shape, &strides);
            }
            Object::View(storage, offset, shape, strides) => self.view(storage, *offset, shape, strides),
            Object::Namespace => {
                self.bytes.extend(b"cargparse\nNamespace\n)\x81}");
                self.text("lr");
                self.int(1);
                self.bytes.extend(b"sb");
            }
            Object::Global(module, name) => {
                self.bytes.extend(format!("c{module}\n{name}\n").into_bytes());
            }
            Object::Call(module, name, argument) => {
                self.put(&Object::Global(module, name));
                self.text(argument);
                self.bytes.extend(b"\x85R");
            }
        }
    }

    fn view(&mut self, storage: &[f32], offset: i32, shape: &[i32], strides: &[i32]) {
        self.bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.bytes.extend(b"ctorch\nFloatStorage\n");
        self.text(&self.storages.len().to_string());
        self.text("cpu");
        self.int(storage.len() as i32 + self.lie);
        self.bytes.extend(if self.legacy { &b"NtQ"[..] } else { b"tQ" });
        self.storages.push(storage.to_vec());
        self.int(offset);
        self.ints(shape);
        self.ints(strides);
        self.bytes.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
}

/// The bytes of a zip archive of entries.
pub fn zip_bytes(entries: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn le(storage: &[f32]) -> Vec<u8> {
    storage.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The entries of a `torch.save` archive for a pickle.
pub fn zip_entries(pickler: &Pickler) -> Vec<(String, Vec<u8>)> {
    let mut entries = vec![
        ("archive/data.pkl".to_string(), pickler.bytes.clone()),
        ("archive/byteorder".to_string(), b"little".to_vec()),
    ];
    for (index, storage) in pickler.storages.iter().enumerate() {
        entries.push((format!("archive/data/{index}"), le(storage)));
    }
    entries
}

/// What PyTorch 1.6 and later save.
pub fn torch_zip(object: &Object<'_>) -> Vec<u8> {
    let mut pickler = Pickler::new(false);
    pickler.pickle(object);
    let entries = zip_entries(&pickler);
    let entries: Vec<(&str, Vec<u8>)> = entries.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    zip_bytes(&entries, CompressionMethod::Stored)
}

/// What PyTorch before 1.6 saved.
pub fn torch_legacy(object: &Object<'_>) -> Vec<u8> {
    let mut pickler = Pickler::new(true);
    pickler
        .bytes
        .extend(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.");
    pickler
        .bytes
        .extend(b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.");
    pickler.pickle(object);
    pickler.bytes.extend(b"\x80\x02](");
    for index in 0..pickler.storages.len() {
        pickler.text(&index.to_string());
    }
    pickler.bytes.extend(b"e.");
    for storage in &pickler.storages {
        pickler.bytes.extend((storage.len() as u64).to_le_bytes());
        pickler.bytes.extend(le(storage));
    }
    pickler.bytes
}

/// The metadata macula does not need.
pub fn no_metadata() -> BTreeMap<String, String> {
    BTreeMap::new()
}
