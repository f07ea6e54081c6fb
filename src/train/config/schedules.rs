//! Everything that changes from step to step.

use super::{LearningRateScaling, PatchAnchorConfig, TrainConfig};
use crate::train::optimizer::Rates;
use crate::train::schedule::CosineSchedule;

/// The value of everything scheduled, as a function of the step.
#[derive(Debug, Clone)]
pub struct Schedules {
    learning_rate: CosineSchedule,
    backbone_learning_rate: CosineSchedule,
    last_layer_learning_rate: CosineSchedule,
    weight_decay: CosineSchedule,
    momentum: CosineSchedule,
    teacher_temperature: CosineSchedule,
    info_nce_temperature: CosineSchedule,
    patch_anchor: PatchAnchorConfig,
}

/// What the schedules say for one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepValues {
    /// Learning rate before each parameter's multiplier.
    pub learning_rate: f64,
    /// Learning rate of the backbone.
    pub backbone_learning_rate: f64,
    /// Learning rate of the heads' last layers.
    pub last_layer_learning_rate: f64,
    /// Weight decay before each parameter's multiplier.
    pub weight_decay: f64,
    /// Share of the teacher that stays.
    pub momentum: f64,
    /// Temperature of the teacher's targets.
    pub teacher_temperature: f64,
    /// Temperature of the contrastive term.
    pub info_nce_temperature: f64,
    /// Weight of the term that holds patches to another network.
    pub patch_anchor_weight: f64,
}

impl StepValues {
    /// What an optimizer needs of them.
    pub fn rates(&self) -> Rates {
        Rates {
            learning_rate: self.learning_rate,
            backbone_learning_rate: self.backbone_learning_rate,
            last_layer_learning_rate: self.last_layer_learning_rate,
            weight_decay: self.weight_decay,
        }
    }
}

impl Schedules {
    pub(super) fn new(config: &TrainConfig) -> Self {
        let steps = config.steps as usize;
        let (optimizer, teacher) = (&config.optimizer, &config.teacher);
        let batch = config.batch_size as f64;
        let scale = match optimizer.learning_rate_scaling {
            LearningRateScaling::Sqrt1024 => (batch / 1024.).sqrt(),
            LearningRateScaling::Linear256 => batch / 256.,
            LearningRateScaling::None => 1.,
        };
        let learning_rate = CosineSchedule::new(
            optimizer.learning_rate * scale,
            optimizer.final_learning_rate,
            steps,
        )
        .with_warmup(0., optimizer.warmup_steps as usize);
        let nce = &config.loss.info_nce;
        Self {
            backbone_learning_rate: CosineSchedule {
                frozen: optimizer.freeze_backbone_steps as usize,
                ..learning_rate.clone()
            },
            last_layer_learning_rate: CosineSchedule {
                zeroed: optimizer.freeze_last_layer_steps as usize,
                ..learning_rate.clone()
            },
            learning_rate,
            weight_decay: CosineSchedule::new(optimizer.weight_decay, optimizer.final_weight_decay, steps),
            momentum: CosineSchedule::new(teacher.momentum, teacher.final_momentum, steps),
            teacher_temperature: CosineSchedule::teacher_temperature(
                teacher.temperature,
                teacher.final_temperature,
                teacher.temperature_warmup_steps as usize,
            ),
            info_nce_temperature: CosineSchedule::new(nce.temperature, nce.final_temperature, steps),
            patch_anchor: config.loss.patch_anchor.clone(),
        }
    }

    /// The values at `step`, counted from 0.
    pub fn at(&self, step: u64) -> StepValues {
        let patch_anchor_weight = self.patch_anchor.weight_at(step);
        let step = step as usize;
        StepValues {
            learning_rate: self.learning_rate.value(step),
            backbone_learning_rate: self.backbone_learning_rate.value(step),
            last_layer_learning_rate: self.last_layer_learning_rate.value(step),
            weight_decay: self.weight_decay.value(step),
            momentum: self.momentum.value(step),
            teacher_temperature: self.teacher_temperature.value(step),
            info_nce_temperature: self.info_nce_temperature.value(step),
            patch_anchor_weight,
        }
    }
}
