//! Checkpoints as people have them: under any wrapper, with Python values beside the weights, copies, decoders and heads.
//!
//! `fixtures/checkpoints` is written by its `make.py` with torch, timm and transformers.
#![allow(clippy::unwrap_used)]

mod weights_support;

use std::fs;

use candle_core::{DType, Device, Tensor};
use macula_models::vit::VisionTransformer;
use macula_models::weights::{Checkpoint, Family, LoadOptions, Tensors, load, read_tensors, recognise, save};
use weights_support::*;

fn heads(num_heads: usize) -> LoadOptions {
    LoadOptions {
        num_heads: Some(num_heads),
        ..LoadOptions::default()
    }
}

fn made(name: &str) -> std::path::PathBuf {
    fixture("checkpoints").join(name)
}

fn expected(name: &str) -> Tensors {
    let tensors = candle_core::safetensors::load(made(name), &Device::Cpu).unwrap();
    tensors.into_iter().collect()
}

/// Fails unless the network gives this class token for this image.
fn assert_computes(name: &str, checkpoint: &Checkpoint, image: &Tensor, cls: &Tensor) {
    let vit =
        VisionTransformer::from_tensors(&checkpoint.config, &checkpoint.backbone, &Device::Cpu).unwrap();
    let found = numbers(&vit.forward(image, None).unwrap().cls);
    let wanted = numbers(cls);
    assert_eq!(found.len(), wanted.len(), "{name}");
    let worst = found
        .iter()
        .zip(&wanted)
        .fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst < 1e-5, "{name}: off by {worst}");
}

fn notice<'c>(checkpoint: &'c Checkpoint, part: &str) -> &'c str {
    let mut notices = checkpoint.notices.iter();
    let found = notices.find(|notice| notice.contains(part));
    found.unwrap_or_else(|| panic!("no notice with `{part}` in {:?}", checkpoint.notices))
}

#[test]
fn lightning_decoders_and_paths_give_the_right_class_token() {
    let cases = expected("cases.expected.safetensors");
    for (name, family) in [
        ("lightly_last.ckpt", Family::DinoV1),
        ("args_posixpath.pth", Family::DinoV1),
        ("mae_pretrain.pth", Family::Mae),
    ] {
        // Nobody says that 64 wide means one head of 64.
        let checkpoint = load(&made(name), &LoadOptions::default()).unwrap();
        assert_eq!(
            (checkpoint.family, checkpoint.config.num_heads),
            (family, 1),
            "{name}"
        );
        notice(&checkpoint, "no published network is 64 wide");
        assert_computes(name, &checkpoint, &cases["image"], &cases[name]);
    }
    let lightly = load(&made("lightly_last.ckpt"), &heads(1)).unwrap();
    let copies = notice(&lightly, "also there");
    assert_says(
        copies,
        &[
            "below `state_dict.teacher_embedding_model.wrapped_model._model.` is used",
            "`state_dict.student_embedding_model.wrapped_model._model.`",
        ],
    );
    let mae = load(&made("mae_pretrain.pth"), &heads(1)).unwrap();
    assert_says(
        notice(&mae, "not part of the backbone"),
        &["4 of `decoder_blocks`", "`decoder_pos_embed`", "`mask_token`"],
    );
}

/// Python values of every kind beside the weights, every protocol, both formats; whole modules; views of one storage,
/// parameters, tensors with attributes; element types that nobody needs.
#[test]
fn whatever_stands_beside_the_weights_they_are_the_same() {
    let all = expected("expected.safetensors");
    let plain: Tensors = all
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("plain.")?.to_owned(), tensor.clone())))
        .filter(|(name, _)| name != "cls")
        .collect();
    for name in [
        "values_1.pth",
        "values_2.pth",
        "values_3.pth",
        "values_4.pth",
        "values_5.pth",
        "values_legacy_1.pth",
        "values_legacy_2.pth",
        "values_legacy_4.pth",
        "cycle.pth",
        "module.pth",
        "module_legacy.pth",
        "module_ema.pth",
        "module_averaged.pth",
        "traced.pt",
        "views.pth",
        "parameters.pth",
        "attributed.pth",
        "elements.pth",
        "elements_legacy.pth",
    ] {
        let checkpoint = load(&made(name), &heads(1)).unwrap_or_else(|error| panic!("{error}"));
        assert_same(&checkpoint.backbone, &plain);
        assert_computes(name, &checkpoint, &all["image"], &all["plain.cls"]);
    }
}

