//! Checkpoints of Hugging Face and timm, loaded as a user would, against what their own implementations compute.
#![allow(clippy::unwrap_used)]

mod weights_support;

use candle_core::{Device, Tensor};
use macula_models::vit::{Layers, VisionTransformer};
use weights_support::*;

/// Of the largest value. README says 4e-6; this leaves room for other orders of sums.
const TOLERANCE: f32 = 1e-5;

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
    assert!(worst > 1e-4 * largest, "off by only {worst}");
}

/// The weights that DINOv2's authors released, which are too large for a fixture. `tests/fixtures/make/released.py` writes what
/// their own code gives for an image of the training size and for one that is not square.
///
/// MACULA_DINOV2_VITS14=dinov2_vits14_pretrain.pth MACULA_DINOV2_EXPECTED=expected.safetensors
///     cargo test --release -p macula-models --test golden_families -- --ignored
#[test]
#[ignore = "needs the released ViT-S/14 in MACULA_DINOV2_VITS14, and MACULA_DINOV2_EXPECTED"]
fn the_released_network_computes_what_its_authors_code_does() {
    use sha2::{Digest as _, Sha256};
    let path = |variable: &str| {
        let value = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set"));
        std::path::PathBuf::from(value)
    };
    let file = path("MACULA_DINOV2_VITS14");
    let hash = Sha256::digest(std::fs::read(&file).unwrap());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hash,
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        "{}: another file than the released one",
        file.display()
    );
    let checkpoint = macula_models::weights::load(&file, &Default::default()).unwrap();
    let vit =
        VisionTransformer::from_tensors(&checkpoint.config, &checkpoint.backbone, &Device::Cpu).unwrap();
    let want = candle_core::safetensors::load(path("MACULA_DINOV2_EXPECTED"), &Device::Cpu).unwrap();
    for size in ["518x518", "224x140"] {
        let key = |part: &str| want[&format!("{size}.{part}")].clone();
        let output = vit.forward(&key("pixels"), None).unwrap();
        assert_close(&format!("{size} cls"), &output.cls, &key("cls"));
        assert_close(&format!("{size} patch"), &output.patch, &key("patch"));
    }
}
