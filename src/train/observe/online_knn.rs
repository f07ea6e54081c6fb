//! Online k-NN: the accuracy of k-NN on a fixed labelled sample, with whatever features the network gives at that step. It
//! is the one number of a self-supervised run that says whether the features get better.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use macula_eval::protocols::knn::{self, KnnConfig};
use macula_eval::{LabelSet, MatrixView, Split, TrainTest};
use rand::seq::SliceRandom as _;

use super::features::Features;
use super::online_knn_config::{OnlineKnnConfig, QUERY_SHARE};
use crate::cluster::Ranks;
use crate::data::{
    self, BatchReader, DecodeOptions, ImageBatch, Preprocess, RowError, Source, SourceIdentity,
};
use crate::{Error, Result, rng};

/// Images given to the network at a time.
const BATCH: usize = 64;
/// Network input is kept in memory up to this many bytes; above, images are read again at every evaluation.
const KEPT_BYTES: usize = 512 << 20;

/// What one evaluation gives.
#[derive(Debug, Clone, PartialEq)]
pub struct OnlineKnnResult {
    /// Top-1 accuracy on the queries, 0 to 1.
    pub top1: f64,
    /// Lower end of its 95 % bootstrap interval over the queries.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Images in the bank.
    pub n_bank: usize,
    /// Images asked about.
    pub n_queries: usize,
    /// Features of the bank, then of the queries, `[n_bank + n_queries, d]`, for the meters.
    pub features: Vec<f32>,
    /// Width of the features.
    pub d: usize,
}

/// A labelled sample, ready to be evaluated again and again.
pub struct OnlineKnn {
    config: OnlineKnnConfig,
    source: Arc<dyn Source>,
    reader: BatchReader,
    sample: Sample,
    kept: Option<Vec<f32>>, // [sample, 3, H, W]
    classes: LabelSet,
    seed: u64,
}

/// Rows of the source and their classes: the bank, then the queries.
#[derive(Debug, Clone, Default, PartialEq)]
struct Sample {
    rows: Vec<u64>,
    labels: Vec<u32>,
    n_bank: usize,
}

impl OnlineKnn {
    /// Opens `config.data`; the rest as [`OnlineKnn::new`].
    ///
    /// # Errors
    /// As [`data::open`] and [`OnlineKnn::new`].
    pub fn open(
        config: OnlineKnnConfig,
        preprocess: Preprocess,
        decode: DecodeOptions,
        seed: u64,
    ) -> Result<Self> {
        config.validate()?;
        let source = Arc::from(data::open(&config.data)?);
        Self::new(source, config, preprocess, decode, seed)
    }

    /// Which labelled images it is measured on.
    pub fn images(&self) -> SourceIdentity {
        SourceIdentity::from_source(self.source.as_ref())
    }

    /// Draws the sample of `source` (named `config.data` in errors) and reads its images where they fit in memory. An image
    /// that cannot be read is left out, with a warning.
    ///
    /// # Errors
    /// A setting out of range; preprocessing without a crop, so that images differ in size; a drawn row without label, or
    /// a bank of fewer than two classes or without queries.
    pub fn new(
        source: Arc<dyn Source>,
        config: OnlineKnnConfig,
        preprocess: Preprocess,
        decode: DecodeOptions,
        seed: u64,
    ) -> Result<Self> {
        config.validate()?;
        let reader = BatchReader::new(&preprocess, &decode)
            .map_err(|error| Error::input("online_knn", error.to_string()))?;
        let (mut sample, classes) = draw(source.as_ref(), &config, seed)?;
        sample.check(&config.data, &classes)?;
        let bytes = sample.rows.len() * reader.image_len() * size_of::<f32>();
        let kept = if bytes <= KEPT_BYTES {
            let read = reader.read(source.as_ref(), &sample.rows);
            sample = sample.only(&read.places());
            warn(&config.data, read.errors.iter().flatten());
            Some(read.pixels)
        } else {
            None
        };
        sample.check(&config.data, &classes)?;
        Ok(Self {
            config,
            source,
            reader,
            sample,
            kept,
            classes,
            seed,
        })
    }

