//! Batches for training, of crops or of images and what is to be made of them, ahead of the steps on threads of their own: in
//! which order images come ([`order`]), how many a step takes ([`plan`]), how one is read or replaced ([`reader`], [`cache`]), and
//! how the threads share the work ([`queue`]). A batch is a function of the seed and the number of its step alone: neither the
//! number of threads nor where a run was resumed changes a byte of it. What is done to an image is in [`super::augment`] and
//! [`super::mask`].

mod batch;
mod cache;
mod order;
mod plan;
mod queue;
mod reader;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use batch::Batch;
use batch::SampleShape;
use order::Order;
pub use plan::BatchPlan;
use queue::{Part, Queue, Task};
use reader::Reader;

use super::augment::{MultiCrop, PlannedImage};
use super::mask::{Grid, MaskConfig, masks_for_batch};
use super::{Bands, DecodeOptions, Image, RowError, SampleRange, Source};
use crate::{Error, Result, rng};

/// The largest number of threads.
const MAX_WORKERS: usize = 1024;
/// The largest number of batches ahead.
const MAX_PREFETCH: usize = 64;

/// How batches are read. What a file leaves out has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Threads that read images, at most 1024; 0 for one per core. Default 0.
    pub workers: usize,
    /// Finished batches that may wait for the step, at most 64; one more is in work. Default 2.
    pub prefetch: usize,
    /// Who makes the crops: `cpu`, the workers; `gpu`, the step, of the images that the workers decode, where they cannot keep
    /// up with it. The crops are the same to the bit. `gpu` needs training on an NVIDIA GPU. Default `cpu`.
    pub crops_on: CropsOn,
    /// Decoded images kept in memory, in MiB; 0 for none. A source that lies in memory is not kept again. Default 512.
    pub cache_mb: usize,
    /// What happens when an image cannot be read. Default `skip`.
    pub on_error: OnError,
    /// Passes over the source until crops come again: pass e has the crops of pass e mod this. 0 for new crops in every
    /// pass. The order of the images is new in every pass either way. Default 0.
    pub view_epochs: u64,
    /// Whether images are turned as their EXIF says; the reference does not. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exif: bool,
    /// The most pixels an image may have, at least 1. Default 178,956,970, as Pillow's limit.
    #[serde(skip_serializing_if = "is_usual_limit")]
    pub max_pixels: u64,
    /// Red, green and blue that images with an alpha channel are laid over. By default alpha is dropped, as Pillow's
    /// `convert("RGB")` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<[u8; 3]>,
    /// What samples of more than 8 bits become: `"clip"`, as Pillow; `"auto"`, the type's range (floats: 0 to 1) to black to
    /// white; `[low, high]`. Default `"clip"`.
    #[serde(skip_serializing_if = "SampleRange::is_clip")]
    pub sample_range: SampleRange,
    /// Bands that images are read as in place of RGB: their number, or `"N,first"` where arrays of three axes have them in the
    /// first. `sample_range` says what becomes 0 and what 1, and is needed where samples are not of 8 bits. By default images
    /// are RGB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bands: Option<Bands>,
}

/// Whether this is the limit that a decoder has by itself.
fn is_usual_limit(max_pixels: &u64) -> bool {
    *max_pixels == DecodeOptions::default().max_pixels
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            workers: 0,
            prefetch: 2,
            crops_on: CropsOn::Cpu,
            cache_mb: 512,
            on_error: OnError::Skip,
            view_epochs: 0,
            exif: false,
            max_pixels: DecodeOptions::default().max_pixels,
            background: None,
            sample_range: SampleRange::Clip,
            bands: None,
        }
    }
}

