//! How fast steps are on this machine, and where their time goes: whole steps on crops of noise, or of images as in training.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use macula_models::ops::linear;
use rand::Rng;
use serde::Serialize;

use super::config::TrainConfig;
use super::cost::step_operations;
use super::feed::{DeviceBatch, Feed, MicroBatch};
use super::kernels::kernels;
use super::product_rates::min_seconds;
use super::replicas;
use super::run::start_feed;
use super::trainer::{StepReport, StepSeconds, Trainer};
use crate::cluster::{OneRank, Ranks};
use crate::data::augment::{MultiCrop, PlannedImage};
use crate::data::loader::{Batch, CropsOn};
use crate::data::mask::masks_for_batch;
use crate::data::{RgbImage, Source};
use crate::device::{Dtype, peak_memory, peak_resident};
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
    /// Copies of the network that share them.
    pub replicas: usize,
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
    /// Share of the step: gradients between copies, and waiting for the slowest of them.
    pub exchange: f64,
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

/// Times `steps` steps of `config` after two for warming up, by so many `copies` of the network: on the images of `source`, which its
/// loader reads beside the steps, or on noise.
///
/// # Errors
/// A configuration that contradicts itself, a batch that copies cannot share, images that cannot be read, failures of candle.
pub fn bench(
    config: &TrainConfig,
    source: Option<Arc<dyn Source>>,
    device: &Device,
    steps: usize,
    copies: usize,
) -> Result<StepBench> {
    let threads = rayon::current_num_threads();
    let timed = match copies {
        0 | 1 => timed(config, source, device, steps, &(Arc::new(OneRank) as _))?,
        _ => {
            replicas::check(config, threads, device, copies)?;
            replicas::of_first(copies, threads, |ranks| {
                timed(config, source.clone(), device, steps, &ranks)
            })?
        }
    };
    let Timed {
        mut seconds,
        split,
        of_parts,
        data_wait,
        parameters,
    } = timed;
    seconds.sort_by(f64::total_cmp);
    let median = *seconds
        .get(seconds.len() / 2)
        .ok_or_else(|| Error::input("--steps", "expected at least 1, found 0"))?;
    let cuda_peak_bytes = peak_memory(device);
    let operations = step_operations(config)?;
    let gemm = gemm_rate(device, config.compute)?;
    Ok(StepBench {
        recipe: config.recipe.clone(),
        batch_size: config.batch_size,
        threads,
        replicas: copies.max(1),
        parameters,
        step_seconds: median,
        images_per_second: config.batch_size as f64 / median,
        data_wait,
        teacher: split.teacher / of_parts,
        student: split.student / of_parts,
        backward: split.backward / of_parts,
        update: split.update / of_parts,
        exchange: split.exchange / of_parts,
        step_gflop: operations / 1e9,
        gflop_per_second: operations / median / 1e9,
        gemm_gflop_per_second: gemm / 1e9,
        share_of_floor: operations / gemm / median,
        peak_rss_bytes: peak_resident(),
        cuda_peak_bytes,
    })
}

/// What a rank has measured.
struct Timed {
    /// Of each step.
    seconds: Vec<f64>,
    /// Seconds of the parts of some steps, and of these altogether.
    split: StepSeconds,
    of_parts: f64,
    /// Share of the time in which steps waited for images, where these are read.
    data_wait: Option<f64>,
    /// Weights that are trained.
    parameters: usize,
}

fn timed(
    config: &TrainConfig,
    source: Option<Arc<dyn Source>>,
    device: &Device,
    steps: usize,
    ranks: &Arc<dyn Ranks>,
) -> Result<Timed> {
    let mut trainer = Trainer::fresh(config, device)?;
    trainer.share_with(ranks)?;
    let mut micro_batches = match source {
        Some(source) => MicroBatches::Images(start_feed(config, source, 0, device, ranks.as_ref())?),
        None => MicroBatches::Noise(resident(noise(config, ranks.as_ref())?, config, device)?),
    };
    let mut seconds = Vec::with_capacity(steps);
    let mut split = StepSeconds::default();
    let mut waited = Duration::ZERO;
    for number in 0..steps + 2 {
        let start = Instant::now();
        let (report, wait) = micro_batches.advance(&mut trainer, config.accumulate)?;
        device.synchronize()?;
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
            split.add(&micro_batches.advance(&mut trainer, config.accumulate)?.0.seconds);
        }
        of_parts = start.elapsed().as_secs_f64();
    }
    let weights = trainer.method().student.trained();
    Ok(Timed {
        parameters: weights.map(|(_, var)| var.elem_count()).sum(),
        data_wait: matches!(micro_batches, MicroBatches::Images(_)).then(|| waited.as_secs_f64() / total),
        seconds,
        split,
        of_parts,
    })
}

