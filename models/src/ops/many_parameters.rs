//! Gradients for any number of parameters of one operation, although candle's operations take three arguments at most.
//!
//! The parameters are tied into one value of a single number, which the operation takes as an argument in their place: in the
//! graph it stands between them and the operation, so the backward pass reaches the operation first. That leaves the
//! gradients here, and the ties hand them on. No parameter is copied.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::cpu::stored;

const NAME: &str = "many-parameters";

/// Where the operation leaves the gradients: one place for each parameter.
#[derive(Debug, Clone)]
pub(super) struct Gradients(Arc<Mutex<Vec<Option<Vec<f32>>>>>);

impl Gradients {
    /// Leaves a gradient, or none, for each parameter, with as many values as the parameter.
    pub(super) fn set(&self, gradients: impl IntoIterator<Item = Option<Vec<f32>>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = gradients.into_iter().collect();
    }

    fn take(&self, parameter: usize) -> Option<Vec<f32>> {
        let mut gradients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gradients.get_mut(parameter).and_then(Option::take)
    }
}

/// The value that stands for `parameters` (at least one), and where their gradients go.
///
/// It carries a gradient when one of them does.
pub(super) fn tie(parameters: &[&Tensor]) -> Result<(Tensor, Gradients)> {
    let gradients = Gradients(Arc::new(Mutex::new(Vec::new())));
    let device = parameters[0].device();
    let mut value = Tensor::zeros(1, candle_core::DType::F32, device)?;
    for (pair, two) in parameters.chunks(2).enumerate() {
        let tie = Tie {
            first: 2 * pair,
            gradients: gradients.clone(),
        };
        value = value.apply_op3(two[0], two[two.len() - 1], tie)?;
    }
    Ok((value, gradients))
}

/// Two parameters (or one, twice) joined to those before them.
struct Tie {
    first: usize,
    gradients: Gradients,
}

impl CustomOp3 for Tie {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(stored(vec![0.], 1))
    }

    fn bwd(
        &self,
        before: &Tensor,
        first: &Tensor,
        second: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let take = |parameter: usize, like: &Tensor| {
            self.gradients
                .take(parameter)
                .filter(|_| like.track_op())
                .map(|values| Tensor::from_vec(values, like.shape(), like.device()))
                .transpose()
        };
        let first = take(self.first, first)?;
        let second = take(self.first + 1, second)?;
        Ok((before.track_op().then(|| grad.clone()), first, second))
    }
}
