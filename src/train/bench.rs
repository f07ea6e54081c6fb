//! How fast steps are on this machine, and where their time goes: whole steps on crops of noise, or of images as in training.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use macula_models::ops::linear;
use rand::Rng;
use serde::Serialize;

use super::config::{Compute, TrainConfig};
use super::cost::step_operations;
use super::failed_in_candle;
use super::feed::Feed;
use super::product_rates::least_seconds;
use super::run::start_feed;
use super::trainer::{StepReport, StepSeconds, Trainer};
use crate::data::augment::{MultiCrop, PlannedImage};
use crate::data::loader::{Batch, CropsOn};
use crate::data::mask::masks_for_batch;
use crate::data::{RgbImage, Source};
use crate::runtime::peak_memory;
use crate::{Error, Result, rng};

/// Side of the matrices whose product measures a processor, and a GPU.
const GEMM_SIDE: usize = 1024;
const GPU_GEMM_SIDE: usize = 8192;
/// Width and height of the images of noise, where the step makes the crops: those of most of ImageNet's.
const PHOTOGRAPH: (u32, u32) = (500, 375);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct StepBench {
    /// The recipe.
    pub recipe: String,
    /// Images a step.
    pub batch_size: usize,
    /// Threads of the step.
    pub threads: usize,
    /// Weights that are trained.
    pub parameters: usize,
    /// Median seconds a step.
    pub step_seconds: f64,
    /// Images a second at the median.
    pub images_per_second: f64,
    /// Share of the step: waiting for images; absent where the crops are noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_wait: Option<f64>,
    /// Share of the step: teacher forward and targets.
    pub teacher: f64,
    /// Share of the step: student forward and losses.
    pub student: f64,
    /// Share of the step: gradients.
    pub backward: f64,
    /// Share of the step: clipping, update, teacher's average.
    pub update: f64,
    /// Operations of the step's matrix products, in units of 1e9.
    pub step_gflop: f64,
    /// Rate achieved, 1e9 operations a second.
    pub gflop_per_second: f64,
    /// Rate of one large matrix product here, in what the run computes in.
    pub gemm_gflop_per_second: f64,
    /// Share of the floor: the time of the products at that rate over the time of the step.
    pub share_of_floor: f64,
    /// Most memory the process has held, in bytes; 0 where the system does not say.
    pub peak_rss_bytes: u64,
    /// Most memory that tensors have held on the GPU, in bytes; absent on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuda_peak_bytes: Option<u64>,
}

/// Times `steps` steps of `config` after two for warming up: on the images of `source`, which its loader reads beside the steps,
/// or on noise.
///
/// # Errors
/// A configuration that contradicts itself, images that cannot be read, failures of candle.
pub fn bench(
    config: &TrainConfig,
    source: Option<Arc<dyn Source>>,
    device: &Device,
    steps: usize,
) -> Result<StepBench> {
    let mut trainer = Trainer::fresh(config, device)?;
    let mut parts = match source {
        Some(source) => Parts::Images(start_feed(config, source, 0, device)?),
        None => Parts::Noise(noise(config)?),
    };
    let mut seconds = Vec::with_capacity(steps);
    let mut split = StepSeconds::default();
    let mut waited = Duration::ZERO;
    for number in 0..steps + 2 {
        let start = Instant::now();
        let (report, wait) = parts.advance(&mut trainer, config.accumulate)?;
        device.synchronize().map_err(failed_in_candle)?;
        if number >= 2 {
            seconds.push(start.elapsed().as_secs_f64());
            waited += wait;
            split.add(&report.seconds);
        }
    }
    let total: f64 = seconds.iter().sum();
    let mut of_parts = total;
    if !device.is_cpu() {
        // Parts are told apart in steps of their own, which wait between them.
        trainer.time_parts();
        split = StepSeconds::default();
        let start = Instant::now();
        for _ in 0..steps {
            split.add(&parts.advance(&mut trainer, config.accumulate)?.0.seconds);
        }
        of_parts = start.elapsed().as_secs_f64();
    }
    seconds.sort_by(f64::total_cmp);
    let median = *seconds
        .get(seconds.len() / 2)
        .ok_or_else(|| Error::input("--steps", "expected at least 1, found 0"))?;
    let cuda_peak_bytes = peak_memory(device);
    let operations = step_operations(config)?;
    let gemm = gemm_rate(device, config.compute).map_err(failed_in_candle)?;
    let weights = trainer.method().student.trained();
    Ok(StepBench {
        recipe: config.recipe.clone(),
        batch_size: config.batch_size,
        threads: rayon::current_num_threads(),
        parameters: weights.map(|(_, var)| var.elem_count()).sum(),
        step_seconds: median,
        images_per_second: config.batch_size as f64 / median,
        data_wait: matches!(parts, Parts::Images(_)).then(|| waited.as_secs_f64() / total),
        teacher: split.teacher / of_parts,
        student: split.student / of_parts,
        backward: split.backward / of_parts,
        update: split.update / of_parts,
        step_gflop: operations / 1e9,
        gflop_per_second: operations / median / 1e9,
        gemm_gflop_per_second: gemm / 1e9,
        share_of_floor: operations / gemm / median,
        peak_rss_bytes: peak_rss(),
        cuda_peak_bytes,
    })
}

