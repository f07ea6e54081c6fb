//! `macula viz`: pictures of what features know, one file a picture.

mod attention;
mod map;
mod neighbours;
mod pca;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::args::{
    CheckpointArgs, DecodeArgs, ImagesArgs, MODEL, NewArgs, PreprocessArgs, RunArgs, SeedArgs, ThreadArgs,
    examples, reworded,
};
use super::output;
use crate::data::{self, Source};
use crate::device::Dtype;
use crate::extract::model::{ModelOptions, OutputChoice};
use crate::viz::Choice;
use crate::{Error, Result};

/// The heading of what a picture shows.
const PICTURE: &str = "Picture";

/// Arguments of `macula viz`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    "macula viz pca --model vits14.onnx --data photos/ --n 8 --out pca.png",
    "macula viz map --features features/test --out map.png",
]))]
pub struct VizArgs {
    #[command(subcommand)]
    picture: PictureKind,
}

#[derive(Debug, Subcommand)]
enum PictureKind {
    /// Patches coloured by their first three principal components over several images
    Pca(Box<pca::PcaArgs>),
    /// Attention of the class token in each head of a checkpoint's last block
    Attention(Box<attention::AttentionArgs>),
    /// Images and their nearest neighbours, right and wrong ones marked
    Neighbours(neighbours::NeighboursArgs),
    /// A feature folder on its two principal axes, coloured by label
    Map(map::MapArgs),
}

/// A picture that is drawn into one file.
trait Picture {
    /// The file.
    fn out(&self) -> &NewArgs;

    /// What it is drawn on.
    fn threads(&self) -> &ThreadArgs;

    /// Refuses settings out of their ranges, before anything is read.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Draws the file.
    fn draw(&self) -> Result<Shown>;
}

/// A picture of a network's inside.
trait Inside {
    /// Images, network and file.
    fn inside(&self) -> &InsideArgs;

    /// Draws the file from images of `source`.
    fn draw(&self, source: &dyn Source) -> Result<Shown>;
}

impl<T: Inside> Picture for T {
    fn out(&self) -> &NewArgs {
        &self.inside().out
    }

    fn threads(&self) -> &ThreadArgs {
        &self.inside().run.threads
    }

    fn check(&self) -> Result<()> {
        self.inside().tiles.check()
    }

    fn draw(&self) -> Result<Shown> {
        let source = data::open(&self.inside().images.source()?)?;
        Inside::draw(self, source.as_ref())
    }
}

/// What a picture shows.
struct Shown {
    /// For programs; the file is added.
    facts: Value,
    /// For people.
    line: String,
}

/// Which images are shown, and how large.
#[derive(Debug, Args)]
#[command(next_help_heading = PICTURE)]
struct TilesArgs {
    /// Rows of the source to show [default: --n drawn at random]
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    rows: Vec<u64>,
    /// Images drawn at random
    #[arg(long, value_name = "N", default_value_t = 8)]
    n: usize,
    /// Side of a tile, 16 to 1024 pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 132)]
    tile: u32,
}

/// What pictures of a network's inside share: images, how they become its input, where it runs, where the picture goes.
#[derive(Debug, Args)]
#[command(mut_args(reworded(&[("out", "PNG to write")])))]
struct InsideArgs {
    #[command(flatten)]
    tiles: TilesArgs,
    #[command(flatten)]
    images: ImagesArgs,
    /// ONNX file with an output patch, or checkpoint
    #[arg(long, value_name = "MODEL", help_heading = MODEL)]
    model: String,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    out: NewArgs,
    #[command(flatten)]
    random: SeedArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl VizArgs {
    /// Draws the picture and says what it shows.
    pub fn run(&self) -> Result<()> {
        let picture: &dyn Picture = match &self.picture {
            PictureKind::Pca(args) => &**args,
            PictureKind::Attention(args) => &**args,
            PictureKind::Neighbours(args) => args,
            PictureKind::Map(args) => args,
        };
        let out = picture.out();
        picture.check()?;
        check_name(out)?;
        out.refuse_existing()?;
        picture.threads().start()?;
        let Shown { mut facts, line } = picture.draw()?;
        let name = out.out.display().to_string();
        if out.print.json {
            facts["out"] = name.into();
            return output::print_json(&facts);
        }
        output::print(&format!("{name}: {line}"))
    }
}

impl TilesArgs {
    fn check(&self) -> Result<()> {
        if (16..=1024).contains(&self.tile) {
            return Ok(());
        }
        Err(Error::input(
            "--tile",
            format!("expected 16 to 1024 pixels, found {}", self.tile),
        ))
    }

    fn choice(&self, random: &SeedArgs) -> Choice {
        Choice {
            rows: self.rows.clone(),
            count: self.n,
            seed: random.seed,
        }
    }
}

impl InsideArgs {
    fn choice(&self) -> Choice {
        self.tiles.choice(&self.random)
    }

    fn model_options(&self) -> ModelOptions {
        self.run.model_options(
            OutputChoice::Default,
            &self.checkpoint,
            &self.preprocess,
            Dtype::F32,
        )
    }
}

/// Refuses a picture that has another name than a PNG's.
fn check_name(out: &NewArgs) -> Result<()> {
    let extension = out.out.extension();
    if extension.is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        return Ok(());
    }
    Err(Error::input(
        "--out",
        format!("expected a file that ends in .png, found {}", out.out.display()),
    ))
}
