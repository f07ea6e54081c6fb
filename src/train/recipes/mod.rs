//! Recipes by name ([`reference`]: those of published methods), and how a user's file and `--set` change them ([`Overrides`]). A
//! recipe is a method with its schedules; the recipes for any data also take the geometry (size of crops, patch and network) from
//! the images they are given.

mod overrides;
mod reference;

use macula_models::vit::{FeedForwardKind, GeluKind, InitialWeights, StemLayer};

pub use self::overrides::Overrides;
use self::reference::{dino, ibot, moco, mocov3, published, vit_giant2_14, vit_large_14, vit_large_16_short};
use super::config::{
    BackboneConfig, Centering, CheckpointConfig, DataConfig, HeadConfig, InfoNceConfig, LearningRateScaling,
    LossConfig, MonitorConfig, OptimizerConfig, OptimizerKind, PatchAnchorConfig, RanksConfig, TeacherConfig,
    TrainConfig, WordsConfig,
};
use crate::data::augment::MultiCropConfig;
use crate::data::augment::multi_crop_config::ViewConfig;
use crate::data::loader::LoaderConfig;
use crate::data::mask::MaskConfig;
use crate::device::Dtype;
use crate::{Error, Result};

/// The names, for messages and `--help`.
pub const NAMES: [&str; 8] = [
    "dinov2-small",
    "dino",
    "ibot",
    "moco",
    "mocov3",
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

/// The largest median side of images that are no more than a thing: a garment, a letter, a cell.
const TINY_SIDE: u32 = 32;

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
    /// Whether most images show one thing before a plain ground (scans, letters, drawings, products), told by their corners.
    pub framed: bool,
}

