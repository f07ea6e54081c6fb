//! A backbone with its heads as one set of named weights: what student and teacher are made of.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use macula_models::heads::{
    DinoHead, DinoHeadConfig, LinearClassifier, ProjectionHead, ProjectionHeadConfig,
};
use macula_models::vit::{InitialWeights, VisionTransformer, VitConfig, initialise_with};
use macula_models::weights::Tensors;

use super::config::{DistillConfig, Term, TrainConfig};
use super::ema::NamedVars;
use super::losses::{hog_size, reconstruction_side, words_size};
use crate::device::Dtype;
use crate::{Error, Result, rng};

/// The parts of a network, each with the prefix of its weights' names.
const BACKBONE: &str = "backbone";
const DINO_HEAD: &str = "dino_head";
const IBOT_HEAD: &str = "ibot_head";
const PROJECTION: &str = "projection";
const PREDICTOR: &str = "predictor";
const DISTILL_PROJECTION: &str = "distill_projection";
const DISTILL_CLASSIFIER: &str = "distill_classifier";
const PIXEL_DECODER: &str = "pixel_decoder";
const HOG_DECODER: &str = "hog_decoder";
const WORDS_DECODER: &str = "words_decoder";

/// The terms that compare features, with the name of their projection.
const PROJECTED: [(Term, &str); 3] = [
    (Term::Cls, "cls"),
    (Term::PatchMean, "patch_mean"),
    (Term::Patch, "patch"),
];

/// Which parts a network has, and their sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// The backbone.
    pub vit: VitConfig,
    /// How far its initial weights spread.
    pub initial_weights: InitialWeights,
    /// The head of the DINO term, and of the iBOT term unless that has its own.
    pub dino_head: Option<DinoHeadConfig>,
    /// The iBOT term's own head.
    pub ibot_head: Option<DinoHeadConfig>,
    /// The contrastive term's projection.
    pub projection: Option<ProjectionHeadConfig>,
    /// What the student's points go through before they are compared with the teacher's.
    pub predictor: Option<ProjectionHeadConfig>,
    /// What tells the pixels of a crop from its class token.
    pub pixel_decoder: Option<ProjectionHeadConfig>,
    /// What tells its histograms of oriented gradients.
    pub hog_decoder: Option<ProjectionHeadConfig>,
    /// What tells its visual words.
    pub words_decoder: Option<ProjectionHeadConfig>,
    /// Linear layers that compare the student with a frozen teacher. They read tokens of the backbone.
    pub linears: Vec<LinearPart>,
    /// What its products are computed in.
    pub compute: Dtype,
    /// Whether the blocks compute again in the backward pass.
    pub gradient_checkpointing: bool,
    /// Whether images of two sizes go through the blocks together, where that pays.
    pub sequence_packing: bool,
}

/// A linear layer beside the backbone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearPart {
    /// Prefix of its weights' names.
    prefix: String,
    /// Its place in the stream of its part's initial weights.
    number: u64,
    /// Width of its output.
    outputs: usize,
}

impl LinearPart {
    /// Those that the terms of `distill` need: a projection each for class token, mean patch token and patch tokens, and a
    /// classifier.
    fn for_distillation(distill: &DistillConfig) -> Vec<Self> {
        let widths = [distill.offer.cls, distill.offer.patch_mean, distill.offer.patch];
        let projections = (0..).zip(PROJECTED).zip(widths);
        let projections = projections.filter(|((_, (term, _)), _)| distill.has(*term)).map(
            |((number, (_, name)), outputs)| Self {
                prefix: format!("{DISTILL_PROJECTION}.{name}"),
                number,
                outputs,
            },
        );
        let classifier = Self {
            prefix: DISTILL_CLASSIFIER.to_owned(),
            number: PROJECTED.len() as u64,
            outputs: distill.classifier(),
        };
        projections
            .chain((classifier.outputs > 0).then_some(classifier))
            .collect()
    }
}

