//! Patches whose similarities to each other stay those of another network.

use candle_core::{Device, Tensor};
use macula_models::weights::Tensors;

use super::crops::{BackboneOutput, Crops};
use super::{Method, StepLoss};
use crate::train::config::{AnchorNetwork, StepValues};
use crate::train::ema::NamedVars;
use crate::train::losses::patch_similarity_loss;
use crate::train::network::{Gradients, Network, NetworkConfig};
use crate::{Error, Result};

/// A backbone as it was at an earlier step.
#[derive(Debug)]
pub struct Anchor(Network);

impl Anchor {
    /// That of `teacher`, whose other parts are left out.
    pub(super) fn new(network: &NetworkConfig, teacher: &Tensors, device: &Device) -> Result<Self> {
        let network = network.backbone_alone();
        let names = network.parameters();
        let own = names
            .iter()
            .filter_map(|(name, _)| Some((name.clone(), teacher.get(name)?.clone())));
        let tensors: Tensors = own.collect();
        Network::from_tensors(&network, &tensors, device, Gradients::None).map(Self)
    }

    /// Becomes what `network` is now.
    fn take(&self, network: &Network) -> Result<()> {
        for (name, own) in self.0.weights() {
            let now = network.weights().get(name).ok_or_else(|| {
                Error::input(format!("weight {name}"), "expected it in the teacher, found none")
            })?;
            own.set(now.as_tensor())?;
        }
        Ok(())
    }

    /// Its weights under their full names.
    pub(super) fn weights(&self) -> &NamedVars {
        self.0.weights()
    }

    /// Views of them, for a checkpoint.
    pub(super) fn tensors(&self) -> Tensors {
        self.0.tensors()
    }
}

/// Which patches of the global crops are read: those that are hidden from the student, or all where they are held to another network.
pub(super) struct PatchRequest<'a> {
    masked: &'a [u32],
    all: Option<Vec<u32>>,
}

impl<'a> PatchRequest<'a> {
    /// Places in [2 B, N].
    pub(super) fn new(masked: &'a [u32], all: Option<usize>) -> Self {
        Self {
            masked,
            all: all.map(|count| (0..count as u32).collect()),
        }
    }

    /// Places of what is read, in [2 B, N].
    pub(super) fn places(&self) -> &[u32] {
        self.all.as_deref().unwrap_or(self.masked)
    }

    /// Whether all are read.
    pub(super) fn is_whole(&self) -> bool {
        self.all.is_some()
    }

    /// The masked ones [M, D] of what was read.
    pub(super) fn masked(&self, read: Option<&Tensor>) -> Result<Option<Tensor>> {
        match read {
            Some(_) if self.masked.is_empty() => Ok(None),
            Some(all) if self.all.is_some() => {
                let places = Tensor::new(self.masked, all.device())?;
                Ok(Some(all.index_select(&places, 0)?))
            }
            other => Ok(other.cloned()),
        }
    }
}

impl Method {
    /// What is due before the micro-batches of `step`.
    ///
    /// # Errors
    /// Failures of candle.
    pub fn begin_step(&mut self, step: u64) -> Result<()> {
        match &self.memory.anchor {
            Some(anchor) if self.config.loss.patch_anchor.is_taken_at(step) => anchor.take(&self.teacher),
            _ => Ok(()),
        }
    }

    /// How many patches the global crops have, where all are compared at this step.
    pub(super) fn held_patches(&self, crops: &Crops, values: &StepValues) -> Result<Option<usize>> {
        match values.patch_anchor_weight {
            0. => Ok(None),
            _ => Ok(Some(crops.global.dim(0)? * self.config.grid()?.patches())),
        }
    }

    /// Whether they are compared with the teacher's.
    pub(super) fn is_held_to_the_teacher(&self) -> bool {
        self.config.loss.patch_anchor.network == AnchorNetwork::Teacher
    }

    /// The term on the `student`'s patches [2 B N, D] of the global crops; `teacher` has the teacher's, where they are what counts.
    pub(super) fn anchor_term(
        &self,
        crops: &Crops,
        student: &Tensor,
        teacher: Option<&Tensor>,
        values: &StepValues,
        loss: &mut StepLoss,
    ) -> Result<()> {
        let by_crop = |patches: &Tensor| {
            let (rows, width) = patches.dims2()?;
            let images = crops.global.dim(0)?;
            patches.reshape((images, rows / images, width)) // [2 B, N, D]
        };
        let earlier = match &self.memory.anchor {
            Some(Anchor(network)) => {
                let every: Vec<u32> = (0..student.dim(0)? as u32).collect();
                BackboneOutput::forward(&network.vit, &crops.global, None, None, &every)?.patches
            }
            None => None,
        };
        let Some(held_to) = earlier.as_ref().or(teacher) else {
            return Err(Error::failed(
                "patch anchor",
                "no network says how alike patches are",
            ));
        };
        let measure = self.config.loss.patch_anchor.measure;
        let term = patch_similarity_loss(&by_crop(student)?, &by_crop(held_to)?, measure)?;
        loss.push("patch_anchor", &term, values.patch_anchor_weight)
    }
}
