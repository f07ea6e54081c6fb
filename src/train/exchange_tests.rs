//! Steps and runs on several ranks, threads in the place of processes, beside those of one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use candle_core::Device;

use crate::cluster::simulated::{Network, on_ranks};
use crate::cluster::{OneRank, Ranks};
use crate::data;
use crate::train::config::TrainConfig;
use crate::train::observe::OnlineKnnConfig;
use crate::train::run::{RunSummary, run_on, start_feed};
use crate::train::start::Start;
use crate::train::testing::{request, values};
use crate::train::trainer::Trainer;
use crate::train::trainer::tests::config;

/// What is the same whatever the number of ranks: everything but what the passes drop. Without KoLeo, whose neighbours may change with a
/// rounding, from weights whose attention is nearly even, and on crops that differ, both of which make the least of one.
const ALIKE: [&str; 8] = [
    "crops.global.scale=[0.4, 1.0]",
    "crops.aspect=[0.75, 1.3333333333333333]",
    "crops.flip=0.5",
    "backbone.initial_weights=dinov2",
    "batch_size=12",
    "loss.koleo_weight=0.0",
    "optimizer.learning_rate=1e-3",
    "optimizer.learning_rate_scaling=none",
];

/// Losses of the steps, and the student's weights before and after them.
struct Trained {
    losses: Vec<f64>,
    /// Seconds of each step in which it waited for gradients of others.
    exchange: Vec<f64>,
    first: Vec<f64>,
    last: Vec<f64>,
    memory: Vec<f64>,
    /// Number of trained values.
    trained: usize,
}

fn weights(trainer: &Trainer) -> Vec<f64> {
    trainer
        .method()
        .student
        .tensors()
        .values()
        .flat_map(values)
        .collect()
}

fn steps_on(ranks: &Arc<dyn Ranks>, config: &TrainConfig, count: u64) -> Trained {
    trained(ranks, config, count, true)
}

/// Steps whose gradients are sent `early`, or after the backward pass.
fn trained(ranks: &Arc<dyn Ranks>, config: &TrainConfig, count: u64, early: bool) -> Trained {
    let mut trainer = Trainer::fresh(config, &Device::Cpu).unwrap();
    trainer.share_with(ranks).unwrap();
    trainer.send_early(early && !ranks.is_one());
    let first = weights(&trainer);
    let source = Arc::from(data::open("sample:train").unwrap());
    let mut feed = start_feed(config, source, 0, &Device::Cpu, ranks.as_ref()).unwrap();
    let mut exchange = Vec::new();
    let losses = (0..count)
        .map(|_| {
            let (parts, _) = feed.fetch_micro_batches(config.accumulate).unwrap();
            let report = trainer.advance(&parts).unwrap();
            exchange.push(report.seconds.exchange);
            report.loss
        })
        .collect();
    let memory = trainer.method().memory.tensors().unwrap();
    Trained {
        losses,
        exchange,
        first,
        last: weights(&trainer),
        memory: memory.values().flat_map(values).collect(),
        trained: trainer
            .method()
            .student
            .trained()
            .map(|(_, var)| var.elem_count())
            .sum(),
    }
}

fn assert_alike(what: &str, found: &Trained, expected: &Trained) {
    for (step, (a, b)) in found.losses.iter().zip(&expected.losses).enumerate() {
        let tolerance = if step == 0 { 1e-6 } else { 1e-4 };
        assert!(
            (a - b).abs() <= tolerance * b.abs(),
            "{what}, step {step}: {a}, expected {b}"
        );
    }
    assert_eq!(found.first, expected.first, "{what}");
    let (off, moved) = (
        apart(&found.last, &expected.last),
        apart(&expected.last, &expected.first),
    );
    assert!(moved > 0., "{what}: nothing moved");
    assert!(off <= 1e-2 * moved, "{what}: {off} apart of {moved} moved");
}

/// The distance of two sets of weights.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
    squares.sum::<f64>().sqrt()
}

#[test]
fn a_step_does_not_depend_on_how_many_ranks_share_it() {
    for (recipe, settings) in [
        ("dinov2-small", &[][..]),
        ("dinov2-small", &["loss.koleo_weight=0.3"]),
        ("dinov2-small", &["loss.koleo_weight=0.3", "loss.koleo_group=3"]),
        ("dinov2-small", &["accumulate=2", "masks.probability=0.1"]),
        ("dino", &["teacher.centering=softmax"]),
        ("ibot", &["teacher.centering=sinkhorn-knopp"]),
        ("moco", &[]),
        ("mocov3", &[]),
        ("mocov3", &["loss.words.weight=5.0", "accumulate=2"]),
    ] {
        let all: Vec<&str> = ALIKE.iter().chain(settings).copied().collect();
        let config = config(recipe, &all);
        let one: Arc<dyn Ranks> = Arc::new(OneRank);
        let expected = steps_on(&one, &config, 4);
        for size in [2, 3] {
            let found = on_ranks(size, Network::default(), |ranks| steps_on(&ranks, &config, 4));
            for (rank, found) in found.iter().enumerate() {
                let what = format!("{recipe} {settings:?} on {size} ranks, rank {rank}");
                assert_alike(&what, found, &expected);
            }
            // The same bits on every rank, and again.
            assert!(found.iter().all(|other| other.last == found[0].last), "{recipe}");
            assert!(
                found.iter().all(|other| other.memory == found[0].memory),
                "{recipe}"
            );
            let again = on_ranks(size, Network::default(), |ranks| steps_on(&ranks, &config, 4));
            assert!(again[0].last == found[0].last, "{recipe}");
        }
    }
}

