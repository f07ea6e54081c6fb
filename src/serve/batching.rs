//! One model on a thread of its own: images that are ready wait in a queue, and the model computes as many of them at once as there
//! are, up to its batch. A model has one size of images, so those of its queue always fit together.
//!
//! It waits for more only while more is on its way: images that are being decoded. A single request is computed at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::error::{ApiError, ApiResult};
use super::metrics::Metrics;
use crate::Result;
use crate::device::Dtype;
use crate::extract::folder::unusable;
use crate::extract::{FeatureModel, OutputSpec};
use crate::quiet::quietly;

/// An image that waits for the model.
pub(super) struct Job {
    /// `[3, H, W]`.
    pub pixels: Vec<f32>,
    /// Place of the output that is wanted among the model's.
    pub output: usize,
    /// Where the features go; closed once the client has left.
    pub answer: oneshot::Sender<ApiResult<Vec<f32>>>,
    /// Its place in the queue and its share of the memory.
    pub place: OwnedSemaphorePermit,
    /// Since when it waits.
    pub since: Instant,
}

/// How images are put together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batching {
    /// The most images of a run.
    pub most: usize,
    /// The longest wait for more.
    pub wait: Duration,
}

/// The images that wait for one model.
#[derive(Default)]
pub(super) struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    changed: Condvar,
    /// Images that are being decoded.
    coming: AtomicUsize,
    closed: AtomicBool,
}

/// Images on their way to a queue.
pub(super) struct Coming {
    queue: Arc<Queue>,
    count: usize,
}

impl Queue {
    /// Says that `count` images are on their way, for as long as the answer lives.
    pub fn expect(self: &Arc<Self>, count: usize) -> Coming {
        self.coming.fetch_add(count, Ordering::SeqCst);
        Coming {
            queue: Arc::clone(self),
            count,
        }
    }

