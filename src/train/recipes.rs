//! Recipes by name, and how a user's file and `--set` change them. A recipe is a method with its schedules; the recipes for
//! any data also take the geometry (size of crops, patch and network) from the images they are given.

use std::path::{Path, PathBuf};

use macula_models::vit::{FeedForwardKind, VitConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::config::{
    BackboneConfig, Centering, CheckpointConfig, Compute, DataConfig, HeadConfig, InfoNceConfig,
    LearningRateScaling, LossConfig, MonitorConfig, OptimizerConfig, OptimizerKind, TeacherConfig,
    TrainConfig,
};
use crate::data::augment::MultiCropConfig;
use crate::data::augment::multi_crop_config::{BlurConfig, BlurConvention, ViewConfig};
use crate::data::loader::LoaderConfig;
use crate::data::mask::MaskConfig;
use crate::error::toml_line;
use crate::{Error, Result};

/// The names, for messages and `--help`.
pub const NAMES: [&str; 7] = [
    "dinov2-small",
    "dino",
    "ibot",
    "moco",
    "dinov2",
    "dinov2-vitg14",
    "dinov2-vitl16-short",
];

/// The recipe that `macula train` takes when none is named.
pub const DEFAULT: &str = "dinov2-small";

/// Iterations of an epoch in the reference's schedules, whatever the size of the data.
const OFFICIAL_EPOCH: u64 = 1250;

/// The largest median side, in pixels, at which images count as small: above it recipes have the sizes of their references.
const SMALL_SIDE: u32 = 128;

/// Passes over the images that `main_dino.py` and `main_ibot.py` make unless told otherwise.
const REFERENCE_EPOCHS: u64 = 100;

/// What recipes need to know of the images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DataFacts {
    /// Number of images.
    pub images: u64,
    /// Median of the shorter sides, in pixels.
    pub side: u32,
    /// Whether all images are grey.
    pub grey: bool,
}

/// Sizes that follow the images.
struct Geometry {
    backbone: BackboneConfig,
    crops: MultiCropConfig,
    batch_size: usize,
    head: HeadConfig,
}

impl Geometry {
    /// A small network on whole small images, of few patches: on two cores the number of images seen counts for more than
    /// the detail of each. ViT-S/16 on 224 pixels, as DINO has it, from 129 pixels up.
    fn for_data(facts: &DataFacts) -> Self {
        let (patch_size, embed_dim, depth) = match facts.side {
            0..=28 => (7, 192, 4),
            29..=80 => (8, 192, 6),
            81..=SMALL_SIDE => (16, 192, 6),
            _ => return Self::large(),
        };
        let size = facts.side.div_ceil(patch_size).max(2) * patch_size;
        let local_size = (size / patch_size).div_ceil(2) * patch_size;
        let crops = if facts.grey {
            MultiCropConfig::small_grey(size, local_size)
        } else {
            MultiCropConfig::small_colour(size, local_size)
        };
        Self {
            backbone: BackboneConfig {
                embed_dim,
                depth,
                num_heads: embed_dim / 64,
                patch_size: patch_size as usize,
                ..small_backbone()
            },
            crops,
            batch_size: 64,
            head: HeadConfig {
                hidden: 512,
                bottleneck: 128,
                prototypes: 1024,
                train_gain: false,
            },
        }
    }

    fn large() -> Self {
        Self {
            backbone: BackboneConfig {
                embed_dim: 384,
                depth: 12,
                num_heads: 6,
                patch_size: 16,
                ..small_backbone()
            },
            crops: MultiCropConfig {
                local: ViewConfig {
                    size: 96,
                    ..MultiCropConfig::default().local
                },
                ..MultiCropConfig::default()
            },
            batch_size: 256,
            head: HeadConfig {
                hidden: 2048,
                bottleneck: 256,
                prototypes: 16_384,
                train_gain: false,
            },
        }
    }
}

fn small_backbone() -> BackboneConfig {
    BackboneConfig {
        embed_dim: 0,
        depth: 0,
        num_heads: 0,
        patch_size: 0,
        num_registers: 0,
        feed_forward: FeedForwardKind::Mlp,
        ffn_hidden: 0,
        layer_scale: 0.1,
        drop_path_rate: 0.,
        drop_path_uniform: false,
        patch_drop_rate: 0.,
    }
}

/// The recipe `name` for images like `facts`, reading from `source`.
///
/// # Errors
/// An unknown name.
pub fn recipe(name: &str, source: &str, facts: &DataFacts) -> Result<TrainConfig> {
    let mut config = match name {
        "dinov2-small" => dinov2_small(facts),
        "dino" => dino(facts),
        "ibot" => ibot(facts),
        "moco" => moco(facts),
        "dinov2" => published(vit_large_14(), 32),
        "dinov2-vitg14" => published(vit_giant2_14(), 12),
        "dinov2-vitl16-short" => vit_large_16_short(),
        _ => {
            let reason = format!("expected {} or a .toml file, found `{name}`", NAMES.join(", "));
            return Err(Error::input("--recipe", reason));
        }
    };
    config.recipe = name.to_owned();
    config.data.source = source.to_owned();
    Ok(config)
}

