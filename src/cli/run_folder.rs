//! What `train` and `distill` share: the flags of a run, how they change its recipe, and running it.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::Host;
use super::args::{
    ColumnArgs, INPUT, NewArgs, OUTPUT, PREPROCESSING, RANDOMNESS, ReplicaArgs, RunArgs, colour, reworded,
    with_default,
};
use super::output;
use super::signals::StopSignals;
use crate::cluster::{self, Ranks};
use crate::data::decode::range::take_notice;
use crate::data::loader::LoaderConfig;
use crate::data::{DecodeOptions, Image, SampleRange, Source};
use crate::lock::FolderLock;
use crate::train::config::{DataConfig, DeviceExchange, Selection, TrainConfig};
use crate::train::distillation::FrozenTeacher;
use crate::train::identity::RunIdentity;
use crate::train::observe::{LabelFreeConfig, OnlineKnnConfig};
use crate::train::recipes::{DataFacts, Overrides};
use crate::train::replicas;
use crate::train::run::{self, RunSummary, TrainRequest};
use crate::train::start::Start;
use crate::{Error, Result};

/// Images looked at to tell what a source's images are like.
const LOOKED_AT: u64 = 32;
/// The share of them that counts as most.
const MOST: f64 = 0.75;

/// Steps between readings of the meters on features.
const MONITOR_EVERY: u64 = 500;

/// The heading of what is learnt, and how.
pub const TRAINING: &str = "Training";

/// The flags of a run, whatever it learns from.
#[derive(Debug, Args)]
#[command(next_help_heading = TRAINING, mut_args(reworded(&[
    ("out", "Run folder"),
    ("force", "Replace a run folder that exists"),
    ("json", "Print a summary as JSON"),
])))]
pub struct RunFolderArgs {
    /// Change a field of the recipe, for instance steps=5000, epochs=20, image_size=56, arch=vit-small/14,
    /// optimizer.learning_rate=1e-3; config.toml in a run folder has them all [default: none]
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Steps between online k-NNs, and between readings of --select [default: 500]
    #[arg(long, value_name = "STEPS")]
    knn_every: Option<u64>,
    /// What chooses checkpoints/best: knn, of --knn-data; or, of images without labels, rankme (how many directions the features
    /// use) or lidar (how many of them tell images apart better than crops of one image differ) [default: the recipe's, knn]
    #[arg(long, value_name = "knn|rankme|lidar", conflicts_with = "resume")]
    select: Option<Selection>,
    /// Images: a folder, list.csv, list.parquet, idx:FOLDER#train, sample:train, or - for paths on stdin; labels are not
    /// used unless a setting says so
    #[arg(long, value_name = "SRC", required_unless_present = "resume", help_heading = INPUT)]
    data: Option<String>,
    /// Labelled images for the online k-NN and the meters on features [default: none, and neither of them]
    #[arg(long, value_name = "SRC", help_heading = INPUT)]
    knn_data: Option<String>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    loader: LoaderArgs,
    #[command(flatten)]
    out: NewArgs,
    /// Go on after the last checkpoint of --out, with the settings saved there
    #[arg(long, conflicts_with_all = ["force", "recipe", "set", "knn_data", "knn_every"], help_heading = OUTPUT)]
    pub resume: bool,
    /// Print the resolved settings and end
    #[arg(long, help_heading = OUTPUT)]
    dry_run: bool,
    /// Seed of every random choice [default: the recipe's, 0]
    #[arg(long, value_name = "SEED", help_heading = RANDOMNESS)]
    seed: Option<u64>,
    #[command(flatten)]
    replicas: ReplicaArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// How files become pixels: flags for settings of `data.loader`.
#[derive(Debug, Args)]
#[command(next_help_heading = PREPROCESSING, mut_args(|arg| match arg.get_id().as_str() {
    "max_pixels" => with_default(
        arg,
        format!("the recipe's data.loader.max_pixels, {}", DecodeOptions::default().max_pixels),
    ),
    _ => arg,
}))]
struct LoaderArgs {
    /// Samples of more than 8 bits that become black and white: auto for the range of their type (0 to 1 of floats), two
    /// numbers, or clip, as Pillow does [default: the recipe's data.loader.sample_range, clip]
    #[arg(
        long,
        value_name = "auto|LOW,HIGH",
        allow_hyphen_values = true,
        conflicts_with = "resume"
    )]
    sample_range: Option<SampleRange>,
    /// Turn images as their EXIF says (the reference does not)
    #[arg(long, conflicts_with = "resume")]
    exif: bool,
    /// Largest image, in pixels
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    max_pixels: Option<u64>,
    /// Colour under transparent pixels, 0 to 255 each [default: the recipe's data.loader.background, none: alpha is dropped as the
    /// reference does]
    #[arg(long, value_name = "R,G,B", value_parser = colour, conflicts_with = "resume")]
    background: Option<[u8; 3]>,
}

