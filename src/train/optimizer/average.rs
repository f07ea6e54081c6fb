//! The teacher's moving average inside an optimizer's pass over the weights.

use candle_core::{Tensor, Var};

use super::Parameter;
use crate::train::ema::{self, NamedVars};
use crate::train::in_place;
use crate::{Error, Result};

/// A teacher that follows the parameters: `teacher = momentum * teacher + (1 - momentum) * weight` after each step.
#[derive(Debug, Clone, Copy)]
pub struct Average<'a> {
    /// The teacher's weights under the parameters' names; no others, and sharing no storage with them.
    pub teacher: &'a NamedVars,
    /// What stays of the teacher, 0 to 1.
    pub momentum: f64,
}

impl<'a> Average<'a> {
    /// Fails unless teacher and parameters have the same names and shapes and the momentum is in range.
    pub(super) fn check(&self, parameters: &[Parameter]) -> Result<()> {
        ema::check_momentum(self.momentum)?;
        for Parameter { name, var, .. } in parameters {
            ema::check_pair(name, self.teacher.get(name), Some(var))?;
        }
        if self.teacher.len() == parameters.len() {
            return Ok(());
        }
        let spare = |name: &&String| parameters.iter().all(|parameter| parameter.name != **name);
        match self.teacher.keys().find(spare) {
            Some(name) => ema::check_pair(name, self.teacher.get(name), None),
            None => Err(Error::input(
                "teacher",
                format!(
                    "expected {} weights, found {}",
                    parameters.len(),
                    self.teacher.len()
                ),
            )),
        }
    }

    /// The teacher's side of one parameter.
    pub(super) fn averaged(&self, name: &str) -> Option<AveragedWeight<'a>> {
        self.teacher
            .get(name)
            .map(|weights| AveragedWeight::new(weights, self.momentum))
    }
}

/// One weight of the teacher and how fast it follows.
#[derive(Clone, Copy)]
pub(super) struct AveragedWeight<'a> {
    pub(super) weights: &'a Var,
    keep: f32,
    take: f32,
}

impl<'a> AveragedWeight<'a> {
    /// Both factors are rounded from f64: 1 - momentum in f32 would lose digits near 1.
    fn new(weights: &'a Var, momentum: f64) -> Self {
        Self {
            weights,
            keep: momentum as f32,
            take: (1. - momentum) as f32,
        }
    }

    /// What stays of the teacher, and what of the weight is added.
    pub(super) fn factors(&self) -> [f32; 2] {
        [self.keep, self.take]
    }

    #[inline(always)]
    pub(super) fn follow(&self, teacher: &mut [f32], student: &[f32]) {
        for (teacher, student) in teacher.iter_mut().zip(student) {
            *teacher = *teacher * self.keep + student * self.take;
        }
    }

    /// Follows a weight that no step has moved.
    pub(super) fn update(&self, student: &Tensor) -> candle_core::Result<()> {
        in_place::average(
            "teacher average",
            self.weights,
            &student.detach(),
            self.keep,
            self.take,
        )
    }
}
