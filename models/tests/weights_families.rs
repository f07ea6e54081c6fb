//! Every family of checkpoint, written by the public implementations or built from their tensors.
#![allow(clippy::unwrap_used)]

mod weights_support;

use std::fs;

use candle_core::Tensor;
use macula_models::vit::{FeedForwardKind, PositionRule, VitConfig};
use macula_models::weights::{
    Checkpoint, Family, Format, LoadOptions, Tensors, config_metadata, load, read_tensors, save,
};
use weights_support::*;

fn assert_complete(checkpoint: &Checkpoint) {
    let parameters = checkpoint.config.parameters();
    assert_eq!(checkpoint.backbone.len(), parameters.len());
    for (name, shape) in parameters {
        assert_eq!(checkpoint.backbone[&name].dims(), shape, "{name}");
    }
    assert_eq!(checkpoint.source_sha256.len(), 64);
}

#[test]
fn every_golden_checkpoint_loads() {
    use Family::{HuggingFace, Official, Timm};
    for (file, family, registers, kind, hidden, rule) in [
        (
            "official_plain.pth",
            Official,
            0,
            FeedForwardKind::Mlp,
            192,
            PositionRule::Official,
        ),
        (
            "official_plain.safetensors",
            Official,
            0,
            FeedForwardKind::Mlp,
            192,
            PositionRule::Official,
        ),
        (
            "official_reg4.pth",
            Official,
            4,
            FeedForwardKind::Mlp,
            192,
            PositionRule::Registers,
        ),
        (
            "official_reg4.safetensors",
            Official,
            4,
            FeedForwardKind::Mlp,
            192,
            PositionRule::Registers,
        ),
        (
            "official_swiglu.pth",
            Official,
            0,
            FeedForwardKind::Swiglu,
            128,
            PositionRule::Official,
        ),
        (
            "official_swiglu.safetensors",
            Official,
            0,
            FeedForwardKind::Swiglu,
            128,
            PositionRule::Official,
        ),
        (
            "hf_plain",
            HuggingFace,
            0,
            FeedForwardKind::Mlp,
            192,
            PositionRule::HuggingFace,
        ),
        (
            "hf_reg4",
            HuggingFace,
            4,
            FeedForwardKind::Mlp,
            192,
            PositionRule::Registers,
        ),
        (
            "hf_swiglu",
            HuggingFace,
            0,
            FeedForwardKind::Swiglu,
            128,
            PositionRule::HuggingFace,
        ),
        (
            "timm_plain.safetensors",
            Timm,
            0,
            FeedForwardKind::Mlp,
            192,
            PositionRule::Registers,
        ),
        (
            "timm_reg4.safetensors",
            Timm,
            4,
            FeedForwardKind::Mlp,
            192,
            PositionRule::Registers,
        ),
    ] {
        let checkpoint = load_fixture(file);
        assert_complete(&checkpoint);
        let config = &checkpoint.config;
        assert_eq!(checkpoint.family, family, "{file}");
        assert_eq!(
            (config.embed_dim, config.depth, config.num_heads),
            (48, 3, 3),
            "{file}"
        );
        assert_eq!(
            (config.patch_size, config.image_size, config.in_channels),
            (14, 70, 3),
            "{file}"
        );
        assert_eq!(
            (config.num_registers, config.feed_forward),
            (registers, kind),
            "{file}"
        );
        assert_eq!(
            (config.ffn_hidden, config.position_rule),
            (hidden, rule),
            "{file}"
        );
        assert_eq!(config.mask_token, family != Timm, "{file}");
        assert!(
            config.layer_scale.is_some() && checkpoint.heads.is_empty(),
            "{file}"
        );
    }
}

#[test]
fn both_formats_of_a_checkpoint_are_equal() {
    for name in ["plain", "reg4", "swiglu"] {
        let pth = load_fixture(&format!("official_{name}.pth"));
        let safetensors = load_fixture(&format!("official_{name}.safetensors"));
        assert_same(&pth.backbone, &safetensors.backbone);
        assert_ne!(pth.source_sha256, safetensors.source_sha256);
    }
}

/// The digest that `sha256sum` prints.
#[test]
fn the_digest_is_that_of_the_file() {
    let checkpoint = load_fixture("official_plain.safetensors");
    assert_eq!(checkpoint.source_sha256, DIGEST);
}
const DIGEST: &str = "41349bc1c6d6854057f61c2d392175de470077f8ec06ef2af3ada3e5d51de782";

#[test]
fn hugging_face_tells_its_heads_itself() {
    let checkpoint = load(&fixture("hf_plain"), &LoadOptions::default()).unwrap();
    assert_eq!(checkpoint.config.num_heads, 3);
    let bare = load(&fixture("hf_plain/model.safetensors"), &LoadOptions::default()).unwrap();
    assert_eq!(bare.config, checkpoint.config);
    assert_same(&bare.backbone, &checkpoint.backbone);
}

