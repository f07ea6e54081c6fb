//! From gradients to new weights: clipping and the update rules, one file each. An optimizer owns its state by parameter
//! name, so that a checkpoint can keep it and a resumed run goes on bit for bit.

mod adamw;
mod any;
mod average;
mod clip;
mod lora;
mod sgd;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor, Var};

pub use adamw::{AdamW, AdamWOptions, Moments};
pub use any::{Optimizer, OptimizerState};
pub use average::Average;
pub(super) use clip::squares_on_device;
pub use clip::{clip_gradients, clip_scale, gradient_norm, gradient_norms, norms_of};
pub use lora::{Lora, LoraOptions};
pub use sgd::Sgd;

use super::param_groups::{ParamGroup, RateSchedule};
use crate::{Error, Result};

/// A trained tensor with its name and how it learns.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name within the run, unique (`backbone.blocks.0.attn.qkv.weight`).
    pub name: String,
    /// The weights, f32.
    pub var: Var,
    /// Its multipliers.
    pub group: ParamGroup,
}

/// The scheduled values of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate of heads before multipliers.
    pub learning_rate: f64,
    /// Learning rate of the backbone.
    pub backbone_learning_rate: f64,
    /// Learning rate of the heads' last layers.
    pub last_layer_learning_rate: f64,
    /// Weight decay before multipliers.
    pub weight_decay: f64,
}

impl Rates {
    /// Learning rate and weight decay of a parameter of `group`.
    pub fn for_group(&self, group: &ParamGroup) -> (f64, f64) {
        let rate = match group.schedule {
            RateSchedule::Backbone => self.backbone_learning_rate,
            RateSchedule::Head => self.learning_rate,
            RateSchedule::LastLayer => self.last_layer_learning_rate,
        };
        (
            rate * group.lr_multiplier,
            self.weight_decay * group.wd_multiplier,
        )
    }
}

/// Fails unless names are unique and weights are f32.
fn check(parameters: &[Parameter]) -> Result<()> {
    let mut names = BTreeSet::new();
    for Parameter { name, var, .. } in parameters {
        if !names.insert(name) {
            return Err(Error::input(
                format!("parameter {name}"),
                "expected once, found twice",
            ));
        }
        if var.dtype() != DType::F32 {
            return Err(Error::input(
                format!("parameter {name}"),
                format!("expected f32 weights, found {:?}", var.dtype()),
            ));
        }
    }
    Ok(())
}

/// Fails where a saved state has a name that is none of `parameters`. It may have more of them than an optimizer keeps.
fn check_state_names<'a>(
    mut saved: impl Iterator<Item = &'a String>,
    parameters: &[Parameter],
) -> Result<()> {
    let names: BTreeSet<&String> = parameters.iter().map(|parameter| &parameter.name).collect();
    match saved.find(|name| !names.contains(name)) {
        Some(name) => Err(Error::input(
            format!("optimizer state {name}"),
            "expected a parameter of this name, found none",
        )),
        None => Ok(()),
    }
}

/// What a saved state has under `name`.
fn found<'a, T>(state: &'a BTreeMap<String, T>, name: &str) -> Result<&'a T> {
    state.get(name).ok_or_else(|| missing(name))
}

/// Of a saved state that lacks `name`.
fn missing(name: &str) -> Error {
    Error::input(
        format!("optimizer state {name}"),
        "expected it in the checkpoint, found none",
    )
}

/// A copy of `saved`, which must look like `own`.
fn copied(name: &str, saved: &Tensor, own: &Tensor) -> Result<Tensor> {
    if saved.dims() != own.dims() || saved.dtype() != own.dtype() {
        return Err(Error::input(
            format!("optimizer state {name}"),
            format!(
                "expected shape {:?} of f32, found {:?} of {:?}",
                own.dims(),
                saved.dims(),
                saved.dtype()
            ),
        ));
    }
    let copy = saved.to_device(own.device()).and_then(|tensor| tensor.copy());
    copy.map_err(Error::from)
}
