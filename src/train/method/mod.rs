//! The one self-supervised method: a student and a teacher that follows it, and an objective whose terms the configuration
//! switches on. DINO, iBOT, DINOv2 and momentum contrast are settings of it (facebookresearch/dinov2
//! `train/ssl_meta_arch.py`; facebookresearch/moco `moco/builder.py`).

mod anchor;
mod contrast;
mod crops;
mod distil;
mod memory;
mod prototypes;
mod tokens;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use macula_models::weights::Tensors;

use self::crops::Crops;
pub use self::memory::Memory;
use super::clock::Clock;
use super::config::{StepValues, TrainConfig};
use super::distillation::FrozenTargets;
use super::feed::{DeviceBatch, MicroBatch};
use super::network::{Gradients, Network, NetworkConfig};
use crate::Result;
use crate::cluster::{OneRank, Ranks};
use crate::data::augment::MultiCrop;
use crate::data::loader::Batch;

/// Student, teacher, and what their objective remembers from step to step.
pub struct Method {
    config: TrainConfig,
    multi_crop: MultiCrop,
    device: Device,
    clock: Clock,
    ranks: Arc<dyn Ranks>,
    /// The network that learns.
    pub student: Network,
    /// Its moving average, which gives the targets and is what a run leaves behind.
    pub teacher: Network,
    /// What a checkpoint keeps beside the weights.
    pub memory: Memory,
    /// The network that gives the targets in the teacher's place, in a distillation.
    frozen: Option<FrozenTargets>,
}

/// What the terms of a step are computed from.
struct StepContext<'a> {
    /// The crops of a micro-batch, on the device.
    crops: &'a Crops,
    /// The micro-batch they are of.
    batch: &'a Batch,
    /// Its number within the run, which decides the random choices of its passes.
    micro_batch: u64,
    /// The scheduled values of the step.
    values: &'a StepValues,
}

/// The loss of one micro-batch.
pub struct StepLoss {
    /// The weighted sum of all terms, scalar.
    pub total: Tensor,
    /// The terms by name, weighted, scalars.
    pub terms: Vec<(&'static str, Tensor)>,
    /// The teacher's distributions over the prototypes for the class tokens [2 B, K], where the DINO term is on.
    pub cls_targets: Option<Tensor>,
    /// Seconds the teacher's passes and targets took.
    pub teacher_seconds: f64,
}

impl Method {
    /// A new method: student and teacher from the same `weights`.
    ///
    /// # Errors
    /// Weights that are not those of the configured networks.
    pub fn new(config: &TrainConfig, weights: &Tensors, device: &Device) -> Result<Self> {
        Self::with_teacher(config, weights, weights, device)
    }

    /// A method whose teacher has other weights than its student, as in a run that goes on.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_teacher(
        config: &TrainConfig,
        student: &Tensors,
        teacher: &Tensors,
        device: &Device,
    ) -> Result<Self> {
        let network = NetworkConfig::new(config)?;
        Ok(Self {
            memory: Memory::new(config, teacher, device)?,
            student: Network::from_tensors(&network, student, device, Gradients::Tracked)?,
            teacher: Network::from_tensors(&network, teacher, device, Gradients::None)?,
            config: config.clone(),
            multi_crop: MultiCrop::new(config.crops.clone())?,
            device: device.clone(),
            clock: Clock::default(),
            ranks: Arc::new(OneRank),
            frozen: None,
        })
    }

    /// Times the teacher's passes with this clock.
    pub(super) fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Where the networks are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Shares every step from here on with other ranks.
    pub(super) fn share_with(&mut self, ranks: Arc<dyn Ranks>) {
        self.ranks = ranks;
    }

    /// Gives a distillation its frozen teacher.
    pub fn learn_from(&mut self, frozen: FrozenTargets) {
        self.frozen = Some(frozen);
    }

    /// The objective on one micro-batch. `number` numbers those of the whole run: it decides the stochastic depth.
    ///
    /// # Errors
    /// Crops of another size than configured, failures of candle.
    pub fn loss(
        &mut self,
        micro_batch: &impl MicroBatch,
        number: u64,
        values: &StepValues,
    ) -> Result<StepLoss> {
        let batch = micro_batch.batch();
        let crops = match micro_batch.on_device() {
            Some(on_device) => self.crops(batch, on_device),
            None => self.crops(
                batch,
                &DeviceBatch::upload(batch, &self.multi_crop, &self.device)?,
            ),
        };
        let crops = crops?;
        self.learn_words(&crops)?;
        let step = StepContext {
            crops: &crops,
            batch,
            micro_batch: number,
            values,
        };
        let mut loss = StepLoss {
            total: Tensor::zeros((), candle_core::DType::F32, &self.device)?,
            terms: Vec::new(),
            cls_targets: None,
            teacher_seconds: 0.,
        };
        if self.config.has_info_nce() {
            self.contrast(&step, &mut loss)?;
        }
        if self.config.distill.is_some() {
            self.distil(&step, &mut loss)?;
        } else if self.config.has_dino() || self.config.has_ibot() {
            self.self_distil(&step, &mut loss)?;
        }
        for (_, term) in &loss.terms {
            loss.total = (&loss.total + term)?;
        }
        Ok(loss)
    }
}

impl StepLoss {
    fn push(&mut self, name: &'static str, term: &Tensor, weight: f64) -> Result<()> {
        let weighted = (term * weight)?;
        self.terms.push((name, weighted));
        Ok(())
    }
}
