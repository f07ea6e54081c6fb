//! The parts together: whole steps of DINOv2's objective on a small network.

use candle_core::{DType, Device, Tensor, Var};
use macula_models::ops;
use macula_models::vit::{
    FeedForwardKind, PositionRule, VisionTransformer, VitConfig, VitOutput, initialise,
};
use rand::Rng;

use super::ema::{NamedVars, update_teacher};
use super::losses::targets::{SINKHORN_ITERATIONS, sinkhorn_knopp};
use super::losses::{dino_cls_loss, ibot_patch_loss, koleo_loss};
use super::optimizer::{AdamW, AdamWOptions, Parameter, Rates, clip_gradients};
use super::param_groups::ParamGroupRules;
use super::testing::{scalar, values};
use crate::cluster::OneRank;
use crate::rng::stream;

const BATCH: usize = 4;
const LOCAL_CROPS: usize = 3;
const PROTOTYPES: usize = 32;
const PATCHES: usize = 16;
const MASKED: [usize; 2 * BATCH] = [5, 0, 3, 0, 4, 0, 7, 0];

fn config() -> VitConfig {
    VitConfig {
        embed_dim: 24,
        depth: 2,
        num_heads: 3,
        patch_size: 4,
        image_size: 16,
        in_channels: 3,
        num_registers: 2,
        feed_forward: FeedForwardKind::Mlp,
        ffn_hidden: 48,
        layer_scale: Some(0.5),
        mask_token: true,
        layer_norm_eps: 1e-6,
        position_rule: PositionRule::Official,
        ..VitConfig::named("vit-tiny/4", 16).unwrap()
    }
}

fn uniform(name: &str, counter: u64, shape: &[usize]) -> Tensor {
    let mut rng = stream(11, name, counter);
    let draw = |_| rng.random_range(-1f32..1.);
    let drawn: Vec<f32> = (0..shape.iter().product()).map(draw).collect();
    Tensor::from_vec(drawn, shape, &Device::Cpu).unwrap()
}

/// A backbone with prototypes, as one set of named weights.
struct Network {
    weights: NamedVars,
    vit: VisionTransformer,
}

impl Network {
    fn new() -> Self {
        let initial = initialise(&config(), &mut stream(11, "init", 0)).unwrap();
        let as_var = |tensor: &Tensor| Var::from_tensor(tensor).unwrap();
        let mut weights: NamedVars = initial
            .iter()
            .map(|(name, tensor)| (name.clone(), as_var(tensor)))
            .collect();
        let backbone = weights
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        let vit = VisionTransformer::from_tensors(&config(), &backbone, &Device::Cpu).unwrap();
        let prototypes = as_var(&uniform("prototypes", 0, &[PROTOTYPES, 24]));
        weights.insert("last_layer.weight_v".into(), prototypes);
        Self { weights, vit }
    }

    fn logits(&self, tokens: &Tensor) -> Tensor {
        let prototypes = &self.weights["last_layer.weight_v"];
        let directions = ops::l2_normalize(prototypes, 0.).unwrap();
        ops::linear(
            &ops::l2_normalize(tokens, 1e-12).unwrap(),
            &directions,
            None,
            DType::F32,
        )
        .unwrap()
    }

    /// Logits [M, K] of the masked patches.
    fn masked_logits(&self, output: &VitOutput) -> Tensor {
        let rows: Vec<u32> = (0..2 * BATCH)
            .flat_map(|crop| (0..MASKED[crop]).map(move |patch| (crop * PATCHES + patch) as u32))
            .collect();
        let rows = Tensor::new(rows, &Device::Cpu).unwrap();
        let patches = output.patch.reshape((2 * BATCH * PATCHES, 24)).unwrap();
        self.logits(&patches.index_select(&rows, 0).unwrap())
    }
}

fn masks() -> Tensor {
    let bits: Vec<u8> = MASKED
        .iter()
        .flat_map(|&count| (0..PATCHES).map(move |patch| u8::from(patch < count)))
        .collect();
    Tensor::from_vec(bits, (2 * BATCH, PATCHES), &Device::Cpu).unwrap()
}

