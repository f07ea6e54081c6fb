//! Gradients of weights, straight into the store that a backward pass leaves.
//!
//! candle's backward pass adds the first gradient of every tensor to zeros: on a GPU two launches a weight, and as many for every
//! tie of [`super::many_parameters`]. A weight is a leaf of the graph, so nothing but the store waits for its gradient:
//! operations of ours can hand it over as it is.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, bail};

/// One forward and backward pass, in which weights (leaves of the graph) get their gradients without candle's additions to zeros.
///
/// The store is what `loss.backward()` gives of a forward pass outside of this. What is run by the forward pass can be differentiated by
/// the backward pass alone.
#[derive(Debug, Clone, Default)]
pub struct DirectGradients(Arc<Mutex<Collected>>);

#[derive(Debug, Default)]
struct Collected {
    /// Whether the backward pass is under way.
    is_open: bool,
    /// Weights and their gradients, a weight as often as operations have used it.
    gradients: Vec<(Tensor, Tensor)>,
}

thread_local! {
    static CURRENT: RefCell<Option<DirectGradients>> = const { RefCell::new(None) };
}

impl DirectGradients {
    /// Runs `work`, whose operations on this thread will leave the gradients of weights here.
    pub fn forward<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Before(Option<DirectGradients>);
        impl Drop for Before {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _before = Before(CURRENT.replace(Some(self.clone())));
        work()
    }

    /// The gradients of `loss`, which [`Self::forward`] made.
    ///
    /// # Errors
    /// Failures of candle.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        self.collected().is_open = true;
        let store = self.forward(|| loss.backward());
        let gradients = std::mem::take(&mut *self.collected()).gradients;
        let mut store = store?;
        for (weight, gradient) in gradients {
            let sum = match store.remove(&weight) {
                Some(before) => before.add(&gradient)?,
                None => gradient,
            };
            store.insert(&weight, sum);
        }
        Ok(store)
    }

    /// The pass that this thread is in.
    pub(super) fn current() -> Option<Self> {
        CURRENT.with_borrow(Option::clone)
    }

    /// Leaves a gradient of `weight`, of as many values.
    pub(super) fn leave(&self, weight: &Tensor, gradient: &Tensor) -> Result<()> {
        let gradient = gradient.detach().reshape(weight.shape())?.contiguous()?;
        let mut collected = self.collected();
        if !collected.is_open {
            bail!(
                "expected the backward pass of the forward pass that an operation was in, found another one"
            )
        }
        collected.gradients.push((weight.clone(), gradient));
        Ok(())
    }

    /// Those of `gradients` that candle has to add up: of an input that is a weight none, where this thread is in a pass.
    pub(super) fn through_graph<const N: usize>(
        inputs: [&Tensor; N],
        mut gradients: [Option<Tensor>; N],
    ) -> Result<[Option<Tensor>; N]> {
        let Some(pass) = Self::current() else {
            return Ok(gradients);
        };
        for (input, gradient) in inputs.into_iter().zip(&mut gradients) {
            if input.is_variable()
                && let Some(gradient) = gradient.take()
            {
                pass.leave(input, &gradient)?;
            }
        }
        Ok(gradients)
    }

    fn collected(&self) -> MutexGuard<'_, Collected> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
