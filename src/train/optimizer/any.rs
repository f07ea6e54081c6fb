//! The optimizer a configuration names, with its state as named tensors.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use macula_models::weights::Tensors;

use super::{AdamW, AdamWOptions, Average, Lora, LoraOptions, Moments, Parameter, Rates, Sgd, missing};
use crate::Result;
use crate::train::config::{OptimizerConfig, OptimizerKind};
use crate::train::kernels::Clipping;

/// Prefixes of the names of state tensors.
const FIRST: &str = "first.";
const SECOND: &str = "second.";
const VELOCITY: &str = "velocity.";
const LORA: &str = "lora.";
/// What errors call the number of a parameter's steps.
const STEPS: &str = "steps.";

/// What moves the weights.
#[derive(Debug)]
pub enum Optimizer {
    /// AdamW.
    AdamW(AdamW),
    /// AdamW of heads and of adapters of the backbone.
    Lora(Lora),
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
    /// The optimizer of `config` over `parameters`, at rest. `seed` decides the noise of adapters.
    ///
    /// # Errors
    /// Constants out of range, a name that comes twice.
    pub fn new(config: &OptimizerConfig, parameters: Vec<Parameter>, seed: u64) -> Result<Self> {
        let options = AdamWOptions {
            beta1: config.beta1,
            beta2: config.beta2,
            ..AdamWOptions::default()
        };
        Ok(match config.kind {
            OptimizerKind::Adamw if config.lora_rank > 0 => {
                let lora = LoraOptions {
                    rank: config.lora_rank,
                    scale: config.lora_alpha / config.lora_rank as f64,
                    seed,
                };
                Self::Lora(Lora::new(options, &lora, parameters)?)
            }
            OptimizerKind::Adamw => Self::AdamW(AdamW::new(options, parameters)?),
            OptimizerKind::Sgd => Self::Sgd(Sgd::new(config.momentum, parameters)?),
        })
    }

    /// The parameters.
    pub fn parameters(&self) -> &[Parameter] {
        match self {
            Self::AdamW(adamw) => adamw.parameters(),
            Self::Lora(lora) => lora.parameters(),
            Self::Sgd(sgd) => sgd.parameters(),
        }
    }

    /// From here on keeps the state of those parameters alone whose names `keeps` takes, and moves no others. Adapters are all kept.
    pub fn keep_only(&mut self, keeps: impl Fn(&str) -> bool) {
        match self {
            Self::AdamW(adamw) => adamw.keep_only(keeps),
            Self::Lora(_) => {}
            Self::Sgd(sgd) => sgd.keep_only(keeps),
        }
    }

    /// Bytes of the state that is kept.
    pub fn state_bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        self.state().tensors.values().map(bytes).sum()
    }

    /// One step: gradients are multiplied by `scale(parameter name)`, and `teacher`, where there is one, follows the new weights. It
    /// has the parameters' names.
    ///
    /// # Errors
    /// Gradients that are not f32, a teacher with other weights, a momentum outside 0 to 1.
    pub fn step(
        &mut self,
        gradients: &mut GradStore,
        rates: &Rates,
        scale: impl Fn(&str) -> f64,
        teacher: Option<Average>,
    ) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.step_and_average(gradients, rates, scale, teacher),
            Self::Lora(lora) => lora.step(gradients, rates, scale, teacher),
            Self::Sgd(sgd) => {
                for Parameter { name, var, .. } in sgd.parameters() {
                    let factor = scale(name);
                    if factor < 1.
                        && sgd.keeps(name)
                        && let Some(gradient) = gradients.remove(var)
                    {
                        let scaled = (gradient * factor)?;
                        gradients.insert(var, scaled);
                    }
                }
                sgd.step(gradients, rates)?;
                teacher.map_or(Ok(()), |teacher| teacher.follow(sgd.parameters()))
            }
        }
    }

    /// AdamW and what clips its gradients by norms that the host has not seen, where its device can.
    pub(in crate::train) fn clipping_on_device(&mut self) -> Option<(&mut AdamW, &'static dyn Clipping)> {
        match self {
            Self::AdamW(adamw) => adamw.clipping().map(|clipping| (adamw, clipping)),
            Self::Lora(_) | Self::Sgd(_) => None,
        }
    }

    /// The state as a checkpoint keeps it. The tensors are the optimizer's own and change with the next step.
    pub fn state(&self) -> OptimizerState {
        let mut state = OptimizerState::default();
        match self {
            Self::AdamW(adamw) => state.keep(adamw.state().iter()),
            Self::Lora(lora) => {
                state.keep(lora.moments());
                let tensors = lora.tensors().into_iter();
                state
                    .tensors
                    .extend(tensors.map(|(name, tensor)| (format!("{LORA}{name}"), tensor)));
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
        match self {
            Self::AdamW(adamw) => adamw.load_state(&state.moments()?),
            Self::Lora(lora) => lora.load(state.moments()?, &state.named(LORA)),
            Self::Sgd(sgd) => sgd.load_state(&state.named(VELOCITY)),
        }
    }
}

impl OptimizerState {
    fn keep<'a>(&mut self, moments: impl Iterator<Item = (&'a String, &'a Moments)>) {
        for (name, moments) in moments {
            let Moments { first, second, steps } = moments.clone();
            self.tensors.insert(format!("{FIRST}{name}"), first);
            self.tensors.insert(format!("{SECOND}{name}"), second);
            self.steps.insert(name.clone(), steps);
        }
    }

    /// What is kept under names that begin with `prefix`, without it.
    fn named(&self, prefix: &str) -> Tensors {
        let strip = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
        };
        self.tensors.iter().filter_map(strip).collect()
    }

    fn moments(&self) -> Result<BTreeMap<String, Moments>> {
        let mut second = self.named(SECOND);
        let mut moments = BTreeMap::new();
        for (name, first) in self.named(FIRST) {
            let entry = Moments {
                first,
                second: second
                    .remove(&name)
                    .ok_or_else(|| missing(&format!("{SECOND}{name}")))?,
                steps: *self
                    .steps
                    .get(&name)
                    .ok_or_else(|| missing(&format!("{STEPS}{name}")))?,
            };
            moments.insert(name, entry);
        }
        Ok(moments)
    }
}
