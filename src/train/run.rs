//! A run: the loop around the trainer, and what it leaves in its folder. Everything that does not change the weights is
//! here: files, clocks, meters, signals. Of many ranks the first has the folder; what decides how a run goes on (signals, the
//! online k-NN, failures) all of them learn alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use macula_models::weights;
use serde_json::{Map, Value, json};

use super::checkpoint::{BestReadings, Checkpoints};
use super::config::{Selection, TrainConfig};
use super::distillation::{FrozenTargets, FrozenTeacher};
use super::feed::{Feed, LoadedBatch, MicroBatch};
use super::identity::RunIdentity;
use super::observe::meters::{self, TargetReadings};
use super::observe::{
    Collapse, EventWriter, MetricsLog, OnlineKnn, Readings, RunMeters, RunProgress, StepStatus, curves, keys,
    metrics_log,
};
use super::start::{Start, restored, trainer};
use super::trainer::{StepReport, Trainer};
use crate::cluster::{self, OneRank, Ranks};
use crate::data::augment::MultiCrop;
use crate::data::loader::{BadRow, Loader};
use crate::data::{Preprocess, RowError, Source, SourceIdentity};
use crate::error::toml_line;
use crate::identity::difference;
use crate::lock::FolderLock;
use crate::{Error, Result, files};

/// Name of a run's settings in its folder.
pub const CONFIG: &str = "config.toml";
const ENVIRONMENT: &str = "env.json";
/// Name of the backbone to take away, as of the last checkpoint.
pub const TEACHER: &str = "teacher.safetensors";
const BAD_IMAGES: &str = "errors.csv";

/// What to run.
pub struct TrainRequest {
    /// The resolved settings.
    pub config: TrainConfig,
    /// The images, opened from `config.data.source`.
    pub source: Arc<dyn Source>,
    /// The run folder.
    pub out: PathBuf,
    /// Whether an older run there is replaced, once everything that this one reads has been read.
    pub replace: bool,
    /// Where weights come from.
    pub start: Start,
    /// The frozen teacher that a distillation's settings name.
    pub teacher: Option<Box<dyn FrozenTeacher>>,
    /// Where to compute.
    pub device: Device,
    /// Threads of the step, for the record.
    pub threads: usize,
    /// The step after which this sitting ends with a checkpoint, where the run has more; it goes on with [`Start::Resume`].
    pub until: Option<u64>,
    /// Set by a signal: the run writes a checkpoint and ends.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSummary {
    /// Steps done over the whole life of the run.
    pub step: u64,
    /// Whether all steps are done; false after a signal.
    pub finished: bool,
    /// The latest online k-NN.
    pub knn_top1: Option<f64>,
    /// Images a second over this sitting.
    pub images_per_second: f64,
    /// Share of the time in which the step waited for data.
    pub data_wait: f64,
}

/// Trains until all steps are done or `stop` is set.
///
/// # Errors
/// A folder that another run is writing, settings that do not fit, data that cannot be read or is not the run's own, a loss that is not finite (the images of the step are written down
/// and the last checkpoint stays), a folder that cannot be written.
pub fn run(request: TrainRequest) -> Result<RunSummary> {
    run_on(request, Arc::new(OneRank))
}

/// [`run`] as one of `ranks`, each of which is asked the same and reads the same folder and images.
///
/// # Errors
/// As [`run`]; ranks that cannot share the batch, differ in what they are asked, or cannot reach each other. After an error the other
/// ranks wait for this one, so that whoever gets one ends the job.
pub fn run_on(request: TrainRequest, ranks: Arc<dyn Ranks>) -> Result<RunSummary> {
    let meters = open_meters(&request)?;
    run_with(request, ranks, Arc::new(meters))
}

/// [`run_on`] with meters that ranks of one process share.
pub(super) fn run_with(
    request: TrainRequest,
    ranks: Arc<dyn Ranks>,
    meters: Arc<RunMeters>,
) -> Result<RunSummary> {
    Run::new(request, ranks, meters)?.finish()
}

/// The meters of `request`.
pub(super) fn open_meters(request: &TrainRequest) -> Result<RunMeters> {
    let config = &request.config;
    RunMeters::open(config, &request.source, preprocess(config))
}

