//! Teachers that candle runs: the averaged network of a run with its heads, or a checkpoint of any family with what heads
//! its file has.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use macula_models::heads::{DinoHead, DinoHeadConfig, LinearClassifier, classifier_features};
use macula_models::vit::{Layers, VisionTransformer, VitConfig, VitOutput};
use macula_models::weights::{self, LoadOptions, PREPROCESS_KEY, Tensors};

use crate::data::mask::Grid;
use crate::data::transform::{IMAGENET_MEAN, IMAGENET_STD, of_colours};
use crate::extract::model::normalisation_of;
use crate::train::checkpoint::{Checkpoints, Saved};
use crate::train::config::{DistillConfig, HeadConfig, TeacherOffer};
use crate::train::distillation::{FrozenTeacher, TeacherFacts, TeacherFeatures, TeacherSize, Wanted};
use crate::train::network::NetworkConfig;
use crate::train::run::saved_config;
use crate::{Error, Result};

const BACKBONE: &str = "backbone.";
const DINO_HEAD: &str = "dino_head.";
const IBOT_HEAD: &str = "ibot_head.";
/// Where families keep a classifier, and where a distilled run keeps its own.
const CLASSIFIERS: [&str; 3] = ["classifier.", "head.", "distill_classifier."];

/// A vision transformer with heads.
pub struct CheckpointTeacher {
    facts: TeacherFacts,
    vit: VisionTransformer,
    dino_head: Option<DinoHead>,
    ibot_head: Option<DinoHead>,
    classifier: Option<Classifier>,
    device: Device,
}

struct Classifier {
    linear: LinearClassifier,
    classes: usize,
    reads: ClassifierInput,
}

/// What a classifier reads, derived from its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClassifierInput {
    /// The class token.
    Cls,
    /// What the network pools: the mean of patches, or by attention.
    Pooled,
    /// The class tokens of this many last blocks and the mean patch token (DINOv2 `hub/classifiers.py`).
    LastBlocks(usize),
}

/// What a file or a run gave.
struct Parts {
    vit: VitConfig,
    backbone: Tensors,
    /// Tensors of heads under their full names.
    heads: Tensors,
    sha256: String,
}

impl CheckpointTeacher {
    /// The averaged network of the run in `folder` as of its last checkpoint.
    ///
    /// # Errors
    /// A run without a checkpoint, files that cannot be read or do not fit its settings.
    pub fn of_run(folder: &Path, device: &Device) -> Result<Self> {
        let config = saved_config(folder)?;
        let Saved { state, sha256, .. } = Checkpoints::in_folder(folder).load_last()?.ok_or_else(|| {
            let reason = "expected a run with a checkpoint, found none";
            Error::input(folder.display().to_string(), reason)
        })?;
        let network = NetworkConfig::new(&config)?;
        let (mut backbone, mut heads) = (Tensors::new(), Tensors::new());
        for (name, tensor) in state.teacher {
            match name.strip_prefix(BACKBONE) {
                Some(own) => backbone.insert(own.to_owned(), tensor),
                None => heads.insert(name, tensor),
            };
        }
        let parts = Parts {
            vit: network.vit,
            backbone,
            heads,
            sha256,
        };
        let mut teacher = Self::new(&folder.display().to_string(), parts, device)?;
        let facts = &mut teacher.facts;
        let own = |field: &str, values: &[f32]| of_colours(&format!("{}: {field}", folder.display()), values);
        facts.normalisation = (
            own("crops.mean", &config.crops.mean)?,
            own("crops.std", &config.crops.std)?,
        );
        if !config.has_ibot() {
            // A shared head that never saw a patch says nothing about them.
            facts.offer.ibot_prototypes = 0;
        }
        facts.crops = Some(config.crops);
        Ok(teacher)
    }

    /// The network of the checkpoint at `path`.
    ///
    /// # Errors
    /// A file that cannot be read or is of no known family, heads that do not fit the network.
    pub fn of_file(path: &Path, config: &DistillConfig, device: &Device) -> Result<Self> {
        let options = LoadOptions {
            num_heads: config.teacher_heads,
            arch: config.teacher_arch.clone(),
            activation: config.teacher_activation,
            ..LoadOptions::default()
        };
        let checkpoint = weights::load(path, &options)?;
        let own = checkpoint.preprocess.as_deref();
        let normalisation = normalisation_of(
            path,
            own.map(|json| (PREPROCESS_KEY, json)),
            config.teacher_arch.as_deref(),
            (config.teacher_mean, config.teacher_std),
        )?;
        let parts = Parts {
            vit: checkpoint.config,
            backbone: checkpoint.backbone,
            heads: checkpoint.heads,
            sha256: checkpoint.source_sha256,
        };
        let mut teacher = Self::new(&path.display().to_string(), parts, device)?;
        teacher.facts.normalisation = normalisation;
        Ok(teacher)
    }

