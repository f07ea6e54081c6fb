//! The objective of a distillation: the same student, its targets from a frozen teacher in place of its own average
//! (Oquab et al. 2023, section 5, for the terms on prototypes; Hinton et al. 2015 for logits).

use std::time::Instant;

use candle_core::Tensor;
// Composed of differentiable operations, unlike candle-nn's softmax: the gradient test sees it.
use candle_nn::loss::cross_entropy;
use macula_models::ops;
use macula_models::ops::cuda::upload;

use super::crops::{BackboneOutput, CropOutputs, Crops, ForwardRequest, places};
use super::memory::RelationQueues;
use super::prototypes::PrototypeTargets;
use super::{Method, StepContext, StepLoss};
use crate::cluster::{Ranks, Reduction};
use crate::train::config::StepValues;
use crate::train::config::{DistillConfig, IbotTokens, Term};
use crate::train::distillation::{FrozenTargets, TeacherFeatures};
use crate::train::losses::{Relations, distillation_kl_loss, feature_distance, relational_loss};
use crate::{Error, Result};

/// The patches that the iBOT term compares.
#[derive(Default)]
struct Compared {
    /// Their places in [2 B, N], [M].
    places: Vec<u32>,
    /// How many of them each global crop has.
    per_crop: Vec<usize>,
}

/// What the terms need of the student, after the final norm.
struct Student {
    cls: Tensor,              // [G B, D]
    compared: Option<Tensor>, // [M, D], the iBOT term's patches
    patch: Option<Tensor>,    // [G B, N, D], where features of patches are compared
}

impl Method {
    /// The terms of a distillation on one micro-batch.
    pub(super) fn distil(&mut self, step: &StepContext, loss: &mut StepLoss) -> Result<()> {
        // Taken out for the time of the step, so that it can change beside the rest.
        let (Some(mut frozen), Some(distill)) = (self.frozen.take(), self.config.distill.clone()) else {
            return Err(Error::failed(
                "distillation",
                "expected a frozen teacher, found none",
            ));
        };
        let result = self.distil_from(&mut frozen, &distill, step, loss);
        self.frozen = Some(frozen);
        result
    }

    fn distil_from(
        &mut self,
        frozen: &mut FrozenTargets,
        distill: &DistillConfig,
        step: &StepContext,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let start = Instant::now();
        let crops = step.crops;
        let teacher = frozen.features(&crops.global, step.batch)?;
        let compared = self.compared_patches(crops, distill)?;
        let targets = self.prototype_targets(frozen, &teacher, &compared, step.values)?;
        loss.teacher_seconds += self.clock.since(start)?;

        let (global, local) = self.student_under(distill, step, &compared, targets.cls.is_some())?;
        let of_heads = CropOutputs {
            global: BackboneOutput {
                cls: global.cls.clone(),
                patches: global.compared.clone(),
            },
            local,
        };
        self.prototype_terms(crops, &of_heads, targets, loss)?;
        self.feature_terms(distill, &teacher, &global, loss)?;
        if distill.has(Term::Relation) {
            self.relation_term(distill, step, &teacher, &global.cls, loss)?;
        }
        if distill.has(Term::Logits) {
            self.logits_term(frozen, distill, &teacher, &global.cls, loss)?;
        }
        if distill.has_labels() {
            self.label_term(frozen, distill, step, &global.cls, loss)?;
        }
        Ok(())
    }

    /// The patches of the iBOT term: all, or those that pretraining would hide.
    fn compared_patches(&self, crops: &Crops, distill: &DistillConfig) -> Result<Compared> {
        if !self.config.has_ibot() {
            return Ok(Compared::default());
        }
        if distill.ibot_tokens == IbotTokens::Subset {
            let masks = crops.masks.as_ref();
            return Ok(Compared {
                places: places(masks).to_vec(),
                per_crop: masks.map(|masks| masks.per_crop.clone()).unwrap_or_default(),
            });
        }
        let count = crops.global.dim(0)?;
        let patches = self.config.grid()?.patches();
        Ok(Compared {
            places: (0..(count * patches) as u32).collect(),
            per_crop: vec![patches; count],
        })
    }

