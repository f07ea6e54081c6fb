//! A folder with images that cannot be read: each policy does what the contract says, and rows stay aligned.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use macula::extract::FeatureFolder;

use crate::harness::{Workspace, fixture, names};

/// Eight files in the order of their names: four good ones (a 1x1 image and a name that is not UTF-8 among them) and
/// four bad ones. As root every file is readable, so the unreadable one is only there for other users.
fn folder(w: &Workspace) -> (usize, usize) {
    let photo = fs::read(fixture("images/photo.jpg")).expect("a fixture");
    w.write("images/a-good.jpg", &photo);
    w.write("images/b-truncated.jpg", &photo[..photo.len() / 3]);
    w.write("images/c-text.png", "this is no image");
    w.write("images/d-empty.png", "");
    w.png("images/e-dot.png", 1, 1, 77);
    w.write("images/f-bomb.png", bomb());
    fs::copy(
        w.png("images/g.png", 9, 9, 50),
        w.path("images")
            .join(std::ffi::OsStr::from_bytes(b"g-\xff\xfe.png")),
    )
    .expect("copied");
    let unreadable = w.png("images/h-locked.png", 9, 9, 90);
    let mut permissions = fs::metadata(&unreadable).expect("there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o000);
    fs::set_permissions(&unreadable, permissions).expect("set");
    let locked = fs::read(&unreadable).is_err();
    if locked { (4, 5) } else { (5, 4) }
}

/// A PNG whose header claims 20,000 x 20,000 pixels.
fn bomb() -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&body);
        png.extend(crc32(&body).to_be_bytes());
    };
    let side = 20_000u32.to_be_bytes();
    chunk(b"IHDR", &[&side[..], &side[..], &[8, 2, 0, 0, 0]].concat());
    chunk(b"IDAT", &[0x78, 0x9c, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01]);
    chunk(b"IEND", &[]);
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (!(crc & 1)).wrapping_add(1))
        })
    })
}

const EXTRACT: &str = "extract --model pixels --data images --out f --resize 8 --crop 8";

#[test]
fn fail_stops_and_names_the_first_bad_file() {
    let w = Workspace::new();
    folder(&w);
    w.fails(1, EXTRACT, &["b-truncated.jpg"]);
    assert_eq!(names(&w.path("")), ["images"], "nothing half-written");
}

#[test]
fn skip_leaves_bad_rows_out_and_lists_them() {
    let w = Workspace::new();
    let (good, bad) = folder(&w);
    w.succeeds(&format!("{EXTRACT} --on-error skip"));
    let read = FeatureFolder::open(&w.path("f"))
        .expect("complete")
        .read("pixels")
        .expect("read");
    assert_eq!(read.rows.len(), good);
    assert_eq!(read.matrix.view().rows(), good);
    let errors = fs::read_to_string(w.path("f/errors.csv")).expect("errors");
    assert_eq!(errors.lines().count(), 1 + bad, "{errors}");
    for (row, name) in [
        (1, "b-truncated.jpg"),
        (2, "c-text.png"),
        (3, "d-empty.png"),
        (5, "f-bomb.png"),
    ] {
        let line = errors.lines().find(|line| line.contains(name)).expect(name);
        assert!(line.starts_with(&format!("{row},")), "{line}");
    }
}

#[test]
fn null_keeps_every_row_in_its_place() {
    let w = Workspace::new();
    let (good, bad) = folder(&w);
    w.succeeds(&format!("{EXTRACT} --on-error null"));
    let folder = FeatureFolder::open(&w.path("f")).expect("complete");
    let read = folder.read("pixels").expect("read");
    assert_eq!((read.rows.len(), read.n_null as usize), (good, bad));
    assert_eq!(
        (folder.n_written() as usize, folder.n_failed() as usize),
        (good, bad)
    );
    // Rows are the files in the order of their names, bad ones counted; each holds what its image gives alone.
    let all = names(&w.path("images"));
    let good_files: Vec<(u64, &String)> = (0..).zip(&all).filter(|(_, name)| is_good(name, good)).collect();
    assert_eq!(good_files.len(), good, "{all:?}");
    for (index, (row, name)) in good_files.iter().enumerate() {
        assert_eq!(read.rows[index], *row, "{name}");
        // One name is not UTF-8: it is named by its row alone.
        if !name.contains('\u{fffd}') {
            assert!(
                read.paths[index].ends_with(name.as_str()),
                "{name}: {}",
                read.paths[index]
            );
        }
        let alone = format!("alone{row}");
        w.write(
            &format!("{alone}/x{row}"),
            fs::read(images_entry(&w.path("images"), *row as usize)).expect("readable"),
        );
        w.succeeds(&format!(
            "extract --model pixels --data {alone} --out {alone}-f --resize 8 --crop 8"
        ));
        let single = FeatureFolder::open(&w.path(&format!("{alone}-f")))
            .expect("complete")
            .read("pixels")
            .expect("read");
        assert_eq!(
            single.matrix.view().row(0),
            read.matrix.view().row(index),
            "{name}"
        );
    }
    // One of them by its values: of the 1x1 image every pixel is its only one.
    let dot = read
        .paths
        .iter()
        .position(|path| path.ends_with("e-dot.png"))
        .expect("its row");
    let expected = [77.0 / 255.0, 38.0 / 255.0, 178.0 / 255.0];
    for (channel, value) in read.matrix.view().row(dot).chunks_exact(64).zip(expected) {
        assert!(channel.iter().all(|v| (v - value).abs() < 1e-6), "{channel:?}");
    }
}

