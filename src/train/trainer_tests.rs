//! Whole steps of every recipe on small networks: gradients, resuming, accumulation, determinism.

use std::sync::Arc;

use candle_core::Device;

use super::Trainer;
use crate::data::augment::MultiCrop;
use crate::data::loader::{Batch, Loader};
use crate::data::mask::BatchMasks;
use crate::data::{self, Source};
use crate::train::checkpoint::{self, BestReadings, Checkpoints};
use crate::train::config::TrainConfig;
use crate::train::method::Method;
use crate::train::network::NetworkConfig;
use crate::train::recipes::{self, DataFacts, Overrides};
use crate::train::testing::values;

const FACTS: DataFacts = DataFacts {
    images: 1000,
    side: 28,
    grey: true,
    framed: true,
};

/// `recipe` at a size for tests, with further settings.
pub(crate) fn config(recipe: &str, settings: &[&str]) -> TrainConfig {
    let mut overrides = Overrides::default();
    let small = [
        "steps=8",
        "batch_size=4",
        "backbone.embed_dim=24",
        "backbone.depth=2",
        "backbone.num_heads=2",
        "backbone.ffn_hidden=40",
        "backbone.patch_size=7",
        "image_size=28",
        "local_size=14",
        "loss.head.hidden=20",
        "loss.head.bottleneck=12",
        "loss.head.prototypes=24",
        "loss.words.vocabulary=6",
        "loss.words.hidden=12",
        "loss.info_nce.hidden=16",
        "loss.info_nce.output=8",
        "backbone.drop_path_rate=0.0",
        "optimizer.freeze_last_layer_steps=0",
        "optimizer.warmup_steps=2",
    ];
    for setting in small.iter().chain(settings) {
        overrides.set(setting).unwrap();
    }
    let base = recipes::recipe(recipe, "sample:train", &FACTS).unwrap();
    if base.loss.info_nce.queue > 0 {
        overrides.set("loss.info_nce.queue=12").unwrap();
    }
    if base.loss.ibot_head.is_some() {
        for field in ["hidden=20", "bottleneck=12", "prototypes=24"] {
            overrides.set(&format!("loss.ibot_head.{field}")).unwrap();
        }
    }
    overrides.apply(base, FACTS.images).unwrap()
}

/// A backbone like DINOv3's, and one like CLIP's.
pub(crate) const ROTARY: &[&str] = &[
    "backbone.rope.theta=100.0",
    "backbone.layer_norm_eps=1e-5",
    "backbone.num_registers=2",
];
/// Convolutions before the patches.
pub(crate) const STEM: &[&str] = &[
    "backbone.patch_size=14",
    "backbone.stem=[{channels=6,stride=1},{channels=8,stride=2}]",
];
/// Patches held to an earlier teacher, and to the teacher as it is.
const HELD: &[&str] = &[
    "loss.patch_anchor.weight=2.0",
    "loss.patch_anchor.first_step=1",
    "loss.patch_anchor.refresh_every=2",
];
const HELD_TO_THE_TEACHER: &[&str] = &[
    "loss.patch_anchor.weight=1.0",
    "loss.patch_anchor.network=teacher",
    "loss.patch_anchor.measure=kernel-alignment",
];
/// Adapters in place of the backbone's matrices.
const ADAPTED: &[&str] = &["optimizer.lora_rank=2", "optimizer.lora_alpha=4.0"];
/// The nearest of older keys in the place of an image's own.
const NEAREST: &[&str] = &["loss.info_nce.queue=12", "loss.info_nce.nearest=true"];
/// What class tokens are asked for beside agreement.
const TELLING: &[&str] = &[
    "loss.pixel_weight=3.0",
    "loss.hog_weight=10.0",
    "loss.words.weight=5.0",
    "loss.koleo_weight=0.2",
];
const CLIP_LIKE: &[&str] = &[
    "backbone.activation=quick-gelu",
    "backbone.pre_norm=true",
    "backbone.layer_scale=0.0",
];

/// The loader of a run from step `first` on.
fn loader(config: &TrainConfig, first: u64) -> Loader {
    let source: Arc<dyn Source> = Arc::from(data::open("sample:train").unwrap());
    let masks = config
        .has_ibot()
        .then(|| (config.masks.clone(), config.grid().unwrap()));
    Loader::start(
        source,
        MultiCrop::new(config.crops.clone()).unwrap(),
        masks,
        config.batch_plan().unwrap(),
        &config.data.loader,
        config.seed,
        first * config.accumulate as u64,
    )
    .unwrap()
}

