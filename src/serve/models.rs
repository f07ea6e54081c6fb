//! The models of a server by name, each opened on its own thread, where it stays.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::batching::{self, Batching, Job, Queue};
use super::body::Share;
use super::config::ServeConfig;
use super::decode::{Recipe, Workers};
use super::error::{ApiError, ApiResult};
use super::metrics::Metrics;
use crate::data::{BatchReader, DecodeOptions, Record, RgbImage, RowError, Source};
use crate::extract::batch::time_of_run;
use crate::extract::model::{self, OpenModel};
use crate::extract::{BatchSize, FeatureModel, OutputSpec};
use crate::{Error, Result};

/// The most numbers in one answer.
const MOST_VALUES: usize = 1 << 24;
/// Longest name of a model.
const MOST_NAME: usize = 128;

/// A model as it is asked for: `name=m.onnx`, or `m.onnx` with the file's name before its ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedModel {
    /// What requests call it.
    pub name: String,
    /// ONNX file or checkpoint.
    pub path: String,
}

/// A model that is served.
pub(super) struct Lane {
    /// What requests call it.
    pub name: String,
    /// Its outputs; the first is that of requests that name none.
    pub outputs: Vec<OutputSpec>,
    /// What it is, as `meta.json` of features has it.
    pub description: Value,
    /// From bytes to its input.
    pub recipe: Arc<Recipe>,
    /// Height and width of its images.
    pub size: (usize, usize),
    queue: Arc<Queue>,
    places: Arc<Semaphore>,
    /// The most images that wait for it or are computed.
    pub room: usize,
    most: usize,
    /// When its file was written, in seconds since 1970.
    created: u64,
}

/// All models of a server, at least one.
pub(super) struct Models {
    lanes: Vec<Arc<Lane>>,
    metrics: Arc<Metrics>,
}

/// What a model's thread says of it.
struct Opened {
    outputs: Vec<OutputSpec>,
    description: Value,
    recipe: Recipe,
    size: (usize, usize),
    batch: usize,
    room: usize,
}

impl FromStr for NamedModel {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let is_name = |name: &str| {
            (1..=MOST_NAME).contains(&name.len())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        if let Some((name, path)) = text.split_once('=')
            && is_name(name)
            && !path.is_empty()
            && !Path::new(text).exists()
        {
            return Ok(Self {
                name: name.to_owned(),
                path: path.to_owned(),
            });
        }
        let stem = Path::new(text)
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        match stem {
            Some(stem) if is_name(&stem) => Ok(Self {
                name: stem,
                path: text.to_owned(),
            }),
            _ => Err(format!(
                "expected a file whose name before its ending is of letters, digits, `.`, `_` and `-`, or name=FILE, found `{text}`"
            )),
        }
    }
}

impl fmt::Display for NamedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.path)
    }
}

/// A source for models that ask none for their size.
struct NoImages;

impl Source for NoImages {
    fn len(&self) -> u64 {
        0
    }

    fn record(&self, row: u64) -> Record {
        unreachable!("row {row} of no images")
    }

    fn load(&self, row: u64, _: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        Err(RowError {
            path: format!("row {row}"),
            reason: "there are no images".to_owned(),
        })
    }

    fn describe(&self) -> Value {
        json!({ "kind": "none" })
    }
}

impl Models {
    /// Opens every model.
    ///
    /// # Errors
    /// The first that cannot be opened; two of one name.
    pub fn open(config: &ServeConfig, metrics: &Arc<Metrics>) -> Result<Self> {
        let mut lanes: Vec<Arc<Lane>> = Vec::new();
        for named in &config.models {
            if lanes.iter().any(|lane| lane.name == named.name) {
                return Err(Error::setting(
                    "model",
                    format!("expected names that differ, found `{}` twice", named.name),
                ));
            }
            lanes.push(Arc::new(Lane::open(named, config, metrics)?));
        }
        if lanes.is_empty() {
            return Err(Error::setting("model", "expected at least one, found none"));
        }
        Ok(Self {
            lanes,
            metrics: Arc::clone(metrics),
        })
    }

    /// All of them.
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// The model of this name, or the first.
    ///
    /// # Errors
    /// 404.
    pub fn find(&self, name: Option<&str>) -> ApiResult<&Arc<Lane>> {
        let Some(name) = name else {
            return Ok(&self.lanes[0]);
        };
        self.lanes.iter().find(|lane| lane.name == name).ok_or_else(|| {
            let short: String = name.chars().take(MOST_NAME).collect();
            let names: Vec<&str> = self.lanes.iter().map(|lane| lane.name.as_str()).collect();
            ApiError {
                status: StatusCode::NOT_FOUND,
                code: "model_not_found",
                ..ApiError::field(
                    "model",
                    format!(
                        "no model `{}`; there is {}",
                        short.escape_debug(),
                        names.join(", ")
                    ),
                )
            }
        })
    }

