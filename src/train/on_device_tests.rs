//! Whole steps composed of candle arithmetic against whole steps of the kernels.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use macula_models::ops::composed;
use macula_models::ops::cuda::emulated;

use super::*;
use crate::Error;
use crate::train::config::{Compute, OptimizerKind, TrainConfig};
use crate::train::losses::targets::{SoftmaxCentering, sinkhorn_knopp as kernels};
use crate::train::network::Network;
use crate::train::ranks::OneRank;
use crate::train::recipes::Overrides;
use crate::train::testing::cuda_emulation::launcher;
use crate::train::testing::{assert_close, fixture, on_processes, values};
use crate::train::trainer::Trainer;
use crate::train::trainer::tests::{batches, config};

/// What some steps gave.
struct Trained {
    losses: Vec<f64>,
    /// All weights of student and teacher, which begin alike.
    initial: Weights,
    student: Weights,
    teacher: Weights,
}

type Weights = BTreeMap<String, Vec<f64>>;

impl Trained {
    /// How far each tensor of `weights` is from its initial value, by the Euclidean norm.
    fn moved(&self, weights: &Weights) -> BTreeMap<String, f64> {
        let moved = |(name, values): (&String, &Vec<f64>)| {
            let initial = &self.initial[name];
            (name.clone(), distance(name, values, initial))
        };
        weights.iter().map(moved).collect()
    }
}

/// The Euclidean distance of the values that have a gradient: a bias common to all keys moves every score of a query alike, and softmax
/// does not see it.
fn distance(name: &str, a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "{name}");
    let third = a.len() / 3;
    let of_keys = |place: usize| name.ends_with("attn.qkv.bias") && (third..2 * third).contains(&place);
    let pairs = a.iter().zip(b).enumerate();
    let squares = pairs
        .filter(|(place, _)| !of_keys(*place))
        .map(|(_, (a, b))| (a - b) * (a - b));
    squares.sum::<f64>().sqrt()
}

/// What `steps` steps give on one thread, composed where asked.
fn trained(config: &TrainConfig, steps: u64, compose: bool) -> Trained {
    trained_in(config, steps, |run| if compose { composed(run) } else { run() })
}

/// What `steps` steps give on one thread, in a scope.
fn trained_in(
    config: &TrainConfig,
    steps: u64,
    scope: impl FnOnce(&dyn Fn() -> Trained) -> Trained + Send,
) -> Trained {
    let batches = batches(config, 0, steps);
    let all = |network: &Network| -> Weights {
        let tensors = network.tensors().into_iter();
        tensors.map(|(name, tensor)| (name, values(&tensor))).collect()
    };
    let run = || {
        let mut trainer = Trainer::fresh(config, &Device::Cpu).unwrap();
        let initial = all(&trainer.method().student);
        assert!(initial == all(&trainer.method().teacher));
        let losses = batches
            .iter()
            .map(|parts| trainer.advance(parts).unwrap().loss)
            .collect();
        Trained {
            losses,
            initial,
            student: all(&trainer.method().student),
            teacher: all(&trainer.method().teacher),
        }
    };
    // The scope is one thread's: a pool of one runs the step where it was opened.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| scope(&run))
}

/// A run whose weights move far beyond rounding from its first step on, and take the teacher along.
fn moving(recipe: &str, kind: OptimizerKind, settings: &[&str]) -> TrainConfig {
    let mut config = config(
        recipe,
        &[
            "optimizer.learning_rate_scaling=none",
            "optimizer.warmup_steps=0",
            "teacher.momentum=0.9",
        ],
    );
    config.optimizer.kind = kind;
    config.optimizer.learning_rate = match kind {
        OptimizerKind::Adamw => 1e-2,
        OptimizerKind::Sgd => 0.1,
    };
    let mut overrides = Overrides::default();
    for setting in settings {
        overrides.set(setting).unwrap();
    }
    overrides.apply(config, 1000).unwrap()
}

