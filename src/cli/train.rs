//! `macula train`.

use std::path::PathBuf;

use clap::Args;
use macula_models::weights;

use super::Host;
use super::args::{CheckpointArgs, examples};
use super::run_folder::{RunFolderArgs, TRAINING};
use crate::cluster;
use crate::data::{self, Source};
use crate::train::config::TrainConfig;
use crate::train::observe::METERS_HELP;
use crate::train::recipes;
use crate::train::run;
use crate::train::start::{Start, backbone_config};
use crate::{Error, Result};

/// Commands to begin with.
const EXAMPLES: &[&str] = &[
    "macula train --data photos/ --out runs/first",
    "macula train --data sample:train --knn-data sample:test --set epochs=20 --out runs/sample",
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
        let facts = self.folder.facts(source.as_ref())?;
        let named_recipe = || recipes::recipe(recipe, data, &facts).map_err(|error| overrides.named(error));
        let (config, start) = match &self.from {
            None => (named_recipe()?, Start::Fresh),
            Some(path) if path.join(run::CONFIG).is_file() => {
                if named.is_some() {
                    let reason = "a run goes on with its own settings: change them with --set";
                    return Err(Error::input("--recipe", reason));
                }
                let mut config = run::saved_config(path)?;
                // What a student of a frozen teacher learnt goes on by itself.
                config.distill = None;
                config.data.source.clone_from(data);
                (config, Start::Run(path.clone()))
            }
            Some(path) => {
                let mut config = named_recipe()?;
                let checkpoint = weights::load(path, &self.geometry.load_options())?;
                config.backbone = backbone_config(&checkpoint.config, &config.backbone);
                (config, Start::Backbone(Box::new(checkpoint)))
            }
        };
        let config = self.folder.over(config)?;
        Ok((overrides.apply(config, facts.images)?, start, source))
    }
}
