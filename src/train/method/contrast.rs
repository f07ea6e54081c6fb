//! Momentum contrast: two crops of an image agree, against the queue of earlier images (facebookresearch/moco
//! `moco/builder.py`) or the other images of the batch (facebookresearch/moco-v3 `moco/builder.py`, where the student's points
//! also go through a predictor).

use std::time::Instant;

use candle_core::Tensor;
use macula_models::heads::{ProjectionHead, SharedBatch};
use macula_models::ops;

use super::crops::{BackboneOutput, Pass, Side};
use super::{Method, StepContext, StepLoss};
use crate::cluster;
use crate::train::losses::{info_nce_in_batch_loss, info_nce_loss};
use crate::train::network::Network;
use crate::{Error, Result};

impl Method {
    /// The contrastive term: the first crop asks for the second, and the other way round where that is configured.
    pub(super) fn contrast(&mut self, step: &StepContext, loss: &mut StepLoss) -> Result<()> {
        let crops = step.crops;
        let settings = &self.config.loss.info_nce;
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
        let share = 1. / directions.len() as f64;
        let weight = share * self.config.loss.info_nce_weight;
        let mut keys_of_step = Vec::new();
        for &[query, key] in directions {
            let start = Instant::now();
            let cls = BackboneOutput::forward(&self.teacher.vit, &views[key], None, None, &[])?.cls;
            let keys = self.points(&[projection(&self.teacher)?], &cls, step.micro_batch)?;
            loss.teacher_seconds += self.clock.since(start)?;
            let name = ["first crop", "second crop"][query];
            let pass = Pass {
                name,
                crops: Side::Global,
                micro_batch: step.micro_batch,
            };
            let outputs = self.student_output(&views[query], None, &pass, &[])?;
            if !self.config.has_dino() && !self.config.has_ibot() {
                let names = [
                    ["pixels", "hog", "words"],
                    ["pixels_second", "hog_second", "words_second"],
                ][query];
                self.reconstruction_terms(names, &views[query], &outputs.cls, share, loss)?;
                self.spread_term(query, outputs.cls.clone(), loss)?;
            }
            let heads = std::iter::once(projection(&self.student)?).chain(&self.student.predictor);
            let queries = self.points(&heads.collect::<Vec<_>>(), &outputs.cls, step.micro_batch)?;
            let term = self.contrasted(
                &queries,
                &keys,
                step.micro_batch,
                step.values.info_nce_temperature,
            )?;
            let name = ["info_nce", "info_nce_second"][query];
            loss.push(name, &term, weight)?;
            keys_of_step.push(keys);
        }
        if let Some(queue) = &mut self.memory.queue {
            for keys in keys_of_step {
                // Of all ranks, so that each has the same queue.
                queue.push(&self.ranks.gather(&keys.detach())?)?;
            }
        }
        Ok(())
    }

    /// The term of `queries` [b, D] and the same images' `keys`: against the queue, or where there is none, or it only gives each key its
    /// nearest, against the keys of all ranks.
    fn contrasted(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        micro_batch: u64,
        temperature: f64,
    ) -> Result<Tensor> {
        let keys = match &self.memory.queue {
            Some(queue) if self.config.loss.info_nce.nearest => &queue.nearest(keys)?,
            Some(queue) => return Ok(info_nce_loss(queries, keys, queue.keys(), temperature)?),
            None => keys,
        };
        let all = self.ranks.gather(&keys.detach())?;
        let shared = self
            .config
            .batch_plan()?
            .of_rank(self.ranks.rank(), self.ranks.size());
        let first = shared.share(micro_batch).start;
        Ok(info_nce_in_batch_loss(queries, &all, first, temperature)?)
    }

    /// The points of class tokens [b, D] on the unit sphere, behind all of `heads`, whose batch norm is over the images of all ranks.
    fn points(&self, heads: &[&ProjectionHead], cls: &Tensor, micro_batch: u64) -> Result<Tensor> {
        let sum = |tensor: &Tensor| cluster::sum_with_gradient(&self.ranks, tensor);
        let batch = SharedBatch {
            rows: self.config.batch_plan()?.size(micro_batch),
            sum: &sum,
        };
        let mut points = cls.clone();
        for head in heads {
            points = match self.ranks.is_one() {
                true => head.project(&points)?,
                false => head.project_shared(&points, &batch)?,
            };
        }
        Ok(ops::l2_normalize(&points, 1e-12)?)
    }
}

fn projection(network: &Network) -> Result<&ProjectionHead> {
    let missing = || Error::failed("contrastive term", "the network has no projection");
    network.projection.as_ref().ok_or_else(missing)
}
