//! Comparison with transformers', timm's and open_clip's own preprocessing on the files of `tests/fixtures/stated`, and what is
//! refused.

use std::fs;

use safetensors::SafeTensors;

use super::*;
use crate::data::transform::Resize;
use crate::data::{DecodeOptions, decode};
use crate::extract::model::preprocess::{Size, of_file};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn stated(folder: &Path, flags: &PreprocessOverrides) -> Result<Preprocess> {
    Ok(beside(folder, flags)?.expect("a statement").preprocess)
}

#[test]
fn network_input_is_what_the_files_own_library_makes() {
    let bytes = fs::read(fixtures().join("stated.expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(expected.len(), 19 * 3);
    let mut wrong = Vec::new();
    for (key, wanted) in expected.tensors() {
        let (name, image) = key.split_once('.').unwrap();
        let folder = fixtures().join("stated").join(name);
        let preprocess = stated(&folder, &PreprocessOverrides::default()).unwrap();
        let image = fs::read(fixtures().join("images").join(image)).unwrap();
        let image = decode(&image, &DecodeOptions::default()).unwrap();
        let (height, width) = preprocess.output_size().unwrap();
        assert_eq!(wanted.shape(), [3, height, width], "{key}");
        let mut found = vec![0.0; 3 * height * width];
        preprocess.write_tensor(&image, &mut found).unwrap();
        let values = wanted
            .data()
            .chunks_exact(4)
            .map(|raw| f32::from_le_bytes(raw.try_into().unwrap()));
        // One level is at least 1/255; rounding of f32 is all that may differ.
        let worst = found
            .iter()
            .zip(values)
            .map(|(a, b)| (a - b).abs() / b.abs().max(1.0))
            .fold(0.0, f32::max);
        if worst > 2e-6 {
            wrong.push(format!("{key}: {worst}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn written(file: &str, text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(file), text).unwrap();
    folder
}

const VIT: &str = r#"{"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "resample": 2,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]"#;

#[test]
fn what_cannot_be_done_is_refused_by_its_name_and_flags_stand_in_for_it() {
    let hf = |more: &str| ("preprocessor_config.json", format!("{VIT}, {more}}}"));
    let timm = |more: &str| {
        let text =
            format!(r#"{{"architecture": "vit", "pretrained_cfg": {{"input_size": [3, 8, 8], {more}}}}}"#);
        ("config.json", text)
    };
    let clip = |more: &str| {
        let text = format!(
            r#"{{"model_cfg": {{"vision_cfg": {{"image_size": 8}}}}, "preprocess_cfg": {{{more}}}}}"#
        );
        ("open_clip_config.json", text)
    };
    let geometry = PreprocessOverrides {
        resize: Some(Resize::Shorter(8)),
        crop: Some(8),
        ..PreprocessOverrides::default()
    };
    let filter = PreprocessOverrides {
        interpolation: Some(Interpolation::Bilinear),
        ..PreprocessOverrides::default()
    };
    let normalised = PreprocessOverrides {
        mean: Some(vec![0.5; 3]),
        std: Some(vec![0.5; 3]),
        ..PreprocessOverrides::default()
    };
    for ((file, text), field, instead) in [
        (hf(r#""size": {"longest_edge": 8}"#), "size", Some(&geometry)),
        (
            hf(r#""size": {"shortest_edge": 8, "longest_edge": 9}"#),
            "size",
            Some(&geometry),
        ),
        (hf(r#""size": 0"#), "size", Some(&geometry)),
        (hf(r#""size": null"#), "size", Some(&geometry)),
        (hf(r#""do_center_crop": true"#), "crop_size", Some(&geometry)),
        (hf(r#""crop_pct": 0.9"#), "crop_pct", Some(&geometry)),
        (hf(r#""resample": 0"#), "resample", Some(&filter)),
        (hf(r#""resample": "nearest""#), "resample", Some(&filter)),
        (hf(r#""image_mean": [0.5, 0.5]"#), "image_mean", Some(&normalised)),
        (hf(r#""image_std": null"#), "image_std", Some(&normalised)),
        (hf(r#""rescale_factor": -1"#), "rescale_factor", Some(&normalised)),
        (hf(r#""rescale_factor": 0"#), "rescale_factor", Some(&normalised)),
        (hf(r#""do_rescale": 1"#), "do_rescale", Some(&normalised)),
        (hf(r#""do_pad": true"#), "do_pad", None),
        (
            hf(r#""do_flip_channel_order": true"#),
            "do_flip_channel_order",
            None,
        ),
        (timm(r#""crop_mode": "border""#), "crop_mode", Some(&geometry)),
        (
            timm(r#""crop_border_pixels": 2"#),
            "crop_border_pixels",
            Some(&geometry),
        ),
        (
            timm(r#""crop_border_pixels": 1"#),
            "crop_border_pixels",
            Some(&geometry),
        ),
        (timm(r#""crop_pct": -1"#), "crop_pct", Some(&geometry)),
        (timm(r#""input_size": [1, 8, 8]"#), "input_size", Some(&geometry)),
        (timm(r#""input_size": [3, 8, 9]"#), "input_size", Some(&geometry)),
        (
            timm(r#""interpolation": "lanczos""#),
            "interpolation",
            Some(&filter),
        ),
        (timm(r#""mean": "imagenet""#), "mean", Some(&normalised)),
        (
            clip(r#""resize_mode": "longest""#),
            "resize_mode",
            Some(&geometry),
        ),
        (clip(r#""size": [8, 9]"#), "size", Some(&geometry)),
        (clip(r#""size": "8""#), "size", Some(&geometry)),
        (
            clip(r#""interpolation": "random""#),
            "interpolation",
            Some(&filter),
        ),
    ] {
        // JSON keeps the last of two equal keys.
        let folder = written(file, &text);
        let error = stated(folder.path(), &PreprocessOverrides::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        let message = error.to_string();
        let path = folder.path().join(file).display().to_string();
        assert!(
            message.starts_with(&format!("{path}: {field}: expected ")),
            "{message}"
        );
        assert!(message.contains("found ") && !message.contains('\n'), "{message}");
        if let Some(flags) = instead {
            let preprocess = flags.over(stated(folder.path(), flags).unwrap());
            assert!(preprocess.validate().is_ok(), "{text}");
        }
    }
    for text in ["", "[]", "{\"size\":"] {
        let folder = written("preprocessor_config.json", text);
        let error = stated(folder.path(), &PreprocessOverrides::default()).unwrap_err();
        assert!(
            error.to_string().contains("preprocessor_config.json: "),
            "{error}"
        );
    }
}

#[test]
fn files_that_state_nothing_are_passed_over_and_the_most_particular_wins() {
    let flags = PreprocessOverrides::default();
    let folder = written("config.json", r#"{"model_type": "dinov2", "image_size": 518}"#);
    assert!(beside(folder.path(), &flags).unwrap().is_none());
    fs::write(
        folder.path().join("processor_config.json"),
        r#"{"processor_class": "X"}"#,
    )
    .unwrap();
    assert!(beside(folder.path(), &flags).unwrap().is_none());
    fs::write(
        folder.path().join("config.json"),
        r#"{"architecture": "vit", "pretrained_cfg": {"input_size": [3, 14, 14]}}"#,
    )
    .unwrap();
    let size = |model: &Path| beside(model, &flags).unwrap().unwrap().preprocess.crop;
    assert_eq!(size(folder.path()), Some((14, 14)));
    fs::write(folder.path().join("preprocessor_config.json"), format!("{VIT}}}")).unwrap();
    assert_eq!(size(folder.path()), Some((8, 8)));
    // Beside a file, and one folder above an ONNX file of the usual layout.
    assert_eq!(size(&folder.path().join("model.safetensors")), Some((8, 8)));
    fs::create_dir(folder.path().join("onnx")).unwrap();
    assert_eq!(size(&folder.path().join("onnx/model.onnx")), Some((8, 8)));
    fs::create_dir(folder.path().join("other")).unwrap();
    assert!(
        beside(&folder.path().join("other/model.onnx"), &flags)
            .unwrap()
            .is_none()
    );
}

#[test]
fn another_size_keeps_the_proportions_and_flags_go_before_all() {
    let flags = PreprocessOverrides::default();
    let folder = fixtures().join("stated/dinov2");
    let stated = of_file(&folder, None, None, Size::Stated(70, 70), &flags).unwrap();
    assert_eq!(
        (stated.resize, stated.crop),
        (Some(Resize::Shorter(35)), Some((28, 28)))
    );
    let larger = of_file(&folder, None, None, Size::Given(56, 56), &flags).unwrap();
    assert_eq!(
        (larger.resize, larger.crop),
        (Some(Resize::Shorter(70)), Some((56, 56)))
    );
    let squash = fixtures().join("stated/vit");
    let larger = of_file(&squash, None, None, Size::Given(48, 36), &flags).unwrap();
    assert_eq!(
        (larger.resize, larger.crop),
        (Some(Resize::Exact(48, 36)), Some((48, 36)))
    );
    let flags = PreprocessOverrides {
        crop: Some(42),
        mean: Some(vec![0.0; 3]),
        sample_range: Some(crate::data::SampleRange::Auto),
        ..flags
    };
    let changed = of_file(&squash, None, None, Size::Stated(70, 70), &flags).unwrap();
    assert_eq!(
        (changed.resize, changed.crop),
        (Some(Resize::Exact(42, 42)), Some((42, 42)))
    );
    assert_eq!((changed.mean, changed.std), (vec![0.0; 3], vec![0.5; 3]));
    assert_eq!(changed.sample_range, crate::data::SampleRange::Auto);
    // What the model's own file says goes before what lies beside it.
    let own = Preprocess::imagenet(16, 14).to_json().unwrap();
    let own = of_file(
        &squash,
        Some(("own", &own)),
        None,
        Size::Stated(70, 70),
        &PreprocessOverrides::default(),
    );
    assert_eq!(own.unwrap(), Preprocess::imagenet(16, 14));
    let assumed = of_file(
        Path::new("nothing/here.onnx"),
        None,
        None,
        Size::Stated(14, 28),
        &flags,
    )
    .unwrap();
    assert_eq!(assumed.crop, Some((42, 42)));
}

/// What timm and open_clip say of the preprocessing of their weights, for networks that are opened by name.
#[test]
fn released_networks_have_their_preprocessing() {
    let of = |name: &str| by_name(name).expect(name);
    let clip = of("openclip:ViT-B-32/laion2b");
    assert_eq!(
        (clip.resize, clip.crop),
        (Some(Resize::Shorter(224)), Some((224, 224)))
    );
    assert_eq!(clip.mean, [0.481_454_67, 0.457_827_5, 0.408_210_72]);
    let large = of("openclip:ViT-L-14-336/openai");
    assert_eq!((large.crop, large.mean), (Some((336, 336)), clip.mean.clone()));
    assert_eq!(of("openclip:ViT-L-14/laion2b_s32b_b82k").mean, [0.5; 3]);
    let squashed = of("openclip:ViT-H-14-378-quickgelu/dfn5b");
    assert_eq!(
        (squashed.resize, squashed.mean),
        (Some(Resize::Exact(378, 378)), clip.mean)
    );
    let siglip = of("openclip:ViT-B-16-SigLIP-256/webli");
    assert_eq!(
        (siglip.resize, siglip.std),
        (Some(Resize::Exact(256, 256)), vec![0.5; 3])
    );
    let pe = of("openclip:PE-Core-L-14-336/meta");
    assert_eq!(
        (pe.crop, pe.interpolation),
        (Some((336, 336)), Interpolation::Bilinear)
    );
    assert_eq!(of("dinov3-vitl16-sat").mean, [0.43, 0.411, 0.296]);
    let tips = of("tipsv2-b14");
    assert_eq!((tips.mean, tips.std), (vec![0.; 3], vec![1.; 3]));
    for name in ["dinov2-vits14-reg", "mae-vitb16", "vit-small/14"] {
        assert!(by_name(name).is_none(), "{name}");
    }
    for name in macula_models::weights::example_names() {
        if let Some(known) = by_name(&name) {
            known.validate().expect("a preprocessing");
        }
    }
}

#[test]
fn a_statement_that_no_image_can_follow_names_its_file() {
    let folder = written(
        "preprocessor_config.json",
        &format!(r#"{VIT}, "image_std": [0.5, 0, 0.5]}}"#),
    );
    let size = Size::Stated(8, 8);
    let error = of_file(folder.path(), None, None, size, &PreprocessOverrides::default()).unwrap_err();
    let file = folder.path().join("preprocessor_config.json");
    assert_eq!(
        error.to_string(),
        format!(
            "{}: std: expected finite numbers above 0, found [0.5, 0.0, 0.5]",
            file.display()
        )
    );
}

/// Resize and crop of a statement.
type Geometry = (Option<Resize>, Option<(u32, u32)>);

fn geometry_of(file: &str, text: &str) -> Geometry {
    let folder = written(file, text);
    let stated = stated(folder.path(), &PreprocessOverrides::default()).unwrap();
    (stated.resize, stated.crop)
}

#[test]
fn sizes_that_are_not_stated_are_the_usual_ones() {
    let shorter = |resize: u32, crop: u32| (Some(Resize::Shorter(resize)), Some((crop, crop)));
    // transformers' ConvNextImageProcessor: a crop_pct of 224/256, and no crop from 384 on.
    let convnext = |size: u32| {
        let text = format!(
            r#"{{"image_processor_type": "ConvNextImageProcessor", "size": {{"shortest_edge": {size}}}, "resample": 3,
                "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}}"#
        );
        geometry_of("preprocessor_config.json", &text)
    };
    assert_eq!(convnext(224), shorter(256, 224));
    assert_eq!(convnext(383), shorter(437, 383));
    assert_eq!(convnext(384), (Some(Resize::Exact(384, 384)), Some((384, 384))));
    let open_clip = r#"{"preprocess_cfg": {}}"#;
    assert_eq!(geometry_of("open_clip_config.json", open_clip), shorter(224, 224));
    let timm = r#"{"pretrained_cfg": {"crop_border_pixels": 0, "crop_pct": 0}}"#;
    assert_eq!(geometry_of("config.json", timm), shorter(256, 224));
}

#[test]
fn without_a_known_class_a_crop_size_asks_for_a_crop() {
    let of = |more: &str| {
        let text = format!(
            r#"{{"image_processor_type": "OtherImageProcessor", "size": {{"shortest_edge": 9}}, "resample": 3,
                "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]{more}}}"#
        );
        geometry_of("preprocessor_config.json", &text)
    };
    assert_eq!(of(""), (Some(Resize::Shorter(9)), None));
    let cropped = of(r#", "crop_size": {"height": 8, "width": 7}"#);
    assert_eq!(cropped, (Some(Resize::Shorter(9)), Some((8, 7))));
}

#[test]
fn a_number_of_pixels_is_whole_and_fits_32_bits() {
    for (value, expected) in [
        ("1", Some(1)),
        ("4294967295", Some(u32::MAX)),
        ("8.0", Some(8)),
        ("0", None),
        ("4294967296", None),
        ("1.5", None),
        ("-1", None),
        ("true", None),
    ] {
        assert_eq!(pixels(&serde_json::from_str(value).unwrap()), expected, "{value}");
    }
}