pub(crate) fn batches(config: &TrainConfig, first: u64, count: u64) -> Vec<Vec<Batch>> {
    let mut loader = loader(config, first);
    (0..count)
        .map(|_| (0..config.accumulate).map(|_| loader.next().unwrap().0).collect())
        .collect()
}

/// Every value a trainer holds, by name.
fn contents(trainer: &Trainer) -> Vec<(String, Vec<f64>)> {
    let state = trainer.state().unwrap();
    let named = |prefix: &str, tensors: &macula_models::weights::Tensors| {
        tensors
            .iter()
            .map(|(name, tensor)| (format!("{prefix} {name}"), values(tensor)))
            .collect::<Vec<_>>()
    };
    [
        named("student", &state.student),
        named("teacher", &state.teacher),
        named("optimizer", &state.optimizer.tensors),
        named("memory", &state.memory),
    ]
    .concat()
}

fn assert_same(found: &Trainer, expected: &Trainer) {
    assert_eq!(found.step(), expected.step());
    for (found, expected) in contents(found).into_iter().zip(contents(expected)) {
        assert!(found == expected, "{} differs", found.0);
    }
}

#[test]
fn every_trained_tensor_of_every_recipe_gets_a_gradient() {
    let named = recipes::NAMES.map(|recipe| (recipe, &[][..]));
    // As for images of more than 32 pixels.
    let larger = (
        "dinov2-small",
        &[
            "loss.hog_weight=0.0",
            "loss.pixel_weight=3.0",
            "loss.ibot_weight=1.0",
        ][..],
    );
    let half_visible = ("dinov2-small", &["backbone.patch_drop_rate=0.5"][..]);
    let linear_decoder = ("dinov2-small", &["loss.hog_hidden=0"][..]);
    let linear_words = (
        "dino",
        &[
            "loss.words.weight=1.0",
            "loss.words.hidden=0",
            "loss.words.cell=7",
        ][..],
    );
    let others = [
        ("dinov2-small", ROTARY),
        ("dinov2", ROTARY),
        ("moco", CLIP_LIKE),
        ("dinov2", STEM),
        ("ibot", HELD),
        ("dino", HELD_TO_THE_TEACHER),
        ("mocov3", NEAREST),
        ("moco", TELLING),
        ("mocov3", TELLING),
    ];
    for (recipe, settings) in named
        .into_iter()
        .chain([larger, half_visible, linear_decoder, linear_words])
        .chain(others)
    {
        // LayerScale at its published 1e-5 is tested too: gradients are small there, not absent.
        let config = config(recipe, settings);
        let weights = NetworkConfig::new(&config).unwrap().initialise(3).unwrap();
        let mut method = Method::new(&config, &weights, &Device::Cpu).unwrap();
        let values_of_step = config.schedules().at(3);
        let batch = batches(&config, 0, 1).remove(0).remove(0);
        let loss = method.loss(&batch, 0, &values_of_step).unwrap();
        let gradients = loss.total.backward().unwrap();
        let mut count = 0;
        for (name, var) in method.student.trained() {
            let gradient = gradients
                .get(var)
                .unwrap_or_else(|| panic!("{recipe}: {name}: no gradient"));
            let largest = values(gradient)
                .iter()
                .fold(0f64, |max, value| max.max(value.abs()));
            assert!(
                largest > 0. && largest.is_finite(),
                "{recipe}: {name}: largest gradient {largest}"
            );
            count += 1;
        }
        let fixed = method.student.weights().len() - count;
        let expected = usize::from(!config.loss.head.train_gain && config.has_dino());
        assert_eq!(fixed, expected, "{recipe}: tensors that are not trained");
        for (name, var) in method.teacher.weights() {
            assert!(gradients.get(var).is_none(), "{recipe}: teacher {name}");
        }
    }
}

