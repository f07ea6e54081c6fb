//! Other people's folders, tables and tars: what they hold beside images, what columns are called, what labels are made of.

use std::fs::File;

use polars::prelude::{DataFrame, NamedFrom as _, ParquetWriter, Series};
use tempfile::{TempDir, tempdir};

use super::tests::png;
use super::*;

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/sources/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn labels(source: &dyn Source) -> Vec<Option<String>> {
    (0..source.len()).map(|row| source.record(row).label).collect()
}

fn paths(source: &dyn Source) -> Vec<String> {
    (0..source.len()).map(|row| source.record(row).path).collect()
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

fn first_value(source: &dyn Source, row: u64) -> u8 {
    let image = source.load(row, &DecodeOptions::default());
    image.unwrap_or_else(|error| panic!("{error}")).data()[0]
}

fn refusal(spec: &str) -> String {
    match open(spec) {
        Ok(_) => panic!("{spec} was opened"),
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "{error}");
            error.to_string()
        }
    }
}

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn spec(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn parquet(&self, name: &str, columns: Vec<Series>) -> String {
        let path = self.spec(name);
        let height = columns[0].len();
        let columns = columns.into_iter().map(Into::into).collect();
        let mut frame = DataFrame::new(height, columns).unwrap();
        ParquetWriter::new(File::create(&path).unwrap())
            .finish(&mut frame)
            .unwrap();
        path
    }
}

#[test]
fn lists_of_any_column_types_are_read() {
    for (name, expected) in [
        ("list_int8_timestamp.parquet", ["0", "1", "2"]),
        ("list_decimal.parquet", ["a", "b", "c"]),
        ("list_categorical.parquet", ["a", "b", "a"]),
    ] {
        let source = open(&fixture(name)).unwrap();
        assert_eq!(labels(source.as_ref()), some(&expected), "{name}");
        let image = source.load(2, &DecodeOptions::default()).unwrap();
        assert_eq!((image.width(), image.height()), (28, 28), "{name}");
    }
    // Asked for by name, whatever it is.
    for (column, expected) in [
        ("decimal", ["1.5", "-7"]),
        ("date", ["2026-01-31", "1969-12-31"]),
        ("bool", ["true", "false"]),
        ("dictionary_int", ["30", "20"]),
    ] {
        let source = open(&fixture(&format!("types.parquet#label={column}"))).unwrap();
        let mut expected = some(&expected);
        expected.push(None);
        assert_eq!(labels(source.as_ref()), expected, "{column}");
        assert_eq!(paths(source.as_ref()), ["0.png", "1.png", "2.png"]);
        assert_eq!(source.describe()["columns"]["label"], column);
    }
    assert!(refusal(&fixture("types.parquet#label=list")).contains("column `list`: expected text"));
    assert!(
        refusal(&fixture("types.parquet#label=no")).contains("expected column `no` (--label-column), found")
    );
}

#[test]
fn images_in_parquet_have_their_labels() {
    let four_each = |names: [&str; 3]| some(&names.map(|name| [name; 4]).concat());
    let source = open(&fixture("parquet_images_labels_column.parquet")).unwrap();
    assert_eq!(labels(source.as_ref()), four_each(["0", "1", "2"]));
    let source = open(&fixture("parquet_images_classlabel.parquet")).unwrap();
    let names: Vec<Option<String>> = labels(source.as_ref());
    assert_eq!(names.len(), 12);
    assert!(
        names.iter().flatten().all(|name| name.parse::<i64>().is_err()),
        "{names:?}"
    );
    // CIFAR-100 has two ClassLabels; the fine one is meant, another one is had by name.
    let cifar = open(&fixture("classes.parquet")).unwrap();
    assert_eq!(labels(cifar.as_ref()), some(&["cup", "apple", "bear"]));
    assert_eq!(first_value(cifar.as_ref(), 2), 3);
    let coarse = open(&fixture("classes.parquet#label=coarse_label")).unwrap();
    assert_eq!(labels(coarse.as_ref()), some(&["y", "x", "x"]));
    let none = open(&fixture("classes.parquet#label=none")).unwrap();
    assert_eq!(labels(none.as_ref()), [None, None, None]);
    // The only ClassLabel is the label, whatever it is called; -1 stands for none.
    let digits = open(&fixture("digits.parquet")).unwrap();
    let expected = [Some("one".to_owned()), None, Some("zero".to_owned())];
    assert_eq!(labels(digits.as_ref()), expected);
    let seen = open(&fixture("digits.parquet#label=seen")).unwrap();
    assert_eq!(labels(seen.as_ref()), some(&["5", "6", "7"]));
}

