//! Gradients, the cache, resuming, a teacher that stays what it is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use macula_models::ops::cuda::emulated;

use super::helpers::*;
use crate::train::checkpoint::{self, Checkpoints};
use crate::train::distillation::{FrozenTargets, FrozenTeacher, TeacherFacts, TeacherFeatures, Wanted};
use crate::train::testing::cuda_emulation::launcher;
use crate::train::testing::values;
use crate::train::trainer::Trainer;
use crate::{Result, files};

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
        assert!(!loss.terms.is_empty());
        let gradients = loss.total.backward().unwrap();
        for (name, var) in trainer.method().student.trained() {
            let gradient = gradients
                .get(var)
                .unwrap_or_else(|| panic!("{recipe} {settings:?}: {name}: no gradient"));
            let largest = values(gradient)
                .iter()
                .fold(0f64, |max, value| max.max(value.abs()));
            assert!(
                largest > 0. && largest.is_finite(),
                "{recipe} {settings:?}: {name}: largest gradient {largest}"
            );
        }
    }
}

/// On the CUDA kernels, which run on the processor here, with crops of the loader and of the step.
#[test]
#[ignore = "needs a C++ compiler"]
fn students_on_an_emulated_gpu_may_make_their_crops() {
    let folder = tempfile::tempdir().unwrap();
    let run = teacher_run(folder.path(), "dinov2-small");
    for (recipe, setting) in [
        ("distill-dinov2", "distill.ibot_tokens=subset"),
        ("distill-features", "distill.cache_epochs=1"),
    ] {
        let losses = |crops_on: &str| -> Vec<f64> {
            let crops_on = format!("data.loader.crops_on={crops_on}");
            let (config, teacher) = settled(recipe, &run, &[setting, &crops_on]).unwrap();
            let steps = batches(&config, 0, 2);
            let run = || {
                let mut trainer = trainer(&config, teacher);
                let losses = steps.iter().map(|parts| trainer.advance(parts).unwrap().loss);
                losses.collect()
            };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            pool.install(|| emulated(launcher(), run))
        };
        assert_eq!(losses("gpu"), losses("cpu"), "{recipe}");
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
        let checkpoints = Checkpoints::in_folder(&folder.path().join("resumed").join(recipe));
        let path = checkpoints
            .save(
                &first.state().unwrap(),
                &config.vit().unwrap(),
                0,
                Default::default(),
                false,
            )
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
        let features = teacher.features(&pixels, &wanted).unwrap();
        let (cls, (patch, _)) = (features.cls.unwrap(), features.patch.unwrap());
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
