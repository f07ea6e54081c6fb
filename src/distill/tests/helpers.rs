//! Images, teachers, students and their comparison.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use macula_models::weights::{self, Tensors};

use crate::Result;
use crate::cluster::{OneRank, Ranks};
use crate::data::augment::MultiCrop;
use crate::data::loader::{Batch, Loader};
use crate::data::{DecodeOptions, Record, RgbImage, RowError, Source};
use crate::distill::{OnnxSettings, recipes, settle};
use crate::train::checkpoint::Checkpoints;
use crate::train::config::{DistillConfig, TrainConfig};
use crate::train::distillation::{FrozenTargets, FrozenTeacher};
use crate::train::recipes::{DataFacts, Overrides};
use crate::train::run::{CONFIG, preprocess};
use crate::train::testing::values;
use crate::train::trainer::Trainer;

pub(super) const FACTS: DataFacts = DataFacts {
    images: 10,
    side: 28,
    grey: true,
    framed: true,
};

/// Grey images that tell their rows, of two classes; the last has no label.
pub(super) struct Images;

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
pub(super) const SMALL: [&str; 11] = [
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

pub(super) fn overrides(settings: &[&str]) -> Overrides {
    let mut overrides = Overrides::default();
    for setting in settings {
        overrides.set(setting).unwrap();
    }
    overrides
}

/// A run of the trainer in `folder`, as it is after a step, by `recipe`.
pub(super) fn teacher_run(folder: &Path, recipe: &str) -> PathBuf {
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
    Checkpoints::in_folder(&run)
        .save(&state, &vit, 0, Default::default(), false)
        .unwrap();
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

pub(super) fn open(settings: &DistillConfig) -> Result<Box<dyn FrozenTeacher>> {
    crate::distill::open(settings, &Device::Cpu, &OnnxSettings::default())
}

/// The settled settings of `recipe` for the teacher at `path`, small, with further settings; and the teacher.
pub(super) fn settled(
    recipe: &str,
    path: &Path,
    settings: &[&str],
) -> Result<(TrainConfig, Box<dyn FrozenTeacher>)> {
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

pub(super) fn batches(config: &TrainConfig, first: u64, count: u64) -> Vec<Vec<Batch>> {
    batches_of(config, &OneRank, first, count)
}

/// Those of one of `ranks`.
pub(super) fn batches_of(config: &TrainConfig, ranks: &dyn Ranks, first: u64, count: u64) -> Vec<Vec<Batch>> {
    let masks = config
        .draws_masks()
        .then(|| (config.masks.clone(), config.grid().unwrap()));
    let mut loader = Loader::start(
        Arc::new(Images),
        MultiCrop::new(config.crops.clone()).unwrap(),
        masks,
        config.batch_plan().unwrap().of_rank(ranks.rank(), ranks.size()),
        &config.loader(),
        config.seed,
        first,
    )
    .unwrap();
    (0..count).map(|_| vec![loader.next().unwrap().0]).collect()
}

pub(super) fn trainer(config: &TrainConfig, teacher: Box<dyn FrozenTeacher>) -> Trainer {
    let mut trainer = Trainer::fresh(config, &Device::Cpu).unwrap();
    trainer.learn_from(FrozenTargets::new(config, teacher, &Images, &Device::Cpu).unwrap());
    trainer
}

pub(super) fn run(trainer: &mut Trainer, first: u64, count: u64) {
    for batches in batches(&trainer.config().clone(), first, count) {
        trainer.advance(&batches).unwrap();
    }
}

/// Every value that a trainer holds, by name.
pub(super) fn contents(trainer: &Trainer) -> Vec<(String, Vec<f64>)> {
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

pub(super) fn assert_same(found: &Trainer, expected: &Trainer) {
    let (found, expected) = (contents(found), contents(expected));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.into_iter().zip(expected) {
        assert!(found == expected, "{} differs", found.0);
    }
}

/// Settings under which one term alone is on.
pub(super) fn alone(term: &'static str) -> Vec<&'static str> {
    let off = [
        "distill.cls_weight=0.0",
        "distill.patch_mean_weight=0.0",
        "distill.patch_weight=0.0",
        "distill.relation_weight=0.0",
        "distill.logits_weight=0.0",
    ];
    off.into_iter().chain([term]).collect()
}