impl NetworkConfig {
    /// The parts that the terms of `config` need.
    ///
    /// # Errors
    /// A geometry that contradicts itself.
    pub fn new(config: &TrainConfig) -> Result<Self> {
        let vit = config.vit()?;
        let width = vit.embed_dim;
        let loss = &config.loss;
        let own_ibot_head = config.has_ibot() && loss.ibot_head.is_some();
        let distill = config.distill.as_ref();
        let shared = config.has_dino()
            || (config.has_ibot() && !own_ibot_head)
            || distill.is_some_and(DistillConfig::logits_are_prototypes);
        let side = config.crops.global.size as usize;
        let decoder = |hidden, output| ProjectionHeadConfig {
            input: width,
            hidden,
            output,
            batch_norm: false,
        };
        let projection = |input| ProjectionHeadConfig {
            input,
            hidden: loss.info_nce.hidden,
            output: loss.info_nce.output,
            batch_norm: loss.info_nce.batch_norm,
        };
        Ok(Self {
            dino_head: shared.then(|| loss.head.head(width)),
            ibot_head: loss
                .ibot_head
                .as_ref()
                .filter(|_| config.has_ibot())
                .map(|head| head.head(width)),
            projection: config.has_info_nce().then_some(projection(width)),
            predictor: (config.has_info_nce() && loss.info_nce.predictor)
                .then_some(projection(loss.info_nce.output)),
            pixel_decoder: config.has_pixels().then(|| {
                decoder(
                    loss.pixel_hidden,
                    vit.in_channels * reconstruction_side(side).pow(2),
                )
            }),
            hog_decoder: config.has_hog().then(|| decoder(loss.hog_hidden, hog_size(side))),
            words_decoder: config
                .has_words()
                .then(|| decoder(loss.words.hidden, words_size(&loss.words, side))),
            linears: distill.map(LinearPart::for_distillation).unwrap_or_default(),
            compute: config.compute,
            gradient_checkpointing: config.gradient_checkpointing,
            sequence_packing: config.sequence_packing,
            initial_weights: config.backbone.initial_weights,
            vit,
        })
    }

    /// The backbone without its heads.
    pub fn backbone_alone(&self) -> Self {
        Self {
            dino_head: None,
            ibot_head: None,
            projection: None,
            predictor: None,
            pixel_decoder: None,
            hog_decoder: None,
            words_decoder: None,
            linears: Vec::new(),
            ..self.clone()
        }
    }

    fn projections(&self) -> [(&'static str, &Option<ProjectionHeadConfig>); 5] {
        [
            (PROJECTION, &self.projection),
            (PREDICTOR, &self.predictor),
            (PIXEL_DECODER, &self.pixel_decoder),
            (HOG_DECODER, &self.hog_decoder),
            (WORDS_DECODER, &self.words_decoder),
        ]
    }

    /// Every weight with its shape, under its full name.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let mut parts = vec![(BACKBONE, self.vit.parameters())];
        for (part, head) in [(DINO_HEAD, &self.dino_head), (IBOT_HEAD, &self.ibot_head)] {
            parts.extend(head.as_ref().map(|head| (part, head.parameters())));
        }
        for (part, head) in self.projections() {
            parts.extend(head.as_ref().map(|head| (part, head.parameters())));
        }
        let width = self.vit.embed_dim;
        let linear = |part: &'_ LinearPart| LinearClassifier::parameters(width, part.outputs);
        parts.extend(
            self.linears
                .iter()
                .map(|part| (part.prefix.as_str(), linear(part))),
        );
        let full = |(part, list): (&str, Vec<(String, Vec<usize>)>)| {
            let part = part.to_owned();
            list.into_iter()
                .map(move |(name, shape)| (format!("{part}.{name}"), shape))
        };
        parts.into_iter().flat_map(full).collect()
    }

