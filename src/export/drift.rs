//! How far a smaller file's features are from those in f32: cosines, k-NN and a linear probe on labelled images, size and
//! speed. No file whose features have drifted further than allowed is written.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use macula_eval::protocols::knn::{self, KnnConfig};
use macula_eval::protocols::logistic::{self, LogisticParams};
use macula_eval::{LabelSet, MatrixView, Split, TrainTest};
use rand::seq::SliceRandom as _;
use serde::Serialize;

use crate::data::{BatchReader, DecodeOptions, Preprocess, Source};
use crate::runtime::OnnxModel;
use crate::runtime::tensors::cosine;
use crate::{Error, Result, rng};

/// Images a run.
const BATCH: usize = 16;
/// Runs that are timed, in turn with those of the f32 file.
const TIMED_RUNS: usize = 5;
/// Share of the labelled images that are asked about.
const QUERY_SHARE: f64 = 0.25;
/// Regularisation of the probe (scikit-learn's C).
const PROBE_C: f64 = 1.;

/// A smaller file beside the f32 one.
#[derive(Debug, Clone, Serialize)]
pub struct DriftReport {
    /// Images compared.
    pub images: usize,
    /// Cosine to the f32 features, the mean over the images, of the output that lost most.
    pub mean_cosine: f64,
    /// The smallest cosine of any output and image.
    pub min_cosine: f64,
    /// The output that `mean_cosine` is of.
    pub output: String,
    /// Whether they are the images that the ranges of int8 were taken from, for want of others.
    pub images_shared: bool,
    /// Bytes of the f32 file.
    pub f32_bytes: u64,
    /// Its size over the f32 file's.
    pub size_ratio: f64,
    /// Images a second over the f32 file's, the median of runs in turn on the CPU.
    pub speed_ratio: f64,
    /// On labelled images, where there are some.
    pub labelled: Option<LabelledDrift>,
}

/// k-NN and a linear probe on the first output, f32 and now.
#[derive(Debug, Clone, Serialize)]
pub struct LabelledDrift {
    /// Images in the bank.
    pub n_train: usize,
    /// Images asked about.
    pub n_test: usize,
    /// k-NN (k = 20 or the bank) of the f32 features, 0 to 1.
    pub knn_f32: f64,
    /// k-NN of the file's.
    pub knn: f64,
    /// Logistic regression with C = 1, of the f32 features.
    pub probe_f32: f64,
    /// The same of the file's.
    pub probe: f64,
}

/// Images and, where all have one, their classes.
pub(super) struct Images {
    pub pixels: Vec<f32>, // [n, C, H, W]
    pub labels: Option<Vec<String>>,
    pub shape: [usize; 3],
    /// Whether they are from the beginning of the draw because nothing lay behind what was to be skipped.
    pub shared: bool,
}

