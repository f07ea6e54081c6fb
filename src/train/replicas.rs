//! A run of several copies of its network in one process, which share every batch as ranks do: each has threads of its own, so that only
//! what copies tell each other (gradients, statistics of a batch) waits for all of them, and not every loop of every operation.

use std::sync::Arc;

use candle_core::Device;

use super::config::TrainConfig;
use super::network::NetworkConfig;
use super::run::{self, RunSummary, TrainRequest};
use crate::cluster::Ranks;
use crate::cluster::threads::on_ranks;
use crate::{Error, Result};

/// Images of a micro-batch that a copy has at least: products of fewer rows read weights more often than they use them.
const IMAGES: usize = 16;

/// Bytes that all copies may have for weights, the teacher's, gradients and the optimizer's two moments.
const MEMORY: usize = 2 << 30;
/// Values of each of these.
const VALUES: usize = 5;

/// The share of a step in which more threads of a copy do not help (measured: `benchmarks/history/NOTES.md`, "Copies beside one another").
const SERIAL: f64 = 0.27;

/// What a further copy adds to a step as a share of it, for each weight and image of a micro-batch: it moves all weights once more
/// (measured: the same section, ViT-S/14 with 65,536 prototypes).
const CARRIED: f64 = 0.65e-6;

/// Copies that train soonest on `threads` threads of the processor: one where `device` is another, or a frozen teacher computes beside
/// them. It depends on nothing else, so that the same command gives the same bytes.
///
/// # Errors
/// A configuration that contradicts itself.
pub fn automatic(config: &TrainConfig, threads: usize, device: &Device) -> Result<usize> {
    if !device.is_cpu() || config.distill.is_some() {
        return Ok(1);
    }
    let network = NetworkConfig::new(config)?;
    let shapes = network.parameters().into_iter();
    let weights: usize = shapes.map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let of_memory = MEMORY / (weights * VALUES * size_of::<f32>()).max(1);
    let of_images = config.batch_size / config.accumulate.max(1) / IMAGES;
    let most = threads.min(of_images).min(of_memory).max(1);
    let fits = |copies: &usize| config.check_ranks(*copies).is_ok();
    let candidates = (1..=most).filter(fits);
    // Of as fast ones the fewest.
    let weights_of_image = weights as f64 / (config.batch_size / config.accumulate.max(1)) as f64;
    let speed = |copies| speed(copies, threads, weights_of_image);
    let best = candidates.rev().max_by(|a, b| speed(*a).total_cmp(&speed(*b)));
    Ok(best.unwrap_or(1))
}

/// How many times as fast as one thread `copies` are, by Amdahl's law and what they carry.
fn speed(copies: usize, threads: usize, weights_of_image: f64) -> f64 {
    let each = (threads / copies).max(1) as f64;
    let carried = (copies - 1) as f64 * CARRIED * weights_of_image;
    copies as f64 / (SERIAL + (1. - SERIAL) / each) / (1. + carried)
}

/// [`run::run`] by `copies`, each with its share of `request.threads`.
///
/// # Errors
/// As there, and as [`check`].
pub fn run(request: TrainRequest, copies: usize) -> Result<RunSummary> {
    if copies <= 1 {
        return run::run(request);
    }
    check(&request.config, request.threads, &request.device, copies)?;
    let meters = Arc::new(run::open_meters(&request)?);
    let TrainRequest {
        config,
        source,
        out,
        replace,
        start,
        teacher: _,
        device,
        threads,
        until,
        stop,
    } = request;
    let of_copy = || TrainRequest {
        config: config.clone(),
        source: Arc::clone(&source),
        out: out.clone(),
        replace,
        start: start.clone(),
        teacher: None,
        device: device.clone(),
        threads,
        until,
        stop: Arc::clone(&stop),
    };
    of_first(copies, threads, |ranks| {
        run::run_with(of_copy(), ranks, Arc::clone(&meters))
    })
}

/// What `work` gives the first of `copies`, each with its share of `threads`.
///
/// # Errors
/// As [`on_ranks`].
pub(super) fn of_first<T: Send>(
    copies: usize,
    threads: usize,
    work: impl Fn(Arc<dyn Ranks>) -> Result<T> + Sync,
) -> Result<T> {
    let results = on_ranks(copies, threads / copies, work)?;
    let first = results.into_iter().next();
    first.ok_or_else(|| Error::failed("replicas", "expected a copy that has ended"))
}

