//! From the loader to the device that trains: what of a batch goes there ([`load`]), and when. On the CPU nothing does: batches pass
//! through, and the step reads them where they lie. For an NVIDIA GPU a thread takes the batches of the step to come, writes each
//! into page-locked memory and has it copied by a stream of its own while the current step computes (`lane`, `pinned`).
//!
//! Each batch ahead has a [`Lane`]: memory on both sides that it goes through, and that the next one goes through when the step has
//! given it back. There are two for each micro-batch of a step, so that the lanes bound both memory and how far the thread is ahead.

#[cfg(any(feature = "cuda", test))]
mod lane;
#[cfg(test)]
mod lane_tests;
mod load;
#[cfg(feature = "cuda")]
mod pinned;
#[cfg(test)]
mod tests;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use candle_core::Device;

pub use load::DeviceBatch;
use load::Load;

use super::config::TrainConfig;
use super::kernels::kernels;
use crate::data::augment::MultiCrop;
use crate::data::loader::{Batch, Batches, CropsOn, Loader};
use crate::{Error, Result};

/// Lanes for each micro-batch of a step: one it computes on, and one that is filled meanwhile.
const LANES_A_MICRO_BATCH: usize = 2;

/// What of a step is computed at once: a batch, on its device already or not.
pub trait MicroBatch: Sync {
    /// The batch.
    fn batch(&self) -> &Batch;

    /// What of it lies on the device; without it the step sends it there itself.
    fn on_device(&self) -> Option<&DeviceBatch>;
}

impl MicroBatch for Batch {
    fn batch(&self) -> &Batch {
        self
    }

    fn on_device(&self) -> Option<&DeviceBatch> {
        None
    }
}

/// A way to the device. It carries one batch at a time.
trait Lane: Send + Sync {
    /// Sends `load` on its way, in memory whose last batch has been released.
    fn send(&mut self, load: &Load) -> candle_core::Result<DeviceBatch>;

    /// Waits until what was sent has arrived.
    fn arrived(&self) -> candle_core::Result<()>;

    /// Says that everything that reads what was sent has been asked for.
    fn release(&mut self) -> candle_core::Result<()>;
}

/// A batch of the feed.
pub struct LoadedBatch {
    batch: Batch,
    ahead: Option<(DeviceBatch, Box<dyn Lane>)>,
}

impl MicroBatch for LoadedBatch {
    fn batch(&self) -> &Batch {
        &self.batch
    }

    fn on_device(&self) -> Option<&DeviceBatch> {
        self.ahead.as_ref().map(|(on_device, _)| on_device)
    }
}

/// The batches of a run on their way to its device, in order.
pub struct Feed {
    ahead: Option<Ahead>,
    // Its threads end last: the thread of `ahead` waits for them.
    loader: Loader,
}

/// The thread that sends batches, and the ends of what it takes and gives.
struct Ahead {
    /// None once the feed has ended.
    free: Option<Sender<Box<dyn Lane>>>,
    ready: Receiver<Result<LoadedBatch>>,
    batches: Batches,
    thread: Option<JoinHandle<()>>,
}

/// Whether crops can be made where `config` wants them, for training on `device`.
///
/// # Errors
/// Crops wanted on a GPU where there is none that they could be made on, and warped crops wanted there.
pub fn check(config: &TrainConfig, device: &Device) -> Result<()> {
    if config.data.loader.crops_on == CropsOn::Cpu {
        return Ok(());
    }
    if config.crops.warp > 0.0 {
        let reason = format!("expected 0 with crops_on = \"gpu\", found {}", config.crops.warp);
        return Err(Error::input("crops.warp", reason));
    }
    if kernels(device).crops().is_none() {
        let reason = format!(
            "expected cpu, or training on an NVIDIA GPU (--device cuda); found gpu on {:?}",
            device.location()
        );
        return Err(Error::input("data.loader.crops_on", reason));
    }
    Ok(())
}

impl Feed {
    /// Begins to bring the batches of `loader`, which has those of `config`, to `device`.
    ///
    /// # Errors
    /// A GPU that does not answer, or no thread to be had.
    pub fn start(loader: Loader, config: &TrainConfig, device: &Device) -> Result<Self> {
        let lanes = lanes(device, LANES_A_MICRO_BATCH * config.accumulate)?;
        let crops = MultiCrop::new(config.crops.clone())?;
        Self::with_lanes(loader, crops, lanes)
    }

    /// As [`Feed::start`], by way of `lanes`; without any, batches pass through.
    fn with_lanes(loader: Loader, crops: MultiCrop, lanes: Vec<Box<dyn Lane>>) -> Result<Self> {
        let ahead = match lanes.is_empty() {
            true => None,
            false => Some(Ahead::start(&loader, crops, lanes)?),
        };
        Ok(Self { ahead, loader })
    }