/// Fails unless losses agree within `losses`, relatively, and every tensor of student and teacher has moved, and in both runs to the
/// same place: within `weights` of how far it moved. Gains of the prototypes stay where they are, and of the others those that are
/// `compared` are looked at, by name and number of values.
fn assert_moved_alike(
    what: &str,
    [found, expected]: [&Trained; 2],
    losses: f64,
    weights: f64,
    compared: impl Fn(&str, usize) -> bool,
) {
    for (step, (a, b)) in found.losses.iter().zip(&expected.losses).enumerate() {
        assert!(
            (a - b).abs() < losses * b.abs(),
            "{what}, step {step}: {a}, expected {b}"
        );
    }
    assert!(found.initial == expected.initial);
    for (network, found, of_expected) in [
        ("student", &found.student, &expected.student),
        ("teacher", &found.teacher, &expected.teacher),
    ] {
        assert_eq!(found.len(), of_expected.len());
        for (name, moved) in expected.moved(of_expected) {
            let (a, b) = (&found[&name], &of_expected[&name]);
            let values = b.len();
            if name.ends_with("weight_g") {
                assert!(a == b && moved == 0., "{what}, {network} {name} is fixed");
            } else if compared(&name, values) {
                let min = 1e-6 * (values as f64).sqrt();
                assert!(moved > min, "{what}, {network} {name} has moved by {moved}");
                let apart = distance(&name, a, b);
                assert!(
                    apart < weights * moved,
                    "{what}, {network} {name}: {apart} apart, moved by {moved}"
                );
            }
        }
    }
}

#[test]
fn steps_of_every_method_agree_with_the_kernels() {
    for recipe in ["dinov2-small", "dino", "ibot", "moco"] {
        // Batch norm in the projection takes off what the last norm's bias adds: its gradient is nothing but rounding.
        let compared = |name: &str, _: usize| recipe != "moco" || name != "backbone.norm.bias";
        for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
            let config = moving(recipe, kind, &["backbone.drop_path_rate=0.3"]);
            let expected = trained(&config, 4, false);
            let found = trained(&config, 4, true);
            // The more there is that AdamW makes whole steps of, the farther rounding leads.
            let weights = if recipe == "moco" { 1e-2 } else { 1e-3 };
            let what = format!("{recipe} {kind:?}");
            assert_moved_alike(&what, [&found, &expected], 2e-3, weights, compared);
        }
    }
}

/// Whole steps on the CUDA kernels, which run on the processor here: every launch of a step, and what is composed around them.
#[test]
#[ignore = "needs a C++ compiler"]
fn steps_on_an_emulated_gpu_agree_with_the_kernels() {
    for (kind, compute, packing, losses, weights) in [
        (OptimizerKind::Adamw, Compute::F32, true, 2e-3, 1e-3),
        (OptimizerKind::Adamw, Compute::F32, false, 2e-3, 1e-3),
        (OptimizerKind::Sgd, Compute::F32, true, 2e-3, 1e-3),
        // AdamW's steps are as long where a gradient is hardly more than rounding.
        (OptimizerKind::Adamw, Compute::Bf16, true, 2e-2, 0.6),
        (OptimizerKind::Sgd, Compute::Bf16, true, 2e-2, 5e-2),
    ] {
        let mut config = moving(
            "dinov2-small",
            kind,
            &["backbone.drop_path_rate=0.3", "loss.koleo_group=2"],
        );
        config.sequence_packing = packing;
        let expected = trained(&config, 3, false);
        config.compute = compute;
        let found = trained_in(&config, 3, |run| emulated(launcher(), run));
        let what = format!("{kind:?} {compute:?} packed {packing}");
        assert_moved_alike(&what, [&found, &expected], losses, weights, |_, _| true);
        assert_ne!(found.losses, expected.losses);
    }
}

/// The norms and terms of a step on a GPU are read when the weights would have moved.
#[test]
#[ignore = "needs a C++ compiler"]
fn a_step_on_an_emulated_gpu_that_is_not_finite_moves_nothing() {
    let config = config("dinov2-small", &["optimizer.learning_rate=1e30"]);
    let steps = batches(&config, 0, 8);
    let run = || {
        let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
        for (number, parts) in steps.iter().enumerate() {
            let before = weights(&trainer);
            match trainer.advance(parts) {
                Ok(_) => assert_ne!(weights(&trainer), before, "step {number}"),
                Err(error) => {
                    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
                    assert!(number > 0 && weights(&trainer) == before);
                    return;
                }
            }
        }
        panic!("expected a loss that is not finite");
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| emulated(launcher(), run));
}

