use std::path::Path;

use tempfile::tempdir;

use super::*;
use crate::data::source::paths::Paths;
use crate::data::source::tests::png;
use crate::data::source::{DecodeOptions, RgbImage, RowError, open};

fn identity_of(spec: &str) -> SourceIdentity {
    SourceIdentity::from_source(open(spec).unwrap().as_ref())
}

fn put(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Names of the fields in which two identities differ.
fn differing(a: &SourceIdentity, b: &SourceIdentity) -> Vec<String> {
    let (a, b) = (serde_json::to_value(a).unwrap(), serde_json::to_value(b).unwrap());
    let fields = a.as_object().unwrap().iter();
    fields
        .filter(|(field, value)| b[field.as_str()] != **value)
        .map(|(field, _)| field.clone())
        .collect()
}

#[test]
fn a_folder_is_one_however_it_is_spelled_and_wherever_it_lies() {
    let place = tempdir().unwrap();
    for name in ["photos/a/1.png", "photos/b/2.png", "copy/a/1.png", "copy/b/2.png"] {
        put(place.path(), name, png(3));
    }
    let root = place.path().to_str().unwrap();
    let first = identity_of(&format!("{root}/photos"));
    for other in ["photos/", "./photos", "photos/../photos", "copy"] {
        assert_eq!(identity_of(&format!("{root}/{other}")), first, "{other}");
    }
    assert_eq!((first.images, first.bytes), (2, 2 * png(3).len() as u64));
}

#[test]
fn another_name_size_label_order_or_content_is_another_source() {
    let place = tempdir().unwrap();
    let build = |name: &str, files: &[(&str, Vec<u8>)]| {
        for (file, bytes) in files {
            put(&place.path().join(name), file, bytes);
        }
        identity_of(place.path().join(name).to_str().unwrap())
    };
    let (one, two) = (png(10), png(20));
    assert_eq!(one.len(), two.len(), "what follows is of equal sizes");
    let base = build("base", &[("a/1.png", one.clone()), ("b/2.png", two.clone())]);
    let renamed = build("renamed", &[("a/1.png", one.clone()), ("c/2.png", two.clone())]);
    assert_eq!(differing(&base, &renamed), ["labels", "names"]);
    let replaced = build("replaced", &[("a/1.png", two.clone()), ("b/2.png", one.clone())]);
    assert_eq!(differing(&base, &replaced), ["samples"]);
    let longer = build(
        "longer",
        &[
            ("a/1.png", [one.clone(), vec![0]].concat()),
            ("b/2.png", two.clone()),
        ],
    );
    assert_eq!(differing(&base, &longer), ["bytes", "samples", "sizes"]);
    let more = build(
        "more",
        &[("a/1.png", one), ("b/2.png", two.clone()), ("b/3.png", two)],
    );
    assert!(differing(&base, &more).contains(&"images".to_owned()));
}

#[test]
fn a_list_follows_its_table() {
    let place = tempdir().unwrap();
    put(place.path(), "1.png", png(1));
    put(place.path(), "2.png", png(2));
    let list = |name: &str, text: &str| {
        put(place.path(), name, text);
        identity_of(place.path().join(name).to_str().unwrap())
    };
    let base = list("one.csv", "path,label\n1.png,cat\n2.png,dog\n");
    assert_eq!(
        list("two.csv", "label,path,more\ncat,1.png,x\ndog,2.png,y\n"),
        base
    );
    let label = list("three.csv", "path,label\n1.png,cat\n2.png,Dog\n");
    assert_eq!(differing(&base, &label), ["labels"]);
    assert_eq!(base.without_labels(), label.without_labels());
    let order = list("four.csv", "path,label\n2.png,cat\n1.png,dog\n");
    assert!(differing(&base, &order).contains(&"names".to_owned()));
    // A file that is not there is a row's trouble, and another source once it is.
    let missing = list("five.csv", "path,label\n1.png,cat\n3.png,dog\n");
    put(place.path(), "3.png", png(3));
    let found = identity_of(place.path().join("five.csv").to_str().unwrap());
    assert!(differing(&missing, &found).contains(&"sizes".to_owned()));
}

#[test]
fn masks_are_part_of_a_source() {
    let place = tempdir().unwrap();
    put(place.path(), "1.png", png(1));
    put(place.path(), "mask.png", png(7));
    put(place.path(), "list.csv", "path,mask\n1.png,mask.png\n");
    let spec = place.path().join("list.csv");
    let before = identity_of(spec.to_str().unwrap());
    put(place.path(), "mask.png", png(8));
    assert_eq!(
        differing(&before, &identity_of(spec.to_str().unwrap())),
        ["samples"]
    );
}

#[test]
fn a_tar_is_told_by_its_members() {
    let place = tempdir().unwrap();
    let build = |name: &str, members: &[(&str, Vec<u8>)]| {
        let mut builder = tar::Builder::new(File::create(place.path().join(name)).unwrap());
        for (member, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, member, bytes.as_slice())
                .unwrap();
        }
        builder.finish().unwrap();
        identity_of(place.path().join(name).to_str().unwrap())
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let base = build("one.tar", &[("a.png", png(1)), ("a.cls", text("3"))]);
    assert_eq!(
        build("two.tar", &[("a.png", png(1)), ("a.cls", text("3"))]),
        base,
        "renamed"
    );
    let label = build("three.tar", &[("a.png", png(1)), ("a.cls", text("4"))]);
    assert_eq!(differing(&base, &label), ["labels"]);
    let content = build("four.tar", &[("a.png", png(2)), ("a.cls", text("3"))]);
    assert_eq!(differing(&base, &content), ["samples"]);
}

#[test]
fn images_in_memory_are_told_by_every_byte() {
    let (train, test) = (identity_of("sample:train"), identity_of("sample:test"));
    assert_eq!((train.images, train.bytes), (6000, 6000 * 784));
    assert_eq!(identity_of("sample:train"), train);
    let fields = differing(&train, &test);
    assert_eq!(fields, ["bytes", "images", "labels", "names", "samples", "sizes"]);
}

#[test]
fn paths_on_standard_input_are_relative_to_the_folder_that_all_lie_in() {
    let place = tempdir().unwrap();
    for name in ["x/a/1.png", "x/b/2.png", "y/a/1.png", "y/b/2.png"] {
        put(place.path(), name, png(4));
    }
    let read = |lines: &[&str]| {
        let root = place.path().display();
        let text: String = lines.iter().map(|line| format!("{root}/{line}\n")).collect();
        SourceIdentity::from_source(&Paths::read("-", text.as_bytes()).unwrap())
    };
    let base = read(&["x/a/1.png", "x/b/2.png"]);
    assert_eq!(read(&["./x/a/1.png", "x//b/2.png"]), base);
    assert_eq!(read(&["y/a/1.png", "y/b/2.png"]), base);
    assert_eq!(differing(&base, &read(&["x/b/2.png", "x/a/1.png"])), ["names"]);
    assert!(read(&["x/a/1.png"]).bytes > 0);
}

/// A file of many images.
struct Many {
    path: PathBuf,
    rows: u64,
}

impl Source for Many {
    fn len(&self) -> u64 {
        self.rows
    }

    fn record(&self, row: u64) -> Record {
        Record::new(row, format!("{}#{row}", self.path.display()), None)
    }

    fn load(&self, _: u64, _: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        unreachable!("an identity decodes nothing")
    }

    fn stamp(&self, row: u64) -> Stamp<'_> {
        Stamp {
            name: row.to_string(),
            bytes: Bytes::Within(&self.path),
        }
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

#[test]
fn a_file_of_many_images_is_looked_at_from_end_to_end() {
    let place = tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        put(place.path(), name, bytes);
        SourceIdentity::from_source(&Many {
            path: place.path().join(name),
            rows: 3,
        })
    };
    let mut bytes = vec![7; 3 << 20];
    let base = write("one", &bytes);
    assert_eq!(base.bytes, 3 << 20);
    assert_eq!(write("two", &bytes), base);
    for place in [0, bytes.len() - 1] {
        bytes[place] = 8;
        assert_eq!(differing(&base, &write("three", &bytes)), ["samples"]);
        bytes[place] = 7;
    }
    assert_eq!(differing(&base, &write("four", &bytes[1..])), ["bytes", "sizes"]);
}

#[test]
fn many_rows_are_sampled_from_the_first_to_the_last() {
    let place = tempdir().unwrap();
    for row in 0..600 {
        put(place.path(), &format!("{row:03}.png"), png(1));
    }
    let spec = place.path().to_str().unwrap().to_owned();
    let before = identity_of(&spec);
    for last in ["000.png", "599.png"] {
        put(place.path(), last, png(2));
        assert_eq!(differing(&before, &identity_of(&spec)), ["samples"], "{last}");
        put(place.path(), last, png(1));
    }
    assert_eq!(identity_of(&spec), before);
}
