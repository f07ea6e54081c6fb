//! Stochastic gradient descent with momentum (Polyak 1964; PyTorch `optim.SGD`, which MoCo trains with), f32, in place.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use super::{Parameter, Rates, check, check_state_names, copied, found};
use crate::train::kernels::{SgdFactors, kernels};
use crate::{Error, Result};

/// SGD over named parameters: `v = momentum * v + gradient + decay * weight`, `weight -= rate * v`. The decay passes through
/// the velocity, unlike AdamW's.
#[derive(Debug)]
pub struct Sgd {
    momentum: f64,
    parameters: Vec<Parameter>,
    /// Of the parameters that it moves.
    velocities: BTreeMap<String, Var>,
}

impl Sgd {
    /// An optimizer of `parameters`, at rest.
    ///
    /// # Errors
    /// A momentum outside 0 to below 1, a name that comes twice, weights that are not f32.
    pub fn new(momentum: f64, parameters: Vec<Parameter>) -> Result<Self> {
        if !(0. ..1.).contains(&momentum) {
            return Err(Error::input(
                "sgd.momentum",
                format!("expected a number from 0 to below 1, found {momentum}"),
            ));
        }
        check(&parameters)?;
        let at_rest = |parameter: &Parameter| {
            let var = &parameter.var;
            let zeros = Var::zeros(var.shape(), DType::F32, var.device())?;
            Ok((parameter.name.clone(), zeros))
        };
        let velocities = parameters.iter().map(at_rest).collect::<Result<_>>()?;
        Ok(Self {
            momentum,
            parameters,
            velocities,
        })
    }

    /// From here on keeps the velocities of those parameters alone whose names `keeps` takes, and moves no others.
    pub fn keep_only(&mut self, keeps: impl Fn(&str) -> bool) {
        self.velocities.retain(|name, _| keeps(name));
    }

    /// Whether it moves the parameter `name`.
    pub fn keeps(&self, name: &str) -> bool {
        self.velocities.contains_key(name)
    }

    /// The parameters, in the order they were given.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The velocities that it keeps, by parameter name: the optimizer's own tensors, changed in place by every step.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let view = |(name, velocity): (&String, &Var)| (name.clone(), velocity.as_detached_tensor());
        self.velocities.iter().map(view).collect()
    }

    /// Goes on from saved velocities, of which it copies what it keeps.
    ///
    /// # Errors
    /// Names that are no parameters', one that it keeps and that is missing, tensors of another shape or type. Nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        check_state_names(state.keys(), &self.parameters)?;
        let mut loaded = BTreeMap::new();
        for (name, own) in &self.velocities {
            let copy = copied(name, found(state, name)?, own)?;
            loaded.insert(name.clone(), Var::from_tensor(&copy)?);
        }
        self.velocities = loaded;
        Ok(())
    }

    /// One step: every parameter that has a velocity, and a gradient in `gradients`, is moved; the others stay.
    ///
    /// # Errors
    /// Gradients that are not f32.
    pub fn step(&mut self, gradients: &GradStore, rates: &Rates) -> Result<()> {
        for parameter in &self.parameters {
            let gradient = gradients.get(&parameter.var);
            let (Some(gradient), Some(velocity)) = (gradient, self.velocities.get(&parameter.name)) else {
                continue;
            };
            let (rate, decay) = rates.for_group(&parameter.group);
            self.advance(parameter, velocity, gradient, rate, decay)?;
        }
        Ok(())
    }

    fn advance(
        &self,
        parameter: &Parameter,
        velocity: &Var,
        gradient: &Tensor,
        rate: f64,
        decay: f64,
    ) -> candle_core::Result<()> {
        let factors = SgdFactors {
            keep: self.momentum as f32,
            decay: decay as f32,
            rate: rate as f32,
        };
        let weights = &parameter.var;
        kernels(weights.device()).sgd(weights, velocity, &gradient.contiguous()?, factors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::param_groups::{ParamGroup, RateSchedule};
    use crate::train::testing::{assert_close, values};
    use candle_core::Device;

    const RATES: Rates = Rates {
        learning_rate: 0.03,
        backbone_learning_rate: 0.,
        last_layer_learning_rate: 0.,
        weight_decay: 0.1,
    };
    const TARGET: [f64; 3] = [0.5, -1., 2.];

    fn parameter(name: &str, wd_multiplier: f64, values: &[f64]) -> Parameter {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        Parameter {
            name: name.into(),
            var: Var::new(values, &Device::Cpu).unwrap(),
            group: ParamGroup {
                lr_multiplier: 1.,
                wd_multiplier,
                schedule: RateSchedule::Head,
            },
        }
    }

    /// Gradients of `sum((p - target)^2)`.
    fn gradients(sgd: &Sgd) -> GradStore {
        let target = Tensor::new(&TARGET.map(|x| x as f32), &Device::Cpu).unwrap();
        let distance = |p: &Parameter| (p.var.as_tensor() - &target).unwrap().sqr().unwrap();
        let losses: Vec<Tensor> = sgd.parameters().iter().map(distance).collect();
        Tensor::stack(&losses, 0)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap()
    }

    #[test]
    fn steps_follow_the_formula_and_resume() {
        let start = [1., 2., 3.];
        let make =
            |a: &[f64], b: &[f64]| Sgd::new(0.9, vec![parameter("a", 1., a), parameter("b", 0., b)]).unwrap();
        let mut sgd = make(&start, &start);
        let mut expected = [(0.1, start, [0.; 3]), (0., start, [0.; 3])];
        for step in 0..6 {
            sgd.step(&gradients(&sgd), &RATES).unwrap();
            for ((decay, weights, velocity), parameter) in expected.iter_mut().zip(sgd.parameters()) {
                for ((w, v), target) in weights.iter_mut().zip(velocity.iter_mut()).zip(TARGET) {
                    *v = 0.9 * *v + 2. * (*w - target) + *decay * *w;
                    *w -= 0.03 * *v;
                }
                let weights = Tensor::new(&*weights, &Device::Cpu).unwrap();
                assert_close(&format!("step {step}"), &parameter.var, &weights, 1e-6);
            }
            let weights: Vec<Vec<f64>> = sgd.parameters().iter().map(|p| values(&p.var)).collect();
            let mut resumed = make(&weights[0], &weights[1]);
            resumed.load_state(&sgd.state()).unwrap();
            sgd = resumed;
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut sgd = Sgd::new(0.9, vec![parameter("a", 1., &[1., 2.])]).unwrap();
        let other = Sgd::new(0.9, vec![parameter("a", 1., &[1.])]).unwrap();
        assert_eq!(
            sgd.load_state(&other.state()).unwrap_err().to_string(),
            "optimizer state a: expected shape [2] of f32, found [1] of F32"
        );
        assert_eq!(
            sgd.load_state(&BTreeMap::new()).unwrap_err().to_string(),
            "optimizer state a: expected it in the checkpoint, found none"
        );
        assert_eq!(
            Sgd::new(1., vec![]).unwrap_err().to_string(),
            "sgd.momentum: expected a number from 0 to below 1, found 1"
        );
    }
}
