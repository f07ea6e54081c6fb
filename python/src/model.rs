//! A model that is open: images in, features out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use macula::data::{BatchReader, DecodeOptions, ImageBatch, Preprocess};
use macula::extract::model::{self, DerivedModel, ModelOptions, OpenModel};
use macula::extract::{BatchSize, ErrorPolicy, FeatureModel, OutputSpec};
use macula::{Error, Result};
use pyo3::prelude::*;
use rayon::ThreadPool;

use crate::arrays::{Given, Values, numbers};
use crate::errors::{raised, returned};
use crate::images::{Images, Item};
use crate::interruptible::{self, stopped};
use crate::pools::{self, OfProcess};
use crate::settings::Settings;

/// Batches that are read ahead of the model.
const QUEUE: usize = 2;

/// How a model was asked for.
struct Request {
    spec: String,
    options: ModelOptions,
    decode: DecodeOptions,
    normalize: bool,
}

/// A model in the process that opened it.
struct Open {
    model: Box<dyn FeatureModel>,
    reader: Arc<BatchReader>,
    pool: Arc<ThreadPool>,
    /// The last field, so that it goes after what the model held.
    _memory: GivenBack,
}

/// Gives freed memory back where it is dropped.
struct GivenBack;

impl Drop for GivenBack {
    fn drop(&mut self) {
        macula::memory::give_back();
    }
}

/// A model that is shared between the threads of a process, and used by one of them at a time.
type Shared = Arc<Mutex<OfProcess<Open>>>;

/// A model of images.
#[pyclass(frozen, module = "macula._macula")]
pub struct Model {
    request: Request,
    outputs: Vec<OutputSpec>,
    preprocess: Preprocess,
    description: serde_json::Value,
    /// With the number of the process it is of: after a fork nobody may touch what another thread had locked.
    open: Mutex<(u32, Shared)>,
}

impl Request {
    fn open(&self) -> Result<(Open, Preprocess)> {
        let pool = pools::new(self.options.threads)?;
        let OpenModel {
            model: opened,
            preprocess,
        } = pool.install(|| model::open(&self.spec, &NoImages, &self.options))?;
        preprocess.need_rgb(&self.spec)?;
        let mut model: Box<dyn FeatureModel> = opened;
        if self.normalize {
            model = Box::new(DerivedModel::normalized(model));
        }
        let reader = BatchReader::new(&preprocess, &self.decode)?;
        let open = Open {
            model,
            reader: Arc::new(reader),
            pool: Arc::new(pool),
            _memory: GivenBack,
        };
        Ok((open, preprocess))
    }
}

/// What models without a network would take their size from.
struct NoImages;

impl macula::data::Source for NoImages {
    fn len(&self) -> u64 {
        1
    }

    fn record(&self, row: u64) -> macula::data::Record {
        macula::data::Record {
            row,
            path: "load".to_owned(),
            label: None,
            mask: None,
            depth: None,
        }
    }

