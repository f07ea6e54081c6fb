//! Gradients of weights, straight into the store that a backward pass leaves.
//!
//! candle's backward pass adds the first gradient of every tensor to zeros: on a GPU two launches a weight, and as many for every
//! tie of [`super::many_parameters`]. A weight is a leaf of the graph, so nothing but the store waits for its gradient:
//! operations of ours can hand it over as it is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, bail};

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
    /// The weights that [`DirectGradients::used`] was told of, in the order of their first use.
    used: Vec<Tensor>,
    /// How many of these uses have yet to leave a gradient.
    awaited: HashMap<TensorId, usize>,
    /// Who is told of gradients that are whole.
    listener: Option<Sender<(Tensor, Tensor)>>,
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
        let collected = std::mem::take(&mut *self.collected());
        let mut store = store?;
        let told = |weight: &Tensor| collected.listener.is_some() && collected.is_whole(weight);
        if collected
            .used
            .iter()
            .any(|weight| told(weight) && store.get(weight).is_some())
        {
            bail!("expected no other gradient of a weight that was said to have its own, found one")
        }
        for (weight, gradient) in collected.gradients {
            let sum = match store.remove(&weight) {
                Some(before) => before.add(&gradient)?,
                None => gradient,
            };
            store.insert(&weight, sum);
        }
        Ok(store)
    }

    /// The weights whose gradients the backward pass has whole before it ends, those that it has first (by the order of the forward
    /// pass) first: the same in every process that has run the same operations.
    pub fn early(&self) -> Vec<Tensor> {
        self.collected().used.iter().rev().cloned().collect()
    }

    /// As [`Self::backward`], where `listener` is sent each of the [early](Self::early) weights with its gradient as soon as that is
    /// whole; the store has the others. A weight without a gradient, or not in all of its uses, is not sent, and what there is of it
    /// is in the store.
    ///
    /// # Errors
    /// Failures of candle; a weight that operations of other kinds use as well.
    pub fn backward_telling(self, loss: &Tensor, listener: Sender<(Tensor, Tensor)>) -> Result<GradStore> {
        self.collected().listener = Some(listener);
        self.backward(loss)
    }

    /// Says that an operation uses `weight`, and leaves its gradient as soon as it has it.
    pub(super) fn used(&self, weight: &Tensor) {
        let mut collected = self.collected();
        if !collected.awaited.contains_key(&weight.id()) {
            collected.used.push(weight.clone());
        }
        *collected.awaited.entry(weight.id()).or_default() += 1;
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
        if let Some(awaited) = collected.awaited.get_mut(&weight.id()) {
            *awaited = awaited.saturating_sub(1);
            if *awaited == 0 {
                return collected.tell(weight);
            }
        }
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

impl Collected {
    /// Whether every use of `weight` has left its gradient.
    fn is_whole(&self, weight: &Tensor) -> bool {
        self.awaited.get(&weight.id()) == Some(&0)
    }

    /// Sends the gradient of `weight` to who listens, if anybody does.
    fn tell(&mut self, weight: &Tensor) -> Result<()> {
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        let mut whole: Option<Tensor> = None;
        let parts = std::mem::take(&mut self.gradients);
        for (of, gradient) in parts {
            if of.id() != weight.id() {
                self.gradients.push((of, gradient));
                continue;
            }
            whole = Some(match whole {
                Some(before) => before.add(&gradient)?,
                None => gradient,
            });
        }
        if let Some(gradient) = whole {
            // Who has stopped listening will say why.
            let _ = listener.send((weight.clone(), gradient));
        }
        Ok(())
    }
}