impl LoaderArgs {
    /// Changes the settings that were given.
    fn over(&self, loader: &mut LoaderConfig) {
        if let Some(range) = self.sample_range {
            loader.sample_range = range;
        }
        if self.exif {
            loader.exif = true;
        }
        if let Some(max) = self.max_pixels {
            loader.max_pixels = max;
        }
        if self.background.is_some() {
            loader.background = self.background;
        }
    }
}

impl RunFolderArgs {
    /// The source, as `--data` and the flags of columns name it.
    pub fn data(&self) -> Result<String> {
        Ok(self.sources()?.0)
    }

    /// The source, and that of the online k-NN.
    fn sources(&self) -> Result<(String, Option<String>)> {
        let data = self.data.as_deref().unwrap_or_default();
        match &self.knn_data {
            Some(labelled) => {
                let [data, labelled] = self.columns.apply_to_both(data, labelled)?;
                Ok((data, Some(labelled)))
            }
            None => Ok((self.columns.apply_to(data)?, None)),
        }
    }

    /// The settings of the run that is resumed; `--seed` may only repeat them, and `--data` may say where the same images
    /// are by now.
    pub fn saved_config(&self, ranks: &dyn Ranks) -> Result<TrainConfig> {
        if ranks.rank() == 0 {
            FolderLock::check(&self.out.out)?;
        }
        let mut config = run::saved_config(&self.out.out)?;
        if let Some(seed) = self.seed.filter(|seed| *seed != config.seed) {
            let reason = format!("expected the run's own seed {}, found {seed}", config.seed);
            return Err(Error::input("--seed", reason));
        }
        let data = match &self.data {
            Some(data) => Some(self.columns.apply_to(data)?),
            None => self.columns.need("--data").map(|()| None)?,
        };
        if let Some(data) = data.filter(|data| *data != config.data.source) {
            // A run that does not know its images cannot tell whether these are the same.
            if RunIdentity::read(&self.out.out)?.is_none() {
                let reason = format!(
                    "expected the run's own source {}, found {data}",
                    config.data.source
                );
                return Err(Error::input("--data", reason));
            }
            config.data.source = data;
        }
        Ok(config)
    }

    /// What `--recipe` and `--set` change, and the name of the recipe they build on, where one is named.
    pub fn overrides(&self, recipe: Option<&str>) -> Result<(Overrides, Option<String>)> {
        let (mut overrides, named) = match recipe {
            Some(file) if file.ends_with(".toml") => Overrides::from_file(Path::new(file))?,
            other => (Overrides::default(), other.map(str::to_owned)),
        };
        for assignment in &self.set {
            overrides.set(assignment)?;
        }
        Ok((overrides, named))
    }

    /// `config` with the flags that are fields of it.
    pub fn over(&self, mut config: TrainConfig) -> Result<TrainConfig> {
        if let Some(seed) = self.seed {
            config.seed = seed;
        }
        self.loader.over(&mut config.data.loader);
        let every = self.knn_every.unwrap_or(MONITOR_EVERY);
        let labelled = self.sources()?.1;
        let selects = self.select.filter(|select| *select != Selection::Knn);
        if self.knn_every.is_some() && labelled.is_none() && selects.is_none() {
            let reason = "expected --knn-data or --select rankme|lidar with it, found neither";
            return Err(Error::input("--knn-every", reason));
        }
        if self.select == Some(Selection::Knn) && labelled.is_none() {
            let reason = "expected --knn-data with knn, found none";
            return Err(Error::input("--select", reason));
        }
        if let Some(labelled) = labelled {
            config.monitor.knn = Some(OnlineKnnConfig::new(labelled, every));
        }
        if let Some(select) = self.select {
            config.checkpoints.select = select;
        }
        if selects.is_some() {
            config.monitor.label_free = Some(LabelFreeConfig::new(every));
        }
        Ok(config)
    }

    /// How images will be read: as `recipe` says, but for the flags and what `overrides` change.
    pub fn loader(&self, mut recipe: DataConfig, overrides: &Overrides) -> Result<LoaderConfig> {
        self.loader.over(&mut recipe.loader);
        let data = overrides.section("data", &recipe)?;
        data.validate().map_err(|error| overrides.named(error))?;
        Ok(data.loader)
    }

