//! Each kind of source as a user meets it, and everything that can be wrong with what it is given.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use polars::prelude::{DataFrame, NamedFrom, ParquetWriter, Series};
use tempfile::{TempDir, tempdir};

use super::paths::Paths;
use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images");

/// Writes an image below `folder` under `name`, making the folders on the way.
fn put(folder: &Path, name: impl AsRef<Path>) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::copy(format!("{FIXTURES}/small.png"), path).unwrap();
}

fn opened(path: &Path) -> Box<dyn Source> {
    open(path.to_str().unwrap()).unwrap()
}

/// The one-line message and the exit code of a source that cannot be opened.
fn refusal(spec: &str) -> String {
    let Err(error) = open(spec) else {
        panic!("{spec} was opened");
    };
    assert_eq!(error.exit_code(), 2, "{error}");
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn records(source: &dyn Source) -> Vec<(String, Option<String>)> {
    let record = |row| {
        let record = source.record(row);
        assert_eq!(record.row, row);
        (record.path, record.label)
    };
    (0..source.len()).map(record).collect()
}

#[test]
fn a_folder_is_ordered_by_the_bytes_of_its_paths() {
    let folder = tempdir().unwrap();
    for name in ["b/1.PNG", "a/x/2.jpeg", "a-b/3.png", "a/1.TIFF", "B/1.webp"] {
        put(folder.path(), name);
    }
    fs::write(folder.path().join("notes.txt"), "no image").unwrap();
    let source = opened(folder.path());
    let label = |text: &str| Some(text.to_owned());
    let expected = [
        ("B/1.webp", "B"),
        ("a-b/3.png", "a-b"),
        ("a/1.TIFF", "a"),
        ("a/x/2.jpeg", "a"),
        ("b/1.PNG", "b"),
    ];
    assert_eq!(
        records(source.as_ref()),
        expected.map(|(path, class)| (path.to_owned(), label(class)))
    );
    assert_eq!(source.describe()["classes"], 4);
    assert_eq!(source.describe()["images"], 5);
    assert!(!source.is_grey());
    // The content decides, not the name: this is a PNG.
    assert_eq!(source.load(0, &DecodeOptions::default()).unwrap().width(), 17);
    assert_eq!(source.file(0), Some(folder.path().join("B/1.webp")));
}

#[test]
fn an_image_outside_the_class_folders_means_no_classes() {
    let folder = tempdir().unwrap();
    put(folder.path(), "a/1.png");
    put(folder.path(), "2.png");
    let source = opened(folder.path());
    assert_eq!(
        records(source.as_ref()),
        [("2.png".to_owned(), None), ("a/1.png".to_owned(), None)]
    );
    assert_eq!(source.describe()["classes"], serde_json::Value::Null);
}

#[test]
fn a_folder_without_images_says_what_it_looked_for() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    let message = refusal(folder.path().to_str().unwrap());
    assert!(
        message.contains("no image") && message.contains("jpeg"),
        "{message}"
    );
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_into_loops() {
    use std::os::unix::fs::symlink;
    let folder = tempdir().unwrap();
    let other = tempdir().unwrap();
    put(folder.path(), "a/1.png");
    put(other.path(), "2.png");
    symlink(folder.path(), folder.path().join("a/up")).unwrap();
    symlink(other.path(), folder.path().join("b")).unwrap();
    symlink("nowhere.png", folder.path().join("a/gone.png")).unwrap();
    let source = opened(folder.path());
    let paths: Vec<String> = records(source.as_ref())
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert_eq!(paths, ["a/1.png", "a/gone.png", "b/2.png"]);
    let error = source.load(1, &DecodeOptions::default()).unwrap_err();
    assert!(error.path.ends_with("a/gone.png"), "{error}");
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_work_and_stay_apart() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = tempdir().unwrap();
    put(folder.path(), OsStr::from_bytes(b"caf\xe9.png"));
    put(folder.path(), r"caf\xe9.png");
    put(folder.path(), r"d\n.png");
    let source = opened(folder.path());
    let paths: Vec<String> = records(source.as_ref())
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert_eq!(paths, [r"caf\x5cxe9.png", r"caf\xe9.png", r"d\n.png"]);
    for row in 0..3 {
        assert_eq!(source.load(row, &DecodeOptions::default()).unwrap().height(), 20);
    }
}

#[cfg(unix)]
#[test]
fn what_cannot_be_read_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempdir().unwrap();
    put(folder.path(), "a/1.png");
    put(folder.path(), "b/2.png");
    let lock = |name: &str| {
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o000)).unwrap()
    };
    lock("a/1.png");
    if fs::read(folder.path().join("a/1.png")).is_ok() {
        return; // the superuser may read everything
    }
    let source = opened(folder.path());
    let error = source.load(0, &DecodeOptions::default()).unwrap_err().to_string();
    assert!(
        error.contains("a/1.png") && error.contains("ermission"),
        "{error}"
    );
    assert!(source.load(1, &DecodeOptions::default()).is_ok());
    lock("b");
    let Err(error) = open(folder.path().to_str().unwrap()) else {
        panic!("the folder b was read");
    };
    assert!(error.to_string().contains("/b: "), "{error}");
}