impl LoaderConfig {
    /// Checks every field's range; the error names the field as it stands in the file.
    pub fn validate(&self) -> Result<()> {
        for (field, value, max) in [
            ("workers", self.workers, MAX_WORKERS),
            ("prefetch", self.prefetch, MAX_PREFETCH),
        ] {
            if value > max {
                return Err(Error::input(
                    field,
                    format!("expected at most {max}, found {value}"),
                ));
            }
        }
        if self.max_pixels == 0 {
            return Err(Error::input("max_pixels", "expected at least 1, found 0"));
        }
        if self.bands.is_some() && self.crops_on == CropsOn::Gpu {
            let reason = "expected cpu with bands, whose crops no GPU makes yet, found gpu";
            return Err(Error::input("crops_on", reason));
        }
        self.decode().check_bands()
    }

    /// How images are decoded.
    pub fn decode(&self) -> DecodeOptions {
        DecodeOptions {
            exif: self.exif,
            max_pixels: self.max_pixels,
            background: self.background,
            sample_range: self.sample_range,
            bands: self.bands,
            ..DecodeOptions::default()
        }
    }

    /// Threads to start.
    fn threads(&self) -> usize {
        match self.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }
}

/// Who makes crops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CropsOn {
    /// The loader's threads.
    Cpu,
    /// The training step, on the GPU it runs on.
    Gpu,
}

/// What happens when an image cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// Another image takes its place, and its file is named once.
    Skip,
    /// The run ends, and says which file.
    Fail,
}

/// A row whose image cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// Row of the source.
    pub row: u64,
    /// Its file, and what is wrong with it.
    pub error: RowError,
}

/// The batches of a run, in order, made ahead on threads that end when the loader is dropped.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What every thread works with.
struct Shared {
    reader: Reader,
    crops: MultiCrop,
    masks: Option<(MaskConfig, Grid)>,
    seed: u64,
    queue: Queue,
    sample: SampleShape,
}

/// Another end of a [`Loader`], for a thread that takes its batches while its owner asks what became of rows.
pub struct Batches(Arc<Shared>);

/// A worker's room for the crops of one image, where it makes them.
struct Scratch {
    global: Vec<f32>, // [G, C, S, S]
    local: Vec<f32>,  // [L, C, s, s]
}

impl Loader {
    /// Starts reading the batches of `plan` from step `first_step` on. Masks, where wanted, are drawn for the global crops,
    /// whose patches form the given grid.
    ///
    /// # Errors
    /// A setting out of range, a source with more rows than u32 can number, or no thread to be had.
    pub fn start(
        source: Arc<dyn Source>,
        crops: MultiCrop,
        masks: Option<(MaskConfig, Grid)>,
        plan: BatchPlan,
        config: &LoaderConfig,
        seed: u64,
        first_step: u64,
    ) -> Result<Self> {
        config.validate()?;
        plan.validate()?;
        if let Some((masks, grid)) = &masks {
            // Settings and grid are checked even where there is nothing to mask.
            masks_for_batch(0, *grid, masks, &mut rng::stream(seed, "masks", first_step))?;
        }
        let order = Order::new(seed, source.len())?;
        let cache_bytes = config.cache_mb.saturating_mul(1 << 20);
        let sample = SampleShape::new(crops.config(), config.crops_on);
        let shared = Shared {
            reader: Reader::new(source, config, seed, cache_bytes),
            queue: Queue::new(plan, sample, order, masks.is_some(), config.prefetch, first_step),
            crops,
            masks,
            seed,
            sample,
        };
        // Made before its threads, so that those already running end if one cannot be started.
        let mut loader = Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
        };
        for number in 0..config.threads() {
            let shared = Arc::clone(&loader.shared);
            let thread = thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || shared.work())
                .map_err(|error| Error::failed("loader", format!("no thread to be had: {error}")))?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// The batch of the next step, and how long the caller waited for it.
    ///
    /// # Errors
    /// What went wrong with the batch's images; after that the loader has stopped.
    pub fn next(&mut self) -> Result<(Batch, Duration)> {
        let start = Instant::now();
        let batch = self.shared.queue.fetch()?;
        Ok((batch, start.elapsed()))
    }

