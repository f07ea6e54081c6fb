//! `macula eval depth`.

use clap::Args;
use macula_eval::protocols::dense::depth::DepthConfig;
use macula_eval::protocols::dense::{HeadTraining, Protocol};

use super::super::args::examples;
use super::PROTOCOL;
use super::dense::{DenseArgs, with_training};
use crate::Result;
use crate::evaluate::dense::{DepthCrop, Depths, depth};

/// Arguments of `macula eval depth`.
#[derive(Debug, Args)]
#[command(next_help_heading = PROTOCOL, mut_args(|arg| with_training(arg, training)), after_help = examples(&[
    "macula eval depth --model m.onnx --train-data train.csv --test-data test.csv --max-depth 10",
    "macula eval depth --model pixels --cell 8 --train-data nyu:NYU#train --test-data nyu:NYU#test",
]))]
pub(super) struct DepthArgs {
    /// Least depth; true depths up to it do not count
    #[arg(long, value_name = "DEPTH", default_value_t = DepthConfig::default().range.0)]
    min_depth: f32,
    /// Greatest depth; true depths beyond it do not count
    #[arg(long, value_name = "DEPTH", default_value_t = DepthConfig::default().range.1)]
    max_depth: f32,
    /// What the samples of a depth map are divided by: 1000 for millimetres, 256 for KITTI
    #[arg(long, value_name = "N", default_value_t = 1000.0)]
    depth_scale: f32,
    /// Bins of depth
    #[arg(long, value_name = "N", default_value_t = DepthConfig::default().bins)]
    bins: usize,
    /// Pixels of the test images that count: none (all), eigen (NYU) or garg (KITTI) [default: eigen for nyu:FOLDER#test,
    /// whose training images then go without their white border, and none for any other source]
    #[arg(long, value_name = "CROP")]
    eval_crop: Option<DepthCrop>,
    #[command(flatten)]
    dense: DenseArgs,
}

/// What the head's training is by default.
fn training(protocol: Protocol) -> HeadTraining {
    DepthConfig::for_protocol(protocol).training
}

impl DepthArgs {
    /// Trains, scores and prints the table.
    pub fn run(&self) -> Result<()> {
        let dense = &self.dense;
        let config = DepthConfig {
            protocol: dense.protocol,
            range: (self.min_depth, self.max_depth),
            bins: self.bins,
            training: dense.training(training(dense.protocol)),
            seed: dense.random.derived("depth"),
            bootstrap_resamples: dense.random.bootstrap_resamples,
        };
        config.validate()?;
        let (request, _lock) = dense.start()?;
        let depths = Depths {
            scale: self.depth_scale,
            crop: self
                .eval_crop
                .unwrap_or_else(|| DepthCrop::of_test(&request.test_data)),
        };
        let (result, images) = depth(&request, depths, &config)?;
        dense.finish(&result, &images)
    }
}