#[test]
fn bad_rows_fail_alone_and_say_why() {
    let folder = tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let photo = fs::read(format!("{FIXTURES}/photo.jpg")).unwrap();
    write("0.png", b"");
    write("1.png", b"this is text\n");
    write("2.jpg", &photo[..photo.len() / 2]);
    write("3.jpg", &photo);
    fs::create_dir(folder.path().join("4.png")).unwrap();
    write("list.csv", b"path\n0.png\n1.png\n2.jpg\n3.jpg\n4.png\n5.png\n");
    let source = opened(&folder.path().join("list.csv"));
    let errors = [
        "the file is empty",
        "not a JPEG",
        "cut short",
        "",
        "not a file",
        "o such file",
    ];
    for (row, expected) in errors.into_iter().enumerate() {
        let loaded = source.load(row as u64, &DecodeOptions::default());
        match loaded {
            Ok(_) => assert_eq!(expected, ""),
            Err(error) => {
                assert!(!expected.is_empty() && error.reason.contains(expected), "{error}");
                assert!(error.path.contains(&format!("{row}.")), "{error}");
                assert!(Error::from(error).exit_code() == 2);
            }
        }
    }
}

#[test]
fn a_list_resolves_its_paths_and_keeps_its_columns() {
    let folder = tempdir().unwrap();
    put(folder.path(), "images/1.png");
    let list = folder.path().join("list.csv");
    fs::write(
        &list,
        "depth,label,path,extra\nd/1.npy,007,images/1.png,x\n,,\"images/a,b.png\",y\n",
    )
    .unwrap();
    let source = opened(&list);
    let first = source.record(0);
    assert_eq!(first.label.as_deref(), Some("007"));
    assert_eq!(first.depth, Some(folder.path().join("d/1.npy")));
    assert_eq!(first.mask, None);
    assert_eq!(
        source.record(1),
        Record::new(1, "images/a,b.png".to_owned(), None)
    );
    assert!(source.load(0, &DecodeOptions::default()).is_ok());
    assert_eq!(source.describe()["labelled"], 1);
    assert_eq!(source.describe()["sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn a_list_from_a_spreadsheet_is_read() {
    let folder = tempdir().unwrap();
    let list = folder.path().join("list.CSV");
    fs::write(
        &list,
        "\u{feff}path,label\r\na.png,caf\u{e9}\r\nb.png,\"x \"\"y\"\"\"\r\n",
    )
    .unwrap();
    let source = opened(&list);
    let expected = [("a.png", "caf\u{e9}"), ("b.png", "x \"y\"")];
    assert_eq!(
        records(source.as_ref()),
        expected.map(|(path, label)| (path.to_owned(), Some(label.to_owned())))
    );
    fs::write(&list, b"path,label\na.png,caf\xe9\n").unwrap();
    assert!(refusal(list.to_str().unwrap()).contains("list.CSV"));
}

#[test]
fn a_parquet_list_takes_numbers_as_labels() {
    let folder = tempdir().unwrap();
    put(folder.path(), "1.png");
    let list = folder.path().join("list.parquet");
    let columns = vec![
        Series::new("path".into(), ["1.png", "2.png"]).into(),
        Series::new("label".into(), [Some(7_i64), None]).into(),
    ];
    let mut frame = DataFrame::new(2, columns).unwrap();
    ParquetWriter::new(fs::File::create(&list).unwrap())
        .finish(&mut frame)
        .unwrap();
    let source = opened(&list);
    let expected = [
        ("1.png".to_owned(), Some("7".to_owned())),
        ("2.png".to_owned(), None),
    ];
    assert_eq!(records(source.as_ref()), expected);
}

#[test]
fn a_list_that_is_none_is_refused() {
    let folder = tempdir().unwrap();
    for (name, text, expected) in [
        (
            "no_path.csv",
            "photo,label\na.png,1\n",
            "expected a column `path` or `image` (--path-column names another), found `photo`, `label`",
        ),
        ("no_rows.csv", "path\n", "no rows"),
        ("hole.csv", "path,label\na.png,1\n,2\n", "row 1 has no `path`"),
        ("empty.csv", "", "empty.csv: "),
        ("text.parquet", "path\n", "text.parquet: "),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        let message = refusal(path.to_str().unwrap());
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(name), "{message}");
    }
    assert!(refusal(folder.path().join("none.csv").to_str().unwrap()).contains("none.csv"));
}

#[test]
fn what_is_no_source_is_told_the_forms() {
    let folder = tempdir().unwrap();
    put(folder.path(), "1.png");
    let image = folder.path().join("1.png");
    assert!(refusal(image.to_str().unwrap()).contains("an image, not a source"));
    let file = folder.path().join("notes");
    fs::write(&file, "text").unwrap();
    for spec in [file.to_str().unwrap(), "no/such/folder"] {
        let message = refusal(spec);
        assert!(
            message.contains(spec) && message.contains("idx:FOLDER#train"),
            "{message}"
        );
    }
    assert!(refusal("shards/{000..012}.tar").contains("000.tar: no such shard"));
    assert!(refusal("shards/000.tar.gz").contains("000.tar.gz"));
    assert!(refusal("sample:all").contains("sample:train or sample:test"));
    assert!(refusal("idx:folder").contains("idx:FOLDER#train"));
    assert!(refusal("idx:folder#val").contains("idx:FOLDER#train"));
}

#[test]
fn paths_are_read_one_a_line() {
    let text = format!("{FIXTURES}/rgb.png\n\n{FIXTURES}/a b.png\r\n");
    let source = Paths::read("-", text.as_bytes()).unwrap();
    assert_eq!(source.len(), 2);
    assert_eq!(source.record(1).path, format!("{FIXTURES}/a b.png"));
    assert_eq!(source.load(0, &DecodeOptions::default()).unwrap().width(), 131);
    assert!(source.load(1, &DecodeOptions::default()).is_err());
    assert!(Paths::read("-", &b"\n\n"[..]).is_err());
}

/// An IDX file: magic, sizes, values.
fn idx(kind: u8, sizes: &[u32], values: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, kind, sizes.len() as u8];
    file.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    file.extend(values);
    file
}

