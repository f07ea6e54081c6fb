use serde_json::json;

use super::*;
use crate::data::SampleRange;
use crate::data::transform::CropStart;

/// Names of the fields of a struct, from its `Debug`: nothing can be left out of that by an attribute.
fn fields_of(value: &impl fmt::Debug) -> Vec<String> {
    let text = format!("{value:#?}");
    let own = text.lines().filter_map(|line| line.strip_prefix("    "));
    let names = own.filter(|line| !line.starts_with([' ', '}', ')', ']']));
    names
        .filter_map(|line| Some(line.split_once(": ")?.0.to_owned()))
        .collect()
}

#[test]
fn every_field_of_decoding_and_preprocessing_is_covered() {
    // JSON leaves three fields out where they are the usual.
    let preprocess = Preprocess {
        crop_start: CropStart::Down,
        sample_range: SampleRange::Auto,
        bands: "5,first".parse().ok(),
        ..Preprocess::imagenet(256, 224)
    };
    let decode = DecodeOptions {
        bands: preprocess.bands,
        ..DecodeOptions::default()
    };
    let (fields, of_decoding) = (fields_of(&preprocess), fields_of(&decode));
    assert!(
        fields.len() >= 5 && of_decoding.len() >= 4,
        "{fields:?} {of_decoding:?}"
    );
    let covered = preprocess_of(&preprocess, &decode).unwrap();
    for field in &fields {
        assert!(covered.get(field).is_some(), "`{field}` is not in {covered}");
    }
    for field in &of_decoding {
        assert!(
            covered[DECODE].get(field).is_some(),
            "`{field}` is not in {covered}"
        );
    }
    assert!(
        !fields.iter().any(|field| field == DECODE),
        "two things of one name"
    );
}

#[test]
fn every_option_makes_another_fingerprint() {
    let (preprocess, decode) = (Preprocess::imagenet(256, 224), DecodeOptions::default());
    let base = preprocess_of(&preprocess, &decode).unwrap();
    let decodes = [
        ("exif", DecodeOptions { exif: true, ..decode }),
        (
            "max_pixels",
            DecodeOptions {
                max_pixels: 7,
                ..decode
            },
        ),
        (
            "background",
            DecodeOptions {
                background: Some([0; 3]),
                ..decode
            },
        ),
        (
            "jpeg_shorter_side",
            DecodeOptions {
                jpeg_shorter_side: Some(256),
                ..decode
            },
        ),
    ];
    for (field, changed) in decodes {
        let other = preprocess_of(&preprocess, &changed).unwrap();
        assert_eq!(
            difference("", &base, &other).unwrap().field,
            format!("decode.{field}")
        );
    }
    let changed = |change: fn(&mut Preprocess)| {
        let mut other = preprocess.clone();
        change(&mut other);
        difference("", &base, &preprocess_of(&other, &decode).unwrap())
            .unwrap()
            .to_string()
    };
    assert_eq!(changed(|p| p.resize = None), "resize: expected 256, found none");
    assert_eq!(
        changed(|p| p.crop = Some((224, 220))),
        "crop: expected [224,224], found [224,220]"
    );
    assert!(
        changed(|p| p.interpolation = crate::data::Interpolation::Bilinear).starts_with("interpolation: ")
    );
    assert!(changed(|p| p.mean[2] = 0.5).starts_with("mean: expected [0.485,0.456,0.406], found "));
    assert!(changed(|p| p.std[0] = 1.0).starts_with("std: "));
    assert_eq!(
        changed(|p| p.crop_start = CropStart::Down),
        "crop_start: expected none, found down"
    );
    assert_eq!(
        changed(|p| p.sample_range = SampleRange::Auto),
        "sample_range: expected none, found auto"
    );
}

#[test]
fn fingerprints_are_the_same_after_a_file() {
    let preprocess = Preprocess {
        mean: vec![0.481_454_66, 0.1 + 0.2, 1e-7],
        ..Preprocess::imagenet(256, 224)
    };
    let value = preprocess_of(&preprocess, &DecodeOptions::default()).unwrap();
    let read: Value = serde_json::from_str(&serde_json::to_string_pretty(&value).unwrap()).unwrap();
    assert_eq!(difference("", &value, &read), None);
}

#[test]
fn a_model_is_its_files_and_settings_wherever_it_lies() {
    let model = |file: &str, sha256: &str, compute: &str| json!({ "kind": "onnx", "file": file, "sha256": sha256, "compute": compute, "providers": ["CPU"], "runtime": "1.24" });
    let one = model_of(&model("a.onnx", "11", "f32"));
    assert_eq!(one, model_of(&model("b.onnx", "11", "f32")));
    let found = difference("model", &one, &model_of(&model("a.onnx", "22", "f32"))).unwrap();
    assert_eq!(found.to_string(), "model.sha256: expected 11, found 22");
    assert_eq!(found.both(), "model.sha256 11 and 22");
    assert_ne!(one, model_of(&model("a.onnx", "11", "bf16")));
    let whole = model_and_runtime_of(&model("a.onnx", "11", "f32"));
    assert!(whole.get("providers").is_some() && whole.get("file").is_none());
}

#[test]
fn what_only_one_has_is_a_difference_and_long_values_are_short() {
    let hash = "0123456789abcdef".repeat(4);
    let (a, b) = (
        json!({ "a": 1, "b": { "c": hash } }),
        json!({ "a": 1, "b": { "c": "x".repeat(100) } }),
    );
    let found = difference("", &a, &b).unwrap().to_string();
    assert_eq!(
        found,
        format!("b.c: expected 0123456789ab..., found {}...", "x".repeat(60))
    );
    assert_eq!(
        difference("m", &json!({}), &json!({ "n": 1.5 }))
            .unwrap()
            .to_string(),
        "m.n: expected none, found 1.5"
    );
    assert_eq!(
        difference("m", &json!({ "n": [1, 2] }), &json!({ "n": [1, 2] })),
        None
    );
}
