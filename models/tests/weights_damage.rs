//! Damaged files of every format: an error or the right kind of answer, never a panic.
#![allow(clippy::unwrap_used)]

mod weights_support;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::Tensor;
use macula_models::weights::{load, read_tensors};
use proptest::prelude::*;
use proptest::test_runner::{FailurePersistence, FileFailurePersistence};
use weights_support::*;
use zip::CompressionMethod;

/// Opens, reads every tensor, and loads; what comes of it is up to the damage.
fn exercise(path: &Path) {
    if let Ok(mut raw) = read_tensors(path) {
        let names: Vec<String> = raw.tensors.keys().cloned().collect();
        for name in names {
            let _: Option<Tensor> = raw.read(&name).ok();
        }
    }
    if let Ok(checkpoint) = load(path, &three_heads()) {
        assert_eq!(checkpoint.backbone.len(), checkpoint.config.parameters().len());
    }
}

fn exercise_bytes(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w");
    fs::write(&path, bytes).unwrap();
    exercise(&path);
}

const FILES: usize = 7;

/// A safetensors file, a zip and a legacy file of the same network; whole modules, values of many kinds beside weights and
/// tensors that cannot be rebuilt, in both formats.
fn files() -> &'static [Vec<u8>; FILES] {
    static FILES: OnceLock<[Vec<u8>; self::FILES]> = OnceLock::new();
    FILES.get_or_init(|| {
        let backbone = load_fixture("official_reg4.pth").backbone;
        let object = Object::Dict(Object::tensors("", &backbone));
        [
            fs::read(fixture("official_reg4.safetensors")).unwrap(),
            fs::read(fixture("official_reg4.pth")).unwrap(),
            torch_legacy(&object),
            fs::read(fixture("checkpoints/module_legacy.pth")).unwrap(),
            fs::read(fixture("checkpoints/values_legacy_1.pth")).unwrap(),
            fs::read(fixture("checkpoints/values_legacy_4.pth")).unwrap(),
            fs::read(fixture("checkpoints/elements_legacy.pth")).unwrap(),
        ]
    })
}

/// A place in a file: more often near an end, where headers, pickles and directories lie.
fn place() -> impl Strategy<Value = (u8, usize)> {
    (0u8..3, 0usize..1 << 13)
}

fn at(len: usize, (region, offset): (u8, usize)) -> usize {
    match region {
        0 => offset.min(len - 1),
        1 => len - 1 - offset.min(len - 1),
        _ => len * offset / (1 << 13),
    }
}

/// Where the seeds of cases that failed are kept, to be tried first from then on; the run prints them too.
fn kept() -> Option<Box<dyn FailurePersistence>> {
    Some(Box::new(FileFailurePersistence::Direct(
        "tests/weights_damage.regressions",
    )))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: kept(), ..ProptestConfig::default() })]

    #[test]
    fn cut_files_do_not_panic(which in 0usize..FILES, end in place()) {
        let bytes = &files()[which];
        exercise_bytes(&bytes[..at(bytes.len(), end)]);
    }

    #[test]
    fn flipped_bytes_do_not_panic(
        which in 0usize..FILES,
        flips in prop::collection::vec((place(), any::<u8>()), 1..8),
    ) {
        let mut bytes = files()[which].clone();
        for (place, value) in flips {
            let index = at(bytes.len(), place);
            bytes[index] = value;
        }
        exercise_bytes(&bytes);
    }

    /// The archive is sound and its checksums right: only the pickle is not what torch wrote.
    #[test]
    fn damaged_pickles_do_not_panic(
        flips in prop::collection::vec((0usize..700, any::<u8>()), 1..6),
        cut in prop::option::of(0usize..700),
    ) {
        let shared = [0.5f32; 24];
        let object = Object::Dict(vec![
            ("a".into(), Object::View(&shared, 2, vec![2, 3], vec![3, 1])),
            ("b".into(), Object::Dict(vec![("c".into(), Object::View(&shared, 0, vec![4], vec![6]))])),
            ("args".into(), Object::Namespace),
            ("epoch".into(), Object::Int(7)),
        ]);
        let mut pickler = Pickler::new(false);
        pickler.pickle(&object);
        for (index, value) in flips {
            let index = index % pickler.bytes.len();
            pickler.bytes[index] = value;
        }
        if let Some(cut) = cut {
            let keep = cut % pickler.bytes.len();
            pickler.bytes.truncate(keep);
        }
        let entries = zip_entries(&pickler);
        let entries: Vec<(&str, Vec<u8>)> = entries.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        exercise_bytes(&zip_bytes(&entries, CompressionMethod::Stored));
    }

    /// Opcodes in any order.
    #[test]
    fn arbitrary_pickles_do_not_panic(
        opcodes in prop::collection::vec(prop::sample::select(
            b"()]}tlduaesN\x85\x86\x87\x88\x8f\x90\x94K\x01q\x00h\x00QRb\x81021X\x01\x00\x00\x00\
              \x82\x83\x84\x91\x92\x96\x97\x98ioPpgIFLSVc1\nm\nc\n".to_vec()
        ), 0..200),
    ) {
        let mut pickler = Pickler::new(false);
        pickler.bytes = b"\x80\x02".to_vec();
        pickler.bytes.extend(opcodes);
        pickler.bytes.push(b'.');
        let entries = zip_entries(&pickler);
        let entries: Vec<(&str, Vec<u8>)> = entries.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        exercise_bytes(&zip_bytes(&entries, CompressionMethod::Stored));
    }
}

