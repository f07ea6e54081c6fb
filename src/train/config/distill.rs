//! The settings of a distillation: its teacher, what is asked of it, and the terms that compare the student with it. The
//! terms on prototypes (DINO, iBOT, KoLeo) are the trainer's own and have their weights in `loss`.

use macula_models::vit::GeluKind;
use serde::{Deserialize, Serialize};

use crate::train::losses::FeatureLoss;
use crate::{Error, Result};

/// The section `distill` of a run's settings. Without it a run is its own teacher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillConfig {
    /// The teacher: a run folder, a checkpoint of any family, or an ONNX file.
    pub teacher: String,
    /// SHA-256 of the teacher's weights, found when the run begins; a resumed run must find the same.
    pub teacher_sha256: String,
    /// Side in pixels at which the teacher sees the global crops; 0 for that of the crops, brought up to the next one that
    /// the teacher can take. Default 0.
    pub teacher_size: u32,
    /// Attention heads of a teacher whose file does not say; otherwise heads of width 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_heads: Option<usize>,
    /// What the teacher is, where its file does not say: an architecture, or a released network by name, as
    /// `openclip:ViT-B-32/laion2b`, which tells its activation and its pixels too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_arch: Option<String>,
    /// Its GELU, where neither its file nor a configuration beside it nor its name says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_activation: Option<GeluKind>,
    /// Means that the teacher's pixels lack, where its file does not say and they are not ImageNet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_mean: Option<[f32; 3]>,
    /// Standard deviations of the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_std: Option<[f32; 3]>,
    /// What the output of an ONNX file without outputs `cls`, `patch` or `patch_mean` is. Default `features`.
    pub onnx_output: OnnxOutput,
    /// What the teacher offers, found when the run begins: it decides the sizes of the student's heads.
    pub offer: TeacherOffer,
    /// Which patches the iBOT term compares. Default `all`.
    pub ibot_tokens: IbotTokens,
    /// How projected features are compared. Default `cosine`.
    pub feature_loss: FeatureLoss,
    /// Weight of the distance to the teacher's class token. This and the weights that follow are 1 where the recipe has the
    /// term and the teacher offers it, and 0 elsewhere, unless they are set.
    pub cls_weight: f64,
    /// Weight of the distance to the teacher's mean patch token.
    pub patch_mean_weight: f64,
    /// Weight of the distance to the teacher's patch tokens, place by place.
    pub patch_weight: f64,
    /// Weight of the divergence of similarities to other images.
    pub relation_weight: f64,
    /// Weight of the divergence from the teacher's class scores, or from its prototypes where it has no classifier.
    pub logits_weight: f64,
    /// Images that similarities are compared to, the step's own among them. Default 4096.
    pub relation_queue: usize,
    /// Temperature of their softmax, of both networks. Default 0.1.
    pub relation_temperature: f64,
    /// Temperature of both softmaxes of the logits term. The recipe's is 4 for class scores and 0.1 for prototypes, which
    /// are cosines.
    pub temperature: f64,
    /// Weight of the cross-entropy with the source's labels. Default 0.
    pub label_weight: f64,
    /// Classes of those labels, found when the run begins.
    pub label_classes: usize,
    /// Passes over the source until crops come again, so that the teacher need see them once only; 0 for new crops in every
    /// pass. The teacher then sees one image at a time, so that no image's outputs depend on others. Default 0.
    pub cache_epochs: u64,
    /// Folder for the teacher's outputs, which may be shared by runs with the same teacher, crops and seed; needs
    /// `cache_epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Largest size of those outputs in GB (1e9 bytes); a run that would need more does not start. Default 10.
    pub cache_gb: f64,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self {
            teacher: String::new(),
            teacher_sha256: String::new(),
            teacher_size: 0,
            teacher_heads: None,
            teacher_arch: None,
            teacher_activation: None,
            teacher_mean: None,
            teacher_std: None,
            onnx_output: OnnxOutput::Features,
            offer: TeacherOffer::default(),
            ibot_tokens: IbotTokens::All,
            feature_loss: FeatureLoss::Cosine,
            cls_weight: 0.,
            patch_mean_weight: 0.,
            patch_weight: 0.,
            relation_weight: 0.,
            logits_weight: 0.,
            relation_queue: 4096,
            relation_temperature: 0.1,
            temperature: 4.,
            label_weight: 0.,
            label_classes: 0,
            cache_epochs: 0,
            cache: None,
            cache_gb: 10.,
        }
    }
}