/// This rank's share of the batches of `source` as `config` makes them, from those of step `step` on, on their way to `device`.
///
/// # Errors
/// Settings that do not fit, a GPU that does not answer.
pub(super) fn start_feed(
    config: &TrainConfig,
    source: Arc<dyn Source>,
    step: u64,
    device: &Device,
    ranks: &dyn Ranks,
) -> Result<Feed> {
    let mut settings = config.loader();
    if settings.workers == 0 && !ranks.is_one() {
        settings.workers = match ranks.is_one_process() {
            true => cluster::threads().div_ceil(ranks.size()),
            false => cluster::threads(),
        };
    }
    let masks = match config.draws_masks() {
        true => Some((config.masks.clone(), config.grid()?)),
        false => None,
    };
    let loader = Loader::start(
        source,
        MultiCrop::new(config.crops.clone())?,
        masks,
        config.batch_plan()?.of_rank(ranks.rank(), ranks.size()),
        &settings,
        config.seed,
        step * config.accumulate as u64,
    )?;
    Feed::start(loader, config, device)
}

struct Run {
    request: TrainRequest,
    trainer: Trainer,
    feed: Feed,
    checkpoints: Checkpoints,
    meters: Arc<RunMeters>,
    collapse: Collapse,
    ranks: Arc<dyn Ranks>,
    /// What the first rank writes; none on the others.
    books: Option<Books>,
    best: BestReadings,
    last_knn: Option<f64>,
    /// The online k-NN of the weights that a run with `--from` began with.
    start_knn: Option<f64>,
    warned: Option<u64>,
    bad_images: usize,
    total: Tally,
    since_log: Tally,
}

/// The files of a run that grow, and its progress.
struct Books {
    log: MetricsLog,
    events: EventWriter,
    progress: RunProgress,
    /// Last, so that the folder is another run's only when all is written.
    _lock: FolderLock,
}

/// Whether candle's `message` is that of CUDA when its memory is used up.
fn is_out_of_memory(message: &str) -> bool {
    ["OUT_OF_MEMORY", "out of memory", "ALLOC_FAILED"]
        .iter()
        .any(|sign| message.contains(sign))
}

/// Time and images since some moment.
#[derive(Clone, Copy)]
struct Tally {
    since: Instant,
    aside: Duration, // spent on checkpoints, meters and pictures
    wait: Duration,
    exchange: f64, // seconds in which steps waited for other ranks
    images: u64,
}

impl Tally {
    fn start() -> Self {
        Self {
            since: Instant::now(),
            aside: Duration::ZERO,
            wait: Duration::ZERO,
            exchange: 0.,
            images: 0,
        }
    }

    fn training(&self) -> f64 {
        self.since
            .elapsed()
            .saturating_sub(self.aside)
            .as_secs_f64()
            .max(1e-9)
    }

    fn images_per_second(&self) -> f64 {
        self.images as f64 / self.training()
    }

    fn data_wait(&self) -> f64 {
        (self.wait.as_secs_f64() / self.training()).min(1.)
    }

    fn rank_wait(&self) -> f64 {
        (self.exchange / self.training()).min(1.)
    }
}