/// Steps of a default run over `facts`: 100 passes over small sets, fewer over large ones, at least 1,000.
fn default_steps(facts: &DataFacts, batch: usize) -> u64 {
    let passes = (6_000_000 / facts.images.max(1)).clamp(10, 100);
    (facts.images * passes / batch as u64).max(1000)
}

/// What the small recipes have in common: every warm-up a share of the run.
fn small(facts: &DataFacts) -> TrainConfig {
    let Geometry {
        backbone,
        crops,
        batch_size,
        head,
    } = Geometry::for_data(facts);
    let steps = default_steps(facts, batch_size);
    TrainConfig {
        recipe: String::new(),
        seed: 0,
        steps,
        batch_size,
        accumulate: 1,
        batch_warmup_steps: 0,
        batch_warmup_start: batch_size,
        compute: Compute::F32,
        gradient_checkpointing: false,
        sequence_packing: true,
        data: DataConfig {
            source: String::new(),
            loader: LoaderConfig::default(),
        },
        backbone,
        loss: LossConfig {
            dino_weight: 1.,
            ibot_weight: 0.,
            koleo_weight: 0.,
            koleo_group: 0,
            info_nce_weight: 0.,
            pixel_weight: 0.,
            pixel_hidden: 512,
            hog_weight: 0.,
            hog_hidden: 512,
            student_temperature: 0.1,
            head,
            ibot_head: None,
            info_nce: InfoNceConfig::default(),
        },
        teacher: TeacherConfig {
            momentum: 0.99,
            final_momentum: 1.,
            centering: Centering::Softmax,
            center_momentum: 0.9,
            temperature: 0.04,
            final_temperature: 0.07,
            temperature_warmup_steps: steps / 3,
        },
        optimizer: OptimizerConfig {
            kind: OptimizerKind::Adamw,
            learning_rate: 2e-3,
            learning_rate_scaling: LearningRateScaling::Sqrt1024,
            final_learning_rate: 1e-6,
            warmup_steps: steps / 10,
            weight_decay: 0.04,
            final_weight_decay: 0.2,
            layer_decay: 1.,
            patch_embed_multiplier: 1.,
            clip_norm: 3.,
            freeze_last_layer_steps: steps / 100,
            beta1: 0.9,
            beta2: 0.999,
            momentum: 0.9,
        },
        crops,
        masks: MaskConfig::default(),
        checkpoints: CheckpointConfig::default(),
        monitor: MonitorConfig::default(),
        distill: None,
    }
}

/// Ours: DINOv2's terms for small data and small images. What differs from the paper's settings serves a start that is quick
/// where theirs takes epochs: no LayerScale, which hides the blocks of a shallow network at first; a teacher that follows
/// faster; targets sharp from the beginning, since cosines with random prototypes differ little and 0.07 makes them nearly
/// uniform (96 % of ln K, measured); milder crops, no solarisation, a stronger KoLeo. Images of up to 32 pixels have no local
/// crops: of so few pixels they tell little, and without them the same time shows the network 1.6 times the images. The class
/// token also tells what it saw, of images of up to 32 pixels the oriented gradients, of larger ones the pixels: agreement of crops
/// alone loses what they do not share, and features stay below raw pixels. Of small images the student then sees every patch, and
/// there is no iBOT term (all measured on images of 28 pixels: `benchmarks/NOTES.md`).
fn dinov2_small(facts: &DataFacts) -> TrainConfig {
    let mut config = small(facts);
    config.backbone.layer_scale = 0.;
    config.teacher.momentum = 0.98;
    config.teacher.temperature = 0.03;
    config.teacher.final_temperature = 0.04;
    config.optimizer.learning_rate = 4e-3;
    config.optimizer.warmup_steps = config.steps / 20;
    config.optimizer.final_weight_decay = 0.1;
    mild_crops(&mut config, facts);
    config.loss.ibot_weight = 1.;
    config.loss.koleo_weight = 0.2;
    config.loss.pixel_weight = 3.;
    config.teacher.centering = Centering::SinkhornKnopp;
    if facts.side <= 32 {
        config.loss.ibot_weight = 0.;
        config.loss.pixel_weight = 0.;
        config.loss.hog_weight = 10.;
    }
    config
}

/// What is left of a small image should still say what it is.
fn mild_crops(config: &mut TrainConfig, facts: &DataFacts) {
    if facts.side <= SMALL_SIDE {
        config.crops.global.scale = [0.4, 1.0];
        config.crops.local.scale = [0.2, 0.5];
        config.crops.local.count = if facts.side <= 32 { 0 } else { 4 };
        config.crops.jitter.probability = 0.5;
        config.crops.solarize.probability = 0.;
    }
}

