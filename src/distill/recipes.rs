//! Recipes of distillation: `train`'s recipe for the images at hand, with a frozen teacher's terms and a student of a
//! quarter of its size.

use macula_models::vit::{FeedForwardKind, VitConfig};

use crate::train::config::{BackboneConfig, Centering, DistillConfig, TeacherOffer, Term, TrainConfig};
use crate::train::distillation::TeacherFacts;
use crate::train::recipes::{self, DataFacts};
use crate::{Error, Result};

/// The names, for messages and `--help`.
pub const NAMES: [&str; 3] = [DINOV2, FEATURES, LOGITS];
const DINOV2: &str = "distill-dinov2";
const FEATURES: &str = "distill-features";
const LOGITS: &str = "distill-logits";

/// Blocks of a student at most, unless they are set.
const STUDENT_DEPTH: usize = 12;

/// The recipe that `macula distill` takes when none is named: the paper's where the teacher has heads, else the first that
/// the teacher can serve.
pub fn default_for(offer: &TeacherOffer) -> &'static str {
    if offer.dino_prototypes > 0 {
        DINOV2
    } else if offer.cls > 0 || offer.patch_mean > 0 {
        FEATURES
    } else {
        LOGITS
    }
}

/// The recipe `name` for images like `facts` from `source`, and the teacher that `distill` names and `teacher` describes.
///
/// # Errors
/// An unknown name, a teacher that lacks what the recipe compares with.
pub fn recipe(
    name: &str,
    source: &str,
    facts: &DataFacts,
    distill: &DistillConfig,
    teacher: &TeacherFacts,
) -> Result<TrainConfig> {
    if !NAMES.contains(&name) {
        let reason = format!("expected {} or a .toml file, found `{name}`", NAMES.join(", "));
        return Err(Error::setting("recipe", reason));
    }
    let offer = teacher.offer;
    let lacks = |what: &str| {
        let reason = format!(
            "{name} needs a teacher with {what}, {} has {offer}; {} takes it",
            distill.teacher,
            default_for(&offer)
        );
        Error::setting("recipe", reason)
    };
    let mut config = recipes::recipe("dinov2-small", source, facts)?;
    config.recipe = name.to_owned();
    fit_to(teacher, &mut config);
    let mut distill = DistillConfig {
        offer,
        teacher_sha256: teacher.sha256.clone(),
        ..distill.clone()
    };
    match name {
        DINOV2 if offer.dino_prototypes == 0 => return Err(lacks("a DINO head")),
        DINOV2 => dinov2(&mut config, &offer),
        FEATURES => {
            alone(&mut config);
            let terms = [Term::Cls, Term::PatchMean, Term::Patch, Term::Relation];
            let served: Vec<Term> = terms
                .into_iter()
                .filter(|term| term.is_served_by(&offer))
                .collect();
            if served.is_empty() {
                return Err(lacks("features"));
            }
            for term in served {
                *distill.weight_mut(term) = 1.;
            }
        }
        _ if !Term::Logits.is_served_by(&offer) => return Err(lacks("a classifier or prototypes")),
        _ => {
            alone(&mut config);
            distill.logits_weight = 1.;
            distill.temperature = if distill.logits_are_prototypes() { 0.1 } else { 4. };
        }
    }
    config.distill = Some(distill);
    Ok(config)
}

/// The student's size, its patches, crops and heads, as far as the teacher decides them.
fn fit_to(teacher: &TeacherFacts, config: &mut TrainConfig) {
    if let Some(vit) = &teacher.vit {
        config.backbone = student(vit, &config.backbone);
        match &teacher.crops {
            Some(crops) => {
                let (global, local) = (config.crops.global.count, config.crops.local.count);
                config.crops = crops.clone();
                (config.crops.global.count, config.crops.local.count) = (global, local);
                config.backbone.patch_size = vit.patch_size;
            }
            None if config.crops.global.size.is_multiple_of(vit.patch_size as u32) => {
                let patch = vit.patch_size as u32;
                let patches = (f64::from(config.crops.local.size) / f64::from(patch))
                    .round()
                    .max(1.);
                config.crops.local.size = patches as u32 * patch;
                config.backbone.patch_size = vit.patch_size;
            }
            None => {}
        }
    }
    if let Some((head, ibot_head)) = &teacher.heads {
        config.loss.head = head.clone();
        config.loss.ibot_head = ibot_head.clone();
    }
    config.backbone.drop_path_rate = 0.;
    config.backbone.patch_drop_rate = 0.;
    config.loss.pixel_weight = 0.;
    config.loss.hog_weight = 0.;
    config.loss.words.weight = 0.;
}

