//! Adam with decoupled weight decay (Loshchilov and Hutter 2019; PyTorch `optim.AdamW`), f32, in place.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};

use super::{Average, Parameter, Rates, check, check_state_names, copied, found};
use crate::train::kernels::{AdamwFactors, AdamwUpdate, Clip, Clipping, Kernels, Moved, Tables, kernels};
use crate::{Error, Result};

/// The constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the mean of gradients, 0 to below 1. Default: 0.9.
    pub beta1: f64,
    /// Decay of the mean of squared gradients, 0 to below 1. Default: 0.999.
    pub beta2: f64,
    /// Added to the root of the squared mean, 0 or above. Default: 1e-8.
    pub eps: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        }
    }
}

impl AdamWOptions {
    fn validate(&self) -> Result<()> {
        for (field, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0. ..1.).contains(&beta) {
                return Err(Error::input(
                    format!("adamw.{field}"),
                    format!("expected a number from 0 to below 1, found {beta}"),
                ));
            }
        }
        if !(self.eps >= 0. && self.eps.is_finite()) {
            return Err(Error::input(
                "adamw.eps",
                format!("expected a number of 0 or above, found {}", self.eps),
            ));
        }
        Ok(())
    }

    /// The numbers of a parameter's update at its `steps`-th step with learning rate `rate` and weight decay `decay`, of a gradient that
    /// is multiplied by `scale` first: computed in f64, as PyTorch does, and rounded once.
    fn factors(&self, steps: u64, (rate, decay): (f64, f64), scale: f64) -> AdamwFactors {
        let correction = |beta: f64| 1. - beta.powf(steps as f64);
        AdamwFactors {
            scale: scale as f32,
            towards: (1. - self.beta1) as f32,
            keep: self.beta2 as f32,
            add: (1. - self.beta2) as f32,
            shrink: (1. - rate * decay) as f32,
            size: (rate / correction(self.beta1)) as f32,
            root: correction(self.beta2).sqrt() as f32,
            eps: self.eps as f32,
        }
    }
}

/// The state of one parameter. The tensors are the optimizer's own, changed in place by every step: a checkpoint writes
/// them before the next one.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Mean of gradients, of the parameter's shape, f32.
    pub first: Tensor,
    /// Mean of squared gradients, of the parameter's shape, f32.
    pub second: Tensor,
    /// Steps this parameter has taken: a step in which it had no gradient does not count.
    pub steps: u64,
}

/// AdamW over named parameters.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    parameters: Vec<Parameter>,
    /// Of the parameters that it moves; the others only have their average taken.
    moments: BTreeMap<String, Moments>,
    /// What a GPU keeps from step to step.
    tables: Tables,
}

