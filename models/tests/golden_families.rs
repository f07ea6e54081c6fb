//! Checkpoints of Hugging Face and timm, loaded as a user would, against what their own implementations compute.
#![allow(clippy::unwrap_used)]

mod weights_support;

use candle_core::{Device, Tensor};
use macula_models::vit::{Layers, VisionTransformer};
use weights_support::*;

const TOLERANCE: f32 = 1e-4;

fn network(name: &str) -> VisionTransformer {
    let checkpoint = load_fixture(name);
    VisionTransformer::from_tensors(&checkpoint.config, &checkpoint.backbone, &Device::Cpu).unwrap()
}

fn expected(name: &str) -> impl Fn(&str) -> Tensor {
    let path = fixture(&format!("{name}.expected.safetensors"));
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    move |key| tensors[key].clone()
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let expected = numbers(expected);
    let largest = expected.iter().fold(0f32, |best, value| best.max(value.abs()));
    let found = numbers(found);
    let worst = found
        .iter()
        .zip(&expected)
        .fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    println!("{what}: {:e} of the largest value", worst / largest);
    assert!(found.iter().all(|value| value.is_finite()), "{what}");
    assert!(
        worst <= TOLERANCE * largest,
        "{what}: off by {worst}, largest {largest}"
    );
}

#[test]
fn hugging_face_networks_compute_what_transformers_does() {
    for name in ["hf_plain", "hf_reg4", "hf_swiglu"] {
        let (vit, want) = (network(name), expected(name));
        for size in ["70x70", "98x56"] {
            let key = |part: &str| format!("{size}.{part}");
            let pixels = want(&key("pixels"));
            let output = vit.forward(&pixels, None).unwrap();
            assert_close(&format!("{name} {size} cls"), &output.cls, &want(&key("cls")));
            assert_close(
                &format!("{name} {size} patch"),
                &output.patch,
                &want(&key("patch")),
            );
            let first = vit.block_outputs(&pixels, &Layers::Indices(vec![0])).unwrap();
            assert_close(
                &format!("{name} {size} hidden1"),
                &first[0],
                &want(&key("hidden1")),
            );
        }
    }
}

#[test]
fn timm_networks_compute_what_timm_does() {
    for name in ["timm_plain", "timm_reg4"] {
        let (vit, want) = (network(&format!("{name}.safetensors")), expected(name));
        let output = vit.forward(&want("pixels"), None).unwrap();
        assert_close(&format!("{name} cls"), &output.cls, &want("cls"));
        assert_close(&format!("{name} patch"), &output.patch, &want("patch"));
    }
}

/// The rules are not interchangeable: with another one the values at the other size are off.
#[test]
fn the_position_rule_matters() {
    use macula_models::vit::PositionRule;
    let mut checkpoint = load_fixture("hf_plain");
    checkpoint.config.position_rule = PositionRule::Official;
    let vit =
        VisionTransformer::from_tensors(&checkpoint.config, &checkpoint.backbone, &Device::Cpu).unwrap();
    let want = expected("hf_plain");
    let found = numbers(&vit.forward(&want("98x56.pixels"), None).unwrap().cls);
    let expected = numbers(&want("98x56.cls"));
    let largest = expected.iter().fold(0f32, |best, value| best.max(value.abs()));
    let worst = found
        .iter()
        .zip(&expected)
        .fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst > TOLERANCE * largest, "off by only {worst}");
}