/// A quarter of the teacher's weights: half its width, at most twelve blocks. ViT-g gives ViT-B, ViT-B gives ViT-S, ViT-S
/// gives ViT-Ti.
fn student(teacher: &VitConfig, recipe: &BackboneConfig) -> BackboneConfig {
    let width = (teacher.embed_dim / 2).next_multiple_of(32).max(32);
    let head = if width.is_multiple_of(64) { 64 } else { 32 };
    let usual = teacher.feed_forward != FeedForwardKind::Mlp || teacher.ffn_hidden == 4 * teacher.embed_dim;
    BackboneConfig {
        embed_dim: width,
        depth: teacher.depth.min(STUDENT_DEPTH),
        num_heads: width / head,
        num_registers: 0,
        stem: teacher.stem.clone(),
        feed_forward: FeedForwardKind::Mlp,
        ffn_hidden: if usual {
            0
        } else {
            teacher.ffn_hidden * width / teacher.embed_dim
        },
        ..recipe.clone()
    }
}

/// Oquab et al. 2023, section 5: the terms of pretraining with the teacher's frozen heads, nothing hidden from the student.
fn dinov2(config: &mut TrainConfig, offer: &TeacherOffer) {
    config.loss.dino_weight = 1.;
    config.loss.ibot_weight = if offer.ibot_prototypes > 0 { 1. } else { 0. };
    config.loss.koleo_weight = 0.1;
    config.teacher.centering = Centering::SinkhornKnopp;
}