/// DINO, iBOT and KoLeo on the crops of `batch`, weighted as in DINOv2.
fn objective(student: &Network, teacher: &Network, batch: u64) -> Tensor {
    let global = uniform("global crops", batch, &[2 * BATCH, 3, 16, 16]);
    let local = uniform("local crops", batch, &[LOCAL_CROPS * BATCH, 3, 8, 8]);
    let sees = teacher.vit.forward(&global, None).unwrap();
    let target = |logits: Tensor| sinkhorn_knopp(&logits, 0.06, SINKHORN_ITERATIONS, &OneRank).unwrap();
    let (cls_targets, patch_targets) = (
        target(teacher.logits(&sees.cls)),
        target(teacher.masked_logits(&sees)),
    );
    let on_global = student.vit.forward(&global, Some(&masks())).unwrap();
    let on_local = student.vit.forward(&local, None).unwrap();
    let (global_logits, local_logits) = (student.logits(&on_global.cls), student.logits(&on_local.cls));
    let dino = dino_cls_loss(
        (&global_logits).into(),
        Some((&local_logits).into()),
        &cls_targets,
        0.1,
    )
    .unwrap();
    let ibot = ibot_patch_loss(&student.masked_logits(&on_global), &patch_targets, &MASKED, 0.1).unwrap();
    let koleo = |crop| koleo_loss(&on_global.cls.narrow(0, crop * BATCH, BATCH).unwrap(), 0).unwrap();
    let spread = ((koleo(0) + koleo(1)).unwrap() * 0.1).unwrap();
    let dino = (dino.global + dino.local.unwrap()).unwrap();
    ((dino + ibot).unwrap() + spread).unwrap()
}

fn optimizer(student: &Network) -> AdamW {
    let rules = ParamGroupRules {
        depth: config().depth,
        layer_decay: 0.9,
        patch_embed_multiplier: 0.2,
    };
    let parameter = |(name, var): (&String, &Var)| Parameter {
        name: name.clone(),
        var: var.clone(),
        group: match name.starts_with("last_layer") {
            true => ParamGroupRules::head(name),
            false => rules.backbone(name).unwrap(),
        },
    };
    let parameters = student.weights.iter().map(parameter).collect();
    AdamW::new(AdamWOptions::default(), parameters).unwrap()
}

/// Trains for `steps` on `batch(step)` and returns the networks with the loss before every step.
fn train(steps: u64, momentum: f64, batch: impl Fn(u64) -> u64) -> (Network, Network, Vec<f64>) {
    let (student, teacher) = (Network::new(), Network::new());
    let mut adamw = optimizer(&student);
    let rates = Rates {
        learning_rate: 2e-3,
        backbone_learning_rate: 2e-3,
        last_layer_learning_rate: 1e-3,
        weight_decay: 0.04,
    };
    let mut losses = Vec::new();
    for step in 0..steps {
        let loss = objective(&student, &teacher, batch(step));
        let mut gradients = loss.backward().unwrap();
        let backbone = student
            .weights
            .iter()
            .filter(|(name, _)| *name != "last_layer.weight_v");
        clip_gradients("backbone", backbone.map(|(_, var)| var), &mut gradients, 3.).unwrap();
        adamw.step(&gradients, &rates).unwrap();
        update_teacher(&teacher.weights, &student.weights, momentum).unwrap();
        losses.push(scalar(&loss));
    }
    (student, teacher, losses)
}

#[test]
fn every_weight_gets_a_gradient_and_the_teacher_none() {
    let (student, teacher) = (Network::new(), Network::new());
    let gradients = objective(&student, &teacher, 0).backward().unwrap();
    for (name, var) in &student.weights {
        let gradient = gradients
            .get(var)
            .unwrap_or_else(|| panic!("{name}: no gradient"));
        let largest = scalar(&gradient.abs().unwrap().flatten_all().unwrap().max(0).unwrap());
        assert!(
            largest > 0. && largest.is_finite(),
            "{name}: largest gradient {largest}"
        );
    }
    for (name, var) in &teacher.weights {
        assert!(gradients.get(var).is_none(), "{name}");
    }
}

#[test]
fn one_step_moves_student_and_teacher() {
    let start = Network::new();
    let (student, teacher, _) = train(1, 0.75, |step| step);
    for (name, before) in &start.weights {
        let (before, after) = (values(before), values(&student.weights[name]));
        assert_ne!(before, after, "{name}");
        for ((b, a), t) in before.iter().zip(&after).zip(values(&teacher.weights[name])) {
            let expected = 0.75 * b + 0.25 * a;
            assert!(
                (t - expected).abs() < 1e-6,
                "{name}: found {t}, expected {expected}"
            );
        }
    }
}

#[test]
fn a_fixed_teacher_is_learnt() {
    let (.., losses) = train(40, 1., |_| 0);
    let (first, last) = (losses[0], losses[39]);
    assert!(last < 0.8 * first, "from {first} to {last}");
}

#[test]
fn threads_change_no_weight() {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| train(3, 0.9, |step| step))
    };
    let ((one, _, losses), (many, _, same)) = (on(1), on(3));
    assert_eq!(losses, same);
    for (name, var) in &one.weights {
        assert_eq!(var.dtype(), DType::F32);
        assert_eq!(values(var), values(&many.weights[name]), "{name}");
    }
}