#[test]
fn query_key_and_value_lie_in_this_order() {
    let mut raw = read_tensors(&fixture("hf_plain")).unwrap();
    let joined = &load_fixture("hf_plain").backbone["blocks.1.attn.qkv.weight"];
    for (third, name) in ["query", "key", "value"].iter().enumerate() {
        let part = raw
            .read(&format!("encoder.layer.1.attention.attention.{name}.weight"))
            .unwrap();
        assert_eq!(
            numbers(&joined.narrow(0, third * 48, 48).unwrap()),
            numbers(&part),
            "{name}"
        );
    }
}

#[test]
fn the_folded_cls_row_of_timm_is_zero() {
    let mut raw = read_tensors(&fixture("timm_reg4.safetensors")).unwrap();
    let patches = raw.read("pos_embed").unwrap();
    let table = &load_fixture("timm_reg4.safetensors").backbone["pos_embed"];
    assert_eq!(numbers(&table.narrow(1, 0, 1).unwrap()), vec![0.0; 48]);
    assert_eq!(numbers(&table.narrow(1, 1, 25).unwrap()), numbers(&patches));
}

#[test]
fn packed_swiglu_of_timm_is_told_from_shapes() {
    let official = load_fixture("official_swiglu.safetensors").backbone;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("timm.safetensors");
    let timm: Tensors = official
        .iter()
        .filter(|(name, _)| *name != "mask_token")
        .map(|(name, tensor)| {
            (
                name.replace(".w12.", ".fc1.").replace(".w3.", ".fc2."),
                tensor.clone(),
            )
        })
        .collect();
    save(&path, &timm, &no_metadata()).unwrap();
    let checkpoint = load(&path, &three_heads()).unwrap();
    assert_eq!(checkpoint.family, Family::Timm);
    assert_eq!(checkpoint.config.feed_forward, FeedForwardKind::Swiglu);
    assert_eq!(checkpoint.config.ffn_hidden, 128);
    let mut expected = official;
    expected.remove("mask_token");
    assert_same(&checkpoint.backbone, &expected);
}

#[test]
fn saved_checkpoints_load_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "official_reg4.pth",
        "official_swiglu.pth",
        "hf_plain",
        "timm_reg4.safetensors",
    ] {
        let first = load_fixture(name);
        let path = folder.path().join("teacher.safetensors");
        save(&path, &first.backbone, &config_metadata(&first.config).unwrap()).unwrap();
        // A folder with `teacher.safetensors` is a run; the stored geometry tells heads, rule and mask token.
        for source in [folder.path(), &path] {
            let second = load(source, &LoadOptions::default()).unwrap();
            assert_eq!(second.config, first.config, "{name}");
            assert_eq!(second.family, Family::Official);
            assert_same(&second.backbone, &first.backbone);
        }
        let bytes = fs::read(&path).unwrap();
        save(&path, &first.backbone, &config_metadata(&first.config).unwrap()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes, "the same bytes again");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let other = folder.path().join("other");
            fs::write(&other, "").unwrap();
            let mode = |path| fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode(&path), mode(&other), "readable like any other file");
            fs::remove_file(other).unwrap();
        }
        // The format's own reader agrees.
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.len(), first.backbone.len());
    }
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing left beside"
    );
}

fn chunked(tensors: &Tensors) -> Tensors {
    let rename = |name: &String| match name.strip_prefix("blocks.") {
        Some(rest) => {
            let index: usize = rest.split('.').next().unwrap().parse().unwrap();
            format!("blocks.{}.{rest}", index / 2)
        }
        None => name.clone(),
    };
    tensors
        .iter()
        .map(|(name, tensor)| (rename(name), tensor.clone()))
        .collect()
}

