//! Batches on their way: what passes through, what goes ahead by lanes, and crops made by the step.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::{Device, Tensor};
use macula_models::ops::cuda::emulated;

use super::*;
use crate::data::augment::multi_crop::stream;
use crate::data::augment::multi_crop_config::BlurConvention;
use crate::data::augment::{MultiCropConfig, PlannedImage};
use crate::data::loader::{BatchPlan, LoaderConfig};
use crate::data::mask::{Grid, MaskConfig};
use crate::data::resize::Interpolation;
use crate::data::{DecodeOptions, Record, RgbImage, RowError, Source, open};
use crate::train::run::{TrainRequest, run};
use crate::train::start::Start;
use crate::train::testing::cuda_emulation::launcher;
use crate::train::trainer::Trainer;
use crate::train::trainer::tests::{batches, config};

/// Colours without a pattern, a fourth of them black and a fourth white, so that the overshoot of the cubic is clipped.
fn noise(width: u32, height: u32, seed: u64) -> RgbImage {
    let mut state = seed | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        match state >> 62 {
            0 => 0,
            1 => 255,
            _ => (state >> 40) as u8,
        }
    };
    RgbImage::new(width, height, (0..width * height * 3).map(|_| next()).collect()).unwrap()
}

/// A batch of `images`, whose crops are still to be made, and those crops as the processor makes them: global, local.
fn planned(images: &[RgbImage], crops: &MultiCrop) -> (Batch, Vec<f32>, Vec<f32>) {
    let (mut global, mut local, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for (number, image) in (0..).zip(images) {
        let made = crops
            .apply(&image.clone().into(), &mut stream(3, 1, number))
            .unwrap();
        global.push(made.global);
        local.push(made.local);
        let mut rng = stream(3, 1, number);
        let planned = PlannedImage::draw(Arc::new(image.clone()), crops, &mut rng);
        entries.push(Some(planned));
    }
    // [B, C, values] to [C * B, values].
    let major = |samples: &[Vec<f32>], values: usize, count: usize| -> Vec<f32> {
        let crop = |place: usize| samples.iter().flat_map(move |of| &of[place * values..][..values]);
        (0..count).flat_map(crop).copied().collect()
    };
    let config = crops.config();
    let batch = Batch {
        size: images.len(),
        planned: entries,
        ..Batch::default()
    };
    (
        batch,
        major(&global, config.global_values(), config.global.count),
        major(&local, config.local_values(), config.local.count),
    )
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Everything happens to every crop, but that none becomes grey.
fn everything(global: u32, local: u32) -> MultiCropConfig {
    let mut config = MultiCropConfig::default();
    (config.global.size, config.local.size, config.local.count) = (global, local, 3);
    (config.jitter.probability, config.grey) = (1.0, 0.0);
    (config.blur.convention, config.blur.local) = (BlurConvention::AsDeclared, 1.0);
    (config.blur.other_global, config.solarize.probability) = (1.0, 1.0);
    config
}

#[test]
#[ignore = "needs a C++ compiler"]
fn crops_of_an_emulated_gpu_are_the_processors_to_the_bit() {
    let sizes = [
        (1, 1),
        (1, 300),
        (300, 1),
        (2, 3),
        (33, 57),
        (57, 33),
        (23, 23),
        (120, 40),
        (31, 200),
    ];
    let images: Vec<RgbImage> = (1..).zip(sizes).map(|(seed, (w, h))| noise(w, h, seed)).collect();
    let mut usual = everything(35, 7);
    (usual.jitter.probability, usual.grey, usual.solarize.probability) = (0.8, 0.5, 0.5);
    (usual.blur.other_global, usual.blur.local) = (0.5, 0.5);
    let mut strong = everything(12, 1);
    (
        strong.jitter.brightness,
        strong.jitter.contrast,
        strong.jitter.saturation,
    ) = (3.0, 3.0, 3.0);
    (strong.jitter.hue, strong.interpolation) = (0.5, Interpolation::Bilinear);
    strong.blur.sigma = [0.1, 9.0];
    // Windows so wide that Pillow filters columns first, and so high that it would not.
    let mut stretched = everything(9, 20);
    (stretched.aspect, stretched.grey) = ([0.05, 20.0], 1.0);
    let mut alone = everything(28, 14);
    alone.local.count = 0;
    for config in [everything(23, 9), usual, strong, stretched, alone] {
        let crops = MultiCrop::new(config).unwrap();
        // All at once, and few enough that the emulation tries several orders of threads.
        assert_made(&images, &crops);
        assert_made(&images[4..5], &crops);
    }
    let dinov2 = MultiCrop::new(MultiCropConfig::default()).unwrap();
    assert_made(&[noise(500, 375, 5), noise(375, 500, 6)], &dinov2);
}

/// Fails unless the kernels make of `images` what the processor does.
fn assert_made(images: &[RgbImage], crops: &MultiCrop) {
    let (batch, global, local) = planned(images, crops);
    let (found, of_local) = emulated(launcher(), || {
        let sent = DeviceBatch::upload(&batch, crops, &Device::Cpu).unwrap();
        sent.crops(crops.config()).unwrap()
    });
    // Without the values in the message: they are too many.
    assert!(values(&found) == global, "{:?}", crops.config());
    let found = of_local.as_ref().map(values).unwrap_or_default();
    assert!(found == local, "{:?}", crops.config());
}

#[test]
#[ignore = "needs a C++ compiler"]
fn steps_on_an_emulated_gpu_may_make_their_crops() {
    for settings in [&[][..], &["crops.local.count=0"][..], &["accumulate=2"][..]] {
        let losses = |crops_on: &str| -> Vec<f64> {
            let crops_on = format!("data.loader.crops_on=\"{crops_on}\"");
            let config = config("dinov2-small", &[settings, &[crops_on.as_str()]].concat());
            let steps = batches(&config, 0, 2);
            assert_eq!(
                steps[0][0].planned.len(),
                if crops_on.contains("gpu") {
                    4 / config.accumulate
                } else {
                    0
                }
            );
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let run = || {
                let mut trainer = Trainer::fresh(&config, &Device::Cpu).unwrap();
                let losses = steps.iter().map(|parts| trainer.advance(parts).unwrap().loss);
                losses.collect()
            };
            pool.install(|| emulated(launcher(), run))
        };
        assert_eq!(losses("gpu"), losses("cpu"), "{settings:?}");
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn a_run_on_an_emulated_gpu_names_the_images_of_a_loss_that_is_not_finite() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["data.loader.crops_on=gpu", "optimizer.learning_rate=1e30"];
    let config = config("dinov2-small", &settings);
    let request = TrainRequest {
        source: Arc::from(open(&config.data.source).unwrap()),
        config,
        out: folder.path().join("run"),
        replace: false,
        start: Start::Fresh,
        teacher: None,
        device: Device::Cpu,
        threads: 1,
        until: None,
        stop: Arc::default(),
    };
    let out = request.out.clone();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let error = pool
        .install(|| emulated(launcher(), || run(request)))
        .unwrap_err();
    assert!(error.to_string().contains("its images are in"), "{error}");
    let files = std::fs::read_dir(out).unwrap().map(|file| file.unwrap().path());
    let is_record = |path: &PathBuf| path.to_str().unwrap().contains("not-finite-step-");
    let record = std::fs::read(files.into_iter().find(is_record).unwrap()).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["images"].as_array().unwrap().len(), 4);
    assert!(record["images"][0]["row"].is_u64(), "{record}");
}

#[test]
fn crops_on_a_gpu_need_one() {
    let config = config("dinov2-small", &["data.loader.crops_on=gpu"]);
    let error = Trainer::fresh(&config, &Device::Cpu).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    let error = error.to_string();
    assert!(error.starts_with("data.loader.crops_on: expected cpu"), "{error}");
    assert!(!error.contains('\n'));
}

#[test]
fn a_gpu_warps_no_crops() {
    let config = config("dinov2-small", &["data.loader.crops_on=gpu", "crops.warp=0.1"]);
    let error = Trainer::fresh(&config, &Device::Cpu).err().unwrap().to_string();
    assert_eq!(error, "crops.warp: expected 0 with crops_on = \"gpu\", found 0.1");
}

#[test]
fn pieces_are_written_as_they_lie_in_tensors() {
    let crops = MultiCrop::new(everything(5, 2)).unwrap();
    let (mut batch, global, local) = planned(&[noise(4, 3, 1), noise(5, 1, 2)], &crops);
    for _ in 0..2 {
        let load = Load::new(&batch, &crops).unwrap();
        for piece in &load.pieces {
            let mut bytes = vec![0; piece.bytes()];
            piece.write(&mut bytes);
            let tensor = piece.tensor(&Device::Cpu).unwrap();
            assert_eq!(
                (tensor.dims(), tensor.dtype()),
                (&[piece.len()][..], piece.dtype())
            );
            let expected: Vec<u8> = match piece.dtype() {
                candle_core::DType::F32 => bytes_of(&tensor, f32::to_ne_bytes),
                candle_core::DType::U32 => bytes_of(&tensor, u32::to_ne_bytes),
                _ => tensor.to_vec1().unwrap(),
            };
            assert_eq!(bytes, expected);
        }
        (batch.planned, batch.global, batch.local) = (Vec::new(), global.clone(), local.clone());
    }
    batch.planned = vec![None; 2];
    let error = Load::new(&batch, &crops).err().unwrap().to_string();
    assert!(error.contains("expected 2 planned images, found 0"), "{error}");
}

fn bytes_of<T: candle_core::WithDType, const N: usize>(tensor: &Tensor, bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    let values: Vec<T> = tensor.to_vec1().unwrap();
    values.into_iter().flat_map(bytes).collect()
}

/// Images of many sizes.
struct Images {
    bad: Option<u64>,
}

impl Source for Images {
    fn len(&self) -> u64 {
        40
    }

    fn record(&self, _: u64) -> Record {
        unreachable!("the loader reads images only")
    }

    fn load(&self, row: u64, _: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        if self.bad == Some(row) {
            return Err(RowError {
                path: format!("{row}.png"),
                reason: "damaged".to_owned(),
            });
        }
        Ok(noise(5 + row as u32 % 7, 4 + row as u32 % 5, row))
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

fn small() -> MultiCrop {
    MultiCrop::new(MultiCropConfig::small_grey(8, 4)).unwrap()
}

fn loader(crops_on: CropsOn, bad: Option<u64>) -> Loader {
    let settings = LoaderConfig {
        workers: 2,
        crops_on,
        on_error: crate::data::loader::OnError::Fail,
        ..LoaderConfig::default()
    };
    let masks = Some((MaskConfig::default(), Grid { rows: 4, columns: 4 }));
    let plan = BatchPlan::warmup(2, 6, 4);
    Loader::start(Arc::new(Images { bad }), small(), masks, plan, &settings, 5, 0).unwrap()
}

/// What has happened to the lanes of a test.
#[derive(Default)]
struct Counts {
    on_the_way: AtomicUsize,
    max: AtomicUsize,
    dropped: AtomicUsize,
}

/// A lane that copies while its sender waits.
struct Copied {
    counts: Arc<Counts>,
    is_taken: AtomicBool,
}

impl Lane for Copied {
    fn send(&mut self, load: &Load) -> candle_core::Result<DeviceBatch> {
        assert!(
            !self.is_taken.swap(true, Ordering::Relaxed),
            "a lane carries one batch"
        );
        let now = self.counts.on_the_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.counts.max.fetch_max(now, Ordering::Relaxed);
        let tensors: candle_core::Result<_> = load
            .pieces
            .iter()
            .map(|piece| piece.tensor(&Device::Cpu))
            .collect();
        Ok(load.arrived(tensors?))
    }

    fn arrived(&self) -> candle_core::Result<()> {
        assert!(self.is_taken.load(Ordering::Relaxed), "something is on its way");
        Ok(())
    }

    fn release(&mut self) -> candle_core::Result<()> {
        self.counts.on_the_way.fetch_sub(1, Ordering::Relaxed);
        self.is_taken.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

fn feed(loader: Loader, lanes: usize) -> (Feed, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let lane = |_| {
        Box::new(Copied {
            counts: Arc::clone(&counts),
            is_taken: AtomicBool::new(false),
        }) as Box<dyn Lane>
    };
    let lanes = (0..lanes).map(lane).collect();
    (Feed::with_lanes(loader, small(), lanes).unwrap(), counts)
}

#[test]
fn what_goes_ahead_is_what_passes_through() {
    for crops_on in [CropsOn::Cpu, CropsOn::Gpu] {
        let mut through = Feed::with_lanes(loader(crops_on, None), small(), Vec::new()).unwrap();
        let (mut ahead, counts) = feed(loader(crops_on, None), 4);
        for _ in 0..6 {
            // Two parts a step.
            let mut parts = Vec::new();
            for _ in 0..2 {
                let (expected, _) = through.fetch().unwrap();
                let (found, _) = ahead.fetch().unwrap();
                assert!(expected.on_device().is_none());
                let sent = DeviceBatch::upload(expected.batch(), &small(), &Device::Cpu).unwrap();
                let on_the_way = found.on_device().unwrap();
                let pairs = sent.tensors().iter().zip(on_the_way.tensors());
                assert_eq!(sent.tensors().len(), on_the_way.tensors().len());
                for (expected, found) in pairs {
                    assert_eq!(
                        expected
                            .to_dtype(candle_core::DType::F64)
                            .unwrap()
                            .to_vec1::<f64>()
                            .unwrap(),
                        found
                            .to_dtype(candle_core::DType::F64)
                            .unwrap()
                            .to_vec1::<f64>()
                            .unwrap()
                    );
                }
                assert_eq!(found.batch().rows, expected.batch().rows);
                assert_eq!(found.batch().masks, expected.batch().masks);
                assert_eq!(found.batch().step, expected.batch().step);
                through.recycle(expected).unwrap();
                parts.push(found);
            }
            for part in parts {
                ahead.recycle(part).unwrap();
            }
        }
        assert!((2..=4).contains(&counts.max.load(Ordering::Relaxed)));
        drop(ahead);
        assert_eq!(counts.dropped.load(Ordering::Relaxed), 4);
    }
}

#[test]
fn a_failure_ahead_comes_after_the_batches_before_it() {
    let first = loader(CropsOn::Cpu, None).next().unwrap().0.rows;
    let later = (0..40).find(|row| !first.contains(row));
    let (mut feed, _) = feed(loader(CropsOn::Gpu, later), 2);
    let mut done = 0;
    let error = loop {
        match feed.fetch() {
            Ok((fed, _)) => feed.recycle(fed).unwrap(),
            Err(error) => break error.to_string(),
        }
        done += 1;
    };
    assert!(done > 0 && error.contains("damaged"), "{done}: {error}");
    let error = feed.fetch().err().unwrap().to_string();
    assert!(error.contains("stopped"), "{error}");
}

#[test]
fn a_feed_ends_whatever_its_thread_waits_for() {
    // For a lane: all are taken.
    let (mut taken, counts) = feed(loader(CropsOn::Gpu, None), 2);
    let parts = [taken.fetch().unwrap(), taken.fetch().unwrap()];
    drop(taken);
    drop(parts);
    assert_eq!(counts.dropped.load(Ordering::Relaxed), 2);
    // For nothing: it is at work.
    drop(feed(loader(CropsOn::Cpu, None), 3));
}