#[test]
fn names_of_transformers_5_are_read() {
    let all = expected("expected.safetensors");
    for name in ["mlp", "swiglu", "registers", "classifier"] {
        let name = format!("transformers5_{name}");
        let checkpoint = load(&made(&format!("{name}.pth")), &heads(2)).unwrap();
        assert_eq!(checkpoint.family, Family::HuggingFace);
        assert_computes(&name, &checkpoint, &all["image"], &all[&format!("{name}.cls")]);
    }
}

#[test]
fn a_tensor_that_is_needed_and_cannot_be_rebuilt_is_an_error() {
    for (name, why) in [
        ("broken_sparse.pth", "it is sparse"),
        ("broken_quantised.pth", "it is quantised"),
        ("broken_meta.pth", "meta device"),
        ("broken_float8.pth", "8-bit floats"),
    ] {
        assert_says(
            &refusal(&made(name), &heads(1)),
            &["`norm.weight` cannot be rebuilt", why],
        );
    }
    let raw = read_tensors(&made("elements.pth")).unwrap();
    assert_eq!(raw.tensors["head.wide"].element.name(), "u32");
    assert_says(&raw.unreadable["head.sparse"], &["to_dense()"]);
    assert_eq!(raw.unreadable.len(), 6, "{:?}", raw.unreadable);
}

fn zip_of(object: Object<'_>) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.pth");
    fs::write(&path, torch_zip(&object)).unwrap();
    (folder, path)
}

/// `a.b.` around tensors, as nested dictionaries up to `split` levels and dots in the names below.
fn wrapped<'a>(prefix: &str, split: usize, tensors: &'a Tensors) -> Object<'a> {
    match prefix.split_once('.') {
        Some((outer, inner)) if split > 0 => {
            Object::Dict(vec![(outer.into(), wrapped(inner, split - 1, tensors))])
        }
        _ => Object::Dict(Object::tensors(prefix, tensors)),
    }
}

#[test]
fn any_common_prefix_is_stripped() {
    let backbone = load_fixture("official_reg4.pth").backbone;
    for prefix in [
        "model.",
        "module.",
        "module.backbone.",
        "encoder.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "state_dict.model._orig_mod.",
        "app.model.backbone.feature_extractor.",
        "0.",
        "networks.0.trunk-2.",
        "_fsdp_wrapped_module._checkpoint_wrapped_module.",
        "base_model.model.",
        "pretrained.",
        "callbacks.EMA.shadow.",
    ] {
        for split in [0, 1, 3] {
            let (_folder, path) = zip_of(wrapped(prefix, split, &backbone));
            let checkpoint = load(&path, &three_heads()).unwrap_or_else(|error| panic!("{error}"));
            assert_same(&checkpoint.backbone, &backbone);
            assert!(checkpoint.notices.is_empty(), "{:?}", checkpoint.notices);
        }
    }
    // Wrappers of single blocks.
    let inner: Tensors = backbone
        .iter()
        .map(|(name, tensor)| {
            let name = name.replace("attn.", "_orig_mod.attn.");
            (
                format!(
                    "module.{}",
                    name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")
                ),
                tensor.clone(),
            )
        })
        .collect();
    let (_folder, path) = zip_of(Object::Dict(Object::tensors("", &inner)));
    assert_same(&load(&path, &three_heads()).unwrap().backbone, &backbone);
}

#[test]
fn averages_are_taken_before_what_they_average() {
    let wanted = load_fixture("official_plain.pth").backbone;
    let other: Tensors = wanted
        .iter()
        .map(|(name, tensor)| (name.clone(), (tensor + 1.0).unwrap()))
        .collect();
    for (taken, left) in [
        ("teacher.", "student."),
        ("teacher.backbone.", "backbone."),
        ("model_ema.", "model."),
        ("state_dict_ema.", "state_dict."),
        ("ema_model.module.", "online_model.module."),
        ("module.", "student."),
        ("module.base_encoder.", "module.momentum_encoder."),
        ("teacher.", "ema."),
        ("target_encoder.", "encoder."),
        ("", "ema_not."),
    ] {
        let (taken, left) = if left == "ema_not." {
            (left, taken)
        } else {
            (taken, left)
        };
        let mut all = Object::tensors(taken, &wanted);
        all.extend(Object::tensors(left, &other));
        let (_folder, path) = zip_of(Object::Dict(all));
        let checkpoint = load(&path, &three_heads()).unwrap();
        assert_same(&checkpoint.backbone, &wanted);
        let line = notice(&checkpoint, "also there");
        assert_says(line, &[&format!("below `{taken}` is used")]);
        assert!(!line.contains("equals"), "{line}");
    }
    // Two of one rank: the first, and the notice says that nothing spoke for it.
    let mut all = Object::tensors("a.", &wanted);
    all.extend(Object::tensors("b.", &other));
    let (_folder, path) = zip_of(Object::Dict(all));
    let checkpoint = load(&path, &three_heads()).unwrap();
    assert_same(&checkpoint.backbone, &wanted);
    notice(
        &checkpoint,
        "below `a.` is used (the first of equals); also there: `b.`",
    );
}

