//! Whole steps of every distillation on small networks: gradients, a teacher that stays what it is, the cache, resuming,
//! teachers of every kind.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use macula_models::onnx::{ExportOptions, ImageShape, OutputKind, export};
use macula_models::weights::{self, Tensors};

use super::teacher::{FrozenTeacher, OnnxSettings, TeacherFacts, TeacherFeatures, Wanted};
use super::*;
use crate::data::augment::MultiCrop;
use crate::data::loader::{Batch, Loader};
use crate::data::{DecodeOptions, Record, RgbImage, RowError, Source};
use crate::train::checkpoint::{self, Checkpoints};
use crate::train::config::TrainConfig;
use crate::train::recipes::{DataFacts, Overrides};
use crate::train::run::{CONFIG, preprocess};
use crate::train::testing::{assert_close, values};
use crate::train::trainer::Trainer;
use crate::{Error, Result, files};

const FACTS: DataFacts = DataFacts {
    images: 10,
    side: 28,
    grey: true,
};

/// Grey images that tell their rows, of two classes; the last has no label.
struct Images;

impl Source for Images {
    fn len(&self) -> u64 {
        FACTS.images
    }

    fn record(&self, row: u64) -> Record {
        Record {
            row,
            path: format!("{row}.png"),
            label: (row < 9).then(|| ["even", "odd"][(row % 2) as usize].to_owned()),
            mask: None,
            depth: None,
        }
    }

    fn load(&self, row: u64, _: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        let levels: Vec<u8> = (0..28 * 28)
            .map(|place| (place / 3 * (1 + row) % 251) as u8)
            .collect();
        Ok(RgbImage::from_grey(28, 28, &levels).unwrap())
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::json!({ "kind": "images of a test" })
    }
}

/// Settings of networks that take milliseconds.
const SMALL: [&str; 11] = [
    "steps=12",
    "batch_size=4",
    "image_size=28",
    "local_size=14",
    "backbone.embed_dim=24",
    "backbone.depth=2",
    "backbone.num_heads=2",
    "backbone.patch_size=7",
    "optimizer.freeze_last_layer_steps=0",
    "optimizer.warmup_steps=2",
    "distill.relation_queue=12",
];

fn overrides(settings: &[&str]) -> Overrides {
    let mut overrides = Overrides::default();
    for setting in settings {
        overrides.set(setting).unwrap();
    }
    overrides
}

/// A run of the trainer in `folder`, as it is after a step, by `recipe`.
fn teacher_run(folder: &Path, recipe: &str) -> PathBuf {
    let mut settings = SMALL[..10].to_vec();
    settings.extend([
        "backbone.embed_dim=32",
        "loss.head.hidden=20",
        "loss.head.bottleneck=12",
        "loss.head.prototypes=24",
    ]);
    let base = crate::train::recipes::recipe(recipe, "images", &FACTS).unwrap();
    let config = overrides(&settings).apply(base, FACTS.images).unwrap();
    let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
    trainer.advance(&batches(&config, 0, 1)[0]).unwrap();
    let run = folder.join(recipe);
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join(CONFIG), toml::to_string(&config).unwrap()).unwrap();
    let state = trainer.state().unwrap();
    let vit = config.vit().unwrap();
    Checkpoints::of(&run).save(&state, &vit, 0, None, false).unwrap();
    let mut metadata = weights::config_metadata(&vit).unwrap();
    metadata.insert(
        weights::PREPROCESS_KEY.to_owned(),
        preprocess(&config).to_json().unwrap(),
    );
    let mut backbone = trainer.method().teacher.backbone();
    weights::save(&run.join("teacher.safetensors"), &backbone, &metadata).unwrap();
    // The same network with a classifier of three classes.
    let classifier: Vec<f32> = (0..3 * 32).map(|i| ((i * 37 % 19) as f32 - 9.) / 9.).collect();
    backbone.insert(
        "head.weight".to_owned(),
        Tensor::from_vec(classifier, (3, 32), &Device::Cpu).unwrap(),
    );
    backbone.insert(
        "head.bias".to_owned(),
        Tensor::new(&[0.1f32, 0., -0.1], &Device::Cpu).unwrap(),
    );
    weights::save(&run.join("classifier.safetensors"), &backbone, &metadata).unwrap();
    run
}

fn open(settings: &DistillConfig) -> Result<Box<dyn FrozenTeacher>> {
    super::open(settings, &Device::Cpu, &OnnxSettings::default())
}