#[test]
fn training_checkpoints_give_their_teacher_and_its_heads() {
    let official = load_fixture("official_reg4.pth").backbone;
    let blocks = chunked(&official);
    assert!(blocks.contains_key("blocks.1.2.norm1.weight"));
    let student: Tensors = blocks
        .iter()
        .map(|(n, t)| (n.clone(), (t + 1.0).unwrap()))
        .collect();
    let head = tensors(&[("mlp.0.weight", &[5, 48]), ("last_layer.weight_g", &[7, 1])]);
    let mut inner = Object::tensors("module.backbone.", &blocks);
    inner.extend(Object::tensors("module.dino_head.", &head));
    inner.extend(Object::tensors("module.ibot_head.", &head));
    let object = Object::Dict(vec![
        (
            "student".into(),
            Object::Dict(Object::tensors("module.backbone.", &student)),
        ),
        ("teacher".into(), Object::Dict(inner)),
        ("epoch".into(), Object::Int(3)),
        ("args".into(), Object::Namespace),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.pth");
    for (format, bytes) in [
        (Format::TorchZip, torch_zip(&object)),
        (Format::TorchLegacy, torch_legacy(&object)),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(read_tensors(&path).unwrap().format, format);
        let checkpoint = load(&path, &three_heads()).unwrap();
        assert_eq!(checkpoint.family, Family::Official);
        assert_same(&checkpoint.backbone, &official);
        let heads: Vec<&String> = checkpoint.heads.keys().collect();
        assert_eq!(
            heads,
            [
                "dino_head.last_layer.weight_g",
                "dino_head.mlp.0.weight",
                "ibot_head.last_layer.weight_g",
                "ibot_head.mlp.0.weight"
            ]
        );
        assert_eq!(
            numbers(&checkpoint.heads["dino_head.mlp.0.weight"]),
            numbers(&head["mlp.0.weight"])
        );
    }
    // The student, where there is no teacher; and a network below `model`.
    for outer in ["student", "model"] {
        let inner = Object::Dict(Object::tensors("backbone.", &blocks));
        fs::write(&path, torch_zip(&Object::Dict(vec![(outer.into(), inner)]))).unwrap();
        assert_same(&load(&path, &three_heads()).unwrap().backbone, &official);
    }
}

fn dino_v1() -> Tensors {
    let official = load_fixture("official_plain.pth").backbone;
    official
        .into_iter()
        .filter(|(name, _)| name != "mask_token" && !name.contains(".ls"))
        .collect()
}

#[test]
fn dino_v1_has_neither_layer_scale_nor_mask_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dino.pth");
    let backbone = dino_v1();
    let head = tensors(&[("mlp.4.bias", &[16]), ("last_layer.weight_v", &[9, 16])]);
    let flat = Object::Dict(Object::tensors("", &backbone));
    let mut inner = Object::tensors("backbone.", &backbone);
    inner.extend(Object::tensors("head.", &head));
    let whole = Object::Dict(vec![("teacher".into(), Object::Dict(inner))]);
    for (object, heads) in [(flat, 0), (whole, 2)] {
        fs::write(&path, torch_zip(&object)).unwrap();
        let checkpoint = load(&path, &three_heads()).unwrap();
        assert_complete(&checkpoint);
        assert_eq!(checkpoint.family, Family::DinoV1);
        let config = &checkpoint.config;
        assert_eq!((config.layer_scale, config.mask_token), (None, false));
        assert_eq!(config.position_rule, PositionRule::Official);
        assert_same(&checkpoint.backbone, &backbone);
        assert_eq!(checkpoint.heads.len(), heads);
        assert!(checkpoint.heads.keys().all(|name| name.starts_with("dino_head.")));
    }
}

fn copy_config(name: &str, folder: &std::path::Path) {
    fs::copy(fixture(name).join("config.json"), folder.join("config.json")).unwrap();
}

fn raw_tensors(name: &str) -> Tensors {
    let mut raw = read_tensors(&fixture(name)).unwrap();
    let names: Vec<String> = raw.tensors.keys().cloned().collect();
    names
        .into_iter()
        .map(|name| (name.clone(), raw.read(&name).unwrap()))
        .collect()
}

#[test]
fn hugging_face_classifiers_keep_their_classifier() {
    for (name, prefix) in [("hf_plain", "dinov2."), ("hf_reg4", "dinov2_with_registers.")] {
        let folder = tempfile::tempdir().unwrap();
        copy_config(name, folder.path());
        let mut all: Tensors = raw_tensors(name)
            .into_iter()
            .map(|(name, tensor)| (format!("{prefix}{name}"), tensor))
            .collect();
        all.extend(tensors(&[
            ("classifier.weight", &[10, 96]),
            ("classifier.bias", &[10]),
        ]));
        save(&folder.path().join("model.safetensors"), &all, &no_metadata()).unwrap();
        let checkpoint = load(folder.path(), &LoadOptions::default()).unwrap();
        assert_same(&checkpoint.backbone, &load_fixture(name).backbone);
        let heads: Vec<&String> = checkpoint.heads.keys().collect();
        assert_eq!(heads, ["classifier.bias", "classifier.weight"]);
    }
}

/// Depth Anything and the like: the backbone's settings are a part of `config.json`, other modules stand beside it.
#[test]
fn a_model_on_a_backbone_gives_its_backbone() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read(fixture("hf_plain/config.json")).unwrap();
    let backbone: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let config = serde_json::json!({"model_type": "depth_anything", "backbone_config": backbone});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut all: Tensors = raw_tensors("hf_plain")
        .into_iter()
        .map(|(name, tensor)| (format!("backbone.{name}"), tensor))
        .collect();
    all.extend(tensors(&[
        ("neck.fusion.0.weight", &[3]),
        ("head.conv1.weight", &[4]),
    ]));
    save(&folder.path().join("model.safetensors"), &all, &no_metadata()).unwrap();
    let checkpoint = load(folder.path(), &LoadOptions::default()).unwrap();
    assert_same(&checkpoint.backbone, &load_fixture("hf_plain").backbone);
    assert_eq!(checkpoint.config.num_heads, 3);
    assert_says(
        &checkpoint.notices.join(";"),
        &["`head.conv1.weight`", "`neck.fusion.0.weight`"],
    );
}