impl Images {
    /// The images of `source` at the places `taken` of a draw with `seed`, prepared with `preprocess`; from the beginning of the
    /// draw where it ends before them.
    pub(super) fn draw(
        source: &dyn Source,
        preprocess: &Preprocess,
        taken: Range<usize>,
        seed: u64,
    ) -> Result<Self> {
        let reader = BatchReader::new(preprocess, &DecodeOptions::default())?;
        let (height, width) = reader.size();
        let mut rows: Vec<u64> = (0..source.len()).collect();
        rows.shuffle(&mut rng::stream(seed, "export-images", 0));
        // Too few for images of its own: the report says so.
        let shared = taken.start > 0 && rows.len() <= taken.start;
        let first = if shared { 0 } else { taken.start };
        let rows = &rows[first..rows.len().min(first.saturating_add(taken.len()))];
        Ok(Self {
            labels: rows.iter().map(|&row| source.record(row).label).collect(),
            pixels: reader.read_all(source, rows)?,
            shape: [reader.channels(), height, width],
            shared,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.pixels.len() / self.shape.iter().product::<usize>().max(1)
    }
}

/// An ONNX file that is open, and its size.
pub(super) struct OpenFile {
    /// The network.
    pub model: OnnxModel,
    /// Bytes of the file, and of those that it refers to.
    pub bytes: u64,
}

/// Compares `small` with `whole`, which give `outputs`.
pub(super) fn measure(
    small: &mut OpenFile,
    whole: &mut OpenFile,
    outputs: &[String],
    images: &Images,
) -> Result<DriftReport> {
    let found = features(&mut small.model, outputs, images)?;
    let expected = features(&mut whole.model, outputs, images)?;
    let n = images.len();
    let mut min_cosine = f64::INFINITY;
    let worst = outputs
        .iter()
        .zip(found.iter().zip(&expected))
        .map(|(output, (found, expected))| {
            let width = found.len() / n.max(1);
            let cosines: Vec<f64> = found
                .chunks_exact(width.max(1))
                .zip(expected.chunks_exact(width.max(1)))
                .map(|(a, b)| cosine(a, b))
                .collect();
            let mean = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
            min_cosine = cosines.iter().copied().fold(min_cosine, nan_min);
            (mean, output.clone())
        })
        .min_by(|a, b| nan_first(a.0, b.0));
    let (mean_cosine, output) =
        worst.ok_or_else(|| Error::setting("outputs", "expected at least one, found none"))?;
    let labelled = match &images.labels {
        Some(labels) => labelled_drift(&found[0], &expected[0], labels)?,
        None => None,
    };
    Ok(DriftReport {
        images: n,
        mean_cosine,
        min_cosine,
        output,
        images_shared: images.shared,
        f32_bytes: whole.bytes,
        size_ratio: small.bytes as f64 / whole.bytes.max(1) as f64,
        speed_ratio: speed_ratio(&mut small.model, &mut whole.model, outputs, images)?,
        labelled,
    })
}

/// Every output of all images, one buffer each.
fn features(model: &mut OnnxModel, outputs: &[String], images: &Images) -> Result<Vec<Vec<f32>>> {
    let [channels, height, width] = images.shape;
    let plane = channels * height * width;
    let mut all = vec![Vec::new(); outputs.len()];
    for batch in images.pixels.chunks(BATCH * plane) {
        let shape = [batch.len() / plane, channels, height, width];
        for (all, output) in all.iter_mut().zip(model.run(batch, shape, outputs)?) {
            all.extend_from_slice(&output.data);
        }
    }
    Ok(all)
}

fn speed_ratio(
    small: &mut OnnxModel,
    whole: &mut OnnxModel,
    outputs: &[String],
    images: &Images,
) -> Result<f64> {
    let [channels, height, width] = images.shape;
    let plane = channels * height * width;
    let n = images.len().min(BATCH);
    let batch = &images.pixels[..n * plane];
    let seconds = |model: &mut OnnxModel| {
        let start = Instant::now();
        model.run(batch, [n, channels, height, width], outputs)?;
        Ok::<f64, Error>(start.elapsed().as_secs_f64())
    };
    seconds(small)?;
    seconds(whole)?;
    let mut ratios = Vec::with_capacity(TIMED_RUNS);
    for _ in 0..TIMED_RUNS {
        let (new, old) = (seconds(small)?, seconds(whole)?);
        ratios.push(old / new.max(1e-9));
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios[TIMED_RUNS / 2])
}

/// k-NN and probe of both; none where there are too few images or one class.
fn labelled_drift(found: &[f32], expected: &[f32], labels: &[String]) -> Result<Option<LabelledDrift>> {
    let n = labels.len();
    let n_test = ((n as f64 * QUERY_SHARE) as usize).max(1);
    let n_train = n.saturating_sub(n_test);
    let classes = LabelSet::from_labels(labels.iter().map(String::as_str));
    let codes = classes.encode(labels.iter().map(String::as_str))?;
    let (train_labels, test_labels) = codes.split_at(n_train);
    let in_bank: std::collections::BTreeSet<u32> = train_labels.iter().copied().collect();
    if n_train < 2 || in_bank.len() < 2 || test_labels.iter().any(|class| !in_bank.contains(class)) {
        return Ok(None);
    }
    let score = |values: &[f32]| {
        let d = values.len() / n;
        let (train, test) = values.split_at(n_train * d);
        let data = TrainTest {
            train: Split::new(MatrixView::new(train, n_train, d)?, train_labels),
            test: Split::new(MatrixView::new(test, n_test, d)?, test_labels),
            n_classes: classes.len(),
        };
        let config = KnnConfig {
            ks: vec![20.min(n_train)],
            ..KnnConfig::default()
        };
        let by_neighbours = knn::evaluate(&data, &config)?;
        let params = LogisticParams::new(PROBE_C);
        let model = logistic::fit(data.train.features, train_labels, classes.len(), &params)?;
        let predicted = model.predict(data.test.features)?;
        let right = predicted.iter().zip(test_labels).filter(|(a, b)| a == b).count();
        Ok::<_, Error>((by_neighbours.rows[0].top1, right as f64 / n_test as f64))
    };
    let (knn, probe) = score(found)?;
    let (knn_f32, probe_f32) = score(expected)?;
    Ok(Some(LabelledDrift {
        n_train,
        n_test,
        knn_f32,
        knn,
        probe_f32,
        probe,
    }))
}

/// The smaller value, NaN before all: features that are no numbers must not pass.
fn nan_min(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.min(b)
    }
}

fn nan_first(a: f64, b: f64) -> std::cmp::Ordering {
    b.is_nan().cmp(&a.is_nan()).then(a.total_cmp(&b))
}

/// Fails where the features have drifted further than `max` (1 - mean cosine), or those of any one image further than `of_one`.
pub(super) fn refuse(path: &Path, report: &DriftReport, max: f64, of_one: Option<f64>) -> Result<()> {
    let limits = [
        (
            format!("output `{}` has a mean cosine", report.output),
            report.mean_cosine,
            Some(max),
        ),
        ("an image has a cosine".to_owned(), report.min_cosine, of_one),
    ];
    for (what, found, limit) in limits {
        let Some(limit) = limit else { continue };
        let drift = 1. - found;
        // NaN is a drift too.
        if drift.is_nan() || drift > limit {
            let reason = format!(
                "not written: {what} of {found:.7} to f32, a drift of {drift:.2e}, allowed {limit:.0e}; --max-drift allows more"
            );
            return Err(Error::failed(path.display().to_string(), reason));
        }
    }
    Ok(())
}