/// The bits of all weights of student and teacher.
fn weights(trainer: &Trainer) -> Vec<u32> {
    let networks = [&trainer.method().student, &trainer.method().teacher];
    let tensors = networks
        .into_iter()
        .flat_map(|network| network.tensors().into_values());
    let bits = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    tensors.flat_map(bits).map(f32::to_bits).collect()
}

/// By SGD, whose steps are gradients: what differs is what bf16 makes of them. Biases and gains are left out, whose gradients are sums
/// over all tokens that nearly cancel.
#[test]
fn steps_in_bf16_follow_those_in_f32() {
    let config = moving("dinov2-small", OptimizerKind::Sgd, &[]);
    let expected = trained(&config, 6, true);
    let half = TrainConfig {
        compute: Compute::Bf16,
        ..config
    };
    for on_device in [true, false] {
        let found = trained(&half, 6, on_device);
        let what = format!("bf16, composed {on_device}");
        assert_moved_alike(&what, [&found, &expected], 0.02, 0.05, |_, values| values >= 100);
        assert_ne!(found.losses, expected.losses);
    }
    let trainer = Trainer::fresh(&half, &Device::Cpu).unwrap();
    let tensors = trainer.method().teacher.tensors();
    assert!(tensors.values().all(|tensor| tensor.dtype() == DType::F32));
}

#[test]
fn targets_agree_with_the_kernels() {
    targets_agree(|work| composed(work));
}

#[test]
#[ignore = "needs a C++ compiler"]
fn targets_on_an_emulated_gpu_agree_with_the_kernels() {
    targets_agree(|work| emulated(launcher(), work));
}

/// Of the processor's kernels and of what runs in a scope.
fn targets_agree(scope: impl Fn(&dyn Fn() -> Tensor) -> Tensor) {
    let golden = fixture("losses.safetensors");
    let logits = &golden["teacher_logits"];
    for iterations in [0, 1, 3] {
        for logits in [
            logits,
            &(logits * 300.).unwrap(),
            &logits.narrow(0, 0, 1).unwrap(),
        ] {
            let run = || kernels(logits, 0.06, iterations, &OneRank).unwrap();
            assert_close("sinkhorn", &scope(&run), &run(), 1e-5);
        }
    }
    let zeros = Tensor::zeros((1, 40), DType::F32, &Device::Cpu).unwrap();
    let twice = || {
        let mut centering = SoftmaxCentering::new(&zeros, 0.9).unwrap();
        centering.targets(logits, 0.06, &OneRank).unwrap();
        let none = logits.narrow(0, 0, 0).unwrap();
        assert_eq!(centering.targets(&none, 0.06, &OneRank).unwrap().dims(), [0, 40]);
        centering.targets(logits, 0.06, &OneRank).unwrap()
    };
    assert_close("centred", &scope(&twice), &twice(), 1e-5);
}

#[test]
fn sinkhorn_runs_over_the_rows_of_all_processes() {
    let golden = fixture("losses.safetensors");
    let logits = &golden["teacher_logits"];
    let rows = logits.dim(0).unwrap();
    let parts = [(0, 1), (1, 0), (1, rows - 1)].map(|(start, count)| logits.narrow(0, start, count).unwrap());
    let found = on_processes(&parts, |rows, ranks| {
        composed(|| kernels(rows, 0.06, 3, ranks)).unwrap()
    });
    let found = Tensor::cat(&[&found[0], &found[2]], 0).unwrap();
    assert_close(
        "targets",
        &found,
        &kernels(logits, 0.06, 3, &OneRank).unwrap(),
        1e-5,
    );
}

#[test]
fn averages_and_squares() {
    let target = Var::new(&[1f32, -2.], &Device::Cpu).unwrap();
    let source = Tensor::new(&[3f32, 4.], &Device::Cpu).unwrap();
    average(&target, &source, 0.5, 0.25).unwrap();
    assert_eq!(values(&target), [1.25, 0.]);
    assert_eq!(sum_of_squares(&[&source, &source]).unwrap(), 50.);
}
