//! What is refused, and that the line says why.
#![allow(clippy::unwrap_used)]

mod weights_support;

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use macula_models::weights::{
    Layout, LoadOptions, Tensors, config_metadata, load, read_tensors, save, save_each,
};
use serde_json::{Value, json};
use weights_support::*;
use zip::CompressionMethod;

fn plain() -> Tensors {
    load_fixture("official_plain.pth").backbone
}

fn refused(tensors: &Tensors, options: &LoadOptions) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    save(&path, tensors, &no_metadata()).unwrap();
    refusal(&path, options)
}

fn refused_bytes(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    fs::write(&path, bytes).unwrap();
    refusal(&path, &three_heads())
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn tensors_that_do_not_fit_are_listed_with_their_shapes() {
    let mut tensors = plain();
    tensors.remove("blocks.1.norm1.bias");
    tensors.insert("blocks.0.attn.proj.weight".into(), zeros(&[48, 47]));
    tensors.insert("extra".into(), zeros(&[2, 3]));
    tensors.insert(
        "norm.weight".into(),
        Tensor::zeros(48, DType::I64, &Device::Cpu).unwrap(),
    );
    let line = refused(&tensors, &three_heads());
    assert_says(
        &line,
        &[
            "4 tensors do not fit",
            "missing `blocks.1.norm1.bias` [48]",
            "`blocks.0.attn.proj.weight` expected [48, 48], found [48, 47]",
            "spare `extra` [2, 3]",
            "`norm.weight` expected floats, found i64",
        ],
    );
    assert!(!line.contains("more"), "{line}");
}

#[test]
fn long_lists_end_with_a_count() {
    let mut tensors = plain();
    tensors.retain(|name, _| !name.starts_with("blocks.1."));
    let line = refused(&tensors, &three_heads());
    assert_says(
        &line,
        &["14 tensors do not fit", "missing `blocks.1.", "and 6 more"],
    );
}

#[test]
fn what_tells_the_geometry_is_needed() {
    for name in [
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.0.mlp.fc1.weight",
    ] {
        let mut tensors = plain();
        tensors.remove(name);
        assert_says(&refused(&tensors, &three_heads()), &["missing tensor", name]);
    }
    let mut tensors = plain();
    tensors.insert("pos_embed".into(), zeros(&[1, 25, 48]));
    assert_says(
        &refused(&tensors, &three_heads()),
        &["`pos_embed`", "found 25 rows"],
    );
    tensors.insert("pos_embed".into(), zeros(&[25, 48]));
    assert_says(
        &refused(&tensors, &three_heads()),
        &["`pos_embed`", "3 axes", "[25, 48]"],
    );
    let mut tensors = plain();
    tensors.insert("blocks.99999999.norm1.bias".into(), zeros(&[48]));
    assert_says(
        &refused(&tensors, &three_heads()),
        &["blocks.99999999.norm1.bias"],
    );
}

#[test]
fn unknown_networks_are_named_by_their_tensors() {
    let line = refused(
        &tensors(&[("conv1.weight", &[4]), ("fc.bias", &[2])]),
        &LoadOptions::default(),
    );
    assert_says(&line, &["vision transformer", "found 2 tensors", "conv1.weight"]);
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let mut tensors = plain();
    tensors.insert("_orig_mod.norm.bias".into(), zeros(&[48]));
    assert_says(
        &refused(&tensors, &three_heads()),
        &["two tensors", "`norm.bias`", "`_orig_mod.norm.bias`"],
    );
}

#[test]
fn heads_have_to_be_known() {
    let line = refused(&plain(), &LoadOptions::default());
    assert_says(&line, &["number of heads", "48", "64"]);
    for (heads, part) in [(5, "expected a divisor of the width 48, found 5"), (0, "found 0")] {
        let options = LoadOptions {
            num_heads: Some(heads),
            ..LoadOptions::default()
        };
        assert_says(&refused(&plain(), &options), &["num_heads", part]);
    }
}

#[test]
fn what_a_file_stores_may_not_be_contradicted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let checkpoint = load_fixture("official_plain.pth");
    let metadata = config_metadata(&checkpoint.config).unwrap();
    save(&path, &checkpoint.backbone, &metadata).unwrap();
    let six = LoadOptions {
        num_heads: Some(6),
        ..LoadOptions::default()
    };
    assert_says(
        &refusal(&path, &six),
        &["num_heads", "macula.config says 3", "says 6"],
    );
    let arch = LoadOptions {
        arch: Some("vit-tiny/14".into()),
        ..LoadOptions::default()
    };
    assert_says(&refusal(&path, &arch), &["vit-tiny/14", "width 192, found 48"]);

    let mut wrong = checkpoint.config.clone();
    wrong.depth = 4;
    save(&path, &checkpoint.backbone, &config_metadata(&wrong).unwrap()).unwrap();
    assert_says(
        &refusal(&path, &LoadOptions::default()),
        &["14 tensors", "missing `blocks.3."],
    );

    for (key, value, parts) in [
        ("macula.config", "{}", "missing field"),
        (
            "macula.config",
            r#"{"embed_dim": 8, "later": 1}"#,
            "unknown field `later`",
        ),
    ] {
        let metadata = [(key.to_string(), value.to_string())].into();
        save(&path, &checkpoint.backbone, &metadata).unwrap();
        assert_says(&refusal(&path, &LoadOptions::default()), &[key, parts]);
    }
    wrong.embed_dim = usize::MAX / 2;
    save(&path, &checkpoint.backbone, &config_metadata(&wrong).unwrap()).unwrap();
    assert_says(
        &refusal(&path, &LoadOptions::default()),
        &["macula.config", "embed_dim", "at most"],
    );
}