impl Run {
    fn new(mut request: TrainRequest, ranks: Arc<dyn Ranks>, meters: Arc<RunMeters>) -> Result<Self> {
        let first = ranks.rank() == 0;
        request.config.check_ranks(ranks.size())?;
        let lock = first.then(|| FolderLock::acquire(&request.out)).transpose()?;
        let source = Arc::clone(&request.source);
        let teacher = request.teacher.as_deref().map(identity_of);
        let frozen = frozen_targets(&mut request, source.as_ref())?;
        let config = &request.config;
        let out = &request.out;
        let identity = RunIdentity {
            source: learnt_from(config, source.as_ref()),
            knn_source: meters.knn.as_ref().map(OnlineKnn::images),
            teacher,
            from_elsewhere: request.start.is_elsewhere(),
        };
        let known = !first || check_identity(&request, &identity)?;
        let checkpoints = Checkpoints::in_folder(out);
        let (mut trainer, best) = match &request.start {
            Start::Resume => restored(config, out, &request.device, &ranks)?,
            start => {
                let mut trainer = trainer(config, start, &request.device)?;
                trainer.share_with(&ranks)?;
                (trainer, BestReadings::default())
            }
        };
        if let Some(frozen) = frozen {
            trainer.learn_from(frozen);
        }
        let step = trainer.step();
        let start_knn = match &request.start {
            Start::Resume => metrics_log::last(&out.join(metrics_log::METRICS_FILE), keys::KNN_TOP1_START)?
                .or(best.knn_top1.filter(|_| step == 0)),
            _ => None,
        };
        let settings = toml::to_string(config).map_err(|e| Error::failed(CONFIG, e.to_string()))?;
        // The others have read what the first is about to replace once they have all come here.
        alike(ranks.as_ref(), &settings, &identity, &trainer)?;
        let environment = environment(&request, source.as_ref(), ranks.as_ref(), &trainer)?;
        let books = match lock {
            None => None,
            Some(lock) => {
                if request.replace {
                    files::empty_folder(out, FolderLock::is_lock)?;
                }
                if !known {
                    identity.write(out)?;
                }
                if !matches!(request.start, Start::Resume) {
                    files::write_bytes(&out.join(CONFIG), settings.as_bytes())?;
                }
                files::write_json(&out.join(ENVIRONMENT), &environment)?;
                Some(Books {
                    log: MetricsLog::resume(&out.join(metrics_log::METRICS_FILE), step)?,
                    events: EventWriter::create(out, (step > 0).then_some(step))?,
                    progress: RunProgress::new(config.steps, step),
                    _lock: lock,
                })
            }
        };
        let feed = start_feed(config, Arc::clone(&source), step, &request.device, ranks.as_ref())?;
        Ok(Self {
            ranks,
            books,
            collapse: Collapse::after(config.optimizer.warmup_steps),
            best,
            last_knn: None,
            start_knn,
            warned: None,
            bad_images: 0,
            total: Tally::start(),
            since_log: Tally::start(),
            checkpoints,
            feed,
            trainer,
            meters,
            request,
        })
    }

    /// Says what to try where a GPU's memory did not suffice.
    fn out_of_memory(&self, error: Error) -> Error {
        if !is_out_of_memory(&error.to_string()) {
            return error;
        }
        let config = &self.request.config;
        let reason = format!(
            "the GPU's memory does not hold a micro-batch of {} images; try `--set compute=bf16`, `--set \
             gradient_checkpointing=true`, `--set accumulate={}` or a smaller batch_size",
            config.batch_size / config.accumulate,
            2 * config.accumulate
        );
        Error::failed("batch_size", reason)
    }

    fn finish(mut self) -> Result<RunSummary> {
        let steps = self.request.config.steps;
        let end = self.end();
        if self.request.start.is_elsewhere() {
            self.aside(Self::keep_start)?;
        }
        let mut saved = self.trainer.step();
        while self.trainer.step() < end && !self.stopped()? {
            let batches = self.fetch()?;
            let report = match self.trainer.advance(&batches) {
                Err(error @ Error::NotFinite { .. }) => return Err(self.not_finite(error, &batches)?),
                other => other.map_err(|error| self.out_of_memory(error))?,
            };
            let images = self.images_of(report.step)?;
            self.total.images += images;
            self.since_log.images += images;
            self.since_log.exchange += report.seconds.exchange;
            for fed in batches {
                self.feed.recycle(fed)?;
            }
            let best = self.observe(&report)?;
            let done = self.trainer.step();
            if best || done.is_multiple_of(self.request.config.checkpoints.every) {
                self.aside(|run| run.save(best))?;
                saved = done;
            }
        }
        let done = self.trainer.step();
        if saved < done || done == 0 {
            self.save(false)?;
        }
        self.draw_curves();
        let finished = done >= steps;
        match &self.books {
            Some(books) if finished => books.progress.finish(),
            Some(books) => books.progress.abandon(),
            None => {}
        }
        cluster::tell_memory(self.ranks.as_ref())?;
        Ok(RunSummary {
            step: done,
            finished,
            knn_top1: self.last_knn,
            images_per_second: self.total.images_per_second(),
            data_wait: self.total.data_wait(),
        })
    }

    /// Measures and saves the weights that a run with `--from` begins with: one that is killed early goes on from there, and one that
    /// makes them worse still has them as its best.
    fn keep_start(&mut self) -> Result<()> {
        let (mut readings, mut metrics) = (Readings::default(), Map::new());
        let mut best = self.run_knn(&mut readings, &mut metrics)?;
        best |= self.run_label_free(&mut readings, &mut metrics)?;
        self.start_knn = self.last_knn;
        if let (Some(top1), Some(_)) = (self.start_knn, &self.books) {
            tracing::info!("k-NN of the start: {top1:.4}");
        }
        self.save(best && self.request.config.checkpoints.keep_best)
    }