impl AdamW {
    /// An optimizer of `parameters`, its moments zero.
    ///
    /// # Errors
    /// Constants out of range, a name that comes twice, weights that are not f32.
    pub fn new(options: AdamWOptions, parameters: Vec<Parameter>) -> Result<Self> {
        options.validate()?;
        check(&parameters)?;
        let mut moments = BTreeMap::new();
        for Parameter { name, var, .. } in &parameters {
            let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device()).map_err(Error::from);
            let start = Moments {
                first: zeros()?,
                second: zeros()?,
                steps: 0,
            };
            moments.insert(name.clone(), start);
        }
        Ok(Self {
            options,
            parameters,
            moments,
            tables: Tables::default(),
        })
    }

    /// From here on keeps the moments of those parameters alone whose names `keeps` takes, and moves no others. The teacher goes on
    /// to follow all of them.
    pub fn keep_only(&mut self, keeps: impl Fn(&str) -> bool) {
        self.moments.retain(|name, _| keeps(name));
    }

    /// The parameters, in the order they were given.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What updates the weights; none where there are none.
    fn kernels(&self) -> Option<&'static dyn Kernels> {
        let first = self.parameters.first();
        first.map(|first| kernels(first.var.device()))
    }

    /// What clips their gradients by norms that the host has not seen, where their device can.
    pub(super) fn clipping(&self) -> Option<&'static dyn Clipping> {
        self.kernels().and_then(|kernels| kernels.clipping())
    }

    /// The state that it keeps, by parameter name.
    pub fn state(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Goes on from a saved state, of which it copies what it keeps.
    ///
    /// # Errors
    /// Names that are no parameters', one that it keeps and that is missing, moments of another shape or type. Nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Moments>) -> Result<()> {
        check_state_names(state.keys(), &self.parameters)?;
        let mut loaded = BTreeMap::new();
        for (name, own) in &self.moments {
            let saved = found(state, name)?;
            let copy = Moments {
                first: copied(name, &saved.first, &own.first)?,
                second: copied(name, &saved.second, &own.second)?,
                steps: saved.steps,
            };
            loaded.insert(name.clone(), copy);
        }
        self.moments = loaded;
        Ok(())
    }

    /// One step: every parameter that has moments, and a gradient in `gradients`, is decayed and moved; the others stay.
    ///
    /// # Errors
    /// Gradients that are not f32.
    pub fn step(&mut self, gradients: &GradStore, rates: &Rates) -> Result<()> {
        self.step_and_average(gradients, rates, |_| 1., None)
    }

    /// [`Self::step`] in one pass over memory with what goes before and after it: gradients are multiplied by
    /// `scale(parameter name)` first ([`super::clip_scale`]), and `teacher` follows the new weights. The same numbers as from
    /// [`super::clip_gradients`], [`Self::step`] and [`crate::train::ema::update_teacher`] in turn.
    ///
    /// # Errors
    /// As [`Self::step`]; a teacher that does not have exactly the parameters' names and shapes, or a momentum outside 0 to 1
    /// (nothing is changed then).
    pub fn step_and_average(
        &mut self,
        gradients: &GradStore,
        rates: &Rates,
        scale: impl Fn(&str) -> f64,
        teacher: Option<Average>,
    ) -> Result<()> {
        if let Some(teacher) = &teacher {
            teacher.check(&self.parameters)?;
        }
        let Some(kernels) = self.kernels() else {
            return Ok(());
        };
        let (tables, updates) = self.updates(gradients, rates, scale, |_| 0, teacher)?;
        kernels.adamw(tables, updates).map_err(Error::from)
    }

    /// [`Self::step_and_average`] where `clipping` clips the gradients: those of a parameter with the group that `group_of` its name is.
    ///
    /// # Errors
    /// As [`Self::step_and_average`].
    pub(in crate::train) fn step_clipped(
        &mut self,
        (clipping, clip): (&dyn Clipping, &Clip),
        gradients: &GradStore,
        rates: &Rates,
        group_of: impl Fn(&str) -> u32,
        teacher: Average,
    ) -> Result<()> {
        teacher.check(&self.parameters)?;
        let (tables, updates) = self.updates(gradients, rates, |_| 1., group_of, Some(teacher))?;
        clipping.adamw(tables, updates, clip).map_err(Error::from)
    }

    /// What a step does to each parameter, and what the device keeps for it; counts the step.
    fn updates<'a>(
        &'a mut self,
        gradients: &GradStore,
        rates: &Rates,
        scale: impl Fn(&str) -> f64,
        group_of: impl Fn(&str) -> u32,
        teacher: Option<Average<'a>>,
    ) -> Result<(&'a mut Tables, Vec<AdamwUpdate<'a>>)> {
        let mut moments: BTreeMap<&String, &mut Moments> = self.moments.iter_mut().collect();
        let mut updates = Vec::with_capacity(self.parameters.len());
        for parameter in &self.parameters {
            let moments = moments.remove(&parameter.name);
            let moved = match gradients.get(&parameter.var).zip(moments) {
                Some((gradient, moments)) => {
                    moments.steps += 1;
                    let rates = rates.for_group(&parameter.group);
                    Some(Moved {
                        gradient: gradient.contiguous()?,
                        factors: self.options.factors(moments.steps, rates, scale(&parameter.name)),
                        first: &mut moments.first,
                        second: &mut moments.second,
                    })
                }
                None => None,
            };
            updates.push(AdamwUpdate {
                weights: &parameter.var,
                moved,
                average: teacher
                    .as_ref()
                    .and_then(|teacher| teacher.averaged(&parameter.name)),
                group: group_of(&parameter.name),
            });
        }
        Ok((&mut self.tables, updates))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::ema::{NamedVars, update_teacher};
    use crate::train::optimizer::{clip_gradients, clip_scale, gradient_norm};
    use crate::train::param_groups::{ParamGroup, RateSchedule};
    use crate::train::testing::{assert_close, fixture, values, values as all};
    use candle_core::{Device, Var};

    const PLAIN: ParamGroup = ParamGroup {
        lr_multiplier: 1.,
        wd_multiplier: 1.,
        schedule: RateSchedule::Head,
    };
    const RATES: Rates = Rates {
        learning_rate: 1e-2,
        backbone_learning_rate: 2e-2,
        last_layer_learning_rate: 0.,
        weight_decay: 0.1,
    };

    fn parameter(name: &str, values: &Tensor, group: ParamGroup) -> Parameter {
        Parameter {
            name: name.into(),
            var: Var::from_tensor(&values.copy().unwrap()).unwrap(),
            group,
        }
    }

    fn optimizer(parameters: Vec<Parameter>) -> AdamW {
        AdamW::new(AdamWOptions::default(), parameters).unwrap()
    }

    /// Gradients of `sum((p - target)^2)` over all parameters.
    fn gradients(adamw: &AdamW, target: &Tensor) -> GradStore {
        let distance = |p: &Parameter| (p.var.as_tensor() - target).unwrap().sqr().unwrap();
        let losses: Vec<Tensor> = adamw.parameters().iter().map(distance).collect();
        Tensor::stack(&losses, 0)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap()
    }

    #[test]
    fn golden_steps_and_a_resumed_run() {
        let golden = fixture("adamw.safetensors");
        let target = &golden["target"];
        let mut adamw = optimizer(vec![parameter("p", &golden["p0"], PLAIN)]);
        for step in 0..5 {
            let mut gradients = gradients(&adamw, target);
            let var = adamw.parameters()[0].var.clone();
            let norm = clip_gradients("all", [&var], &mut gradients, 3.).unwrap();
            assert!(norm > 3., "the golden run clips, norm {norm}");
            adamw.step(&gradients, &RATES).unwrap();
            let expected = golden["steps"].get(step).unwrap();
            assert_close(&format!("step {step}"), &var, &expected, 1e-6);
            // From here on a new optimizer with the saved state, on a copy of the weights.
            let mut resumed = optimizer(vec![parameter("p", &var, PLAIN)]);
            resumed.load_state(adamw.state()).unwrap();
            assert_eq!(resumed.state()["p"].steps, step as u64 + 1);
            adamw = resumed;
        }
    }

    /// Two steps in one pass, and by clipping, stepping and averaging in turn.
    #[test]
    fn one_pass_gives_the_numbers_of_three() {
        let start = Tensor::arange(-1f32, 2e4, &Device::Cpu).unwrap();
        let target = Tensor::ones(start.elem_count(), DType::F32, &Device::Cpu).unwrap();
        let names = ["a", "b"];
        let make = || optimizer(names.map(|name| parameter(name, &start, PLAIN)).to_vec());
        let teacher = || -> NamedVars {
            let zeros = || Var::zeros(start.shape(), DType::F32, &Device::Cpu).unwrap();
            names.map(|name| (name.to_string(), zeros())).into()
        };
        let ((mut fused, average), (mut plain, other)) = ((make(), teacher()), (make(), teacher()));
        for _ in 0..2 {
            let mut store = gradients(&plain, &target);
            let vars: Vec<Var> = plain.parameters().iter().map(|p| p.var.clone()).collect();
            clip_gradients("a", [&vars[0]], &mut store, 3.).unwrap();
            plain.step(&store, &RATES).unwrap();
            let student = names.iter().map(|name| name.to_string()).zip(vars).collect();
            update_teacher(&other, &student, 0.9).unwrap();

            let store = gradients(&fused, &target);
            let norm = gradient_norm("a", [&fused.parameters()[0].var], &store).unwrap();
            let scale = |name: &str| if name == "a" { clip_scale(norm, 3.) } else { 1. };
            let average = Average {
                teacher: &average,
                momentum: 0.9,
            };
            fused
                .step_and_average(&store, &RATES, scale, Some(average))
                .unwrap();
        }
        for (i, name) in names.iter().enumerate() {
            assert_eq!(
                values(&fused.parameters()[i].var),
                values(&plain.parameters()[i].var),
                "{name}"
            );
            assert_eq!(values(&average[*name]), values(&other[*name]), "{name}");
            assert_eq!(
                values(&fused.state()[*name].second),
                values(&plain.state()[*name].second)
            );
        }
    }

    #[test]
    fn the_teacher_follows_what_stays_and_must_fit() {
        let start = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let mut adamw = optimizer(vec![parameter("a", &start, PLAIN)]);
        let none = Tensor::new(1f32, &Device::Cpu).unwrap().backward().unwrap();
        let mut run = |name: &str, values: &[f32], momentum| {
            let teacher: NamedVars = [(name.to_string(), Var::new(values, &Device::Cpu).unwrap())].into();
            let average = Average {
                teacher: &teacher,
                momentum,
            };
            let result = adamw.step_and_average(&none, &RATES, |_| 1., Some(average));
            result
                .map(|()| all(&teacher[name]))
                .map_err(|error| error.to_string())
        };
        assert_eq!(run("a", &[3., 4.], 0.5), Ok(vec![2., 3.]));
        for (name, values, momentum, expected) in [
            (
                "b",
                &[3f32, 4.][..],
                0.5,
                "weight a: expected it in both teacher and student, found it in one",
            ),
            (
                "a",
                &[3.],
                0.5,
                "weight a: expected the teacher's shape [1], found [2]",
            ),
            (
                "a",
                &[3., 4.],
                1.5,
                "teacher momentum: expected a number from 0 to 1, found 1.5",
            ),
        ] {
            assert_eq!(run(name, values, momentum), Err(expected.to_string()));
        }
    }

    #[test]
    fn groups_scale_rate_and_decay() {
        let start = Tensor::new(&[1f32, -2., 3.], &Device::Cpu).unwrap();
        let group = |lr_multiplier, wd_multiplier, schedule| ParamGroup {
            lr_multiplier,
            wd_multiplier,
            schedule,
        };
        let mut adamw = optimizer(vec![
            parameter("slow", &start, group(0.5, 1., RateSchedule::Head)),
            parameter("undecayed", &start, group(1., 0., RateSchedule::Head)),
            parameter("last_layer", &start, group(1., 1., RateSchedule::LastLayer)),
            parameter("backbone", &start, group(1., 1., RateSchedule::Backbone)),
        ]);
        let target = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let gradients = gradients(&adamw, &target);
        adamw.step(&gradients, &RATES).unwrap();
        // The first step moves each weight by the rate against the gradient's sign, after decay.
        let moved = |rate: f64, decay: f64| {
            let to = [1f64, -2., 3.].map(|w| w * (1. - rate * decay) - rate * w.signum());
            Tensor::new(&to, &Device::Cpu).unwrap()
        };
        for (parameter, (rate, decay)) in
            adamw
                .parameters()
                .iter()
                .zip([(0.005, 0.1), (0.01, 0.), (0., 0.1), (0.02, 0.1)])
        {
            assert_close(&parameter.name, &parameter.var, &moved(rate, decay), 1e-6);
        }
    }

    #[test]
    fn without_a_gradient_nothing_moves_or_counts() {
        let start = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let mut adamw = optimizer(vec![parameter("a", &start, PLAIN), parameter("b", &start, PLAIN)]);
        let store = adamw.parameters()[0]
            .var
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .backward();
        adamw.step(&store.unwrap(), &RATES).unwrap();
        assert_eq!(values(&adamw.parameters()[1].var), [1., 2.]);
        assert_eq!((adamw.state()["a"].steps, adamw.state()["b"].steps), (1, 0));
    }

    #[test]
    fn what_is_not_kept_stays_and_has_its_average_taken() {
        let start = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let names = ["a", "b"];
        let both = || optimizer(names.map(|name| parameter(name, &start, PLAIN)).to_vec());
        let teacher: NamedVars = names
            .map(|name| (name.to_owned(), Var::new(&[3f32, 4.], &Device::Cpu).unwrap()))
            .into();
        let target = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let (mut whole, mut part) = (both(), both());
        part.keep_only(|name| name == "a");
        let average = Average {
            teacher: &teacher,
            momentum: 0.5,
        };
        let all_gradients = gradients(&part, &target);
        part.step_and_average(&all_gradients, &RATES, |_| 1., Some(average))
            .unwrap();
        whole.step(&gradients(&whole, &target), &RATES).unwrap();
        let [moved, stays] = [0, 1].map(|i| all(&part.parameters()[i].var));
        assert_eq!(moved, all(&whole.parameters()[0].var));
        assert_eq!(stays, [1., 2.]);
        assert_eq!(all(&teacher["b"]), [2., 3.]);
        assert!(part.state().keys().eq(["a"]));
        // Of a whole state it takes its part, and it misses none but that.
        part.load_state(whole.state()).unwrap();
        assert_eq!(all(&part.state()["a"].second), all(&whole.state()["a"].second));
        whole.keep_only(|name| name == "b");
        assert_eq!(
            part.load_state(whole.state()).unwrap_err().to_string(),
            "optimizer state a: expected it in the checkpoint, found none"
        );
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused() {
        let start = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let three = Tensor::new(&[1f32, 2., 3.], &Device::Cpu).unwrap();
        let mut adamw = optimizer(vec![parameter("a", &start, PLAIN)]);
        let refused = |adamw: &mut AdamW, other: &AdamW| {
            let error = adamw.load_state(other.state()).unwrap_err();
            error.to_string()
        };
        let shape = refused(&mut adamw, &optimizer(vec![parameter("a", &three, PLAIN)]));
        assert_eq!(
            shape,
            "optimizer state a: expected shape [2] of f32, found [3] of F32"
        );
        let spare = refused(&mut adamw, &optimizer(vec![parameter("b", &start, PLAIN)]));
        assert_eq!(
            spare,
            "optimizer state b: expected a parameter of this name, found none"
        );
        let missing = refused(&mut adamw, &optimizer(vec![]));
        assert_eq!(
            missing,
            "optimizer state a: expected it in the checkpoint, found none"
        );
    }

    #[test]
    fn bad_settings_are_named() {
        let start = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        let twice = vec![parameter("a", &start, PLAIN), parameter("a", &start, PLAIN)];
        let error = AdamW::new(AdamWOptions::default(), twice).unwrap_err();
        assert_eq!(error.to_string(), "parameter a: expected once, found twice");
        let options = AdamWOptions {
            beta2: 1.,
            ..AdamWOptions::default()
        };
        let error = AdamW::new(options, vec![]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "adamw.beta2: expected a number from 0 to below 1, found 1"
        );
    }
}
