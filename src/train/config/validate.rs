//! What settings must keep to: every field's range, and that the parts fit together.

use super::distill::{DistillConfig, Term};
use super::{COMPUTED, OptimizerKind, Selection, TrainConfig};
use crate::{Error, Result};

/// Fails with the field's name unless `value` lies in `range`.
fn within(field: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let (min, max) = (range.start(), range.end());
    let expected = match *max {
        f64::MAX => format!("a finite number of at least {min}"),
        _ => format!("a number from {min} to {max}"),
    };
    Err(Error::input(field, format!("expected {expected}, found {value}")))
}

fn at_least(field: &str, value: u64, min: u64) -> Result<()> {
    if value >= min {
        return Ok(());
    }
    Err(Error::input(
        field,
        format!("expected at least {min}, found {value}"),
    ))
}

impl TrainConfig {
    /// Checks every field and that the parts fit together.
    ///
    /// # Errors
    /// The first field that does not, named as it stands in the file.
    pub fn validate(&self) -> Result<()> {
        at_least("steps", self.steps, 1)?;
        at_least("batch_size", self.batch_size as u64, 1)?;
        at_least("accumulate", self.accumulate as u64, 1)?;
        if !self.batch_size.is_multiple_of(self.accumulate) {
            let reason = format!(
                "expected a divisor of batch_size {}, found {}",
                self.batch_size, self.accumulate
            );
            return Err(Error::input("accumulate", reason));
        }
        if self.batch_warmup_steps > 0 && self.accumulate > 1 {
            let reason = format!("expected 1 where the batch grows, found {}", self.accumulate);
            return Err(Error::input("accumulate", reason));
        }
        self.compute.check("compute", &COMPUTED)?;
        self.validate_ranks()?;
        self.batch_plan()?;
        prefixed("crops", self.crops.validate())?;
        self.validate_bands()?;
        prefixed("masks", self.masks.validate())?;
        self.validate_loss()?;
        self.validate_teacher()?;
        self.validate_optimizer()?;
        at_least("checkpoints.every", self.checkpoints.every, 1)?;
        at_least("checkpoints.keep", self.checkpoints.keep as u64, 1)?;
        at_least("monitor.log_every", self.monitor.log_every, 1)?;
        at_least("monitor.curves_every", self.monitor.curves_every, 1)?;
        if let Some(label_free) = &self.monitor.label_free {
            label_free.validate()?;
        } else if self.checkpoints.select != Selection::Knn {
            let reason = "expected monitor.label_free with it, found none";
            return Err(Error::input("checkpoints.select", reason));
        }
        self.validate_distill()?;
        self.validate_backbone()
    }

    fn validate_distill(&self) -> Result<()> {
        let Some(distill) = &self.distill else {
            return Ok(());
        };
        distill.validate()?;
        if self.has_info_nce() {
            let reason = "expected 0 where a frozen teacher gives the targets, found more";
            return Err(Error::input("loss.info_nce_weight", reason));
        }
        if self.loss.patch_anchor.weight > 0. {
            let reason = "expected 0 where a frozen teacher gives the targets, found more";
            return Err(Error::input("loss.patch_anchor.weight", reason));
        }
        let views = self.batch_size / self.accumulate * self.crops.global.count;
        if distill.has(Term::Relation) && distill.relation_queue < views {
            let reason = format!(
                "expected room for the {views} global crops of a micro-batch, found {}",
                distill.relation_queue
            );
            return Err(Error::input("distill.relation_queue", reason));
        }
        if distill.has(Term::Relation) && views < 2 {
            let reason = format!(
                "expected at least 2 crops a micro-batch where relations are compared, found {views}"
            );
            return Err(Error::input("batch_size", reason));
        }
        Ok(())
    }

