//! The terms of DINO and iBOT on the prototypes of a teacher, and those of class tokens beside them.

use std::time::Instant;

use candle_core::{DType, Tensor};
use macula_models::heads::DinoHead;

use super::anchor::PatchRequest;
use super::crops::{BackboneOutput, CropOutputs, Crops, ForwardRequest, places};
use super::{Method, StepContext, StepLoss};
use crate::Result;
use crate::cluster::Ranks;
use crate::train::config::StepValues;
use crate::train::losses::targets::{SINKHORN_ITERATIONS, SoftmaxCentering, sinkhorn_knopp};
use crate::train::losses::{Logits, dino_cls_loss, ibot_patch_loss};

/// A teacher's distributions over prototypes.
pub(super) struct PrototypeTargets {
    pub(super) cls: Option<Tensor>,                 // [2 B, K]
    pub(super) patch: Option<(Tensor, Vec<usize>)>, // [M, K], and how many of them each crop has
}

/// Class tokens in the bottleneck of a head, from one pass of it.
struct ClassPoints {
    global: Tensor,        // [2 B, D]
    local: Option<Tensor>, // [L B, D]
}

impl Method {
    /// The terms of DINO, iBOT and KoLeo.
    pub(super) fn self_distil(&mut self, step: &StepContext, loss: &mut StepLoss) -> Result<()> {
        let (crops, values) = (step.crops, step.values);
        let (has_dino, has_ibot) = (self.config.has_dino(), self.config.has_ibot());
        let masks = crops.masks.as_ref().filter(|masks| !masks.indices.is_empty());

        let start = Instant::now();
        let vit = &self.teacher.vit;
        let held = self.held_patches(crops, values)?;
        let of_teacher = held.filter(|_| self.is_held_to_the_teacher());
        let read = PatchRequest::new(places(masks), of_teacher);
        let teacher = BackboneOutput::forward(vit, &crops.global, None, None, read.places())?;
        let masked = read.masked(teacher.patches.as_ref())?;
        let cls_targets = match &self.teacher.dino_head {
            Some(head) if has_dino => {
                let logits = head.forward(&teacher.cls)?;
                Some(self.cls_targets(&logits, values)?)
            }
            _ => None,
        };
        let patch_targets = match (self.teacher.patch_head(), &masked) {
            (Some(head), Some(patches)) if has_ibot => {
                let logits = head.forward(patches)?;
                Some(self.patch_targets(&logits, values)?)
            }
            // Other ranks may have hidden patches, and targets are of all.
            (Some(_), None) if has_ibot && !self.ranks.is_one() => {
                self.patch_targets(&self.no_patches()?, values)?;
                None
            }
            _ => None,
        };

        loss.teacher_seconds += self.clock.since(start)?;

        let targets = PrototypeTargets {
            cls: cls_targets,
            patch: patch_targets.zip(masks.map(|masks| masks.per_crop.clone())),
        };
        let read = PatchRequest::new(places(masks), held);
        let request = ForwardRequest {
            hidden: masks.map(|masks| &masks.bits),
            places: read.places(),
            locals: targets.cls.is_some(),
        };
        let mut outputs = self.student_outputs(crops, &request, step.micro_batch)?;
        if let Some(student) = outputs.global.patches.as_ref().filter(|_| read.is_whole()) {
            self.anchor_term(crops, student, teacher.patches.as_ref(), values, loss)?;
        }
        outputs.global.patches = read.masked(outputs.global.patches.as_ref())?;
        let names = ["pixels", "hog", "words"];
        self.reconstruction_terms(names, &crops.global, &outputs.global.cls, 1., loss)?;
        self.prototype_terms(crops, &outputs, targets, loss)
    }

    /// The teacher's logits [0, K] of a rank that hides no patch.
    pub(super) fn no_patches(&self) -> candle_core::Result<Tensor> {
        let head = self.config.loss.ibot_head.as_ref();
        let prototypes = head.unwrap_or(&self.config.loss.head).prototypes;
        Tensor::zeros((0, prototypes), DType::F32, &self.device)
    }

    /// The student's DINO, iBOT and KoLeo terms, given what its teacher saw.
    pub(super) fn prototype_terms(
        &self,
        crops: &Crops,
        CropOutputs { global, local }: &CropOutputs,
        targets: PrototypeTargets,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let config = &self.config;
        let temperature = config.loss.student_temperature;
        if let (Some(head), Some(targets)) = (&self.student.dino_head, &targets.cls) {
            let points = ClassPoints::new(head, &global.cls, local.as_ref())?;
            let prototypes = head.prototypes()?;
            let logits = |points| Logits::Product {
                points,
                prototypes: &prototypes,
                compute: head.compute(),
            };
            let local = points.local.as_ref().map(logits);
            let terms = dino_cls_loss(logits(&points.global), local, targets, temperature);
            let terms = terms?;
            loss.push("dino_global", &terms.global, config.loss.dino_weight)?;
            if let Some(local) = &terms.local {
                loss.push("dino_local", local, config.loss.dino_weight)?;
            }
        }
        let patches = (&global.patches, &targets.patch);
        if let (Some(head), (Some(patches), Some((targets, per_crop)))) = (self.student.patch_head(), patches)
        {
            let logits = Logits::Product {
                points: &head.bottleneck(patches)?,
                prototypes: &head.prototypes()?,
                compute: head.compute(),
            };
            let term = ibot_patch_loss(logits, targets, per_crop, temperature);
            loss.push("ibot", &term?, config.loss.ibot_weight)?;
        }
        for crop in 0..config.crops.global.count {
            let cls = global.cls.narrow(0, crop * crops.batch, crops.batch)?;
            self.spread_term(crop, cls, loss)?;
        }
        loss.cls_targets = targets.cls;
        Ok(())
    }

    pub(super) fn cls_targets(
        &mut self,
        logits: &Tensor,
        values: &StepValues,
    ) -> candle_core::Result<Tensor> {
        targets(
            logits,
            values.teacher_temperature,
            self.memory.cls_centre.as_mut(),
            self.ranks.as_ref(),
        )
    }

    pub(super) fn patch_targets(
        &mut self,
        logits: &Tensor,
        values: &StepValues,
    ) -> candle_core::Result<Tensor> {
        targets(
            logits,
            values.teacher_temperature,
            self.memory.patch_centre.as_mut(),
            self.ranks.as_ref(),
        )
    }
}

/// Distributions of teacher logits: around a centre where there is one, by Sinkhorn-Knopp otherwise.
fn targets(
    logits: &Tensor,
    temperature: f64,
    centre: Option<&mut SoftmaxCentering>,
    ranks: &dyn Ranks,
) -> candle_core::Result<Tensor> {
    match centre {
        Some(centre) => centre.targets(logits, temperature, ranks),
        None => sinkhorn_knopp(logits, temperature, SINKHORN_ITERATIONS, ranks),
    }
}

impl ClassPoints {
    fn new(head: &DinoHead, global: &Tensor, local: Option<&Tensor>) -> Result<Self> {
        let Some(local) = local else {
            return Ok(Self {
                global: head.bottleneck(global)?,
                local: None,
            });
        };
        let all = Tensor::cat(&[global, local], 0)?;
        let points = head.bottleneck(&all)?;
        let (first, second) = (global.dim(0)?, local.dim(0)?);
        Ok(Self {
            global: points.narrow(0, 0, first)?,
            local: Some(points.narrow(0, first, second)?),
        })
    }
}
