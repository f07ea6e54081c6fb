//! The settings of a run: one struct for each part, every field with a documented default, unknown fields refused. The
//! resolved whole is saved as `config.toml` in the run folder, and a resumed run reads it from there.

use candle_core::DType;
use macula_models::heads::DinoHeadConfig;
use macula_models::vit::{DropPathSchedule, FeedForwardKind, PositionRule, VitConfig, swiglu_hidden};
use serde::{Deserialize, Serialize};

use super::schedule::CosineSchedule;
use crate::data::augment::MultiCropConfig;
use crate::data::loader::{BatchPlan, LoaderConfig};
use crate::data::mask::{Grid, MaskConfig};
use crate::distill::{DistillConfig, IbotTokens, Term};
use crate::train::observe::OnlineKnnConfig;
use crate::{Error, Result};

/// Everything that decides what a run does. Given the same data, seed and threads it gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the recipe the settings began from; for the reader only.
    pub recipe: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// Optimizer steps of the whole run, at least 1.
    pub steps: u64,
    /// Images an optimizer step, at least 2 where KoLeo is on.
    pub batch_size: usize,
    /// Parts a step's batch is computed in, one after the other: less memory, the same number of images. Each part is
    /// normalised by itself, as the batch of one process among many would be. A divisor of `batch_size`.
    pub accumulate: usize,
    /// Steps over which the batch grows linearly from `batch_warmup_start`; 0 for none.
    pub batch_warmup_steps: u64,
    /// Images of the first step where the batch grows.
    pub batch_warmup_start: usize,
    /// The numbers that matrix products, attention and activations are computed or stored in. Weights, norms, losses and
    /// gradients are f32 either way. Default f32; bf16 is faster on CUDA and on processors with AVX512-BF16 or AMX.
    #[serde(default)]
    pub compute: Compute,
    /// Keep of every block only what it ran on, and compute the rest again in the backward pass: less memory for about a fifth
    /// more time, the same bytes. Default false.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Where the images come from.
    pub data: DataConfig,
    /// The network that is trained.
    pub backbone: BackboneConfig,
    /// The terms of the objective.
    pub loss: LossConfig,
    /// The teacher: how it follows the student and how its outputs become targets.
    pub teacher: TeacherConfig,
    /// How the weights move.
    pub optimizer: OptimizerConfig,
    /// How an image becomes crops. The side of the global crops is the network's native image size.
    pub crops: MultiCropConfig,
    /// Which patches of the global crops are hidden from the student, where the iBOT term is on.
    pub masks: MaskConfig,
    /// Checkpoints.
    pub checkpoints: CheckpointConfig,
    /// What is measured while training.
    pub monitor: MonitorConfig,
    /// The frozen teacher, where there is one; without it a run teaches itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillConfig>,
}

/// Numbers to compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// Single precision.
    #[default]
    F32,
    /// Brain floats: 8 bits of precision, the range of f32.
    Bf16,
}

impl Compute {
    /// candle's name of it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Where images come from and how they are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The source, as `--data` names it.
    pub source: String,
    /// Workers, queue, cache and what happens to unreadable images.
    #[serde(default)]
    pub loader: LoaderConfig,
}

/// The geometry of the trained network, without its image size. `arch = "vit-small/14"` in a recipe file stands for the
/// fields of that architecture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// Width D of every token.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub num_heads: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Register tokens. Default 0.
    #[serde(default)]
    pub num_registers: usize,
    /// `mlp` or `swiglu`. Default `mlp`.
    #[serde(default = "mlp")]
    pub feed_forward: FeedForwardKind,
    /// Hidden width of the feed-forward network; 0 for 4 D (`mlp`) or the reference's rule (`swiglu`). Default 0.
    #[serde(default)]
    pub ffn_hidden: usize,
    /// Initial LayerScale; 0 builds blocks without it. Default 1e-5.
    #[serde(default = "layer_scale")]
    pub layer_scale: f64,
    /// Share of a batch that each residual branch of the student leaves out, 0 to below 1. Default 0.
    #[serde(default)]
    pub drop_path_rate: f64,
    /// Whether that share is the same in every block (`true`, DINOv2) or grows from 0 over the depth. Default true.
    #[serde(default = "yes")]
    pub drop_path_uniform: bool,
    /// Share of a global crop's patches that are no tokens of the student's pass, drawn anew for every crop, 0 to below 1. A
    /// student that sees half of the patches costs half, and has to say what it does not see. It needs an iBOT weight of 0.
    /// Default 0.
    #[serde(default)]
    pub patch_drop_rate: f64,
}