    /// Whether every model answers.
    pub fn ready(&self) -> bool {
        self.lanes.iter().all(|lane| !lane.queue.is_closed())
    }

    /// Lets nothing more in.
    pub fn close(&self) {
        for lane in &self.lanes {
            lane.queue.close();
        }
    }

    /// The features of `images`, which hold `share` of the memory, in output number `output` of `lane`, in order.
    ///
    /// # Errors
    /// 429 where there is no room, 400 for an image that cannot be read, and what the model says.
    pub async fn features(
        &self,
        lane: &Lane,
        output: usize,
        images: Vec<Vec<u8>>,
        share: Share,
        workers: &Workers,
    ) -> ApiResult<Vec<Vec<f32>>> {
        let n = images.len();
        let mut places = lane.admit(n)?;
        let _queued = Queued::new(&self.metrics, n);
        let coming = lane.queue.expect(n);
        let prepared = workers.prepare(images, share, &lane.recipe).await?;
        let mut answers = Vec::with_capacity(n);
        let mut jobs = Vec::with_capacity(n);
        for pixels in prepared {
            let (answer, result) = oneshot::channel();
            let place = places
                .split(1)
                .ok_or_else(|| ApiError::server("a place was lost"))?;
            answers.push(result);
            jobs.push(Job {
                pixels,
                output,
                answer,
                place,
                since: Instant::now(),
            });
        }
        lane.queue.push(jobs)?;
        drop(coming);
        let mut features = Vec::with_capacity(n);
        for answer in answers {
            let gone = |_| ApiError::unavailable("the model is gone");
            features.push(answer.await.map_err(gone)??);
        }
        Ok(features)
    }
}

/// Images that are counted as admitted.
struct Queued<'a>(&'a Metrics, i64);

impl<'a> Queued<'a> {
    fn new(metrics: &'a Metrics, n: usize) -> Self {
        metrics.queued.add(n as i64);
        Self(metrics, n as i64)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.add(-self.1);
    }
}

impl Lane {
    fn open(named: &NamedModel, config: &ServeConfig, metrics: &Arc<Metrics>) -> Result<Self> {
        if matches!(named.path.split(':').next(), Some("pixels" | "hog")) {
            return Err(Error::input(
                named.path.clone(),
                "expected an ONNX file or a checkpoint, whose images have a size of their own",
            ));
        }
        let (says, opened) = mpsc::channel();
        let queue = Arc::new(Queue::default());
        let work = Work {
            path: named.path.clone(),
            config: config.clone(),
            queue: Arc::clone(&queue),
            metrics: Arc::clone(metrics),
        };
        thread::Builder::new()
            .name(format!("model-{}", named.name))
            .spawn(move || work.run(&says))
            .map_err(|e| Error::failed("the model's thread", e.to_string()))?;
        let opened = opened.recv();
        let opened =
            opened.map_err(|_| Error::failed(&named.path, "cannot be opened: its thread ended"))??;
        Ok(Self {
            name: named.name.clone(),
            outputs: opened.outputs,
            description: opened.description,
            recipe: Arc::new(opened.recipe),
            size: opened.size,
            queue,
            places: Arc::new(Semaphore::new(opened.room)),
            room: opened.room,
            most: opened.batch,
            created: written(Path::new(&named.path)),
        })
    }

    /// The output of this name, or the first: its place.
    ///
    /// # Errors
    /// 400.
    pub fn output(&self, name: Option<&str>) -> ApiResult<usize> {
        let Some(name) = name else { return Ok(0) };
        let place = self.outputs.iter().position(|output| output.name == name);
        place.ok_or_else(|| {
            let names: Vec<&str> = self.outputs.iter().map(|output| output.name.as_str()).collect();
            let short: String = name.chars().take(MOST_NAME).collect();
            ApiError::field(
                "output",
                format!(
                    "no output `{}`; {} has {}",
                    short.escape_debug(),
                    self.name,
                    names.join(", ")
                ),
            )
        })
    }

