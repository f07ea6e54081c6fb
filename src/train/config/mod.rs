//! The settings of a run: one struct for each part, every field with a documented default, unknown fields refused. The
//! resolved whole is saved as `config.toml` in the run folder, and a resumed run reads it from there.

mod backbone;
mod bands;
mod distill;
mod loss;
mod optimizer;
mod patch_anchor;
mod ranks;
mod schedules;
mod teacher;
mod validate;
mod words;

use macula_models::vit::VitConfig;
use serde::{Deserialize, Serialize};

pub use backbone::BackboneConfig;
pub use distill::{DistillConfig, IbotTokens, OnnxOutput, TeacherOffer, Term};
pub use loss::{HeadConfig, InfoNceConfig, LossConfig};
pub use optimizer::{LearningRateScaling, OptimizerConfig, OptimizerKind};
pub use patch_anchor::{AnchorNetwork, PatchAnchorConfig};
pub use ranks::{DeviceExchange, RanksConfig};
pub use schedules::{Schedules, StepValues};
pub use teacher::{Centering, TeacherConfig};
pub use words::WordsConfig;

use self::validate::prefixed;
use crate::Result;
use crate::data::augment::MultiCropConfig;
use crate::data::loader::{BatchPlan, LoaderConfig};
use crate::data::mask::{Grid, MaskConfig};
use crate::device::Dtype;
use crate::train::observe::{LabelFreeConfig, OnlineKnnConfig, keys};

fn yes() -> bool {
    true
}

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
    /// Micro-batches that a step's batch is computed in, one after the other: less memory, the same number of images. A divisor of `batch_size`;
    /// 1 for the whole batch at once.
    ///
    /// The gradient is the mean of the micro-batches' gradients. What a term computes over a batch it computes over each micro-batch: targets by
    /// Sinkhorn-Knopp, centres (which move once a micro-batch), KoLeo's neighbours, the variance that predicted pixels and histograms are
    /// measured by, batch norm of the contrastive projection, the queue (which takes up the keys of a micro-batch before the next is
    /// compared with it), the shares of masked patches and stochastic depth. So two micro-batches are not the step in one, nor that of
    /// DINOv2 on many GPUs, whose Sinkhorn-Knopp and centres run over the images of all GPUs.
    pub accumulate: usize,
    /// Steps over which the batch grows linearly from `batch_warmup_start`; 0 for none.
    pub batch_warmup_steps: u64,
    /// Images of the first step where the batch grows.
    pub batch_warmup_start: usize,
    /// The numbers that matrix products, attention and activations are computed or stored in. Weights, norms, losses and
    /// gradients are f32 either way. Default f32; bf16 is faster on CUDA and on processors with AVX512-BF16 or AMX.
    #[serde(default)]
    pub compute: Dtype,
    /// Keep of every block only what it ran on, and compute the rest again in the backward pass: less memory for about a fifth
    /// more time, the same bytes. Default false.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// On an NVIDIA GPU, take global and local crops through the student in one sequence (DINOv2, section 5): the same results but
    /// for the order of sums. Elsewhere it changes nothing. Default true.
    #[serde(default = "yes")]
    pub sequence_packing: bool,
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
    /// How the processes of a run share it, where there are several.
    #[serde(default, skip_serializing_if = "RanksConfig::is_default")]
    pub ranks: RanksConfig,
    /// The frozen teacher, where there is one; without it a run teaches itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillConfig>,
}

/// What training can compute in.
pub const COMPUTED: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// Where images come from and how they are read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The source, as `--data` names it.
    pub source: String,
    /// Workers, queue, cache and what happens to unreadable images.
    #[serde(default)]
    pub loader: LoaderConfig,
}

impl DataConfig {
    /// Checks every field's range; the error names the field as it stands in the file.
    ///
    /// # Errors
    /// A field out of range.
    pub fn validate(&self) -> Result<()> {
        prefixed("data.loader", self.loader.validate())
    }
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
    /// Whether the best checkpoint is kept too (`checkpoints/best`). Default true.
    pub keep_best: bool,
    /// What is the best. Default `knn`.
    pub select: Selection,
}

/// Which reading says that a checkpoint is the best so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selection {
    /// Accuracy of online k-NN, where there is any.
    #[default]
    Knn,
    /// RankMe (Garrido et al. 2023) of images without labels: how many directions the features use.
    Rankme,
    /// LiDAR (Thilak et al. 2024) of images without labels: how many directions tell images apart better than crops of one differ.
    Lidar,
}

impl Selection {
    /// Every kind by its name.
    pub const ALL: [(&str, Self); 3] = [
        ("knn", Self::Knn),
        ("rankme", Self::Rankme),
        ("lidar", Self::Lidar),
    ];

    /// The name of the reading in `metrics.jsonl`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Knn => keys::KNN_TOP1,
            Self::Rankme => keys::EFFECTIVE_RANK,
            Self::Lidar => keys::LIDAR,
        }
    }
}

impl std::str::FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, kind)| *kind)
            .ok_or_else(|| format!("expected knn, rankme or lidar, found {text}"))
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every: 1000,
            keep: 2,
            keep_best: true,
            select: Selection::Knn,
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
    /// The meters that need no labels; none without it. `feature_std` and `effective_rank` are then of its images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_free: Option<LabelFreeConfig>,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            log_every: 20,
            curves_every: 500,
            knn: None,
            label_free: None,
        }
    }
}

impl TrainConfig {
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

    /// Whether the pixels of crops are predicted from their class tokens. Not where a frozen teacher says what to learn.
    pub fn has_pixels(&self) -> bool {
        self.loss.pixel_weight > 0. && self.distill.is_none()
    }

    /// Whether histograms of oriented gradients are predicted likewise.
    pub fn has_hog(&self) -> bool {
        self.loss.hog_weight > 0. && self.distill.is_none()
    }

    /// Whether visual words are told likewise.
    pub fn has_words(&self) -> bool {
        self.loss.words.weight > 0. && self.distill.is_none()
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
        let size = self.crops.global.size as usize;
        self.backbone.vit(size, self.channels(), masked)
    }

    /// Images of each micro-batch, by its number.
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
        self.optimizer.freeze_backbone_steps = scaled(self.optimizer.freeze_backbone_steps);
        self.teacher.temperature_warmup_steps = scaled(self.teacher.temperature_warmup_steps);
        self.batch_warmup_steps = scaled(self.batch_warmup_steps);
        self.steps = steps;
    }
}