fn mlp() -> FeedForwardKind {
    FeedForwardKind::Mlp
}
fn layer_scale() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}

/// The terms of the objective: a term of weight 0 is off, and what only it needs is not built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the DINO term on class tokens.
    pub dino_weight: f64,
    /// Weight of the iBOT term on masked patches.
    pub ibot_weight: f64,
    /// Weight of KoLeo, which spreads the class tokens of each global crop; 0.1 in DINOv2.
    pub koleo_weight: f64,
    /// Weight of the contrastive term (MoCo). It needs exactly two global crops.
    pub info_nce_weight: f64,
    /// Weight of telling the pixels of each global crop from its class token, which keeps what small images need and crops do
    /// not share. Default 0.
    #[serde(default)]
    pub pixel_weight: f64,
    /// Hidden width of what tells them. Default 512.
    #[serde(default = "told_hidden")]
    pub pixel_hidden: usize,
    /// Weight of telling histograms of oriented gradients of each global crop from its class token (Wei et al. 2021): where edges
    /// are and how they run. Default 0.
    #[serde(default)]
    pub hog_weight: f64,
    /// Hidden width of what tells them. Default 512.
    #[serde(default = "told_hidden")]
    pub hog_hidden: usize,
    /// Temperature of the student's softmax. 0.1 in DINO and DINOv2.
    pub student_temperature: f64,
    /// The head of the DINO term.
    pub head: HeadConfig,
    /// A head of its own for the iBOT term; without one both share `head`.
    #[serde(default)]
    pub ibot_head: Option<HeadConfig>,
    /// The contrastive term's projection, queue and temperature.
    #[serde(default)]
    pub info_nce: InfoNceConfig,
}

fn told_hidden() -> usize {
    512
}

/// A projection head (DINOv2 `layers/dino_head.py`), without the width of its input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// Width of the two hidden layers; 2048 in DINOv2.
    pub hidden: usize,
    /// Width of the normalised bottleneck; 256 in DINOv2.
    pub bottleneck: usize,
    /// Prototypes K; 65536 to 131072 in DINOv2.
    pub prototypes: usize,
    /// Whether the prototypes' gains are trained, as in DINOv2; fixed gains are safer on small data.
    pub train_gain: bool,
}

/// The contrastive term (He et al. 2020), where it is on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InfoNceConfig {
    /// Hidden width of the projection. Default 2048.
    pub hidden: usize,
    /// Width of keys and queries. Default 128.
    pub output: usize,
    /// Batch norm in the projection, as in MoCo v3. Default false, as in MoCo v2 on a network that has its own.
    pub batch_norm: bool,
    /// Negatives kept, first in, first out. Default 65536.
    pub queue: usize,
    /// Temperature of the first step. Default 0.07.
    pub temperature: f64,
    /// Temperature of the last step, reached along a cosine. Default 0.04.
    pub final_temperature: f64,
    /// Whether each crop is also the other's query, which costs a second pass of both networks. Default false, as in MoCo.
    pub symmetric: bool,
}

impl Default for InfoNceConfig {
    fn default() -> Self {
        Self {
            hidden: 2048,
            output: 128,
            batch_norm: false,
            queue: 65_536,
            temperature: 0.07,
            final_temperature: 0.04,
            symmetric: false,
        }
    }
}

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
    /// AdamW's decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW's decay of the mean of squared gradients.
    pub beta2: f64,
    /// SGD's momentum.
    pub momentum: f64,
}