    fn load(
        &self,
        row: u64,
        _: &DecodeOptions,
    ) -> std::result::Result<macula::data::RgbImage, macula::data::RowError> {
        Err(macula::data::RowError {
            path: self.record(row).path,
            reason: "pixels and hog take their size from images: expected an ONNX file or a checkpoint"
                .to_owned(),
        })
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

fn shared(open: Open) -> Shared {
    Arc::new(Mutex::new(OfProcess::new(open)))
}

/// The values of every output, and the rows that failed with the reason.
type Embedded = (Vec<Values>, Vec<(usize, String)>);

/// Features: one buffer an output, and the rows that have none with the reason.
type Found = (Vec<Vec<f32>>, Vec<(usize, String)>);

#[pymethods]
impl Model {
    /// Opens `spec` with settings as JSON.
    #[new]
    fn new(py: Python<'_>, spec: String, settings: &str) -> PyResult<Self> {
        let request = returned(Self::request(spec, settings))?;
        let stop = AtomicBool::new(false);
        let (open, preprocess) = interruptible::run(py, None, &stop, || request.open())?;
        Ok(Self {
            outputs: open.model.outputs().to_vec(),
            description: open.model.describe(),
            preprocess,
            request,
            open: Mutex::new((std::process::id(), shared(open))),
        })
    }

    /// Names and shapes of the outputs.
    #[getter]
    fn outputs(&self) -> Vec<(String, Vec<usize>)> {
        let outputs = self.outputs.iter();
        outputs
            .map(|output| (output.name.clone(), output.shape.clone()))
            .collect()
    }

    /// What the model is, as JSON.
    #[getter]
    fn description(&self) -> String {
        self.description.to_string()
    }

    /// Pixels to network input, as JSON.
    #[getter]
    fn preprocess(&self) -> String {
        serde_json::to_string(&self.preprocess).unwrap_or_default()
    }

    /// One flat array an output, `[n * width]`, and the rows that failed.
    #[pyo3(signature = (images, batch_size, on_error, tick=None))]
    fn embed(
        &self,
        py: Python<'_>,
        images: Vec<Bound<'_, PyAny>>,
        batch_size: usize,
        on_error: &str,
        tick: Option<Py<PyAny>>,
    ) -> PyResult<Embedded> {
        let items: PyResult<Vec<Item>> = images.iter().map(Item::new).collect();
        let images = Images(items?);
        let policy = match on_error {
            "fail" => ErrorPolicy::Fail,
            "null" => ErrorPolicy::Null,
            other => {
                let reason = format!("expected fail or null, found `{other}`");
                return Err(raised(&Error::setting("on_error", reason)));
            }
        };
        let stop = AtomicBool::new(false);
        let (values, failed) = interruptible::run(py, tick.as_ref(), &stop, || {
            let open = self.here()?;
            let mut open = lock(&open);
            let open = open.get_mut().ok_or_else(stopped)?;
            embed(open, &images, batch_size, policy, &stop)
        })?;
        Ok((values.into_iter().map(Values::from).collect(), failed))
    }

    /// As `embed`, of network input `[n, 3, H, W]` that is prepared already.
    fn run(&self, py: Python<'_>, pixels: Given, batch_size: usize) -> PyResult<Vec<Values>> {
        let (bytes, shape) = &pixels;
        let &[n, channels, height, width] = &shape[..] else {
            return Err(raised(&Error::setting("images", "expected [n, 3, H, W]")));
        };
        let pixels = returned(numbers(bytes))?;
        let stop = AtomicBool::new(false);
        let values = interruptible::run(py, None, &stop, || {
            let open = self.here()?;
            let mut open = lock(&open);
            let open = open.get_mut().ok_or_else(stopped)?;
            let size = open.reader.size();
            if channels != 3 || (height, width) != size {
                let reason = format!(
                    "expected network input [n, 3, {}, {}], found [{n}, {channels}, {height}, {width}]",
                    size.0, size.1
                );
                return Err(Error::setting("images", reason));
            }
            let mut outputs = buffers(open.model.as_ref(), n)?;
            let len = open.reader.image_len();
            for batch in pixels.chunks(checked(batch_size)? * len) {
                if stop.load(Ordering::SeqCst) {
                    return Err(stopped());
                }
                let (model, outputs) = (&mut open.model, &mut outputs);
                open.pool
                    .install(|| model.run(batch, batch.len() / len, outputs))?;
            }
            Ok(outputs)
        })?;
        Ok(values.into_iter().map(Values::from).collect())
    }

    /// Network input `[n * 3 * H * W]` of images, and H and W: what the model sees.
    fn pixel_values(
        &self,
        py: Python<'_>,
        images: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<(Values, (usize, usize))> {
        let items: PyResult<Vec<Item>> = images.iter().map(Item::new).collect();
        let images = Images(items?);
        let rows: Vec<u64> = (0..images.0.len() as u64).collect();
        let stop = AtomicBool::new(false);
        let (values, size) = interruptible::run(py, None, &stop, || {
            let reader = BatchReader::new(&self.preprocess, &self.request.decode)?;
            let pool = pools::shared(self.request.options.threads)?;
            Ok((pool.install(|| reader.read_all(&images, &rows))?, reader.size()))
        })?;
        Ok((values.into(), size))
    }
}

impl Model {
    fn request(spec: String, settings: &str) -> Result<Request> {
        let mut settings = Settings::parse(settings)?;
        let threads = pools::count(settings.or("threads", 0)?)?;
        let request = Request {
            spec,
            options: settings.model(threads)?,
            decode: settings.decode()?,
            normalize: settings.or("normalize", false)?,
        };
        settings.end()?;
        Ok(request)
    }

    /// The model as it is open in this process; in one that was forked it is opened again.
    fn here(&self) -> Result<Shared> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        if open.0 != process {
            let again = shared(self.request.open()?.0);
            // What the parent had open has threads that this process lacks, and nobody to end them.
            std::mem::forget(std::mem::replace(&mut open.1, again));
            open.0 = process;
        }
        Ok(Arc::clone(&open.1))
    }
}

fn lock(open: &Shared) -> MutexGuard<'_, OfProcess<Open>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn checked(batch_size: usize) -> Result<usize> {
    match batch_size {
        0 => Err(Error::setting("batch_size", "expected at least 1, found 0")),
        size => Ok(size),
    }
}

/// Empty buffers with room for `n` images.
fn buffers(model: &dyn FeatureModel, n: usize) -> Result<Vec<Vec<f32>>> {
    let room = |output: &OutputSpec| {
        let mut buffer = Vec::new();
        let values = n.saturating_mul(output.width());
        let reserved = buffer.try_reserve_exact(values);
        reserved.map_err(|_| {
            let reason = format!("{n} images of {} values do not fit the memory", output.width());
            Error::failed(format!("output `{}`", output.name), reason)
        })?;
        Ok(buffer)
    };
    model.outputs().iter().map(room).collect()
}

/// The features of all images, read ahead while the model runs.
fn embed(
    open: &mut Open,
    images: &Images,
    batch_size: usize,
    policy: ErrorPolicy,
    stop: &AtomicBool,
) -> Result<Found> {
    let rows: Vec<u64> = (0..images.0.len() as u64).collect();
    let batch_size = BatchSize::Fixed(checked(batch_size)?).fixed()?;
    let mut outputs = buffers(open.model.as_ref(), rows.len())?;
    let mut failed = Vec::new();
    let (reader, pool) = (Arc::clone(&open.reader), Arc::clone(&open.pool));
    std::thread::scope(|scope| {
        let (batches, read) = sync_channel::<(usize, ImageBatch)>(QUEUE);
        let loader_pool = Arc::clone(&pool);
        let rows = &rows;
        scope.spawn(move || {
            for (place, rows) in rows.chunks(batch_size).enumerate() {
                let batch = loader_pool.install(|| reader.read(images, rows));
                if batches.send((place * batch_size, batch)).is_err() {
                    return;
                }
            }
        });
        for (first, batch) in read {
            if stop.load(Ordering::SeqCst) {
                return Err(stopped());
            }
            let model = &mut open.model;
            pool.install(|| add(model.as_mut(), first, batch, policy, &mut outputs, &mut failed))?;
        }
        Ok(())
    })?;
    Ok((outputs, failed))
}

/// Adds the features of a batch, NaN for images without.
fn add(
    model: &mut dyn FeatureModel,
    first: usize,
    batch: ImageBatch,
    policy: ErrorPolicy,
    outputs: &mut [Vec<f32>],
    failed: &mut Vec<(usize, String)>,
) -> Result<()> {
    let places = batch.places();
    for (place, error) in batch.errors.iter().enumerate() {
        if let Some(error) = error {
            let row = first + place;
            if policy == ErrorPolicy::Fail {
                return Err(Error::failed(
                    &error.path,
                    format!("{} (row {row})", error.reason),
                ));
            }
            failed.push((row, error.to_string()));
        }
    }
    let specs = model.outputs().to_vec();
    let before: Vec<usize> = outputs.iter().map(Vec::len).collect();
    if !places.is_empty() {
        model.run(&batch.pixels, places.len(), outputs)?;
    }
    for ((values, &before), spec) in outputs.iter_mut().zip(&before).zip(&specs) {
        for (image, row) in values[before..].chunks_exact_mut(spec.width()).enumerate() {
            if row.iter().all(|value| value.is_finite()) {
                continue;
            }
            let number = first + places[image];
            let reason = format!("output `{}`: expected finite values, found others", spec.name);
            if policy == ErrorPolicy::Fail {
                return Err(Error::failed(format!("image {number}"), reason));
            }
            row.fill(f32::NAN);
            failed.push((number, reason));
        }
        spread(values, before, spec.width(), &places, batch.errors.len());
    }
    Ok(())
}

/// Moves the rows behind `before` to their `places` among `n`, with NaN between.
fn spread(values: &mut Vec<f32>, before: usize, width: usize, places: &[usize], n: usize) {
    if places.len() == n {
        return;
    }
    values.resize(before + n * width, f32::NAN);
    for (image, &place) in places.iter().enumerate().rev() {
        let (from, to) = (before + image * width, before + place * width);
        values.copy_within(from..from + width, to);
        if place != image {
            values[from..from + width].fill(f32::NAN);
        }
    }
}
