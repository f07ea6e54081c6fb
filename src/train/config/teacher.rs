//! The teacher: how it follows the student, and how its outputs become targets.

use serde::{Deserialize, Serialize};

/// How the teacher's logits become targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Centering {
    /// Softmax around a moving centre (DINO).
    Softmax,
    /// Three iterations of Sinkhorn-Knopp over the batch (DINOv2's large models).
    SinkhornKnopp,
}

/// The teacher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Share of the teacher that stays at a step, at the start. 0.992 to 0.999.
    pub momentum: f64,
    /// The same at the end, reached along a cosine; 1 in DINOv2.
    pub final_momentum: f64,
    /// How logits become targets.
    pub centering: Centering,
    /// Part of the moving centre that stays at a step, with `softmax`. 0.9 in DINO.
    pub center_momentum: f64,
    /// Temperature of the targets at the start.
    pub temperature: f64,
    /// Temperature after the warm-up.
    pub final_temperature: f64,
    /// Steps of the linear warm-up of the temperature.
    pub temperature_warmup_steps: u64,
}