/// Which checkpoints are written and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints, at least 1. One is also written at the end and when the run is told to stop. Default
    /// 1000.
    pub every: u64,
    /// Latest checkpoints kept, at least 1. Default 2.
    pub keep: usize,
    /// Whether the checkpoint with the best online k-NN is kept too (`checkpoints/best`). Default true.
    pub keep_best: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every: 1000,
            keep: 2,
            keep_best: true,
        }
    }
}

/// What is measured while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorConfig {
    /// Steps between lines of `metrics.jsonl`, at least 1. Default 20.
    pub log_every: u64,
    /// Steps between pictures of the curves, at least 1. Default 500.
    pub curves_every: u64,
    /// The online k-NN on a labelled source; none without it.
    pub knn: Option<OnlineKnnConfig>,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            log_every: 20,
            curves_every: 500,
            knn: None,
        }
    }
}

impl BackboneConfig {
    /// The network for images of `image_size` pixels, with a mask token where patches are `masked`.
    ///
    /// # Errors
    /// Numbers that do not fit together, named as in the file.
    pub fn vit(&self, image_size: usize, masked: bool) -> Result<VitConfig> {
        let config = VitConfig {
            embed_dim: self.embed_dim,
            depth: self.depth,
            num_heads: self.num_heads,
            patch_size: self.patch_size,
            image_size,
            in_channels: 3,
            num_registers: self.num_registers,
            feed_forward: self.feed_forward,
            ffn_hidden: match (self.ffn_hidden, self.feed_forward) {
                (0, FeedForwardKind::Mlp) => 4 * self.embed_dim,
                (0, FeedForwardKind::Swiglu) => swiglu_hidden(self.embed_dim),
                (width, _) => width,
            },
            layer_scale: (self.layer_scale > 0.).then_some(self.layer_scale),
            mask_token: masked,
            layer_norm_eps: 1e-6,
            position_rule: if self.num_registers > 0 {
                PositionRule::Registers
            } else {
                PositionRule::Official
            },
        };
        config.validate()?;
        Ok(config)
    }

    /// How the stochastic depth follows the blocks.
    pub fn drop_path_schedule(&self) -> DropPathSchedule {
        if self.drop_path_uniform {
            DropPathSchedule::Uniform
        } else {
            DropPathSchedule::Linear
        }
    }
}

impl HeadConfig {
    /// The head for tokens of `width`.
    pub fn head(&self, width: usize) -> DinoHeadConfig {
        DinoHeadConfig {
            input: width,
            hidden: self.hidden,
            bottleneck: self.bottleneck,
            prototypes: self.prototypes,
            train_gain: self.train_gain,
        }
    }
}

/// Fails with the field's name unless `value` lies in `range`.
fn within(field: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = (range.start(), range.end());
    let expected = match *most {
        f64::MAX => format!("a finite number of at least {least}"),
        _ => format!("a number from {least} to {most}"),
    };
    Err(Error::input(field, format!("expected {expected}, found {value}")))
}

fn at_least(field: &str, value: u64, least: u64) -> Result<()> {
    if value >= least {
        return Ok(());
    }
    Err(Error::input(
        field,
        format!("expected at least {least}, found {value}"),
    ))
}

impl TrainConfig {
    /// Checks every field and that the parts fit together.
    ///
    /// # Errors
    /// The first field that does not, named as it stands in the file.
    pub fn validate(&self) -> Result<()> {
        at_least("steps", self.steps, 1)?;
        at_least("batch_size", self.batch_size as u64, 1)?;
        at_least("accumulate", self.accumulate as u64, 1)?;
        if !self.batch_size.is_multiple_of(self.accumulate) {
            let reason = format!(
                "expected a divisor of batch_size {}, found {}",
                self.batch_size, self.accumulate
            );
            return Err(Error::input("accumulate", reason));
        }
        if self.batch_warmup_steps > 0 && self.accumulate > 1 {
            let reason = format!("expected 1 where the batch grows, found {}", self.accumulate);
            return Err(Error::input("accumulate", reason));
        }
        self.batch_plan()?;
        prefixed("crops", self.crops.validate())?;
        prefixed("masks", self.masks.validate())?;
        self.validate_loss()?;
        self.validate_teacher()?;
        self.validate_optimizer()?;
        at_least("checkpoints.every", self.checkpoints.every, 1)?;
        at_least("checkpoints.keep", self.checkpoints.keep as u64, 1)?;
        at_least("monitor.log_every", self.monitor.log_every, 1)?;
        at_least("monitor.curves_every", self.monitor.curves_every, 1)?;
        self.validate_distill()?;
        self.validate_backbone()
    }

