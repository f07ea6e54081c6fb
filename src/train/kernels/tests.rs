//! Every update and target of every backend against its composition, and whole steps composed of candle arithmetic against whole steps
//! of the kernels.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use macula_models::ops::composed;
use macula_models::ops::cuda::emulated;

use super::*;
use crate::Error;
use crate::cluster::OneRank;
use crate::device::Dtype;
use crate::train::config::{OptimizerKind, TrainConfig};
use crate::train::losses::targets::{SoftmaxCentering, sinkhorn_knopp as sinkhorn};
use crate::train::network::Network;
use crate::train::recipes::Overrides;
use crate::train::testing::cuda_emulation::launcher;
use crate::train::testing::{assert_close, fixture, on_processes, values};
use crate::train::trainer::Trainer;
use crate::train::trainer::tests::{ROTARY, STEM, batches, config};

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
            // Sharp attention from the first step on would make more of every rounding.
            "backbone.initial_weights=dinov2",
            // And so would crops that are nearly the same picture, whose gradients are small.
            "crops.global.scale=[0.4, 1.0]",
            "crops.aspect=[0.75, 1.3333333333333333]",
            "crops.flip=0.5",
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
    for recipe in ["dinov2-small", "dino", "ibot", "moco", "mocov3"] {
        // Batch norm in the projection takes off what the last norm's bias adds: its gradient is nothing but rounding.
        let compared = |name: &str, _: usize| !recipe.starts_with("moco") || name != "backbone.norm.bias";
        for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
            let config = moving(recipe, kind, &["backbone.drop_path_rate=0.3"]);
            let expected = trained(&config, 4, false);
            let found = trained(&config, 4, true);
            // The more there is that AdamW makes whole steps of, the farther rounding leads.
            let weights = if recipe.starts_with("moco") { 1e-2 } else { 1e-3 };
            let what = format!("{recipe} {kind:?}");
            assert_moved_alike(&what, [&found, &expected], 2e-3, weights, compared);
        }
    }
}

/// Whole steps on the CUDA kernels, which run on the processor here: every launch of a step, and what is composed around them.
#[test]
#[ignore = "needs a C++ compiler"]
fn steps_on_an_emulated_gpu_agree_with_the_kernels() {
    for (kind, compute, packing, losses, weights, backbone) in [
        (OptimizerKind::Adamw, Dtype::F32, true, 2e-3, 1e-3, &[][..]),
        (OptimizerKind::Adamw, Dtype::F32, false, 2e-3, 1e-3, &[]),
        (OptimizerKind::Sgd, Dtype::F32, true, 2e-3, 1e-3, &[]),
        (OptimizerKind::Sgd, Dtype::F32, true, 2e-3, 1e-3, ROTARY),
        (OptimizerKind::Sgd, Dtype::F32, true, 2e-3, 1e-3, STEM),
        // AdamW's steps are as long where a gradient is hardly more than rounding.
        (OptimizerKind::Adamw, Dtype::Bf16, true, 2e-2, 0.6, &[]),
        (OptimizerKind::Sgd, Dtype::Bf16, true, 2e-2, 5e-2, &[]),
    ] {
        let settings = ["backbone.drop_path_rate=0.3", "loss.koleo_group=2"];
        let mut config = moving("dinov2-small", kind, &[&settings[..], backbone].concat());
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
        compute: Dtype::Bf16,
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
            let run = || sinkhorn(logits, 0.06, iterations, &OneRank).unwrap();
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
        composed(|| sinkhorn(rows, 0.06, 3, ranks)).unwrap()
    });
    let found = Tensor::cat(&[&found[0], &found[2]], 0).unwrap();
    assert_close(
        "targets",
        &found,
        &sinkhorn(logits, 0.06, 3, &OneRank).unwrap(),
        1e-5,
    );
}