    /// The step after which this sitting ends.
    fn end(&self) -> u64 {
        let steps = self.request.config.steps;
        self.request.until.map_or(steps, |until| until.min(steps))
    }

    /// Whether any rank has been told to stop: a signal reaches them at different moments, and all end after the same step.
    fn stopped(&self) -> Result<bool> {
        self.ranks.any(self.request.stop.load(Ordering::Relaxed))
    }

    /// Images of `step` on all ranks.
    fn images_of(&self, step: u64) -> Result<u64> {
        let (plan, parts) = (
            self.request.config.batch_plan()?,
            self.request.config.accumulate as u64,
        );
        Ok((0..parts).map(|part| plan.size(step * parts + part) as u64).sum())
    }

    /// Does something that is not training, and leaves its time out of the tallies.
    fn aside<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work(self);
        self.total.aside += start.elapsed();
        self.since_log.aside += start.elapsed();
        result
    }

    /// The parts of the next step.
    fn fetch(&mut self) -> Result<Vec<LoadedBatch>> {
        let (micro_batches, waited) = self.feed.fetch_micro_batches(self.request.config.accumulate)?;
        self.total.wait += waited;
        self.since_log.wait += waited;
        if self.ranks.is_one() {
            self.note_bad_images()?;
        }
        Ok(micro_batches)
    }

    /// Keeps the list of unreadable images up to date: those that any rank has met. All ranks come here at the same steps.
    fn note_bad_images(&mut self) -> Result<()> {
        let loader = self.feed.loader();
        let changed = loader.bad_count() != self.bad_images;
        if !self.ranks.any(changed)? {
            return Ok(());
        }
        let own = loader.bad_rows();
        self.bad_images = own.len();
        let bad = bad_of_ranks(own, self.ranks.as_ref())?;
        if self.books.is_none() {
            return Ok(());
        }
        let path = self.request.out.join(BAD_IMAGES);
        let failed = |e: csv::Error| Error::failed(path.display().to_string(), e.to_string());
        let mut table = csv::Writer::from_writer(Vec::new());
        table.write_record(["row", "path", "error"]).map_err(failed)?;
        for entry in &bad {
            let row = entry.row.to_string();
            table
                .write_record([row.as_str(), &entry.error.path, &entry.error.reason])
                .map_err(failed)?;
        }
        let bytes = table.into_inner().map_err(|e| Error::io(&path, e.into_error()))?;
        files::write_bytes(&path, &bytes)
    }

    /// Logs the step where that is due, and measures what is due; says whether the online k-NN is the best so far.
    fn observe(&mut self, report: &StepReport) -> Result<bool> {
        let done = report.step + 1;
        let config = &self.request.config;
        let last = done == self.end();
        let knn_due = self
            .meters
            .knn
            .as_ref()
            .is_some_and(|knn| last || knn.is_due(done));
        let label_free_due = self
            .meters
            .label_free
            .as_ref()
            .is_some_and(|meters| last || meters.is_due(done));
        let log_due = last || done == 1 || done.is_multiple_of(config.monitor.log_every);
        let curves_due = done.is_multiple_of(config.monitor.curves_every);
        let status = StepStatus {
            step: done,
            loss: report.loss,
            images_per_second: self.since_log.images_per_second(),
            knn: self.last_knn,
        };
        if let Some(books) = &mut self.books {
            books.progress.update(&status);
        }
        let keeps_best = self.request.config.checkpoints.keep_best;
        if self.books.is_none() {
            let mut best = false;
            if knn_due {
                best |= self.run_knn(&mut Readings::default(), &mut Map::new())?;
            }
            if label_free_due {
                best |= self.run_label_free(&mut Readings::default(), &mut Map::new())?;
            }
            return Ok(best && keeps_best);
        }
        if !log_due && !knn_due && !label_free_due {
            return Ok(false);
        }
        let mut readings = Readings::default();
        let mut metrics = self.step_metrics(report);
        self.since_log = Tally::start();
        self.aside(|_| read_targets(report, &mut readings, &mut metrics))?;
        let mut best = false;
        if knn_due {
            best |= self.aside(|run| run.run_knn(&mut readings, &mut metrics))?;
        }
        if label_free_due {
            best |= self.aside(|run| run.run_label_free(&mut readings, &mut metrics))?;
        }
        self.warn(done, &readings);
        if let Some(books) = &mut self.books {
            books.log.append(&metrics)?;
            books.events.scalars(done, &metrics)?;
        }
        if curves_due {
            self.aside(|run| {
                run.draw_curves();
                Ok(())
            })?;
        }
        Ok(best && keeps_best)
    }

    fn step_metrics(&self, report: &StepReport) -> Map<String, Value> {
        let mut metrics = Map::new();
        let mut put = |key: &str, value: Value| drop(metrics.insert(key.to_owned(), value));
        put(keys::STEP, json!(report.step + 1));
        put(keys::LOSS, json!(report.loss));
        for (name, value) in &report.terms {
            put(&format!("{}{name}", keys::LOSS_PART), json!(value));
        }
        put(keys::LR, json!(report.values.learning_rate));
        put(keys::WEIGHT_DECAY, json!(report.values.weight_decay));
        put("momentum", json!(report.values.momentum));
        if self.request.config.has_info_nce() {
            put("info_nce_temp", json!(report.values.info_nce_temperature));
        } else {
            put("teacher_temp", json!(report.values.teacher_temperature));
        }
        put(keys::GRAD_NORM, json!(report.grad_norm()));
        for (module, norm) in &report.grad_norms {
            put(&format!("{}_{module}", keys::GRAD_NORM), json!(norm));
        }
        put(keys::IMAGES_PER_SECOND, json!(self.since_log.images_per_second()));
        put("data_wait", json!(self.since_log.data_wait()));
        if !self.ranks.is_one() {
            put("rank_wait", json!(self.since_log.rank_wait()));
        }
        let earlier = self
            .books
            .as_ref()
            .map_or(0., |books| books.log.earlier_minutes());
        let minutes = earlier + self.total.since.elapsed().as_secs_f64() / 60.;
        put(keys::MINUTES, json!(minutes));
        metrics
    }

    /// The online k-NN of the teacher and the meters on its features; whether it is the best so far.
    fn run_knn(&mut self, readings: &mut Readings, metrics: &mut Map<String, Value>) -> Result<bool> {
        let Some(knn) = &self.meters.knn else {
            return Ok(false);
        };
        let features_of = teacher_features(&self.trainer, &self.request.device);
        let result = knn.evaluate(self.ranks.as_ref(), features_of)?;
        self.last_knn = Some(result.top1);
        let best = self.select(Selection::Knn, result.top1);
        if self.books.is_none() {
            return Ok(best);
        }
        let rows = result.features.len() / result.d.max(1);
        let std = meters::feature_std(&result.features, rows, result.d);
        let (some, taken) = meters::spread_rows(&result.features, rows, result.d, meters::RANK_ROWS);
        let rank = meters::effective_rank(&some, taken, result.d);
        readings.feature_std = Some(std);
        readings.effective_rank = Some((rank, taken.min(result.d)));
        for (key, value) in [
            (keys::KNN_TOP1, result.top1),
            (keys::KNN_LOW, result.low),
            (keys::KNN_HIGH, result.high),
            (keys::FEATURE_STD, std),
            (keys::EFFECTIVE_RANK, rank),
        ] {
            metrics.insert(key.to_owned(), json!(value));
        }
        if let Some(start) = self.start_knn {
            metrics.insert(keys::KNN_TOP1_START.to_owned(), json!(start));
        }
        Ok(best)
    }

    /// The meters of images without labels; whether the one that chooses is the best so far.
    fn run_label_free(&mut self, readings: &mut Readings, metrics: &mut Map<String, Value>) -> Result<bool> {
        let Some(meters) = &self.meters.label_free else {
            return Ok(false);
        };
        let features_of = teacher_features(&self.trainer, &self.request.device);
        let result = meters.evaluate(self.ranks.as_ref(), features_of)?;
        readings.feature_std = Some(result.feature_std);
        readings.effective_rank = Some((result.effective_rank, result.possible_rank));
        for (key, value) in [
            (keys::FEATURE_STD, result.feature_std),
            (keys::EFFECTIVE_RANK, result.effective_rank),
            (keys::LIDAR, result.lidar),
            (keys::SPECTRUM_DECAY, result.spectrum_decay),
        ] {
            metrics.insert(key.to_owned(), json!(value));
        }
        let by_rank = self.select(Selection::Rankme, result.effective_rank);
        let by_lidar = self.select(Selection::Lidar, result.lidar);
        self.ranks.any(by_rank || by_lidar)
    }

    /// Takes note of a reading; whether it chooses the best checkpoint and is the best so far.
    fn select(&mut self, by: Selection, reading: f64) -> bool {
        let chooses = by == self.request.config.checkpoints.select;
        let best = match by {
            Selection::Knn => &mut self.best.knn_top1,
            Selection::Rankme | Selection::Lidar if chooses => &mut self.best.label_free,
            Selection::Rankme | Selection::Lidar => return false,
        };
        let is_best = reading.is_finite() && best.is_none_or(|best| reading > best);
        if is_best {
            *best = Some(reading);
        }
        is_best && chooses
    }

    /// Says what is collapsing, once in a while and not at every reading.
    fn warn(&mut self, step: u64, readings: &Readings) {
        let quiet = self.request.config.monitor.log_every * 20;
        if self.warned.is_some_and(|last| step < last + quiet) {
            return;
        }
        if let Some(text) = self.collapse.judge(step, readings) {
            let say = || tracing::warn!("step {step}: {text}");
            match &self.books {
                Some(books) => books.progress.suspend(say),
                None => say(),
            }
            self.warned = Some(step);
        }
    }

    /// Writes a checkpoint. Every rank comes here: they compare their weights, and the first one writes.
    fn save(&mut self, best: bool) -> Result<()> {
        if !self.ranks.is_one() {
            self.note_bad_images()?;
            self.ranks.agree("weights", &weights_in_words(&self.trainer))?;
        }
        let state = self.trainer.state()?;
        let parts = self.trainer.parts(&state.optimizer)?;
        if self.books.is_none() {
            return parts.map_or(Ok(()), |parts| parts.answer(&state.optimizer));
        }
        let config = &self.request.config;
        let vit = &self.trainer.method().teacher.config().vit;
        self.checkpoints
            .save_parts(&state, parts.as_ref(), vit, config.seed, self.best, best)?;
        let mut metadata = weights::config_metadata(vit)?;
        metadata.insert(weights::PREPROCESS_KEY.to_owned(), preprocess(config).to_json()?);
        let backbone = self.trainer.method().teacher.backbone();
        weights::save(&self.request.out.join(TEACHER), &backbone, &metadata)?;
        self.checkpoints.prune(config.checkpoints.keep)
    }

    /// A picture that cannot be drawn is no reason to end a run.
    fn draw_curves(&self) {
        if self.books.is_none() {
            return;
        }
        let out = &self.request.out;
        let title = format!("{} · {}", out.display(), self.request.config.recipe);
        let drawn = metrics_log::read(&out.join(metrics_log::METRICS_FILE))
            .and_then(|lines| curves::draw(&out.join(curves::CURVES_FILE), &title, &lines));
        if let Err(error) = drawn {
            tracing::warn!("{error}");
        }
    }

    /// Writes down the images of a step whose loss is not finite, which all ranks know.
    ///
    /// # Errors
    /// Ranks that cannot reach each other.
    fn not_finite(&self, error: Error, batches: &[LoadedBatch]) -> Result<Error> {
        let own: Vec<u8> = batches
            .iter()
            .flat_map(|fed| &fed.batch().rows)
            .flat_map(|row| row.to_le_bytes())
            .collect();
        let all = self.ranks.gather_bytes(&own)?.concat();
        let rows: Vec<u64> = all
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&row| u64::from_le_bytes(row))
            .collect();
        if self.books.is_none() {
            return Ok(error);
        }
        Ok(self.write_down(error, &rows))
    }

    fn write_down(&self, error: Error, rows: &[u64]) -> Error {
        let step = self.trainer.step();
        let name = format!("not-finite-step-{step}.json");
        let images: Vec<Value> = rows
            .iter()
            .map(|&row| json!({ "row": row, "path": self.request.source.record(row).path }))
            .collect();
        let record = json!({ "step": step, "error": error.to_string(), "images": images });
        let path = self.request.out.join(&name);
        let kept = match self.checkpoints.last_step() {
            Some(step) => format!("the checkpoint of step {step} is the last good one"),
            None => "no checkpoint had been written yet".to_owned(),
        };
        match files::write_json(&path, &record) {
            Ok(()) => Error::failed(
                format!("step {step}"),
                format!("{error}; its images are in {}; {kept}", path.display()),
            ),
            Err(trouble) => Error::failed(format!("step {step}"), format!("{error}; {trouble}; {kept}")),
        }
    }
}