    fn new(file: &str, parts: Parts, device: &Device) -> Result<Self> {
        let Parts {
            vit: config,
            backbone,
            heads,
            sha256,
        } = parts;
        let vit = VisionTransformer::from_tensors(&config, &backbone, device)?;
        let width = config.embed_dim;
        let dino_head = dino_head(file, &heads, DINO_HEAD, width, device)?;
        let ibot_head = self::dino_head(file, &heads, IBOT_HEAD, width, device)?;
        let classifier = classifier(file, &heads, &config, device)?;
        let settings = |prefix| dino_head_settings(&heads, prefix, width);
        let prototypes = |head: &Option<DinoHead>| head.as_ref().map_or(0, |head| head.config().prototypes);
        let offer = TeacherOffer {
            cls: config.class_tokens() * width,
            patch: width,
            patch_mean: width,
            classes: classifier.as_ref().map_or(0, |classifier| classifier.classes),
            dino_prototypes: prototypes(&dino_head),
            ibot_prototypes: match &ibot_head {
                None => prototypes(&dino_head),
                own => prototypes(own),
            },
            shared_head: dino_head.is_some() && ibot_head.is_none(),
        };
        Ok(Self {
            facts: TeacherFacts {
                offer,
                sha256,
                normalisation: (IMAGENET_MEAN, IMAGENET_STD),
                size: TeacherSize::MultipleOf(config.patch_size),
                heads: settings(DINO_HEAD).map(|head| (head, settings(IBOT_HEAD))),
                vit: Some(config),
                crops: None,
                engine: format!("candle on {:?}", device.location()),
            },
            vit,
            dino_head,
            ibot_head,
            classifier,
            device: device.clone(),
        })
    }

    fn scores(&self, pixels: &Tensor, output: &VitOutput) -> Result<Tensor> {
        let Some(classifier) = &self.classifier else {
            return Err(self.lacks("a classifier"));
        };
        let features = match classifier.reads {
            ClassifierInput::Cls => output.cls.clone(),
            ClassifierInput::Pooled => {
                let pooled = output.embedding.clone();
                pooled.ok_or_else(|| self.lacks("a network that pools its tokens"))?
            }
            ClassifierInput::LastBlocks(count) => {
                classifier_features(&self.vit.intermediate_layers(pixels, &Layers::Last(count), true)?)?
            }
        };
        Ok(classifier.linear.forward(&features)?)
    }

    fn lacks(&self, what: &str) -> Error {
        let reason = format!("expected {what}, found {}", self.facts.offer);
        Error::input("distill.teacher", reason)
    }
}

/// The settings of the head under `prefix`, derived from the shapes of its tensors.
fn dino_head_settings(heads: &Tensors, prefix: &str, width: usize) -> Option<HeadConfig> {
    let shape = |name: &str| {
        heads
            .get(&format!("{prefix}{name}"))
            .map(|tensor| tensor.dims().to_vec())
    };
    let (first, last) = (shape("mlp.0.weight")?, shape("last_layer.weight_v")?);
    match (first.as_slice(), last.as_slice()) {
        (&[hidden, input], &[prototypes, bottleneck]) if input == width => Some(HeadConfig {
            hidden,
            bottleneck,
            prototypes,
            train_gain: false,
        }),
        _ => None,
    }
}

fn dino_head(
    file: &str,
    heads: &Tensors,
    prefix: &str,
    width: usize,
    device: &Device,
) -> Result<Option<DinoHead>> {
    let Some(settings) = dino_head_settings(heads, prefix, width) else {
        return Ok(None);
    };
    let config: DinoHeadConfig = settings.head(width);
    let mut own = Tensors::new();
    for (name, shape) in config.parameters() {
        let found = match heads.get(&format!("{prefix}{name}")) {
            Some(tensor) if tensor.dims() == shape => {
                own.insert(name, tensor.clone());
                continue;
            }
            // The released heads of DINO keep their gains at 1 and may leave them out.
            None if name.ends_with("weight_g") => {
                let ones =
                    Tensor::ones(shape, DType::F32, &Device::Cpu).map_err(macula_models::Error::from)?;
                own.insert(name, ones);
                continue;
            }
            Some(tensor) => format!("{:?}", tensor.dims()),
            None => "no such tensor".to_owned(),
        };
        let reason = format!("{prefix}{name}: expected shape {shape:?}, found {found}");
        return Err(Error::input(file, reason));
    }
    Ok(Some(DinoHead::new(&config, builder(own, device)?)?))
}