#[test]
fn images_that_lie_beside_the_table_are_read() {
    let source = open(&fixture("elsewhere.parquet")).unwrap();
    assert_eq!(source.len(), 4);
    let image = source.load(0, &DecodeOptions::default()).unwrap();
    assert_eq!(image.width(), 28);
    assert_eq!(first_value(source.as_ref(), 1), 9);
    for row in [2, 3] {
        let error = source.load(row, &DecodeOptions::default()).unwrap_err();
        assert!(
            error.reason.contains("column `image` holds no image here"),
            "{error}"
        );
    }
}

#[test]
fn columns_are_found_by_usual_names_or_named() {
    let place = Place::new();
    place.put("a.png", png(7));
    for header in [
        "file_name,labels",
        "Filename;Class",
        "img\tcategory",
        "image_path,target",
        "Image Path,fine_label",
    ] {
        let separator = [',', ';', '\t']
            .into_iter()
            .find(|s| header.contains(*s))
            .unwrap();
        let spec = place.put("list.csv", format!("{header}\na.png{separator}cat\n"));
        let source = open(&spec).unwrap();
        assert_eq!(labels(source.as_ref()), some(&["cat"]), "{header}");
        assert_eq!(first_value(source.as_ref(), 0), 7, "{header}");
    }
    // A documented name goes before usual ones, and a usual one before a rarer one.
    let spec = place.put("list.csv", "file,path,class,label,class_id\nb.png,a.png,x,y,3\n");
    let source = open(&spec).unwrap();
    assert_eq!(
        (paths(source.as_ref()), labels(source.as_ref())),
        (vec!["a.png".to_owned()], some(&["y"]))
    );
    let spec = place.put("list.csv", "path,class_id,class\na.png,3,x\n");
    assert_eq!(labels(open(&spec).unwrap().as_ref()), some(&["x"]));

    let spec = place.put("list.csv", "path,class,category\na.png,x,y\n");
    let message = refusal(&spec);
    assert!(
        message.contains("found `class`, `category`: say which with --label-column"),
        "{message}"
    );
    for (column, expected) in [("class", "x"), ("category", "y")] {
        let source = open(&format!("{spec}#label={column}")).unwrap();
        assert_eq!(labels(source.as_ref()), some(&[expected]));
    }
    assert_eq!(
        labels(open(&format!("{spec}#label=none")).unwrap().as_ref()),
        [None]
    );
    let message = refusal(&fixture("two_labels.parquet"));
    assert!(message.contains("--label-column"), "{message}");
    let spec = place.put("list.csv", "file_name,image_path\na.png,b.png\n");
    assert!(refusal(&spec).contains("--path-column"));
    let source = open(&format!("{spec}#path=file_name")).unwrap();
    assert_eq!(first_value(source.as_ref(), 0), 7);
    assert!(refusal(&format!("{spec}#image=file_name")).contains("--image-column"));
}