/// The teacher's class token of images `[b, 3, H, W]`, as `[b, D]` in the computer's memory.
fn teacher_features<'a>(
    trainer: &'a Trainer,
    device: &'a Device,
) -> impl FnMut(&Tensor) -> Result<Tensor> + 'a {
    let teacher = &trainer.method().teacher;
    move |pixels| {
        let pixels = pixels.to_device(device)?;
        let cls = teacher.vit.forward(&pixels, None)?.cls;
        cls.to_device(&Device::Cpu).map_err(Error::from)
    }
}

/// The meters of the teacher's distributions.
fn read_targets(
    report: &StepReport,
    readings: &mut Readings,
    metrics: &mut Map<String, Value>,
) -> Result<()> {
    let Some(targets) = &report.cls_targets else {
        return Ok(());
    };
    let (m, k) = targets.dims2()?;
    let values: Vec<f32> = targets
        .to_dtype(DType::F32)
        .and_then(|targets| targets.flatten_all())
        .and_then(|targets| targets.to_vec1())?;
    let entropy = meters::entropy(&values, m, k);
    let usage = meters::prototype_usage(&values, m, k);
    for (key, value) in [
        (keys::TEACHER_ENTROPY, entropy.nats),
        (keys::TEACHER_ENTROPY_SHARE, entropy.share),
        (keys::PROTOTYPE_USAGE, usage.usage),
        (keys::PROTOTYPE_ARGMAX_SHARE, usage.argmax_share),
    ] {
        metrics.insert(key.to_owned(), json!(value));
    }
    readings.targets = Some(TargetReadings {
        entropy_share: entropy.share,
        usage: usage.usage,
        m,
        k,
    });
    Ok(())
}