/// Whether a file of [`folder`] is readable, of `good` that are.
fn is_good(name: &str, good: usize) -> bool {
    let letter = name.as_bytes()[0];
    b"aeg".contains(&letter) || (letter == b'h' && good == 5)
}

/// A file by its place among the sorted names, which need not be UTF-8.
fn images_entry(folder: &std::path::Path, place: usize) -> std::path::PathBuf {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("listed")
        .map(|entry| entry.expect("listed").path())
        .collect();
    paths.sort();
    paths.swap_remove(place)
}

#[test]
fn the_npy_layout_holds_the_rows_that_have_features() {
    let w = Workspace::new();
    let (good, _) = folder(&w);
    w.succeeds(&format!("{EXTRACT} --on-error null --layout npy"));
    let read = FeatureFolder::open(&w.path("f"))
        .expect("complete")
        .read("pixels")
        .expect("read");
    let npy = fs::read(w.path("f/img_emb/img_emb_0.npy")).expect("written");
    let values: Vec<f32> = npy[128..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
        .collect();
    assert_eq!(values, read.matrix.into_data());
    assert_eq!(values.len(), good * 3 * 64);
    assert_eq!(names(&w.path("f/metadata")), ["metadata_0.parquet"]);
    w.succeeds(&format!("{EXTRACT} --on-error skip --force"));
    assert_eq!(
        names(&w.path("f")),
        ["_SUCCESS", "errors.csv", "meta.json", "part-00000.parquet"]
    );
}

#[test]
fn halves_are_the_floats_rounded_in_every_layout() {
    let w = Workspace::new();
    let (good, _) = folder(&w);
    let read = || {
        let features = FeatureFolder::open(&w.path("f"))
            .expect("complete")
            .read("pixels");
        features.expect("read").matrix.into_data()
    };
    let half = |value: &f32| half::f16::from_f32(*value);
    w.succeeds(&format!("{EXTRACT} --on-error null --batch auto"));
    let floats = read();
    let rounded: Vec<f32> = floats.iter().map(|value| half(value).to_f32()).collect();
    assert!(rounded != floats && floats.len() == good * 3 * 64);
    w.succeeds(&format!(
        "{EXTRACT} --on-error null --dtype f16 --layout npy --force"
    ));
    assert_eq!(read(), rounded);
    let npy = fs::read(w.path("f/img_emb/img_emb_0.npy")).expect("written");
    let bytes: Vec<u8> = floats
        .iter()
        .flat_map(|value| half(value).to_le_bytes())
        .collect();
    assert_eq!(npy[128..], bytes);
    assert!(npy[10..].starts_with(b"{'descr': '<f2'"));

    for (dtype, expected) in [
        ("f16", bytes),
        ("f32", floats.iter().flat_map(|v| v.to_le_bytes()).collect()),
    ] {
        w.succeeds(&format!(
            "{EXTRACT} --on-error null --dtype {dtype} --layout safetensors --force"
        ));
        let file = fs::read(w.path("f/safetensors/part-00000.safetensors")).expect("written");
        let tensors = safetensors::SafeTensors::deserialize(&file).expect("whole");
        let pixels = tensors.tensor("pixels").expect("there");
        assert_eq!(pixels.shape(), [good, 3, 8, 8]);
        assert!(pixels.data() == expected, "{dtype}: other values");
        assert_eq!(tensors.tensor("row").expect("there").shape(), [good]);
    }
    w.fails(
        2,
        &format!("{EXTRACT} --on-error null --resume --layout safetensors --dtype f16"),
        &["f/meta.json: ", "dtype", "f32"],
    );
    w.succeeds(&format!("{EXTRACT} --on-error skip --force"));
    assert_eq!(
        names(&w.path("f")),
        ["_SUCCESS", "errors.csv", "meta.json", "part-00000.parquet"]
    );
    w.fails(2, &format!("{EXTRACT} --batch 0 --force"), &["--batch", "`0`"]);
}