/// Two ranks add up two numbers, in whatever order: the bits are the same.
#[test]
fn gradients_sent_early_are_those_sent_after_the_backward_pass() {
    for settings in [
        &["backbone.drop_path_rate=0.6"][..],
        &["accumulate=2", "crops.local.count=2"],
    ] {
        let config = config("dinov2-small", &[&ALIKE[..], settings].concat());
        let [early, after] = [true, false].map(|early| {
            let found = on_ranks(2, Network::default(), |ranks| trained(&ranks, &config, 3, early));
            found.into_iter().next().unwrap()
        });
        assert_eq!(early.losses, after.losses, "{settings:?}");
        assert!(early.last == after.last, "{settings:?}");
    }
}

/// The least of what `value` gives for each rank, of every step.
fn least(found: &[Trained], value: impl Fn(&Trained) -> &[f64]) -> Vec<f64> {
    let steps = value(&found[0]).len();
    let of_step = |step: usize| {
        found
            .iter()
            .map(|found| value(found)[step])
            .fold(f64::INFINITY, f64::min)
    };
    (0..steps).map(of_step).collect()
}

/// Over a network that takes about as long as a backward pass.
#[test]
fn sending_early_hides_a_slow_network() {
    let deep = [
        "backbone.depth=12",
        "backbone.embed_dim=192",
        "backbone.num_heads=3",
    ];
    let config = config("dino", &[&ALIKE[..], &deep].concat());
    let slow = Network {
        latency: Duration::from_millis(1),
        bandwidth: 60e6,
    };
    let [early, after] = [true, false].map(|early| {
        let found = on_ranks(2, slow, |ranks| trained(&ranks, &config, 4, early));
        let waited = least(&found, |found| &found.exchange);
        waited.into_iter().sum::<f64>()
    });
    println!("{early:.3} s of waiting, {after:.3} s where nothing is sent early");
    assert!(early < 0.75 * after, "{early} and {after}");
}

/// What `docs/clusters.md` says of the time of an exchange, beside steps over simulated networks.
#[test]
fn exchanges_take_what_the_model_says() {
    let config = config("dino", &ALIKE);
    let network = |milliseconds, bandwidth| Network {
        latency: Duration::from_millis(milliseconds),
        bandwidth,
    };
    for (size, network) in [(2, network(1, 2e5)), (3, network(1, 2e5)), (4, network(60, 2e7))] {
        // The rank that comes last waits for none of the others.
        let found = on_ranks(size, network, |ranks| trained(&ranks, &config, 3, false));
        let waited = least(&found, |found| &found.exchange)
            .into_iter()
            .fold(f64::INFINITY, f64::min);
        let bytes = 4. * found[0].trained as f64;
        // All weights in a bucket, and before it which of them have a gradient, told around the ring once.
        let told = (size - 1) as f64 * network.latency.as_secs_f64();
        let expected = network.reduction_seconds(size, bytes, 1) + told;
        println!("{size} ranks, {bytes} bytes: {waited:.3} s, {expected:.3} s by the model");
        // A busy machine adds to it.
        assert!(
            (0.9 * expected..1.3 * expected).contains(&waited),
            "{size}: {waited}, expected {expected}"
        );
    }
}

/// Half the bytes over the same network, and steps that differ by roundings.
#[test]
fn gradients_sent_in_bf16_take_half_the_time_and_train_alike() {
    let [exact, short] = ["f32", "bf16"].map(|wire| {
        let wire = format!("ranks.wire={wire}");
        config("dino", &[&ALIKE[..], &[wire.as_str()]].concat())
    });
    let slow = Network {
        latency: Duration::from_millis(1),
        bandwidth: 2e5,
    };
    let steps = |config: &TrainConfig, early| on_ranks(2, slow, |ranks| trained(&ranks, config, 4, early));
    let (expected, found, early) = (steps(&exact, false), steps(&short, false), steps(&short, true));
    let waited = |found: &[Trained]| {
        least(found, |found| &found.exchange)
            .into_iter()
            .fold(f64::INFINITY, f64::min)
    };
    println!(
        "{:.3} s of waiting, {:.3} s in bf16",
        waited(&expected),
        waited(&found)
    );
    assert!(waited(&found) < 0.6 * waited(&expected));
    assert!(found[0].last == found[1].last && early[0].last == found[0].last);
    // The first loss is that before any gradient was sent.
    assert_eq!(found[0].losses[0], expected[0].losses[0]);
    for (a, b) in found[0].losses.iter().zip(&expected[0].losses) {
        assert!((a - b).abs() <= 1e-3 * b.abs(), "{a}, expected {b}");
    }
    let off = apart(&found[0].last, &expected[0].last) / apart(&expected[0].last, &expected[0].first);
    println!("weights are apart by {off:.4} of their movement");
    assert!(off < 0.05, "{off}");
}