    /// Initial weights: each part draws from a stream of its own, so that another head leaves the backbone as it was.
    ///
    /// # Errors
    /// A geometry that contradicts itself.
    pub fn initialise(&self, seed: u64) -> Result<Tensors> {
        let stream = |part| rng::stream(seed, &format!("initialise {part}"), 0);
        let backbone = initialise_with(&self.vit, self.initial_weights, &mut stream(BACKBONE))?;
        let mut all = prefixed(BACKBONE, backbone);
        if let Some(head) = &self.dino_head {
            all.append(&mut prefixed(DINO_HEAD, head.initialise(&mut stream(DINO_HEAD))?));
        }
        if let Some(head) = &self.ibot_head {
            all.append(&mut prefixed(IBOT_HEAD, head.initialise(&mut stream(IBOT_HEAD))?));
        }
        for (part, head) in self.projections() {
            if let Some(head) = head {
                all.append(&mut prefixed(part, head.initialise(&mut stream(part))?));
            }
        }
        for part in &self.linears {
            let mut rng = rng::stream(seed, "initialise distill", part.number);
            let own = LinearClassifier::initialise(self.vit.embed_dim, part.outputs, &mut rng)?;
            all.append(&mut prefixed(&part.prefix, own));
        }
        Ok(all)
    }
}

fn prefixed(part: &str, tensors: Tensors) -> Tensors {
    tensors
        .into_iter()
        .map(|(name, tensor)| (format!("{part}.{name}"), tensor))
        .collect()
}

/// Whether a network's forward pass is recorded for gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradients {
    /// A student.
    Tracked,
    /// A teacher.
    None,
}

/// A network whose weights can be moved in place.
#[derive(Debug, Clone)]
pub struct Network {
    config: NetworkConfig,
    weights: NamedVars,
    /// The backbone.
    pub vit: VisionTransformer,
    /// The head of the DINO term.
    pub dino_head: Option<DinoHead>,
    ibot_head: Option<DinoHead>,
    /// The contrastive term's projection.
    pub projection: Option<ProjectionHead>,
    /// What the student's points go through before they are compared with the teacher's.
    pub predictor: Option<ProjectionHead>,
    /// What tells the pixels of a crop.
    pub pixel_decoder: Option<ProjectionHead>,
    /// What tells its histograms of oriented gradients.
    pub hog_decoder: Option<ProjectionHead>,
    /// What tells its visual words.
    pub words_decoder: Option<ProjectionHead>,
    linears: Vec<(String, LinearClassifier)>,
}

impl Network {
    /// A network with a copy of `tensors`, which must be exactly those of [`NetworkConfig::parameters`].
    ///
    /// # Errors
    /// The first tensor that is missing, spare or misshapen.
    pub fn from_tensors(
        config: &NetworkConfig,
        tensors: &Tensors,
        device: &Device,
        gradients: Gradients,
    ) -> Result<Self> {
        let mut weights = NamedVars::new();
        let expected = config.parameters();
        for (name, shape) in &expected {
            let found = match tensors.get(name) {
                Some(tensor) if tensor.dims() == shape => {
                    // `Var::from_tensor` shares the storage of what it is given; a network owns its weights.
                    let copy = tensor
                        .to_device(device)
                        .and_then(|tensor| tensor.to_dtype(DType::F32))
                        .and_then(|tensor| tensor.copy())
                        .and_then(|tensor| Var::from_tensor(&tensor));
                    weights.insert(name.clone(), copy?);
                    continue;
                }
                Some(tensor) => format!("{:?}", tensor.dims()),
                None => "no such tensor".to_owned(),
            };
            let reason = format!("expected shape {shape:?}, found {found}");
            return Err(Error::input(format!("weight {name}"), reason));
        }
        if let Some(name) = tensors.keys().find(|name| !weights.contains_key(*name)) {
            let reason = "expected no such tensor in this network, found one";
            return Err(Error::input(format!("weight {name}"), reason));
        }
        let view = |var: &Var| match gradients {
            Gradients::Tracked => var.as_tensor().clone(),
            // Shares the storage, so it sees every later update.
            Gradients::None => var.as_detached_tensor(),
        };
        let views: HashMap<String, Tensor> = weights
            .iter()
            .map(|(name, var)| (name.clone(), view(var)))
            .collect();
        let vb = VarBuilder::from_tensors(views, DType::F32, device);
        let compute = config.compute.dtype();
        let head = |config: &Option<DinoHeadConfig>, part: &str| {
            let build = |config| Ok::<_, Error>(DinoHead::new(config, vb.pp(part))?.with_compute(compute));
            config.as_ref().map(build).transpose()
        };
        let projection = |config: &Option<ProjectionHeadConfig>, part: &str| {
            let build = |config| ProjectionHead::new(config, vb.pp(part));
            config.as_ref().map(build).transpose()
        };
        Ok(Self {
            config: config.clone(),
            vit: VisionTransformer::new(&config.vit, vb.pp(BACKBONE))?
                .with_compute(compute)
                .with_gradient_checkpointing(config.gradient_checkpointing)
                .with_sequence_packing(config.sequence_packing),
            dino_head: head(&config.dino_head, DINO_HEAD)?,
            ibot_head: head(&config.ibot_head, IBOT_HEAD)?,
            projection: projection(&config.projection, PROJECTION)?,
            predictor: projection(&config.predictor, PREDICTOR)?,
            pixel_decoder: projection(&config.pixel_decoder, PIXEL_DECODER)?,
            hog_decoder: projection(&config.hog_decoder, HOG_DECODER)?,
            words_decoder: projection(&config.words_decoder, WORDS_DECODER)?,
            linears: config
                .linears
                .iter()
                .map(|part| {
                    let linear =
                        LinearClassifier::new(config.vit.embed_dim, part.outputs, vb.pp(&part.prefix))?;
                    Ok((part.prefix.clone(), linear))
                })
                .collect::<Result<_>>()?,
            weights,
        })
    }