    /// What the terms need of the student's pass: of global crops, and the class tokens of local ones where these are asked for.
    fn student_under(
        &self,
        distill: &DistillConfig,
        step: &StepContext,
        compared: &Compared,
        locals: bool,
    ) -> Result<(Student, Option<Tensor>)> {
        let crops = step.crops;
        let features = distill.has(Term::Patch) || distill.has(Term::PatchMean);
        let count = crops.global.dim(0)?;
        let patches = self.config.grid()?.patches();
        let all: Vec<u32> = match features {
            true => (0..(count * patches) as u32).collect(),
            false => Vec::new(),
        };
        let request = ForwardRequest {
            hidden: None,
            places: if features { &all } else { &compared.places },
            locals,
        };
        let CropOutputs { global, local } = self.student_outputs(crops, &request, step.micro_batch)?;
        if !features {
            let student = Student {
                cls: global.cls,
                compared: global.patches,
                patch: None,
            };
            return Ok((student, local));
        }
        let every = global
            .patches
            .ok_or_else(|| Error::failed("student", "expected patches, found none"))?;
        let width = every.dim(1)?;
        let chosen = match compared.places.len() {
            0 => None,
            chosen => {
                let places = upload(&compared.places, chosen, &self.device)?;
                Some(every.index_select(&places, 0)?)
            }
        };
        let student = Student {
            cls: global.cls,
            compared: chosen,
            patch: Some(every.reshape((count, patches, width))?),
        };
        Ok((student, local))
    }

    /// The frozen heads' distributions for class tokens and the compared patches.
    fn prototype_targets(
        &mut self,
        frozen: &FrozenTargets,
        teacher: &TeacherFeatures,
        compared: &Compared,
        values: &StepValues,
    ) -> Result<PrototypeTargets> {
        let cls = match &teacher.cls {
            Some(tokens) if self.config.has_dino() => {
                let logits = frozen.cls_logits(tokens)?;
                Some(self.cls_targets(&logits, values)?)
            }
            _ => None,
        };
        let patch = match &teacher.patch {
            Some((tokens, _)) if !compared.places.is_empty() => {
                let count = compared.places.len();
                let chosen = upload(&compared.places, count, &self.device)
                    .and_then(|places| tokens.flatten(0, 1)?.index_select(&places, 0))?;
                let logits = frozen.patch_logits(&chosen)?;
                let targets = self.patch_targets(&logits, values)?;
                Some((targets, compared.per_crop.clone()))
            }
            // Other ranks may compare patches, and targets are of all.
            Some(_) if self.config.has_ibot() && !self.ranks.is_one() => {
                self.patch_targets(&self.no_patches()?, values)?;
                None
            }
            _ => None,
        };
        Ok(PrototypeTargets { cls, patch })
    }

    /// The distances of projected features.
    fn feature_terms(
        &self,
        distill: &DistillConfig,
        teacher: &TeacherFeatures,
        global: &Student,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let patch = teacher.patch.as_ref().map(|(tokens, _)| tokens);
        for (term, name, teacher) in [
            (Term::Cls, "feature_cls", teacher.cls.as_ref()),
            (Term::PatchMean, "feature_patch_mean", teacher.patch_mean.as_ref()),
            (Term::Patch, "feature_patch", patch),
        ] {
            let (Some(projection), Some(teacher)) = (self.student.distill_projection(term), teacher) else {
                continue;
            };
            let student = match (term, &global.patch) {
                (Term::Patch, Some(patch)) => projection.forward(patch)?,
                (Term::PatchMean, Some(patch)) => projection.forward(&patch.mean(1)?)?,
                _ => projection.forward(&global.cls)?,
            };
            let distance = feature_distance(&student, teacher, distill.feature_loss);
            loss.push(name, &distance?, distill.weight(term))?;
        }
        Ok(())
    }

    /// The divergence of similarities to the latest images of all ranks. The student's side of the queue is its average's, whose
    /// features change slowly.
    fn relation_term(
        &mut self,
        distill: &DistillConfig,
        step: &StepContext,
        teacher: &TeacherFeatures,
        cls: &Tensor,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let start = Instant::now();
        let vit = &self.teacher.vit;
        let averaged = BackboneOutput::forward(vit, &step.crops.global, None, None, &[])?.cls;
        let known = self.known_relations(distill, step)?;
        let own = self.places_in_batch(step)?;
        let (ranks, crops) = (self.ranks.as_ref(), self.config.crops.global.count);
        let missing = || Error::failed("relation term", "expected features and their queue, found none");
        let (Some(RelationQueues { teacher, student }), Some(of_teacher)) = (
            &mut self.memory.relations,
            teacher.cls.as_ref().or(teacher.patch_mean.as_ref()),
        ) else {
            return Err(missing());
        };
        let unit = |features: &Tensor| ops::l2_normalize(features, 1e-12);
        let clock = &self.clock;
        let mut term = || -> candle_core::Result<Tensor> {
            let of_teacher = unit(of_teacher)?;
            teacher.push(&of_all_ranks(ranks, &of_teacher, crops)?)?;
            student.push(&of_all_ranks(ranks, &unit(&averaged)?, crops)?)?;
            loss.teacher_seconds += clock.since(start).map_err(candle_core::Error::wrap)?;
            relational_loss(
                &Relations {
                    queries: &unit(cls)?,
                    keys: &student.keys().narrow(0, 0, known)?,
                },
                &Relations {
                    queries: &of_teacher,
                    keys: &teacher.keys().narrow(0, 0, known)?,
                },
                &own,
                distill.relation_temperature,
            )
        };
        let term = term()?;
        loss.push("relation", &term, distill.weight(Term::Relation))
    }