/// The settled settings of `recipe` for the teacher at `path`, small, with further settings; and the teacher.
fn settled(recipe: &str, path: &Path, settings: &[&str]) -> Result<(TrainConfig, Box<dyn FrozenTeacher>)> {
    let overrides = overrides(&[&SMALL[..], settings].concat());
    let distill = overrides.section("distill", &DistillConfig::new(path.to_str().unwrap()))?;
    let teacher = open(&distill)?;
    let base = recipes::recipe(recipe, "images", &FACTS, &distill, teacher.facts())?;
    let config = overrides.apply(base, FACTS.images)?;
    let config = settle(config, teacher.facts(), &Images)?;
    // What a run folder keeps says it all.
    assert_eq!(
        toml::from_str::<TrainConfig>(&toml::to_string(&config).unwrap()).unwrap(),
        config
    );
    Ok((config, teacher))
}

fn batches(config: &TrainConfig, first: u64, count: u64) -> Vec<Vec<Batch>> {
    let masks = config
        .draws_masks()
        .then(|| (config.masks.clone(), config.grid().unwrap()));
    let mut loader = Loader::start(
        Arc::new(Images),
        MultiCrop::new(config.crops.clone()).unwrap(),
        masks,
        config.batch_plan().unwrap(),
        &config.loader(),
        config.seed,
        first,
    )
    .unwrap();
    (0..count).map(|_| vec![loader.next().unwrap().0]).collect()
}

fn trainer(config: &TrainConfig, teacher: Box<dyn FrozenTeacher>) -> Trainer {
    let mut trainer = Trainer::fresh(config, &Device::Cpu).unwrap();
    trainer.learn_from(FrozenTargets::new(config, teacher, &Images, &Device::Cpu).unwrap());
    trainer
}

fn run(trainer: &mut Trainer, first: u64, count: u64) {
    for batches in batches(&trainer.config().clone(), first, count) {
        trainer.advance(&batches).unwrap();
    }
}

/// Every value that a trainer holds, by name.
fn contents(trainer: &Trainer) -> Vec<(String, Vec<f64>)> {
    let state = trainer.state().unwrap();
    let named = |tensors: &Tensors| -> Vec<(String, Vec<f64>)> {
        tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), values(tensor)))
            .collect()
    };
    [
        &state.student,
        &state.teacher,
        &state.optimizer.tensors,
        &state.memory,
    ]
    .map(named)
    .concat()
}

fn assert_same(found: &Trainer, expected: &Trainer) {
    let (found, expected) = (contents(found), contents(expected));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.into_iter().zip(expected) {
        assert!(found == expected, "{} differs", found.0);
    }
}