    /// The geometry.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// All weights by full name.
    pub fn weights(&self) -> &NamedVars {
        &self.weights
    }

    /// The head that reads masked patches.
    pub fn patch_head(&self) -> Option<&DinoHead> {
        self.ibot_head.as_ref().or(self.dino_head.as_ref())
    }

    /// The projection that `term` compares features through, if it does.
    pub fn distill_projection(&self, term: Term) -> Option<&LinearClassifier> {
        let (_, name) = PROJECTED.iter().find(|(other, _)| *other == term)?;
        self.linear(&format!("{DISTILL_PROJECTION}.{name}"))
    }

    /// The classifier that learns a teacher's classes or labels.
    pub fn distill_classifier(&self) -> Option<&LinearClassifier> {
        self.linear(DISTILL_CLASSIFIER)
    }

    fn linear(&self, prefix: &str) -> Option<&LinearClassifier> {
        let found = self.linears.iter().find(|(own, _)| own == prefix);
        found.map(|(_, linear)| linear)
    }

    /// The weights that are trained: all but gains that the configuration holds fixed.
    pub fn trained(&self) -> impl Iterator<Item = (&String, &Var)> {
        let fixed = |part: &str, head: &Option<DinoHeadConfig>| {
            head.as_ref()
                .filter(|head| !head.train_gain)
                .map(|_| format!("{part}.last_layer.weight_g"))
        };
        let fixed = [
            fixed(DINO_HEAD, &self.config.dino_head),
            fixed(IBOT_HEAD, &self.config.ibot_head),
        ];
        self.weights
            .iter()
            .filter(move |(name, _)| !fixed.iter().flatten().any(|fixed| fixed == *name))
    }

    /// A view of every weight, which later updates change.
    pub fn tensors(&self) -> Tensors {
        self.weights
            .iter()
            .map(|(name, var)| (name.clone(), var.as_detached_tensor()))
            .collect()
    }

    /// The backbone's weights under official names, as [`Self::tensors`].
    pub fn backbone(&self) -> Tensors {
        let of_backbone = |(name, tensor): (String, Tensor)| {
            let name = name.strip_prefix(BACKBONE)?.strip_prefix('.')?;
            Some((name.to_owned(), tensor))
        };
        self.tensors().into_iter().filter_map(of_backbone).collect()
    }
}

/// The token in place of hidden patches, which a network that is only used does not have.
pub(super) const MASK_TOKEN: &str = "backbone.mask_token";

/// The sub-module that a full name belongs to, and its name within it.
pub fn part_of(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((name, ""))
}

/// Whether a full name is the backbone's.
pub fn is_backbone(name: &str) -> bool {
    part_of(name).0 == BACKBONE
}