/// What an ONNX output without a telling name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnnxOutput {
    /// A feature vector an image.
    Features,
    /// Scores of classes.
    Logits,
}

/// Which patch tokens the iBOT term compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IbotTokens {
    /// Every one.
    All,
    /// Those that pretraining would mask; the student sees all the same.
    Subset,
}

/// What a teacher can give, by width; 0 for what it cannot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherOffer {
    /// Width of its class token, or of the one feature vector of an ONNX file.
    pub cls: usize,
    /// Width of its patch tokens.
    pub patch: usize,
    /// Width of its mean patch token.
    pub patch_mean: usize,
    /// Classes of its classifier.
    pub classes: usize,
    /// Prototypes of its DINO head.
    pub dino_prototypes: usize,
    /// Prototypes of the head that reads its patches.
    pub ibot_prototypes: usize,
    /// Whether one head reads class tokens and patches.
    pub shared_head: bool,
}

impl std::fmt::Display for TeacherOffer {
    /// `cls 384, patch 384, 10 classes`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            ("cls ", self.cls, ""),
            ("patch ", self.patch, ""),
            ("patch_mean ", self.patch_mean, ""),
            ("", self.classes, " classes"),
            ("", self.dino_prototypes, " DINO prototypes"),
            ("", self.ibot_prototypes, " iBOT prototypes"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, width, _)| *width > 0)
            .map(|(before, width, after)| format!("{before}{width}{after}"))
            .collect();
        f.write_str(&parts.join(", "))
    }
}

/// A term of this section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Distance to the class token.
    Cls,
    /// Distance to the mean patch token.
    PatchMean,
    /// Distance to the patch tokens.
    Patch,
    /// Divergence of similarities.
    Relation,
    /// Divergence of logits.
    Logits,
}

impl Term {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Cls,
        Self::PatchMean,
        Self::Patch,
        Self::Relation,
        Self::Logits,
    ];

    /// The field of its weight.
    pub fn field(self) -> &'static str {
        match self {
            Self::Cls => "distill.cls_weight",
            Self::PatchMean => "distill.patch_mean_weight",
            Self::Patch => "distill.patch_weight",
            Self::Relation => "distill.relation_weight",
            Self::Logits => "distill.logits_weight",
        }
    }

    /// Whether a teacher that offers this can serve it.
    pub fn is_served_by(self, offer: &TeacherOffer) -> bool {
        match self {
            Self::Cls => offer.cls > 0,
            Self::PatchMean => offer.patch_mean > 0,
            Self::Patch => offer.patch > 0,
            Self::Relation => offer.cls > 0 || offer.patch_mean > 0,
            Self::Logits => offer.classes > 0 || offer.dino_prototypes > 0,
        }
    }
}

impl DistillConfig {
    /// The settings for `teacher`, all others at their defaults.
    pub fn new(teacher: &str) -> Self {
        Self {
            teacher: teacher.to_owned(),
            ..Self::default()
        }
    }

    /// The weight of `term`; 0 where it has none.
    pub fn weight(&self, term: Term) -> f64 {
        match term {
            Term::Cls => self.cls_weight,
            Term::PatchMean => self.patch_mean_weight,
            Term::Patch => self.patch_weight,
            Term::Relation => self.relation_weight,
            Term::Logits => self.logits_weight,
        }
    }