/// DINO (Caron et al. 2021, facebookresearch/dino `main_dino.py`): class tokens only, softmax around a moving centre, no
/// LayerScale, the published rate and a constant temperature.
///
/// Images of up to 128 pixels get the sizes and crops of the small recipes, a teacher that follows faster (0.99) and no stochastic
/// depth; with four times the rate and sharper targets small data ends on a few prototypes (measured: `benchmarks/NOTES.md`).
///
/// Larger ones get what the script does unless told otherwise, with the 8 GPUs of its README: batches of 512, 100 passes, ViT-S/16,
/// two global crops of 0.4 to 1 and eight local ones of 0.05 to 0.4 of the image, blurred as often as declared, 65,536 prototypes
/// of fixed gain, momentum 0.996, stochastic depth up to 0.1. What differs from the script:
///
/// - it clips the gradient of each tensor to 3, this the gradient of each network (backbone, head);
/// - it draws for every image and block whether a branch is left out, this leaves out a fixed share of the images;
/// - its blur is Pillow's, which approximates a Gaussian by boxes, this is DINOv2's of 9 x 9 pixels, with the same range of sigma;
/// - it computes in fp16 with loss scaling, this in f32 or, with `compute=bf16`, bf16.
fn dino(facts: &DataFacts) -> TrainConfig {
    let mut config = small(facts);
    config.backbone.layer_scale = 0.;
    config.optimizer.learning_rate = 5e-4;
    config.optimizer.learning_rate_scaling = LearningRateScaling::Linear256;
    config.optimizer.final_weight_decay = 0.4;
    config.teacher.final_temperature = config.teacher.temperature;
    if facts.side <= SMALL_SIDE {
        mild_crops(&mut config, facts);
    } else {
        as_main_dino(&mut config, facts);
    }
    config
}

/// The defaults of `main_dino.py` on 8 GPUs of 64 images each.
fn as_main_dino(config: &mut TrainConfig, facts: &DataFacts) {
    reference_length(config, facts, 512);
    config.backbone.drop_path_rate = 0.1;
    config.backbone.drop_path_uniform = false;
    config.loss.head.prototypes = 65_536;
    config.teacher.momentum = 0.996;
    config.teacher.temperature_warmup_steps = 0;
    config.crops = reference_crops([0.4, 1.0], 8, [0.05, 0.4]);
}

/// iBOT (Zhou et al. 2022, bytedance/ibot `main_ibot.py`): class tokens and masked patches through one head.
///
/// Images of up to 128 pixels get [`dino`]'s settings and DINOv2's masks. Larger ones get the command that the README gives for
/// ViT-S/16: batches of 1,024 (16 GPUs of 64), one head of 8,192 prototypes with trained gain for class tokens and patches,
/// temperatures of 0.04 to 0.07, two global crops of 0.25 to 1 and ten local ones of 0.05 to 0.25 of the image, blurred as often as
/// declared, and masks on half of the global crops over 0.1 to 0.5 of their patches (`--pred_ratio 0 0.3 --pred_ratio_var 0 0.2`),
/// of blocks of at least 16 patches. What differs from it, beside what [`dino`] says:
///
/// - it trains for 800 passes; this is the script's schedule of 100, with temperatures that rise over the first 30
///   (`epochs=800` takes that warm-up with it, to 240: `teacher.temperature_warmup_steps` sets it);
/// - it draws for every crop whether it is masked, this masks half of a batch's;
/// - its centre of patches is the mean over all patches, this one's over the masked ones, as in DINOv2.
fn ibot(facts: &DataFacts) -> TrainConfig {
    let mut config = dino(facts);
    config.loss.ibot_weight = 1.;
    if facts.side > SMALL_SIDE {
        as_ibot_readme(&mut config, facts);
    }
    config
}

/// The command of iBOT's README for ViT-S/16 on 16 GPUs of 64 images each, over the defaults of `main_ibot.py`, which are otherwise
/// those of `main_dino.py`.
fn as_ibot_readme(config: &mut TrainConfig, facts: &DataFacts) {
    reference_length(config, facts, 1024);
    config.loss.head.prototypes = 8192;
    config.loss.head.train_gain = true;
    config.teacher.final_temperature = 0.07;
    config.teacher.temperature_warmup_steps = 30 * config.steps / REFERENCE_EPOCHS;
    config.crops = reference_crops([0.25, 1.0], 10, [0.05, 0.25]);
    config.masks.min_block = 16;
}

/// A batch of `batch` images and the schedule that both scripts have by default: 100 passes, a warm-up of ten, the last layer
/// frozen for one.
fn reference_length(config: &mut TrainConfig, facts: &DataFacts, batch: usize) {
    let steps = (facts.images * REFERENCE_EPOCHS / batch as u64).max(1000);
    config.batch_size = batch;
    config.batch_warmup_start = batch;
    config.steps = steps;
    config.optimizer.warmup_steps = 10 * steps / REFERENCE_EPOCHS;
    config.optimizer.freeze_last_layer_steps = steps / REFERENCE_EPOCHS;
}