/// Fails on every rank unless all were asked the same, see the same images and begin with the same weights.
fn alike(ranks: &dyn Ranks, settings: &str, identity: &RunIdentity, trainer: &Trainer) -> Result<()> {
    if ranks.is_one() {
        return Ok(());
    }
    ranks.agree("version of macula", env!("CARGO_PKG_VERSION"))?;
    ranks.agree("settings", settings)?;
    let images = serde_json::to_string_pretty(identity);
    ranks.agree(
        "images",
        &images.map_err(|e| Error::failed("images", e.to_string()))?,
    )?;
    ranks.agree("weights", &weights_in_words(trainer))
}

/// The step, and a number that two sets of the student's weights have in common only where they are the same.
fn weights_in_words(trainer: &Trainer) -> String {
    let mut hash = 0u64;
    for (name, tensor) in trainer.method().student.tensors() {
        let values = tensor
            .to_device(&Device::Cpu)
            .and_then(|t| t.flatten_all()?.to_vec1::<f32>());
        for value in values.unwrap_or_default() {
            hash = (hash.rotate_left(5) ^ u64::from(value.to_bits())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        hash = hash.wrapping_add(name.len() as u64);
    }
    format!("step {}, {hash:016x}", trainer.step())
}

/// The unreadable rows that any of the ranks has met, each once, in the source's order.
fn bad_of_ranks(own: Vec<BadRow>, ranks: &dyn Ranks) -> Result<Vec<BadRow>> {
    if ranks.is_one() {
        return Ok(own);
    }
    let failed = |error: serde_json::Error| Error::failed("unreadable images", error.to_string());
    let plain: Vec<_> = own
        .iter()
        .map(|bad| (bad.row, &bad.error.path, &bad.error.reason))
        .collect();
    let mut all = BTreeMap::new();
    for bytes in ranks.gather_bytes(&serde_json::to_vec(&plain).map_err(failed)?)? {
        let of_rank: Vec<(u64, String, String)> = serde_json::from_slice(&bytes).map_err(failed)?;
        all.extend(
            of_rank
                .into_iter()
                .map(|(row, path, reason)| (row, (path, reason))),
        );
    }
    let bad_row = |(row, (path, reason))| BadRow {
        row,
        error: RowError { path, reason },
    };
    Ok(all.into_iter().map(bad_row).collect())
}

/// What the frozen teacher of a distillation gives its student.
fn frozen_targets(request: &mut TrainRequest, source: &dyn Source) -> Result<Option<FrozenTargets>> {
    let config = &request.config;
    match (&config.distill, request.teacher.take()) {
        (None, _) => Ok(None),
        (Some(_), Some(teacher)) => FrozenTargets::new(config, teacher, source, &request.device).map(Some),
        (Some(distill), None) => {
            let reason = format!(
                "a run that learns from {} goes on with `macula distill`",
                distill.teacher
            );
            Err(Error::input(request.out.display().to_string(), reason))
        }
    }
}

/// Whether `request` goes on with a run whose folder knows what it learns from, which is as `now`.
///
/// # Errors
/// Other images or another teacher than the run began with; a new run in the folder of one.
fn check_identity(request: &TrainRequest, now: &RunIdentity) -> Result<bool> {
    let out = &request.out;
    if !matches!(request.start, Start::Resume) {
        // Another run may have come and gone since the command looked.
        files::refuse_existing(&out.join(CONFIG), request.replace)?;
        return Ok(false);
    }
    match RunIdentity::read(out)? {
        Some(began) => began.check(now, out).map(|()| true),
        None => check_older_run(out, request.source.as_ref()).map(|()| false),
    }
}

/// A run begun before runs kept a fingerprint has recorded its source: as many images, of the same hash where there is one.
fn check_older_run(out: &Path, source: &dyn Source) -> Result<()> {
    let path = out.join(ENVIRONMENT);
    let env = std::fs::read_to_string(&path).ok();
    let Some(env) = env.and_then(|text| serde_json::from_str::<Value>(&text).ok()) else {
        return Ok(());
    };
    let now = source.describe();
    for key in ["images", "sha256"] {
        if let Some(differs) = difference(&format!("source.{key}"), &env["source"][key], &now[key]) {
            let reason = format!("the run began with other data: {differs}");
            return Err(Error::mismatch(path.display().to_string(), reason));
        }
    }
    Ok(())
}

/// The images of `source` as `config` learns from them.
fn learnt_from(config: &TrainConfig, source: &dyn Source) -> SourceIdentity {
    let identity = SourceIdentity::from_source(source);
    match config
        .distill
        .as_ref()
        .is_some_and(|distill| distill.has_labels())
    {
        true => identity,
        false => identity.without_labels(),
    }
}

/// What decides about a teacher's targets.
fn identity_of(teacher: &dyn FrozenTeacher) -> Value {
    let facts = teacher.facts();
    json!({ "sha256": facts.sha256, "normalisation": facts.normalisation })
}

/// How images of the run's size are prepared for its network outside of training.
pub fn preprocess(config: &TrainConfig) -> Preprocess {
    let side = config.crops.global.size;
    Preprocess {
        interpolation: config.crops.interpolation,
        mean: config.crops.mean.clone(),
        std: config.crops.std.clone(),
        sample_range: config.data.loader.sample_range,
        bands: config.data.loader.bands,
        ..Preprocess::imagenet(side, side)
    }
}

/// What `env.json` says. Every rank comes here, to name its machine and its part of the optimizer's state.
fn environment(
    request: &TrainRequest,
    source: &dyn Source,
    ranks: &dyn Ranks,
    trainer: &Trainer,
) -> Result<Value> {
    let mut record = json!({
        "tool_version": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "device": format!("{:?}", request.device.location()),
        "threads": request.threads,
        "source": source.describe(),
    });
    if !ranks.is_one() {
        let hosts = ranks.gather_bytes(cluster::host().as_bytes())?;
        let hosts: Vec<String> = hosts
            .iter()
            .map(|host| String::from_utf8_lossy(host).into_owned())
            .collect();
        record["ranks"] = json!({
            "size": ranks.size(),
            "hosts": hosts,
            "library": ranks.library(),
            "optimizer_bytes": optimizer_bytes(trainer, ranks)?,
        });
    }
    Ok(record)
}

/// Bytes of the optimizer's state on each rank.
fn optimizer_bytes(trainer: &Trainer, ranks: &dyn Ranks) -> Result<Vec<u64>> {
    let all = ranks
        .gather_bytes(&trainer.optimizer_bytes().to_le_bytes())?
        .concat();
    Ok(all
        .as_chunks::<8>()
        .0
        .iter()
        .map(|&bytes| u64::from_le_bytes(bytes))
        .collect())
}

/// Reads the settings of the run in `folder`.
///
/// # Errors
/// A folder without a readable `config.toml`.
pub fn saved_config(folder: &Path) -> Result<TrainConfig> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let config: TrainConfig =
        toml::from_str(&text).map_err(|e| Error::input(path.display().to_string(), toml_line(&e)))?;
    config.validate().map_err(|error| error.in_file(&path))?;
    Ok(config)
}
