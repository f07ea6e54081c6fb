//! `macula train`.

use std::path::PathBuf;

use clap::Args;
use macula_models::weights;

use super::Host;
use super::args::{CheckpointArgs, PREPROCESSING, examples};
use super::run_folder::{RunFolderArgs, TRAINING, look_at};
use crate::cluster;
use crate::data::bands::{BandStatistics, measure};
use crate::data::loader::LoaderConfig;
use crate::data::{self, Bands, Source};
use crate::train::config::{DataConfig, TrainConfig};
use crate::train::observe::METERS_HELP;
use crate::train::recipes::{self, Overrides};
use crate::train::run;
use crate::train::start::{Start, backbone_config};
use crate::{Error, Result};

/// Commands to begin with.
const EXAMPLES: &[&str] = &[
    "macula train --data photos/ --out runs/first",
    "macula train --data scenes/ --bands 13 --sample-range 0,10000 --out runs/bands",
    "macula train --out runs/first --resume",
];

/// Arguments of `macula train`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = TRAINING,
    // They speak of --from.
    mut_args(|arg| match arg.get_id().as_str() {
        "heads" | "arch" | "position_rule" | "activation" => arg.help_heading(TRAINING),
        _ => arg,
    }),
    after_help = examples(EXAMPLES),
    after_long_help = format!("{}\n\n{METERS_HELP}", examples(EXAMPLES))
)]
pub struct TrainArgs {
    /// dinov2-small, dino, ibot, moco or mocov3 (sizes follow the images); dinov2, dinov2-vitg14 or dinov2-vitl16-short as
    /// published; or a .toml file with the fields to change [default: dinov2-small]
    #[arg(long, value_name = "NAME or FILE")]
    recipe: Option<String>,
    /// Begin with the weights of another run (heads kept, its settings are the recipe) or of a checkpoint (new heads) [default:
    /// random weights]
    #[arg(long, value_name = "RUN or CKPT", conflicts_with = "resume")]
    from: Option<PathBuf>,
    #[command(flatten)]
    geometry: CheckpointArgs,
    #[command(flatten)]
    folder: RunFolderArgs,
    /// Read images as so many bands in place of RGB, from TIFF, PNG and .npy, and measure their mean and deviation; N,first where arrays
    /// are [band, row, column]. Samples of more than 8 bits need --sample-range [default: the recipe's data.loader.bands, none: RGB]
    #[arg(long, value_name = "N", conflicts_with = "resume", help_heading = PREPROCESSING)]
    bands: Option<Bands>,
}

impl TrainArgs {
    /// Trains, and prints how the run ended.
    pub fn run(&self, host: Host) -> Result<()> {
        let ranks = cluster::join()?;
        self.folder.run.threads.start()?;
        let (config, start, source) = if self.folder.resume {
            let config = self.folder.saved_config(ranks.as_ref())?;
            let source = data::open_shuffled(&config.data.source)?;
            (config, Start::Resume, source)
        } else {
            self.new_config()?
        };
        self.folder.execute(host, config, source, start, None, ranks)
    }

    fn new_config(&self) -> Result<(TrainConfig, Start, Box<dyn Source>)> {
        let data = &self.folder.data()?;
        let source = data::open_shuffled(data)?;
        let (overrides, named) = self.folder.overrides(self.recipe.as_deref())?;
        let recipe = named.as_deref().unwrap_or(recipes::DEFAULT);
        let earlier = self.earlier_run()?;
        let loader = self.loader(earlier.as_ref(), &overrides)?;
        let facts = look_at(source.as_ref(), &loader.decode())?;
        let goes_on = earlier.is_some();
        let named_recipe = || recipes::recipe(recipe, data, &facts).map_err(|error| overrides.named(error));
        let (config, start) = match (&self.from, earlier) {
            (None, _) => (named_recipe()?, Start::Fresh),
            (Some(path), Some(mut config)) => {
                if named.is_some() {
                    let reason = "a run goes on with its own settings: change them with --set";
                    return Err(Error::input("--recipe", reason));
                }
                // What a student of a frozen teacher learnt goes on by itself.
                config.distill = None;
                config.data.source.clone_from(data);
                (config, Start::Run(path.clone()))
            }
            (Some(path), None) => {
                let mut config = named_recipe()?;
                let checkpoint = weights::load(path, &self.geometry.load_options())?;
                config.backbone = backbone_config(&checkpoint.config, &config.backbone);
                (config, Start::Backbone(Box::new(checkpoint)))
            }
        };
        let config = self.folder.over(config)?;
        let config = match loader.bands.filter(|_| !goes_on) {
            Some(bands) => on_measured(config, bands, &loader, source.as_ref())?,
            None => config,
        };
        Ok((overrides.apply(config, facts.images)?, start, source))
    }

    /// The settings of the run that `--from` names, where it names one.
    fn earlier_run(&self) -> Result<Option<TrainConfig>> {
        let run = self
            .from
            .as_deref()
            .filter(|path| path.join(run::CONFIG).is_file());
        run.map(run::saved_config).transpose()
    }

    /// How images will be read.
    fn loader(&self, earlier: Option<&TrainConfig>, overrides: &Overrides) -> Result<LoaderConfig> {
        let mut data = earlier.map_or_else(DataConfig::default, |earlier| earlier.data.clone());
        let before = data.loader.bands;
        data.loader.bands = self.bands.or(before);
        let loader = self.folder.loader(data, overrides)?;
        if earlier.is_some() && loader.bands != before {
            let named = |bands: Option<Bands>| bands.map_or("RGB".to_owned(), |bands| bands.to_string());
            let reason = format!(
                "expected the run's own images, {}, found {}",
                named(before),
                named(loader.bands)
            );
            return Err(Error::setting("bands", reason));
        }
        Ok(loader)
    }
}

/// `config` for the bands of `source`, with the mean and deviation that they have.
fn on_measured(
    config: TrainConfig,
    bands: Bands,
    loader: &LoaderConfig,
    source: &dyn Source,
) -> Result<TrainConfig> {
    let BandStatistics {
        mean,
        std,
        constant,
        images,
    } = measure(source, &loader.decode())?;
    tracing::info!("mean and deviation of {bands} bands measured on {images} images: {mean:?}, {std:?}");
    if !constant.is_empty() {
        tracing::warn!("bands {constant:?} (from 0) are the same everywhere and tell nothing");
    }
    Ok(config.on_bands(bands, mean, std))
}
