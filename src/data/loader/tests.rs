//! The loader as training uses it: what a batch holds, that nothing but seed and step decides it, and every way images and
//! threads can fail.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::data::augment::{MultiCropConfig, multi_crop};
use crate::data::{Record, RgbImage, open};

const GLOBAL: usize = 3 * 8 * 8;
const LOCAL: usize = 3 * 4 * 4;

/// Grey images that tell their rows.
#[derive(Default)]
struct Images {
    rows: u64,
    bad: BTreeSet<u64>,
    panics: Option<u64>,
    /// Milliseconds that the first, second and third of every three reads take longer.
    delays: [u64; 3],
    reads: AtomicU64,
}

impl Images {
    fn new(rows: u64) -> Self {
        Self {
            rows,
            ..Self::default()
        }
    }
}

impl Source for Images {
    fn len(&self) -> u64 {
        self.rows
    }

    fn record(&self, _row: u64) -> Record {
        unreachable!("the loader reads images only")
    }

    fn load(&self, row: u64, _options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(self.delays[(read % 3) as usize]));
        assert!(self.panics != Some(row), "row {row} is a trap");
        if self.bad.contains(&row) {
            return Err(RowError {
                path: format!("{row}.png"),
                reason: "damaged".to_owned(),
            });
        }
        let levels: Vec<u8> = (0..144).map(|place| (place + row * 7) as u8).collect();
        Ok(RgbImage::from_grey(12, 12, &levels).unwrap())
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

fn crops() -> MultiCrop {
    MultiCrop::new(MultiCropConfig::small_grey(8, 4)).unwrap()
}

fn masks() -> Option<(MaskConfig, Grid)> {
    Some((MaskConfig::default(), Grid { rows: 4, columns: 4 }))
}

fn config(workers: usize) -> LoaderConfig {
    LoaderConfig {
        workers,
        ..LoaderConfig::default()
    }
}

fn start(source: Images, plan: BatchPlan, config: &LoaderConfig, first_step: u64) -> Loader {
    Loader::start(Arc::new(source), crops(), masks(), plan, config, 5, first_step).unwrap()
}

/// The next `count` batches; buffers go back and forth.
fn take(loader: &mut Loader, count: usize) -> Vec<Batch> {
    let next = |_| {
        let (batch, _) = loader.next().unwrap();
        loader.recycle(batch.clone());
        batch
    };
    (0..count).map(next).collect()
}

#[test]
fn a_batch_holds_the_crops_of_its_rows_crop_major() {
    let source = Images::new(20);
    let mut loader = start(Images::new(20), BatchPlan::constant(6), &config(2), 0);
    let mut order = Order::new(5, 20).unwrap();
    for (step, batch) in (0..8).zip(take(&mut loader, 8)) {
        assert_eq!((batch.step, batch.size), (step, 6));
        assert_eq!(
            (batch.global.len(), batch.local.len()),
            (2 * 6 * GLOBAL, 6 * 6 * LOCAL)
        );
        for sample in 0..6 {
            let image = order.image(step * 6 + sample as u64);
            assert_eq!(batch.rows[sample], image.row);
            let pixels = source.load_image(image.row, &DecodeOptions::default()).unwrap();
            let expected = crops()
                .apply(&pixels, &mut multi_crop::stream(5, image.epoch, image.row))
                .unwrap();
            let crop = |place: usize, values: usize| {
                (place * 6 + sample) * values..(place * 6 + sample + 1) * values
            };
            for place in 0..2 {
                assert!(batch.global[crop(place, GLOBAL)] == expected.global[place * GLOBAL..][..GLOBAL]);
            }
            for place in 0..6 {
                assert!(batch.local[crop(place, LOCAL)] == expected.local[place * LOCAL..][..LOCAL]);
            }
        }
        let (config, grid) = masks().unwrap();
        let expected = masks_for_batch(12, grid, &config, &mut rng::stream(5, "masks", step)).unwrap();
        assert_eq!(batch.masks, Some(expected));
    }
}

#[test]
fn an_epoch_has_every_row_once_and_a_batch_may_span_many() {
    for (rows, size) in [(20, 6), (3, 8), (1, 4)] {
        let mut loader = start(Images::new(rows), BatchPlan::constant(size), &config(2), 0);
        let seen: Vec<u64> = take(&mut loader, 12)
            .into_iter()
            .flat_map(|batch| batch.rows)
            .collect();
        for epoch in seen.chunks_exact(rows as usize) {
            assert_eq!(
                BTreeSet::from_iter(epoch),
                BTreeSet::from_iter(&(0..rows).collect::<Vec<_>>())
            );
        }
    }
}

#[test]
fn crops_come_again_after_as_many_passes_as_requested() {
    let repeating = LoaderConfig {
        view_epochs: 2,
        ..config(2)
    };
    let images = |config: &LoaderConfig| {
        let mut loader = start(Images::new(6), BatchPlan::constant(6), config, 0);
        let mut by_view = std::collections::BTreeMap::<_, Vec<Vec<f32>>>::new();
        let mut order = Vec::new();
        for batch in take(&mut loader, 4) {
            order.push(batch.rows.clone());
            for sample in 0..6 {
                let view = (batch.rows[sample], batch.views[sample].unwrap());
                let crop = batch.global[sample * GLOBAL..][..GLOBAL].to_vec();
                by_view.entry(view).or_default().push(crop);
            }
        }
        (by_view, order)
    };
    let (views, order) = images(&repeating);
    assert_eq!(views.len(), 12);
    assert!(
        views
            .values()
            .all(|crops| crops.len() == 2 && crops[0] == crops[1])
    );
    assert!(order[0] != order[2], "the order is new");
    let (fresh, same_order) = images(&config(2));
    assert_eq!(fresh.len(), 24);
    assert_eq!(order, same_order);
    assert_eq!(fresh[&(3, 1)][0], views[&(3, 1)][0]);
    // What stands in for a damaged image has crops that no row and pass name.
    let mut loader = start(damaged(), BatchPlan::constant(13), &repeating, 0);
    let batch = take(&mut loader, 1).remove(0);
    assert_eq!(batch.views.iter().filter(|view| view.is_none()).count(), 3);
}

fn damaged() -> Images {
    Images {
        bad: [2, 3, 11].into(),
        delays: [0, 2, 1],
        ..Images::new(13)
    }
}

#[test]
fn neither_threads_nor_resuming_changes_a_batch() {
    let plan = BatchPlan::warmup(2, 9, 5);
    let one = take(&mut start(damaged(), plan, &config(1), 0), 9);
    assert_eq!(one[0].size, 2);
    assert_eq!(one[8].size, 9);
    let without_cache = LoaderConfig {
        cache_mb: 0,
        prefetch: 0,
        ..config(4)
    };
    assert!(take(&mut start(damaged(), plan, &config(4), 0), 9) == one);
    assert!(take(&mut start(damaged(), plan, &without_cache, 0), 9) == one);
    for first in [1, 3, 7] {
        assert!(
            take(&mut start(damaged(), plan, &config(3), first), 9 - first as usize) == one[first as usize..]
        );
    }
    let other = Loader::start(Arc::new(damaged()), crops(), None, plan, &config(2), 6, 0);
    let other = take(&mut other.unwrap(), 1);
    assert!(other[0].global != one[0].global && other[0].masks.is_none());
}

/// As `config`, for crops that the step makes.
fn planning(workers: usize) -> LoaderConfig {
    LoaderConfig {
        crops_on: CropsOn::Gpu,
        ..config(workers)
    }
}

#[test]
fn a_planned_batch_has_the_images_and_the_draws_of_its_rows() {
    let plan = BatchPlan::warmup(2, 9, 5);
    let made = take(&mut start(damaged(), plan, &config(2), 0), 9);
    let planned = take(&mut start(damaged(), plan, &planning(1), 0), 9);
    for (made, planned) in made.iter().zip(&planned) {
        assert_eq!((&made.rows, &made.views), (&planned.rows, &planned.views));
        assert_eq!((made.step, &made.masks), (planned.step, &planned.masks));
        assert!(planned.global.is_empty() && planned.local.is_empty() && made.planned.is_empty());
        assert_eq!(planned.planned.len(), made.size);
        for (sample, entry) in planned.planned.iter().enumerate() {
            let entry = entry.as_ref().unwrap();
            let expected = damaged().load(made.rows[sample], &DecodeOptions::default());
            assert_eq!(*entry.image, expected.unwrap());
            // Masks, replacements and crops were drawn as for the loader's own.
            for (place, crop) in entry.global.crops.iter().enumerate() {
                let pixels = crop
                    .plan
                    .apply(&entry.image, 8, crops().config().interpolation)
                    .unwrap();
                let values = crops().values();
                let first = values[usize::from(pixels.data()[0])];
                assert_eq!(first, made.global[(place * made.size + sample) * GLOBAL]);
            }
            assert_eq!(entry.local.crops.len(), 6);
        }
    }
    // Neither threads nor a cache nor resuming changes it.
    let without_cache = LoaderConfig {
        cache_mb: 0,
        prefetch: 0,
        ..planning(4)
    };
    assert!(take(&mut start(damaged(), plan, &planning(4), 0), 9) == planned);
    assert!(take(&mut start(damaged(), plan, &without_cache, 0), 9) == planned);
    assert!(take(&mut start(damaged(), plan, &planning(3), 4), 5) == planned[4..]);
}

#[test]
fn images_of_planned_batches_are_let_go() {
    let mut loader = start(Images::new(3), BatchPlan::constant(3), &planning(1), 0);
    let (batch, _) = loader.next().unwrap();
    let image = Arc::downgrade(&batch.planned[0].as_ref().unwrap().image);
    let pass = take(&mut loader, 1);
    assert_eq!(pass[0].planned.len(), 3);
    loader.recycle(batch);
    drop((pass, loader));
    assert!(image.upgrade().is_none());
}

#[test]
fn images_that_cannot_be_read_are_replaced_and_remembered_once() {
    let mut loader = start(damaged(), BatchPlan::constant(13), &config(3), 0);
    let batches = take(&mut loader, 4);
    for batch in &batches {
        assert!(batch.rows.iter().all(|row| ![2, 3, 11].contains(row)));
        // The rows that can be read are there, whatever took the place of the others.
        assert_eq!(BTreeSet::from_iter(&batch.rows).len(), 10);
        let crops: Vec<&[f32]> = batch.global.chunks_exact(GLOBAL).collect();
        assert!((0..crops.len()).all(|place| !crops[..place].contains(&crops[place])));
    }
    let rows: Vec<u64> = loader.bad_rows().iter().map(|bad| bad.row).collect();
    assert_eq!(rows, [2, 3, 11]);
    assert_eq!(loader.bad_rows()[2].error.to_string(), "11.png: damaged");
}

/// A folder of five images, of which those in `damaged` hold no pixels.
fn folder(damaged: &[usize]) -> tempfile::TempDir {
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/small.png");
    let folder = tempfile::tempdir().unwrap();
    for place in 0..5 {
        let path: PathBuf = folder.path().join(format!("{place}.png"));
        if damaged.contains(&place) {
            fs::write(path, &fs::read(&small).unwrap()[..60]).unwrap();
        } else {
            fs::copy(&small, path).unwrap();
        }
    }
    folder
}

fn start_folder(folder: &Path, on_error: OnError) -> Loader {
    let source: Arc<dyn Source> = open(folder.to_str().unwrap()).unwrap().into();
    let config = LoaderConfig {
        on_error,
        ..config(2)
    };
    Loader::start(source, crops(), None, BatchPlan::constant(5), &config, 1, 0).unwrap()
}

#[test]
fn a_damaged_file_is_replaced_or_ends_the_run() {
    let folder = folder(&[1]);
    let mut skipping = start_folder(folder.path(), OnError::Skip);
    assert!(
        take(&mut skipping, 3)
            .iter()
            .all(|batch| !batch.rows.contains(&1))
    );
    let bad = skipping.bad_rows();
    assert_eq!((bad.len(), bad[0].row), (1, 1));
    assert!(bad[0].error.path.ends_with("1.png"), "{:?}", bad[0]);

    let mut failing = start_folder(folder.path(), OnError::Fail);
    let error = failing.next().unwrap_err().to_string();
    assert!(
        error.contains("1.png: PNG") && error.ends_with("(row 1)"),
        "{error}"
    );
    let error = failing.next().unwrap_err().to_string();
    assert!(error.contains("stopped"), "{error}");
}

#[test]
fn a_source_without_a_readable_image_is_one_clear_error() {
    let folder = folder(&[0, 1, 2, 3, 4]);
    let mut loader = start_folder(folder.path(), OnError::Skip);
    let error = loader.next().unwrap_err().to_string();
    assert!(
        error.contains("no image drawn in its place") && !error.contains('\n'),
        "{error}"
    );
    assert_eq!(loader.bad_rows().len(), 5);
    assert_eq!(loader.bad_count(), 5);

    // Too many to try them all.
    let rows = 5000;
    let hopeless = Images {
        bad: (0..rows).collect(),
        ..Images::new(rows)
    };
    let mut loader = start(hopeless, BatchPlan::constant(2), &config(2), 0);
    let error = loader.next().unwrap_err().to_string();
    assert!(error.contains("no image drawn in its place"), "{error}");
    assert!(loader.bad_rows().len() < 3000);
}

#[test]
fn batches_before_a_failure_are_still_delivered() {
    let row = |number| Order::new(5, 40).unwrap().image(number).row;
    for workers in [1, 4] {
        let source = Images {
            bad: [row(9), row(10)].into(),
            ..Images::new(40)
        };
        let failing = LoaderConfig {
            on_error: OnError::Fail,
            ..config(workers)
        };
        let mut loader = start(source, BatchPlan::constant(4), &failing, 0);
        assert_eq!(take(&mut loader, 2).len(), 2);
        // The first of the two, however many threads meet them.
        let error = loader.next().unwrap_err().to_string();
        assert_eq!(error, format!("{0}.png: damaged (row {0})", row(9)));
    }
}

#[test]
fn a_panic_is_an_error_of_its_step() {
    let source = Images {
        panics: Some(Order::new(5, 40).unwrap().image(6).row),
        ..Images::new(40)
    };
    let mut loader = start(source, BatchPlan::constant(4), &config(2), 0);
    loader.next().unwrap();
    let error = loader.next().unwrap_err().to_string();
    assert!(error.contains("step 1") && error.contains("is a trap"), "{error}");
}

#[test]
fn a_full_loader_ends_at_once_and_reads_no_further_than_it_may() {
    let source = Arc::new(Images::new(1000));
    let reads = Arc::clone(&source);
    let config = LoaderConfig {
        prefetch: 1,
        ..config(3)
    };
    let loader = Loader::start(source, crops(), None, BatchPlan::constant(10), &config, 5, 0).unwrap();
    while reads.reads.load(Ordering::Relaxed) < 20 {
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(50));
    assert_eq!(reads.reads.load(Ordering::Relaxed), 20);
    let start = Instant::now();
    drop(loader);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(Arc::strong_count(&reads), 1);
}

#[test]
fn dropping_waits_for_the_images_in_work_only() {
    let slow = Images {
        delays: [20; 3],
        ..Images::new(1000)
    };
    let loader = start(slow, BatchPlan::constant(1000), &config(2), 0);
    let start = Instant::now();
    drop(loader);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn decoded_images_are_read_once_unless_they_lie_in_memory() {
    for (cache_mb, expected) in [(1, 10), (0, 50)] {
        let source = Arc::new(Images::new(10));
        let config = LoaderConfig {
            cache_mb,
            prefetch: 0,
            ..config(2)
        };
        let shared = Arc::clone(&source);
        let mut loader =
            Loader::start(shared, crops(), None, BatchPlan::constant(10), &config, 5, 0).unwrap();
        take(&mut loader, 5);
        drop(loader);
        // The batch in work may have read some of its images.
        let reads = source.reads.load(Ordering::Relaxed);
        assert!(
            (expected..=expected + 10 * u64::from(cache_mb == 0)).contains(&reads),
            "{reads}"
        );
    }
    assert!(open("sample:test").unwrap().in_memory());
    assert!(!Images::new(1).in_memory());
}

#[test]
fn settings_are_read_back_and_checked() {
    let text = "on_error = \"fail\"\nbackground = [255, 255, 255]\ncrops_on = \"gpu\"\n";
    let read: LoaderConfig = toml::from_str(text).unwrap();
    assert_eq!((read.on_error, read.background), (OnError::Fail, Some([255; 3])));
    assert_eq!(
        (read.crops_on, LoaderConfig::default().crops_on),
        (CropsOn::Gpu, CropsOn::Cpu)
    );
    assert_eq!(read.decode().background, Some([255; 3]));
    let read: LoaderConfig = toml::from_str("exif = true\nmax_pixels = 9").unwrap();
    assert_eq!((read.decode().exif, read.decode().max_pixels), (true, 9));
    assert_eq!(LoaderConfig::default().decode(), DecodeOptions::default());
    let default: LoaderConfig = toml::from_str("").unwrap();
    assert_eq!(default, LoaderConfig::default());
    let written = toml::to_string(&default).unwrap();
    assert_eq!(toml::from_str::<LoaderConfig>(&written).unwrap(), default);
    assert!(toml::from_str::<LoaderConfig>("worker = 1").is_err());
    for (text, field) in [
        ("workers = 2000", "workers"),
        ("prefetch = 65", "prefetch"),
        ("max_pixels = 0", "max_pixels"),
    ] {
        let config: LoaderConfig = toml::from_str(text).unwrap();
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field}: expected")), "{error}");
    }
    let grid = Grid { rows: 0, columns: 4 };
    let refused = |masks, plan| {
        Loader::start(Arc::new(Images::new(2)), crops(), masks, plan, &config(1), 0, 0)
            .err()
            .unwrap()
    };
    let error = refused(Some((MaskConfig::default(), grid)), BatchPlan::constant(2));
    assert!(error.to_string().contains("0 x 4"), "{error}");
    assert_eq!(refused(None, BatchPlan::constant(0)).exit_code(), 2);
}