/// A batch that grows by one is not always the same on all ranks.
#[test]
fn uneven_shares_count_by_their_images() {
    let grows = ["batch_warmup_steps=4", "batch_warmup_start=5"];
    let all: Vec<&str> = ALIKE.iter().chain(&grows).copied().collect();
    for recipe in ["dino", "mocov3"] {
        let config = config(recipe, &all);
        let one: Arc<dyn Ranks> = Arc::new(OneRank);
        let expected = steps_on(&one, &config, 3);
        for found in on_ranks(2, Network::default(), |ranks| steps_on(&ranks, &config, 3)) {
            assert_alike(&format!("{recipe}, a batch that grows"), &found, &expected);
        }
    }
}

#[test]
fn ranks_have_one_queue_of_keys() {
    let config = config("moco", &ALIKE);
    let found = on_ranks(3, Network::default(), |ranks| steps_on(&ranks, &config, 2));
    assert!(found[0].memory.len() == 12 * 8, "{}", found[0].memory.len());
    for other in &found {
        assert!(other.memory == found[0].memory && other.last == found[0].last);
    }
}

#[test]
fn every_rank_drops_paths_of_its_own() {
    let drops = |size| {
        let config = config("dino", &["batch_size=12", "backbone.drop_path_rate=0.4"]);
        let found = on_ranks(size, Network::default(), |ranks| steps_on(&ranks, &config, 1));
        found[0].losses[0]
    };
    assert_ne!(drops(1), drops(2));
    assert_eq!(drops(2), drops(2));
}

fn train(
    config: &TrainConfig,
    out: &Path,
    start: &Start,
    size: usize,
    stops: Option<usize>,
) -> Vec<RunSummary> {
    on_ranks(size, Network::default(), |ranks| {
        let mut request = request(config, out, start);
        request.stop = Arc::new(AtomicBool::new(stops == Some(ranks.rank())));
        run_on(request, ranks).unwrap()
    })
}

fn losses(out: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64();
    text.lines().filter_map(line).collect()
}

#[test]
fn a_run_of_many_ranks_leaves_the_folder_of_one_and_goes_on_with_another_number() {
    let place = tempfile::tempdir().unwrap();
    let mut config = config("dinov2-small", &[&ALIKE[..], &["steps=4"]].concat());
    config.monitor.log_every = 1;
    config.checkpoints.every = 2;
    config.monitor.knn = Some(OnlineKnnConfig {
        max_images: 100,
        ..OnlineKnnConfig::new("sample:test".to_owned(), 2)
    });
    let [one, many] = ["one", "many"].map(|name| place.path().join(name));
    let expected = train(&config, &one, &Start::Fresh, 1, None);

    // A signal that one rank gets ends all of them, with a checkpoint.
    let stopped = train(&config, &many, &Start::Fresh, 3, Some(1));
    assert!(
        stopped
            .iter()
            .all(|summary| summary.step == 0 && !summary.finished)
    );
    assert!(many.join("checkpoints/last").exists());
    let done = train(&config, &many, &Start::Resume, 2, None);
    assert!(done.iter().all(|summary| summary.step == 4 && summary.finished));
    assert_eq!(done[0].knn_top1, done[1].knn_top1);
    assert!((done[0].knn_top1.unwrap() - expected[0].knn_top1.unwrap()).abs() < 0.1);
    for (a, b) in losses(&many).iter().zip(losses(&one)) {
        assert!((a - b).abs() <= 1e-4 * b.abs(), "{a}, expected {b}");
    }
    let env = std::fs::read_to_string(many.join("env.json")).unwrap();
    let env: serde_json::Value = serde_json::from_str(&env).unwrap();
    assert_eq!(
        (&env["ranks"]["size"], &env["ranks"]["library"]),
        (&2.into(), &"threads of one process".into())
    );
    assert_eq!(env["ranks"]["hosts"].as_array().unwrap().len(), 2);
    let names = |folder: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.retain(|name| !name.to_string_lossy().contains("tfevents"));
        names.sort();
        names
    };
    assert_eq!(names(&many), names(&one));
}

#[test]
fn ranks_that_were_asked_differently_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let failed = on_ranks(2, Network::default(), |ranks| {
        let seed = format!("seed={}", ranks.rank() + 3);
        let config = config("dino", &["batch_size=4", &seed]);
        let request = request(&config, &place.path().join("run"), &Start::Fresh);
        run_on(request, ranks).unwrap_err().to_string()
    });
    let expected =
        "settings: expected the same on all 2 ranks, found `seed = 3` on rank 0 and `seed = 4` on rank 1";
    assert_eq!(failed, [expected, expected]);
}