    /// Refuses a width that an output does not have.
    ///
    /// # Errors
    /// 400.
    pub fn check_dimensions(&self, output: usize, dimensions: Option<usize>) -> ApiResult<()> {
        let output = &self.outputs[output];
        match dimensions {
            Some(asked) if asked != output.width() => Err(ApiError::field(
                "dimensions",
                format!(
                    "expected {}, the width of {} `{}`, found {asked}: features are not shortened",
                    output.width(),
                    self.name,
                    output.name
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses an answer of more than `most` numbers, or of more than any may have.
    ///
    /// # Errors
    /// 400.
    pub fn check_answer(&self, output: usize, n: usize, most: usize) -> ApiResult<()> {
        let (width, most) = (self.outputs[output].width(), most.min(MOST_VALUES));
        match n.saturating_mul(width) > most {
            true => Err(ApiError::field(
                "input",
                format!(
                    "expected at most {} images for output `{}`, found {n}",
                    most / width,
                    self.outputs[output].name
                ),
            )),
            false => Ok(()),
        }
    }

    /// Places in the queue for `n` images.
    ///
    /// # Errors
    /// 429 where others have them, 400 where there are not as many, 503 where the model is gone.
    fn admit(&self, n: usize) -> ApiResult<OwnedSemaphorePermit> {
        if self.queue.is_closed() {
            return Err(ApiError::unavailable(format!("the model {} is gone", self.name)));
        }
        if n > self.room {
            return Err(ApiError::field(
                "input",
                format!(
                    "expected at most {} images, for which {} has places, found {n}",
                    self.room, self.name
                ),
            ));
        }
        Arc::clone(&self.places)
            .try_acquire_many_owned(n as u32)
            .map_err(|_| ApiError::busy("the queue is full: come back in a second"))
    }

    /// What `/v1/models` says of it.
    pub fn describe(&self) -> Value {
        json!({
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "macula",
            "outputs": self.outputs,
            "image_size": [self.size.0, self.size.1],
            "preprocess": self.recipe.preprocess,
            "kind": self.description["kind"],
            "sha256": self.description["sha256"],
            "batch": self.most,
            "queue": self.room,
            "ready": !self.queue.is_closed(),
        })
    }
}

/// When a file was written, in seconds since 1970; 0 where nobody knows.
fn written(path: &Path) -> u64 {
    let modified = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_secs())
}

/// What a model's thread is to do.
struct Work {
    path: String,
    config: ServeConfig,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
}

/// A thread that ends, however it does, leaves nobody waiting.
impl Drop for Work {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Work {
    fn run(self, says: &mpsc::Sender<Result<Opened>>) {
        let (model, opened) = match self.open() {
            Ok(opened) => opened,
            Err(error) => {
                // Whoever asked is waiting for it.
                let _ = says.send(Err(error));
                return;
            }
        };
        let batching = Batching {
            most: opened.batch,
            wait: Duration::from_millis(self.config.limits.max_wait),
        };
        if says.send(Ok(opened)).is_err() {
            return;
        }
        let reopen = || Ok(self.model()?.model);
        batching::serve(&self.queue, batching, &self.metrics, model, reopen);
    }

    fn model(&self) -> Result<OpenModel> {
        model::open(&self.path, &NoImages, &self.config.options)
    }

    fn open(&self) -> Result<(Box<dyn FeatureModel>, Opened)> {
        let OpenModel {
            mut model,
            preprocess,
        } = self.model()?;
        preprocess.need_rgb(&self.path)?;
        // The same checks as in an extraction, and the same way of decoding.
        let reader = BatchReader::new(&preprocess, &self.config.decode)?;
        let len = reader.image_len();
        let limits = &self.config.limits;
        let timeout = Duration::from_secs_f64(limits.timeout);
        let room = limits
            .queue
            .resolve(timeout, || time_of_run(model.as_mut(), len, 1))?;
        let batch = self.config.batch.resolve(model.as_mut(), len)?;
        let batch = batch.min(room);
        if self.config.warmup && self.config.batch != BatchSize::Auto {
            time_of_run(model.as_mut(), len, batch)?;
        }
        let opened = Opened {
            outputs: model.outputs().to_vec(),
            description: model.describe(),
            recipe: Recipe {
                decode: preprocess.decode_options(&self.config.decode),
                preprocess,
                len,
            },
            size: reader.size(),
            batch,
            room,
        };
        Ok((model, opened))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_its_file_s_name_or_another() {
        let named = |text: &str| text.parse::<NamedModel>().map(|named| (named.name, named.path));
        let pair = |name: &str, path: &str| Ok((name.to_owned(), path.to_owned()));
        assert_eq!(named("a/vits14.onnx"), pair("vits14", "a/vits14.onnx"));
        assert_eq!(named("small=a/m.onnx"), pair("small", "a/m.onnx"));
        assert_eq!(named("a/b=c/m.pth"), pair("m", "a/b=c/m.pth"));
        for wrong in ["", "a/my model.onnx", "=m.onnx", "..", "my model=m/ä.onnx"] {
            assert!(
                named(wrong).unwrap_err().ends_with(&format!("found `{wrong}`")),
                "{wrong}"
            );
        }
    }
}
