//! Teachers in ONNX files, and those that do not fit.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use macula_models::onnx::{ExportOptions, ImageShape, OutputKind, export};
use macula_models::weights;

use super::helpers::*;
use crate::Error;
use crate::train::config::{DistillConfig, Term};
use crate::train::distillation::{FrozenTargets, Wanted};
use crate::train::testing::assert_close;

/// The teacher of `run` as an ONNX file with these outputs.
fn onnx(run: &Path, name: &str, image: ImageShape, outputs: Vec<OutputKind>) -> PathBuf {
    let checkpoint =
        weights::load(&run.join("teacher.safetensors"), &weights::LoadOptions::default()).unwrap();
    let mut options = ExportOptions::new(image);
    options.outputs = outputs;
    options.metadata.insert(
        "macula.preprocess".to_owned(),
        checkpoint.preprocess.clone().unwrap(),
    );
    options
        .metadata
        .insert("macula.patch_size".to_owned(), "7".to_owned());
    let path = run.join(name);
    export(&checkpoint.config, &checkpoint.backbone, &options, &path).unwrap();
    path
}

#[test]
fn an_onnx_file_teaches_as_the_checkpoint_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = teacher_run(folder.path(), "dinov2-small");
    let dynamic = onnx(
        &run_folder,
        "dynamic.onnx",
        ImageShape::Dynamic,
        vec![OutputKind::Patch, OutputKind::Cls],
    );
    let fixed = ImageShape::Fixed {
        height: 28,
        width: 28,
    };
    let cls_only = onnx(&run_folder, "fixed.onnx", fixed, vec![OutputKind::Cls]);
    let settings = DistillConfig::new(run_folder.to_str().unwrap());
    let mut checkpoint = open(&settings).unwrap();
    let mut teacher = open(&DistillConfig::new(dynamic.to_str().unwrap())).unwrap();
    let offer = teacher.facts().offer;
    assert_eq!(
        (offer.cls, offer.patch, offer.patch_mean, offer.classes),
        (32, 32, 32, 0)
    );
    assert_eq!(teacher.facts().normalisation, checkpoint.facts().normalisation);
    let pixels: Vec<f32> = (0..3 * 3 * 28 * 28)
        .map(|i| ((i * 7919) % 1000) as f32 / 500. - 1.)
        .collect();
    let pixels = Tensor::from_vec(pixels, (3, 3, 28, 28), &Device::Cpu).unwrap();
    let wanted = Wanted {
        cls: true,
        patch: true,
        patch_mean: true,
        scores: false,
    };
    let (found, expected) = (
        teacher.features(&pixels, &wanted).unwrap(),
        checkpoint.features(&pixels, &wanted).unwrap(),
    );
    assert_close("cls", &found.cls.unwrap(), &expected.cls.unwrap(), 1e-4);
    assert_close(
        "patch_mean",
        &found.patch_mean.unwrap(),
        &expected.patch_mean.unwrap(),
        1e-4,
    );
    let ((found, grid), (expected, same)) = (found.patch.unwrap(), expected.patch.unwrap());
    assert_eq!(grid, same);
    assert_close("patch", &found, &expected, 1e-4);

    let (config, teacher) = settled("distill-features", &cls_only, &[]).unwrap();
    let distill = config.distill.as_ref().unwrap();
    assert!(distill.has(Term::Cls) && distill.has(Term::Relation) && !distill.has(Term::Patch));
    let mut trainer = trainer(&config, teacher);
    run(&mut trainer, 0, 2);
}

#[test]
fn an_unnamed_vector_is_features_or_scores_as_the_settings_say() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = teacher_run(folder.path(), "dinov2-small");
    let fixed = ImageShape::Fixed {
        height: 28,
        width: 28,
    };
    let path = onnx(&run_folder, "unnamed.onnx", fixed, vec![OutputKind::LayerCls(1)]);
    let teacher = open(&DistillConfig::new(path.to_str().unwrap())).unwrap();
    assert_eq!(teacher.facts().offer.to_string(), "cls 32");
    let (config, teacher) = settled("distill-logits", &path, &["distill.onnx_output=logits"]).unwrap();
    assert_eq!(config.distill.as_ref().unwrap().classifier(), 32);
    let mut trainer = trainer(&config, teacher);
    run(&mut trainer, 0, 2);
}

#[test]
fn a_teacher_that_does_not_fit_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = teacher_run(folder.path(), "dinov2-small");
    let dino = teacher_run(folder.path(), "dino");
    let bare = run_folder.join("teacher.safetensors");
    let missing = folder.path().join("missing.onnx");
    let two_inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/two_inputs.onnx");
    let heads = "distill.teacher_heads=2";
    for (recipe, teacher, settings, words) in [
        (
            "distill-dinov2",
            &bare,
            &[heads][..],
            &["a DINO head", "distill-features takes it"][..],
        ),
        ("distill-logits", &bare, &[heads], &["a classifier or prototypes"]),
        (
            "distill-dinov2",
            &run_folder,
            &["loss.head.prototypes=30"],
            &["loss.head.prototypes", "24", "30"],
        ),
        (
            "distill-dinov2",
            &dino,
            &["loss.ibot_weight=1.0"],
            &["loss.ibot_weight", "an iBOT head"],
        ),
        (
            "distill-features",
            &run_folder,
            &["distill.logits_weight=1.0", "loss.head.prototypes=7"],
            &["loss.head.prototypes", "24", "7"],
        ),
        (
            "distill-features",
            &bare,
            &[heads, "distill.logits_weight=1.0"],
            &["distill.logits_weight", "a classifier"],
        ),
        (
            "distill-features",
            &run_folder,
            &["distill.teacher_size=30"],
            &["distill.teacher_size", "7", "30"],
        ),
        (
            "distill-features",
            &run_folder,
            &["distill.relation_queue=3"],
            &["distill.relation_queue", "4", "3"],
        ),
        (
            "distill-features",
            &run_folder,
            &["distill.cls_wait=1.0"],
            &["cls_wait"],
        ),
        (
            "distill-logits",
            &run_folder.join("classifier.safetensors"),
            &[heads, "distill.label_weight=1.0"],
            &["distill.label_weight", "3 classes", "2"],
        ),
        (
            "distill-features",
            &missing,
            &[],
            &["missing.onnx", "no such file"],
        ),
        (
            "distill-features",
            &two_inputs,
            &[],
            &["two_inputs.onnx", "one input"],
        ),
    ] {
        let error: Error = settled(recipe, teacher, settings).map(|_| ()).expect_err(recipe);
        let text = error.to_string();
        assert!(
            words.iter().all(|word| text.contains(word)),
            "{recipe} {settings:?}: {text}"
        );
        assert!(!text.contains('\n') && error.exit_code() == 2, "{text}");
    }
}

#[test]
fn a_teacher_that_has_changed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = teacher_run(folder.path(), "dinov2-small");
    let (mut config, teacher) = settled("distill-features", &run_folder, &[]).unwrap();
    if let Some(distill) = &mut config.distill {
        distill.teacher_sha256 = "of another file".to_owned();
    }
    let error = FrozenTargets::new(&config, teacher, &Images, &Device::Cpu)
        .map(|_| ())
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("expected the teacher that the run began with") && text.contains("of another file"),
        "{text}"
    );
}
