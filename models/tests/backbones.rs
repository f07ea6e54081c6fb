//! The families that people compare with, from every place they live in, against what their libraries compute
//! (`fixtures/backbones/make.py`).
#![allow(clippy::unwrap_used)]

mod weights_support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use macula_models::ops;
use macula_models::vit::{
    DropPathMode, DropPathPlan, DropPathSchedule, FinalNorm, GeluKind, Pool, RelativePositions, RopeConfig,
    VisionTransformer, VitConfig, VitOutput, initialise,
};
use macula_models::weights::{
    Checkpoint, Family, LoadOptions, Tensors, config_metadata, load, read_tensors, save,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::{Value, json};
use weights_support::*;

/// Of the largest value.
const TOLERANCE: f32 = 1e-5;

/// File or folder, what is expected of it, and its family.
const ALL: &[(&str, &str, Family)] = &[
    ("clip_open", "clip_open", Family::OpenClip),
    ("clip_hf", "clip_hf", Family::HuggingFaceClip),
    ("clip_timm", "clip_timm", Family::TimmClip),
    ("dinov3_hf", "dinov3_hf", Family::HuggingFaceDinov3),
    ("dinov3_memory.pth", "dinov3_hf", Family::HuggingFaceDinov3),
    ("dinov3_official.pth", "dinov3_hf", Family::Dinov3),
    ("dinov3_hf_gated", "dinov3_hf_gated", Family::HuggingFaceDinov3),
    ("dinov3_official_gated.pth", "dinov3_hf_gated", Family::Dinov3),
    ("dinov3_timm.safetensors", "dinov3_timm", Family::TimmDinov3),
    (
        "dinov3_timm_gated.safetensors",
        "dinov3_timm_gated",
        Family::TimmDinov3,
    ),
    ("vit_hf", "vit_hf", Family::HuggingFaceVit),
    ("vit_memory.pth", "vit_hf", Family::HuggingFaceVit),
    ("mae_hf", "mae_hf", Family::HuggingFaceVit),
    ("msn_hf", "msn_hf", Family::HuggingFaceVit),
    ("torchvision.pth", "torchvision", Family::Torchvision),
    ("tips_hf", "tips_hf", Family::Tips),
    ("tips_hf_gated", "tips_hf_gated", Family::Tips),
    ("siglip_hf", "siglip_hf", Family::HuggingFaceSiglip),
    ("siglip_timm", "siglip_timm", Family::TimmSiglip),
    ("siglip_open", "siglip_open", Family::TimmSiglip),
    ("siglip_gap_timm", "siglip_gap_timm", Family::IJepa),
    ("deit_hf", "deit_hf", Family::HuggingFaceVit),
    ("deit_memory.safetensors", "deit_hf", Family::HuggingFaceVit),
    ("deit_timm.safetensors", "deit_timm", Family::DinoV1),
    ("ibot_official.pth", "ibot_official", Family::DinoV1),
    ("vit_timm", "vit_timm", Family::DinoV1),
    ("vit_gap_timm", "vit_gap_timm", Family::DinoV1),
    ("ijepa_hf", "ijepa_hf", Family::HuggingFaceVit),
    ("ijepa_official.pth", "ijepa_hf", Family::IJepa),
    ("beit_hf", "beit_hf", Family::HuggingFaceBeit),
    ("beit_memory.safetensors", "beit_hf", Family::HuggingFaceBeit),
    ("beit_mim_hf", "beit_mim_hf", Family::HuggingFaceBeit),
    ("beit_timm.safetensors", "beit_timm", Family::TimmBeit),
    ("data2vec_hf", "data2vec_hf", Family::HuggingFaceBeit),
    ("eva_timm.safetensors", "eva_timm", Family::TimmEva),
    ("eva02_timm.safetensors", "eva02_timm", Family::TimmEva),
    (
        "eva02_apart_timm.safetensors",
        "eva02_apart_timm",
        Family::TimmEva,
    ),
    ("eva02_clip_open", "eva02_clip_open", Family::TimmEva),
    ("pe_timm", "pe_timm", Family::TimmPe),
    ("pe_open", "pe_open", Family::TimmPe),
    ("pe_spatial_timm.safetensors", "pe_spatial_timm", Family::TimmPe),
];
/// The names of TIPSv2 in memory are those of DINOv2.
const TIPS_MEMORY: (&str, &str, Family) = ("tips_memory.pth", "tips_hf", Family::HuggingFace);

fn path(name: &str) -> PathBuf {
    fixture("backbones").join(name)
}

fn two_heads() -> LoadOptions {
    LoadOptions {
        num_heads: Some(2),
        ..LoadOptions::default()
    }
}

fn loaded(name: &str) -> Checkpoint {
    load(&path(name), &two_heads()).unwrap()
}

fn network(checkpoint: &Checkpoint) -> VisionTransformer {
    VisionTransformer::from_tensors(&checkpoint.config, &checkpoint.backbone, &Device::Cpu).unwrap()
}

fn expected(name: &str) -> Tensors {
    let file = path(&format!("{name}.expected.safetensors"));
    let float = |(name, tensor): (String, Tensor)| (name, tensor.to_dtype(candle_core::DType::F32).unwrap());
    candle_core::safetensors::load(file, &Device::Cpu)
        .unwrap()
        .into_iter()
        .map(float)
        .collect()
}

/// The largest deviation, of the largest expected value.
fn deviation(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (numbers(found), numbers(expected));
    assert!(found.iter().all(|value| value.is_finite()));
    let largest = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
    let pairs = found.iter().zip(&expected);
    pairs.fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

fn outputs(output: &VitOutput) -> Vec<(&'static str, Tensor)> {
    let mut all = vec![("patch", output.patch.clone())];
    if output.cls.dims()[1] > 0 {
        all.push(("cls", output.cls.clone()));
    }
    all.extend(output.embedding.clone().map(|embedding| ("embedding", embedding)));
    all
}

/// The deviations of a network at the sizes of `want`, and that no output is left out.
fn deviations(vit: &VisionTransformer, want: &Tensors) -> Vec<(String, f32)> {
    let mut all = Vec::new();
    for size in ["native", "other"] {
        let Some(pixels) = want.get(&format!("{size}.pixels")) else {
            continue;
        };
        for (part, found) in outputs(&vit.forward(pixels, None).unwrap()) {
            if let Some(expected) = want.get(&format!("{size}.{part}")) {
                all.push((format!("{size} {part}"), deviation(&found, expected)));
            }
        }
    }
    let wanted = want.keys().filter(|key| !key.ends_with("pixels")).count();
    assert_eq!(all.len(), wanted);
    all
}

#[test]
fn every_backbone_computes_what_its_library_does() {
    for &(name, expectation, family) in ALL.iter().chain(&[TIPS_MEMORY]) {
        let checkpoint = loaded(name);
        assert_eq!(checkpoint.family, family, "{name}");
        let parameters = checkpoint.config.parameters();
        assert_eq!(checkpoint.backbone.len(), parameters.len(), "{name}");
        let found = deviations(&network(&checkpoint), &expected(expectation));
        let text: Vec<String> = found
            .iter()
            .map(|(what, worst)| format!("{what} {worst:.1e}"))
            .collect();
        println!("{name}: {}", text.join(", "));
        for (what, worst) in found {
            assert!(
                worst <= TOLERANCE,
                "{name} {what}: off by {worst:e} of the largest value"
            );
        }
    }
}

/// What is derived from tensors and configurations beyond the numbers.
#[test]
fn geometry_is_told_by_file_and_configuration() {
    let clip = loaded("clip_open").config;
    assert_eq!(
        (clip.pre_norm, clip.projection, clip.layer_norm_eps),
        (true, Some(24), 1e-5)
    );
    assert_eq!(clip.activation, GeluKind::Gelu);
    for name in ["clip_hf", "clip_timm"] {
        assert_eq!(loaded(name).config.activation, GeluKind::QuickGelu, "{name}");
    }
    let of_timm = loaded("clip_timm");
    assert_eq!(of_timm.config.projection, None);
    assert_eq!(
        of_timm.heads.keys().collect::<Vec<_>>(),
        ["head.bias", "head.weight"]
    );
    let dinov3 = loaded("dinov3_hf").config;
    assert_eq!((dinov3.image_size, dinov3.rope), (16, Some(RopeConfig::dinov3())));
    assert_eq!((dinov3.num_registers, dinov3.layer_norm_eps), (4, 1e-5));
    // The periods tell the heads, and no tensor the size of the images.
    let official = load(&path("dinov3_official.pth"), &LoadOptions::default())
        .unwrap()
        .config;
    assert_eq!((official.num_heads, official.image_size), (2, 224));
    assert_eq!(loaded("vit_hf").config.layer_norm_eps, 1e-12);
    assert_eq!(loaded("msn_hf").config.layer_norm_eps, 1e-6);
    let said = |name: &str| loaded(name).notices.join("; ");
    assert_says(
        &said("clip_open"),
        &["not used for features", "`transformer`", "`text_projection`"],
    );
    assert_says(&said("clip_hf"), &["`text_model`", "--mean 0.48145466"]);
    assert!(!said("clip_open").contains("--mean"), "its configuration says so");
    assert_says(&said("tips_hf"), &["`text_encoder`", "--mean 0,0,0"]);
    assert_says(&said("mae_hf"), &["`decoder`"]);
}

#[test]
fn files_of_one_network_give_the_same_tensors() {
    for (one, others) in [
        ("dinov3_hf", &["dinov3_memory.pth", "dinov3_official.pth"][..]),
        ("dinov3_hf_gated", &["dinov3_official_gated.pth"]),
        ("vit_hf", &["vit_memory.pth"]),
        ("tips_hf", &["tips_memory.pth"]),
        ("deit_hf", &["deit_memory.safetensors"]),
        ("ijepa_hf", &["ijepa_official.pth"]),
        ("beit_hf", &["beit_memory.safetensors"]),
    ] {
        for other in others {
            assert_same(&loaded(one).backbone, &loaded(other).backbone);
        }
    }
}

/// The tensors of a fixture by their names in the file.
fn raw(name: &str) -> Tensors {
    let mut raw = read_tensors(&path(name)).unwrap();
    let names: Vec<String> = raw.tensors.keys().cloned().collect();
    let floats = names
        .into_iter()
        .filter(|name| raw.tensors[name].element.is_float());
    let floats: Vec<String> = floats.collect();
    floats
        .into_iter()
        .map(|name| (name.clone(), raw.read(&name).unwrap()))
        .collect()
}

/// A folder with the configurations of a fixture.
fn beside(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "open_clip_config.json"] {
        let from = path(name).join(file);
        if from.is_file() {
            fs::copy(from, folder.path().join(file)).unwrap();
        }
    }
    folder
}

/// Written without waiting for the disk, as hundreds are.
fn saved(folder: &Path, tensors: &Tensors) -> PathBuf {
    let file = folder.join("model.safetensors");
    let named: HashMap<String, Tensor> = tensors.clone().into_iter().collect();
    candle_core::safetensors::save(&named, &file).unwrap();
    file
}

/// What a network may lack altogether, or what is none of it.
fn may_lack(name: &str) -> bool {
    let beside = [
        "text_",
        "transformer.resblocks.",
        "token_embedding",
        "ln_final",
        "logit_scale",
        "temperature",
        "decoder.",
        "classifier.",
        "head",
        "pooler.",
        "visual_projection.",
        "visual.proj",
        "cls_classifier.",
        "distillation_classifier.",
        "lm_head.",
        "text.",
        "logit_bias",
        "predictor.",
    ];
    let parts = [
        "mask_token",
        "register_tokens",
        "reg_token",
        "storage_tokens",
        "rope_embed.periods",
        "masked_embed",
    ];
    beside.iter().any(|start| name.starts_with(start))
        || name == "positional_embedding"
        || parts.iter().any(|part| name.ends_with(part))
}

#[test]
fn missing_and_spare_tensors_are_refused() {
    for &(name, _, _) in ALL {
        let (all, folder) = (raw(name), beside(name));
        assert!(load(&saved(folder.path(), &all), &two_heads()).is_ok(), "{name}");
        // A head of BEiT's pretraining, with a norm of its own.
        let of_head = |left_out: &str| name == "beit_mim_hf" && left_out.starts_with("layernorm.");
        for left_out in all
            .keys()
            .filter(|left_out| !may_lack(left_out) && !of_head(left_out))
        {
            let mut fewer = all.clone();
            fewer.remove(left_out);
            let Err(error) = load(&saved(folder.path(), &fewer), &two_heads()) else {
                panic!("{name} loads without {left_out}")
            };
            let line = error.to_string();
            assert!(!line.contains('\n'), "{line}");
        }
        let anchors = [
            "embeddings.cls_token",
            "embeddings.class_embedding",
            "embeddings.patch_embedding.weight",
            "embeddings.patch_embeddings.projection.weight",
            "cls_token",
            "class_embedding",
            "class_token",
            "patch_embed.proj.weight",
        ];
        let root_of = |anchor: &&str| all.keys().find_map(|key| key.strip_suffix(*anchor));
        let root = anchors.iter().find_map(root_of).unwrap();
        let mut more = all.clone();
        more.insert(
            format!("{root}extra"),
            Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap(),
        );
        let line = load(&saved(folder.path(), &more), &two_heads())
            .unwrap_err()
            .to_string();
        assert_says(&line, &["spare `extra` [3]"]);
    }
}

/// Biases that a family lacks are zeros where no block has them, and missing where one has.
#[test]
fn absent_biases_are_zeros_in_every_block_or_in_none() {
    let checkpoint = loaded("dinov3_hf");
    let bias = &checkpoint.backbone["blocks.1.attn.qkv.bias"];
    assert_eq!(numbers(&bias.narrow(0, 32, 32).unwrap()), [0.; 32]);
    assert!(
        numbers(&bias.narrow(0, 0, 32).unwrap())
            .iter()
            .all(|value| *value != 0.)
    );
    assert_eq!(
        numbers(&loaded("clip_open").backbone["patch_embed.proj.bias"]),
        [0.; 32]
    );
    let folder = beside("dinov3_hf");
    let mut some = raw("dinov3_hf");
    some.insert("layer.0.attention.k_proj.bias".into(), some["norm.bias"].clone());
    let line = refusal(&saved(folder.path(), &some), &two_heads());
    assert_says(&line, &["missing `layer.1.attention.k_proj.bias` [32]"]);
}

#[test]
fn masks_and_periods_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let all = raw("dinov3_official.pth");
    let ones = Tensor::ones(96, candle_core::DType::F32, &Device::Cpu).unwrap();
    let not_set = (&ones * f64::NAN).unwrap();
    for (name, tensor, parts) in [
        (
            "blocks.1.attn.qkv.bias_mask",
            not_set,
            &["blocks.1.attn.qkv.bias", "not set"][..],
        ),
        (
            "rope_embed.periods",
            Tensor::new(&[1f32, 2., 10., 31.6], &Device::Cpu).unwrap(),
            &["rope_embed.periods", "100^(1 / 4)", "found 2"],
        ),
        (
            "rope_embed.periods",
            Tensor::new(&[1f32, 10.], &Device::Cpu).unwrap(),
            &["num_heads: rope_embed.periods says 4", "says 2"],
        ),
    ] {
        let mut changed = all.clone();
        changed.insert(name.into(), tensor);
        assert_says(&refusal(&saved(folder.path(), &changed), &two_heads()), parts);
    }
    // A mask is a factor.
    let mut halved = all.clone();
    halved.insert(
        "blocks.0.attn.qkv.bias_mask".into(),
        (&all["blocks.0.attn.qkv.bias_mask"] * 0.5).unwrap(),
    );
    let found = load(&saved(folder.path(), &halved), &two_heads())
        .unwrap()
        .backbone;
    let whole = loaded("dinov3_official.pth").backbone;
    let name = "blocks.0.attn.qkv.bias";
    assert_eq!(numbers(&found[name]), numbers(&(&whole[name] * 0.5).unwrap()));
}