/// Where the micro-batches of a step come from.
enum MicroBatches {
    /// The same for every step.
    Noise(Vec<Resident>),
    Images(Feed),
}

impl MicroBatches {
    /// A step on the next `count` micro-batches, and how long they had to be waited for.
    fn advance(&mut self, trainer: &mut Trainer, count: usize) -> Result<(StepReport, Duration)> {
        match self {
            Self::Noise(micro_batches) => Ok((trainer.advance(micro_batches)?, Duration::ZERO)),
            Self::Images(feed) => {
                let (micro_batches, waited) = feed.fetch_micro_batches(count)?;
                let report = trainer.advance(&micro_batches)?;
                for micro_batch in micro_batches {
                    feed.recycle(micro_batch)?;
                }
                Ok((report, waited))
            }
        }
    }
}

/// A batch that lies on the device before the clock starts, unless that reads the host's memory: as a feed leaves one, which copies it
/// while the step before computes.
struct Resident {
    batch: Batch,
    on_device: Option<DeviceBatch>,
}

impl MicroBatch for Resident {
    fn batch(&self) -> &Batch {
        &self.batch
    }

    fn on_device(&self) -> Option<&DeviceBatch> {
        self.on_device.as_ref()
    }
}

fn resident(batches: Vec<Batch>, config: &TrainConfig, device: &Device) -> Result<Vec<Resident>> {
    let crops = MultiCrop::new(config.crops.clone())?;
    let resident = |batch| {
        let sends = !kernels(device).reads_host_memory();
        let on_device = sends
            .then(|| DeviceBatch::upload(&batch, &crops, device))
            .transpose()?;
        Ok(Resident { batch, on_device })
    };
    batches.into_iter().map(resident).collect()
}

