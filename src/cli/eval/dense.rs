//! Flags that `segment` and `depth` share.

use std::path::PathBuf;

use clap::Args;
use macula_eval::protocols::dense::Protocol;
use macula_eval::table::EvalResult;

use super::super::args::{ColumnArgs, ReadArgs};
use super::output;
use crate::evaluate::dense::{DenseRequest, PerImage};
use crate::extract::model::{OutputChoice, PatchLayers};
use crate::lock::FolderLock;
use crate::{Error, Result};

/// Model, images, training of the head, and where the result goes.
#[derive(Debug, Args)]
pub(super) struct DenseArgs {
    /// Frozen model: ONNX file with output patch, checkpoint, or pixels
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Training images with their masks or depths: a list, ade20k:FOLDER#train, voc:FOLDER#train, nyu:FOLDER#train
    #[arg(long, value_name = "SRC")]
    train_data: String,
    /// Test images with their masks or depths
    #[arg(long, value_name = "SRC")]
    test_data: String,
    /// Blocks whose patch tokens are used: last, last4, or numbers as in 2,5,8,11
    #[arg(long, default_value = "last")]
    layers: PatchLayers,
    /// With --model pixels: side of the cells whose mean colour is the feature, in pixels
    #[arg(long, value_name = "N", default_value_t = 1)]
    cell: u32,
    /// Pixels from one window to the next, where an image is larger than the model's input; by default two thirds of it
    #[arg(long, value_name = "N")]
    stride: Option<u32>,
    /// Training of the head: fast, or paper for the reference's (its head, optimizer, schedule, one learning rate, and
    /// 40,000 steps of segmentation or 38,400 of depth)
    #[arg(long, default_value_t)]
    pub protocol: Protocol,
    /// Learning rates to choose among on a split of train; one alone is taken as it is
    #[arg(long, value_delimiter = ',', value_name = "LRS")]
    pub learning_rates: Vec<f64>,
    /// AdamW's decay of the weights
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// Steps of training; by default 2,000, or the paper's
    #[arg(long)]
    pub iterations: Option<usize>,
    /// Windows of one step
    #[arg(long, value_name = "N")]
    pub train_batch: Option<usize>,
    /// Share of the training images on which the learning rate is chosen
    #[arg(long)]
    pub val_fraction: Option<f64>,
    /// Most memory for the features and targets of the training images
    #[arg(long, value_name = "GB", default_value_t = 8.0)]
    memory_gb: f64,
    /// Folder for result.json, table.parquet, table.csv, table.md and images.csv
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace what --out holds
    #[arg(long)]
    force: bool,
    /// Print the result as JSON and nothing else
    #[arg(long)]
    json: bool,
    /// Seed of the split, the initial weights, the order of the windows and the bootstrap
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Bootstrap resamples of the 95 % intervals, over images
    #[arg(long, default_value_t = 1000)]
    pub bootstrap_resamples: usize,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    read: ReadArgs,
}

impl DenseArgs {
    /// Starts the threads, takes the folder of the result, which must hold none, and gives the request.
    pub fn start(&self) -> Result<(DenseRequest, Option<FolderLock>)> {
        self.read.run.start_threads()?;
        let lock = output::take_result_folder(self.out.as_deref(), self.force)?;
        if !(self.memory_gb.is_finite() && self.memory_gb > 0.0) {
            return Err(Error::input(
                "--memory-gb",
                format!("expected a number above 0, found {}", self.memory_gb),
            ));
        }
        let extract = self.read.extract_options(None, false, false);
        let [train_data, test_data] = self.columns.of_both(&self.train_data, &self.test_data)?;
        let request = DenseRequest {
            model: self.model.clone(),
            train_data,
            test_data,
            options: self.read.model_options(OutputChoice::Default),
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

    /// The learning rates given, or `default`.
    pub fn learning_rates(&self, default: Vec<f64>) -> Vec<f64> {
        match self.learning_rates.is_empty() {
            true => default,
            false => self.learning_rates.clone(),
        }
    }

    /// Keeps the result and the images' scores, and prints.
    pub fn finish(&self, result: &EvalResult, images: &PerImage) -> Result<()> {
        if let Some(out) = &self.out {
            images.save(out)?;
        }
        output::print_result(result, self.json, self.out.as_deref())
    }
}