/// Settings under which one term alone is on.
fn alone(term: &'static str) -> Vec<&'static str> {
    let off = [
        "distill.cls_weight=0.0",
        "distill.patch_mean_weight=0.0",
        "distill.patch_weight=0.0",
        "distill.relation_weight=0.0",
        "distill.logits_weight=0.0",
    ];
    off.into_iter().chain([term]).collect()
}

#[test]
fn every_trained_tensor_gets_a_gradient_from_every_term() {
    let folder = tempfile::tempdir().unwrap();
    let run = teacher_run(folder.path(), "dinov2-small");
    let classifier = run.join("classifier.safetensors");
    let cases = [
        ("distill-dinov2", &run, vec![]),
        ("distill-dinov2", &run, vec!["distill.ibot_tokens=subset"]),
        (
            "distill-dinov2",
            &run,
            vec!["backbone.patch_size=14", "distill.cls_weight=0.5"],
        ),
        ("distill-features", &run, vec![]),
        ("distill-features", &run, alone("distill.cls_weight=1.0")),
        ("distill-features", &run, alone("distill.patch_mean_weight=1.0")),
        ("distill-features", &run, alone("distill.patch_weight=1.0")),
        ("distill-features", &run, alone("distill.relation_weight=1.0")),
        (
            "distill-features",
            &run,
            [
                alone("distill.patch_weight=1.0"),
                vec!["distill.feature_loss=smooth-l1"],
            ]
            .concat(),
        ),
        ("distill-logits", &run, vec![]),
        ("distill-logits", &classifier, vec![]),
        (
            "distill-logits",
            &run,
            [alone("distill.label_weight=1.0")].concat(),
        ),
        (
            "distill-features",
            &classifier,
            vec!["distill.label_weight=0.5", "distill.cache_epochs=1"],
        ),
    ];
    for (recipe, teacher, settings) in cases {
        let (config, teacher) = settled(recipe, teacher, &settings).unwrap();
        let mut trainer = trainer(&config, teacher);
        let batch = batches(&config, 1, 1).remove(0).remove(0);
        let values_of_step = config.schedules().at(1);
        let loss = trainer.method_mut().loss(&batch, 1, &values_of_step).unwrap();
        assert!(!loss.parts.is_empty());
        let gradients = loss.total.backward().unwrap();
        for (name, var) in trainer.method().student.trained() {
            let gradient = gradients
                .get(var)
                .unwrap_or_else(|| panic!("{recipe} {settings:?}: {name}: no gradient"));
            let largest = values(gradient)
                .iter()
                .fold(0f64, |most, value| most.max(value.abs()));
            assert!(
                largest > 0. && largest.is_finite(),
                "{recipe} {settings:?}: {name}: largest gradient {largest}"
            );
        }
    }
}

/// A teacher that counts the crops it sees.
struct Counted {
    inner: Box<dyn FrozenTeacher>,
    crops: Arc<AtomicUsize>,
}

impl FrozenTeacher for Counted {
    fn facts(&self) -> &TeacherFacts {
        self.inner.facts()
    }

    fn features(&mut self, pixels: &Tensor, wanted: &Wanted) -> Result<TeacherFeatures> {
        self.crops.fetch_add(pixels.dim(0).unwrap(), Ordering::Relaxed);
        self.inner.features(pixels, wanted)
    }

    fn cls_logits(&self, tokens: &Tensor) -> Result<Tensor> {
        self.inner.cls_logits(tokens)
    }

    fn patch_logits(&self, tokens: &Tensor) -> Result<Tensor> {
        self.inner.patch_logits(tokens)
    }
}

#[test]
fn a_cached_run_holds_the_bytes_of_one_without_a_cache() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = teacher_run(folder.path(), "dinov2-small");
    for (recipe, crops) in [("distill-dinov2", 2), ("distill-features", 1)] {
        let cache = format!("distill.cache=\"{}\"", folder.path().join(recipe).display());
        let with = |settings: &[&str]| {
            let settings = [&["distill.cache_epochs=2"], settings].concat();
            let (config, inner) = settled(recipe, &run_folder, &settings).unwrap();
            let seen = Arc::new(AtomicUsize::new(0));
            let mut trainer = trainer(
                &config,
                Box::new(Counted {
                    inner,
                    crops: Arc::clone(&seen),
                }),
            );
            // 48 images of 10: nearly five passes.
            run(&mut trainer, 0, 12);
            (trainer, seen.load(Ordering::Relaxed))
        };
        let (plain, seen) = with(&[]);
        assert_eq!(seen, 48 * crops);
        let (filling, seen) = with(&[&cache]);
        assert_eq!(seen, 20 * crops, "two passes");
        assert_same(&filling, &plain);
        let (filled, seen) = with(&[&cache]);
        assert_eq!(seen, 0);
        assert_same(&filled, &plain);
        let (other, seen) = with(&[&cache, "seed=1"]);
        assert_eq!(seen, 20 * crops, "another seed has other crops");
        assert!(contents(&other) != contents(&plain));
    }
    let error = settled(
        "distill-features",
        &run_folder,
        &[
            "distill.cache_epochs=2",
            "distill.cache=\"x\"",
            "distill.cache_gb=1e-6",
        ],
    )
    .and_then(|(config, teacher)| FrozenTargets::new(&config, teacher, &Images, &Device::Cpu).map(|_| ()));
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("distill.cache_gb: expected room")
    );
}

#[test]
fn a_resumed_run_holds_the_bytes_of_one_that_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = teacher_run(folder.path(), "dinov2-small");
    for (recipe, settings) in [
        (
            "distill-dinov2",
            &["backbone.drop_path_rate=0.3", "teacher.centering=softmax"][..],
        ),
        ("distill-features", &[]),
        ("distill-logits", &["distill.label_weight=0.5"]),
    ] {
        let fresh = || settled(recipe, &run_folder, settings).unwrap();
        let (config, teacher) = fresh();
        let mut whole = trainer(&config, teacher);
        run(&mut whole, 0, 6);
        let mut first = trainer(&config, fresh().1);
        run(&mut first, 0, 3);
        let checkpoints = Checkpoints::of(&folder.path().join("resumed").join(recipe));
        let path = checkpoints
            .save(&first.state().unwrap(), &config.vit().unwrap(), 0, None, false)
            .unwrap();
        let saved = checkpoint::load(&path).unwrap();
        let mut second = Trainer::resume(&config, &saved.state, &Device::Cpu).unwrap();
        second.learn_from(FrozenTargets::new(&config, fresh().1, &Images, &Device::Cpu).unwrap());
        run(&mut second, 3, 3);
        assert_same(&second, &whole);
    }
}

