//! `macula viz`: pictures of what features know.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::args::{CheckpointArgs, ColumnArgs, PreprocessArgs, RunArgs, colour, start_threads};
use super::output;
use crate::data::DecodeOptions;
use crate::extract::model::{ModelOptions, OutputChoice};
use crate::viz::neighbours::Pictured;
use crate::viz::{self, AttentionOptions, Choice, Foreground, MapOptions, NeighboursOptions, PcaOptions};
use crate::{Error, Result, data, files};

/// Arguments of `macula viz`.
#[derive(Debug, Args)]
pub struct VizArgs {
    #[command(subcommand)]
    picture: PictureKind,
}

#[derive(Debug, Subcommand)]
enum PictureKind {
    /// Patches coloured by their first three principal components over several images
    Pca(Box<PcaArgs>),
    /// Attention of the class token in each head of a checkpoint's last block
    Attention(Box<AttentionArgs>),
    /// Images and their nearest neighbours, right and wrong ones marked
    Neighbours(NeighboursArgs),
    /// A feature folder on its two principal axes, coloured by label
    Map(MapArgs),
}

/// Which images, and where the picture goes.
#[derive(Debug, Args)]
struct PictureArgs {
    /// PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    /// Rows of the source to show; by default --n drawn at random
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    rows: Vec<u64>,
    /// Images drawn at random
    #[arg(long, value_name = "N", default_value_t = 8)]
    n: usize,
    /// Seed of the draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Colour under transparent pixels, 0 to 255 each; by default alpha is dropped, as the reference does
    #[arg(long, value_name = "R,G,B", value_parser = colour)]
    background: Option<[u8; 3]>,
    /// Turn images as their EXIF says (the reference does not)
    #[arg(long)]
    exif: bool,
    /// Side of a tile, 16 to 1024 pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 132)]
    tile: u32,
    #[command(flatten)]
    columns: ColumnArgs,
}

/// How the model is opened, and what it sees of an image.
#[derive(Debug, Args)]
struct OpenArgs {
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Arguments of `macula viz pca`.
#[derive(Debug, Args)]
struct PcaArgs {
    /// ONNX file with an output patch, or checkpoint
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Images
    #[arg(long, value_name = "SRC")]
    data: String,
    /// Which side of the first component is foreground
    #[arg(long, value_enum, default_value = "auto")]
    foreground: Foreground,
    /// Where the first component is cut, 0 to 1 between its ends; by default where Otsu's rule says
    #[arg(long, value_name = "SHARE")]
    threshold: Option<f32>,
    /// Pairs of image and components side by side
    #[arg(long, default_value_t = 4)]
    columns: usize,
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    open: OpenArgs,
}

/// Arguments of `macula viz attention`.
#[derive(Debug, Args)]
struct AttentionArgs {
    /// Checkpoint
    #[arg(long, value_name = "CKPT")]
    model: String,
    /// Images
    #[arg(long, value_name = "SRC")]
    data: String,
    /// Block, from 0; by default the last
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    open: OpenArgs,
}

/// Arguments of `macula viz neighbours`.
#[derive(Debug, Args)]
struct NeighboursArgs {
    /// Feature folder that is searched
    #[arg(long, value_name = "FEATURES")]
    features: PathBuf,
    /// The images it was made from
    #[arg(long, value_name = "SRC")]
    data: String,
    /// Feature folder that is searched for; by default the same, each row without itself
    #[arg(long, value_name = "FEATURES", requires = "query_data")]
    query: Option<PathBuf>,
    /// The images --query was made from
    #[arg(long, value_name = "SRC", requires = "query")]
    query_data: Option<String>,
    /// Column of features; by default cls, or else the first
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Neighbours of each image
    #[arg(long, default_value_t = 8)]
    k: usize,
    #[command(flatten)]
    picture: PictureArgs,
    /// Threads; 0 for all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Arguments of `macula viz map`.
#[derive(Debug, Args)]
struct MapArgs {
    /// Feature folder
    #[arg(long, value_name = "FEATURES")]
    features: PathBuf,
    /// Column of features; by default cls, or else the first
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Rows drawn at most
    #[arg(long, value_name = "N", default_value_t = 5000)]
    n: usize,
    /// Bring rows to unit length first, as for cosine similarity
    #[arg(long)]
    normalise: bool,
    /// PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    /// Seed of the rows that are drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; 0 for all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

impl VizArgs {
    /// Draws the picture and says what it shows.
    pub fn run(&self) -> Result<()> {
        match &self.picture {
            PictureKind::Pca(args) => args.run(),
            PictureKind::Attention(args) => args.run(),
            PictureKind::Neighbours(args) => args.run(),
            PictureKind::Map(args) => args.run(),
        }
    }
}

impl PictureArgs {
    fn check(&self) -> Result<()> {
        if !(16..=1024).contains(&self.tile) {
            return Err(Error::input(
                "--tile",
                format!("expected 16 to 1024 pixels, found {}", self.tile),
            ));
        }
        check_out(&self.out, self.force)
    }