    /// Runs `config` and prints how it ended; with `--dry-run` prints the settings alone.
    pub fn execute(
        &self,
        host: Host,
        config: TrainConfig,
        source: Box<dyn Source>,
        start: Start,
        teacher: Option<Box<dyn FrozenTeacher>>,
        ranks: Arc<dyn Ranks>,
    ) -> Result<()> {
        let first = ranks.rank() == 0;
        // The images looked at for the settings are the first to tell, long before a run has ended.
        let loader = &config.data.loader;
        let notice = take_notice().filter(|_| loader.sample_range.is_clip() || loader.bands.is_some());
        if let Some(notice) = notice.filter(|_| first) {
            tracing::warn!("{notice}");
        }
        if self.dry_run {
            if !first {
                return Ok(());
            }
            let text = toml::to_string(&config).map_err(|e| Error::failed("config", e.to_string()))?;
            return output::print(text.trim_end());
        }
        let device = self.run.device_of_process().candle()?;
        if !self.resume && first {
            self.check_out()?;
        }
        let ranks = match config.ranks.device_exchange {
            DeviceExchange::Auto => cluster::on_device(ranks, &device)?,
            DeviceExchange::Host => ranks,
        };
        if first && !ranks.is_one() {
            tracing::info!("{} ranks, connected by {}", ranks.size(), ranks.library());
        }
        let signals = StopSignals::listen(host, !ranks.is_one())?;
        let request = TrainRequest {
            config,
            source: Arc::from(source),
            out: self.out.out.clone(),
            replace: self.out.force,
            start,
            teacher,
            device,
            threads: rayon::current_num_threads(),
            until: None,
            stop: signals.flag(),
        };
        let summary = self.train(request, ranks)?;
        if !first {
            return Ok(());
        }
        if self.out.print.json {
            output::print_json(&json!({
                "out": self.out.out.display().to_string(),
                "step": summary.step,
                "finished": summary.finished,
                "knn_top1": summary.knn_top1,
                "images_per_second": summary.images_per_second,
                "data_wait": summary.data_wait,
            }))
        } else {
            output::print(&text(&self.out.out, &summary))
        }
    }

    /// Trains as one of `ranks`, or in a process of its own with copies of the network.
    fn train(&self, request: TrainRequest, ranks: Arc<dyn Ranks>) -> Result<RunSummary> {
        if ranks.is_one() {
            let copies = self
                .replicas
                .count(&request.config, request.threads, &request.device)?;
            return replicas::run(request, copies);
        }
        self.replicas.expect_one(ranks.size())?;
        run::run_on(request, ranks)
    }

    /// Whether a new run may have `--out`; an older one goes only once the new one has read all it needs.
    fn check_out(&self) -> Result<()> {
        FolderLock::check(&self.out.out)?;
        self.out.refuse_existing()?;
        if !self.out.out.exists() {
            return Ok(());
        }
        // --force is for runs: a folder that is none is not macula's to remove.
        let empty = std::fs::read_dir(&self.out.out).is_ok_and(|mut entries| entries.next().is_none());
        if !empty && !self.out.out.join(run::CONFIG).is_file() {
            let reason = "exists and is no run folder; choose another --out";
            return Err(Error::input(self.out.out.display().to_string(), reason));
        }
        Ok(())
    }
}

/// What recipes need to know of the images, from a few spread over the source.
pub fn look_at(source: &dyn Source, decode: &DecodeOptions) -> Result<DataFacts> {
    let images = source.len();
    let looked_at = LOOKED_AT.min(images);
    let rows = (0..looked_at).map(|i| i * images / looked_at.max(1));
    let (mut loaded, mut first_error) = (Vec::new(), None);
    for row in rows {
        match source.load_image(row, decode) {
            Ok(image) => loaded.push(image),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let sides = loaded.iter().map(Image::sides);
    let mut sides: Vec<u32> = sides.map(|(width, height)| width.min(height)).collect();
    sides.sort_unstable();
    let Some(&side) = sides.get(sides.len() / 2) else {
        let first = first_error.map_or(String::new(), |error| format!(", the first: {error}"));
        let reason = format!("expected images, but none of the {looked_at} looked at can be read{first}");
        return Err(Error::input("--data", reason));
    };
    let framed = loaded.iter().filter(|image| image.is_framed()).count();
    Ok(DataFacts {
        images,
        side,
        grey: loaded.iter().all(Image::is_grey),
        framed: framed as f64 >= MOST * loaded.len() as f64,
    })
}

fn text(out: &Path, summary: &RunSummary) -> String {
    let ended = if summary.finished {
        "finished"
    } else {
        "stopped (go on with --resume)"
    };
    let mut text = format!(
        "{}: {ended} at step {}, {:.0} images/s, {:.1} % of the time waiting for data",
        out.display(),
        summary.step,
        summary.images_per_second,
        100. * summary.data_wait
    );
    if let Some(top1) = summary.knn_top1 {
        text.push_str(&format!(", online k-NN {:.1} %", 100. * top1));
    }
    text
}