    /// Images in the queues once this micro-batch's are: until these are full the rest of them is what they began with.
    fn known_relations(&self, distill: &DistillConfig, step: &StepContext) -> Result<usize> {
        let plan = self.config.batch_plan()?;
        let before = plan.images_before(step.micro_batch);
        let whole = match self.ranks.is_one() {
            true => step.crops.batch,
            false => plan.size(step.micro_batch),
        };
        let images = before.saturating_add(whole as u64);
        let rows = images.saturating_mul(self.config.crops.global.count as u64);
        Ok(rows.min(distill.relation_queue as u64) as usize)
    }

    /// The places of this rank's crops among the global crops of all ranks, crop-major.
    fn places_in_batch(&self, step: &StepContext) -> Result<Vec<u32>> {
        let crops = self.config.crops.global.count;
        if self.ranks.is_one() {
            return Ok((0..(crops * step.crops.batch) as u32).collect());
        }
        let plan = self.config.batch_plan()?;
        let plan = plan.of_rank(self.ranks.rank(), self.ranks.size());
        let (whole, own) = (plan.size(step.micro_batch), plan.share(step.micro_batch));
        let of_crop = |crop: usize| own.clone().map(move |image| (crop * whole + image) as u32);
        Ok((0..crops).flat_map(of_crop).collect())
    }

    /// The divergence from the teacher's class scores or prototypes.
    fn logits_term(
        &self,
        frozen: &FrozenTargets,
        distill: &DistillConfig,
        teacher: &TeacherFeatures,
        cls: &Tensor,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let missing = || {
            Error::failed(
                "logits term",
                "expected logits of teacher and student, found none",
            )
        };
        let (student, teacher) = if distill.logits_are_prototypes() {
            let head = self.student.dino_head.as_ref().ok_or_else(missing)?;
            let tokens = teacher.cls.as_ref().ok_or_else(missing)?;
            (head.forward(cls)?, frozen.cls_logits(tokens)?)
        } else {
            let classifier = self.student.distill_classifier().ok_or_else(missing)?;
            let scores = teacher.scores.clone().ok_or_else(missing)?;
            (classifier.forward(cls)?, scores)
        };
        let term = distillation_kl_loss(&student, &teacher, distill.temperature);
        loss.push("logits", &term?, distill.weight(Term::Logits))
    }

    /// The cross-entropy with the labels of those images that have one.
    fn label_term(
        &self,
        frozen: &FrozenTargets,
        distill: &DistillConfig,
        step: &StepContext,
        cls: &Tensor,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let missing = || Error::failed("label term", "the student has no classifier");
        let classifier = self.student.distill_classifier().ok_or_else(missing)?;
        let (places, labels) = frozen.labelled(&step.batch.rows, self.config.crops.global.count);
        let share = self.share_of_labelled(places.len(), step)?;
        if places.is_empty() {
            return Ok(());
        }
        let term = || -> candle_core::Result<Tensor> {
            let count = places.len();
            let places = Tensor::from_vec(places, count, &self.device)?;
            let labels = Tensor::from_vec(labels, count, &self.device)?;
            let tokens = cls.index_select(&places, 0)?;
            let scores = classifier.forward(&tokens).map_err(candle_core::Error::wrap)?;
            let term = cross_entropy(&scores, &labels)?;
            match share {
                Some(share) => term * share,
                None => Ok(term),
            }
        };
        loss.push("labels", &term()?, distill.label_weight)
    }

    /// What the mean over this rank's `labelled` crops counts beside its mean over all its images, so that over all ranks it becomes
    /// the mean over all labelled crops; none in a run of one process.
    fn share_of_labelled(&self, labelled: usize, step: &StepContext) -> Result<Option<f64>> {
        if self.ranks.is_one() {
            return Ok(None);
        }
        let mut of_all = [labelled as f64];
        self.ranks.reduce_f64(&mut of_all, Reduction::Sum)?;
        let images = step.batch.size as f64 / self.config.batch_plan()?.size(step.micro_batch) as f64;
        Ok(Some(labelled as f64 / of_all[0].max(1.) / images))
    }
}

/// The rows [C B, D] of this rank's crops, crop-major, among those of all ranks, which lie as one process has them.
fn of_all_ranks(ranks: &dyn Ranks, rows: &Tensor, crops: usize) -> candle_core::Result<Tensor> {
    if ranks.is_one() {
        return Ok(rows.clone());
    }
    let images = rows.dim(0)? / crops;
    let of_crop = |crop: usize| ranks.gather(&rows.narrow(0, crop * images, images)?);
    let all: candle_core::Result<Vec<Tensor>> = (0..crops).map(of_crop).collect();
    Tensor::cat(&all?, 0)
}