#[test]
fn contrast_has_the_terms_of_class_tokens_of_every_crop_that_asks() {
    let terms = |recipe: &str, settings: &[&str]| -> Vec<&'static str> {
        let config = config(recipe, settings);
        let weights = NetworkConfig::new(&config).unwrap().initialise(3).unwrap();
        let mut method = Method::new(&config, &weights, &Device::Cpu).unwrap();
        let batch = batches(&config, 0, 1).remove(0).remove(0);
        let loss = method.loss(&batch, 0, &config.schedules().at(3)).unwrap();
        loss.terms.iter().map(|(name, _)| *name).collect()
    };
    assert_eq!(terms("moco", &[]), ["info_nce"]);
    assert_eq!(
        terms("moco", TELLING),
        ["pixels", "hog", "words", "koleo_first", "info_nce"]
    );
    let second = [
        "pixels_second",
        "hog_second",
        "words_second",
        "koleo_second",
        "info_nce_second",
    ];
    assert_eq!(
        terms("mocov3", TELLING),
        [
            &["pixels", "hog", "words", "koleo_first", "info_nce"][..],
            &second
        ]
        .concat()
    );
    let both = [TELLING, &["loss.dino_weight=1.0"]].concat();
    assert_eq!(
        terms("moco", &both),
        [
            "info_nce",
            "pixels",
            "hog",
            "words",
            "dino_global",
            "koleo_first",
            "koleo_second"
        ]
    );
}

#[test]
fn a_resumed_run_holds_the_bytes_of_one_that_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    for (recipe, settings) in [
        ("dinov2-small", &["backbone.drop_path_rate=0.3"][..]),
        ("dino", &["accumulate=2"]),
        ("ibot", &[]),
        ("moco", &["optimizer.kind=sgd", "optimizer.learning_rate=0.1"]),
        ("mocov3", &[]),
        ("dinov2", &["backbone.drop_path_rate=0.4"]),
        ("dinov2", ROTARY),
        ("dino", STEM),
        ("ibot", HELD),
        ("dino", HELD_TO_THE_TEACHER),
        ("mocov3", NEAREST),
        ("ibot", ADAPTED),
        ("moco", TELLING),
    ] {
        let config = config(recipe, settings);
        let run = |trainer: &mut Trainer, first, count| {
            for batches in batches(&config, first, count) {
                trainer.advance(&batches).unwrap();
            }
        };
        let mut whole = Trainer::fresh(&config, &Device::Cpu).unwrap();
        run(&mut whole, 0, 5);

        let mut first = Trainer::fresh(&config, &Device::Cpu).unwrap();
        run(&mut first, 0, 3);
        let run_folder = format!("{recipe} {settings:?}").replace(['"', '/'], "");
        let checkpoints = Checkpoints::in_folder(&folder.path().join(run_folder));
        let vit = config.vit().unwrap();
        let best = BestReadings {
            knn_top1: Some(0.5),
            label_free: Some(17.),
        };
        let path = checkpoints
            .save(&first.state().unwrap(), &vit, config.seed, best, true)
            .unwrap();
        run(&mut first, 3, 1); // what the killed run did after its last checkpoint
        let saved = checkpoint::load(&path).unwrap();
        assert_eq!(saved.best, best);
        let mut second = Trainer::resume(&config, &saved.state, &Device::Cpu).unwrap();
        run(&mut second, 3, 2);
        assert_same(&second, &whole);
    }
}

#[test]
fn patches_are_held_to_the_teacher_of_an_earlier_step() {
    let config = config("ibot", HELD);
    let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
    let of = |trainer: &Trainer, part: &str| {
        let backbone = format!("{part}backbone.");
        let all = contents(trainer).into_iter();
        let own = all.filter_map(|(name, values)| Some((name.strip_prefix(&backbone)?.to_owned(), values)));
        own.collect::<Vec<_>>()
    };
    // From step 1 on, anew at step 3.
    let mut earlier = Vec::new();
    for (step, batches) in batches(&config, 0, 5).iter().enumerate() {
        if [1, 3].contains(&step) {
            earlier = of(&trainer, "teacher ");
        }
        let report = trainer.advance(batches).unwrap();
        assert_eq!(
            report.terms.contains_key("patch_anchor"),
            step >= 1,
            "step {step}"
        );
        if step >= 1 {
            assert!(of(&trainer, "memory anchor.") == earlier, "step {step}");
            assert!(earlier != of(&trainer, "teacher "), "step {step}");
        }
    }
}