#[test]
fn the_activation_of_clip_is_never_guessed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, quick) in [("clip_open", false), ("clip_hf", true), ("clip_timm", true)] {
        let file = saved(folder.path(), &raw(name));
        assert_says(
            &refusal(&file, &two_heads()),
            &["CLIP ViT", "does not tell its activation", "--activation"],
        );
        for (kind, right) in [
            (GeluKind::Gelu, !quick),
            (GeluKind::QuickGelu, quick),
            (GeluKind::GeluTanh, false),
        ] {
            let options = LoadOptions {
                activation: Some(kind),
                ..two_heads()
            };
            let checkpoint = load(&file, &options).unwrap();
            assert_eq!(checkpoint.config.activation, kind);
            let worst = deviations(&network(&checkpoint), &expected(name));
            let worst = worst.into_iter().fold(0f32, |max, (_, worst)| max.max(worst));
            assert_eq!(worst <= TOLERANCE, right, "{name} with {kind}: {worst:e}");
            // With its configuration beside it another kind is a contradiction.
            let stated = load(&path(name), &options).map(|_| ());
            let found = loaded(name).config.activation;
            match (kind == found, stated) {
                (true, stated) => stated.unwrap(),
                (false, stated) => assert_says(
                    &stated.unwrap_err().to_string(),
                    &["activation:", "config.json says"],
                ),
            }
        }
    }
    let name = "vit_base_patch32_clip_224";
    fs::write(
        folder.path().join("config.json"),
        json!({"architecture": name}).to_string(),
    )
    .unwrap();
    let file = saved(folder.path(), &raw("clip_timm"));
    assert_eq!(
        load(&file, &two_heads()).unwrap().config.activation,
        GeluKind::Gelu
    );
}