#[test]
fn sharded_folders_are_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    copy_config("hf_reg4", folder.path());
    let mut map = serde_json::Map::new();
    let mut shards = [Tensors::new(), Tensors::new()];
    for (index, (name, tensor)) in raw_tensors("hf_reg4").into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", index % 2).into());
        shards[index % 2].insert(name, tensor);
    }
    for (index, shard) in shards.iter().enumerate() {
        save(
            &folder.path().join(format!("model-{index}.safetensors")),
            shard,
            &no_metadata(),
        )
        .unwrap();
    }
    let index = serde_json::json!({"weight_map": map}).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let checkpoint = load(folder.path(), &LoadOptions::default()).unwrap();
    assert_same(&checkpoint.backbone, &load_fixture("hf_reg4").backbone);

    save(
        &folder.path().join("model-1.safetensors"),
        &shards[0],
        &no_metadata(),
    )
    .unwrap();
    let error = load(folder.path(), &LoadOptions::default())
        .unwrap_err()
        .to_string();
    assert_says(&error, &["model-1.safetensors", "index.json"]);
}

#[test]
fn half_precision_becomes_f32() {
    use candle_core::DType;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    let plain = load_fixture("official_plain.pth").backbone;
    for (dtype, tolerance) in [(DType::F16, 1e-3), (DType::BF16, 8e-3), (DType::F64, 0.0)] {
        let half: Tensors = plain
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.to_dtype(dtype).unwrap()))
            .collect();
        save(&path, &half, &no_metadata()).unwrap();
        let loaded = load(&path, &three_heads()).unwrap().backbone;
        for (name, tensor) in &plain {
            assert_eq!(loaded[name].dtype(), DType::F32);
            let pairs = numbers(tensor).into_iter().zip(numbers(&loaded[name]));
            assert!(
                pairs
                    .into_iter()
                    .all(|(a, b)| (a - b).abs() <= tolerance * a.abs() + 1e-7),
                "{name}"
            );
        }
    }
}

#[test]
fn strided_tensors_of_a_pth_are_read_in_their_order() {
    let storage: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let object = Object::Dict(vec![(
        "inner".into(),
        Object::Dict(vec![(
            "t".into(),
            Object::View(&storage, 1, vec![3, 2], vec![1, 4]),
        )]),
    )]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("view.pth");
    for bytes in [torch_zip(&object), torch_legacy(&object)] {
        fs::write(&path, bytes).unwrap();
        let tensor: Tensor = read_tensors(&path).unwrap().read("inner.t").unwrap();
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[1., 5.], [2., 6.], [3., 7.]]);
    }
}

#[test]
fn an_architecture_tells_the_heads_and_an_option_the_rule() {
    // The width of vit-tiny: three heads of 64 either way; only a file whose tensors are its own fits the name.
    let mut config = VitConfig::named("vit-tiny/16-reg2", 32).unwrap();
    config.depth = 12;
    let shapes = config.parameters();
    let shapes: Vec<(&str, &[usize])> = shapes.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.safetensors");
    save(&path, &tensors(&shapes), &no_metadata()).unwrap();
    let mut options = LoadOptions::default();
    assert_eq!(load(&path, &options).unwrap().config, config);
    options.arch = Some("vit-tiny/16-reg2".into());
    options.position_rule = Some(PositionRule::HuggingFace);
    let loaded = load(&path, &options).unwrap().config;
    assert_eq!(
        (loaded.num_heads, loaded.position_rule),
        (3, PositionRule::HuggingFace)
    );
    for (arch, part) in [
        ("vit-tiny/14-reg2", "patch size 14, found 16"),
        ("vit-tiny/16", "registers 0, found 2"),
        ("vit-small/16-reg2", "width 384, found 192"),
        ("vit-tiny/16-reg2-swiglu", "feed-forward Swiglu, found Mlp"),
        ("vit-vast", "vit-vast"),
    ] {
        options.arch = Some(arch.into());
        assert_says(&refusal(&path, &options), &[arch, part]);
    }
    options.arch = Some("vit-tiny/16-reg2".into());
    options.num_heads = Some(6);
    assert_says(&refusal(&path, &options), &["says 3", "says 6"]);
}