/// New heads learn while the backbone waits; then it warms up from nothing.
#[test]
fn a_backbone_waits_for_its_heads() {
    let settings = ["optimizer.freeze_backbone_steps=3", "optimizer.warmup_steps=2"];
    let config = config("dinov2-small", &settings);
    let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
    let start = contents(&trainer);
    let moved = |trainer: &Trainer, part: &str| {
        let pairs = start.iter().zip(contents(trainer));
        let mut found = pairs.filter(|((name, _), _)| name.starts_with(part));
        found.any(|((_, before), (_, after))| *before != after)
    };
    // A warm-up begins at a rate of 0: heads move in their second step, the backbone in its own second one.
    for (step, batches) in batches(&config, 0, 5).iter().enumerate() {
        trainer.advance(batches).unwrap();
        assert_eq!(
            moved(&trainer, "student dino_head"),
            step >= 1,
            "heads, step {step}"
        );
        assert_eq!(
            moved(&trainer, "student backbone"),
            step >= 4,
            "backbone, step {step}"
        );
    }
    let mut late = config;
    late.optimizer.freeze_backbone_steps = 7;
    let late = late.validate().unwrap_err().to_string();
    assert!(
        late.contains("optimizer.freeze_backbone_steps") && late.contains("8 steps"),
        "{late}"
    );
}

/// With LoRA the matrices of blocks move by products of adapters, of which each learns; the rest of the backbone stays.
#[test]
fn adapters_alone_move_a_backbone() {
    let config = config("ibot", ADAPTED);
    let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
    let before: std::collections::BTreeMap<_, _> = contents(&trainer).into_iter().collect();
    for batches in batches(&config, 0, 4) {
        trainer.advance(&batches).unwrap();
    }
    let state = trainer.state().unwrap();
    let mut adapted = 0;
    for (name, after) in contents(&trainer) {
        let moves = match name.split_once(' ').unwrap() {
            ("student", name) if name.starts_with("backbone.") && name != "backbone.mask_token" => {
                name.contains(".blocks.") && state.student[name].rank() == 2
            }
            ("student", name) => !name.ends_with("last_layer.weight_g"),
            ("optimizer", name) if name.starts_with("lora.") => !name.starts_with("lora.base."),
            _ => continue,
        };
        assert_eq!(after != before[&name], moves, "{name}");
    }
    let spare = |name: &&String| name.starts_with("first.backbone.") && !name.ends_with("mask_token");
    assert_eq!(state.optimizer.tensors.keys().find(spare), None);
    for (name, up) in &state.optimizer.tensors {
        let Some(name) = name.strip_prefix("lora.up.") else {
            continue;
        };
        let down = &state.optimizer.tensors[&format!("lora.down.{name}")];
        let expected = (up.matmul(down).unwrap() * 2.).unwrap();
        let moved = (&state.student[name] - &state.optimizer.tensors[&format!("lora.base.{name}")]).unwrap();
        for (found, expected) in values(&moved).iter().zip(values(&expected)) {
            assert!((found - expected).abs() < 1e-6, "{name}: {found} {expected}");
        }
        adapted += 1;
    }
    assert_eq!(adapted, 2 * 4, "qkv, proj, fc1, fc2 of two blocks");
}

#[test]
fn adapters_that_cannot_be_are_refused() {
    let refused = |settings: &[&str]| {
        let config = config("dino", settings);
        Trainer::fresh(&config, &Device::Cpu).err().unwrap().to_string()
    };
    let large = refused(&["optimizer.lora_rank=24"]);
    assert!(
        large.contains("optimizer.lora_rank") && large.contains("below 24") && large.contains("found 24"),
        "{large}"
    );
    let mut sgd = config("moco", ADAPTED);
    sgd.optimizer.kind = crate::train::config::OptimizerKind::Sgd;
    let sgd = sgd.validate().unwrap_err().to_string();
    assert!(
        sgd.contains("optimizer.lora_rank") && sgd.contains("sgd"),
        "{sgd}"
    );
}

#[test]
fn the_seed_decides_and_threads_do_not() {
    let run = |seed: &str, threads| {
        let config = config("dinov2-small", &[seed, "backbone.drop_path_rate=0.2"]);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
            for batches in batches(&config, 0, 3) {
                trainer.advance(&batches).unwrap();
            }
            trainer
        })
    };
    let one = run("seed=1", 1);
    assert_same(&one, &run("seed=1", 3));
    assert!(contents(&one) != contents(&run("seed=2", 1)));
}

#[test]
fn gradient_checkpointing_changes_no_byte() {
    for settings in [
        &["backbone.drop_path_rate=0.3"][..],
        &["compute=bf16"],
        &["loss.ibot_weight=1.0"],
    ] {
        let run = |checkpointing: bool| {
            let mut config = config("dinov2-small", settings);
            config.gradient_checkpointing = checkpointing;
            let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
            for batches in batches(&config, 0, 2) {
                trainer.advance(&batches).unwrap();
            }
            trainer
        };
        assert_same(&run(true), &run(false));
    }
}