#[test]
fn a_long_list_of_copies_ends_with_a_count() {
    let backbone = load_fixture("official_plain.pth").backbone;
    let others = tensors(&[
        ("b.cls_token", &[1, 1, 8]),
        ("c.cls_token", &[1, 1, 8]),
        ("d.cls_token", &[1, 1, 8]),
        ("e.cls_token", &[1, 1, 8]),
        ("f.cls_token", &[1, 1, 8]),
        ("g.cls_token", &[1, 1, 8]),
    ]);
    let mut all = Object::tensors("teacher.", &backbone);
    all.extend(Object::tensors("", &others));
    let (_folder, path) = zip_of(Object::Dict(all));
    let checkpoint = load(&path, &three_heads()).unwrap();
    notice(&checkpoint, "also there: `b.`, `c.`, `d.`, `e.`, 2 more");
}

/// A preferred copy that is damaged is an error: the student is no substitute for its teacher.
#[test]
fn a_damaged_teacher_is_not_replaced_by_its_student() {
    let backbone = load_fixture("official_plain.pth").backbone;
    let mut damaged = backbone.clone();
    damaged.remove("norm.bias");
    let mut all = Object::tensors("teacher.", &damaged);
    all.extend(Object::tensors("student.", &backbone));
    let (_folder, path) = zip_of(Object::Dict(all));
    assert_says(
        &refusal(&path, &three_heads()),
        &[
            "taken for a DINOv2 backbone of width 48, depth 3, patches of 14 below `teacher.`",
            "missing `norm.bias` [48]",
        ],
    );
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn known_extras_are_passed_over_and_named_and_others_refused() {
    let backbone = load_fixture("official_plain.pth").backbone;
    for (name, ok) in [
        ("fc_norm.weight", true),
        ("masked_embed", true),
        ("decoder_blocks.0.norm1.weight", true),
        ("decoder.layers.0.weight", true),
        ("pooler.dense.weight", true),
        ("head.weight", true),
        ("ibot_head.mlp.0.weight", true),
        ("prototypes.weight", true),
        ("blocks.0.attn.relative_position_index", true),
        ("blocks.0.attn.lora_A.weight", false),
        ("blocks.0.adapter.weight", false),
        ("extra", false),
        ("norm2.weight", false),
    ] {
        let mut all = backbone.clone();
        all.insert(name.into(), zeros(&[2, 3]));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        save(&path, &all, &no_metadata()).unwrap();
        if ok {
            let checkpoint = load(&path, &three_heads()).unwrap();
            assert_same(&checkpoint.backbone, &backbone);
            notice(&checkpoint, &format!("not used for features: `{name}`"));
        } else {
            assert_says(
                &refusal(&path, &three_heads()),
                &["taken for a", "not fit the network"],
            );
        }
    }
    // Beside the network's own module anything may stand; it is named.
    let mut all = Object::tensors("state_dict.encoder.", &backbone);
    let neck = tensors(&[("state_dict.neck.0.weight", &[3]), ("optimizer.0.exp_avg", &[3])]);
    let head = tensors(&[("state_dict.dino_head.mlp.0.weight", &[3, 48])]);
    all.extend(Object::tensors("", &neck));
    all.extend(Object::tensors("", &head));
    let (_folder, path) = zip_of(Object::Dict(all));
    let checkpoint = load(&path, &three_heads()).unwrap();
    assert_same(&checkpoint.backbone, &backbone);
    assert_eq!(
        checkpoint.heads.keys().collect::<Vec<_>>(),
        ["dino_head.mlp.0.weight"]
    );
    notice(
        &checkpoint,
        "not used for features: `dino_head.mlp.0.weight`, `neck.0.weight`, `optimizer.0.exp_avg`",
    );
}

#[test]
fn networks_that_are_only_recognised_are_refused_by_name() {
    for (names, parts) in [
        (
            &["cls_token", "rope_embed.periods", "cls_norm.weight"][..],
            &["DINOv3 ViT", "`cls_norm` beside `norm`"][..],
        ),
        (
            &["visual.class_embedding", "visual.attn_pool.query", "logit_scale"],
            &["CoCa", "pooling by many queries", "not supported"],
        ),
        (
            &["visual.layer1.0.conv1.weight", "visual.attnpool.q_proj.weight"],
            &["ResNet of CLIP", "convolutional networks"],
        ),
        (
            &[
                "radio_model.model.patch_generator.pos_embed",
                "radio_model.model.norm.weight",
            ],
            &["C-RADIO", "`patch_generator`"],
        ),
        (
            &["cls_token", "blocks.0.attn.q_norm.weight"],
            &["normalised queries and keys", "`attn.q_norm`"],
        ),
        (&["layer1.0.conv1.weight", "fc.weight"], &["ResNet"]),
    ] {
        let shapes: Vec<(&str, &[usize])> = names.iter().map(|name| (*name, &[2usize][..])).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        save(&path, &tensors(&shapes), &no_metadata()).unwrap();
        let line = refusal(&path, &LoadOptions::default());
        assert_says(&line, parts);
        let known = recognise(&read_tensors(&path).unwrap());
        assert!(line.contains(known.architecture.unwrap()), "{line}");
    }
}

/// A student that can be computed is taken where its teacher cannot, and the notice says so.
#[test]
fn a_teacher_of_another_kind_is_passed_over() {
    let backbone = load_fixture("official_plain.pth").backbone;
    let mut all = Object::tensors("student.", &backbone);
    let teacher = tensors(&[
        ("teacher.cls_token", &[1, 1, 8]),
        ("teacher.blocks.0.attn.rel_pos_h", &[4, 2]),
    ]);
    all.extend(Object::tensors("", &teacher));
    let (_folder, path) = zip_of(Object::Dict(all));
    let checkpoint = load(&path, &three_heads()).unwrap();
    assert_same(&checkpoint.backbone, &backbone);
    notice(
        &checkpoint,
        "also there: `teacher.` (SAM or MViT: relative positions",
    );
}

/// A position table without a row for the class token (timm's `no_embed_class`): the row is zeros.
#[test]
fn a_plain_network_may_give_its_class_token_no_position() {
    let mut backbone = load_fixture("official_plain.pth").backbone;
    backbone.retain(|name, _| name != "mask_token" && !name.contains(".ls"));
    let table = backbone["pos_embed"].clone();
    let patches = table.narrow(1, 1, 25).unwrap().contiguous().unwrap();
    let mut stored = backbone.clone();
    stored.insert("pos_embed".into(), patches.clone());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    save(&path, &stored, &no_metadata()).unwrap();
    let checkpoint = load(&path, &three_heads()).unwrap();
    assert_eq!(checkpoint.family, Family::DinoV1);
    let loaded = &checkpoint.backbone["pos_embed"];
    assert_eq!(numbers(&loaded.narrow(1, 0, 1).unwrap()), vec![0.0; 48]);
    assert_eq!(numbers(&loaded.narrow(1, 1, 25).unwrap()), numbers(&patches));
}

/// In an archive called by 21 characters the directory's first entry is as long as the records between the directory and the end
/// of the file, so that a reader which counts back from there takes the second for the first.
#[test]
fn an_archive_with_a_name_of_any_length_is_read() {
    let mut raw = read_tensors(&made("twenty_one_characters.pth")).unwrap();
    assert_eq!(numbers(&raw.read("weight").unwrap()), [0., 1., 2., 3., 4., 5.]);
}

#[test]
fn one_register_of_timm_is_said_to_be_tips() {
    let mut backbone = load_fixture("timm_reg4.safetensors").backbone;
    let registers = backbone["register_tokens"]
        .narrow(1, 0, 1)
        .unwrap()
        .contiguous()
        .unwrap();
    backbone.remove("register_tokens");
    backbone.insert("reg_token".into(), registers);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    save(&path, &backbone, &no_metadata()).unwrap();
    notice(&load(&path, &three_heads()).unwrap(), "--mean 0,0,0 --std 1,1,1");
    let four = load_fixture("timm_reg4.safetensors").notices;
    assert!(four.is_empty(), "{four:?}");
}

#[test]
fn shards_of_a_bin_file_are_read() {
    let backbone = load_fixture("official_plain.pth").backbone;
    let folder = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    let mut shards = [Tensors::new(), Tensors::new()];
    for (index, (name, tensor)) in backbone.iter().enumerate() {
        map.insert(name.clone(), format!("pytorch_model-{}.bin", index % 2).into());
        shards[index % 2].insert(name.clone(), tensor.clone());
    }
    for (index, shard) in shards.iter().enumerate() {
        let bytes = torch_zip(&Object::Dict(Object::tensors("", shard)));
        fs::write(folder.path().join(format!("pytorch_model-{index}.bin")), bytes).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(folder.path().join("pytorch_model.bin.index.json"), index).unwrap();
    assert_same(&load(folder.path(), &three_heads()).unwrap().backbone, &backbone);
}