    /// Whether an evaluation is due after `step`.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.config.every)
    }

    /// Classifies the queries by their neighbours in the bank. `features_of` gives `[b, D]` of any float type on any
    /// device for network input `[b, C, H, W]`, f32 in the computer's memory. Each of `ranks` computes the features of some of the
    /// images, and all get the same result.
    ///
    /// # Errors
    /// What `features_of` says, features of another shape, or what the protocol says, as of features that are not finite; ranks that
    /// cannot reach each other.
    pub fn evaluate(
        &self,
        ranks: &dyn Ranks,
        mut features_of: impl FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<OnlineKnnResult> {
        let mut features = Features::default();
        let mut places = Vec::with_capacity(self.sample.rows.len());
        let mut failed: Vec<RowError> = Vec::new();
        let all: Vec<usize> = (0..self.sample.rows.len()).collect();
        for batch in all.chunks(BATCH).skip(ranks.rank()).step_by(ranks.size()) {
            let read = self.pixels(batch);
            let found = read.places();
            failed.extend(read.errors.into_iter().flatten());
            if found.is_empty() {
                continue;
            }
            let (height, width) = self.reader.size();
            let shape = (found.len(), self.reader.channels(), height, width);
            let input = Tensor::from_vec(read.pixels, shape, &Device::Cpu)?;
            features.append(&features_of(&input)?, found.len())?;
            places.extend(found.iter().map(|&place| batch[place]));
        }
        warn(&self.config.data, failed.iter());
        let (features, places) = features.of_ranks(ranks, places)?;
        let sample = self.sample.only(&places);
        sample.check(&self.config.data, &self.classes)?;
        self.classify(features, &sample)
    }

    /// Network input of some of the sample.
    fn pixels(&self, places: &[usize]) -> ImageBatch {
        match &self.kept {
            Some(kept) => {
                let len = self.reader.image_len();
                let image = |&place: &usize| kept[place * len..(place + 1) * len].iter().copied();
                ImageBatch {
                    pixels: places.iter().flat_map(image).collect(),
                    errors: vec![None; places.len()],
                }
            }
            None => {
                let rows: Vec<u64> = places.iter().map(|&place| self.sample.rows[place]).collect();
                self.reader.read(self.source.as_ref(), &rows)
            }
        }
    }

    fn classify(&self, features: Features, sample: &Sample) -> Result<OnlineKnnResult> {
        let d = features.d;
        let (bank, queries) = features.data.split_at(sample.n_bank * d);
        let (bank_labels, query_labels) = sample.labels.split_at(sample.n_bank);
        let data = TrainTest {
            train: Split::new(MatrixView::new(bank, bank_labels.len(), d)?, bank_labels),
            test: Split::new(MatrixView::new(queries, query_labels.len(), d)?, query_labels),
            n_classes: self.classes.len(),
        };
        let config = KnnConfig {
            ks: vec![self.config.k.min(sample.n_bank)],
            temperature: self.config.temperature,
            seed: self.seed,
            // A small sample of many classes may draw all images of one as queries.
            allow_unknown_labels: true,
            ..KnnConfig::default()
        };
        let result = knn::evaluate(&data, &config)?;
        let row = &result.rows[0];
        Ok(OnlineKnnResult {
            top1: row.top1,
            low: row.top1_low,
            high: row.top1_high,
            n_bank: bank_labels.len(),
            n_queries: query_labels.len(),
            features: features.data,
            d,
        })
    }
}

/// Draws rows without regard to class, and numbers their classes.
fn draw(source: &dyn Source, config: &OnlineKnnConfig, seed: u64) -> Result<(Sample, LabelSet)> {
    let mut rows: Vec<u64> = (0..source.len()).collect();
    let (drawn, _) = rows.partial_shuffle(&mut rng::stream(seed, "online-knn", 0), config.max_images);
    let n_bank = drawn.len() - drawn.len() / QUERY_SHARE;
    let (bank, queries) = drawn.split_at_mut(n_bank);
    // Files are read in the order they lie in.
    bank.sort_unstable();
    queries.sort_unstable();
    let rows = drawn.to_vec();
    let mut names = Vec::with_capacity(rows.len());
    for &row in &rows {
        let record = source.record(row);
        names.push(record.label.ok_or_else(|| {
            let reason = format!("online k-NN needs labels, found none for {}", record.path);
            Error::input(&config.data, reason)
        })?);
    }
    let classes = LabelSet::from_labels(names.iter().map(String::as_str));
    let labels = classes.encode(names.iter().map(String::as_str))?;
    let sample = Sample { rows, labels, n_bank };
    Ok((sample, classes))
}

fn warn<'a>(data: &str, mut failed: impl Iterator<Item = &'a RowError>) {
    if let Some(first) = failed.next() {
        let count = 1 + failed.count();
        tracing::warn!(
            "{data}: {count} images cannot be read and are left out of online k-NN, first {first}"
        );
    }
}

impl Sample {
    /// The part of the sample at `places`, ascending.
    fn only(&self, places: &[usize]) -> Self {
        Self {
            rows: places.iter().map(|&place| self.rows[place]).collect(),
            labels: places.iter().map(|&place| self.labels[place]).collect(),
            n_bank: places.partition_point(|&place| place < self.n_bank),
        }
    }

    /// Refuses what cannot be classified: no queries, or one class in the bank.
    fn check(&self, data: &str, classes: &LabelSet) -> Result<()> {
        let bank = &self.labels[..self.n_bank];
        let n_queries = self.labels.len() - self.n_bank;
        if n_queries == 0 || bank.is_empty() {
            let reason = format!(
                "online k-NN needs at least {QUERY_SHARE} labelled images that can be read, found {}",
                self.labels.len()
            );
            return Err(Error::input(data, reason));
        }
        if bank.iter().all(|label| *label == bank[0]) {
            let reason = format!(
                "online k-NN needs at least two classes, found only `{}` in a sample of {} images",
                classes.names[bank[0] as usize],
                bank.len()
            );
            return Err(Error::input(data, reason));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "online_knn_tests.rs"]
mod tests;
