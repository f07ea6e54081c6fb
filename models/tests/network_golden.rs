//! The network and the projection head against values computed by facebookresearch/dinov2.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use macula_models::heads::{DinoHead, DinoHeadConfig, LinearClassifier, classifier_features};
use macula_models::vit::{
    FeedForwardKind, Layers, PositionRule, VisionTransformer, VitConfig, interpolate_table,
};

/// Of the largest value. README says 4e-6; this leaves room for other orders of sums.
const TOLERANCE: f32 = 1e-5;
const SIZES: [(&str, usize, usize); 2] = [("70x70", 5, 5), ("98x56", 7, 4)];

fn fixture(name: &str) -> BTreeMap<String, Tensor> {
    let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap()
        .into_iter()
        .collect()
}

fn config(name: &str) -> VitConfig {
    VitConfig {
        embed_dim: 48,
        depth: 3,
        num_heads: 3,
        patch_size: 14,
        image_size: 70,
        in_channels: 3,
        num_registers: if name == "reg4" { 4 } else { 0 },
        feed_forward: if name == "swiglu" {
            FeedForwardKind::Swiglu
        } else {
            FeedForwardKind::Mlp
        },
        ffn_hidden: if name == "swiglu" { 128 } else { 192 },
        layer_scale: Some(1e-5),
        mask_token: true,
        layer_norm_eps: 1e-6,
        position_rule: if name == "reg4" {
            PositionRule::Registers
        } else {
            PositionRule::Official
        },
        ..VitConfig::named("vit-tiny/14", 70).unwrap()
    }
}

fn networks() -> impl Iterator<Item = (&'static str, VisionTransformer, BTreeMap<String, Tensor>)> {
    ["plain", "reg4", "swiglu"].into_iter().map(|name| {
        let weights = fixture(&format!("official_{name}"));
        let vit = VisionTransformer::from_tensors(&config(name), &weights, &Device::Cpu).unwrap();
        (name, vit, fixture(&format!("official_{name}.expected")))
    })
}

/// Fails unless every value is within `tolerance` of the largest expected one.
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shape");
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, expected) = (flat(found), flat(expected));
    let largest = expected.iter().fold(0f32, |best, value| best.max(value.abs()));
    let worst = found
        .iter()
        .zip(&expected)
        .fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    println!("{what}: {:e} of the largest value", worst / largest);
    let finite = found.iter().all(|value| value.is_finite());
    assert!(
        finite && worst <= tolerance * largest,
        "{what}: off by {worst}, largest {largest}"
    );
}

#[test]
fn network_outputs_are_the_reference_ones() {
    for (name, vit, expected) in networks() {
        for (size, rows, columns) in SIZES {
            let want = |key: &str| &expected[&format!("{size}.{key}")];
            let close = |key: &str, found: &Tensor| {
                assert_close(&format!("{name} {size} {key}"), found, want(key), TOLERANCE)
            };
            let out = vit.forward(want("pixels"), None).unwrap();
            close("cls", &out.cls);
            close("patch", &out.patch);
            close("prenorm", &out.prenorm);
            match name {
                "reg4" => close("reg", &out.reg),
                _ => assert_eq!(out.reg.dims(), [2, 0, 48]),
            }
            assert_close(
                "patch mean",
                &out.patch_mean().unwrap(),
                &want("patch").mean(1).unwrap(),
                TOLERANCE,
            );
            let masked = vit.forward(want("pixels"), Some(want("mask"))).unwrap();
            close("masked_cls", &masked.cls);
            close("masked_patch", &masked.patch);
            for (i, layer) in vit
                .intermediate_layers(want("pixels"), &Layers::Last(2), true)
                .unwrap()
                .iter()
                .enumerate()
            {
                assert_eq!((layer.block, layer.grid), (1 + i, (rows, columns)));
                close(&format!("last2.{i}.cls"), &layer.cls);
                close(&format!("last2.{i}.patch"), &layer.patch);
            }
            let table = &fixture(&format!("official_{name}"))["pos_embed"];
            let found = interpolate_table(table, vit.config().position_rule, rows, columns).unwrap();
            assert_close(&format!("{name} {size} pos"), &found, want("pos"), 1e-5);
        }
    }
}

