//! Recipes of published methods, with the numbers of their references.

use macula_models::vit::{FeedForwardKind, GeluKind, InitialWeights};

use super::{
    DataFacts, OFFICIAL_EPOCH, REFERENCE_EPOCHS, SMALL_SIDE, mild_crops, quick_prototypes, small, tight_crops,
};
use crate::data::augment::MultiCropConfig;
use crate::data::augment::multi_crop_config::{BlurConfig, BlurConvention, ViewConfig};
use crate::train::config::{
    BackboneConfig, Centering, HeadConfig, LearningRateScaling, LossConfig, OptimizerConfig, TeacherConfig,
    TrainConfig,
};

/// DINO (Caron et al. 2021, facebookresearch/dino `main_dino.py`): class tokens only, softmax around a moving centre, no
/// LayerScale, the published rate and a constant temperature.
///
/// Images of up to 128 pixels get the sizes and crops of the small recipes, no stochastic depth, and of DINOv2 what keeps targets apart,
/// Sinkhorn-Knopp and KoLeo: with a centre features use half as many directions (measured: `benchmarks/history/NOTES.md`, "Crops of
/// tiny images").
///
/// Larger ones get what the script does unless told otherwise, with the 8 GPUs of its README: batches of 512, 100 passes, ViT-S/16,
/// two global crops of 0.4 to 1 and eight local ones of 0.05 to 0.4 of the image, blurred as often as declared, 65,536 prototypes
/// of fixed gain, momentum 0.996, stochastic depth up to 0.1. What differs from the script:
///
/// - it clips the gradient of each tensor to 3, this the gradient of each network (backbone, head);
/// - it draws for every image and block whether a branch is left out, this leaves out a fixed share of the images;
/// - its blur is Pillow's, which approximates a Gaussian by boxes, this is DINOv2's of 9 x 9 pixels, with the same range of sigma;
/// - it computes in fp16 with loss scaling, this in f32 or, with `compute=bf16`, bf16.
pub(super) fn dino(facts: &DataFacts) -> TrainConfig {
    let mut config = small(facts);
    config.backbone.layer_scale = 0.;
    config.optimizer.final_weight_decay = 0.4;
    if facts.side <= SMALL_SIDE {
        quick_prototypes(&mut config);
        mild_crops(&mut config, facts);
    } else {
        as_main_dino(&mut config, facts);
    }
    config
}

/// The defaults of `main_dino.py` on 8 GPUs of 64 images each.
fn as_main_dino(config: &mut TrainConfig, facts: &DataFacts) {
    reference_length(config, facts, 512);
    config.optimizer.learning_rate = 5e-4;
    config.optimizer.learning_rate_scaling = LearningRateScaling::Linear256;
    config.teacher.final_temperature = config.teacher.temperature;
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
pub(super) fn ibot(facts: &DataFacts) -> TrainConfig {
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
/// images, as 65,536 are of ImageNet: of fewer images most negatives would be the query itself, some steps before. The projection has
/// no batch norm: by what all points of a batch then have in common a query would know its key among older ones. Of colour
/// images of one thing before a plain ground, of up to 128 pixels, crops show nearly all. Images of more than 128 pixels are blurred as in
/// MoCo v3 (facebookresearch/moco-v3 `main_moco.py`): the first crop always, the second one time in ten.
pub(super) fn moco(facts: &DataFacts) -> TrainConfig {
    let mut config = small(facts);
    config.backbone.layer_scale = 0.;
    config.loss.dino_weight = 0.;
    config.loss.info_nce_weight = 1.;
    config.loss.info_nce.hidden = config.loss.head.hidden;
    config.loss.info_nce.queue = (facts.images as usize / 16).clamp(1024, config.loss.info_nce.queue);
    mild_crops(&mut config, facts);
    if facts.drawn() {
        tight_crops(&mut config);
    }
    config.crops.blur.convention = BlurConvention::AsDeclared;
    config.crops.local.count = 0;
    config.teacher.momentum = 0.98;
    config.optimizer.learning_rate = if facts.side <= SMALL_SIDE { 4e-3 } else { 2e-3 };
    config.optimizer.clip_norm = 1.;
    config.optimizer.final_weight_decay = 0.04;
    config.optimizer.freeze_last_layer_steps = 0;
    config.batch_warmup_start = (config.batch_size / 4).max(1);
    config.batch_warmup_steps = config.steps / 20;
    config
}

/// MoCo v3 (Chen, Xie and He 2021, facebookresearch/moco-v3 `main_moco.py`): crops in both directions, the other images of the
/// batch as negatives, and a predictor behind the student's projection.
///
/// Images of up to 128 pixels get [`moco`]'s sizes and crops. Larger ones get the command that the README gives for ViT-S/16: batches of
/// 1,024, 300 passes of which 40 warm up, crops of 0.08 to 1 of the image, temperature 0.2, momentum from 0.99 to 1 and a patch
/// projection that stays as it was drawn. What differs from it:
///
/// - its projection has three layers and norms with gain and offset in the first two, this two without;
/// - its position table is fixed sines, this a trained one;
/// - its loss is multiplied by twice the temperature, which AdamW makes no difference of.
pub(super) fn mocov3(facts: &DataFacts) -> TrainConfig {
    let mut config = moco(facts);
    let nce = &mut config.loss.info_nce;
    nce.queue = 0;
    nce.batch_norm = true;
    nce.symmetric = true;
    nce.predictor = true;
    nce.temperature = 0.2;
    nce.final_temperature = 0.2;
    config.teacher.momentum = 0.99;
    config.batch_warmup_start = config.batch_size;
    config.batch_warmup_steps = 0;
    if facts.side > SMALL_SIDE {
        as_moco_v3_readme(&mut config, facts);
    }
    config
}

/// The command of MoCo v3's README for ViT-S/16.
fn as_moco_v3_readme(config: &mut TrainConfig, facts: &DataFacts) {
    const EPOCHS: u64 = 300;
    let steps = (facts.images * EPOCHS / 1024).max(1000);
    config.batch_size = 1024;
    config.batch_warmup_start = 1024;
    config.steps = steps;
    config.optimizer.learning_rate = 1.5e-4;
    config.optimizer.learning_rate_scaling = LearningRateScaling::Linear256;
    config.optimizer.final_learning_rate = 0.;
    config.optimizer.warmup_steps = 40 * steps / EPOCHS;
    config.optimizer.weight_decay = 0.1;
    config.optimizer.final_weight_decay = 0.1;
    config.optimizer.clip_norm = 0.;
    config.optimizer.patch_embed_multiplier = 0.;
    config.loss.info_nce.hidden = 4096;
    config.loss.info_nce.output = 256;
    config.crops.global.scale = [0.08, 1.];
    config.crops.local.count = 0;
}

/// What is published of ViT-L/14 from scratch (facebookresearch/dinov2 `configs/train/vitl14.yaml`; paper, table 16).
pub(super) fn vit_large_14() -> BackboneConfig {
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
        activation: GeluKind::Gelu,
        layer_norm_eps: 1e-6,
        pre_norm: false,
        rope: None,
        stem: Vec::new(),
        initial_weights: InitialWeights::Dinov2,
    }
}

/// ViT-g/14 (`configs/train/vitg14.yaml`).
pub(super) fn vit_giant2_14() -> BackboneConfig {
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
pub(super) fn published(backbone: BackboneConfig, images_a_gpu: usize) -> TrainConfig {
    let facts = DataFacts {
        images: 1,
        side: u32::MAX,
        grey: false,
        framed: false,
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
pub(super) fn vit_large_16_short() -> TrainConfig {
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