impl DataFacts {
    /// Whether they are small drawings: one thing in colours before a plain ground.
    fn drawn(&self) -> bool {
        self.framed && !self.grey && self.side <= SMALL_SIDE
    }
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
    /// the detail of each, and so does where a narrow network starts from (measured: "Initial weights" in the same file).
    /// ViT-S/16 on 224 pixels, as DINO has it, from 129 pixels up.
    fn for_data(facts: &DataFacts) -> Self {
        // Of one thing that fills the frame 16 patches say what it is, but a token must hold its colours and its edges: wide and
        // shallow (measured: `benchmarks/history/NOTES.md`, "Drawings of two vendors"). Places within photographs need more patches.
        let (patch_size, embed_dim, depth, ffn_hidden) = match facts.side {
            0..=28 => (7, 192, 4, 0),
            49..=80 if facts.framed => (16, 384, 2, 768),
            29..=80 => (8, 192, 6, 0),
            81..=SMALL_SIDE => (16, 192, 6, 0),
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
                ffn_hidden,
                num_heads: embed_dim / 64,
                patch_size: patch_size as usize,
                initial_weights: InitialWeights::Xavier,
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
        activation: GeluKind::Gelu,
        layer_norm_eps: 1e-6,
        pre_norm: false,
        rope: None,
        stem: Vec::new(),
        initial_weights: InitialWeights::Dinov2,
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
        "mocov3" => mocov3(facts),
        "dinov2" => published(vit_large_14(), 32),
        "dinov2-vitg14" => published(vit_giant2_14(), 12),
        "dinov2-vitl16-short" => vit_large_16_short(),
        _ => {
            let reason = format!("expected {} or a .toml file, found `{name}`", NAMES.join(", "));
            return Err(Error::setting("recipe", reason));
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
        compute: Dtype::F32,
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
            words: WordsConfig::default(),
            student_temperature: 0.1,
            head,
            ibot_head: None,
            info_nce: InfoNceConfig::default(),
            patch_anchor: PatchAnchorConfig::default(),
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
            freeze_backbone_steps: 0,
            lora_rank: 0,
            lora_alpha: 16.,
            beta1: 0.9,
            beta2: 0.999,
            momentum: 0.9,
        },
        crops,
        masks: MaskConfig::default(),
        checkpoints: CheckpointConfig::default(),
        monitor: MonitorConfig::default(),
        ranks: RanksConfig::default(),
        distill: None,
    }
}

/// Ours: DINOv2's terms for small data and small images. What differs from the paper's settings serves a start that is quick
/// where theirs takes epochs: no LayerScale, which hides the blocks of a shallow network at first; a teacher that follows
/// faster; targets sharp from the beginning, since cosines with random prototypes differ little and 0.07 makes them nearly
/// uniform (96 % of ln K, measured); milder crops, no solarisation, a stronger KoLeo. Images of up to 32 pixels have no local
/// crops: of so few pixels they tell little, and without them the same time shows the network 1.6 times the images. The class
/// token also tells what it saw, of images of up to 32 pixels the oriented gradients and the visual words, of drawings the gradients and the
/// pixels, of larger photographs the pixels: agreement of crops alone loses what they do not share, and features stay below raw pixels. Where gradients
/// are told the student sees every patch, and there is no iBOT term (measured on images of 28 and 64 pixels:
/// `benchmarks/history/NOTES.md`).
fn dinov2_small(facts: &DataFacts) -> TrainConfig {
    let mut config = small(facts);
    config.backbone.layer_scale = 0.;
    quick_prototypes(&mut config);
    config.optimizer.warmup_steps = config.steps / 20;
    config.optimizer.final_weight_decay = 0.1;
    mild_crops(&mut config, facts);
    config.loss.ibot_weight = 1.;
    config.loss.pixel_weight = 3.;
    if facts.side <= TINY_SIDE || (facts.framed && facts.side <= SMALL_SIDE) {
        config.loss.ibot_weight = 0.;
        config.loss.pixel_weight = if facts.drawn() { 10. } else { 0. };
        config.loss.hog_weight = 10.;
    }
    if facts.side <= TINY_SIDE {
        reads_neighbours(&mut config);
    }
    config
}

/// A wide and shallow network that sees what neighbouring pixels have to do with each other before it cuts an image into patches, and tells
/// it: the visual words as well as the gradients (measured: `benchmarks/history/NOTES.md`, "Visual words").
fn reads_neighbours(config: &mut TrainConfig) {
    config.backbone.embed_dim = 384;
    config.backbone.num_heads = 6;
    config.backbone.depth = 2;
    config.backbone.ffn_hidden = 768;
    config.backbone.stem = vec![StemLayer {
        channels: 32,
        stride: 1,
    }];
    config.loss.hog_weight = 5.;
    config.loss.words.weight = 5.;
}

/// Targets that small batches of small images learn from at once: spread evenly over the prototypes and sharp from the beginning, from a
/// teacher that follows soon, at a high rate.
fn quick_prototypes(config: &mut TrainConfig) {
    config.loss.koleo_weight = 0.2;
    config.teacher.centering = Centering::SinkhornKnopp;
    config.teacher.momentum = 0.98;
    config.teacher.temperature = 0.03;
    config.teacher.final_temperature = 0.04;
    config.optimizer.learning_rate = 4e-3;
}

/// What is left of a small image should still say what it is. Where one thing fills the frame (garments, letters, scans, drawings),
/// crops keep its proportions and which way it faces, which tell one from another.
fn mild_crops(config: &mut TrainConfig, facts: &DataFacts) {
    if facts.side > SMALL_SIDE {
        return;
    }
    config.crops.local.scale = [0.2, 0.5];
    config.crops.local.count = if facts.side <= TINY_SIDE || facts.framed {
        0
    } else {
        4
    };
    config.crops.jitter.probability = 0.5;
    config.crops.solarize.probability = 0.;
    if facts.framed {
        config.crops.flip = 0.;
        config.crops.global.scale = [0.5, 1.0];
    }
    if facts.framed && facts.grey && facts.side <= TINY_SIDE {
        tight_crops(config);
    }
    if facts.drawn() {
        crops_of_drawings(config);
    }
}

/// Nearly all of an image in nearly its own proportions.
fn tight_crops(config: &mut TrainConfig) {
    config.crops.global.scale = [0.8, 1.0];
    config.crops.aspect = [0.9, 1.1];
}

/// What two drawings of a thing differ in, and what tells it from others: parts lie and lean differently, while colours are nearly the same
/// (measured: `benchmarks/history/NOTES.md`, "Warped drawings").
fn crops_of_drawings(config: &mut TrainConfig) {
    config.crops.warp = 0.1;
    config.crops.grey = 0.;
    config.crops.jitter.saturation = 0.1;
    config.crops.jitter.hue = 0.02;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL_GREY: DataFacts = DataFacts {
        images: 60_000,
        side: 28,
        grey: true,
        framed: true,
    };

    fn recipe_of(name: &str) -> TrainConfig {
        recipe(name, "images", &SMALL_GREY).unwrap()
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
                    framed: false,
                },
                DataFacts {
                    images: 1_281_167,
                    side: 375,
                    grey: false,
                    framed: false,
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
            framed: false,
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
        for name in ["moco", "mocov3"] {
            assert_eq!(blurred(&recipe(name, "images", &large).unwrap()), [1., 0.1, 0.5]);
        }
        let mocov3 = recipe("mocov3", "images", &large).unwrap();
        assert_eq!((mocov3.steps, mocov3.batch_size), (375_341, 1024));
        assert_eq!(mocov3.schedules().at(50_045).learning_rate, 6e-4);
        assert_eq!(mocov3.schedules().at(50_045).backbone_learning_rate, 6e-4);
        // Small images keep the small recipes' sizes.
        let small = recipe_of("dino");
        assert_eq!(
            (small.loss.head.prototypes, small.backbone.drop_path_rate),
            (1024, 0.)
        );
        assert_eq!((small.teacher.momentum, small.crops.flip), (0.98, 0.));
        assert_eq!(small.teacher.centering, Centering::SinkhornKnopp);
    }

    #[test]
    fn crops_leave_a_framed_thing_as_it_is() {
        let of = |side: u32, grey: bool, framed: bool| {
            let facts = DataFacts {
                images: 1000,
                side,
                grey,
                framed,
            };
            let crops = recipe("dino", "images", &facts).unwrap().crops;
            (
                crops.global.scale,
                crops.flip,
                crops.aspect == [0.9, 1.1],
                (crops.warp, crops.grey, crops.jitter.hue),
            )
        };
        let of_grey = (0., 0., 0.);
        assert_eq!(of(28, true, true), ([0.8, 1.], 0., true, of_grey));
        assert_eq!(of(28, true, false), ([0.4, 1.], 0.5, false, of_grey));
        assert_eq!(of(64, true, true), ([0.5, 1.], 0., false, of_grey));
        assert_eq!(of(64, false, true), ([0.5, 1.], 0., false, (0.1, 0., 0.02)));
        assert_eq!(of(64, false, false), ([0.4, 1.], 0.5, false, (0., 0.2, 0.1)));
    }

    #[test]
    fn momentum_contrast_shows_nearly_all_of_a_drawing() {
        let of = |side: u32, framed: bool| {
            let facts = DataFacts {
                images: 1000,
                side,
                grey: false,
                framed,
            };
            let crops = recipe("moco", "images", &facts).unwrap().crops;
            (crops.global.scale, crops.warp)
        };
        assert_eq!(of(64, true), ([0.8, 1.], 0.1));
        assert_eq!(of(64, false).1, 0.);
        assert_ne!(of(64, false).0, [0.8, 1.]);
        assert_eq!(of(224, true).1, 0.);
    }

    #[test]
    fn a_drawing_is_told_by_its_edges_and_its_colours() {
        let of = |grey: bool, framed: bool| {
            let facts = DataFacts {
                images: 1000,
                side: 64,
                grey,
                framed,
            };
            let config = recipe("dinov2-small", "images", &facts).unwrap();
            let loss = &config.loss;
            let backbone = config.vit().unwrap();
            let terms = (loss.ibot_weight, loss.pixel_weight, loss.hog_weight);
            (
                terms,
                (backbone.patch_size, backbone.embed_dim, backbone.ffn_hidden),
            )
        };
        assert_eq!(of(false, true), ((0., 10., 10.), (16, 384, 768)));
        assert_eq!(of(true, true), ((0., 0., 10.), (16, 384, 768)));
        assert_eq!(of(false, false), ((1., 3., 0.), (8, 192, 768)));
    }

    #[test]
    fn a_tiny_image_is_told_by_its_edges_and_words_of_a_network_that_convolves_first() {
        let of = |name: &str, side: u32| {
            let facts = DataFacts { side, ..SMALL_GREY };
            let config = recipe(name, "images", &facts).unwrap();
            let stem = config.backbone.stem.iter().map(|layer| layer.channels);
            let words = config.loss.words.weight;
            (stem.collect::<Vec<_>>(), words, config.loss.hog_weight)
        };
        assert_eq!(of("dinov2-small", 28), (vec![32], 5., 5.));
        assert_eq!(of("dinov2-small", 33), (vec![], 0., 10.));
        assert_eq!(of("dino", 28), (vec![], 0., 0.));
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
            framed: false,
        };
        let config = recipe("dino", "images", &colour).unwrap();
        assert_eq!((config.crops.global.size, config.backbone.patch_size), (64, 8));
        assert!(config.crops.jitter.hue > 0. && config.crops.flip > 0.);
        let large = DataFacts { side: 500, ..colour };
        let config = recipe("ibot", "images", &large).unwrap();
        assert_eq!((config.crops.global.size, config.crops.local.size), (224, 96));
    }
}