#[test]
fn network_intermediate_outputs_fit_together() {
    for (name, vit, expected) in networks() {
        let pixels = &expected["98x56.pixels"];
        let out = vit.forward(pixels, None).unwrap();
        let states = vit.block_outputs(pixels, &Layers::Indices(vec![2, 0])).unwrap();
        assert_eq!(states.len(), 2, "{name}");
        assert_close("last hidden state", &states[1], &out.prenorm, 0.);
        let registers = vit.config().num_registers;
        let raw = vit
            .intermediate_layers(pixels, &Layers::Indices(vec![0]), false)
            .unwrap();
        assert_close(
            "raw class token",
            &raw[0].cls,
            &states[0].narrow(1, 0, 1).unwrap().squeeze(1).unwrap(),
            0.,
        );
        assert_close(
            "raw patches",
            &raw[0].patch,
            &states[0].narrow(1, 1 + registers, 28).unwrap(),
            0.,
        );
        let map = raw[0].patch_map().unwrap();
        assert_eq!(map.dims(), [2, 48, 7, 4]);
        let patch: Vec<f32> = raw[0]
            .patch
            .get(1)
            .unwrap()
            .get(2 * 4 + 3)
            .unwrap()
            .to_vec1()
            .unwrap();
        let at = map
            .get(1)
            .unwrap()
            .narrow(1, 2, 1)
            .unwrap()
            .narrow(2, 3, 1)
            .unwrap();
        assert_eq!(patch, at.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let normed = vit.intermediate_layers(pixels, &Layers::Last(3), true).unwrap();
        let features = classifier_features(&normed).unwrap();
        assert_eq!(features.dims(), [2, 4 * 48]);
        assert_close(
            "last class token",
            &features.narrow(1, 96, 48).unwrap(),
            &out.cls,
            0.,
        );
        assert_close(
            "mean patch",
            &features.narrow(1, 144, 48).unwrap(),
            &out.patch_mean().unwrap(),
            0.,
        );
    }
}

#[test]
fn network_attention_rows_are_distributions() {
    for (name, vit, expected) in networks() {
        let pixels = &expected["98x56.pixels"];
        let tokens = 1 + vit.config().num_registers + 28;
        for block in 0..3 {
            let maps = vit.attention_probabilities(pixels, block).unwrap();
            assert_eq!(maps.dims(), [2, 3, tokens, tokens], "{name}");
            let sums = maps.sum(3).unwrap();
            assert_close("row sums", &sums, &sums.ones_like().unwrap(), 1e-5);
        }
        let error = vit.attention_probabilities(pixels, 3).unwrap_err().to_string();
        assert_eq!(error, "block: expected a block below 3, found 3");
    }
}

#[test]
fn network_dino_head_is_the_reference_one() {
    let tensors = fixture("dino_head");
    let config = DinoHeadConfig {
        input: 24,
        hidden: 32,
        bottleneck: 16,
        prototypes: 40,
        train_gain: true,
    };
    let (x, y) = (tensors["x"].clone(), tensors["y"].clone());
    for (name, shape) in config.parameters() {
        assert_eq!(tensors[&name].dims(), shape, "{name}");
    }
    let vb = VarBuilder::from_tensors(tensors.into_iter().collect(), DType::F32, &Device::Cpu);
    let head = DinoHead::new(&config, vb).unwrap();
    assert_close("logits", &head.forward(&x).unwrap(), &y, 1e-5);
    // Leading dimensions do not matter.
    let spread = head.forward(&x.reshape((5, 1, 24)).unwrap()).unwrap();
    assert_close(
        "logits of [5, 1, D]",
        &spread,
        &y.reshape((5, 1, 40)).unwrap(),
        1e-5,
    );
}

#[test]
fn network_linear_classifier_is_a_product_and_a_bias() {
    let weight = Tensor::new(&[[1f32, 2.], [3., 4.], [0., -1.]], &Device::Cpu).unwrap();
    let bias = Tensor::new(&[0.5f32, 0., 1.], &Device::Cpu).unwrap();
    let tensors = [("weight".to_owned(), weight), ("bias".to_owned(), bias)]
        .into_iter()
        .collect();
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let classifier = LinearClassifier::new(2, 3, vb).unwrap();
    let x = Tensor::new(&[[1f32, 1.], [2., -1.]], &Device::Cpu).unwrap();
    let found = classifier.forward(&x).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(found, [[3.5, 7., 0.], [0.5, 2., 2.]]);
}

#[test]
fn network_refuses_wrong_inputs_in_one_line() {
    let (_, vit, _) = networks().next().unwrap();
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let pixels = zeros(&[2, 3, 70, 70], DType::F32);
    let forward =
        |pixels: &Tensor, masks: Option<&Tensor>| vit.forward(pixels, masks).unwrap_err().to_string();
    for (error, expected) in [
        (
            forward(&zeros(&[1, 3, 71, 70], DType::F32), None),
            "image height: expected a positive multiple of the patch size 14, found 71",
        ),
        (
            forward(&zeros(&[1, 3, 70, 0], DType::F32), None),
            "image width: expected a positive multiple of the patch size 14, found 0",
        ),
        (
            forward(&zeros(&[1, 1, 70, 70], DType::F32), None),
            "pixels: expected at least one image of 3 channels, found [1, 1, 70, 70]",
        ),
        (
            forward(&zeros(&[0, 3, 70, 70], DType::F32), None),
            "pixels: expected at least one image of 3 channels, found [0, 3, 70, 70]",
        ),
        (
            forward(&zeros(&[3, 70, 70], DType::F32), None),
            "pixels: expected [batch, 3, height, width], found [3, 70, 70]",
        ),
        (
            forward(&zeros(&[2, 3, 70, 70], DType::F64), None),
            "pixels: expected f32, found F64",
        ),
        (
            forward(&pixels, Some(&zeros(&[2, 24], DType::U8))),
            "masks: expected [2, 25] of U8, found [2, 24] of U8",
        ),
        (
            forward(&pixels, Some(&zeros(&[2, 25], DType::F32))),
            "masks: expected [2, 25] of U8, found [2, 25] of F32",
        ),
    ] {
        assert_eq!(error, expected);
    }
    let without = VitConfig {
        mask_token: false,
        ..config("plain")
    };
    let mut weights = fixture("official_plain");
    weights.remove("mask_token");
    let vit = VisionTransformer::from_tensors(&without, &weights, &Device::Cpu).unwrap();
    let error = vit
        .forward(&pixels, Some(&zeros(&[2, 25], DType::U8)))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "masks: expected none: the network has no mask token");
    let build = |config: &VitConfig, weights: &BTreeMap<String, Tensor>| {
        VisionTransformer::from_tensors(config, weights, &Device::Cpu)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        build(&config("plain"), &weights),
        "mask_token: expected shape [1, 48], found no such tensor"
    );
    weights.insert("head.weight".into(), zeros(&[1], DType::F32));
    assert_eq!(
        build(&without, &weights),
        "head.weight: expected no such tensor in this network, found one of shape [1]"
    );
    weights.insert("norm.weight".into(), zeros(&[1], DType::F32));
    assert_eq!(
        build(&without, &weights),
        "norm.weight: expected shape [48], found [1]"
    );
}