#[test]
fn a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    save(&path, &plain(), &no_metadata()).unwrap();
    let bytes = fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&bytes[8..200]).into_owned();
    let at = 8 + text.find(r#""macula.version":"1""#).unwrap() + r#""macula.version":""#.len();
    let mut later = bytes.clone();
    later[at] = b'2';
    fs::write(&path, later).unwrap();
    assert_says(
        &refusal(&path, &three_heads()),
        &["macula.version", "at most 1", "`2`"],
    );
}

fn with_config(change: impl Fn(&mut Value)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read(fixture("hf_reg4/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    change(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = folder.path().join("model.safetensors");
    fs::copy(fixture("hf_reg4/model.safetensors"), &weights).unwrap();
    load(folder.path(), &LoadOptions::default())
        .unwrap_err()
        .to_string()
}

#[test]
fn a_config_that_contradicts_the_tensors_is_refused() {
    for (field, value, parts) in [
        (
            "hidden_size",
            json!(64),
            &["hidden_size: config.json says 64, the tensors 48"][..],
        ),
        (
            "num_hidden_layers",
            json!(4),
            &["num_hidden_layers: config.json says 4, the tensors 3"],
        ),
        (
            "image_size",
            json!(518),
            &["image_size: config.json says 518, the tensors 70"],
        ),
        (
            "patch_size",
            json!([16, 16]),
            &["patch_size: config.json says 16, the tensors 14"],
        ),
        (
            "num_channels",
            json!(1),
            &["num_channels: config.json says 1, the tensors 3"],
        ),
        (
            "num_register_tokens",
            json!(8),
            &["num_register_tokens: config.json says 8, the tensors 4"],
        ),
        (
            "use_swiglu_ffn",
            json!(true),
            &["use_swiglu_ffn: config.json says true, the tensors false"],
        ),
        (
            "mlp_ratio",
            json!(3),
            &["mlp_ratio: config.json says 144, the tensors 192"],
        ),
        (
            "model_type",
            json!("dinov2"),
            &["num_register_tokens: config.json says 0, the tensors 4"],
        ),
        (
            "model_type",
            json!("vit"),
            &["config.json", "model_type", "found vit"],
        ),
        (
            "hidden_act",
            json!("relu"),
            &["config.json", "hidden_act: expected gelu", "found relu"],
        ),
        ("qkv_bias", json!(false), &["config.json", "qkv_bias"]),
        ("layer_norm_eps", json!(0), &["layer_norm_eps"]),
        ("num_attention_heads", json!(5), &["num_heads", "found 5"]),
        ("num_attention_heads", json!("three"), &["config.json", "three"]),
    ] {
        let line = with_config(|config| config[field] = value.clone());
        assert_says(&line, parts);
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn files_of_another_kind_are_refused() {
    for (bytes, part) in [
        (&b""[..], "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"\x89PNG\r\n\x1a\n0000", "bytes"),
        (b"PK\x03\x04rest", "damaged zip"),
        (b"\x80\x04\x95rest", "a plain Python pickle"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (
            b"\xff\0\0\0\0\0\0\0{}",
            "a safetensors header of 255 bytes in a file of 10",
        ),
        (b"\x02\0\0\0\0\0\0\0{]", "damaged safetensors header"),
        (
            b"\x02\0\0\0\0\0\0\0{}rest",
            "expected 10 bytes from the safetensors header, found 14",
        ),
    ] {
        assert_says(&refused_bytes(bytes), &[part]);
    }
    let folder = tempfile::tempdir().unwrap();
    assert_says(
        &refusal(folder.path(), &three_heads()),
        &["teacher.safetensors", "none of them"],
    );
    let absent = folder.path().join("absent.pth");
    assert_says(&refusal(&absent, &three_heads()), &["absent.pth"]);
}

#[test]
fn truncated_files_are_refused() {
    for name in ["official_plain.pth", "official_plain.safetensors"] {
        let bytes = fs::read(fixture(name)).unwrap();
        for keep in [9, 100, bytes.len() / 2, bytes.len() - 1] {
            refused_bytes(&bytes[..keep]);
        }
    }
    let backbone = plain();
    let legacy = torch_legacy(&Object::Dict(Object::tensors("", &backbone)));
    for keep in [15, 40, legacy.len() / 2, legacy.len() - 1] {
        refused_bytes(&legacy[..keep]);
    }
}

#[test]
fn damaged_numbers_in_a_zip_are_noticed() {
    let mut bytes = fs::read(fixture("official_plain.pth")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    assert_says(&refused_bytes(&bytes), &["damaged zip entry"]);
}

/// A pickle that asks for anything gets nothing: the calls are data beside the weights, and no file appears.
#[test]
fn foreign_globals_are_not_called() {
    let folder = tempfile::tempdir().unwrap();
    let touched = folder.path().join("touched");
    let command = format!("touch {}", touched.display());
    let code = format!("open('{}', 'w')", touched.display());
    let backbone = plain();
    let path = folder.path().join("w.pth");
    for (module, name, argument) in [
        ("posix", "system", command.as_str()),
        ("builtins", "eval", code.as_str()),
        ("builtins", "exec", code.as_str()),
        ("torch", "load", "w.pth"),
    ] {
        let mut items = vec![
            ("first".to_owned(), Object::Call(module, name, argument)),
            ("bare".to_owned(), Object::Global(module, name)),
        ];
        items.extend(Object::tensors("", &backbone));
        let object = Object::Dict(items);
        for bytes in [torch_zip(&object), torch_legacy(&object)] {
            fs::write(&path, bytes).unwrap();
            let loaded = load(&path, &three_heads()).unwrap();
            assert_same(&loaded.backbone, &backbone);
        }
        assert!(!touched.exists(), "{module}.{name} was called");
    }
    // Where the call would make the weights themselves, there are none.
    let object = Object::Dict(vec![("x".into(), Object::Call("torch", "load", "other.pth"))]);
    assert_says(&refused_bytes(&torch_zip(&object)), &["found 0 tensors"]);
}

/// The archive of one tensor, its entries changed.
fn archive(change: impl Fn(&mut Vec<(String, Vec<u8>)>), lie: i32, method: CompressionMethod) -> String {
    let mut pickler = Pickler::new(false);
    pickler.lie = lie;
    let tensor = zeros(&[64]);
    pickler.pickle(&Object::Dict(vec![("cls_token".into(), Object::Tensor(&tensor))]));
    let mut entries = zip_entries(&pickler);
    change(&mut entries);
    let entries: Vec<(&str, Vec<u8>)> = entries.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    refused_bytes(&zip_bytes(&entries, method))
}

#[test]
fn archives_that_torch_does_not_write_are_refused() {
    let stored = CompressionMethod::Stored;
    let big_endian = |entries: &mut Vec<(String, Vec<u8>)>| entries[1].1 = b"big".to_vec();
    assert_says(
        &archive(big_endian, 0, stored),
        &["byteorder: expected little, found big"],
    );
    let no_pickle = |entries: &mut Vec<(String, Vec<u8>)>| drop(entries.remove(0));
    assert_says(&archive(no_pickle, 0, stored), &["one `data.pkl`", "found 0"]);
    let no_storage = |entries: &mut Vec<(String, Vec<u8>)>| drop(entries.pop());
    assert_says(
        &archive(no_storage, 0, stored),
        &["no zip entry `archive/data/0`"],
    );
    let short = |entries: &mut Vec<(String, Vec<u8>)>| entries[2].1.truncate(252);
    assert_says(
        &archive(short, 0, stored),
        &["archive/data/0", "expected 256 bytes", "found 252"],
    );
    assert_says(
        &archive(|_| {}, 1, stored),
        &["expected 260 bytes for 65 elements of f32, found 256"],
    );
    assert_says(
        &archive(|_| {}, -1, stored),
        &["does not fit its storage of 63 elements"],
    );
    assert_says(
        &archive(|_| {}, 0, CompressionMethod::Deflated),
        &["archive/data/0", "compressed"],
    );
    let no_end = |entries: &mut Vec<(String, Vec<u8>)>| entries[0].1.truncate(100);
    assert_says(&archive(no_end, 0, stored), &["pickle, byte"]);
}

#[test]
fn views_outside_their_storage_are_refused() {
    for (offset, shape, strides) in [
        (0, vec![5], vec![1]),
        (1, vec![4], vec![1]),
        (0, vec![2, 2], vec![3, 1]),
        (0, vec![8], vec![0]),
        (-1, vec![2], vec![1]),
        (0, vec![2], vec![-1]),
        (0, vec![1 << 30, 1 << 30, 1 << 30], vec![1, 1, 1]),
    ] {
        let object = Object::Dict(vec![(
            "t".into(),
            Object::View(&[0.0; 4], offset, shape, strides),
        )]);
        for bytes in [torch_zip(&object), torch_legacy(&object)] {
            assert_says(&refused_bytes(&bytes), &["pickle, byte"]);
        }
    }
}

#[test]
fn a_failed_save_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no/such/m.safetensors");
    assert!(save(&path, &plain(), &no_metadata()).is_err());
    let path = folder.path().join("m.safetensors");
    let reserved: Tensors = [("__metadata__".to_string(), zeros(&[1]))].into();
    let error = save(&path, &reserved, &no_metadata()).unwrap_err().to_string();
    assert_says(&error, &["m.safetensors", "__metadata__"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_tensor_that_comes_otherwise_than_announced_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, each] = ["whole", "each"].map(|name| folder.path().join(name));
    let tensors = plain();
    let announced = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), Layout::of(tensor)));
    let announced = announced.collect();
    save(&whole, &tensors, &no_metadata()).unwrap();
    let mut asked = Vec::new();
    let one_by_one = save_each(&each, &announced, &no_metadata(), |name| {
        asked.push(name.to_owned());
        Ok::<_, macula_models::Error>(tensors[name].clone())
    });
    one_by_one.unwrap();
    assert_eq!(fs::read(&each).unwrap(), fs::read(&whole).unwrap());
    assert!(asked.iter().eq(tensors.keys()));
    fs::remove_file(&each).unwrap();
    let other = save_each(&each, &announced, &no_metadata(), |_| {
        Ok::<_, macula_models::Error>(zeros(&[7]))
    });
    let first = asked[0].as_str();
    assert_says(
        &other.unwrap_err().to_string(),
        &[first, "expected", "found", "[7]"],
    );
    assert!(!each.exists());
}

#[test]
fn unknown_names_and_integers_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("m.safetensors");
    let counts: Tensors = [(
        "n".to_string(),
        Tensor::zeros(2, DType::U32, &Device::Cpu).unwrap(),
    )]
    .into();
    save(path, &counts, &no_metadata()).unwrap();
    let mut raw = read_tensors(path).unwrap();
    assert_eq!(
        (raw.tensors["n"].element.name(), raw.tensors["n"].elements()),
        ("u32", 2)
    );
    assert_says(
        &raw.read("n").unwrap_err().to_string(),
        &["m.safetensors", "expected floats, found u32"],
    );
    assert_says(&raw.read("m").unwrap_err().to_string(), &["no tensor `m`"]);
}
