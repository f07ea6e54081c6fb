//! Whole steps composed of candle arithmetic against whole steps of the kernels.

use candle_core::{Device, Tensor, Var};
use macula_models::ops::composed;
use macula_models::ops::cuda::emulated;

use super::*;
use crate::Error;
use crate::train::config::{Compute, OptimizerKind, TrainConfig};
use crate::train::losses::targets::{SoftmaxCentering, sinkhorn_knopp as kernels};
use crate::train::ranks::OneRank;
use crate::train::testing::cuda_emulation::launcher;
use crate::train::testing::{assert_close, fixture, on_processes, values};
use crate::train::trainer::Trainer;
use crate::train::trainer::tests::{batches, config};

/// Losses and the teacher's weights.
type Trained = (Vec<f64>, Vec<(String, Tensor)>);

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
    let run = || {
        let mut trainer = Trainer::fresh(config, &Device::Cpu).unwrap();
        let losses = batches
            .iter()
            .map(|parts| trainer.advance(parts).unwrap().loss)
            .collect();
        (losses, trainer.method().teacher.tensors().into_iter().collect())
    };
    // The scope is one thread's: a pool of one runs the step where it was opened.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| scope(&run))
}

#[test]
fn steps_of_every_method_agree_with_the_kernels() {
    for recipe in ["dinov2-small", "dino", "ibot", "moco"] {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
            let mut config = config(recipe, &["backbone.drop_path_rate=0.3"]);
            config.optimizer.kind = kind;
            let (losses, teacher) = trained(&config, 4, false);
            let (found, weights) = trained(&config, 4, true);
            for (step, (a, b)) in found.iter().zip(&losses).enumerate() {
                assert!(
                    (a - b).abs() < 2e-3 * b.abs(),
                    "{recipe} {kind:?} step {step}: {a}, expected {b}"
                );
            }
            assert_eq!(teacher.len(), weights.len());
            for ((name, expected), (_, found)) in teacher.iter().zip(&weights) {
                // Where a gradient is nothing but rounding (a bias before batch norm), AdamW makes steps of it all the same:
                // up to the rate a step, of which the teacher takes up little.
                for (a, b) in values(found).iter().zip(values(expected)) {
                    assert!(
                        (a - b).abs() < 2e-3 * b.abs() + 1e-5,
                        "{recipe} {kind:?} {name}: {a}, expected {b}"
                    );
                }
            }
        }
    }
}

/// Whole steps on the CUDA kernels, which run on the processor here: every launch of a step, and what is composed around them.
#[test]
#[ignore = "needs a C++ compiler"]
fn steps_on_an_emulated_gpu_agree_with_the_kernels() {
    for (kind, compute, packing, most) in [
        (OptimizerKind::Adamw, Compute::F32, true, 2e-3),
        (OptimizerKind::Adamw, Compute::F32, false, 2e-3),
        (OptimizerKind::Sgd, Compute::F32, true, 2e-3),
        (OptimizerKind::Adamw, Compute::Bf16, true, 2e-2),
    ] {
        let mut config = config("dinov2-small", &["backbone.drop_path_rate=0.3"]);
        config.optimizer.kind = kind;
        config.sequence_packing = packing;
        let (losses, teacher) = trained(&config, 3, false);
        config.compute = compute;
        let (found, weights) = trained_in(&config, 3, |run| emulated(launcher(), run));
        for (step, (a, b)) in found.iter().zip(&losses).enumerate() {
            assert!(
                (a - b).abs() < most * b.abs(),
                "{kind:?} {compute:?} packed {packing}, step {step}: {a}, expected {b}"
            );
        }
        assert_ne!(found, losses);
        for ((name, expected), (_, found)) in teacher.iter().zip(&weights) {
            for (a, b) in values(found).iter().zip(values(expected)) {
                assert!(
                    (a - b).abs() < most * b.abs() + 2e-5,
                    "{kind:?} {compute:?} packed {packing}, {name}: {a}, expected {b}"
                );
            }
        }
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

#[test]
fn steps_in_bf16_follow_those_in_f32() {
    let config = config("dinov2-small", &[]);
    let (expected, _) = trained(&config, 6, true);
    let half = TrainConfig {
        compute: Compute::Bf16,
        ..config
    };
    for on_device in [true, false] {
        let (found, weights) = trained(&half, 6, on_device);
        for (step, (a, b)) in found.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() < 0.02 * b.abs(), "step {step}: {a}, expected {b}");
        }
        assert_ne!(found, expected);
        assert!(weights.iter().all(|(_, tensor)| tensor.dtype() == DType::F32));
    }
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