    /// Adds images.
    ///
    /// # Errors
    /// 503 where the model is gone.
    pub fn push(&self, jobs: impl IntoIterator<Item = Job>) -> ApiResult<()> {
        let mut waiting = self.lock();
        if self.is_closed() {
            return Err(ApiError::unavailable("the model is gone"));
        }
        waiting.extend(jobs);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether the model is gone.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Lets nothing more in; what waits is dropped, and so answered.
    pub fn close(&self) {
        let mut waiting = self.lock();
        self.closed.store(true, Ordering::SeqCst);
        waiting.clear();
        self.changed.notify_all();
    }

    /// The next images, oldest first; none once the queue is closed. Those whose client has left are dropped.
    fn next(&self, batching: Batching, metrics: &Metrics) -> Option<Vec<Job>> {
        let mut waiting = self.lock();
        loop {
            let before = waiting.len();
            waiting.retain(|job| !job.answer.is_closed());
            metrics.abandoned.add((before - waiting.len()) as u64);
            if self.is_closed() {
                return None;
            }
            let Some(oldest) = waiting.front() else {
                waiting = self.changed.wait(waiting).unwrap_or_else(|e| e.into_inner());
                continue;
            };
            let left = batching.wait.saturating_sub(oldest.since.elapsed());
            let full = waiting.len() >= batching.most;
            if full || left.is_zero() || self.coming.load(Ordering::SeqCst) == 0 {
                let count = waiting.len().min(batching.most);
                return Some(waiting.drain(..count).collect());
            }
            let waited = self.changed.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.queue.coming.fetch_sub(self.count, Ordering::SeqCst);
        // The model may have waited for these alone. The lock: it must not look between their leaving and this word.
        let _waiting = self.queue.lock();
        self.queue.changed.notify_all();
    }
}

/// Computes what comes to `queue` until it is closed.
///
/// A run that fails, or panics, is an error of its images alone. After a panic the model is opened anew, since nobody knows what it
/// left behind; where that cannot be done, the queue is closed.
pub(super) fn serve(
    queue: &Queue,
    batching: Batching,
    metrics: &Metrics,
    mut model: Box<dyn FeatureModel>,
    mut reopen: impl FnMut() -> Result<Box<dyn FeatureModel>>,
) {
    while let Some(jobs) = queue.next(batching, metrics) {
        for job in &jobs {
            metrics.queue_seconds.took(job.since.elapsed());
        }
        metrics.batch_size.observe(jobs.len() as f64);
        let start = Instant::now();
        let done = quietly(|| compute(model.as_mut(), &jobs));
        metrics.model_seconds.took(start.elapsed());
        match done {
            Ok(Ok(features)) => {
                metrics.images.add(jobs.len() as u64);
                answer(jobs, features);
            }
            Ok(Err(error)) => {
                tracing::error!("model: {error}");
                refuse(jobs, &ApiError::server(format!("the model failed: {error}")));
            }
            Err(_) => {
                metrics.panics.add(1);
                refuse(jobs, &ApiError::server("the model gave up on this batch"));
                tracing::error!("model: a panic; it is opened anew");
                match quietly(&mut reopen) {
                    Ok(Ok(new)) => model = new,
                    Ok(Err(error)) => {
                        tracing::error!("model: cannot be opened any more: {error}");
                        return queue.close();
                    }
                    Err(_) => {
                        tracing::error!("model: cannot be opened any more");
                        return queue.close();
                    }
                }
            }
        }
    }
}

/// The features of each image in each output: `[output][n * width]`.
fn compute(model: &mut dyn FeatureModel, jobs: &[Job]) -> Result<Vec<(OutputSpec, Vec<f32>)>> {
    let pixels: Vec<f32>;
    let pixels = match jobs {
        [one] => one.pixels.as_slice(),
        several => {
            let images: Vec<&[f32]> = several.iter().map(|job| job.pixels.as_slice()).collect();
            pixels = images.concat(); // [n, 3, H, W]
            pixels.as_slice()
        }
    };
    let mut values = vec![Vec::new(); model.outputs().len()];
    model.run(pixels, jobs.len(), &mut values)?;
    Ok(model.outputs().iter().cloned().zip(values).collect())
}

fn answer(jobs: Vec<Job>, features: Vec<(OutputSpec, Vec<f32>)>) {
    for (place, job) in jobs.into_iter().enumerate() {
        let (spec, values) = &features[job.output];
        let width = spec.width();
        let found = &values[place * width..(place + 1) * width];
        let result = match unusable(Dtype::F32, found) {
            None => Ok(found.to_vec()),
            Some((at, why)) => Err(ApiError::server(format!(
                "output `{}`: {why} at place {at} of {width}",
                spec.name
            ))),
        };
        // First, so that who comes back at once finds room.
        drop(job.place);
        // The client may have left meanwhile.
        let _ = job.answer.send(result);
    }
}

fn refuse(jobs: Vec<Job>, error: &ApiError) {
    for job in jobs {
        let _ = job.answer.send(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    /// Gives the first pixel of each image; panics at -1, fails at -2, takes its time at -3.
    struct Fake {
        outputs: [OutputSpec; 1],
        sizes: Arc<Mutex<Vec<usize>>>,
    }

    impl Fake {
        fn boxed(sizes: &Arc<Mutex<Vec<usize>>>) -> Box<dyn FeatureModel> {
            Box::new(Self {
                outputs: [OutputSpec {
                    name: "cls".to_owned(),
                    shape: vec![1],
                }],
                sizes: Arc::clone(sizes),
            })
        }
    }

    impl FeatureModel for Fake {
        fn outputs(&self) -> &[OutputSpec] {
            &self.outputs
        }

        fn describe(&self) -> serde_json::Value {
            serde_json::Value::Null
        }

        fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
            self.sizes.lock().unwrap().push(n);
            for image in pixels.chunks_exact(pixels.len() / n) {
                match image[0] {
                    -1.0 => panic!("as asked"),
                    -2.0 => return Err(crate::Error::failed("model", "as asked")),
                    -3.0 => std::thread::sleep(Duration::from_millis(50)),
                    _ => {}
                }
                outputs[0].push(image[0]);
            }
            Ok(())
        }
    }

    /// What the client of an image is told; none where nobody tells.
    type Told = Option<ApiResult<Vec<f32>>>;
    type Answer = oneshot::Receiver<ApiResult<Vec<f32>>>;

    fn job(places: &Arc<Semaphore>, value: f32) -> (Job, Answer) {
        let (answer, result) = oneshot::channel();
        let job = Job {
            pixels: vec![value; 3],
            output: 0,
            answer,
            place: Arc::clone(places).try_acquire_owned().unwrap(),
            since: Instant::now(),
        };
        (job, result)
    }

    /// Pushes images of these values and gives their answers, in runs of at most `most`.
    fn run(values: &[f32], most: usize) -> (Vec<Told>, Vec<usize>, Metrics) {
        let (queue, metrics, sizes) = (Arc::new(Queue::default()), Metrics::default(), Arc::default());
        let places = Arc::new(Semaphore::new(100));
        let (jobs, answers): (Vec<_>, Vec<_>) = values.iter().map(|value| job(&places, *value)).unzip();
        queue.push(jobs).unwrap();
        let batching = Batching {
            most,
            wait: Duration::from_secs(5),
        };
        let results = std::thread::scope(|scope| {
            scope.spawn(|| {
                serve(&queue, batching, &metrics, Fake::boxed(&sizes), || {
                    Ok(Fake::boxed(&sizes))
                })
            });
            let results = answers
                .into_iter()
                .map(|answer| answer.blocking_recv().ok())
                .collect();
            queue.close();
            results
        });
        assert_eq!(places.available_permits(), 100);
        let sizes = sizes.lock().unwrap().clone();
        (results, sizes, metrics)
    }

    #[test]
    fn what_waits_is_computed_together_in_order() {
        let start = Instant::now();
        let (results, sizes, metrics) = run(&[1.0, 2.0, 3.0, 4.0, 5.0], 2);
        let values: Vec<f32> = results
            .into_iter()
            .map(|result| result.unwrap().unwrap()[0])
            .collect();
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(sizes, [2, 2, 1]);
        assert_eq!(metrics.images.get(), 5);
        // Nothing is on its way, so nothing is waited for.
        assert!(start.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_run_that_fails_or_panics_is_its_own_trouble() {
        let (results, sizes, metrics) = run(&[1.0, -1.0, 2.0, -2.0, 3.0, f32::NAN], 1);
        let results: Vec<_> = results.into_iter().map(Option::unwrap).collect();
        let statuses: Vec<_> = results
            .iter()
            .map(|result| result.as_ref().err().map(|e| e.status.as_u16()))
            .collect();
        assert_eq!(statuses, [None, Some(500), None, Some(500), None, Some(500)]);
        assert_eq!(results[4].as_ref().unwrap(), &[3.0]);
        assert!(results[5].as_ref().unwrap_err().message.contains("found NaN"));
        assert_eq!(sizes, [1; 6]);
        assert_eq!(metrics.panics.get(), 1);
    }

    #[test]
    fn a_model_that_cannot_be_opened_again_closes_its_queue() {
        let (queue, metrics, sizes) = (Arc::new(Queue::default()), Metrics::default(), Arc::default());
        let places = Arc::new(Semaphore::new(9));
        let (first, answer) = job(&places, -1.0);
        let (second, left) = job(&places, 1.0);
        queue.push([first, second]).unwrap();
        let batching = Batching {
            most: 1,
            wait: Duration::ZERO,
        };
        serve(&queue, batching, &metrics, Fake::boxed(&sizes), || {
            Err(crate::Error::failed("model", "gone"))
        });
        assert_eq!(answer.blocking_recv().unwrap().unwrap_err().status.as_u16(), 500);
        assert!(left.blocking_recv().is_err());
        assert!(queue.is_closed());
        let late = queue.push([job(&places, 1.0).0]).unwrap_err();
        assert_eq!(late.status.as_u16(), 503);
        assert_eq!(places.available_permits(), 9);
    }

    #[test]
    fn a_client_that_left_is_not_computed() {
        let (queue, metrics, sizes) = (Arc::new(Queue::default()), Metrics::default(), Arc::default());
        let places = Arc::new(Semaphore::new(9));
        let (gone, left) = job(&places, 1.0);
        let (stays, answer) = job(&places, 2.0);
        drop(left);
        queue.push([gone, stays]).unwrap();
        let batching = Batching {
            most: 8,
            wait: Duration::ZERO,
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                serve(&queue, batching, &metrics, Fake::boxed(&sizes), || {
                    Ok(Fake::boxed(&sizes))
                })
            });
            assert_eq!(answer.blocking_recv().unwrap().unwrap(), [2.0]);
            queue.close();
        });
        assert_eq!(*sizes.lock().unwrap(), [1]);
        assert_eq!(metrics.abandoned.get(), 1);
    }

    #[test]
    fn a_batch_waits_for_what_is_on_its_way_and_no_longer() {
        let (queue, metrics, sizes) = (Arc::new(Queue::default()), Metrics::default(), Arc::default());
        let places = Arc::new(Semaphore::new(9));
        let batching = Batching {
            most: 8,
            wait: Duration::from_secs(20),
        };
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                serve(&queue, batching, &metrics, Fake::boxed(&sizes), || {
                    Ok(Fake::boxed(&sizes))
                })
            });
            let coming = queue.expect(2);
            let (one, first) = job(&places, 1.0);
            queue.push([one]).unwrap();
            std::thread::sleep(Duration::from_millis(30));
            let (two, second) = job(&places, 2.0);
            queue.push([two]).unwrap();
            drop(coming);
            assert_eq!(first.blocking_recv().unwrap().unwrap(), [1.0]);
            assert_eq!(second.blocking_recv().unwrap().unwrap(), [2.0]);
            // One that never comes is given up.
            let given_up = queue.expect(1);
            let (three, third) = job(&places, 3.0);
            queue.push([three]).unwrap();
            drop(given_up);
            assert_eq!(third.blocking_recv().unwrap().unwrap(), [3.0]);
            queue.close();
        });
        assert_eq!(*sizes.lock().unwrap(), [2, 1]);
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
