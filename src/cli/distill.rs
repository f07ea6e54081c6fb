//! `macula distill`.

use clap::Args;
use macula_models::vit::GeluKind;

use super::Host;
use super::args::examples;
use super::run_folder::{RunFolderArgs, TRAINING, look_at};
use crate::cluster::{self, Ranks};
use crate::data::{self, Source};
use crate::distill::{self, OnnxSettings, recipes};
use crate::train::config::{DataConfig, DistillConfig, TrainConfig};
use crate::train::distillation::FrozenTeacher;
use crate::train::observe::METERS_HELP;
use crate::train::start::Start;
use crate::{Error, Result};

/// Commands to begin with.
const EXAMPLES: &[&str] = &[
    "macula distill --teacher runs/first --data photos/ --out runs/student",
    "macula distill --teacher vits14.onnx --data photos/ --out runs/student --arch vit-tiny/14",
    "macula distill --out runs/student --resume",
];

/// Arguments of `macula distill`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = TRAINING,
    after_help = examples(EXAMPLES),
    after_long_help = format!("{}\n\n{METERS_HELP}", examples(EXAMPLES))
)]
pub struct DistillArgs {
    /// The frozen teacher: a run folder (with its heads), a checkpoint of any family, or an ONNX file
    #[arg(
        long,
        value_name = "RUN, CKPT or MODEL.onnx",
        required_unless_present = "resume"
    )]
    teacher: Option<String>,
    /// distill-dinov2 (the teacher's heads), distill-features (any teacher with features), distill-logits (a classifier or
    /// prototypes), or a .toml file with the fields to change [default: the first that the teacher can serve]
    #[arg(long, value_name = "NAME or FILE")]
    recipe: Option<String>,
    /// The student's architecture: vit-{tiny|small|base|large|giant2}[/PATCH][-regN][-swiglu][-rope] [default: half the
    /// teacher's width, at most 12 blocks]
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    arch: Option<String>,
    /// What the teacher is, where its file does not say: an architecture, or a released network, as openclip:ViT-B-32/laion2b
    /// [default: told from its tensors]
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    teacher_arch: Option<String>,
    /// The teacher's GELU, where neither its file nor a configuration beside it says: gelu, gelu-tanh or quick-gelu, CLIP's
    /// [default: what they say]
    #[arg(long, value_name = "KIND", conflicts_with = "resume")]
    activation: Option<GeluKind>,
    #[command(flatten)]
    folder: RunFolderArgs,
}

/// What a distillation begins with.
type Parts = (TrainConfig, Box<dyn Source>, Start, Box<dyn FrozenTeacher>);

impl DistillArgs {
    /// Distils, and prints how the run ended.
    pub fn run(&self, host: Host) -> Result<()> {
        let ranks = cluster::join()?;
        self.folder.run.threads.start()?;
        let (config, source, start, teacher) = if self.folder.resume {
            self.saved(ranks.as_ref())?
        } else {
            self.new_run()?
        };
        self.folder
            .execute(host, config, source, start, Some(teacher), ranks)
    }

    fn saved(&self, ranks: &dyn Ranks) -> Result<Parts> {
        let mut config = self.folder.saved_config(ranks)?;
        let Some(distill) = &mut config.distill else {
            let reason = "expected a distillation, found a run of `macula train`; resume it with that";
            return Err(Error::input("--out", reason));
        };
        // The run knows its teacher by its hash, wherever that lies by now.
        if let Some(teacher) = &self.teacher {
            distill.teacher.clone_from(teacher);
        }
        let teacher = self.open(distill)?;
        let source = data::open_shuffled(&config.data.source)?;
        Ok((config, source, Start::Resume, teacher))
    }

    fn new_run(&self) -> Result<Parts> {
        let data = &self.folder.data()?;
        let source = data::open_shuffled(data)?;
        let (mut overrides, named) = self.folder.overrides(self.recipe.as_deref())?;
        if let Some(arch) = &self.arch {
            overrides.set(&format!("arch={arch}"))?;
        }
        if let Some(arch) = &self.teacher_arch {
            overrides.set(&format!("distill.teacher_arch={arch}"))?;
        }
        if let Some(activation) = self.activation {
            overrides.set(&format!("distill.teacher_activation={activation}"))?;
        }
        let settings = DistillConfig::new(self.teacher.as_deref().unwrap_or_default());
        let settings = overrides.section("distill", &settings)?;
        let teacher = self.open(&settings)?;
        let facts = look_at(
            source.as_ref(),
            &self.folder.loader(DataConfig::default(), &overrides)?.decode(),
        )?;
        let recipe = named.unwrap_or_else(|| recipes::default_for(&teacher.facts().offer).to_owned());
        let config = recipes::recipe(&recipe, data, &facts, &settings, teacher.facts())
            .map_err(|error| overrides.named(error))?;
        let config = overrides.apply(self.folder.over(config)?, facts.images)?;
        let config = distill::settle(config, teacher.facts(), source.as_ref())?;
        Ok((config, source, Start::Fresh, teacher))
    }

    fn open(&self, settings: &DistillConfig) -> Result<Box<dyn FrozenTeacher>> {
        let run = &self.folder.run;
        let onnx = OnnxSettings {
            ort_lib: run.ort_lib.clone(),
            device: run.device,
            threads: run.threads.of_process(),
        };
        distill::open(settings, &run.device.candle()?, &onnx)
    }
}
