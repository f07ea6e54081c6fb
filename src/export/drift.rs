//! How far a smaller file's features are from those in f32: cosines, k-NN and a linear probe on labelled images, size and
//! speed. No file whose features have drifted further than allowed is written.

use std::path::Path;
use std::time::Instant;

use macula_eval::protocols::knn::{self, KnnConfig};
use macula_eval::protocols::logistic::{self, LogisticParams};
use macula_eval::{LabelSet, MatrixView};
use rand::seq::SliceRandom as _;
use serde::Serialize;

use crate::data::{DecodeOptions, Preprocess, Source};
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
    /// The smallest cosine of that output.
    pub min_cosine: f64,
    /// Which output that is.
    pub output: String,
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
}

impl Images {
    /// `count` images of `source` drawn with `seed`, those behind the first `skip` of the draw, prepared with `preprocess`.
    pub(super) fn draw(
        source: &dyn Source,
        preprocess: &Preprocess,
        (skip, count): (usize, usize),
        seed: u64,
    ) -> Result<Self> {
        let (height, width) = preprocess
            .output_size()
            .ok_or_else(|| Error::input("--crop", "expected a size above 0, found none"))?;
        let mut rows: Vec<u64> = (0..source.len()).collect();
        rows.shuffle(&mut rng::stream(seed, "export-images", 0));
        let rows = match rows.len() > skip {
            true => &rows[skip..rows.len().min(skip + count)],
            // Too few for images of its own.
            false => &rows[..rows.len().min(count)],
        };
        let plane = 3 * height * width;
        let mut pixels = vec![0f32; rows.len() * plane];
        let mut labels = Vec::new();
        for (&row, out) in rows.iter().zip(pixels.chunks_exact_mut(plane)) {
            let image = source.load(row, &preprocess.decode_options(&DecodeOptions::default()))?;
            preprocess.write_tensor(&image, out)?;
            labels.extend(source.record(row).label);
        }
        Ok(Self {
            labels: (labels.len() == rows.len()).then_some(labels),
            pixels,
            shape: [3, height, width],
        })
    }

    pub(super) fn len(&self) -> usize {
        self.pixels.len() / self.shape.iter().product::<usize>().max(1)
    }
}

/// Compares `small` with `whole`, which give `outputs`.
pub(super) fn measure(
    (small, small_bytes): (&mut OnnxModel, u64),
    (whole, f32_bytes): (&mut OnnxModel, u64),
    outputs: &[String],
    images: &Images,
) -> Result<DriftReport> {
    let found = features(small, outputs, images)?;
    let expected = features(whole, outputs, images)?;
    let n = images.len();
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
            let min = cosines.iter().copied().fold(f64::INFINITY, f64::min);
            (mean, min, output.clone())
        })
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let (mean_cosine, min_cosine, output) =
        worst.ok_or_else(|| Error::input("--outputs", "expected at least one, found none"))?;
    let labelled = match &images.labels {
        Some(labels) => labelled_drift(&found[0], &expected[0], labels)?,
        None => None,
    };
    Ok(DriftReport {
        images: n,
        mean_cosine,
        min_cosine,
        output,
        f32_bytes,
        size_ratio: small_bytes as f64 / f32_bytes.max(1) as f64,
        speed_ratio: speed_ratio(small, whole, outputs, images)?,
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
        let (train, test) = (
            MatrixView::new(train, n_train, d)?,
            MatrixView::new(test, n_test, d)?,
        );
        let config = KnnConfig {
            ks: vec![20.min(n_train)],
            ..KnnConfig::default()
        };
        let by_neighbours = knn::evaluate(train, train_labels, test, test_labels, classes.len(), &config)?;
        let model = logistic::fit(train, train_labels, classes.len(), &LogisticParams::new(PROBE_C))?;
        let predicted = model.predict(test)?;
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

/// Fails where the features have drifted further than `most` (1 - mean cosine).
pub(super) fn refuse(path: &Path, report: &DriftReport, most: f64) -> Result<()> {
    let drift = 1. - report.mean_cosine;
    // NaN is a drift too.
    if drift <= most {
        return Ok(());
    }
    Err(Error::failed(
        path.display().to_string(),
        format!(
            "not written: output `{}` has a mean cosine of {:.5} to f32, a drift of {drift:.5}, allowed {most}; \
             --max-drift allows more",
            report.output, report.mean_cosine
        ),
    ))
}