    fn validate_backbone(&self) -> Result<()> {
        let vit = prefixed("backbone", self.vit())?;
        if !(0. ..1.).contains(&self.backbone.drop_path_rate) {
            let reason = format!(
                "expected a number from 0 to below 1, found {}",
                self.backbone.drop_path_rate
            );
            return Err(Error::input("backbone.drop_path_rate", reason));
        }
        self.validate_patch_drop()?;
        within(
            "backbone.layer_norm_eps",
            self.backbone.layer_norm_eps,
            f64::MIN_POSITIVE..=1.,
        )?;
        within("backbone.layer_scale", self.backbone.layer_scale, 0. ..=f64::MAX)?;
        if self.crops.local.count > 0 {
            let side = self.crops.local.size as usize;
            vit.grid(side, side).map_err(|_| {
                let reason = format!(
                    "expected a multiple of the patch size {}, found {side}",
                    vit.patch_size
                );
                Error::input("crops.local.size", reason)
            })?;
        }
        Ok(())
    }

    fn validate_patch_drop(&self) -> Result<()> {
        let rate = self.backbone.patch_drop_rate;
        if !(0. ..1.).contains(&rate) {
            let reason = format!("expected a number from 0 to below 1, found {rate}");
            return Err(Error::input("backbone.patch_drop_rate", reason));
        }
        if rate > 0. && self.backbone.rope.is_some() {
            let reason = format!(
                "expected 0 with rotary positions, whose angles belong to whole grids of patches, found {rate}"
            );
            return Err(Error::input("backbone.patch_drop_rate", reason));
        }
        let compares = self.has_ibot() || self.loss.patch_anchor.weight > 0.;
        if rate > 0. && (compares || self.distill.is_some()) {
            let reason = format!(
                "expected 0 where patches are compared (loss.ibot_weight or loss.patch_anchor.weight above 0) or a frozen teacher is, found {rate}"
            );
            return Err(Error::input("backbone.patch_drop_rate", reason));
        }
        Ok(())
    }

    fn validate_loss(&self) -> Result<()> {
        let loss = &self.loss;
        for (field, weight) in [
            ("loss.dino_weight", loss.dino_weight),
            ("loss.ibot_weight", loss.ibot_weight),
            ("loss.koleo_weight", loss.koleo_weight),
            ("loss.info_nce_weight", loss.info_nce_weight),
            ("loss.pixel_weight", loss.pixel_weight),
            ("loss.hog_weight", loss.hog_weight),
            ("loss.words.weight", loss.words.weight),
            ("loss.patch_anchor.weight", loss.patch_anchor.weight),
        ] {
            within(field, weight, 0. ..=f64::MAX)?;
        }
        let distils = self.distill.as_ref().is_some_and(DistillConfig::has_terms);
        if !self.has_dino() && !self.has_ibot() && !self.has_info_nce() && !distils {
            let reason = "expected a weight above 0 for dino, ibot or info_nce, found none";
            return Err(Error::input("loss", reason));
        }
        within(
            "loss.student_temperature",
            loss.student_temperature,
            1e-6..=f64::MAX,
        )?;
        let heads = [
            ("loss.head", Some(&loss.head)),
            ("loss.ibot_head", loss.ibot_head.as_ref()),
        ];
        for (field, head) in heads {
            if let Some(head) = head {
                prefixed(field, Ok(head.head(1).validate()?))?;
            }
        }
        let smallest = match self.batch_warmup_steps {
            0 => self.batch_size / self.accumulate,
            _ => self.batch_warmup_start,
        };
        if loss.koleo_weight > 0. && smallest < 2 {
            let reason =
                format!("expected at least 2 images a micro-batch where KoLeo is on, found {smallest}");
            return Err(Error::input("batch_size", reason));
        }
        if loss.koleo_group == 1 {
            let reason = "expected 0 for the whole micro-batch, or at least 2 images, found 1";
            return Err(Error::input("loss.koleo_group", reason));
        }
        let crops = self.crops.global.count;
        if (self.has_dino() || self.has_ibot() || self.has_info_nce()) && crops != 2 {
            let reason = format!("expected 2, found {crops}");
            return Err(Error::input("crops.global.count", reason));
        }
        for (field, on, weight) in [
            ("loss.pixel_weight", self.has_pixels(), loss.pixel_weight),
            ("loss.hog_weight", self.has_hog(), loss.hog_weight),
            ("loss.words.weight", self.has_words(), loss.words.weight),
        ] {
            if on && !self.has_dino() && !self.has_ibot() && !self.has_info_nce() {
                let reason = format!(
                    "expected 0 without dino, ibot and info_nce, one of which it goes with, found {weight}"
                );
                return Err(Error::input(field, reason));
            }
        }
        at_least("loss.words.vocabulary", loss.words.vocabulary as u64, 2)?;
        at_least("loss.words.cell", loss.words.cell as u64, 1)?;
        let anchor = loss.patch_anchor.weight;
        if anchor > 0. && !self.has_dino() && !self.has_ibot() {
            let reason = format!("expected 0 without dino and ibot, which it goes with, found {anchor}");
            return Err(Error::input("loss.patch_anchor.weight", reason));
        }
        let nce = &loss.info_nce;
        for (field, value) in [
            ("loss.info_nce.hidden", nce.hidden),
            ("loss.info_nce.output", nce.output),
        ] {
            at_least(field, value as u64, 1)?;
        }
        if nce.nearest && nce.queue == 0 {
            let reason = "expected at least 1 where the nearest key of the queue is looked for, found 0";
            return Err(Error::input("loss.info_nce.queue", reason));
        }
        if self.has_info_nce() && (nce.queue == 0 || nce.nearest) && smallest < 2 {
            let reason = format!(
                "expected at least 2 images a micro-batch where they are the negatives, found {smallest}"
            );
            return Err(Error::input("loss.info_nce.queue", reason));
        }
        within("loss.info_nce.temperature", nce.temperature, 1e-6..=f64::MAX)?;
        within(
            "loss.info_nce.final_temperature",
            nce.final_temperature,
            1e-6..=f64::MAX,
        )
    }