/// Crops of 224 and 96 pixels as both scripts make them, which blur with the probabilities that they name.
fn reference_crops(global: [f64; 2], locals: usize, local: [f64; 2]) -> MultiCropConfig {
    MultiCropConfig {
        global: ViewConfig {
            count: 2,
            size: 224,
            scale: global,
        },
        local: ViewConfig {
            count: locals,
            size: 96,
            scale: local,
        },
        blur: BlurConfig {
            convention: BlurConvention::AsDeclared,
            ..BlurConfig::default()
        },
        ..MultiCropConfig::default()
    }
}

/// Momentum contrast with a moving temperature, a growing batch and a tight clip. The queue holds at most a sixteenth of the
/// images, as 65,536 are of ImageNet: of fewer images most negatives would be the query itself, some steps before. Images of more
/// than 128 pixels are blurred as in MoCo v3 (facebookresearch/moco-v3 `main_moco.py`): the first crop always, the second one time
/// in ten.
fn moco(facts: &DataFacts) -> TrainConfig {
    let mut config = small(facts);
    config.backbone.layer_scale = 0.;
    config.loss.dino_weight = 0.;
    config.loss.info_nce_weight = 1.;
    config.loss.info_nce.hidden = config.loss.head.hidden;
    config.loss.info_nce.batch_norm = true;
    config.loss.info_nce.queue = (facts.images as usize / 16).clamp(1024, config.loss.info_nce.queue);
    mild_crops(&mut config, facts);
    config.crops.blur.convention = BlurConvention::AsDeclared;
    config.crops.local.count = 0;
    config.teacher.momentum = 0.98;
    config.optimizer.clip_norm = 1.;
    config.optimizer.final_weight_decay = 0.04;
    config.optimizer.freeze_last_layer_steps = 0;
    config.batch_warmup_start = (config.batch_size / 4).max(1);
    config.batch_warmup_steps = config.steps / 20;
    config
}

/// What is published of ViT-L/14 from scratch (facebookresearch/dinov2 `configs/train/vitl14.yaml`; paper, table 16).
fn vit_large_14() -> BackboneConfig {
    BackboneConfig {
        embed_dim: 1024,
        depth: 24,
        num_heads: 16,
        patch_size: 14,
        num_registers: 0,
        feed_forward: FeedForwardKind::Swiglu,
        ffn_hidden: 0,
        layer_scale: 1e-5,
        drop_path_rate: 0.4,
        drop_path_uniform: true,
        patch_drop_rate: 0.,
    }
}

/// ViT-g/14 (`configs/train/vitg14.yaml`).
fn vit_giant2_14() -> BackboneConfig {
    BackboneConfig {
        embed_dim: 1536,
        depth: 40,
        num_heads: 24,
        ..vit_large_14()
    }
}

/// The paper's recipe for `backbone`, whose batches were spread over GPUs of `images_a_gpu` images each: KoLeo's neighbours are looked
/// for among those. What differs from the reference:
///
/// - it computes in fp16 with loss scaling, this in f32 or, with `compute=bf16`, bf16, whose range needs no scaling;
/// - it draws masks for each GPU's images, this for each micro-batch ([`TrainConfig::accumulate`]): half of its crops are masked,
///   with shares spread evenly over the range;
/// - in micro-batches (`accumulate` above 1, which a batch of thousands needs on most machines) the targets' statistics are each micro-batch's own,
///   while the reference takes them over the whole batch.
fn published(backbone: BackboneConfig, images_a_gpu: usize) -> TrainConfig {
    let facts = DataFacts {
        images: 1,
        side: u32::MAX,
        grey: false,
    };
    let steps = 500 * OFFICIAL_EPOCH;
    let head = HeadConfig {
        hidden: 2048,
        bottleneck: 384,
        prototypes: 131_072,
        train_gain: true,
    };
    let base = small(&facts);
    TrainConfig {
        steps,
        batch_size: 3072,
        batch_warmup_start: 3072,
        backbone,
        loss: LossConfig {
            dino_weight: 1.,
            ibot_weight: 1.,
            koleo_weight: 0.1,
            koleo_group: images_a_gpu,
            head: head.clone(),
            ibot_head: Some(HeadConfig {
                bottleneck: 256,
                ..head
            }),
            ..base.loss
        },
        teacher: TeacherConfig {
            momentum: 0.994,
            final_momentum: 1.,
            centering: Centering::SinkhornKnopp,
            center_momentum: 0.9,
            temperature: 0.04,
            final_temperature: 0.07,
            temperature_warmup_steps: 30 * OFFICIAL_EPOCH,
        },
        optimizer: OptimizerConfig {
            learning_rate: 2e-4,
            warmup_steps: 80 * OFFICIAL_EPOCH,
            weight_decay: 0.04,
            final_weight_decay: 0.2,
            layer_decay: 1.,
            patch_embed_multiplier: 0.2,
            clip_norm: 3.,
            freeze_last_layer_steps: OFFICIAL_EPOCH,
            ..base.optimizer
        },
        crops: MultiCropConfig::default(),
        ..base
    }
}