/// The refusal of a fixture whose configuration is changed.
fn with_config(name: &str, file: &str, change: impl Fn(&mut Value)) -> Result<Checkpoint, String> {
    let folder = beside(name);
    let text = fs::read(path(name).join(file)).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    change(&mut config);
    fs::write(folder.path().join(file), config.to_string()).unwrap();
    load(&saved(folder.path(), &raw(name)), &LoadOptions::default()).map_err(|error| error.to_string())
}

#[test]
fn configurations_that_contradict_the_tensors_are_refused() {
    for (name, field, value, parts) in [
        (
            "clip_hf",
            "hidden_size",
            json!(64),
            &["hidden_size: config.json says 64, the tensors 32"][..],
        ),
        (
            "clip_hf",
            "intermediate_size",
            json!(64),
            &["intermediate_size", "64", "48"],
        ),
        (
            "clip_hf",
            "hidden_act",
            json!("relu"),
            &["hidden_act: expected gelu", "relu"],
        ),
        (
            "dinov3_hf",
            "num_register_tokens",
            json!(0),
            &["num_register_tokens", "says 0, the tensors 4"],
        ),
        (
            "dinov3_hf",
            "use_gated_mlp",
            json!(true),
            &["hidden_act: expected silu"],
        ),
        (
            "dinov3_hf",
            "model_type",
            json!("vit"),
            &["model_type: expected dinov3_vit, found vit"],
        ),
        ("dinov3_hf", "rope_theta", json!(-1), &["rope.theta"]),
        ("dinov3_hf_gated", "use_gated_mlp", json!(false), &["hidden_act"]),
        (
            "vit_hf",
            "num_hidden_layers",
            json!(3),
            &["num_hidden_layers", "says 3, the tensors 2"],
        ),
        (
            "vit_hf",
            "model_type",
            json!("dpt"),
            &["model_type: expected vit or vit_mae or vit_msn or deit or ijepa, found dpt"],
        ),
    ] {
        let change = |config: &mut Value| match name {
            "clip_hf" => config["vision_config"][field] = value.clone(),
            _ => config[field] = value.clone(),
        };
        let line = with_config(name, "config.json", change)
            .map(|_| ())
            .expect_err(field);
        assert_says(&line, parts);
    }
    let projection = |config: &mut Value| config["projection_dim"] = json!(25);
    let line = with_config("clip_hf", "config.json", projection)
        .map(|_| ())
        .unwrap_err();
    assert_says(&line, &["projection_dim: config.json says 25, the tensors 24"]);
    // What no tensor tells is taken.
    let theta = |config: &mut Value| config["rope_theta"] = json!(50.);
    let other = with_config("dinov3_hf", "config.json", theta).unwrap();
    assert_eq!(
        other.config.rope,
        Some(RopeConfig {
            theta: 50.,
            ..RopeConfig::dinov3()
        })
    );
    let worst = deviations(&network(&other), &expected("dinov3_hf"));
    assert!(worst.iter().all(|(_, worst)| *worst > 1e-4), "{worst:?}");
}

