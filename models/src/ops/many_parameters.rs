//! Gradients for any number of parameters of one operation, although candle's operations take three arguments at most.
//!
//! The parameters are tied into one value of a single number, which the operation takes as an argument in their place: in the
//! graph it stands between them and the operation, so the backward pass reaches the operation first. That leaves the
//! gradients here, and the ties hand them on. No parameter is copied.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor};

use super::node::node3;

const NAME: &str = "many-parameters";

/// Where the operation leaves the gradients: one place for each parameter.
#[derive(Debug, Clone)]
pub(super) struct Gradients(Arc<Mutex<Vec<Option<Tensor>>>>);

impl Gradients {
    /// Leaves a gradient, or none, for each parameter, with as many values as the parameter.
    pub(super) fn set(&self, gradients: impl IntoIterator<Item = Option<Tensor>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = gradients.into_iter().collect();
    }

    fn take(&self, parameter: usize) -> Option<Tensor> {
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
    let mut value = Tensor::zeros(1, DType::F32, device)?;
    for (pair, two) in parameters.chunks(2).enumerate() {
        let (first, gradients) = (2 * pair, gradients.clone());
        let inputs = [&value, two[0], two[two.len() - 1]]; // one parameter stands for two
        if !inputs.iter().any(|input| input.track_op()) {
            continue;
        }
        let tied = Tensor::zeros(1, DType::F32, device)?;
        value = node3(NAME, inputs, tied, move |[before, one, other], _, grad| {
            let take = |parameter: usize, like: &Tensor| {
                gradients
                    .take(parameter)
                    .filter(|_| like.track_op())
                    .map(|gradient| gradient.reshape(like.shape()))
                    .transpose()
            };
            let one = take(first, one)?;
            let other = take(first + 1, other)?;
            Ok([before.track_op().then(|| grad.clone()), one, other])
        })?;
    }
    Ok((value, gradients))
}