/// A folder with a training pair: the images as they are, the labels gzipped.
fn idx_folder(images: &[u8], labels: &[u8]) -> (TempDir, String) {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("train-images-idx3-ubyte"), images).unwrap();
    let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
    zipped.write_all(labels).unwrap();
    fs::write(
        folder.path().join("train-labels-idx1-ubyte.gz"),
        zipped.finish().unwrap(),
    )
    .unwrap();
    let spec = format!("idx:{}#train", folder.path().display());
    (folder, spec)
}

#[test]
fn an_idx_pair_is_read_zipped_or_not() {
    let (_folder, spec) = idx_folder(&idx(8, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]), &idx(8, &[2], &[9, 0]));
    let source = open(&spec).unwrap();
    assert_eq!(source.len(), 2);
    assert!(source.is_grey());
    assert_eq!(source.record(0).label.as_deref(), Some("9"));
    assert_eq!(source.record(1).path, "train-images-idx3-ubyte#1");
    let image = source.load(1, &DecodeOptions::default()).unwrap();
    assert_eq!((image.width(), image.height()), (3, 1));
    assert_eq!(image.data(), [4, 4, 4, 5, 5, 5, 6, 6, 6]);
    let description = source.describe();
    assert_eq!(
        (
            &description["images"],
            &description["width"],
            &description["classes"]
        ),
        (&2.into(), &3.into(), &2.into())
    );
    assert_eq!(description["sha256"].as_str().unwrap().len(), 64);
    let message = refusal(&spec.replace("#train", "#test"));
    assert!(message.contains("t10k-images-idx3-ubyte"), "{message}");
}