/// The archive is sound, its pickle one of those that torch wrote with all that stands beside weights, and damaged.
#[derive(Debug)]
struct Archive(Vec<(String, Vec<u8>)>);

fn archives() -> &'static [Archive; 3] {
    static ARCHIVES: OnceLock<[Archive; 3]> = OnceLock::new();
    ARCHIVES.get_or_init(|| {
        ["values_4.pth", "module_ema.pth", "elements.pth"].map(|name| {
            let file = fs::File::open(fixture("checkpoints").join(name)).unwrap();
            let mut zip = zip::ZipArchive::new(file).unwrap();
            let entries = (0..zip.len()).map(|index| {
                let mut entry = zip.by_index(index).unwrap();
                let mut bytes = Vec::new();
                std::io::copy(&mut entry, &mut bytes).unwrap();
                (String::from_utf8(entry.name_raw().to_vec()).unwrap(), bytes)
            });
            Archive(entries.collect())
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: kept(), ..ProptestConfig::default() })]

    #[test]
    fn damaged_pickles_of_torch_do_not_panic(
        which in 0usize..3,
        flips in prop::collection::vec((0usize..1 << 16, any::<u8>()), 1..6),
    ) {
        let entries: Vec<(&str, Vec<u8>)> = archives()[which].0.iter().map(|(name, bytes)| {
            let mut bytes = bytes.clone();
            if name.ends_with("data.pkl") {
                for (index, value) in &flips {
                    let index = index % bytes.len();
                    bytes[index] = *value;
                }
            }
            (name.as_str(), bytes)
        }).collect();
        exercise_bytes(&zip_bytes(&entries, CompressionMethod::Stored));
    }
}

/// A list that holds a list four times, which holds a list four times, and so on.
fn shared_lists(innermost: Option<&Object<'_>>) -> Vec<u8> {
    let mut pickler = Pickler::new(false);
    pickler.bytes = b"\x80\x02]q\x00".to_vec();
    if let Some(object) = innermost {
        pickler.put(object);
        pickler.bytes.push(b'a');
    }
    for level in 1..30u8 {
        let previous = [b'h', level - 1];
        pickler.bytes.extend([b']', b'q', level, b'(']);
        pickler.bytes.extend(previous.repeat(4));
        pickler.bytes.push(b'e');
    }
    pickler.bytes.push(b'.');
    let entries = zip_entries(&pickler);
    let entries: Vec<(&str, Vec<u8>)> = entries.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    zip_bytes(&entries, CompressionMethod::Stored)
}

/// Shared containers make exponentially many paths; the walk has to give up on them, or not begin where they hold nothing.
#[test]
fn shared_containers_do_not_explode() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    fs::write(&path, shared_lists(None)).unwrap();
    assert!(read_tensors(&path).unwrap().tensors.is_empty());
    let tensor = Object::View(&[0.0; 4], 0, vec![4], vec![1]);
    fs::write(&path, shared_lists(Some(&tensor))).unwrap();
    let error = read_tensors(&path).err().unwrap().to_string();
    assert_says(&error, &["expected at most", "levels"]);
}
