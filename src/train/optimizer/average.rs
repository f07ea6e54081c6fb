//! The teacher's moving average inside an optimizer's pass over the weights.

use super::Parameter;
use crate::train::ema::{self, NamedVars, update_teacher};
use crate::train::kernels::AveragedWeight;
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

    /// Lets the teacher follow `parameters` as they are now: the numbers of a step that does it in its own pass.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(in crate::train) fn follow(&self, parameters: &[Parameter]) -> Result<()> {
        let named = |parameter: &Parameter| (parameter.name.clone(), parameter.var.clone());
        let student: NamedVars = parameters.iter().map(named).collect();
        update_teacher(self.teacher, &student, self.momentum)
    }

    /// The teacher's side of one parameter.
    pub(super) fn averaged(&self, name: &str) -> Option<AveragedWeight<'a>> {
        self.teacher
            .get(name)
            .map(|weights| AveragedWeight::new(weights, self.momentum))
    }
}