#[test]
fn a_damaged_idx_pair_is_refused() {
    let images = idx(8, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
    let labels = idx(8, &[2], &[9, 0]);
    let longer = [images.as_slice(), &[0]].concat();
    for (images, labels, expected) in [
        (&images[..images.len() - 1], &labels[..], "expected 6 bytes"),
        (&images[..7], &labels, "cut short"),
        (&[], &labels, "cut short"),
        (&longer, &labels, "found more"),
        (&idx(13, &[1, 1, 1], &[0; 4]), &labels, "magic"),
        (b"not an idx file", &labels, "magic"),
        (
            &idx(8, &[2, 3], &[0; 6]),
            &labels,
            "expected 3 dimensions, found 2",
        ),
        (&idx(8, &[u32::MAX; 3], &[0; 6]), &labels, "too large"),
        (&idx(8, &[0, 1, 3], &[]), &idx(8, &[0], &[]), "expected images"),
        (
            &images,
            &idx(8, &[3], &[9, 0, 1]),
            "expected a label for each of 2 images, found 3",
        ),
    ] {
        let (_folder, spec) = idx_folder(images, labels);
        let message = refusal(&spec);
        assert!(message.contains(expected), "{message}");
    }
    let (folder, spec) = idx_folder(&images, &labels);
    let path = folder.path().join("train-labels-idx1-ubyte.gz");
    let zipped = fs::read(&path).unwrap();
    fs::write(&path, &zipped[..zipped.len() / 2]).unwrap();
    assert!(refusal(&spec).contains("cut short"));
}

#[test]
fn the_sample_is_balanced_fashion_mnist() {
    for (spec, each, hash) in [
        (
            "sample:train",
            600,
            "d04919469196668f12166573f4fcda126a24fd2c8f6ff98de0861dadc433b74f",
        ),
        (
            "sample:test",
            100,
            "22489d4842e74e85dc8dfa1e618d5c8b760cc913f0c941bf9aebbb0d0b933b9e",
        ),
    ] {
        let source = open(spec).unwrap();
        assert_eq!(source.len(), each * 10);
        let mut counts = [0; 10];
        for (_, label) in records(source.as_ref()) {
            counts[label.unwrap().parse::<usize>().unwrap()] += 1;
        }
        assert_eq!(counts, [each; 10]);
        let image = source.load(0, &DecodeOptions::default()).unwrap();
        assert_eq!((image.width(), image.height()), (28, 28));
        assert_eq!(source.describe()["sha256"], hash);
    }
    // Fashion-MNIST begins with an ankle boot.
    assert_eq!(
        open("sample:train").unwrap().record(0).label.as_deref(),
        Some("9")
    );
}

/// A list as curation writes it: rows that are not kept are no rows, rows of a source without files are read from there.
#[test]
fn a_curated_list_holds_what_is_kept() {
    let folder = tempdir().unwrap();
    put(folder.path(), "a.png");
    put(folder.path(), "b.png");
    let list = folder.path().join("list.csv");
    let written = |text: &str| {
        fs::write(&list, text).unwrap();
        list.to_str().unwrap().to_owned()
    };
    let spec = written("row,path,label,kept\n0,gone.png,x,false\n1,a.png,y,true\n2,b.png,,true\n");
    let source = open(&spec).unwrap();
    let expected = [
        ("a.png".to_owned(), Some("y".to_owned())),
        ("b.png".to_owned(), None),
    ];
    assert_eq!(records(source.as_ref()), expected);
    assert_eq!(source.load(1, &DecodeOptions::default()).unwrap().width(), 17);
    assert!(!source.is_grey());

    let sample = open("sample:test").unwrap();
    let path = |row| sample.record(row).path;
    let rows = format!(
        "7,{},true,sample:test\n3,{},false,sample:test\n9,{},true,sample:test\n",
        path(7),
        path(3),
        path(9)
    );
    let header = "row,path,kept,source\n";
    let source = open(&written(&format!("{header}{rows}"))).unwrap();
    assert_eq!(source.len(), 2);
    for (row, original) in [(0, 7), (1, 9)] {
        let options = DecodeOptions::default();
        assert_eq!(
            source.load(row, &options).unwrap(),
            sample.load(original, &options).unwrap()
        );
        assert_eq!(source.file(row), None);
    }
    assert!(source.is_grey() && source.in_memory());

    assert!(refusal(&written("path,kept\na.png,false\n")).contains("`kept` is false"));
    assert!(refusal(&written("path,kept\na.png,perhaps\n")).contains("perhaps"));
    let wrong_row = format!("{header}8,{},true,sample:test\n", path(7));
    assert!(
        refusal(&written(&wrong_row)).contains("row 0"),
        "another image is there"
    );
    let no_such = format!("{header}1000000,{},true,sample:test\n", path(7));
    assert!(refusal(&written(&no_such)).contains("row 0"));
    assert!(refusal(&written("row,path,source\n1,a.png,http://x\n")).contains("http://x"));
}

/// A grey PNG of 2 x 2 pixels.
pub(super) fn png(value: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = image::GrayImage::from_pixel(2, 2, image::Luma([value]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}