    fn validate_distill(&self) -> Result<()> {
        let Some(distill) = &self.distill else {
            return Ok(());
        };
        distill.validate()?;
        if self.has_info_nce() {
            let reason = "expected 0 where a frozen teacher gives the targets, found more";
            return Err(Error::input("loss.info_nce_weight", reason));
        }
        let views = self.batch_size / self.accumulate * self.crops.global.count;
        if distill.has(Term::Relation) && distill.relation_queue < views {
            let reason = format!(
                "expected room for the {views} global crops of a part, found {}",
                distill.relation_queue
            );
            return Err(Error::input("distill.relation_queue", reason));
        }
        if distill.has(Term::Relation) && views < 2 {
            let reason =
                format!("expected at least 2 crops a part where relations are compared, found {views}");
            return Err(Error::input("batch_size", reason));
        }
        Ok(())
    }

    fn validate_backbone(&self) -> Result<()> {
        let vit = prefixed("backbone", self.vit())?;
        if !(0. ..1.).contains(&self.backbone.drop_path_rate) {
            let reason = format!(
                "expected a number from 0 to below 1, found {}",
                self.backbone.drop_path_rate
            );
            return Err(Error::input("backbone.drop_path_rate", reason));
        }
        self.validate_patch_drop()?;
        within("backbone.layer_scale", self.backbone.layer_scale, 0. ..=f64::MAX)?;
        if self.crops.local.count > 0 {
            let side = self.crops.local.size as usize;
            vit.grid(side, side).map_err(|_| {
                let reason = format!(
                    "expected a multiple of the patch size {}, found {side}",
                    vit.patch_size
                );
                Error::input("crops.local.size", reason)
            })?;
        }
        Ok(())
    }

    fn validate_patch_drop(&self) -> Result<()> {
        let rate = self.backbone.patch_drop_rate;
        if !(0. ..1.).contains(&rate) {
            let reason = format!("expected a number from 0 to below 1, found {rate}");
            return Err(Error::input("backbone.patch_drop_rate", reason));
        }
        if rate > 0. && (self.has_ibot() || self.distill.is_some()) {
            let reason = format!(
                "expected 0 where patches are compared (loss.ibot_weight above 0) or a frozen teacher is, found {rate}"
            );
            return Err(Error::input("backbone.patch_drop_rate", reason));
        }
        Ok(())
    }

