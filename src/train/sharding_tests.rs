//! Ranks that divide the optimizer's state beside ranks that each keep all of it.

use std::path::Path;

use macula_models::weights::Tensors;

use super::*;
use crate::cluster::simulated::{Network, on_ranks};
use crate::data;
use crate::train::config::TrainConfig;
use crate::train::param_groups::ParamGroupRules;
use crate::train::run::{run_on, start_feed};
use crate::train::start::Start;
use crate::train::testing::{request, values};
use crate::train::trainer::Trainer;
use crate::train::trainer::tests::config;

/// A parameter of as many values, each `value`.
fn parameter(name: &str, size: usize, value: f32) -> Parameter {
    Parameter {
        name: name.to_owned(),
        var: Var::from_vec(vec![value; size], size, &Device::Cpu).unwrap(),
        group: ParamGroupRules::head(name),
    }
}

#[test]
fn every_weight_has_one_owner_and_every_rank_about_as_many_values() {
    let sizes = [90, 50, 50, 40, 30, 20, 10, 5, 1, 1];
    let all: Vec<Parameter> = sizes
        .iter()
        .enumerate()
        .map(|(place, &size)| parameter(&format!("weight {place}"), size, 0.))
        .collect();
    let backwards: Vec<Parameter> = all.iter().rev().cloned().collect();
    for (ranks, most) in [(1, 297), (2, 150), (3, 100), (4, 90), (20, 90)] {
        let shards = Shards::new(&all, ranks);
        let owned = |rank: usize| {
            let own = all.iter().filter(|parameter| shards.owns(rank, &parameter.name));
            own.map(|parameter| parameter.var.elem_count()).sum::<usize>()
        };
        assert_eq!((0..ranks).map(owned).sum::<usize>(), 297, "{ranks}");
        assert_eq!((0..ranks).map(owned).max(), Some(most), "{ranks}");
        assert_eq!(Shards::new(&backwards, ranks).owners, shards.owners, "{ranks}");
    }
}

/// More than a bucket of one owner, and a weight without a gradient.
#[test]
fn new_values_go_from_owners_to_all_ranks() {
    let found = on_ranks(3, Network::default(), |ranks| {
        let own = ranks.rank() as f32;
        let sizes = [("a", BUCKET + 1), ("b", BUCKET), ("c", 3), ("d", 2), ("still", 2)];
        let all = sizes.map(|(name, size)| parameter(name, size, own));
        let owners = [("a", 1), ("b", 1), ("c", 1), ("d", 2), ("still", 0)];
        let shards = Shards {
            owners: owners.map(|(name, owner)| (name.to_owned(), owner)).into(),
        };
        let moved = all[..4].iter().map(|parameter| parameter.var.sum_all().unwrap());
        let moved = Tensor::stack(&moved.collect::<Vec<_>>(), 0).unwrap();
        let gradients = moved.sum_all().unwrap().backward().unwrap();
        shards.spread(ranks.as_ref(), &all, &gradients).unwrap();
        all.map(|parameter| {
            let values = values(&parameter.var);
            assert!(values.iter().all(|value| *value == values[0]));
            (values.len(), values[0])
        })
    });
    for (rank, found) in found.into_iter().enumerate() {
        let still = (2, rank as f64);
        assert_eq!(found, [(BUCKET + 1, 1.), (BUCKET, 1.), (3, 1.), (2, 2.), still]);
    }
}

type Bits = BTreeMap<String, Vec<u32>>;

fn bits(tensors: &Tensors) -> Bits {
    let bits = |tensor: &Tensor| -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    let named = |(name, tensor): (&String, &Tensor)| (name.clone(), bits(tensor));
    tensors.iter().map(named).collect()
}

/// What a rank has after some steps.
#[derive(PartialEq)]
struct Trained {
    losses: Vec<f64>,
    student: Bits,
    teacher: Bits,
    optimizer: Bits,
    steps: BTreeMap<String, u64>,
}

fn trained(ranks: &Arc<dyn Ranks>, config: &TrainConfig, early: bool) -> Trained {
    let mut trainer = Trainer::fresh(config, &Device::Cpu).unwrap();
    trainer.share_with(ranks).unwrap();
    trainer.send_early(early);
    let source = Arc::from(data::open("sample:train").unwrap());
    let mut feed = start_feed(config, source, 0, &Device::Cpu, ranks.as_ref()).unwrap();
    let losses = (0..4).map(|_| {
        let (parts, _) = feed.fetch_micro_batches(config.accumulate).unwrap();
        trainer.advance(&parts).unwrap().loss
    });
    let losses = losses.collect();
    let state = trainer.state().unwrap();
    Trained {
        losses,
        student: bits(&state.student),
        teacher: bits(&state.teacher),
        optimizer: bits(&state.optimizer.tensors),
        steps: state.optimizer.steps,
    }
}

/// `recipe` for a step that 2 and 3 ranks share, without a weight that is larger than the share of one.
fn shared(recipe: &str, settings: &[&str]) -> TrainConfig {
    let alike = [
        "batch_size=12",
        "optimizer.learning_rate=1e-2",
        "loss.hog_hidden=4",
        "loss.pixel_hidden=4",
        "loss.words.hidden=4",
        "backbone.stem=[]",
    ];
    let all = [&alike[..], settings].concat();
    config(recipe, &all)
}

fn sharded(config: &TrainConfig) -> TrainConfig {
    let mut sharded = config.clone();
    sharded.ranks.shard_optimizer = true;
    sharded
}

