//! What the objective remembers from step to step, which a checkpoint keeps.

use candle_core::{Device, Tensor};
use macula_models::weights::Tensors;

use super::anchor::Anchor;
use crate::train::config::{Centering, Term, TrainConfig};
use crate::train::losses::targets::SoftmaxCentering;
use crate::train::losses::{KeyQueue, Vocabulary};
use crate::train::network::NetworkConfig;
use crate::{Error, Result, rng};

/// Names of the memory's tensors in a checkpoint.
const CLS_CENTRE: &str = "cls_centre";
const PATCH_CENTRE: &str = "patch_centre";
const QUEUE: &str = "queue";
/// Prefix of the tensors of the vocabulary.
const VOCABULARY: &str = "vocabulary.";
const RELATION_TEACHER: &str = "relation_teacher";
const RELATION_STUDENT: &str = "relation_student";
/// Prefix of the weights of an earlier network.
const ANCHOR: &str = "anchor.";

/// State of the objective.
#[derive(Debug, Default)]
pub struct Memory {
    /// Centre of class-token logits, with softmax centring.
    pub cls_centre: Option<SoftmaxCentering>,
    /// Centre of patch logits, with softmax centring.
    pub patch_centre: Option<SoftmaxCentering>,
    /// Negatives of the contrastive term.
    pub queue: Option<KeyQueue>,
    /// What the frozen teacher and the averaged student saw of the latest images, where relations are distilled.
    pub relations: Option<RelationQueues>,
    /// The visual words, learnt from the first crops.
    pub vocabulary: Option<Vocabulary>,
    /// The network as it was, where patches are held to it.
    pub anchor: Option<Anchor>,
}

/// Features of the same images in the same order.
#[derive(Debug)]
pub struct RelationQueues {
    pub(super) teacher: KeyQueue,
    pub(super) student: KeyQueue,
}

impl Memory {
    /// That of a run whose teacher begins as `teacher`.
    pub(super) fn new(config: &TrainConfig, teacher: &Tensors, device: &Device) -> Result<Self> {
        let loss = &config.loss;
        let centre = |prototypes: usize| {
            let zeros = Tensor::zeros((1, prototypes), candle_core::DType::F32, device);
            zeros
                .and_then(|zeros| SoftmaxCentering::new(&zeros, config.teacher.center_momentum))
                .map_err(Error::from)
        };
        let softmax = config.teacher.centering == Centering::Softmax;
        let patch_head = loss.ibot_head.as_ref().unwrap_or(&loss.head);
        let nce = &loss.info_nce;
        let queue = || {
            let mut rng = rng::stream(config.seed, "queue", 0);
            KeyQueue::random(nce.queue, nce.output, &mut rng, device).map_err(Error::from)
        };
        Ok(Self {
            cls_centre: (softmax && config.has_dino())
                .then(|| centre(loss.head.prototypes))
                .transpose()?,
            patch_centre: (softmax && config.has_ibot())
                .then(|| centre(patch_head.prototypes))
                .transpose()?,
            queue: (config.has_info_nce() && nce.queue > 0).then(queue).transpose()?,
            relations: config
                .distill
                .as_ref()
                .filter(|distill| distill.has(Term::Relation))
                .map(|distill| {
                    // The class token speaks for an image where there is one.
                    let width = match distill.offer.cls {
                        0 => distill.offer.patch_mean,
                        width => width,
                    };
                    let start = |name, width| {
                        let mut rng = rng::stream(config.seed, name, 0);
                        KeyQueue::random(distill.relation_queue, width, &mut rng, device).map_err(Error::from)
                    };
                    Ok::<_, Error>(RelationQueues {
                        teacher: start(RELATION_TEACHER, width)?,
                        student: start(RELATION_STUDENT, config.backbone.embed_dim)?,
                    })
                })
                .transpose()?,
            vocabulary: config
                .has_words()
                .then(|| Vocabulary::unlearnt(loss.words.vocabulary, config.channels(), device))
                .transpose()?,
            anchor: (loss.patch_anchor.keeps_a_network())
                .then(|| Anchor::new(&NetworkConfig::new(config)?, teacher, device))
                .transpose()?,
        })
    }

    /// The tensors of a checkpoint.
    ///
    /// # Errors
    /// Failures of candle.
    pub fn tensors(&self) -> candle_core::Result<Tensors> {
        let mut tensors = Tensors::new();
        for (name, centre) in [(CLS_CENTRE, &self.cls_centre), (PATCH_CENTRE, &self.patch_centre)] {
            if let Some(centre) = centre {
                tensors.insert(name.to_owned(), centre.centre()?);
            }
        }
        if let Some(queue) = &self.queue {
            tensors.insert(QUEUE.to_owned(), queue.keys().clone());
        }
        if let Some(RelationQueues { teacher, student }) = &self.relations {
            tensors.insert(RELATION_TEACHER.to_owned(), teacher.keys().clone());
            tensors.insert(RELATION_STUDENT.to_owned(), student.keys().clone());
        }
        if let Some(vocabulary) = &self.vocabulary {
            let named = vocabulary.tensors().into_iter();
            tensors.extend(named.map(|(name, tensor)| (format!("{VOCABULARY}{name}"), tensor.clone())));
        }
        if let Some(anchor) = &self.anchor {
            let named = anchor.tensors().into_iter();
            tensors.extend(named.map(|(name, tensor)| (format!("{ANCHOR}{name}"), tensor)));
        }
        Ok(tensors)
    }

    /// Goes on from the tensors of a checkpoint.
    ///
    /// # Errors
    /// A tensor that is missing or misshapen.
    pub fn load(&mut self, tensors: &Tensors) -> Result<()> {
        let find = |name: &str, like: &Tensor| {
            let wrong = |found: String| {
                let reason = format!(
                    "expected shape {:?} in the checkpoint, found {found}",
                    like.dims()
                );
                Error::input(format!("memory.{name}"), reason)
            };
            let tensor = tensors.get(name).ok_or_else(|| wrong("none".to_owned()))?;
            if tensor.dims() != like.dims() {
                return Err(wrong(format!("{:?}", tensor.dims())));
            }
            tensor.to_device(like.device()).map_err(Error::from)
        };
        for (name, centre) in [
            (CLS_CENTRE, &mut self.cls_centre),
            (PATCH_CENTRE, &mut self.patch_centre),
        ] {
            if let Some(centre) = centre {
                let own = centre.centre()?;
                *centre = SoftmaxCentering::new(&find(name, &own)?, centre.momentum())?;
            }
        }
        let relations = self.relations.as_mut();
        let relations = relations.map(|RelationQueues { teacher, student }| {
            [(RELATION_TEACHER, teacher), (RELATION_STUDENT, student)]
        });
        let queues = self.queue.as_mut().map(|queue| (QUEUE, queue));
        for (name, queue) in queues.into_iter().chain(relations.into_iter().flatten()) {
            *queue = KeyQueue::from_keys(&find(name, queue.keys())?)?;
        }
        if let Some(vocabulary) = &mut self.vocabulary {
            let saved = vocabulary
                .tensors()
                .map(|(name, own)| find(&format!("{VOCABULARY}{name}"), own));
            let [mean, axes, words] = saved;
            *vocabulary = Vocabulary::from_tensors([mean?, axes?, words?])?;
        }
        if let Some(anchor) = &self.anchor {
            for (name, own) in anchor.weights() {
                own.set(&find(&format!("{ANCHOR}{name}"), own)?)?;
            }
        }
        Ok(())
    }
}