#[test]
fn images_are_found_in_columns_of_other_names() {
    let place = Place::new();
    let images = |name: &str, values: [u8; 2]| Series::new(name.into(), values.map(png).to_vec());
    let spec = place.parquet("only.parquet", vec![images("photo", [1, 2])]);
    assert_eq!(first_value(open(&spec).unwrap().as_ref(), 1), 2);
    let both = vec![images("png", [1, 2]), images("thumb", [3, 4])];
    let spec = place.parquet("both.parquet", both);
    assert_eq!(first_value(open(&spec).unwrap().as_ref(), 0), 1);
    let thumb = open(&format!("{spec}#image=thumb")).unwrap();
    assert_eq!(
        (first_value(thumb.as_ref(), 0), thumb.describe()["column"].clone()),
        (3, "thumb".into())
    );
    let several = vec![images("png", [1, 2]), images("jpg", [3, 4])];
    assert!(refusal(&place.parquet("several.parquet", several)).contains("--image-column"));
    // Bytes beside paths are something else.
    let hashes = Series::new("hash".into(), vec![vec![1_u8, 2]]);
    let listed = vec![Series::new("path".into(), ["a.png"]), hashes];
    let list = open(&place.parquet("hashes.parquet", listed)).unwrap();
    assert_eq!(list.describe()["kind"], "list");
}

#[test]
fn what_is_hidden_or_the_systems_is_neither_class_nor_image() {
    let place = Place::new();
    for name in [
        "cat/1.png",
        "cat/._1.png",
        "cat/.ipynb_checkpoints/1-checkpoint.png",
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
        "dog/2.png",
        "dog/Thumbs.db",
        "dog/desktop.ini",
        ".ipynb_checkpoints/3.png",
        ".git/4.png",
        "__MACOSX/cat/._1.png",
        "@eaDir/5.png",
        ".stray.png",
    ] {
        place.put(name, png(3));
    }
    let source = open(place.0.path().to_str().unwrap()).unwrap();
    assert_eq!(paths(source.as_ref()), ["cat/1.png", "dog/2.png"]);
    assert_eq!(labels(source.as_ref()), some(&["cat", "dog"]));
}

#[test]
fn one_stray_image_is_the_reason_for_no_labels() {
    let place = Place::new();
    for name in ["a/1.png", "b/2.png", "stray.png"] {
        place.put(name, png(3));
    }
    let source = open(place.0.path().to_str().unwrap()).unwrap();
    let reason = source.describe()["no_labels"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("1 of 3 images lies beside") && reason.contains("stray.png"),
        "{reason}"
    );
    fs::remove_file(place.0.path().join("stray.png")).unwrap();
    let source = open(place.0.path().to_str().unwrap()).unwrap();
    assert!(source.describe().get("no_labels").is_none());
}

#[test]
fn kinds_are_told_by_content_where_names_do_not_tell() {
    let place = Place::new();
    for name in ["a.jfif", "b.JPE", "c", "d.jpg_large", "e.pgm", "f.apng"] {
        place.put(&format!("images/{name}"), png(5));
    }
    place.put("images/g.ppm", b"P6\n1 1\n255\nabc");
    place.put("images/h.unknown", b"P6\n1 1\n255\nabc");
    for name in ["text", "raw.nef", "notes.md", "BM"] {
        place.put(&format!("images/{name}"), b"BM, II*\0 or not, these are words");
    }
    let source = open(&place.spec("images")).unwrap();
    let expected = [
        "a.jfif",
        "b.JPE",
        "c",
        "d.jpg_large",
        "e.pgm",
        "f.apng",
        "g.ppm",
        "h.unknown",
    ];
    assert_eq!(paths(source.as_ref()), expected);
    assert_eq!(
        (first_value(source.as_ref(), 2), first_value(source.as_ref(), 7)),
        (5, b'a')
    );
    // A Parquet file called CSV, and a table and a tar without their endings.
    let whole = fs::read(fixture("list_decimal.parquet")).unwrap();
    for name in ["list.csv", "list", "list.bin"] {
        let source = open(&place.put(name, &whole)).unwrap();
        assert_eq!(labels(source.as_ref()), some(&["a", "b", "c"]), "{name}");
    }
    let tar = fs::read(fixture("tar_names_with_points.tar")).unwrap();
    for name in ["points", "points.tar.gz", "points.TAR"] {
        assert_eq!(open(&place.put(name, &tar)).unwrap().len(), 3, "{name}");
    }
    for (name, magic, undo) in [
        ("a.tar", &b"\x1f\x8b\x08\0"[..], "gunzip"),
        ("a.tgz", b"\x1f\x8b\x08\0", "gunzip"),
        ("b.tar", b"\x28\xb5\x2f\xfd", "unzstd"),
        ("c.tar.xz", b"\xfd7zXZ\0", "unxz"),
        ("d", b"\x1f\x8b\x08\0", "gunzip"),
    ] {
        let message = refusal(&place.put(name, magic));
        assert!(message.contains(undo) && message.contains(name), "{message}");
    }
}