    /// The next batch, and how long the caller waited for it: for the loader, and for what of the way to the device no step has
    /// hidden.
    ///
    /// # Errors
    /// What went wrong with the batch's images or on their way; after that the feed has ended.
    pub fn fetch(&mut self) -> Result<(LoadedBatch, Duration)> {
        let Some(ahead) = &self.ahead else {
            let (batch, waited) = self.loader.next()?;
            return Ok((LoadedBatch { batch, ahead: None }, waited));
        };
        let start = Instant::now();
        let ended = |_| Error::failed("feed", "stopped; see the error before");
        let loaded = ahead.ready.recv().map_err(ended)??;
        if let Some((_, lane)) = &loaded.ahead {
            lane.arrived()?;
        }
        Ok((loaded, start.elapsed()))
    }

    /// The next `count` batches, which are those of a step, and how long the caller waited for all of them.
    ///
    /// # Errors
    /// As [`Feed::fetch`].
    pub fn fetch_micro_batches(&mut self, count: usize) -> Result<(Vec<LoadedBatch>, Duration)> {
        let mut waited = Duration::ZERO;
        let mut micro_batches = Vec::with_capacity(count);
        for _ in 0..count {
            let (micro_batch, wait) = self.fetch()?;
            waited += wait;
            micro_batches.push(micro_batch);
        }
        Ok((micro_batches, waited))
    }

    /// Takes a batch back once its step is done: its memory carries a later one. No tensor of it may be read afterwards.
    ///
    /// # Errors
    /// A GPU that does not answer.
    pub fn recycle(&mut self, loaded: LoadedBatch) -> Result<()> {
        let LoadedBatch { batch, ahead } = loaded;
        let Some((on_device, mut lane)) = ahead else {
            self.loader.recycle(batch);
            return Ok(());
        };
        drop(on_device);
        lane.release()?;
        if let Some(free) = self.ahead.as_ref().and_then(|ahead| ahead.free.as_ref()) {
            // Nobody takes it where the thread has ended with an error, which the next batch tells.
            let _ = free.send(lane);
        }
        Ok(())
    }

    /// The loader, for what became of its rows.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }
}

impl Ahead {
    fn start(loader: &Loader, crops: MultiCrop, lanes: Vec<Box<dyn Lane>>) -> Result<Self> {
        let (free, lanes_to_fill) = channel();
        let (filled, ready) = channel();
        for lane in lanes {
            // The other end is here.
            let _ = free.send(lane);
        }
        let batches = loader.batches();
        let thread = thread::Builder::new()
            .name("feed".to_owned())
            .spawn(move || send_all(&batches, &crops, &lanes_to_fill, &filled))
            .map_err(|error| Error::failed("feed", format!("no thread to be had: {error}")))?;
        Ok(Self {
            free: Some(free),
            ready,
            batches: loader.batches(),
            thread: Some(thread),
        })
    }
}

/// The life of the feed's thread: it ends with the first failure, or when nobody gives lanes or takes batches any more.
fn send_all(
    batches: &Batches,
    crops: &MultiCrop,
    free: &Receiver<Box<dyn Lane>>,
    filled: &Sender<Result<LoadedBatch>>,
) {
    while let Ok(mut lane) = free.recv() {
        let loaded = batches.fetch().and_then(|mut batch| {
            let load = Load::new(&batch, crops)?;
            let on_device = lane.send(&load)?;
            drop(load);
            // What has been sent is not needed here: the loader writes the next crops over it.
            batches.recycle(Batch {
                global: std::mem::take(&mut batch.global),
                local: std::mem::take(&mut batch.local),
                planned: std::mem::take(&mut batch.planned),
                ..Batch::default()
            });
            let ahead = Some((on_device, lane));
            Ok(LoadedBatch { batch, ahead })
        });
        let failed = loaded.is_err();
        if filled.send(loaded).is_err() || failed {
            return;
        }
    }
}

impl Drop for Ahead {
    /// Waits for the batch in work, no longer.
    fn drop(&mut self) {
        self.free = None;
        self.batches.stop();
        if let Some(thread) = self.thread.take() {
            // A panic has shown as a feed that stopped.
            let _ = thread.join();
        }
    }
}

/// As many lanes to `device`; none where it reads the host's memory.
#[cfg(feature = "cuda")]
fn lanes(device: &Device, count: usize) -> Result<Vec<Box<dyn Lane>>> {
    match device {
        Device::Cuda(gpu) => pinned::lanes(gpu, count).map_err(crate::Error::from),
        _ => Ok(Vec::new()),
    }
}

/// None: a build without CUDA trains where the host's memory is read.
#[cfg(not(feature = "cuda"))]
fn lanes(_: &Device, _: usize) -> Result<Vec<Box<dyn Lane>>> {
    Ok(Vec::new())
}