#[test]
fn towers_of_open_clip_that_are_not_computed_are_refused_by_their_field() {
    for (field, value, parts) in [
        (
            "attentional_pool",
            json!(true),
            &["vision_cfg.attentional_pool", "not supported"][..],
        ),
        (
            "final_ln_after_pool",
            json!(true),
            &["vision_cfg.final_ln_after_pool"],
        ),
        (
            "pool_type",
            json!("avg"),
            &["vision_cfg.pool_type: expected tok, found \"avg\""],
        ),
        ("timm_model_name", json!("vit_base"), &["timm_model_name"]),
        (
            "width",
            json!(64),
            &["vision_cfg.width", "says 64, the tensors 32"],
        ),
        (
            "head_width",
            json!(15),
            &["vision_cfg.head_width", "divisor of the width 32, found 15"],
        ),
        (
            "head_width",
            json!("x"),
            &["vision_cfg.head_width: expected a number"],
        ),
    ] {
        let change = |config: &mut Value| config["model_cfg"]["vision_cfg"][field] = value.clone();
        let line = with_config("clip_open", "open_clip_config.json", change)
            .map(|_| ())
            .expect_err(field);
        assert_says(&line, parts);
    }
    let quick = |config: &mut Value| config["model_cfg"]["quick_gelu"] = json!(true);
    let quick = with_config("clip_open", "open_clip_config.json", quick).unwrap();
    assert_eq!(
        (quick.config.activation, quick.config.num_heads),
        (GeluKind::QuickGelu, 2)
    );
    let tanh =
        |config: &mut Value| config["model_cfg"]["vision_cfg"]["act_kwargs"] = json!({"approximate": "tanh"});
    let tanh = with_config("clip_open", "open_clip_config.json", tanh).unwrap();
    assert_eq!(tanh.config.activation, GeluKind::GeluTanh);
    // Without the norm before the blocks only the configuration tells what it is.
    let folder = tempfile::tempdir().unwrap();
    let mut without = raw("clip_open");
    without.retain(|name, _| !name.contains("ln_pre"));
    let options = LoadOptions {
        activation: Some(GeluKind::Gelu),
        ..two_heads()
    };
    assert_says(
        &refusal(&saved(folder.path(), &without), &options),
        &["open_clip_config.json"],
    );
    let beside = beside("clip_open");
    let config = load(&saved(beside.path(), &without), &two_heads())
        .unwrap()
        .config;
    assert!(!config.pre_norm);
}