/// A rank's share of the micro-batches of a step, of noise: crops, or images and plans where the step makes them.
fn noise(config: &TrainConfig, ranks: &dyn Ranks) -> Result<Vec<Batch>> {
    let (rank, count) = (ranks.rank(), ranks.size());
    let size = config.batch_plan()?.of_rank(rank, count).share(u64::MAX).len();
    (0..config.accumulate as u64)
        .map(|micro_batch| {
            let drawn = micro_batch * count as u64 + rank as u64;
            let mut rng = rng::stream(config.seed, "bench", drawn);
            let made = &config.crops;
            let crops = made.global.count * size;
            let masks = match config.draws_masks() {
                true => {
                    let mut rng = rng::stream(config.seed, "masks", drawn);
                    Some(masks_for_batch(crops, config.grid()?, &config.masks, &mut rng)?)
                }
                false => None,
            };
            let mut batch = Batch {
                step: micro_batch,
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
                batch.global = draw(crops * made.global_values());
                batch.local = draw(made.local.count * size * made.local_values());
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

/// Operations a second of a large product, the best of a few. Of numbers that look random, since ones take less power, and that have
/// their type before the clock starts.
fn gemm_rate(device: &Device, compute: Dtype) -> candle_core::Result<f64> {
    let (side, dtype) = match device.is_cpu() {
        // Every tensor of the CPU's graph is f32.
        true => (GEMM_SIDE, DType::F32),
        false => (GPU_GEMM_SIDE, compute.dtype()),
    };
    let matrix = || Tensor::randn(0f32, 1., (side, side), device)?.to_dtype(dtype);
    let (left, right) = (matrix()?, matrix()?);
    let best = min_seconds(device, || linear(&left, &right, None, compute.dtype()).map(drop))?;
    Ok(2. * (side as f64).powi(3) / best)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use macula_models::ops::cuda::geometry::Launch;
    use macula_models::ops::cuda::{Access, Cell, Launcher, emulated};

    use super::*;
    use crate::train::recipes::{self, DataFacts, Overrides};
    use crate::train::trainer::tests::config;

    struct NoKernels;

    impl Launcher for NoKernels {
        fn launch(&self, kernel: &str, _: &Launch, _: &[Cell]) -> std::result::Result<(), String> {
            Err(format!("{kernel}: expected no launch before the clock starts"))
        }
    }

    #[test]
    fn noise_lies_on_a_gpu_before_the_clock_starts_and_passes_through_on_the_cpu() {
        let config = config("dinov2-small", &[]);
        let micro_batches = || resident(noise(&config, &OneRank).unwrap(), &config, &Device::Cpu).unwrap();
        assert!(
            micro_batches()
                .iter()
                .all(|micro_batch| micro_batch.on_device().is_none())
        );
        let on_gpu = emulated(Arc::new(NoKernels), micro_batches);
        assert_eq!(on_gpu.len(), config.accumulate);
        for micro_batch in on_gpu {
            let (global, local) = micro_batch.on_device().unwrap().crops(&config.crops).unwrap();
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&global), micro_batch.batch().global);
            let local = local.map(|local| values(&local)).unwrap_or_default();
            assert_eq!(local, micro_batch.batch().local);
            assert_eq!(
                micro_batch.on_device().unwrap().masks().is_some(),
                config.draws_masks()
            );
        }
    }

    #[test]
    fn copies_time_their_shares_of_a_step() {
        let config = config("dino", &["batch_size=8"]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let source = || Some(Arc::from(crate::data::open("sample:train").unwrap()));
        for source in [None, source()] {
            let images = source.is_some();
            let timed = pool
                .install(|| bench(&config, source, &Device::Cpu, 2, 2))
                .unwrap();
            assert_eq!((timed.replicas, timed.threads, timed.batch_size), (2, 2, 8));
            assert_eq!(timed.data_wait.is_some(), images);
            let parts = timed.teacher + timed.student + timed.backward + timed.update + timed.exchange;
            assert!(timed.exchange > 0. && parts < 1.01, "{timed:?}");
        }
        let refused = pool
            .install(|| bench(&config, None, &Device::Cpu, 2, 4))
            .unwrap_err();
        assert!(
            refused.to_string().starts_with("replicas: expected at most"),
            "{refused}"
        );
    }

    #[test]
    fn a_large_product_has_a_rate_in_either_type() {
        for compute in [Dtype::F32, Dtype::Bf16] {
            let rate = gemm_rate(&Device::Cpu, compute).unwrap();
            assert!(rate.is_finite() && rate > 1e6, "{rate}");
        }
    }

    /// Launches of a kernel, and the bytes of their buffers, each read or written once.
    type Counts = BTreeMap<String, [f64; 2]>;

    /// Counts launches and copies, and runs none: what a step asks for does not depend on the numbers, until it reads the losses.
    #[derive(Default)]
    struct Counting {
        launches: Mutex<Counts>,
        copies: Mutex<Vec<usize>>,
    }

    impl Launcher for Counting {
        fn launch(&self, kernel: &str, _: &Launch, cells: &[Cell]) -> std::result::Result<(), String> {
            let buffers = cells.iter().flat_map(|cell| match cell {
                Cell::Buffer(buffer) => vec![*buffer],
                Cell::Table(entries) => entries.clone(),
                Cell::Int(_) | Cell::Float(_) => Vec::new(),
            });
            let passes = |access| if access == Access::Change { 2. } else { 1. };
            let bytes: f64 = buffers
                .flatten()
                .map(|buffer| passes(buffer.access) * buffer.bytes as f64)
                .sum();
            let mut launches = self.launches.lock().unwrap();
            let [count, total] = launches.entry(kernel.to_owned()).or_default();
            *count += 1.;
            *total += bytes;
            Ok(())
        }

        fn copied(&self, bytes: usize) {
            self.copies.lock().unwrap().push(bytes);
        }
    }

    /// What each of `steps` steps of `config` asks for: kernels, and copies from the host.
    fn requested(config: &TrainConfig, steps: usize) -> Vec<(Counts, Vec<usize>)> {
        let counting = Arc::new(Counting::default());
        let all = || {
            let mut trainer = Trainer::fresh(config, &Device::Cpu).unwrap();
            let micro_batches = resident(noise(config, &OneRank).unwrap(), config, &Device::Cpu).unwrap();
            let step = |_| {
                // The losses are whatever was in memory.
                let _ = trainer.advance(&micro_batches);
                let launches = std::mem::take(&mut *counting.launches.lock().unwrap());
                (launches, std::mem::take(&mut *counting.copies.lock().unwrap()))
            };
            (0..steps).map(step).collect()
        };
        // A step stays on the thread of the pool that asks for it, and with it what emulates a GPU.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| emulated(counting.clone(), all))
    }

    #[test]
    fn what_stays_is_copied_to_a_gpu_by_the_first_step_alone() {
        let config = config("dinov2-small", &["compute=bf16"]);
        let steps = requested(&config, 3);
        let counted: Vec<usize> = steps.iter().map(|(_, copies)| copies.iter().sum()).collect();
        assert!(counted[0] > counted[1] && counted[1] == counted[2], "{counted:?}");
        assert_eq!(steps[1].0, steps[0].0);
        assert!(steps[1].0.contains_key("adamw") && steps[1].0.contains_key("patches_bf16"));
        // Of the numbers of pieces, sizes and groups none is among them.
        let weights = Trainer::fresh(&config, &Device::Cpu).unwrap();
        let tensors = weights.method().student.trained().count();
        assert!(
            counted[0] - counted[1] >= 4 * 5 * tensors,
            "{counted:?} {tensors}"
        );
    }

    /// Launches and bytes of a step of ViT-S/14 at 2 x 224 and 8 x 98 pixels, batch 64, from steps of one and two blocks on two and four
    /// images: both grow evenly with blocks, with images, and with their product.
    #[test]
    #[ignore = "half a minute, for its table"]
    fn launches_and_bytes_of_a_step() {
        let counted = |depth: usize, batch: usize| -> Counts {
            let mut overrides = Overrides::default();
            let (depth, batch) = (format!("backbone.depth={depth}"), format!("batch_size={batch}"));
            for setting in [
                "arch=vit-small/14",
                "image_size=224",
                "local_size=98",
                "crops.local.count=8",
                "loss.head={hidden=2048, bottleneck=256, prototypes=65536, train_gain=true}",
                "masks.ratio=[0.3, 0.3]",
                "backbone.layer_scale=1e-5",
                "loss.ibot_weight=1",
                "loss.pixel_weight=0",
                "loss.hog_weight=0",
                "backbone.patch_drop_rate=0",
                "compute=bf16",
                &depth,
                &batch,
            ] {
                overrides.set(setting).unwrap();
            }
            let facts = DataFacts {
                images: 60_000,
                side: 28,
                grey: true,
                framed: true,
            };
            let mut base = recipes::recipe("dinov2-small", "noise", &facts).unwrap();
            base.batch_warmup_steps = 0;
            let config = overrides.apply(base, facts.images).unwrap();
            requested(&config, 2).remove(1).0
        };
        let [a, b, c, d] = [(1, 2), (2, 2), (1, 4), (2, 4)].map(|(depth, batch)| counted(depth, batch));
        let (depth, batch) = (12., 64.);
        let (mut launches, mut bytes) = (0., 0.);
        for kernel in b.keys() {
            let of = |counts: &Counts| counts.get(kernel).copied().unwrap_or_default();
            let at = |place: usize| {
                let [a, b, c, d] = [of(&a), of(&b), of(&c), of(&d)].map(|counts| counts[place]);
                let by_image = (c - a) / 2.;
                let by_both = ((d - b) - (c - a)) / 2.;
                a + (b - a) * (depth - 1.) + by_image * (batch - 2.) + by_both * (depth - 1.) * (batch - 2.)
            };
            println!("{kernel:36} {:6.0} {:10.1} MB", at(0), at(1) / 1e6);
            launches += at(0);
            bytes += at(1);
        }
        println!("{:36} {launches:6.0} {:10.1} MB", "all", bytes / 1e6);
        assert!(launches > 100. && bytes > 1e9);
    }
}
