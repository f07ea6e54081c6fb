//! Momentum contrast: two crops of an image agree, against the queue of earlier images (facebookresearch/moco
//! `moco/builder.py`).

use std::time::Instant;

use candle_core::Tensor;
use macula_models::heads::{ProjectionHead, SharedBatch};

use super::crops::{BackboneOutput, Pass, Side};
use super::{Method, StepContext, StepLoss};
use crate::cluster;
use crate::train::losses::info_nce_loss;
use crate::{Error, Result};

impl Method {
    /// The contrastive term: the first crop asks for the second, and the other way round where that is configured.
    pub(super) fn contrast(&mut self, step: &StepContext, loss: &mut StepLoss) -> Result<()> {
        let crops = step.crops;
        let settings = &self.config.loss.info_nce;
        let missing = || Error::failed("contrastive term", "the network has no projection");
        let view = |crop: usize| {
            let pixels = crops.global.narrow(0, crop * crops.batch, crops.batch);
            pixels.map_err(Error::from)
        };
        let views = [view(0)?, view(1)?];
        let directions: &[[usize; 2]] = if settings.symmetric {
            &[[0, 1], [1, 0]]
        } else {
            &[[0, 1]]
        };
        let weight = self.config.loss.info_nce_weight / directions.len() as f64;
        let mut keys_of_step = Vec::new();
        for &[query, key] in directions {
            let start = Instant::now();
            let vit = &self.teacher.vit;
            let head = self.teacher.projection.as_ref().ok_or_else(missing)?;
            let cls = BackboneOutput::forward(vit, &views[key], None, None, &[])?.cls;
            let keys = self.projected(head, &cls, step.micro_batch)?;
            loss.teacher_seconds += self.clock.since(start)?;
            let name = ["first crop", "second crop"][query];
            let pass = Pass {
                name,
                crops: Side::Global,
                micro_batch: step.micro_batch,
            };
            let outputs = self.student_output(&views[query], None, &pass, &[])?;
            let head = self.student.projection.as_ref().ok_or_else(missing)?;
            let queries = self.projected(head, &outputs.cls, step.micro_batch)?;
            let queue = self.memory.queue.as_ref().ok_or_else(missing)?;
            let term = info_nce_loss(&queries, &keys, queue.keys(), step.values.info_nce_temperature);
            let name = ["info_nce", "info_nce_second"][query];
            loss.push(name, &term?, weight)?;
            keys_of_step.push(keys);
        }
        let queue = self.memory.queue.as_mut().ok_or_else(missing)?;
        for keys in keys_of_step {
            // Of all ranks, so that each has the same queue.
            queue.push(&self.ranks.gather(&keys.detach())?)?;
        }
        Ok(())
    }

    /// The points of class tokens [b, D], where batch norm is over the images of all ranks.
    fn projected(&self, head: &ProjectionHead, cls: &Tensor, micro_batch: u64) -> Result<Tensor> {
        if self.ranks.is_one() {
            return Ok(head.forward(cls)?);
        }
        let batch = SharedBatch {
            rows: self.config.batch_plan()?.size(micro_batch),
            sum: &|tensor| cluster::sum_with_gradient(&self.ranks, tensor),
        };
        Ok(head.forward_shared(cls, &batch)?)
    }
}