/// What is pooled, by whom and with how many heads, and where patches lie.
#[test]
fn pooling_and_positions_are_told_by_tensors() {
    let attention = |name: &str| match loaded(name).config.pool {
        Pool::Attention(pool) => pool.heads,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!((attention("siglip_hf"), attention("siglip_timm")), (None, None));
    // The number of PE's, which no tensor tells.
    assert_eq!(attention("pe_timm"), Some(8));
    assert_eq!(loaded("pe_timm").config.rope, Some(RopeConfig::perception(4)));
    assert_eq!(
        loaded("eva02_timm.safetensors").config.rope,
        Some(RopeConfig::eva02())
    );
    assert_eq!(loaded("eva_timm.safetensors").config.rope, None);
    for (name, norm, pool) in [
        ("beit_hf", FinalNorm::Pooled, Pool::Mean),
        ("beit_mim_hf", FinalNorm::Tokens, Pool::Class),
        ("data2vec_hf", FinalNorm::None, Pool::Class),
        ("pe_spatial_timm.safetensors", FinalNorm::None, Pool::Class),
        ("vit_gap_timm", FinalNorm::Pooled, Pool::Mean),
        ("eva02_clip_open", FinalNorm::Tokens, Pool::Class),
    ] {
        let config = loaded(name).config;
        assert_eq!((config.final_norm, config.pool), (norm, pool), "{name}");
    }
    for (name, positions) in [
        ("beit_timm.safetensors", RelativePositions::EachBlock),
        ("beit_mim_hf", RelativePositions::Shared),
    ] {
        // A table has a column for each head.
        let config = load(&path(name), &LoadOptions::default()).unwrap().config;
        assert_eq!((config.num_heads, config.image_size), (2, 16), "{name}");
        assert_eq!(config.relative_positions, Some(positions), "{name}");
    }
    // The distillation token is a register, its position in it.
    let deit = loaded("deit_timm.safetensors");
    assert_eq!(deit.config.num_registers, 1);
    assert_eq!(deit.backbone["pos_embed"].dims(), [1, 17, 32]);
    assert_eq!(
        deit.heads.keys().collect::<Vec<_>>(),
        ["head.bias", "head.weight", "head_dist.bias", "head_dist.weight"]
    );
    let said = |name: &str| loaded(name).notices.join("; ");
    assert_says(&said("siglip_hf"), &["`text_model`"]);
    assert_says(&said("siglip_open"), &["text.token_embedding.weight"]);
    assert_says(&said("ibot_official.pth"), &["masked_embed"]);
    assert_says(&said("ijepa_official.pth"), &["predictor"]);
}

#[test]
fn networks_without_a_class_token_say_what_they_have() {
    use macula_models::onnx::OutputKind;
    for (name, has) in [
        ("siglip_hf", "patch, patch_mean, embedding"),
        ("ijepa_hf", "patch, patch_mean"),
    ] {
        let checkpoint = loaded(name);
        let vit = network(&checkpoint);
        let pixels = &expected(name)["native.pixels"];
        assert_eq!(vit.forward(pixels, None).unwrap().cls.dims(), [1, 0]);
        for kind in [OutputKind::Cls, OutputKind::LayerCls(1)] {
            let error = kind.check(&checkpoint.config).unwrap_err().to_string();
            assert_says(&error, &["with a class token", &kind.to_string(), has]);
        }
        let error = vit.forward_visible(pixels, None, &[0, 1]).unwrap_err();
        assert_says(&error.to_string(), &["no class token"]);
    }
}

/// Blocks that are composed of smaller operations: chosen rows are those of the whole pass, and branches are not left out.
#[test]
fn composed_blocks_give_rows_and_attention() {
    for name in ["eva02_clip_open", "beit_hf", "beit_mim_hf"] {
        let vit = network(&loaded(name));
        let pixels = &expected(name)["other.pixels"];
        let output = vit.forward(pixels, None).unwrap();
        let rows = vit.forward_rows(pixels, None, None, &[0, 5]).unwrap();
        assert!(
            deviation(&rows.narrow(0, 0, 1).unwrap(), &output.cls) < 1e-6,
            "{name}"
        );
        let patch = output.patch.narrow(1, 4, 1).unwrap().squeeze(1).unwrap();
        assert!(deviation(&rows.narrow(0, 1, 1).unwrap(), &patch) < 1e-6, "{name}");
        let shown = vit.attention_probabilities(pixels, 1).unwrap();
        assert_eq!(shown.dims(), [1, 2, 19, 19]);
        let sums = numbers(&shown.sum(3).unwrap());
        assert!(sums.iter().all(|sum| (sum - 1.).abs() < 1e-5), "{name}: {sums:?}");
        let (schedule, mode) = (DropPathSchedule::Uniform, DropPathMode::BatchSubset);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let plan = DropPathPlan::draw(0.5, schedule, mode, 2, 1, &mut rng).unwrap();
        let error = vit.forward_with(pixels, None, Some(&plan)).unwrap_err();
        assert_says(&error.to_string(), &["drop_path", "not trained"]);
    }
}

#[test]
fn configurations_of_pooled_networks_are_held_against_the_tensors() {
    for (name, field, value, parts) in [
        (
            "beit_hf",
            "use_mean_pooling",
            json!(false),
            &["use_mean_pooling: config.json says false, the tensors true"][..],
        ),
        (
            "beit_hf",
            "use_relative_position_bias",
            json!(false),
            &["use_relative_position_bias", "says false, the tensors true"],
        ),
        (
            "beit_mim_hf",
            "use_shared_relative_position_bias",
            json!(false),
            &["use_shared_relative_position_bias"],
        ),
        (
            "beit_hf",
            "num_attention_heads",
            json!(4),
            &["relative_position_bias_table", "expected [52, 4], found [52, 2]"],
        ),
        (
            "ijepa_hf",
            "model_type",
            json!("vit"),
            &["model_type: config.json says a class token, the tensors none"],
        ),
        (
            "deit_hf",
            "model_type",
            json!("vit"),
            &["num_register_tokens: config.json says 0, the tensors 1"],
        ),
    ] {
        let change = |config: &mut Value| config[field] = value.clone();
        let line = with_config(name, "config.json", change)
            .map(|_| ())
            .expect_err(field);
        assert_says(&line, parts);
    }
    let head = |config: &mut Value| config["vision_config"]["vision_use_head"] = json!(false);
    let line = with_config("siglip_hf", "config.json", head)
        .map(|_| ())
        .unwrap_err();
    assert_says(
        &line,
        &["vision_use_head: config.json says false, the tensors true"],
    );
    for (field, value, parts) in [
        (
            "timm_pool",
            json!("avg"),
            &["vision_cfg.timm_pool", "says avg, the tensors token"][..],
        ),
        (
            "timm_proj",
            json!("none"),
            &["vision_cfg.timm_proj", "says none, the tensors a projection"],
        ),
        ("timm_proj", json!("mlp"), &["vision_cfg.timm_proj", "found mlp"]),
        (
            "timm_model_name",
            Value::Null,
            &["vision_cfg.timm_model_name", "found none"],
        ),
    ] {
        let change = |config: &mut Value| config["model_cfg"]["vision_cfg"][field] = value.clone();
        let line = with_config("eva02_clip_open", "open_clip_config.json", change);
        assert_says(&line.map(|_| ()).expect_err(field), parts);
    }
}

/// A tower of timm whose projection lies beside it has no bias.
#[test]
fn the_projection_beside_a_trunk_is_its_own() {
    let mut tensors = raw("eva02_clip_open");
    let weight = tensors.remove("visual.trunk.head.weight").unwrap();
    let bias = tensors.remove("visual.trunk.head.bias").unwrap();
    tensors.insert("visual.head.proj.weight".into(), weight);
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = load(&saved(folder.path(), &tensors), &two_heads()).unwrap();
    assert_eq!(
        (checkpoint.config.projection, checkpoint.config.projection_bias),
        (Some(24), false)
    );
    let want = expected("eva02_clip_open");
    let found = network(&checkpoint)
        .forward(&want["native.pixels"], None)
        .unwrap();
    let found = found.embedding.unwrap().broadcast_add(&bias).unwrap();
    assert!(deviation(&found, &want["native.embedding"]) < TOLERANCE);
}

#[test]
fn the_activation_of_timms_siglip_is_never_guessed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, right) in [
        ("siglip_timm", GeluKind::Gelu),
        ("siglip_open", GeluKind::GeluTanh),
    ] {
        let file = saved(folder.path(), &raw(name));
        assert_says(
            &refusal(&file, &two_heads()),
            &["SigLIP ViT of timm", "does not tell its activation", "gelu-tanh"],
        );
        let options = LoadOptions {
            activation: Some(right),
            ..two_heads()
        };
        assert_eq!(load(&file, &options).unwrap().config, loaded(name).config);
    }
}