fn classifier(file: &str, heads: &Tensors, vit: &VitConfig, device: &Device) -> Result<Option<Classifier>> {
    let found = CLASSIFIERS.into_iter().find_map(|prefix| {
        let weight = heads.get(&format!("{prefix}weight"))?;
        Some((
            prefix,
            weight.clone(),
            heads.get(&format!("{prefix}bias")).cloned(),
        ))
    });
    let Some((prefix, weight, bias)) = found else {
        return Ok(None);
    };
    let wrong = || {
        let reason = format!(
            "{prefix}weight: expected [classes, n x {}] with a bias, found {:?}",
            vit.embed_dim,
            weight.dims()
        );
        Error::input(file, reason)
    };
    let &[classes, inputs] = weight.dims() else {
        return Err(wrong());
    };
    let pools = vit.embedding_width().is_some() && vit.projection.is_none();
    if !vit.class_token && !pools {
        // What reads the mean of patches behind their norm is not told from its shape.
        return Ok(None);
    }
    let reads = match inputs.checked_div(vit.embed_dim) {
        Some(1) if pools => ClassifierInput::Pooled,
        Some(1) if inputs == vit.embed_dim => ClassifierInput::Cls,
        Some(n) if n > 1 && n - 1 <= vit.depth && inputs == n * vit.embed_dim => {
            ClassifierInput::LastBlocks(n - 1)
        }
        _ => return Err(wrong()),
    };
    let bias = bias.ok_or_else(wrong)?;
    let own = Tensors::from([("weight".to_owned(), weight), ("bias".to_owned(), bias)]);
    Ok(Some(Classifier {
        linear: LinearClassifier::new(inputs, classes, builder(own, device)?)?,
        classes,
        reads,
    }))
}

/// Plain tensors: nothing of a teacher is recorded for gradients.
fn builder(tensors: Tensors, device: &Device) -> Result<VarBuilder<'static>> {
    let moved = tensors.into_iter().map(|(name, tensor)| {
        let tensor = tensor.to_device(device)?.to_dtype(DType::F32)?;
        Ok((name, tensor))
    });
    let moved: candle_core::Result<std::collections::HashMap<String, Tensor>> = moved.collect();
    Ok(VarBuilder::from_tensors(
        moved.map_err(macula_models::Error::from)?,
        DType::F32,
        device,
    ))
}

impl FrozenTeacher for CheckpointTeacher {
    fn facts(&self) -> &TeacherFacts {
        &self.facts
    }

    fn features(&mut self, pixels: &Tensor, wanted: &Wanted) -> Result<TeacherFeatures> {
        let pixels = pixels
            .to_device(&self.device)
            .map_err(macula_models::Error::from)?
            .detach();
        let (_, _, height, width) = pixels.dims4().map_err(macula_models::Error::from)?;
        let (rows, columns) = self.vit.config().grid(height, width)?;
        let output = self.vit.forward(&pixels, None)?;
        let scores = wanted.scores.then(|| self.scores(&pixels, &output)).transpose()?;
        Ok(TeacherFeatures {
            patch_mean: wanted.patch_mean.then(|| output.patch_mean()).transpose()?,
            cls: wanted.cls.then_some(output.cls),
            patch: wanted.patch.then_some((output.patch, Grid { rows, columns })),
            scores,
        })
    }

    fn cls_logits(&self, tokens: &Tensor) -> Result<Tensor> {
        let head = self.dino_head.as_ref().ok_or_else(|| self.lacks("a DINO head"))?;
        Ok(head.forward(tokens)?)
    }

    fn patch_logits(&self, tokens: &Tensor) -> Result<Tensor> {
        let head = self.ibot_head.as_ref().or(self.dino_head.as_ref());
        Ok(head.ok_or_else(|| self.lacks("an iBOT head"))?.forward(tokens)?)
    }
}