    fn validate_loss(&self) -> Result<()> {
        let loss = &self.loss;
        for (field, weight) in [
            ("loss.dino_weight", loss.dino_weight),
            ("loss.ibot_weight", loss.ibot_weight),
            ("loss.koleo_weight", loss.koleo_weight),
            ("loss.info_nce_weight", loss.info_nce_weight),
            ("loss.pixel_weight", loss.pixel_weight),
            ("loss.hog_weight", loss.hog_weight),
        ] {
            within(field, weight, 0. ..=f64::MAX)?;
        }
        let distils = self.distill.as_ref().is_some_and(DistillConfig::has_terms);
        if !self.has_dino() && !self.has_ibot() && !self.has_info_nce() && !distils {
            let reason = "expected a weight above 0 for dino, ibot or info_nce, found none";
            return Err(Error::input("loss", reason));
        }
        within(
            "loss.student_temperature",
            loss.student_temperature,
            1e-6..=f64::MAX,
        )?;
        let heads = [
            ("loss.head", Some(&loss.head)),
            ("loss.ibot_head", loss.ibot_head.as_ref()),
        ];
        for (field, head) in heads {
            if let Some(head) = head {
                prefixed(field, Ok(head.head(1).validate()?))?;
            }
        }
        let smallest = match self.batch_warmup_steps {
            0 => self.batch_size / self.accumulate,
            _ => self.batch_warmup_start,
        };
        if loss.koleo_weight > 0. && smallest < 2 {
            let reason = format!("expected at least 2 images a part where KoLeo is on, found {smallest}");
            return Err(Error::input("batch_size", reason));
        }
        let crops = self.crops.global.count;
        if (self.has_dino() || self.has_ibot() || self.has_info_nce()) && crops != 2 {
            let reason = format!("expected 2, found {crops}");
            return Err(Error::input("crops.global.count", reason));
        }
        for (field, on, weight) in [
            ("loss.pixel_weight", self.has_pixels(), loss.pixel_weight),
            ("loss.hog_weight", self.has_hog(), loss.hog_weight),
        ] {
            if on && !self.has_dino() && !self.has_ibot() {
                let reason = format!("expected 0 without dino and ibot, which it goes with, found {weight}");
                return Err(Error::input(field, reason));
            }
        }
        let nce = &loss.info_nce;
        for (field, value) in [
            ("loss.pixel_hidden", loss.pixel_hidden),
            ("loss.hog_hidden", loss.hog_hidden),
            ("loss.info_nce.hidden", nce.hidden),
            ("loss.info_nce.output", nce.output),
            ("loss.info_nce.queue", nce.queue),
        ] {
            at_least(field, value as u64, 1)?;
        }
        within("loss.info_nce.temperature", nce.temperature, 1e-6..=f64::MAX)?;
        within(
            "loss.info_nce.final_temperature",
            nce.final_temperature,
            1e-6..=f64::MAX,
        )
    }

    fn validate_teacher(&self) -> Result<()> {
        let teacher = &self.teacher;
        within("teacher.momentum", teacher.momentum, 0. ..=1.)?;
        within("teacher.final_momentum", teacher.final_momentum, 0. ..=1.)?;
        within("teacher.center_momentum", teacher.center_momentum, 0. ..=1.)?;
        within("teacher.temperature", teacher.temperature, 1e-6..=f64::MAX)?;
        within(
            "teacher.final_temperature",
            teacher.final_temperature,
            1e-6..=f64::MAX,
        )
    }

    fn validate_optimizer(&self) -> Result<()> {
        let optimizer = &self.optimizer;
        for (field, value) in [
            ("learning_rate", optimizer.learning_rate),
            ("final_learning_rate", optimizer.final_learning_rate),
            ("weight_decay", optimizer.weight_decay),
            ("final_weight_decay", optimizer.final_weight_decay),
            ("clip_norm", optimizer.clip_norm),
            ("patch_embed_multiplier", optimizer.patch_embed_multiplier),
            ("layer_decay", optimizer.layer_decay),
        ] {
            within(&format!("optimizer.{field}"), value, 0. ..=f64::MAX)?;
        }
        if optimizer.warmup_steps > self.steps {
            let reason = format!(
                "expected at most the {} steps of the run, found {}",
                self.steps, optimizer.warmup_steps
            );
            return Err(Error::input("optimizer.warmup_steps", reason));
        }
        Ok(())
    }

    /// Whether the DINO term is on.
    pub fn has_dino(&self) -> bool {
        self.loss.dino_weight > 0.
    }

    /// Whether the iBOT term is on.
    pub fn has_ibot(&self) -> bool {
        self.loss.ibot_weight > 0.
    }

    /// Whether the contrastive term is on.
    pub fn has_info_nce(&self) -> bool {
        self.loss.info_nce_weight > 0.
    }

    /// Whether the pixels of crops are told from their class tokens. Not where a frozen teacher says what to learn.
    pub fn has_pixels(&self) -> bool {
        self.loss.pixel_weight > 0. && self.distill.is_none()
    }

    /// Whether histograms of oriented gradients are told likewise.
    pub fn has_hog(&self) -> bool {
        self.loss.hog_weight > 0. && self.distill.is_none()
    }

