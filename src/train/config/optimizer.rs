//! How the weights move.

use serde::{Deserialize, Serialize};

/// The update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW.
    Adamw,
    /// SGD with momentum.
    Sgd,
}

/// How the peak learning rate follows the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LearningRateScaling {
    /// `learning_rate * sqrt(batch_size / 1024)` (DINOv2).
    #[serde(rename = "sqrt-1024")]
    Sqrt1024,
    /// `learning_rate * batch_size / 256` (DINO, MoCo).
    #[serde(rename = "linear-256")]
    Linear256,
    /// As it is.
    None,
}

/// How the weights move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// AdamW or SGD.
    pub kind: OptimizerKind,
    /// Peak learning rate before scaling.
    pub learning_rate: f64,
    /// How it follows the batch.
    pub learning_rate_scaling: LearningRateScaling,
    /// Learning rate at the end of the cosine.
    pub final_learning_rate: f64,
    /// Steps of the linear warm-up from 0.
    pub warmup_steps: u64,
    /// Weight decay at the start.
    pub weight_decay: f64,
    /// Weight decay at the end, reached along a cosine.
    pub final_weight_decay: f64,
    /// Learning-rate factor from each block to the one before it; 1 for none.
    pub layer_decay: f64,
    /// Further factor on the patch embedding's learning rate.
    pub patch_embed_multiplier: f64,
    /// Largest gradient norm of each sub-module (backbone, each head); 0 for no clipping.
    pub clip_norm: f64,
    /// Steps for which the last layer of the heads stays as it is.
    pub freeze_last_layer_steps: u64,
    /// Steps for which the backbone stays as it is; its warm-up begins after them. For runs that go on from other weights with new
    /// heads, whose first gradients would undo what the backbone knows. Default 0.
    #[serde(default)]
    pub freeze_backbone_steps: u64,
    /// Rank of what LoRA adds to each matrix of the backbone's blocks, which then is all of the backbone that learns; for runs that
    /// go on from other weights, and AdamW. Default 0: every weight learns.
    #[serde(default)]
    pub lora_rank: usize,
    /// What is added is multiplied by `lora_alpha / lora_rank`. Default 16.
    #[serde(default = "default_lora_alpha")]
    pub lora_alpha: f64,
    /// AdamW's decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW's decay of the mean of squared gradients.
    pub beta2: f64,
    /// SGD's momentum.
    pub momentum: f64,
}

fn default_lora_alpha() -> f64 {
    16.
}

impl OptimizerConfig {
    /// The largest gradient norm of a sub-module; infinite without clipping.
    pub fn max_norm(&self) -> f64 {
        match self.clip_norm {
            0. => f64::INFINITY,
            norm => norm,
        }
    }
}