/// ViT-L/16 on ImageNet-1k (`configs/train/vitl16_short.yaml` over `ssl_default_config.yaml`).
fn vit_large_16_short() -> TrainConfig {
    let backbone = BackboneConfig {
        patch_size: 16,
        feed_forward: FeedForwardKind::Mlp,
        drop_path_rate: 0.3,
        ..vit_large_14()
    };
    let mut config = published(backbone, 64);
    config.steps = 100 * OFFICIAL_EPOCH;
    config.batch_size = 2048;
    config.batch_warmup_start = 2048;
    config.loss.head.prototypes = 65_536;
    config.loss.head.bottleneck = 256;
    config.loss.ibot_head = None;
    config.teacher.momentum = 0.992;
    config.teacher.centering = Centering::Softmax;
    config.optimizer.learning_rate = 0.004;
    config.optimizer.warmup_steps = 10 * OFFICIAL_EPOCH;
    config.optimizer.final_weight_decay = 0.4;
    config.optimizer.layer_decay = 0.9;
    config.crops.local.size = 96;
    config
}

/// Short names that `--set` and recipe files may use at the top level.
const ALIASES: [(&str, &str); 4] = [
    ("image_size", "crops.global.size"),
    ("local_size", "crops.local.size"),
    ("learning_rate", "optimizer.learning_rate"),
    ("arch", "backbone.arch"),
];

/// What a user changes: a recipe file's table first, then every `a.b=c` of `--set`.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    table: Table,
    /// The recipe file, where there is one.
    file: Option<PathBuf>,
}

impl Overrides {
    /// Reads a recipe file; its `recipe`, if any, names what it builds on.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML.
    pub fn from_file(path: &Path) -> Result<(Self, Option<String>)> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let parse = |e: toml::de::Error| Error::input(path.display().to_string(), toml_line(&e));
        let mut table: Table = text.parse().map_err(parse)?;
        let base = match table.remove("recipe") {
            None => None,
            Some(Value::String(name)) => Some(name),
            Some(other) => {
                let reason = format!("expected a recipe's name, found `{other}`");
                return Err(Error::input(format!("{}: recipe", path.display()), reason));
            }
        };
        let mut overrides = Self {
            file: Some(path.to_owned()),
            ..Self::default()
        };
        for (key, value) in table {
            overrides
                .insert(&key, value)
                .map_err(|error| error.in_file(path))?;
        }
        Ok((overrides, base))
    }

    /// An error about these changes, with the recipe file's name where there is one.
    pub fn named(&self, error: Error) -> Error {
        match &self.file {
            Some(file) => error.in_file(file),
            None => error,
        }
    }

    /// Adds `a.b=c`. The value is TOML (`true`, `0.1`, `[0.4, 1.0]`, `"text"`); anything else is text.
    ///
    /// # Errors
    /// No `=`, an empty key, a key through something that is no section.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let wrong = || {
            let reason = format!("expected section.field=value, found `{assignment}`");
            Error::input("--set", reason)
        };
        let (key, text) = assignment.split_once('=').ok_or_else(wrong)?;
        let (key, text) = (key.trim(), text.trim());
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(wrong());
        }
        let parsed: std::result::Result<Table, _> = format!("value = {text}").parse();
        let value = parsed
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_owned()));
        self.insert(key, value)
    }

    fn insert(&mut self, key: &str, value: Value) -> Result<()> {
        let alias = ALIASES.iter().find(|(short, _)| *short == key);
        let key = alias.map_or(key, |(_, full)| full);
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or(key);
        let mut table = &mut self.table;
        for part in parts {
            let entry = table
                .entry(part.to_owned())
                .or_insert_with(|| Value::Table(Table::new()));
            table = match entry {
                Value::Table(table) => table,
                _ => return Err(Error::input(key, format!("`{part}` is a value, not a section"))),
            };
        }
        match (table.get_mut(last), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(table.insert(last.to_owned(), value)),
        }
        Ok(())
    }

    /// `base` with the changes to the section `name` alone, for what must be known before the rest.
    ///
    /// # Errors
    /// An unknown field, a value of another type.
    pub fn section<T: Serialize + DeserializeOwned>(&self, name: &str, base: &T) -> Result<T> {
        let unreadable = |what: String| self.named(Error::input(name, what));
        let Value::Table(mut whole) = Value::try_from(base).map_err(|e| unreadable(e.to_string()))? else {
            return Err(unreadable("no table".to_owned()));
        };
        match self.table.get(name) {
            Some(Value::Table(own)) => merge(&mut whole, own.clone()),
            Some(other) => return Err(unreadable(format!("expected a section, found `{other}`"))),
            None => {}
        }
        whole
            .try_into()
            .map_err(|e: toml::de::Error| unreadable(toml_line(&e)))
    }

    /// `config` with these changes. A new number of `steps` (or of `epochs`, passes over `images`) takes every warm-up with
    /// it, in proportion, before the other changes are made.
    ///
    /// # Errors
    /// An unknown field, a value of another type or out of range, named as in the file.
    pub fn apply(&self, config: TrainConfig, images: u64) -> Result<TrainConfig> {
        self.applied(config, images).map_err(|error| self.named(error))
    }

    fn applied(&self, mut config: TrainConfig, images: u64) -> Result<TrainConfig> {
        let mut table = self.table.clone();
        let number = |value: Option<Value>, field: &str| match value {
            None => Ok(None),
            Some(Value::Integer(count)) if count > 0 => Ok(Some(count as f64)),
            Some(Value::Float(count)) if count > 0. => Ok(Some(count)),
            Some(other) => {
                let reason = format!("expected a number above 0, found `{other}`");
                Err(Error::input(field, reason))
            }
        };
        let steps = number(table.get("steps").cloned(), "steps")?;
        let epochs = number(table.remove("epochs"), "epochs")?;
        let batch = number(table.get("batch_size").cloned(), "batch_size")?;
        if let Some(batch) = batch {
            config.batch_warmup_start = ((config.batch_warmup_start as f64 * batch
                / config.batch_size.max(1) as f64) as usize)
                .max(1);
        }
        let batch = batch.unwrap_or(config.batch_size as f64);
        match (steps, epochs) {
            (Some(_), Some(_)) => {
                return Err(Error::input("epochs", "expected steps or epochs, found both"));
            }
            (Some(steps), None) => config.rescale(steps as u64),
            (None, Some(epochs)) => {
                config.rescale(((epochs * images as f64 / batch).round() as u64).max(1));
            }
            (None, None) => {}
        }
        if let Some(Value::Table(backbone)) = table.get_mut("backbone") {
            expand_arch(backbone)?;
        }
        let unreadable = |what: String| Error::input("recipe", what);
        let Value::Table(mut whole) = Value::try_from(&config).map_err(|e| unreadable(e.to_string()))? else {
            return Err(unreadable("no table".to_owned()));
        };
        merge(&mut whole, table);
        let config: TrainConfig = whole
            .try_into()
            .map_err(|e: toml::de::Error| unreadable(toml_line(&e)))?;
        config.validate()?;
        Ok(config)
    }
}