/// Networks of other kinds that a shape tells.
#[test]
fn sequences_of_patches_and_videos_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    for (fixture, name, shape, parts) in [
        (
            "siglip_hf",
            "vision_model.embeddings.patch_embedding.weight",
            &[32, 48][..],
            &["NaFlex", "sequences of patches"][..],
        ),
        (
            "eva_timm.safetensors",
            "cls_token",
            &[1, 1, 1792],
            &["EVA-02 E", "norms behind the branches"],
        ),
        (
            "ijepa_official.pth",
            "encoder.module.patch_embed.proj.weight",
            &[32, 3, 2, 4, 4],
            &["videos", "over time"],
        ),
    ] {
        let mut tensors = raw(fixture);
        assert!(tensors.insert(name.into(), zeros(shape)).is_some());
        assert_says(&refusal(&saved(folder.path(), &tensors), &two_heads()), parts);
    }
}

#[test]
fn released_networks_are_held_against_their_names() {
    let named = |name: &str, arch: &str| {
        let options = LoadOptions {
            arch: Some(arch.into()),
            ..LoadOptions::default()
        };
        refusal(&path(name), &options)
    };
    assert_says(
        &named("dinov3_timm.safetensors", "dinov3-vits16"),
        &[
            "dinov3-vits16: expected width 384, found 32",
            "depth 12, found 2",
            "patch size 16, found 4",
        ],
    );
    assert_says(
        &named("dinov3_timm.safetensors", "dinov3-small"),
        &["found `dinov3-small`", "dinov3-vits16"],
    );
    // What a configuration says and the name does not.
    assert_says(
        &named("clip_open", "openclip:ViT-B-32/openai"),
        &["activation: open_clip_config.json says gelu, the architecture quick-gelu"],
    );
}