    /// Whether patches are drawn for the iBOT term: those it compares, if not all.
    pub fn draws_masks(&self) -> bool {
        let all = |distill: &DistillConfig| distill.ibot_tokens == IbotTokens::All;
        self.has_ibot() && !self.distill.as_ref().is_some_and(all)
    }

    /// How images are read. Where a frozen teacher's outputs repeat, so do the crops.
    pub fn loader(&self) -> LoaderConfig {
        let mut loader = self.data.loader.clone();
        if let Some(distill) = self.distill.as_ref().filter(|distill| distill.cache_epochs > 0) {
            loader.view_epochs = distill.cache_epochs;
        }
        loader
    }

    /// The trained network's geometry. A student of a frozen teacher has nothing hidden from it.
    ///
    /// # Errors
    /// Numbers that do not fit together.
    pub fn vit(&self) -> Result<VitConfig> {
        let masked = self.has_ibot() && self.distill.is_none();
        self.backbone.vit(self.crops.global.size as usize, masked)
    }

    /// Images of each part of a step, by the number of the part.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn batch_plan(&self) -> Result<BatchPlan> {
        let plan = match self.batch_warmup_steps {
            0 => BatchPlan::constant(self.batch_size / self.accumulate.max(1)),
            steps => BatchPlan::warmup(self.batch_warmup_start, self.batch_size, steps),
        };
        plan.validate()?;
        Ok(plan)
    }

    /// The patch grid of the global crops.
    ///
    /// # Errors
    /// A side that is no multiple of the patch.
    pub fn grid(&self) -> Result<Grid> {
        let side = self.crops.global.size as usize;
        let (rows, columns) = self.vit()?.grid(side, side)?;
        Ok(Grid { rows, columns })
    }

    /// The schedules of the run.
    pub fn schedules(&self) -> Schedules {
        Schedules::new(self)
    }

    /// Changes the length of the run, and every warm-up with it, in proportion.
    pub fn rescale(&mut self, steps: u64) {
        let ratio = steps as f64 / self.steps.max(1) as f64;
        let scaled = |count: u64| ((count as f64 * ratio).round() as u64).min(steps);
        self.optimizer.warmup_steps = scaled(self.optimizer.warmup_steps);
        self.optimizer.freeze_last_layer_steps = scaled(self.optimizer.freeze_last_layer_steps);
        self.teacher.temperature_warmup_steps = scaled(self.teacher.temperature_warmup_steps);
        self.batch_warmup_steps = scaled(self.batch_warmup_steps);
        self.steps = steps;
    }
}

/// Puts the section before the field that an error names.
fn prefixed<T>(section: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Input { what, reason } => Error::input(format!("{section}.{what}"), reason),
        Error::Models(macula_models::Error::Config { field, reason }) => {
            Error::input(format!("{section}.{field}"), reason)
        }
        other => other,
    })
}

/// The value of everything scheduled, as a function of the step.
#[derive(Debug, Clone)]
pub struct Schedules {
    learning_rate: CosineSchedule,
    last_layer_learning_rate: CosineSchedule,
    weight_decay: CosineSchedule,
    momentum: CosineSchedule,
    teacher_temperature: CosineSchedule,
    info_nce_temperature: CosineSchedule,
}

/// What the schedules say for one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepValues {
    /// Learning rate before each parameter's multiplier.
    pub learning_rate: f64,
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
}

impl Schedules {
    fn new(config: &TrainConfig) -> Self {
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
        }
    }

    /// The values at `step`, counted from 0.
    pub fn at(&self, step: u64) -> StepValues {
        let step = step as usize;
        StepValues {
            learning_rate: self.learning_rate.value(step),
            last_layer_learning_rate: self.last_layer_learning_rate.value(step),
            weight_decay: self.weight_decay.value(step),
            momentum: self.momentum.value(step),
            teacher_temperature: self.teacher_temperature.value(step),
            info_nce_temperature: self.info_nce_temperature.value(step),
        }
    }
}