    fn validate_teacher(&self) -> Result<()> {
        let teacher = &self.teacher;
        within("teacher.momentum", teacher.momentum, 0. ..=1.)?;
        within("teacher.final_momentum", teacher.final_momentum, 0. ..=1.)?;
        within("teacher.center_momentum", teacher.center_momentum, 0. ..=1.)?;
        within("teacher.temperature", teacher.temperature, 1e-6..=f64::MAX)?;
        within(
            "teacher.final_temperature",
            teacher.final_temperature,
            1e-6..=f64::MAX,
        )
    }

    fn validate_optimizer(&self) -> Result<()> {
        let optimizer = &self.optimizer;
        for (field, value) in [
            ("learning_rate", optimizer.learning_rate),
            ("final_learning_rate", optimizer.final_learning_rate),
            ("weight_decay", optimizer.weight_decay),
            ("final_weight_decay", optimizer.final_weight_decay),
            ("clip_norm", optimizer.clip_norm),
            ("patch_embed_multiplier", optimizer.patch_embed_multiplier),
            ("layer_decay", optimizer.layer_decay),
            ("lora_alpha", optimizer.lora_alpha),
        ] {
            within(&format!("optimizer.{field}"), value, 0. ..=f64::MAX)?;
        }
        if optimizer.lora_rank > 0 && optimizer.kind != OptimizerKind::Adamw {
            let reason = format!(
                "expected 0 with optimizer.kind=sgd, found {}",
                optimizer.lora_rank
            );
            return Err(Error::input("optimizer.lora_rank", reason));
        }
        let (warm_up, frozen) = (optimizer.warmup_steps, optimizer.freeze_backbone_steps);
        for (field, end) in [
            ("optimizer.warmup_steps", warm_up),
            ("optimizer.freeze_backbone_steps", frozen.saturating_add(warm_up)),
        ] {
            if end > self.steps {
                let reason = format!(
                    "expected to end within the {} steps of the run, warm-up included, found step {end}",
                    self.steps
                );
                return Err(Error::input(field, reason));
            }
        }
        Ok(())
    }
}

/// Puts the section before the field that an error names.
pub(super) fn prefixed<T>(section: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Input { what, reason } => Error::input(format!("{section}.{what}"), reason),
        Error::Setting { field, reason } => Error::input(format!("{section}.{field}"), reason),
        Error::Models(macula_models::Error::Config { field, reason }) => {
            Error::input(format!("{section}.{field}"), reason)
        }
        other => other,
    })
}
