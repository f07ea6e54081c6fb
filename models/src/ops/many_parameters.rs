//! Gradients for any number of parameters of one operation, although candle's operations take three arguments at most.
//!
//! The parameters are tied into one value of a single number, which the operation takes as an argument in their place: in the
//! graph it stands between them and the operation, so the backward pass reaches the operation first. That leaves the
//! gradients here, and the ties hand them on. No parameter is copied.
//!
//! In a pass of [`DirectGradients`] weights need no ties: the operation leaves their gradients there.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, Var};

use super::direct_gradients::DirectGradients;
use super::node::node3;

const NAME: &str = "many-parameters";

/// Where the operation leaves the gradients: one place for each parameter.
#[derive(Debug, Clone)]
pub(super) enum Gradients {
    /// For the ties.
    Tied(Arc<Mutex<Vec<Option<Tensor>>>>),
    /// For the pass, of these parameters.
    Direct(DirectGradients, Vec<Tensor>),
}

impl Gradients {
    /// Leaves a gradient, or none, for each parameter, with as many values as the parameter; the gradient of the value that stands
    /// for them.
    ///
    /// # Errors
    /// A backward pass that is not that of the forward pass.
    pub(super) fn set(
        &self,
        gradients: impl IntoIterator<Item = Option<Tensor>>,
        tied: &Tensor,
    ) -> Result<Option<Tensor>> {
        self.leave(0, gradients)?;
        self.finish(tied)
    }

    /// Leaves those of the parameters from number `first` on, before those of others are known; [`Self::finish`] follows.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub(super) fn leave(
        &self,
        first: usize,
        gradients: impl IntoIterator<Item = Option<Tensor>>,
    ) -> Result<()> {
        match self {
            Self::Tied(places) => {
                let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
                for (place, gradient) in (first..).zip(gradients) {
                    if places.len() <= place {
                        places.resize(place + 1, None);
                    }
                    places[place] = gradient;
                }
            }
            Self::Direct(pass, parameters) => {
                for (parameter, gradient) in parameters.iter().skip(first).zip(gradients) {
                    if let Some(gradient) = gradient.filter(|_| parameter.track_op()) {
                        pass.leave(parameter, &gradient)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The gradient of the value that stands for the parameters, once theirs are left.
    ///
    /// # Errors
    /// Failures of candle.
    pub(super) fn finish(&self, tied: &Tensor) -> Result<Option<Tensor>> {
        match self {
            Self::Tied(_) => tied.track_op().then(|| tied.zeros_like()).transpose(),
            Self::Direct(..) => Ok(None),
        }
    }
}

/// The value that stands for `parameters` (at least one), and where their gradients go.
///
/// It carries a gradient when one of them does.
pub(super) fn tie(parameters: &[&Tensor]) -> Result<(Tensor, Gradients)> {
    let device = parameters[0].device();
    let mut tracked = parameters
        .iter()
        .filter(|parameter| parameter.track_op())
        .peekable();
    if let Some(pass) = DirectGradients::current()
        && tracked.peek().is_some()
        && tracked.all(|parameter| parameter.is_variable())
    {
        let stands_for_all = Var::zeros(1, DType::F32, device)?.into_inner();
        let parameters: Vec<Tensor> = parameters.iter().map(|&parameter| parameter.clone()).collect();
        parameters
            .iter()
            .filter(|parameter| parameter.track_op())
            .for_each(|parameter| pass.used(parameter));
        return Ok((stands_for_all, Gradients::Direct(pass, parameters)));
    }
    let places = Arc::new(Mutex::new(Vec::new()));
    let mut value = Tensor::zeros(1, DType::F32, device)?;
    for (pair, two) in parameters.chunks(2).enumerate() {
        let (first, places) = (2 * pair, places.clone());
        let inputs = [&value, two[0], two[two.len() - 1]]; // one parameter stands for two
        if !inputs.iter().any(|input| input.track_op()) {
            continue;
        }
        let tied = Tensor::zeros(1, DType::F32, device)?;
        value = node3(NAME, inputs, tied, move |[before, one, other], _, grad| {
            let one = take(&places, first, one)?;
            let other = take(&places, first + 1, other)?;
            Ok([before.track_op().then(|| grad.clone()), one, other])
        })?;
    }
    Ok((value, Gradients::Tied(places)))
}

/// The gradient in a place, in the shape of its parameter, where that carries one.
fn take(places: &Mutex<Vec<Option<Tensor>>>, parameter: usize, like: &Tensor) -> Result<Option<Tensor>> {
    let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
    let gradient = places.get_mut(parameter).and_then(Option::take);
    drop(places);
    gradient
        .filter(|_| like.track_op())
        .map(|gradient| gradient.reshape(like.shape()))
        .transpose()
}