#[test]
fn steps_are_those_of_ranks_that_keep_everything() {
    for (recipe, settings, early) in [
        (
            "dinov2-small",
            &["optimizer.layer_decay=0.7", "optimizer.clip_norm=0.05"][..],
            true,
        ),
        (
            "dinov2-small",
            &[
                "accumulate=2",
                "masks.probability=0.1",
                "optimizer.freeze_last_layer_steps=2",
            ],
            false,
        ),
        ("ibot", &["masks.probability=0.0"], false),
        ("dino", &["ranks.wire=bf16"], true),
        (
            "moco",
            &[
                "optimizer.kind=sgd",
                "optimizer.learning_rate=0.1",
                "optimizer.clip_norm=0.1",
            ],
            false,
        ),
        ("mocov3", &["optimizer.freeze_backbone_steps=1"], false),
    ] {
        let config = shared(recipe, settings);
        for size in [2, 3] {
            let what = format!("{recipe} {settings:?} on {size} ranks");
            let run = |config: &TrainConfig| {
                on_ranks(size, Network::default(), |ranks| trained(&ranks, config, early))
            };
            let whole = run(&config).swap_remove(0);
            let parts = run(&sharded(&config));
            let (mut optimizer, mut steps) = (Bits::new(), BTreeMap::new());
            for part in parts {
                assert_eq!(part.losses, whole.losses, "{what}");
                assert!(part.student == whole.student, "{what}");
                assert!(part.teacher == whole.teacher, "{what}");
                let values = |bits: &Bits| bits.values().map(Vec::len).sum::<usize>();
                let (own, all) = (values(&part.optimizer), values(&whole.optimizer));
                assert!(own * size < all * 5 / 4, "{what}: {own} of {all}");
                for (name, values) in part.optimizer {
                    assert!(optimizer.insert(name, values).is_none(), "{what}");
                }
                steps.extend(part.steps);
            }
            assert!(optimizer == whole.optimizer, "{what}");
            assert_eq!(steps, whole.steps, "{what}");
            if recipe == "ibot" {
                assert!(steps.values().any(|&steps| steps == 0), "every weight has moved");
            }
        }
    }
}

fn sit(config: &TrainConfig, out: &Path, start: &Start, size: usize, until: u64) {
    on_ranks(size, Network::default(), |ranks| {
        let mut request = request(config, out, start);
        request.until = Some(until);
        run_on(request, ranks).unwrap();
    });
}

/// Ranks and last step of each sitting.
const SITTINGS: [(usize, u64); 4] = [(2, 2), (1, 3), (3, 5), (2, 6)];

#[test]
fn checkpoints_are_those_of_ranks_that_keep_everything_and_any_number_goes_on() {
    let place = tempfile::tempdir().unwrap();
    for (recipe, settings) in [
        ("dinov2-small", &[][..]),
        ("moco", &["optimizer.kind=sgd", "optimizer.learning_rate=0.1"]),
    ] {
        let mut config = shared(recipe, settings);
        config.steps = 6;
        config.checkpoints.keep = 9;
        let mut run = |name: &str, sharding: [bool; 4]| {
            let out = place.path().join(format!("{recipe} {name}"));
            let mut start = Start::Fresh;
            for ((size, until), sharding) in SITTINGS.into_iter().zip(sharding) {
                config.ranks.shard_optimizer = sharding;
                sit(&config, &out, &start, size, until);
                start = Start::Resume;
            }
            out
        };
        let whole = run("whole", [false; 4]);
        for (name, sharding) in [
            ("sharded", [true; 4]),
            ("by turns", [true, false, false, true]),
            ("the other way", [false, true, true, false]),
        ] {
            let out = run(name, sharding);
            for (_, step) in SITTINGS {
                for file in ["state.safetensors", "state.json"] {
                    let read = |out: &Path| {
                        let path = out.join(format!("checkpoints/step-{step}")).join(file);
                        std::fs::read(path).unwrap()
                    };
                    assert!(
                        read(&out) == read(&whole),
                        "{recipe}, {name}, step {step}: {file}"
                    );
                }
            }
            let env = std::fs::read_to_string(out.join("env.json")).unwrap();
            let env: serde_json::Value = serde_json::from_str(&env).unwrap();
            let bytes: Vec<u64> = serde_json::from_value(env["ranks"]["optimizer_bytes"].clone()).unwrap();
            let is_divided = bytes[0].abs_diff(bytes[1]) * 10 < bytes[0];
            assert_eq!(bytes.len(), 2);
            assert!(is_divided, "{bytes:?}");
            let state = crate::train::checkpoint::load(&out.join("checkpoints/step-6"))
                .unwrap()
                .state;
            let all: usize = state.optimizer.tensors.values().map(Tensor::elem_count).sum();
            let copies = if sharding[3] { 1 } else { 2 };
            assert_eq!(bytes.iter().sum::<u64>(), 4 * copies * all as u64, "{name}");
        }
    }
}

#[test]
fn what_no_rank_has_is_named() {
    let found = on_ranks(2, Network::default(), |ranks| {
        let own = OptimizerState::default();
        let parts = Parts::new(&ranks, &own).unwrap();
        parts.ask("first.weight").unwrap_err().to_string()
    });
    let expected = "optimizer state first.weight: expected it on one of the ranks, found none";
    assert_eq!(found, [expected, expected]);
}