/// What macula writes of such a network it reads again as it was.
#[test]
fn saved_networks_load_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    for &(name, _, _) in ALL {
        let first = loaded(name);
        let file = folder.path().join("teacher.safetensors");
        save(&file, &first.backbone, &config_metadata(&first.config).unwrap()).unwrap();
        let second = load(&file, &LoadOptions::default()).unwrap();
        assert_eq!(second.config, first.config, "{name}");
        assert_same(&second.backbone, &first.backbone);
        let other = match first.config.activation {
            GeluKind::GeluTanh => GeluKind::Gelu,
            _ => GeluKind::GeluTanh,
        };
        let options = LoadOptions {
            activation: Some(other),
            ..LoadOptions::default()
        };
        assert_says(&refusal(&file, &options), &["activation: macula.config says"]);
    }
}

/// A small network of all that is new, with weights of ordinary size.
fn small(rope: bool, activation: GeluKind) -> (VitConfig, Tensors) {
    let config = VitConfig {
        embed_dim: 16,
        depth: 2,
        num_heads: 2,
        ffn_hidden: 12,
        num_registers: 1,
        pre_norm: true,
        projection: Some(5),
        rope: rope.then_some(RopeConfig::dinov3()),
        activation,
        layer_scale: Some(0.7),
        mask_token: false,
        ..VitConfig::named("vit-tiny/2", 4).unwrap()
    };
    let tensors = initialise(&config, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
    // Tokens large enough that the norm before the blocks is no cliff.
    let larger = |(name, tensor): (String, Tensor)| {
        let factor = match (name.as_str(), tensor.rank()) {
            ("cls_token" | "register_tokens", _) => 3e5,
            ("pos_embed", _) => 20.,
            (_, 2) => 12.,
            _ => 1.,
        };
        (name, (tensor * factor).unwrap())
    };
    (config, tensors.into_iter().map(larger).collect())
}

/// Gradients of the kernels against those of the composition, and along a direction against differences.
#[test]
fn gradients_of_rotary_networks_are_those_of_differences() {
    let pixels: Vec<f32> = (0..2 * 3 * 6 * 4).map(|i| (i as f32 * 0.37).sin()).collect();
    let pixels = Tensor::from_vec(pixels, (2, 3, 6, 4), &Device::Cpu).unwrap();
    for (rope, activation) in [
        (true, GeluKind::Gelu),
        (true, GeluKind::QuickGelu),
        (false, GeluKind::GeluTanh),
    ] {
        let (config, tensors) = small(rope, activation);
        let loss = |tensors: &Tensors| {
            let vit = VisionTransformer::from_tensors(&config, tensors, &Device::Cpu).unwrap();
            let output = vit.forward(&pixels, None).unwrap();
            let waves = |tensor: &Tensor, step: f64| {
                let count = tensor.elem_count();
                let waves: Vec<f32> = (0..count).map(|i| (i as f64 * step).cos() as f32).collect();
                let waves = Tensor::from_vec(waves, tensor.shape(), &Device::Cpu).unwrap();
                (tensor * waves).unwrap().sum_all().unwrap()
            };
            let of_patches = waves(&output.patch, 0.7);
            (waves(output.embedding.as_ref().unwrap(), 0.9) + of_patches).unwrap()
        };
        let gradients = || {
            let vars: Vec<(String, Var)> = tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()))
                .collect();
            let tracked = vars
                .iter()
                .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
                .collect();
            let store = loss(&tracked).backward().unwrap();
            let of = |(name, var): (String, Var)| {
                let grad = store.get(&var).unwrap_or_else(|| panic!("no gradient of {name}"));
                (name, grad.clone())
            };
            vars.into_iter().map(of).collect::<Tensors>()
        };
        let (kernels, composed) = (gradients(), ops::composed(gradients));
        let mut slope = 0f64;
        let mut moved = [tensors.clone(), tensors.clone()];
        const STEP: f64 = 2e-3;
        for (place, (name, grad)) in kernels.iter().enumerate() {
            assert!(deviation(grad, &composed[name]) < 2e-5, "{name}");
            let direction: Vec<f32> = (0..grad.elem_count())
                .map(|i| ((i + place) as f32 * 1.3).sin())
                .collect();
            let products = numbers(grad).into_iter().zip(&direction);
            slope += products.map(|(a, b)| f64::from(a) * f64::from(*b)).sum::<f64>();
            let direction = Tensor::from_vec(direction, grad.shape(), &Device::Cpu).unwrap();
            for (all, sign) in moved.iter_mut().zip([STEP, -STEP]) {
                let there = (&tensors[name] + (&direction * sign).unwrap()).unwrap();
                all.insert(name.clone(), there);
            }
        }
        let [above, below] = moved.map(|all| f64::from(loss(&all).to_scalar::<f32>().unwrap()));
        let difference = (above - below) / (2. * STEP);
        println!("{activation}, rotary {rope}: slope {slope}, by differences {difference}");
        assert!(
            (slope - difference).abs() < 5e-3 * slope.abs(),
            "{slope} and {difference}"
        );
    }
}