/// What a backend gives for the method of this name.
type Case = (&'static str, fn(&dyn Kernels) -> Vec<Tensor>);

/// A new method is a line here.
const CASES: [Case; 11] = [
    ("adamw", |kernels| {
        let (weights, moments, teacher) = (make(1), (make(2), make(3)), make(4));
        let gradients = make(5);
        let [mut first, mut second] = [&moments.0, &moments.1].map(|all| tensors(all));
        for square in &mut second {
            *square = square.abs().unwrap();
        }
        let mut updates = Vec::new();
        for (place, (first, second)) in first.iter_mut().zip(&mut second).enumerate() {
            // One without a gradient, and one that nothing averages.
            let moved = Moved {
                first,
                second,
                gradient: gradients[place].as_detached_tensor(),
                factors: FACTORS,
            };
            updates.push(AdamwUpdate {
                weights: &weights[place],
                moved: (place != 1).then_some(moved),
                average: (place != 2).then(|| AveragedWeight::new(&teacher[place], 0.75)),
                group: 0,
            });
        }
        kernels.adamw(&mut Tables::default(), updates).unwrap();
        [tensors(&weights), first, second, tensors(&teacher)].concat()
    }),
    ("sgd", |kernels| {
        let (weights, velocities, gradients) = (make(1), make(2), make(3));
        let factors = SgdFactors {
            keep: 0.9,
            decay: 0.1,
            rate: 0.03,
        };
        for place in 0..COUNTS.len() {
            let gradient = &gradients[place];
            kernels
                .sgd(&weights[place], &velocities[place], gradient, factors)
                .unwrap();
        }
        [tensors(&weights), tensors(&velocities)].concat()
    }),
    ("average", |kernels| {
        let (teacher, student) = (make(1), make(2));
        let averages = teacher.iter().map(|weights| AveragedWeight::new(weights, 0.75));
        let pairs: Vec<(AveragedWeight, &Tensor)> = averages.zip(student.iter().map(|var| &**var)).collect();
        kernels.average(&pairs).unwrap();
        [tensors(&teacher), tensors(&student)].concat()
    }),
    ("sums_of_squares", |kernels| {
        let gradients = make(1);
        let groups = [vec![&*gradients[0], &*gradients[2]], vec![], vec![&*gradients[1]]];
        vec![Tensor::new(kernels.sums_of_squares(&groups).unwrap(), &Device::Cpu).unwrap()]
    }),
    ("centred_softmax", |kernels| {
        let (targets, sums) = kernels.centred_softmax(&logits(), &centre(), 3.).unwrap();
        vec![targets, sums]
    }),
    ("sinkhorn_knopp", |kernels| {
        let of = |iterations| {
            kernels
                .sinkhorn_knopp(&logits(), 3., iterations, &OneRank)
                .unwrap()
        };
        [0, 1, 3].map(of).to_vec()
    }),
    ("exponentials", |kernels| {
        let (exponentials, row_max) = kernels.exponentials(&logits(), 3.).unwrap();
        vec![exponentials, row_max]
    }),
    ("weighted_sums", |kernels| {
        let of_row = Tensor::arange(1f32, 38., &Device::Cpu)
            .unwrap()
            .reshape((37, 1))
            .unwrap();
        vec![kernels.weighted_sums(&logits(), &of_row).unwrap()]
    }),
    ("row_scales", |kernels| {
        let positive = logits().exp().unwrap();
        vec![kernels.row_scales(&positive, &centre().exp().unwrap()).unwrap()]
    }),
    ("scaled", |kernels| {
        let positive = logits().exp().unwrap();
        vec![kernels.scaled(positive, &centre().exp().unwrap()).unwrap()]
    }),
    ("visual_words", |kernels| {
        let golden = fixture("terms.safetensors");
        let tables = WordTables {
            mean: &golden["words.mean"],
            axes: &golden["words.axes"],
            words: &golden["words.words"],
        };
        let crops = &golden["hog.crops.12"];
        vec![kernels.visual_words(crops, &tables, 4).unwrap()]
    }),
];

const FACTORS: AdamwFactors = AdamwFactors {
    scale: 0.5,
    towards: 0.1,
    keep: 0.999,
    add: 0.001,
    shrink: 0.99,
    size: 0.01,
    root: 0.2,
    eps: 1e-8,
};

/// Values of three weights: less than a task's or a piece's, more than one, and one alone.
const COUNTS: [usize; 3] = [50, 20_011, 1];

fn make(seed: u64) -> Vec<Var> {
    let value = |at: usize| ((at + 1) as f32 * 0.73 * seed as f32).sin();
    let weights = |count: usize| (0..count).map(value).collect::<Vec<f32>>();
    COUNTS
        .map(|count| Var::new(weights(count), &Device::Cpu).unwrap())
        .to_vec()
}

fn tensors(all: &[Var]) -> Vec<Tensor> {
    all.iter().map(Var::as_detached_tensor).collect()
}

/// 37 rows of 21 values.
fn logits() -> Tensor {
    let values: Vec<f32> = (0..37 * 21).map(|at| (at as f32 * 0.73).sin() * 3.).collect();
    Tensor::from_vec(values, (37, 21), &Device::Cpu).unwrap()
}

fn centre() -> Tensor {
    (logits().narrow(0, 5, 1).unwrap() * 0.3).unwrap()
}

fn conforms(kernels: &dyn Kernels) {
    for (name, case) in CASES {
        let (found, expected) = (case(kernels), case(&Composed));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(name, found, expected, 2e-6);
        }
    }
}

#[test]
fn the_kernels_of_the_processor_conform() {
    conforms(&cpu::Cpu);
}

#[test]
#[ignore = "needs a C++ compiler"]
fn the_kernels_of_an_emulated_gpu_conform() {
    emulated(launcher(), || conforms(&cuda::Cuda));
}

#[test]
fn every_method_has_a_case() {
    let source = include_str!("mod.rs");
    let (_, source) = source.split_once("trait Kernels").unwrap();
    let (source, _) = source.split_once("\n}\n").unwrap();
    let methods = source.split("\n    fn ").skip(1);
    let computes = methods.filter(|method| method.contains("-> Result<"));
    let names: Vec<&str> = computes.map(|method| method.split_once('(').unwrap().0).collect();
    assert_eq!(names, CASES.map(|(name, _)| name));
}

#[test]
fn averages_and_squares() {
    let target = Var::new(&[1f32, -2.], &Device::Cpu).unwrap();
    let source = Tensor::new(&[3f32, 4.], &Device::Cpu).unwrap();
    for kernels in [&Composed as &dyn Kernels, &cpu::Cpu] {
        target
            .set(&Tensor::new(&[1f32, -2.], &Device::Cpu).unwrap())
            .unwrap();
        let average = AveragedWeight {
            weights: &target,
            keep: 0.5,
            take: 0.25,
        };
        kernels.average(&[(average, &source)]).unwrap();
        assert_eq!(values(&target), [1.25, 0.]);
        let squares = kernels
            .sums_of_squares(&[vec![&source, &source], vec![]])
            .unwrap();
        assert_eq!(squares, [50., 0.]);
        let short = source.narrow(0, 0, 1).unwrap();
        let error = kernels.average(&[(average, &short)]).unwrap_err().to_string();
        assert!(
            error.starts_with("teacher average: expected shape [2], found [1]"),
            "{error}"
        );
    }
}
