//! What the threads of a loader share: the batches in work, cut into tasks of one image each, which workers claim in order.
//! A batch is given out when all its tasks are done. Nothing is claimed beyond the batches that may be ahead, so memory is
//! bounded without a queue of results.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::batch::{Batch, SampleShape};
use super::order::{Image, Order};
use super::plan::BatchPlan;
use crate::{Error, Result};

/// One piece of work.
pub(super) struct Task {
    /// Step of the batch.
    pub step: u64,
    /// Images of the batch.
    pub size: usize,
    /// What is to be made.
    pub part: Part,
    /// Where it goes.
    pub batch: Arc<Mutex<Batch>>,
}

/// What a task makes.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// The crops of sample number `sample`.
    Image { sample: usize, image: Image },
    /// The masks of the batch.
    Masks,
}

/// Batches in work and the way to claim, finish and fetch.
pub(super) struct Queue {
    plan: BatchPlan,
    sample: SampleShape,
    with_masks: bool,
    ahead: usize, // batches that may exist beyond the caller's
    state: Mutex<State>,
    /// Notified when there may be something to claim.
    work: Condvar,
    /// Notified when a batch may be complete.
    ready: Condvar,
    stopped: AtomicBool,
}

struct State {
    order: Order,
    next_step: u64,
    in_work: VecDeque<InWork>,
    spare: Vec<Batch>,
    /// A task has failed: what was claimed is finished, nothing more is claimed.
    failed: bool,
}

struct InWork {
    step: u64,
    size: usize,
    /// The number within the run of its first image.
    first_image: u64,
    claimed: usize,
    unfinished: usize, // of those claimed
    batch: Arc<Mutex<Batch>>,
    /// The failure of the least sample, and that sample.
    failure: Option<(usize, Error)>,
}

impl Queue {
    /// Batches of `plan` from `first_step` on, `prefetch` of them ahead and one in work.
    pub(super) fn new(
        plan: BatchPlan,
        sample: SampleShape,
        order: Order,
        with_masks: bool,
        prefetch: usize,
        first_step: u64,
    ) -> Self {
        Self {
            plan,
            sample,
            with_masks,
            ahead: prefetch + 1,
            state: Mutex::new(State {
                order,
                next_step: first_step,
                in_work: VecDeque::new(),
                spare: Vec::new(),
                failed: false,
            }),
            work: Condvar::new(),
            ready: Condvar::new(),
            stopped: AtomicBool::new(false),
        }
    }

    /// The next task, as soon as there is one; `None` when the work is over.
    pub(super) fn claim(&self) -> Option<Task> {
        let mut state = self.state();
        loop {
            if state.failed || self.is_stopped() {
                return None;
            }
            if let Some(task) = self.next_task(&mut state) {
                return Some(task);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Enters what became of a task.
    pub(super) fn finish(&self, task: Task, result: Result<()>) {
        let Task {
            step,
            size,
            part,
            batch,
        } = task;
        // The last to finish must leave the batch to the queue alone.
        drop(batch);
        let mut state = self.state();
        let Some(batch) = state.in_work.iter_mut().find(|batch| batch.step == step) else {
            return;
        };
        batch.unfinished -= 1;
        let may_be_complete = batch.unfinished == 0;
        let place = match part {
            Part::Image { sample, .. } => sample,
            Part::Masks => size,
        };
        if let Err(error) = result {
            if batch.failure.as_ref().is_none_or(|(other, _)| place < *other) {
                batch.failure = Some((place, error));
            }
            state.failed = true;
            self.work.notify_all();
        }
        if may_be_complete {
            self.ready.notify_all();
        }
    }

    /// The next batch in order, as soon as it is complete.
    ///
    /// # Errors
    /// The failure of its first sample that failed; from then on that the loader has stopped.
    pub(super) fn fetch(&self) -> Result<Batch> {
        let mut state = self.state();
        loop {
            if self.is_stopped() {
                return Err(Error::failed("loader", "stopped; see the error before"));
            }
            let complete = state.in_work.front().is_some_and(|front| {
                front.unfinished == 0 && (front.claimed == self.tasks(front.size) || front.failure.is_some())
            });
            if complete && let Some(front) = state.in_work.pop_front() {
                drop(state);
                if let Some((_, error)) = front.failure {
                    self.stop();
                    return Err(error);
                }
                self.work.notify_all();
                let batch = Arc::into_inner(front.batch).expect("finished tasks have let go of their batch");
                return Ok(batch.into_inner().unwrap_or_else(PoisonError::into_inner));
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the buffers of a batch that is no longer needed.
    pub(super) fn recycle(&self, mut batch: Batch) {
        // Images are not kept for the sake of their room.
        batch.planned.clear();
        let mut state = self.state();
        if state.spare.len() <= self.ahead {
            state.spare.push(batch);
        }
    }

    /// Ends the work: nothing more is claimed or fetched.
    pub(super) fn stop(&self) {
        let _state = self.state(); // nobody is between looking and waiting
        self.stopped.store(true, Ordering::Relaxed);
        self.work.notify_all();
        self.ready.notify_all();
    }

    /// Which images of which step are made here.
    pub(super) fn plan(&self) -> &BatchPlan {
        &self.plan
    }

    /// Set when the work has ended.
    pub(super) fn stopped(&self) -> &AtomicBool {
        &self.stopped
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Tasks of a batch of `size` images.
    fn tasks(&self, size: usize) -> usize {
        size + usize::from(self.with_masks)
    }

    fn next_task(&self, state: &mut State) -> Option<Task> {
        let all_claimed = state
            .in_work
            .back()
            .is_none_or(|last| last.claimed == self.tasks(last.size));
        if all_claimed {
            if state.in_work.len() >= self.ahead {
                return None;
            }
            self.open(state);
        }
        let last = state.in_work.back_mut()?;
        let sample = last.claimed;
        last.claimed += 1;
        last.unfinished += 1;
        let part = if sample < last.size {
            let image = state.order.image(last.first_image + sample as u64);
            Part::Image { sample, image }
        } else {
            Part::Masks
        };
        Some(Task {
            step: last.step,
            size: last.size,
            part,
            batch: Arc::clone(&last.batch),
        })
    }

    /// Begins the batch of the next step, in the buffers of an old one where there is one.
    fn open(&self, state: &mut State) {
        let step = state.next_step;
        let share = self.plan.share(step);
        let size = share.len();
        let mut batch = state.spare.pop().unwrap_or_default();
        batch.prepare(step, size, self.sample);
        state.in_work.push_back(InWork {
            step,
            size,
            first_image: self.plan.images_before(step) + share.start as u64,
            claimed: 0,
            unfinished: 0,
            batch: Arc::new(Mutex::new(batch)),
            failure: None,
        });
        state.next_step += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