    /// Another end of this loader. Its batches and those of [`Loader::next`] are the same ones: each goes to who asks first.
    pub fn batches(&self) -> Batches {
        Batches(Arc::clone(&self.shared))
    }

    /// Gives the buffers of a batch back, so that no later step allocates them.
    pub fn recycle(&mut self, batch: Batch) {
        self.shared.queue.recycle(batch);
    }

    /// Every row that could not be read so far, each once, in the source's order. Rows of batches still ahead are among
    /// them.
    pub fn bad_rows(&self) -> Vec<BadRow> {
        self.shared.reader.bad_rows()
    }

    /// How many unreadable rows have been met so far.
    pub fn bad_count(&self) -> usize {
        self.shared.reader.bad_count()
    }
}

impl Batches {
    /// As [`Loader::next`], without the time.
    ///
    /// # Errors
    /// As [`Loader::next`].
    pub fn fetch(&self) -> Result<Batch> {
        self.0.queue.fetch()
    }

    /// As [`Loader::recycle`].
    pub fn recycle(&self, batch: Batch) {
        self.0.queue.recycle(batch);
    }

    /// Ends the work: whoever waits for a batch learns that there is none.
    pub fn stop(&self) {
        self.0.queue.stop();
    }
}

impl Drop for Loader {
    /// Waits for the images in work, no longer.
    fn drop(&mut self) {
        self.shared.queue.stop();
        for thread in self.threads.drain(..) {
            // A worker's panic has become an error of its batch.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The life of a worker.
    fn work(&self) {
        let mut scratch = Scratch {
            global: vec![0.0; self.sample.global()],
            local: vec![0.0; self.sample.local()],
        };
        while let Some(task) = self.queue.claim() {
            let done = catch_unwind(AssertUnwindSafe(|| self.perform(&task, &mut scratch)));
            let result = done.unwrap_or_else(|panic| {
                let reason = format!("a worker panicked in step {}: {}", task.step, message(&*panic));
                Err(Error::failed("loader", reason))
            });
            self.queue.finish(task, result);
        }
    }

    fn perform(&self, task: &Task, scratch: &mut Scratch) -> Result<()> {
        let batch = || task.batch.lock().unwrap_or_else(PoisonError::into_inner);
        match (task.part, &self.masks) {
            (Part::Image { sample, image }, _) => {
                let mut loaded = self.reader.read(image, self.queue.stopped())?;
                if let (true, Image::Rgb(image)) = (self.sample.is_planned(), &loaded.image) {
                    let planned = PlannedImage::draw(Arc::clone(image), &self.crops, &mut loaded.rng);
                    batch().plan(sample, (loaded.row, loaded.view), planned);
                    return Ok(());
                }
                let config = self.crops.config();
                let views = scratch.global.chunks_exact_mut(config.global_values());
                for (place, out) in views.enumerate() {
                    self.crops.global(place, &loaded.image, &mut loaded.rng, out)?;
                }
                for out in scratch.local.chunks_exact_mut(config.local_values()) {
                    self.crops.local(&loaded.image, &mut loaded.rng, out)?;
                }
                // A copy costs a hundredth of making the crops, so workers hardly ever wait for one another here.
                batch().put(
                    sample,
                    (loaded.row, loaded.view),
                    self.sample,
                    &scratch.global,
                    &scratch.local,
                );
            }
            (Part::Masks, Some((config, grid))) => {
                let mut rng = rng::stream(self.seed, "masks", task.step);
                // Drawn for all ranks, so that a step's masks do not depend on how many there are.
                let (crops, plan) = (self.crops.config().global.count, self.queue.plan());
                let whole = plan.size(task.step);
                let masks = masks_for_batch(crops * whole, *grid, config, &mut rng)?;
                batch().masks = Some(masks.of_images(crops, whole, plan.share(task.step)));
            }
            (Part::Masks, None) => {}
        }
        Ok(())
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests;