/// Equal parts have equal statistics, so that every term is the same.
#[test]
fn a_step_in_two_equal_parts_is_the_step_in_one() {
    let whole = config("dinov2-small", &[]);
    let parts = config("dinov2-small", &["batch_size=8", "accumulate=2"]);
    // The learning rate follows the batch; the same here.
    let mut parts = parts;
    parts.optimizer.learning_rate_scaling = crate::train::config::LearningRateScaling::None;
    let mut whole = whole;
    whole.optimizer.learning_rate_scaling = crate::train::config::LearningRateScaling::None;
    let batch = || batches(&whole, 0, 1).remove(0).remove(0);
    let mut one = Trainer::fresh(&whole, &Device::Cpu).unwrap();
    let mut two = Trainer::fresh(&parts, &Device::Cpu).unwrap();
    for _ in 0..2 {
        let of_one = one.advance(&[batch()]).unwrap();
        let of_two = two.advance(&[batch(), batch()]).unwrap();
        assert_eq!(of_one.grad_norms, of_two.grad_norms);
        assert!((of_one.loss - of_two.loss).abs() < 1e-12);
    }
    assert_same(&two, &one);
}

/// Crops of the samples `first..` of `batch`, `count` of each of its `crops` crops of `values` values.
fn crops_of(all: &[f32], batch: &Batch, values: usize, (first, count): (usize, usize)) -> Vec<f32> {
    let per_crop = all.chunks_exact(batch.size * values);
    per_crop
        .flat_map(|crop| crop[first * values..(first + count) * values].iter().copied())
        .collect()
}

/// The samples `first..` of `batch` as a batch of their own, their crops masked as there.
fn half(config: &TrainConfig, batch: &Batch, first: usize, count: usize) -> Batch {
    let mut half = Batch {
        step: batch.step,
        size: count,
        rows: batch.rows[first..first + count].to_vec(),
        views: batch.views[first..first + count].to_vec(),
        global: crops_of(
            &batch.global,
            batch,
            config.crops.global.values(config.crops.channels()),
            (first, count),
        ),
        local: crops_of(
            &batch.local,
            batch,
            config.crops.local.values(config.crops.channels()),
            (first, count),
        ),
        ..Batch::default()
    };
    if let Some(whole) = &batch.masks {
        let patches = config.grid().unwrap().patches();
        let chosen = whole.masks.chunks_exact(batch.size * patches);
        let masks: Vec<u8> = chosen
            .flat_map(|crop| crop[first * patches..(first + count) * patches].iter().copied())
            .collect();
        let places = masks.iter().enumerate().filter(|&(_, &bit)| bit == 1);
        let indices: Vec<u32> = places.map(|(place, _)| place as u32).collect();
        half.masks = Some(BatchMasks {
            weights: vec![0.; indices.len()],
            upper_bound: whole.upper_bound,
            indices,
            masks,
        });
    }
    half
}

/// Losses, and the weights after them by name.
type Stepped = (Vec<f64>, Vec<(String, Vec<f64>)>);

/// Losses and weights of two steps on batches of eight at once, and on their different halves.
fn at_once_and_in_halves(recipe: &str, settings: &[&str]) -> [Stepped; 2] {
    let common = [
        "batch_size=8",
        "optimizer.kind=sgd",
        "optimizer.learning_rate=0.3",
        "optimizer.learning_rate_scaling=none",
        "optimizer.warmup_steps=0",
        "optimizer.clip_norm=0.0",
        "crops.local.count=2",
    ];
    let settings: Vec<&str> = common.iter().chain(settings).copied().collect();
    let whole = config(recipe, &settings);
    let mut halves = whole.clone();
    halves.accumulate = 2;
    let batches: Vec<Batch> = batches(&whole, 0, 2)
        .into_iter()
        .map(|mut parts| parts.remove(0))
        .collect();
    let run = |config: &TrainConfig, parts: &dyn Fn(&Batch) -> Vec<Batch>| {
        let mut trainer = Trainer::fresh(config, &Device::Cpu).unwrap();
        let advance = |batch| trainer.advance(&parts(batch)).unwrap().loss;
        let losses = batches.iter().map(advance).collect();
        (losses, contents(&trainer))
    };
    [
        run(&whole, &|batch| vec![batch.clone()]),
        run(&halves, &|batch| {
            vec![half(&whole, batch, 0, 4), half(&whole, batch, 4, 4)]
        }),
    ]
}