/// Whether `copies` can share `threads` and the batches of `config`.
///
/// # Errors
/// A batch that cannot be shared by so many, more copies than threads, or several beside a frozen teacher or on a GPU.
pub(super) fn check(config: &TrainConfig, threads: usize, device: &Device, copies: usize) -> Result<()> {
    let refused = |reason: String| Err(Error::input("replicas", reason));
    if copies > threads {
        return refused(format!(
            "expected at most one for each of {threads} threads, found {copies}"
        ));
    }
    if config.distill.is_some() {
        return refused(format!("expected 1 beside a frozen teacher, found {copies}"));
    }
    if !device.is_cpu() {
        return refused(format!("expected 1 on a GPU, found {copies}"));
    }
    config.check_ranks(copies)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::train::observe::{LabelFreeConfig, OnlineKnnConfig};
    use crate::train::start::Start;
    use crate::train::testing;
    use crate::train::trainer::tests::config;

    fn request(config: &TrainConfig, out: &Path, threads: usize) -> TrainRequest {
        TrainRequest {
            threads,
            ..testing::request(config, out, &Start::Fresh)
        }
    }

    #[test]
    fn copies_train_as_one_network_and_twice_alike() {
        let place = tempfile::tempdir().unwrap();
        let mut config = config("dinov2-small", &["steps=3", "batch_size=8"]);
        config.monitor.log_every = 1;
        config.monitor.label_free = Some(LabelFreeConfig {
            images: 20,
            ..LabelFreeConfig::new(3)
        });
        config.monitor.knn = Some(OnlineKnnConfig {
            max_images: 60,
            ..OnlineKnnConfig::new("sample:test".to_owned(), 3)
        });
        let trained = |name: &str, copies: usize| {
            let out = place.path().join(name);
            let summary = run(request(&config, &out, copies.max(2)), copies).unwrap();
            assert!(summary.finished && summary.knn_top1.is_some());
            let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64();
            let losses: Vec<f64> = text.lines().filter_map(loss).collect();
            assert_eq!(losses.len(), 3);
            (losses, std::fs::read(out.join(run::TEACHER)).unwrap())
        };
        let (one, _) = trained("one", 1);
        let (four, bytes) = trained("four", 4);
        for (found, expected) in four.iter().zip(&one) {
            assert!(
                (found - expected).abs() <= 1e-4 * expected,
                "{four:?}, expected {one:?}"
            );
        }
        assert_eq!(trained("again", 4), (four, bytes));
    }

    #[test]
    fn what_copies_cannot_share_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("run");
        let config = config("dino", &["batch_size=4"]);
        let refused = |threads, copies| {
            run(request(&config, &out, threads), copies)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused(2, 4),
            "replicas: expected at most one for each of 2 threads, found 4"
        );
        assert!(refused(3, 3).starts_with("batch_size: expected a multiple of the 3 ranks"));
        assert!(!out.exists());
    }

    #[test]
    fn copies_follow_threads_batch_and_network() {
        let of =
            |settings: &[&str], threads| automatic(&config("dino", settings), threads, &Device::Cpu).unwrap();
        let batch = |size: usize| format!("batch_size={size}");
        for (size, threads, copies) in [
            (64, 1, 1),
            (64, 2, 2),
            (64, 3, 2),
            (64, 6, 4),
            (64, 16, 4),
            (256, 16, 16),
            (31, 16, 1),
            (48, 12, 3),
        ] {
            assert_eq!(of(&[&batch(size)], threads), copies, "{size} images on {threads}");
        }
        assert_eq!(of(&["batch_size=64", "accumulate=4"], 16), 1);
        // Prototypes that cost each copy more than it saves.
        let heads = [
            "batch_size=64",
            "loss.head.prototypes=65536",
            "loss.head.bottleneck=512",
        ];
        assert_eq!((of(&heads, 2), of(&heads[..1], 2)), (1, 2));
        // 86 million weights of 20 bytes each.
        let large = of(
            &[
                "batch_size=256",
                "backbone.embed_dim=768",
                "backbone.depth=12",
                "backbone.ffn_hidden=3072",
            ],
            16,
        );
        assert_eq!(large, 1);
    }
}