    fn decode(&self) -> DecodeOptions {
        DecodeOptions {
            exif: self.exif,
            background: self.background,
            ..DecodeOptions::default()
        }
    }

    fn choice(&self) -> Choice {
        Choice {
            rows: self.rows.clone(),
            count: self.n,
            seed: self.seed,
        }
    }
}

impl OpenArgs {
    fn model_options(&self) -> ModelOptions {
        ModelOptions {
            outputs: OutputChoice::Default,
            preprocess: self.preprocess.overrides(),
            device: self.run.device,
            compute: crate::device::Precision::F32,
            threads: self.run.threads,
            ort_lib: self.run.ort_lib.clone(),
            checkpoint: self.checkpoint.load_options(),
        }
    }
}

impl PcaArgs {
    fn run(&self) -> Result<()> {
        self.picture.check()?;
        self.open.run.start_threads()?;
        let source = data::open(&self.picture.columns.of(&self.data)?)?;
        let share = viz::pca(
            &self.model,
            source.as_ref(),
            &self.picture.choice(),
            &self.open.model_options(),
            &self.picture.decode(),
            &PcaOptions {
                foreground: self.foreground,
                threshold: self.threshold,
                columns: self.columns,
                side: self.picture.tile,
            },
            &self.picture.out,
        )?;
        said(
            &self.picture.out,
            self.picture.json,
            json!({ "foreground": share }),
            &format!("{:.0} % of the patches are foreground", 100.0 * share),
        )
    }
}

impl AttentionArgs {
    fn run(&self) -> Result<()> {
        self.picture.check()?;
        self.open.run.start_threads()?;
        let source = data::open(&self.picture.columns.of(&self.data)?)?;
        let heads = viz::attention(
            &self.model,
            source.as_ref(),
            &self.picture.choice(),
            &self.open.model_options(),
            &self.picture.decode(),
            &AttentionOptions {
                block: self.block,
                side: self.picture.tile,
            },
            &self.picture.out,
        )?;
        said(
            &self.picture.out,
            self.picture.json,
            json!({ "heads": heads }),
            &format!("{heads} heads"),
        )
    }
}

impl NeighboursArgs {
    fn run(&self) -> Result<()> {
        self.picture.check()?;
        start_threads(self.threads)?;
        let columns = &self.picture.columns;
        let (data, query_data) = match &self.query_data {
            Some(query_data) => {
                let [data, query_data] = columns.of_both(&self.data, query_data)?;
                (data, Some(query_data))
            }
            None => (columns.of(&self.data)?, None),
        };
        let queries = self.query.clone().zip(query_data);
        let right = viz::neighbours(
            &self.picture.choice(),
            &self.picture.decode(),
            &NeighboursOptions {
                database: Pictured {
                    features: self.features.clone(),
                    data,
                },
                queries: queries.map(|(features, data)| Pictured { features, data }),
                column: self.column.clone(),
                k: self.k,
                side: self.picture.tile,
            },
            &self.picture.out,
        )?;
        said(
            &self.picture.out,
            self.picture.json,
            json!({ "right": right.right, "labelled": right.labelled }),
            &format!(
                "{} of {} neighbours have the label of their image",
                right.right, right.labelled
            ),
        )
    }
}

impl MapArgs {
    fn run(&self) -> Result<()> {
        start_threads(self.threads)?;
        check_out(&self.out, self.force)?;
        let explained = viz::map(
            &self.features,
            &MapOptions {
                column: self.column.clone(),
                count: self.n,
                normalise: self.normalise,
                seed: self.seed,
            },
            &self.out,
        )?;
        let shares: Vec<String> = explained
            .iter()
            .map(|share| format!("{:.1} %", 100.0 * share))
            .collect();
        said(
            &self.out,
            self.json,
            json!({ "explained": explained }),
            &format!("axes of {} of the variance", shares.join(" and ")),
        )
    }
}

/// Refuses a picture that exists, or that has another name than a PNG's.
fn check_out(out: &Path, force: bool) -> Result<()> {
    if !out
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
    {
        return Err(Error::input(
            "--out",
            format!("expected a file that ends in .png, found {}", out.display()),
        ));
    }
    files::refuse_existing(out, force)
}

/// Prints where the picture is and what it shows.
fn said(out: &Path, json: bool, mut facts: serde_json::Value, line: &str) -> Result<()> {
    if json {
        facts["out"] = json!(out.display().to_string());
        return output::print_json(&facts);
    }
    output::print(&format!("{}: {line}", out.display()))
}