/// Targets that look at no other image, and no KoLeo.
const STANDING_CENTRE: &[&str] = &[
    "teacher.centering=softmax",
    "teacher.center_momentum=1.0",
    "loss.koleo_weight=0.0",
];

/// What is a mean over images is the same in micro-batches: both terms with targets that look at no other image, stochastic depth aside.
#[test]
fn a_step_in_two_different_parts_is_the_step_in_one_where_terms_are_means_over_images() {
    for (recipe, settings) in [
        ("dino", STANDING_CENTRE),
        ("ibot", STANDING_CENTRE),
        // Neighbours within groups that do not cross the border.
        (
            "dino",
            &[
                "teacher.centering=softmax",
                "teacher.center_momentum=1.0",
                "loss.koleo_weight=0.5",
                "loss.koleo_group=4",
            ],
        ),
        (
            "dino",
            &[
                "teacher.centering=softmax",
                "teacher.center_momentum=1.0",
                "loss.koleo_weight=0.5",
                "loss.koleo_group=2",
            ],
        ),
    ] {
        let [whole, halves] = at_once_and_in_halves(recipe, settings);
        for (a, b) in halves.0.iter().zip(&whole.0) {
            assert!(
                (a - b).abs() < 1e-5 * b.abs(),
                "{recipe} {settings:?}: {a}, expected {b}"
            );
        }
        for ((name, found), (_, expected)) in halves.1.iter().zip(&whole.1) {
            let largest = expected.iter().fold(0f64, |max, value| max.max(value.abs()));
            for (a, b) in found.iter().zip(expected) {
                assert!(
                    (a - b).abs() <= 2e-5 * largest,
                    "{recipe} {settings:?}: {name}: {a}, expected {b}"
                );
            }
        }
    }
}

/// And what looks at other images looks at those of its micro-batch, as [`TrainConfig::accumulate`] says.
#[test]
fn targets_and_neighbours_are_of_a_part() {
    for settings in [
        &["teacher.centering=sinkhorn-knopp", "loss.koleo_weight=0.0"][..],
        &[
            "teacher.centering=softmax",
            "teacher.center_momentum=0.5",
            "loss.koleo_weight=0.0",
        ],
        &[
            "teacher.centering=softmax",
            "teacher.center_momentum=1.0",
            "loss.koleo_weight=0.5",
        ],
        &[
            "teacher.centering=softmax",
            "teacher.center_momentum=1.0",
            "loss.koleo_weight=0.5",
            "loss.koleo_group=8",
        ],
    ] {
        let [whole, halves] = at_once_and_in_halves("dino", settings);
        let (a, b) = (halves.0[1], whole.0[1]);
        assert!((a - b).abs() > 1e-4 * b.abs(), "{settings:?}: {a} and {b}");
    }
}

#[test]
fn one_batch_is_learnt_by_heart() {
    for recipe in ["dinov2-small", "dino", "ibot"] {
        // A teacher that stands still gives fixed targets.
        let settings = [
            "steps=60",
            "teacher.momentum=1.0",
            "teacher.center_momentum=1.0",
            "optimizer.learning_rate=3e-3",
            "optimizer.learning_rate_scaling=none",
            "optimizer.weight_decay=0.0",
            "optimizer.final_weight_decay=0.0",
            "optimizer.warmup_steps=5",
            "teacher.temperature_warmup_steps=0",
            "loss.koleo_weight=0.0",
        ];
        let config = config(recipe, &settings);
        let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
        let losses: Vec<f64> = (0..60)
            .map(|_| {
                let batch = batches(&config, 0, 1).remove(0);
                trainer.advance(&batch).unwrap().loss
            })
            .collect();
        let (first, last) = (losses[0], losses[59]);
        assert!(last < 0.9 * first, "{recipe}: from {first} to {last}");
    }
}

#[test]
fn a_loss_that_is_not_finite_moves_nothing() {
    let config = config("dinov2-small", &["optimizer.learning_rate=1e30"]);
    let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
    let mut before = contents(&trainer);
    for batches in batches(&config, 0, 8) {
        match trainer.advance(&batches) {
            Ok(_) => before = contents(&trainer),
            Err(crate::Error::NotFinite { .. }) => {
                let weights = |all: Vec<(String, Vec<f64>)>| -> Vec<String> {
                    let student = all.into_iter().filter(|(name, _)| name.starts_with("student"));
                    student.map(|entry| format!("{entry:?}")).collect()
                };
                assert_eq!(weights(contents(&trainer)), weights(before));
                return;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("a learning rate of 1e30 did no harm");
}