/// `over` on top of `base`, section by section.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

/// Replaces `arch` by the fields it stands for; fields that are given beside it stay.
fn expand_arch(backbone: &mut Table) -> Result<()> {
    let name = match backbone.remove("arch") {
        None => return Ok(()),
        Some(Value::String(name)) => name,
        Some(other) => {
            let reason = format!("expected a name such as vit-small/14, found `{other}`");
            return Err(Error::input("backbone.arch", reason));
        }
    };
    // A side that every patch size up to 16, and 32, divides: the size of the images is not decided here.
    let vit = VitConfig::named(&name, 1_441_440)?;
    let feed_forward = match vit.feed_forward {
        FeedForwardKind::Mlp => "mlp",
        FeedForwardKind::Swiglu => "swiglu",
    };
    for (field, value) in [
        ("embed_dim", vit.embed_dim),
        ("depth", vit.depth),
        ("num_heads", vit.num_heads),
        ("patch_size", vit.patch_size),
        ("num_registers", vit.num_registers),
        ("ffn_hidden", vit.ffn_hidden),
    ] {
        backbone
            .entry(field.to_owned())
            .or_insert(Value::Integer(value as i64));
    }
    backbone
        .entry("feed_forward".to_owned())
        .or_insert(Value::String(feed_forward.to_owned()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL_GREY: DataFacts = DataFacts {
        images: 60_000,
        side: 28,
        grey: true,
    };

    fn recipe_of(name: &str) -> TrainConfig {
        recipe(name, "images", &SMALL_GREY).unwrap()
    }

    fn with(settings: &[&str]) -> Result<TrainConfig> {
        let mut overrides = Overrides::default();
        for setting in settings {
            overrides.set(setting)?;
        }
        overrides.apply(recipe_of(DEFAULT), SMALL_GREY.images)
    }

    #[test]
    fn every_recipe_is_valid_and_survives_its_file() {
        for name in NAMES {
            for facts in [
                SMALL_GREY,
                DataFacts {
                    images: 3_800,
                    side: 64,
                    grey: false,
                },
                DataFacts {
                    images: 1_281_167,
                    side: 375,
                    grey: false,
                },
            ] {
                let config = recipe(name, "images", &facts).unwrap();
                config
                    .validate()
                    .unwrap_or_else(|e| panic!("{name}, {facts:?}: {e}"));
                let text = toml::to_string(&config).unwrap();
                assert_eq!(toml::from_str::<TrainConfig>(&text).unwrap(), config, "{name}");
            }
        }
    }

    #[test]
    fn the_published_recipe_has_the_published_numbers() {
        let config = recipe_of("dinov2");
        let values = |step| config.schedules().at(step);
        assert_eq!((config.steps, config.batch_size), (625_000, 3072));
        assert_eq!(values(0).learning_rate, 0.);
        assert!((values(100_000).learning_rate - 3.4641e-4).abs() < 1e-8);
        assert_eq!(values(1249).last_layer_learning_rate, 0.);
        assert!(values(1250).last_layer_learning_rate > 0.);
        assert!((values(0).weight_decay - 0.04).abs() < 1e-12 && values(625_000).weight_decay == 0.2);
        assert_eq!((values(0).momentum, values(625_000).momentum), (0.994, 1.));
        assert_eq!(
            (values(0).teacher_temperature, values(37_500).teacher_temperature),
            (0.04, 0.07)
        );
        let vit = config.vit().unwrap();
        assert_eq!(
            (vit.ffn_hidden, vit.image_size, vit.layer_scale),
            (2736, 224, Some(1e-5))
        );
        assert_eq!(config.loss.ibot_head.as_ref().unwrap().bottleneck, 256);
        assert_eq!((config.crops.local.size, config.crops.local.count), (98, 8));
        let giant = recipe_of("dinov2-vitg14").vit().unwrap();
        assert_eq!((giant.embed_dim, giant.depth, giant.ffn_hidden), (1536, 40, 4096));
        let short = recipe_of("dinov2-vitl16-short");
        assert!((short.schedules().at(12_500).learning_rate - 0.004 * 2f64.sqrt()).abs() < 1e-9);
        assert_eq!((short.steps, short.optimizer.layer_decay), (125_000, 0.9));
        assert_eq!(short.teacher.centering, Centering::Softmax);
        assert!(short.loss.ibot_head.is_none());
        let groups =
            ["dinov2", "dinov2-vitg14", "dinov2-vitl16-short"].map(|name| recipe_of(name).loss.koleo_group);
        assert_eq!(groups, [32, 12, 64], "images of a GPU");
        assert_eq!(recipe_of(DEFAULT).loss.koleo_group, 0);
    }

    /// The numbers of `main_dino.py` (defaults) and of the command in iBOT's README, on images like ImageNet's.
    #[test]
    fn dino_and_ibot_have_their_references_numbers_on_large_images() {
        let large = DataFacts {
            images: 1_281_167,
            side: 375,
            grey: false,
        };
        let blurred = |config: &TrainConfig| {
            let blur = &config.crops.blur;
            [blur.first_global, blur.other_global, blur.local].map(|declared| blur.effective(declared))
        };
        let head = |config: &TrainConfig| {
            let head = &config.loss.head;
            (head.hidden, head.bottleneck, head.prototypes, head.train_gain)
        };
        let crops = |config: &TrainConfig| {
            let view = |view: &ViewConfig| (view.count, view.size, view.scale);
            (view(&config.crops.global), view(&config.crops.local))
        };

        let dino = recipe("dino", "images", &large).unwrap();
        assert_eq!(blurred(&dino), [1., 0.1, 0.5]);
        assert_eq!(head(&dino), (2048, 256, 65_536, false));
        assert_eq!(crops(&dino), ((2, 224, [0.4, 1.]), (8, 96, [0.05, 0.4])));
        assert_eq!((dino.batch_size, dino.steps), (512, 250_227));
        let at = |step| dino.schedules().at(step);
        assert!(
            (at(25_021).learning_rate - 5e-4 * 2.).abs() < 1e-9,
            "after ten of 100 passes"
        );
        assert_eq!(at(0).learning_rate, 0.);
        assert_eq!((at(250_227).learning_rate, at(250_227).weight_decay), (1e-6, 0.4));
        assert_eq!(at(2501).last_layer_learning_rate, 0.);
        assert!(at(2502).last_layer_learning_rate > 0.);
        assert_eq!((at(0).momentum, at(250_227).momentum), (0.996, 1.));
        assert_eq!(
            (at(0).teacher_temperature, at(100_000).teacher_temperature),
            (0.04, 0.04)
        );
        assert_eq!(
            (dino.backbone.drop_path_rate, dino.backbone.drop_path_uniform),
            (0.1, false)
        );
        assert_eq!((dino.backbone.embed_dim, dino.backbone.patch_size), (384, 16));
        assert_eq!(dino.backbone.layer_scale, 0.);
        assert_eq!((dino.loss.ibot_weight, dino.loss.koleo_weight), (0., 0.));

        let ibot = recipe("ibot", "images", &large).unwrap();
        assert_eq!(blurred(&ibot), [1., 0.1, 0.5]);
        assert_eq!(head(&ibot), (2048, 256, 8192, true));
        assert!(ibot.loss.ibot_head.is_none(), "one head for both");
        assert_eq!(crops(&ibot), ((2, 224, [0.25, 1.]), (10, 96, [0.05, 0.25])));
        assert_eq!((ibot.batch_size, ibot.steps), (1024, 125_113));
        let at = |step| ibot.schedules().at(step);
        assert!((at(12_510).learning_rate - 5e-4 * 4.).abs() < 1e-9);
        assert_eq!((at(0).momentum, at(125_113).momentum), (0.996, 1.));
        assert_eq!(
            (at(0).teacher_temperature, at(37_533).teacher_temperature),
            (0.04, 0.07)
        );
        assert!(at(37_000).teacher_temperature < 0.07, "30 of 100 passes");
        assert_eq!(
            (ibot.masks.probability, ibot.masks.ratio, ibot.masks.min_block),
            (0.5, [0.1, 0.5], 16)
        );
        assert_eq!((ibot.loss.dino_weight, ibot.loss.ibot_weight), (1., 1.));
        assert_eq!(ibot.backbone.drop_path_rate, 0.1);

        // DINOv2's own recipes keep its convention: the first crop never, the second nine times in ten.
        for name in ["dinov2-small", "dinov2", "dinov2-vitl16-short"] {
            assert_eq!(
                blurred(&recipe(name, "images", &large).unwrap()),
                [0., 0.9, 0.5],
                "{name}"
            );
        }
        assert_eq!(
            blurred(&recipe("moco", "images", &large).unwrap()),
            [1., 0.1, 0.5]
        );
        // Small images keep the small recipes' sizes.
        let small = recipe_of("dino");
        assert_eq!(
            (small.loss.head.prototypes, small.backbone.drop_path_rate),
            (1024, 0.)
        );
        assert_eq!(small.teacher.momentum, 0.99);
    }

    #[test]
    fn geometry_follows_the_images() {
        let config = recipe_of("dinov2-small");
        assert_eq!((config.crops.global.size, config.backbone.patch_size), (28, 7));
        assert_eq!(config.crops.jitter.hue, 0., "no hue on grey images");
        let colour = DataFacts {
            images: 1000,
            side: 64,
            grey: false,
        };
        let config = recipe("dino", "images", &colour).unwrap();
        assert_eq!((config.crops.global.size, config.backbone.patch_size), (64, 8));
        assert!(config.crops.jitter.hue > 0.);
        let large = DataFacts { side: 500, ..colour };
        let config = recipe("ibot", "images", &large).unwrap();
        assert_eq!((config.crops.global.size, config.crops.local.size), (224, 96));
    }

    #[test]
    fn a_shorter_run_has_shorter_warm_ups_unless_they_are_given() {
        let base = recipe_of(DEFAULT);
        let config = with(&["steps=1000"]).unwrap();
        assert_eq!(config.steps, 1000);
        let share = |config: &TrainConfig| config.optimizer.warmup_steps as f64 / config.steps as f64;
        assert!((share(&config) - share(&base)).abs() < 2e-3);
        assert_eq!(
            with(&["steps=1000", "optimizer.warmup_steps=7"])
                .unwrap()
                .optimizer
                .warmup_steps,
            7
        );
        assert_eq!(with(&["epochs=2", "batch_size=100"]).unwrap().steps, 1200);
        assert_eq!(with(&["epochs=0.5", "batch_size=100"]).unwrap().steps, 300);
    }

    #[test]
    fn an_architecture_stands_for_its_fields() {
        let config = with(&[
            "arch=vit-small/14-reg4",
            "image_size=28",
            "local_size=14",
            "backbone.depth=3",
        ]);
        let backbone = config.unwrap().backbone;
        assert_eq!(
            (
                backbone.embed_dim,
                backbone.depth,
                backbone.num_heads,
                backbone.num_registers
            ),
            (384, 3, 6, 4)
        );
    }

    #[test]
    fn what_cannot_be_set_is_named() {
        for (settings, words) in [
            (&["optimizer.rate=1"][..], &["unknown field `rate`"][..]),
            (&["steps=fast"], &["steps", "fast"]),
            (&["seed=-1"], &["-1"]),
            (&["optimizer=3"], &["3"]),
            (
                &["loss.dino_weight=0", "loss.ibot_weight=0"],
                &["loss", "above 0"],
            ),
            (&["teacher.momentum=1.5"], &["teacher.momentum", "1.5"]),
            (&["crops.flip=2"], &["crops.flip", "2"]),
            (&["masks.ratio=[0.5, 0.1]"], &["masks.ratio"]),
            (&["batch_size=1"], &["batch_size", "KoLeo"]),
            (&["arch=resnet-50"], &["resnet-50"]),
        ] {
            let text = with(settings).unwrap_err().to_string();
            assert!(
                words.iter().all(|word| text.contains(word)),
                "{settings:?}: {text}"
            );
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}
