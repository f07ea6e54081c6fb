//! The optimizer a configuration names, with its state as named tensors.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use macula_models::weights::Tensors;

use super::{AdamW, AdamWOptions, Average, Moments, Parameter, Rates, Sgd};
use crate::train::config::{OptimizerConfig, OptimizerKind};
use crate::train::ema::{NamedVars, update_teacher};
use crate::train::kernels::Clipping;
use crate::{Error, Result};

/// Prefixes of the names of state tensors.
const FIRST: &str = "first.";
const SECOND: &str = "second.";
const VELOCITY: &str = "velocity.";

/// AdamW or SGD.
#[derive(Debug)]
pub enum Optimizer {
    /// AdamW.
    AdamW(AdamW),
    /// SGD with momentum.
    Sgd(Sgd),
}

/// What a checkpoint keeps of an optimizer.
#[derive(Debug, Clone, Default)]
pub struct OptimizerState {
    /// Moments or velocities, named after their parameters.
    pub tensors: Tensors,
    /// AdamW's steps of each parameter.
    pub steps: BTreeMap<String, u64>,
}

impl Optimizer {
    /// The optimizer of `config` over `parameters`, at rest.
    ///
    /// # Errors
    /// Constants out of range, a name that comes twice.
    pub fn new(config: &OptimizerConfig, parameters: Vec<Parameter>) -> Result<Self> {
        Ok(match config.kind {
            OptimizerKind::Adamw => {
                let options = AdamWOptions {
                    beta1: config.beta1,
                    beta2: config.beta2,
                    ..AdamWOptions::default()
                };
                Self::AdamW(AdamW::new(options, parameters)?)
            }
            OptimizerKind::Sgd => Self::Sgd(Sgd::new(config.momentum, parameters)?),
        })
    }

    /// The parameters.
    pub fn parameters(&self) -> &[Parameter] {
        match self {
            Self::AdamW(adamw) => adamw.parameters(),
            Self::Sgd(sgd) => sgd.parameters(),
        }
    }

    /// One step: gradients are multiplied by `scale(parameter name)`, and `teacher`, which has the parameters' names, follows
    /// the new weights.
    ///
    /// # Errors
    /// Gradients that are not f32, a teacher with other weights, a momentum outside 0 to 1.
    pub fn step(
        &mut self,
        gradients: &mut GradStore,
        rates: &Rates,
        scale: impl Fn(&str) -> f64,
        teacher: Average,
    ) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.step_and_average(gradients, rates, scale, Some(teacher)),
            Self::Sgd(sgd) => {
                let mut student = NamedVars::new();
                for Parameter { name, var, .. } in sgd.parameters() {
                    student.insert(name.clone(), var.clone());
                    let factor = scale(name);
                    if factor < 1.
                        && let Some(gradient) = gradients.remove(var)
                    {
                        let scaled = (gradient * factor)?;
                        gradients.insert(var, scaled);
                    }
                }
                sgd.step(gradients, rates)?;
                update_teacher(teacher.teacher, &student, teacher.momentum)
            }
        }
    }

    /// AdamW and what clips its gradients by norms that the host has not seen, where its device can.
    pub(in crate::train) fn clipping_on_device(&mut self) -> Option<(&mut AdamW, &'static dyn Clipping)> {
        match self {
            Self::AdamW(adamw) => adamw.clipping().map(|clipping| (adamw, clipping)),
            Self::Sgd(_) => None,
        }
    }

    /// The state as a checkpoint keeps it. The tensors are the optimizer's own and change with the next step.
    pub fn state(&self) -> OptimizerState {
        let mut state = OptimizerState::default();
        match self {
            Self::AdamW(adamw) => {
                for (name, moments) in adamw.state() {
                    let Moments { first, second, steps } = moments.clone();
                    state.tensors.insert(format!("{FIRST}{name}"), first);
                    state.tensors.insert(format!("{SECOND}{name}"), second);
                    state.steps.insert(name.clone(), steps);
                }
            }
            Self::Sgd(sgd) => {
                for (name, velocity) in sgd.state() {
                    state.tensors.insert(format!("{VELOCITY}{name}"), velocity);
                }
            }
        }
        state
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// A tensor that is missing, spare or misshapen; nothing is changed then.
    pub fn load_state(&mut self, state: &OptimizerState) -> Result<()> {
        let of = |prefix: &str| -> BTreeMap<String, candle_core::Tensor> {
            let strip = |(name, tensor): (&String, &candle_core::Tensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
            };
            state.tensors.iter().filter_map(strip).collect()
        };
        match self {
            Self::AdamW(adamw) => {
                let mut second = of(SECOND);
                let mut moments = BTreeMap::new();
                for (name, first) in of(FIRST) {
                    let missing = |what: &str| {
                        let what = format!("optimizer state {what}{name}");
                        Error::input(what, "expected it in the checkpoint, found none")
                    };
                    let entry = Moments {
                        first,
                        second: second.remove(&name).ok_or_else(|| missing(SECOND))?,
                        steps: *state.steps.get(&name).ok_or_else(|| missing("steps."))?,
                    };
                    moments.insert(name, entry);
                }
                adamw.load_state(&moments)
            }
            Self::Sgd(sgd) => sgd.load_state(&of(VELOCITY)),
        }
    }
}
