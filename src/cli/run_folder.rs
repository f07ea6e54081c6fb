//! What `train` and `distill` share: the flags of a run, how they change its recipe, and running it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde_json::json;

use super::args::{ColumnArgs, RunArgs};
use super::output;
use crate::data::decode::range::take_notice;
use crate::data::{DecodeOptions, SampleRange, Source};
use crate::files::refuse_existing;
use crate::lock::FolderLock;
use crate::train::config::TrainConfig;
use crate::train::distillation::FrozenTeacher;
use crate::train::identity::RunIdentity;
use crate::train::observe::OnlineKnnConfig;
use crate::train::recipes::{DataFacts, Overrides};
use crate::train::run::{self, RunSummary, TrainRequest};
use crate::train::start::Start;
use crate::{Error, Result};

/// Images looked at to tell the size of a source's images and whether they are grey.
const LOOKED_AT: u64 = 32;

/// The flags of a run, whatever it learns from.
#[derive(Debug, Args)]
pub struct RunFolderArgs {
    /// Images: a folder, list.csv, list.parquet, idx:FOLDER#train, sample:train, or - for paths on stdin; labels are not
    /// used unless a setting says so
    #[arg(long, value_name = "SRC", required_unless_present = "resume")]
    data: Option<String>,
    /// Run folder
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Change a field of the recipe, for instance steps=5000, epochs=20, image_size=56, arch=vit-small/14,
    /// optimizer.learning_rate=1e-3; config.toml in a run folder has them all
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Go on after the last checkpoint of --out, with the settings saved there
    #[arg(long, conflicts_with_all = ["force", "recipe", "set", "knn_data"])]
    pub resume: bool,
    /// Labelled images for the online k-NN and the meters on features; none without it
    #[arg(long, value_name = "SRC")]
    knn_data: Option<String>,
    /// Steps between online k-NNs
    #[arg(long, value_name = "STEPS", default_value_t = 500, requires = "knn_data")]
    knn_every: u64,
    /// Seed of every random choice [default: the recipe's, 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Samples of more than 8 bits that become black and white: auto for the range of their type (0 to 1 of floats), two
    /// numbers, or clip, as Pillow does [default: the recipe's data.loader.sample_range, clip]
    #[arg(
        long,
        value_name = "auto|LOW,HIGH",
        allow_hyphen_values = true,
        conflicts_with = "resume"
    )]
    sample_range: Option<SampleRange>,
    /// Replace a run folder that exists
    #[arg(long)]
    force: bool,
    /// Print the resolved settings and end
    #[arg(long)]
    dry_run: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    pub run: RunArgs,
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
                let [data, labelled] = self.columns.of_both(data, labelled)?;
                Ok((data, Some(labelled)))
            }
            None => Ok((self.columns.of(data)?, None)),
        }
    }

    /// The settings of the run that is resumed; `--seed` may only repeat them, and `--data` may say where the same images
    /// are by now.
    pub fn saved_config(&self) -> Result<TrainConfig> {
        FolderLock::check(&self.out)?;
        let mut config = run::saved_config(&self.out)?;
        if let Some(seed) = self.seed.filter(|seed| *seed != config.seed) {
            let reason = format!("expected the run's own seed {}, found {seed}", config.seed);
            return Err(Error::input("--seed", reason));
        }
        let data = match &self.data {
            Some(data) => Some(self.columns.of(data)?),
            None => self.columns.need("--data").map(|()| None)?,
        };
        if let Some(data) = data.filter(|data| *data != config.data.source) {
            // A run that does not know its images cannot tell whether these are the same.
            if RunIdentity::read(&self.out)?.is_none() {
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
        if let Some(range) = self.sample_range {
            config.data.loader.sample_range = range;
        }
        if let Some(labelled) = self.sources()?.1 {
            config.monitor.knn = Some(OnlineKnnConfig::new(labelled, self.knn_every));
        }
        Ok(config)
    }

    /// Runs `config` and prints how it ended; with `--dry-run` prints the settings alone.
    pub fn execute(
        &self,
        config: TrainConfig,
        source: Box<dyn Source>,
        start: Start,
        teacher: Option<Box<dyn FrozenTeacher>>,
    ) -> Result<()> {
        // The images looked at for the settings are the first to tell, long before a run has ended.
        let notice = take_notice().filter(|_| config.data.loader.sample_range.is_clip());
        if let Some(notice) = notice {
            tracing::warn!("{notice}");
        }
        if self.dry_run {
            let text = toml::to_string(&config).map_err(|e| Error::failed("config", e.to_string()))?;
            return output::print(text.trim_end());
        }
        let device = self.run.device.candle()?;
        if !self.resume {
            self.check_out()?;
        }
        let summary = run::run(TrainRequest {
            config,
            source: Arc::from(source),
            out: self.out.clone(),
            replace: self.force,
            start,
            teacher,
            device,
            threads: rayon::current_num_threads(),
            stop: stop_on_signals()?,
        })?;
        if self.json {
            output::print_json(&json!({
                "out": self.out.display().to_string(),
                "step": summary.step,
                "finished": summary.finished,
                "knn_top1": summary.knn_top1,
                "images_per_second": summary.images_per_second,
                "data_wait": summary.data_wait,
            }))
        } else {
            output::print(&text(&self.out, &summary))
        }
    }

    /// Whether a new run may have `--out`; an older one goes only once the new one has read all it needs.
    fn check_out(&self) -> Result<()> {
        FolderLock::check(&self.out)?;
        refuse_existing(&self.out, self.force)?;
        if !self.out.exists() {
            return Ok(());
        }
        // --force is for runs: a folder that is none is not macula's to remove.
        let empty = std::fs::read_dir(&self.out).is_ok_and(|mut entries| entries.next().is_none());
        if !empty && !self.out.join(run::CONFIG).is_file() {
            let reason = "exists and is no run folder; choose another --out";
            return Err(Error::input(self.out.display().to_string(), reason));
        }
        Ok(())
    }
}

/// How many images there are, how large they are and whether they are grey, from a few spread over the source.
pub fn look_at(source: &dyn Source) -> Result<DataFacts> {
    let images = source.len();
    let looked_at = LOOKED_AT.min(images);
    let rows = (0..looked_at).map(|i| i * images / looked_at.max(1));
    let loaded: Vec<_> = rows
        .filter_map(|row| source.load(row, &DecodeOptions::default()).ok())
        .collect();
    let mut sides: Vec<u32> = loaded
        .iter()
        .map(|image| image.width().min(image.height()))
        .collect();
    sides.sort_unstable();
    let Some(&side) = sides.get(sides.len() / 2) else {
        let reason = format!("expected images, but none of the {looked_at} looked at can be read");
        return Err(Error::input("--data", reason));
    };
    let is_grey = |pixel: &[u8]| pixel[0] == pixel[1] && pixel[1] == pixel[2];
    let grey = loaded
        .iter()
        .all(|image| image.data().chunks_exact(3).all(is_grey));
    Ok(DataFacts { images, side, grey })
}

/// A flag that SIGINT and SIGTERM set; a second SIGINT ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::flag;
    let stop = Arc::new(AtomicBool::new(false));
    let failed = |e: std::io::Error| Error::failed("signals", e.to_string());
    flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&stop)).map_err(failed)?;
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&stop)).map_err(failed)?;
    }
    Ok(stop)
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