    /// The place of the weight of `term`.
    pub fn weight_mut(&mut self, term: Term) -> &mut f64 {
        match term {
            Term::Cls => &mut self.cls_weight,
            Term::PatchMean => &mut self.patch_mean_weight,
            Term::Patch => &mut self.patch_weight,
            Term::Relation => &mut self.relation_weight,
            Term::Logits => &mut self.logits_weight,
        }
    }

    /// Whether `term` is on.
    pub fn has(&self, term: Term) -> bool {
        self.weight(term) > 0.
    }

    /// Whether the cross-entropy with labels is on.
    pub fn has_labels(&self) -> bool {
        self.label_weight > 0.
    }

    /// Whether any term of this section is on.
    pub fn has_terms(&self) -> bool {
        self.has_labels() || Term::ALL.into_iter().any(|term| self.has(term))
    }

    /// Whether the logits term compares prototypes rather than class scores.
    pub fn logits_are_prototypes(&self) -> bool {
        self.has(Term::Logits) && self.offer.classes == 0
    }

    /// Outputs of the student's classifier; 0 for none. One classifier serves the teacher's classes and the labels'.
    pub fn classifier(&self) -> usize {
        if self.has(Term::Logits) && !self.logits_are_prototypes() {
            return self.offer.classes;
        }
        match self.has_labels() {
            true => self.label_classes,
            false => 0,
        }
    }

    /// Checks the ranges of all numbers.
    ///
    /// # Errors
    /// The first field out of range, named as in the file.
    pub fn validate(&self) -> Result<()> {
        let number = |field: &str, value: f64, min: f64| {
            if value.is_finite() && value >= min {
                return Ok(());
            }
            let reason = format!("expected a finite number of at least {min}, found {value}");
            Err(Error::input(field, reason))
        };
        for term in Term::ALL {
            number(term.field(), self.weight(term), 0.)?;
        }
        number("distill.label_weight", self.label_weight, 0.)?;
        number("distill.relation_temperature", self.relation_temperature, 1e-6)?;
        number("distill.temperature", self.temperature, 1e-6)?;
        number("distill.cache_gb", self.cache_gb, 0.)?;
        if self.relation_queue < 2 {
            let reason = format!("expected at least 2, found {}", self.relation_queue);
            return Err(Error::input("distill.relation_queue", reason));
        }
        if self.cache.is_some() && self.cache_epochs == 0 {
            let reason = "expected at least 1 where there is a cache: crops have to come again, found 0";
            return Err(Error::input("distill.cache_epochs", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_their_file() {
        let mut config = DistillConfig::new("teacher.onnx");
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<DistillConfig>(&text).unwrap(), config);
        config.cls_weight = 0.5;
        config.cache = Some("cache".to_owned());
        config.cache_epochs = 2;
        config.offer.cls = 384;
        config.offer.classes = 10;
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<DistillConfig>(&text).unwrap(), config);
        assert_eq!(config.offer.to_string(), "cls 384, 10 classes");
        config.validate().unwrap();
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let refused = |change: &dyn Fn(&mut DistillConfig)| {
            let mut config = DistillConfig::new("teacher.onnx");
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        for (text, field) in [
            (
                refused(&|c| c.patch_weight = -1.),
                "distill.patch_weight: expected",
            ),
            (refused(&|c| c.temperature = 0.), "distill.temperature: expected"),
            (
                refused(&|c| c.relation_queue = 1),
                "distill.relation_queue: expected",
            ),
            (
                refused(&|c| c.cache = Some("x".to_owned())),
                "distill.cache_epochs: expected",
            ),
        ] {
            assert!(text.starts_with(field), "{text}");
        }
    }

    #[test]
    fn one_classifier_serves_scores_and_labels() {
        let mut config = DistillConfig::new("t");
        config.offer.classes = 12;
        config.label_classes = 10;
        assert_eq!(config.classifier(), 0);
        config.label_weight = 1.;
        assert_eq!(config.classifier(), 10);
        config.logits_weight = 1.;
        assert_eq!(config.classifier(), 12);
        config.offer.classes = 0;
        assert_eq!(config.classifier(), 10);
    }
}