#[test]
fn the_teacher_stays_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = teacher_run(folder.path(), "dinov2-small");
    let file = run_folder.join("checkpoints/last/state.safetensors");
    let before = files::sha256(&file).unwrap();
    let pixels = Tensor::full(0.3f32, (2, 3, 28, 28), &Device::Cpu).unwrap();
    let wanted = Wanted {
        cls: true,
        patch: true,
        ..Wanted::default()
    };
    let outputs = |teacher: &mut dyn FrozenTeacher| {
        let seen = teacher.features(&pixels, &wanted).unwrap();
        let (cls, (patch, _)) = (seen.cls.unwrap(), seen.patch.unwrap());
        let heads = [
            teacher.cls_logits(&cls),
            teacher.patch_logits(&patch.flatten(0, 1).unwrap()),
        ];
        [
            values(&cls),
            values(&patch),
            values(heads[0].as_ref().unwrap()),
            values(heads[1].as_ref().unwrap()),
        ]
    };
    let (config, mut teacher) = settled("distill-dinov2", &run_folder, &[]).unwrap();
    let expected = outputs(teacher.as_mut());
    let shared = Arc::new(Mutex::new(teacher));
    /// Lends the teacher, so that it can be looked at after the run.
    struct Lent(Arc<Mutex<Box<dyn FrozenTeacher>>>, TeacherFacts);
    impl FrozenTeacher for Lent {
        fn facts(&self) -> &TeacherFacts {
            &self.1
        }
        fn features(&mut self, pixels: &Tensor, wanted: &Wanted) -> Result<TeacherFeatures> {
            self.0.lock().unwrap().features(pixels, wanted)
        }
        fn cls_logits(&self, tokens: &Tensor) -> Result<Tensor> {
            self.0.lock().unwrap().cls_logits(tokens)
        }
        fn patch_logits(&self, tokens: &Tensor) -> Result<Tensor> {
            self.0.lock().unwrap().patch_logits(tokens)
        }
    }
    let facts = shared.lock().unwrap().facts().clone();
    let mut trainer = trainer(&config, Box::new(Lent(Arc::clone(&shared), facts)));
    run(&mut trainer, 0, 4);
    assert!(outputs(shared.lock().unwrap().as_mut()) == expected);
    assert_eq!(files::sha256(&file).unwrap(), before);
    // What a run leaves is the student's average, of the student's size.
    let average = trainer.method().teacher.backbone();
    assert_eq!(average["cls_token"].dims(), [1, 1, 24]);
    assert!(values(&average["norm.weight"]) != values(&trainer.method().student.backbone()["norm.weight"]));
}

#[test]
fn one_batch_is_learnt_by_heart() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = teacher_run(folder.path(), "dinov2-small");
    let classifier = run_folder.join("classifier.safetensors");
    for (recipe, teacher, share) in [
        ("distill-dinov2", &run_folder, 0.97),
        ("distill-features", &run_folder, 0.5),
        ("distill-logits", &classifier, 0.5),
    ] {
        let settings = [
            "steps=60",
            "optimizer.learning_rate=3e-3",
            "optimizer.learning_rate_scaling=none",
            "optimizer.weight_decay=0.0",
            "optimizer.final_weight_decay=0.0",
            "optimizer.warmup_steps=5",
            "teacher.temperature_warmup_steps=0",
            "loss.koleo_weight=0.0",
        ];
        let (config, teacher) = settled(recipe, teacher, &settings).unwrap();
        let mut trainer = trainer(&config, teacher);
        let batch = batches(&config, 0, 1).remove(0);
        let losses: Vec<f64> = (0..60).map(|_| trainer.advance(&batch).unwrap().loss).collect();
        let (first, last) = (losses[0], losses[59]);
        assert!(last < share * first, "{recipe}: from {first} to {last}");
    }
}

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