#[test]
fn a_folder_of_tables_or_tars_says_what_to_write() {
    let said = |names: &[&str]| {
        let place = Place::new();
        for name in names {
            place.put(name, "x");
        }
        refusal(place.0.path().to_str().unwrap())
    };
    let message = said(&[
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-0.parquet",
    ]);
    assert!(
        message.contains("3 Parquet files")
            && message.contains("data/test-*.parquet' or '")
            && message.ends_with("data/train-*.parquet'"),
        "{message}"
    );
    assert!(said(&["s-00.tar", "s-01.tar"]).contains("/*.tar'"));
    assert!(said(&["metadata.csv"]).contains("metadata.csv'"));
    assert!(said(&["train-images-idx3-ubyte.gz"]).contains("idx:"));
    assert!(said(&["images.zip"]).contains("unpack"));
    assert!(
        said(&["a.heic", ".hidden"])
            .contains("1 hidden (first: .hidden), 1 of kinds that are not read (.heic")
    );
}

/// A tar of regular files, and whatever `more` adds.
fn tar(path: &Path, files: &[(&str, &[u8])], more: impl FnOnce(&mut tar::Builder<File>)) {
    let mut builder = tar::Builder::new(File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    more(&mut builder);
    builder.finish().unwrap();
}

fn link(builder: &mut tar::Builder<File>, kind: tar::EntryType, name: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    builder.append_link(&mut header, name, target).unwrap();
}

#[test]
fn links_in_a_tar_are_what_they_lead_to() {
    let source = open(&fixture("tar_links.tar")).unwrap();
    let names: Vec<String> = paths(source.as_ref())
        .iter()
        .map(|path| path[path.len() - 5..].to_owned())
        .collect();
    assert_eq!(names, ["a.png", "b.png", "c.png"]);
    let options = DecodeOptions::default();
    assert_eq!(source.load(0, &options), source.load(1, &options));
    assert_eq!(source.load(0, &options), source.load(2, &options));

    use tar::EntryType::{Link, Symlink};
    let place = Place::new();
    let path = place.0.path().join("l.tar");
    tar(&path, &[("d/a.png", &png(1)), ("d/a.cls", b"cat")], |builder| {
        link(builder, Symlink, "d/b.png", "./a.png");
        link(builder, Symlink, "e/c.png", "../d/b.png");
        link(builder, Link, "e/d.png", "./d/a.png");
        link(builder, Symlink, "e/gone.png", "../../elsewhere.png");
        link(builder, Symlink, "e/loop.png", "loop.png");
        link(builder, Symlink, "e/later.png", "z.png");
        let mut header = tar::Header::new_gnu();
        let bytes = png(9);
        header.set_size(bytes.len() as u64);
        builder
            .append_data(&mut header, "e/z.png", bytes.as_slice())
            .unwrap();
    });
    let source = open(path.to_str().unwrap()).unwrap();
    let values: Vec<u8> = (0..source.len())
        .map(|row| first_value(source.as_ref(), row))
        .collect();
    assert_eq!(values, [1, 1, 1, 1, 9, 9]);
    assert_eq!(source.record(0).label.as_deref(), Some("cat"));
}

#[test]
fn names_with_points_are_images_of_their_own() {
    let source = open(&fixture("tar_names_with_points.tar")).unwrap();
    assert_eq!(source.len(), 3);
    assert_eq!(labels(source.as_ref())[2].as_deref().map(str::len), Some(1));

    let place = Place::new();
    let path = place.0.path().join("p.tar");
    let files: [(&str, &[u8]); 10] = [
        ("IMG.2020.01.01.png", &png(1)),
        ("IMG.2020.01.01.cls", b"new year"),
        ("IMG.2020.01.02.png", &png(2)),
        ("IMG.cls", b"day"),
        ("s.mask.png", &png(3)),
        ("s.png", &png(4)),
        ("s.cls", b"whole"),
        ("t.jpg", &png(5)),
        ("t.png", &png(6)),
        ("u.txt", b"no image"),
    ];
    tar(&path, &files, |_| ());
    let source = open(path.to_str().unwrap()).unwrap();
    let values: Vec<u8> = (0..source.len())
        .map(|row| first_value(source.as_ref(), row))
        .collect();
    assert_eq!(values, [1, 2, 4, 5]);
    let mut expected = some(&["new year", "day", "whole"]);
    expected.push(None);
    assert_eq!(labels(source.as_ref()), expected);
}

#[test]
fn a_tar_behind_a_tar_is_read_and_what_is_hidden_is_not() {
    let place = Place::new();
    let (one, two) = (place.0.path().join("one.tar"), place.0.path().join("two.tar"));
    let long = format!("{}/{}.png", "folder".repeat(30), "name".repeat(40));
    tar(
        &one,
        &[
            ("./a.png", &png(1)),
            ("./._a.png", b"AppleDouble"),
            ("__MACOSX/._b.png", b"x"),
        ],
        |_| (),
    );
    tar(
        &two,
        &[(&long, &png(2)), (".DS_Store", b"x"), ("inner.tar", b"x")],
        |_| (),
    );
    let both = [fs::read(&one).unwrap(), fs::read(&two).unwrap()].concat();
    let source = open(&place.put("both.tar", both)).unwrap();
    assert_eq!(source.len(), 2);
    assert_eq!(
        (first_value(source.as_ref(), 0), first_value(source.as_ref(), 1)),
        (1, 2)
    );
    assert!(paths(source.as_ref())[1].ends_with(&long));
    // What stands behind the end of a tar need not be one.
    let mut trailing = fs::read(&one).unwrap();
    trailing.extend([7; 2048]);
    assert_eq!(open(&place.put("trailing.tar", trailing)).unwrap().len(), 1);
    // As a shell does, `*` passes over what is hidden.
    place.put("shards/._s-0.tar", b"AppleDouble");
    fs::copy(&one, place.0.path().join("shards/s-0.tar")).unwrap();
    assert_eq!(open(&place.spec("shards/*.tar")).unwrap().describe()["shards"], 1);
}

/// What a list says where its image is, it can be anywhere that has rows and no files.
#[test]
fn a_list_names_rows_of_tars_and_tables() {
    let place = Place::new();
    let path = place.0.path().join("s.tar");
    tar(&path, &[("a.png", &png(1)), ("b.png", &png(2))], |_| ());
    let shard = path.to_str().unwrap();
    let rows = format!("path,row,source\n{shard}/b.png,1,{shard}\n");
    let source = open(&place.put("list.csv", rows)).unwrap();
    assert_eq!(first_value(source.as_ref(), 0), 2);
    let images = Series::new("img".into(), vec![png(3), png(4)]);
    let table = place.parquet("t.parquet", vec![images]);
    let rows = format!("path,row,source\n{table}#1,1,{table}#image=img\n");
    let source = open(&place.put("list.csv", rows)).unwrap();
    assert_eq!(first_value(source.as_ref(), 0), 4);
    let list = place.spec("list.csv");
    let itself = place.put("list.csv", format!("path,row,source\na.png,0,{list}\n"));
    assert!(refusal(&itself).contains("column `source`"));
}
