//! Files of every kind beside Pillow, as `tests/fixtures/make_jpeg_fixtures.py` wrote them, and damage of every kind.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg")
}

/// Names and contents of the fixtures, in the order of their names.
fn files() -> Vec<(String, Vec<u8>)> {
    let expected = expected();
    let names = expected.as_object().unwrap().keys();
    names
        .map(|name| (name.clone(), fs::read(folder().join(name)).unwrap()))
        .collect()
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

/// The form in which `expected.json` holds an image; null for none.
fn summary(image: &Result<RgbImage, DecodeError>) -> Value {
    let Ok(image) = image else {
        return Value::Null;
    };
    let digest: String = Sha256::digest(image.data())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    serde_json::json!([image.width(), image.height(), digest])
}

fn small(side: u32) -> DecodeOptions {
    DecodeOptions {
        jpeg_shorter_side: Some(side),
        ..DecodeOptions::default()
    }
}

#[test]
fn every_kind_of_file_is_pillows_to_the_bit() {
    let expected = expected();
    let (mut read, mut refused, mut wrong) = (0, 0, Vec::new());
    for (name, bytes) in files() {
        let image = decode(&bytes, &DecodeOptions::default());
        if summary(&image) != expected[&name]["full"] {
            wrong.push(format!(
                "{name}: {:?}",
                image.map(|image| (image.width(), image.height()))
            ));
        } else if image.is_ok() {
            read += 1;
        } else {
            refused += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(read > 60 && refused > 15, "{read} and {refused}");
}

#[test]
fn small_decoding_is_pillows_draft_to_the_bit() {
    let expected = expected();
    let (mut smaller, mut wrong) = (0, Vec::new());
    for (name, bytes) in files() {
        for (side, draft) in expected[&name]["drafts"].as_object().unwrap() {
            let image = decode(&bytes, &small(side.parse().unwrap()));
            if summary(&image) != *draft {
                wrong.push(format!("{name} at {side}"));
            }
            smaller += usize::from(draft[0].is_number() && draft[0] != expected[&name]["full"][0]);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(smaller > 100, "{smaller}");
}

#[test]
fn refusals_say_why() {
    let reason = |name: &str| {
        let bytes = fs::read(folder().join(name)).unwrap();
        decode(&bytes, &DecodeOptions::default()).unwrap_err().to_string()
    };
    assert_eq!(
        reason("twelve_bits.jpg"),
        "JPEG image: 12 bits a sample, expected 8"
    );
    assert_eq!(
        reason("two_components.jpg"),
        "JPEG image: 2 components, expected 1, 3 or 4"
    );
    assert_eq!(reason("height_0.jpg"), "JPEG image: a size of 41x0 pixels");
    let whole = fs::read(folder().join("fill_bytes.jpg")).unwrap();
    let cut = decode(&whole[..whole.len() / 2], &DecodeOptions::default()).unwrap_err();
    assert!(cut.to_string().starts_with("JPEG image: cut short"), "{cut}");
}

/// No more than a size above the limit is read: the frame header is enough.
#[test]
fn the_limit_holds_before_anything_is_allocated() {
    let mut bytes = fs::read(folder().join("fill_bytes.jpg")).unwrap();
    let frame = bytes
        .windows(4)
        .position(|four| four == [0xFF, 0xC0, 0, 17])
        .unwrap();
    bytes[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    let error = decode(&bytes, &DecodeOptions::default()).unwrap_err();
    assert!(
        matches!(
            error,
            DecodeError::TooLarge {
                width: 65_500,
                height: 65_500,
                ..
            }
        ),
        "{error}"
    );
}

/// A scan of nothing takes a few bytes; libjpeg reads any number of them.
#[test]
fn scans_without_end_are_refused() {
    let name = files()
        .into_iter()
        .map(|(name, _)| name)
        .find(|name| name.contains("dc_only"));
    let bytes = fs::read(folder().join(name.unwrap())).unwrap();
    let scan = bytes.windows(2).position(|two| two == [0xFF, 0xDA]).unwrap();
    let mut endless = bytes[..scan].to_vec();
    for _ in 0..2000 {
        endless.extend([0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 0, 0]);
    }
    endless.extend([0xFF, 0xD9]);
    let error = decode(&endless, &DecodeOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("scans") || error.contains("missing"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Bytes changed, left out and put in anywhere: an image or one line, never a panic. [`super::super::decode`] would catch one.
    #[test]
    fn no_damage_is_a_panic(
        file in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..6),
        side in prop::option::of(1..12_u32),
    ) {
        let files = files();
        let mut bytes = files[file.index(files.len())].1.clone();
        for (at, how, value) in changes {
            let at = 2 + at.index(bytes.len() - 2);
            match how {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => { bytes.remove(at); }
            }
        }
        let options = DecodeOptions { jpeg_shorter_side: side, max_pixels: 1 << 20, ..DecodeOptions::default() };
        if let Err(error) = decode(&bytes, &options) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}

/// Seconds that this thread has run.
fn thread_seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Prints how many pixels a second are decoded, beside the codec of `image`, which is there for writing.
#[test]
#[ignore = "needs a folder of JPEGs in MACULA_JPEGS"]
fn rate_beside_the_codec_of_image() {
    let folder = std::env::var_os("MACULA_JPEGS").unwrap();
    let files: Vec<Vec<u8>> = fs::read_dir(folder)
        .unwrap()
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect();
    let ours = |bytes: &[u8]| decode(bytes, &DecodeOptions::default()).unwrap().data().len();
    let theirs = |bytes: &[u8]| {
        let image = ::image::load_from_memory_with_format(bytes, ::image::ImageFormat::Jpeg).unwrap();
        image.into_rgb8().as_raw().len()
    };
    for round in 0..3 {
        let rate = |decode: &dyn Fn(&[u8]) -> usize| {
            let start = thread_seconds();
            let samples: usize = files.iter().map(|bytes| decode(bytes)).sum();
            samples as f64 / 3e6 / (thread_seconds() - start)
        };
        println!(
            "round {round}: {:.1} and {:.1} million pixels a second",
            rate(&ours),
            rate(&theirs)
        );
    }
}
