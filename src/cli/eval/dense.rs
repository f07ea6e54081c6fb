//! Flags that `segment` and `depth` share.

use clap::{Arg, Args};
use macula_eval::protocols::dense::{HeadTraining, Protocol};
use macula_eval::table::EvalResult;

use super::super::args::{
    BootstrapArgs, INPUT, MACHINE, MODEL, ModelRunArgs, ResultArgs, RunArgs, TrainTestArgs, reworded,
    with_default,
};
use super::PROTOCOL;
use crate::evaluate::dense::{DenseRequest, PerImage};
use crate::extract::model::{OutputChoice, PatchLayers};
use crate::lock::FolderLock;
use crate::{Error, Result};

/// Model, images, training of the head, and where the result goes.
#[derive(Debug, Args)]
#[command(
    next_help_heading = PROTOCOL,
    mut_args(reworded(&[
        ("train_data", "Training images with their masks or depths: a list, ade20k:FOLDER#train, voc:FOLDER#train, \
                        nyu:FOLDER#train"),
        ("test_data", "Test images with their masks or depths"),
        ("out", "Folder for result.json, table.parquet, table.csv, table.md and images.csv [default: none, the result is \
                 printed alone]"),
    ]))
)]
pub(super) struct DenseArgs {
    /// Training of the head: fast, or paper for the reference's (its head, optimizer, schedule, one learning rate, and
    /// 40,000 steps of segmentation or 38,400 of depth)
    #[arg(long, value_name = "fast or paper", default_value_t)]
    pub protocol: Protocol,
    /// Learning rates to choose among on a split of train; one alone is taken as it is
    #[arg(long, value_delimiter = ',', value_name = "LRS")]
    learning_rates: Vec<f64>,
    /// AdamW's decay of the weights
    #[arg(long, value_name = "DECAY")]
    weight_decay: Option<f64>,
    /// Steps of training
    #[arg(long, value_name = "N")]
    iterations: Option<usize>,
    /// Windows of one step
    #[arg(long, alias = "batch-size", value_name = "N")]
    train_batch: Option<usize>,
    /// Share of the training images on which the learning rate is chosen
    #[arg(long, value_name = "SHARE")]
    val_fraction: Option<f64>,
    #[command(flatten)]
    images: TrainTestArgs,
    /// Frozen model: ONNX file with output patch, checkpoint, or pixels
    #[arg(long, value_name = "MODEL", help_heading = MODEL)]
    model: String,
    /// Blocks whose patch tokens are used: last, last4, or numbers as in 2,5,8,11
    #[arg(long, default_value = "last", help_heading = MODEL)]
    layers: PatchLayers,
    /// With --model pixels: side of the cells whose mean colour is the feature, in pixels
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = MODEL)]
    cell: u32,
    #[command(flatten)]
    open: ModelRunArgs,
    /// Pixels from one window to the next, where an image is larger than the model's input [default: two thirds of it]
    #[arg(long, value_name = "N", help_heading = INPUT)]
    stride: Option<u32>,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    pub random: BootstrapArgs,
    /// Most memory for the features and targets of the training images
    #[arg(long, value_name = "GB", default_value_t = 8.0, help_heading = MACHINE)]
    memory_gb: f64,
    #[command(flatten)]
    run: RunArgs,
}

/// `arg` with its default behind its help, where it is a setting of the head's training; `of` gives those of a protocol.
pub(super) fn with_training(arg: Arg, of: fn(Protocol) -> HeadTraining) -> Arg {
    let value = |training: &HeadTraining| {
        Some(match arg.get_id().as_str() {
            "learning_rates" => super::listed(&training.learning_rates),
            "weight_decay" => training.weight_decay.to_string(),
            "iterations" => training.iterations.to_string(),
            "train_batch" => training.batch_size.to_string(),
            "val_fraction" => training.val_fraction.to_string(),
            _ => return None,
        })
    };
    match [Protocol::Fast, Protocol::Paper].map(|protocol| value(&of(protocol))) {
        [Some(fast), Some(paper)] if fast == paper => with_default(arg, fast),
        [Some(fast), Some(paper)] => with_default(arg, format!("{fast}; {paper} with --protocol paper")),
        _ => arg,
    }
}

impl DenseArgs {
    /// Starts the threads, takes the folder of the result, which must hold none, and gives the request.
    pub fn start(&self) -> Result<(DenseRequest, Option<FolderLock>)> {
        self.run.threads.start()?;
        let lock = self.result.take()?;
        if !(self.memory_gb.is_finite() && self.memory_gb > 0.0) {
            return Err(Error::input(
                "--memory-gb",
                format!("expected a number above 0, found {}", self.memory_gb),
            ));
        }
        let extract = self.open.extract_options(None, false, false);
        let [train_data, test_data] = self.images.sources()?;
        let request = DenseRequest {
            model: self.model.clone(),
            train_data,
            test_data,
            options: self.open.model_options(OutputChoice::Default, &self.run),
            layers: self.layers.clone(),
            cell: self.cell,
            stride: self.stride,
            batch: extract.batch_size.fixed()?,
            on_error: extract.on_error,
            decode: extract.decode,
            memory: (self.memory_gb * f64::from(1 << 30)) as u64,
        };
        Ok((request, lock))
    }

    /// The training that the flags name, and `default` where they name nothing.
    pub fn training(&self, default: HeadTraining) -> HeadTraining {
        HeadTraining {
            learning_rates: if self.learning_rates.is_empty() {
                default.learning_rates
            } else {
                self.learning_rates.clone()
            },
            weight_decay: self.weight_decay.unwrap_or(default.weight_decay),
            iterations: self.iterations.unwrap_or(default.iterations),
            batch_size: self.train_batch.unwrap_or(default.batch_size),
            val_fraction: self.val_fraction.unwrap_or(default.val_fraction),
        }
    }

    /// Keeps the result and the images' scores, and prints.
    pub fn finish(&self, result: &EvalResult, images: &PerImage) -> Result<()> {
        if let Some(out) = &self.result.out {
            images.save(out)?;
        }
        self.result.finish(result)
    }
}