/// Student and teacher see the same one crop, which is all that a target that does not depend on other crops needs (Beyer
/// et al. 2022).
fn alone(config: &mut TrainConfig) {
    config.loss.dino_weight = 0.;
    config.loss.ibot_weight = 0.;
    config.loss.koleo_weight = 0.;
    config.crops.global.count = 1;
    config.crops.local.count = 0;
    config.optimizer.freeze_last_layer_steps = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::config::HeadConfig;
    use crate::train::distillation::TeacherSize;

    fn head(prototypes: usize) -> HeadConfig {
        HeadConfig {
            hidden: 64,
            bottleneck: 16,
            prototypes,
            train_gain: false,
        }
    }

    fn teacher(arch: &str) -> TeacherFacts {
        let vit = VitConfig::named(arch, 518).unwrap();
        TeacherFacts {
            offer: TeacherOffer {
                cls: vit.embed_dim,
                patch: vit.embed_dim,
                patch_mean: vit.embed_dim,
                dino_prototypes: 100,
                ibot_prototypes: 60,
                ..TeacherOffer::default()
            },
            sha256: "00".to_owned(),
            normalisation: ([0.; 3], [1.; 3]),
            size: TeacherSize::MultipleOf(vit.patch_size),
            vit: Some(vit),
            heads: Some((head(100), Some(head(60)))),
            crops: None,
            engine: String::new(),
        }
    }

    const LARGE: DataFacts = DataFacts {
        images: 1_281_167,
        side: 375,
        grey: false,
        framed: false,
    };
    const SMALL: DataFacts = DataFacts {
        images: 60_000,
        side: 28,
        grey: true,
        framed: true,
    };

    fn recipe_of(name: &str, facts: &DataFacts, teacher: &TeacherFacts) -> Result<TrainConfig> {
        recipe(name, "images", facts, &DistillConfig::new("teacher"), teacher)
    }

    #[test]
    fn every_recipe_is_valid_and_survives_its_file() {
        for name in NAMES {
            for facts in [LARGE, SMALL] {
                let config = recipe_of(name, &facts, &teacher("vit-base/14")).unwrap();
                config
                    .validate()
                    .unwrap_or_else(|e| panic!("{name}, {facts:?}: {e}"));
                let text = toml::to_string(&config).unwrap();
                assert_eq!(toml::from_str::<TrainConfig>(&text).unwrap(), config, "{name}");
            }
        }
    }

    #[test]
    fn a_student_is_the_next_smaller_architecture_with_the_teachers_patches_and_prototypes() {
        for (arch, width, depth, heads) in [
            ("vit-giant2/14", 768, 12, 12),
            ("vit-base/14", 384, 12, 6),
            ("vit-small/14", 192, 12, 3),
        ] {
            let config = recipe_of(DINOV2, &LARGE, &teacher(arch)).unwrap();
            let backbone = &config.backbone;
            assert_eq!(
                (backbone.embed_dim, backbone.depth, backbone.num_heads),
                (width, depth, heads),
                "{arch}"
            );
            assert_eq!((backbone.patch_size, config.crops.local.size), (14, 98));
            assert_eq!((backbone.drop_path_rate, config.loss.koleo_weight), (0., 0.1));
            let ibot = config.loss.ibot_head.as_ref().unwrap();
            assert_eq!((config.loss.head.prototypes, ibot.prototypes), (100, 60));
            assert!(!config.draws_masks() && !config.vit().unwrap().mask_token);
        }
    }

    #[test]
    fn a_student_has_the_proportions_of_its_teachers_feed_forward() {
        let mut wide = teacher("vit-small/14");
        for (hidden, expected) in [(1536, 768), (768, 384)] {
            wide.vit.as_mut().unwrap().ffn_hidden = hidden;
            let config = recipe_of(DINOV2, &LARGE, &wide).unwrap();
            assert_eq!(config.vit().unwrap().ffn_hidden, expected);
        }
    }

    #[test]
    fn the_terms_follow_from_what_the_teacher_offers() {
        let mut features = teacher("vit-small/14");
        features.vit = None;
        features.heads = None;
        features.offer = TeacherOffer {
            cls: 512,
            ..TeacherOffer::default()
        };
        let config = recipe_of(FEATURES, &SMALL, &features).unwrap();
        let distill = config.distill.as_ref().unwrap();
        let on: Vec<Term> = Term::ALL.into_iter().filter(|term| distill.has(*term)).collect();
        assert_eq!(on, [Term::Cls, Term::Relation]);
        assert_eq!((config.crops.global.count, config.crops.local.count), (1, 0));
        assert_eq!(default_for(&features.offer), FEATURES);

        let refused = |name: &str, offer: TeacherOffer| {
            let facts = TeacherFacts {
                offer,
                ..features.clone()
            };
            recipe_of(name, &SMALL, &facts).unwrap_err().to_string()
        };
        let text = refused(DINOV2, features.offer);
        assert!(
            text.contains("a DINO head") && text.contains("has cls 512; distill-features takes it"),
            "{text}"
        );
        let scores = TeacherOffer {
            classes: 10,
            ..TeacherOffer::default()
        };
        let text = refused(FEATURES, scores);
        assert!(text.contains("has 10 classes; distill-logits takes it"), "{text}");
        assert!(refused(LOGITS, features.offer).contains("a classifier or prototypes"));
        assert!(
            refused("dino", scores).contains("expected distill-dinov2, distill-features, distill-logits")
        );
    }

    #[test]
    fn logits_are_class_scores_where_there_are_any() {
        let mut facts = teacher("vit-small/14");
        let config = recipe_of(LOGITS, &SMALL, &facts).unwrap();
        let distill = config.distill.unwrap();
        assert!(distill.logits_are_prototypes() && distill.temperature == 0.1);
        facts.offer.classes = 10;
        let distill = recipe_of(LOGITS, &SMALL, &facts).unwrap().distill.unwrap();
        assert_eq!((distill.classifier(), distill.temperature), (10, 4.));
    }
}
