//! `macula eval depth`.

use clap::Args;
use macula_eval::protocols::dense::depth::DepthConfig;

use super::dense::DenseArgs;
use crate::evaluate::dense::{DepthCrop, Depths, depth};
use crate::{Result, rng};

/// Arguments of `macula eval depth`.
#[derive(Debug, Args)]
pub(super) struct DepthArgs {
    /// Least depth; true depths up to it do not count
    #[arg(long, value_name = "DEPTH")]
    min_depth: Option<f32>,
    /// Greatest depth; true depths beyond it do not count
    #[arg(long, value_name = "DEPTH")]
    max_depth: Option<f32>,
    /// What the samples of a depth map are divided by: 1000 for millimetres, 256 for KITTI
    #[arg(long, value_name = "N", default_value_t = 1000.0)]
    depth_scale: f32,
    /// Bins of depth
    #[arg(long, value_name = "N")]
    bins: Option<usize>,
    /// Pixels of the test images that count: none (all), eigen (NYU) or garg (KITTI); by default eigen for nyu:FOLDER#test,
    /// whose training images then go without their white border, and none for any other source
    #[arg(long, value_name = "CROP")]
    eval_crop: Option<DepthCrop>,
    #[command(flatten)]
    dense: DenseArgs,
}

impl DepthArgs {
    /// Trains, scores and prints the table.
    pub fn run(&self) -> Result<()> {
        let dense = &self.dense;
        let defaults = DepthConfig::of(dense.protocol);
        let config = DepthConfig {
            protocol: dense.protocol,
            range: (
                self.min_depth.unwrap_or(defaults.range.0),
                self.max_depth.unwrap_or(defaults.range.1),
            ),
            bins: self.bins.unwrap_or(defaults.bins),
            learning_rates: dense.learning_rates(defaults.learning_rates),
            weight_decay: dense.weight_decay.unwrap_or(defaults.weight_decay),
            iterations: dense.iterations.unwrap_or(defaults.iterations),
            batch_size: dense.train_batch.unwrap_or(defaults.batch_size),
            val_fraction: dense.val_fraction.unwrap_or(defaults.val_fraction),
            seed: rng::derived_seed(dense.seed, "depth"),
            bootstrap_resamples: dense.bootstrap_resamples,
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
