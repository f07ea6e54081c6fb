//! `macula train`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use macula_models::weights;
use serde_json::json;

use super::args::{CheckpointArgs, RunArgs};
use super::output;
use crate::data::{self, DecodeOptions, Source};
use crate::files::refuse_existing;
use crate::train::config::TrainConfig;
use crate::train::observe::{METERS_HELP, OnlineKnnConfig};
use crate::train::recipes::{self, DataFacts, Overrides};
use crate::train::run::{self, RunSummary, TrainRequest};
use crate::train::start::{Start, backbone_config};
use crate::{Error, Result};

/// Images looked at to tell the size of a source's images and whether they are grey.
const LOOKED_AT: u64 = 32;

/// Arguments of `macula train`.
#[derive(Debug, Args)]
#[command(after_long_help = METERS_HELP)]
pub struct TrainArgs {
    /// Images: a folder, list.csv, list.parquet, idx:FOLDER#train, sample:train, or - for paths on stdin; labels are not
    /// used
    #[arg(long, value_name = "SRC", required_unless_present = "resume")]
    data: Option<String>,
    /// Run folder
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// dinov2-small, dino, ibot or moco (sizes follow the images); dinov2, dinov2-vitg14 or dinov2-vitl16-short as
    /// published; or a .toml file with the fields to change [default: dinov2-small]
    #[arg(long, value_name = "NAME or FILE")]
    recipe: Option<String>,
    /// Change a field of the recipe, for instance steps=5000, epochs=20, image_size=56, arch=vit-small/14,
    /// optimizer.learning_rate=1e-3; config.toml in a run folder has them all
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Begin with the weights of another run (heads kept, its settings are the recipe) or of a checkpoint (new heads)
    #[arg(long, value_name = "RUN or CKPT", conflicts_with = "resume")]
    from: Option<PathBuf>,
    /// Go on after the last checkpoint of --out, with the settings saved there
    #[arg(long, conflicts_with_all = ["force", "recipe", "set", "knn_data"])]
    resume: bool,
    /// Labelled images for the online k-NN and the meters on features; none without it
    #[arg(long, value_name = "SRC")]
    knn_data: Option<String>,
    /// Steps between online k-NNs
    #[arg(long, value_name = "STEPS", default_value_t = 500, requires = "knn_data")]
    knn_every: u64,
    /// Seed of every random choice [default: the recipe's, 0]
    #[arg(long)]
    seed: Option<u64>,
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
    geometry: CheckpointArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl TrainArgs {
    /// Trains, and prints how the run ended.
    pub fn run(&self) -> Result<()> {
        self.run.start_threads()?;
        let device = self.run.device.candle()?;
        let (config, start) = if self.resume {
            (self.saved_config()?, Start::Resume)
        } else {
            self.new_config()?
        };
        if self.dry_run {
            let text = toml::to_string(&config).map_err(|e| Error::failed("config", e.to_string()))?;
            return output::print(text.trim_end());
        }
        if !self.resume {
            self.clear_out()?;
        }
        let summary = run::run(TrainRequest {
            config,
            out: self.out.clone(),
            start,
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

    /// The settings of the run that is resumed; `--data` may only repeat them.
    fn saved_config(&self) -> Result<TrainConfig> {
        let config = run::saved_config(&self.out)?;
        match (&self.data, self.seed) {
            (Some(data), _) if *data != config.data.source => Err(Error::input(
                "--data",
                format!("expected the run's own source {}, found {data}", config.data.source),
            )),
            (_, Some(seed)) if seed != config.seed => Err(Error::input(
                "--seed",
                format!("expected the run's own seed {}, found {seed}", config.seed),
            )),
            _ => Ok(config),
        }
    }

    fn new_config(&self) -> Result<(TrainConfig, Start)> {
        let data = self.data.as_deref().unwrap_or_default();
        let source = data::open(data)?;
        let (mut overrides, named) = match self.recipe.as_deref() {
            Some(file) if file.ends_with(".toml") => Overrides::from_file(Path::new(file))?,
            other => (Overrides::default(), other.map(str::to_owned)),
        };
        for assignment in &self.set {
            overrides.set(assignment)?;
        }
        let recipe = named.as_deref().unwrap_or(recipes::DEFAULT);
        let facts = look_at(source.as_ref())?;
        let (mut config, start) = match &self.from {
            None => (recipes::recipe(recipe, data, &facts)?, Start::Fresh),
            Some(path) if path.join(run::CONFIG).is_file() => {
                if named.is_some() {
                    let reason = "a run goes on with its own settings: change them with --set";
                    return Err(Error::input("--recipe", reason));
                }
                let mut config = run::saved_config(path)?;
                config.data.source = data.to_owned();
                (config, Start::Run(path.clone()))
            }
            Some(path) => {
                let mut config = recipes::recipe(recipe, data, &facts)?;
                let options = self.geometry.load_options();
                let vit = weights::load(path, &options)?.config;
                config.backbone = backbone_config(&vit, &config.backbone);
                (config, Start::Backbone(path.clone(), options))
            }
        };
        if let Some(seed) = self.seed {
            config.seed = seed;
        }
        if let Some(labelled) = &self.knn_data {
            config.monitor.knn = Some(OnlineKnnConfig::new(labelled.clone(), self.knn_every));
        }
        Ok((overrides.apply(config, facts.images)?, start))
    }

    fn clear_out(&self) -> Result<()> {
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
        std::fs::remove_dir_all(&self.out).map_err(|e| Error::io(&self.out, e))
    }
}

/// How many images there are, how large they are and whether they are grey, from a few spread over the source.
fn look_at(source: &dyn Source) -> Result<DataFacts> {
    let images = source.len();
    let looked_at = LOOKED_AT.min(images);
    let rows = (0..looked_at).map(|i| i * images / looked_at.max(1));
    let loaded: Vec<_> = rows
        .filter_map(|row| source.load(row, &DecodeOptions::default()).ok())
        .collect();
    let mut sides: Vec<u32> = loaded.iter().map(|image| image.width().min(image.height())).collect();
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