/// Where the parts of a step come from.
enum Parts {
    /// The same for every step.
    Noise(Vec<Batch>),
    Images(Feed),
}

impl Parts {
    /// A step on the next `count` parts, and how long they had to be waited for.
    fn advance(&mut self, trainer: &mut Trainer, count: usize) -> Result<(StepReport, Duration)> {
        match self {
            Self::Noise(parts) => Ok((trainer.advance(parts)?, Duration::ZERO)),
            Self::Images(feed) => {
                let (parts, waited) = feed.fetch_parts(count)?;
                let report = trainer.advance(&parts)?;
                for part in parts {
                    feed.recycle(part)?;
                }
                Ok((report, waited))
            }
        }
    }
}

/// The parts of a step, of noise: crops, or images and plans where the step makes them.
fn noise(config: &TrainConfig) -> Result<Vec<Batch>> {
    let plan = config.batch_plan()?;
    let size = plan.size(u64::MAX);
    (0..config.accumulate as u64)
        .map(|part| {
            let mut rng = rng::stream(config.seed, "bench", part);
            let (global, local) = (&config.crops.global, &config.crops.local);
            let crops = global.count * size;
            let masks = match config.draws_masks() {
                true => {
                    let mut rng = rng::stream(config.seed, "masks", part);
                    Some(masks_for_batch(crops, config.grid()?, &config.masks, &mut rng)?)
                }
                false => None,
            };
            let mut batch = Batch {
                step: part,
                size,
                rows: (0..size as u64).collect(),
                views: vec![None; size],
                masks,
                ..Batch::default()
            };
            if config.data.loader.crops_on == CropsOn::Gpu {
                let crops = MultiCrop::new(config.crops.clone())?;
                batch.planned = (0..size)
                    .map(|_| Some(PlannedImage::draw(photograph(&mut rng), &crops, &mut rng)))
                    .collect();
            } else {
                let mut draw = |count: usize| (0..count).map(|_| rng.random_range(-1f32..1.)).collect();
                batch.global = draw(crops * global.values());
                batch.local = draw(local.count * size * local.values());
            }
            Ok(batch)
        })
        .collect()
}

/// An image of noise.
fn photograph(rng: &mut impl Rng) -> Arc<RgbImage> {
    let (width, height) = PHOTOGRAPH;
    let mut levels = vec![0; 3 * width as usize * height as usize];
    rng.fill(levels.as_mut_slice());
    Arc::new(RgbImage::new(width, height, levels).expect("as many levels as pixels need"))
}

/// Operations a second of a large product, the best of a few.
fn gemm_rate(device: &Device, compute: Compute) -> candle_core::Result<f64> {
    let side = if device.is_cpu() { GEMM_SIDE } else { GPU_GEMM_SIDE };
    let matrix = Tensor::ones((side, side), DType::F32, device)?;
    let best = least_seconds(device, || {
        linear(&matrix, &matrix, None, compute.dtype()).map(drop)
    })?;
    Ok(2. * (side as f64).powi(3) / best)
}

/// `VmHWM` of this process.
fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