#[test]
fn rotary_networks_show_their_attention_and_refuse_parts_of_images() {
    let (config, tensors) = small(true, GeluKind::Gelu);
    let vit = VisionTransformer::from_tensors(&config, &tensors, &Device::Cpu).unwrap();
    let pixels: Vec<f32> = (0..3 * 6 * 4).map(|i| (i as f32 * 0.37).sin()).collect();
    let pixels = Tensor::from_vec(pixels, (1, 3, 6, 4), &Device::Cpu).unwrap();
    let shown = vit.attention_probabilities(&pixels, 1).unwrap();
    assert_eq!(shown.dims(), [1, 2, 8, 8]);
    let composed = ops::composed(|| vit.attention_probabilities(&pixels, 1)).unwrap();
    assert!(deviation(&shown, &composed) < 1e-5);
    let plain = VitConfig {
        rope: None,
        ..config.clone()
    };
    let mut unturned = tensors.clone();
    unturned.insert(
        "pos_embed".into(),
        Tensor::zeros((1, 5, 16), candle_core::DType::F32, &Device::Cpu).unwrap(),
    );
    let unturned = VisionTransformer::from_tensors(&plain, &unturned, &Device::Cpu).unwrap();
    // The same tokens enter the first block of both.
    let first = |vit: &VisionTransformer| vit.attention_probabilities(&pixels, 0).unwrap();
    assert!(deviation(&first(&vit), &first(&unturned)) > 1e-3);
    // Chosen rows are those of the whole pass.
    let rows = vit.forward_rows(&pixels, None, None, &[0, 5]).unwrap();
    let output = vit.forward(&pixels, None).unwrap();
    let cls = rows.narrow(0, 0, 1).unwrap();
    assert!(deviation(&cls, &output.cls) < 1e-6);
    let patch = rows.narrow(0, 1, 1).unwrap();
    assert!(deviation(&patch, &output.patch.narrow(1, 3, 1).unwrap().squeeze(1).unwrap()) < 1e-6);
    let error = vit
        .forward_visible(&pixels, None, &[0, 1])
        .unwrap_err()
        .to_string();
    assert_says(&error, &["rotary positions"]);
}

/// Writes what `benchmarks/check_backbones.py` runs in ONNX Runtime: each network at its own size and at any, and what is
/// expected of it.
#[test]
fn every_backbone_is_exported() {
    use macula_models::onnx::{ExportOptions, ImageShape, describe, export};
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("MACULA_BACKBONES_OUT").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&folder).unwrap();
    for &(name, expectation, _) in ALL.iter().chain(&[TIPS_MEMORY]) {
        let checkpoint = loaded(name);
        for (kind, image) in [
            (
                "fixed",
                ImageShape::Fixed {
                    height: 16,
                    width: 16,
                },
            ),
            ("dynamic", ImageShape::Dynamic),
        ] {
            let file = folder.join(format!("{name}.{kind}.onnx"));
            let report = export(
                &checkpoint.config,
                &checkpoint.backbone,
                &ExportOptions::new(image),
                &file,
            )
            .unwrap();
            let embeds = report.outputs.iter().any(|output| output == "embedding");
            assert_eq!(embeds, checkpoint.config.embedding_width().is_some(), "{name}");
            let described = describe(&file).unwrap();
            let operator = |name: &str| described.operators.get(name).copied().unwrap_or(0);
            assert_eq!(
                report.outputs.iter().any(|output| output == "cls"),
                checkpoint.config.class_token,
                "{name}"
            );
            assert_eq!(
                operator("Cos") > 0,
                kind == "dynamic" && checkpoint.config.rope.is_some(),
                "{name}"
            );
            assert_eq!(operator("Tile"), 0);
        }
        let want = path(&format!("{expectation}.expected.safetensors"));
        fs::copy(want, folder.join(format!("{name}.expected.safetensors"))).unwrap();
    }
}
