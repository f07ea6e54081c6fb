//! The pipeline: decode and transform on all cores ahead of the model, the model, and the sink that takes its features, joined by bounded
//! queues, so that memory does not grow with the source and no stage waits for another's whole work.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::batch::BatchSize;
use super::folder::{
    FORMAT_VERSION, Features, FolderWriter, Layout, Meta, OutputSpec, STORED, ShardMeta, unusable,
};
use super::model::FeatureModel;
use super::sink::{FeatureSink, MatrixSink, PartRows};
use crate::data::{BatchReader, DecodeOptions, Preprocess, Record, Source, SourceIdentity};
use crate::device::Dtype;
use crate::identity::Fingerprint;
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Batches that may wait between two stages.
const QUEUE: usize = 2;
/// A part holds at most this many bytes of features, so that memory is bounded whatever the outputs.
const PART_BYTES: usize = 64 << 20;
/// A part holds at most this many rows.
const PART_ROWS: usize = 16_384;

/// What happens when an image cannot be read, or has features that cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ErrorPolicy {
    /// Stop, and say which file.
    Fail,
    /// Leave the row out.
    Skip,
    /// Keep the row with null features.
    Null,
}

impl ErrorPolicy {
    fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Skip => "skip",
            Self::Null => "null",
        }
    }
}

/// A share of the source: rows `index, index + count, ..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Number of this shard, from 0.
    pub index: u64,
    /// Number of shards.
    pub count: u64,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("expected i/n with 0 <= i < n, found `{text}`");
        let (index, count) = text.split_once('/').ok_or_else(wrong)?;
        let index = index.parse().map_err(|_| wrong())?;
        let count = count.parse().map_err(|_| wrong())?;
        if index >= count {
            return Err(wrong());
        }
        Ok(Self { index, count })
    }
}

/// How to extract.
#[derive(Debug, Clone)]
pub struct ExtractOptions {
    /// Images per run of the model.
    pub batch_size: BatchSize,
    /// What happens when an image cannot be read, or has features that are not finite or too large for `dtype`.
    pub on_error: ErrorPolicy,
    /// Share of the source; `None` takes all of it.
    pub shard: Option<Shard>,
    /// Replace a feature folder that exists.
    pub force: bool,
    /// Continue a feature folder after its last finished part.
    pub resume: bool,
    /// Which files are written.
    pub layout: Layout,
    /// What values are stored in.
    pub dtype: Dtype,
    /// Decoding of images.
    pub decode: DecodeOptions,
    /// Decode JPEGs at a fraction of their size that still holds what the preprocessing resizes to.
    pub fast_decode: bool,
}

impl ExtractOptions {
    /// How images are decoded for `preprocess`.
    fn decode_for(&self, preprocess: &Preprocess) -> Result<DecodeOptions> {
        let decode = preprocess.decode_options(&self.decode);
        decode.check_bands()?;
        if !self.fast_decode {
            return Ok(decode);
        }
        let resize = preprocess.resize.ok_or_else(|| {
            Error::setting(
                "fast_decode",
                "expected a model whose images are resized, found one that takes them as they are",
            )
        })?;
        Ok(DecodeOptions {
            jpeg_shorter_side: Some(resize.longest_needed()),
            ..decode
        })
    }
}

/// What an extraction did.
#[derive(Debug, Clone)]
pub struct ExtractReport {
    /// The folder's description.
    pub meta: Meta,
    /// Rows read in this run (a resumed run reads only what was missing).
    pub n_read: u64,
    /// Wall time of this run.
    pub elapsed: Duration,
    /// Part of it in which the model waited for images.
    pub data_wait: Duration,
    /// Time of each stage.
    pub stages: StageTimes,
}

/// Time spent in each stage of an extraction. Decoding and transforming run on all threads at once, and their times add up
/// over the threads; the model and the writer have a thread each.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StageTimes {
    /// Reading and decoding, over all threads.
    pub decode: Duration,
    /// Resizing, cropping and normalising, over all threads.
    pub transform: Duration,
    /// The model.
    pub infer: Duration,
    /// Writing parts.
    pub write: Duration,
}

/// Extracts the features of `source` with `model` into the feature folder `out`.
///
/// Rows are independent of one another: an image's features do not depend on `on_error` or on failed neighbours.
///
/// # Errors
/// A bad option, a failed image under [`ErrorPolicy::Fail`] (named), or what the model or the system says. Finished
/// parts stay; a folder without any is removed.
pub fn extract(
    source: &dyn Source,
    model: &mut dyn FeatureModel,
    preprocess: &Preprocess,
    options: &ExtractOptions,
    out: &Path,
) -> Result<ExtractReport> {
    options.dtype.check("dtype", &STORED)?;
    let decode = options.decode_for(preprocess)?;
    let reader = BatchReader::new(preprocess, &decode)?;
    let shard = options.shard.unwrap_or(Shard { index: 0, count: 1 });
    let meta = describe(source, model, preprocess, &decode, options, shard)?;
    let folder = match options.shard {
        Some(shard) => out.join(format!("shard-{:05}-of-{:05}", shard.index, shard.count)),
        None => out.to_owned(),
    };
    let mut writer = FolderWriter::open(&folder, meta.clone(), options.force, options.resume)?;
    let started = Instant::now();
    let finished = writer.finished_rows();
    let batch_size = match finished < meta.n_rows {
        true => options.batch_size.resolve(model, reader.image_len())?,
        false => 1,
    };
    let progress = progress_bar(meta.n_rows, finished);
    let plan = Plan {
        source,
        reader,
        on_error: options.on_error,
        dtype: options.dtype,
        shard,
        rows: finished..meta.n_rows,
        part_rows: meta.part_rows,
        batch_size,
    };
    match run(&plan, model, &mut writer, &progress) {
        Ok(times) => {
            progress.finish_and_clear();
            Ok(ExtractReport {
                meta: writer.finish()?,
                n_read: plan.rows.end - plan.rows.start,
                elapsed: started.elapsed(),
                data_wait: times.wait,
                stages: StageTimes {
                    decode: plan.reader.decode_time(),
                    transform: plan.reader.prepare_time(),
                    infer: times.infer,
                    write: times.write,
                },
            })
        }
        Err(error) => {
            progress.abandon();
            writer.abandon();
            Err(error)
        }
    }
}

/// The features of all rows of `source` in output number `output` of `model`, in memory. Of `options` those count that say how
/// images are read and what happens when one cannot be.
///
/// # Errors
/// As [`extract`]; no row with features.
pub fn extract_matrix(
    source: &dyn Source,
    model: &mut dyn FeatureModel,
    preprocess: &Preprocess,
    options: &ExtractOptions,
    output: usize,
) -> Result<Features> {
    let reader = BatchReader::new(preprocess, &options.decode_for(preprocess)?)?;
    let n_rows = source.len();
    let plan = Plan {
        source,
        on_error: options.on_error,
        dtype: options.dtype,
        shard: Shard { index: 0, count: 1 },
        rows: 0..n_rows,
        part_rows: part_rows(model.outputs()),
        batch_size: options.batch_size.resolve(model, reader.image_len())?,
        reader,
    };
    let mut sink = MatrixSink::new(output, model.outputs()[output].width());
    let progress = progress_bar(n_rows, 0);
    run(&plan, model, &mut sink, &progress)?;
    progress.finish_and_clear();
    sink.finish()
}

/// Rows of a part: as many as fit its memory.
fn part_rows(outputs: &[OutputSpec]) -> u64 {
    let width: usize = outputs.iter().map(OutputSpec::width).sum();
    (PART_BYTES / (4 * width.max(1))).clamp(1, PART_ROWS) as u64
}

fn describe(
    source: &dyn Source,
    model: &dyn FeatureModel,
    preprocess: &Preprocess,
    decode: &DecodeOptions,
    options: &ExtractOptions,
    shard: Shard,
) -> Result<Meta> {
    let n_rows = source.len().saturating_sub(shard.index).div_ceil(shard.count);
    let model_description = model.describe();
    let images = SourceIdentity::from_source(source);
    let fingerprint = Fingerprint::new(&model_description, preprocess, decode, images)?;
    Ok(Meta {
        format_version: FORMAT_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        fingerprint: Some(fingerprint),
        model: model_description,
        preprocess: describe_preprocess(preprocess, options)?,
        outputs: model.outputs().to_vec(),
        source: source.describe(),
        n_rows,
        shard: ShardMeta {
            index: shard.index,
            count: shard.count,
        },
        part_rows: part_rows(model.outputs()),
        on_error: options.on_error.name().to_owned(),
        layout: options.layout,
        dtype: options.dtype,
        n_written: None,
        n_failed: None,
    })
}

/// The preprocessing, and what was asked for in decoding, for people; what is compared is the fingerprint.
fn describe_preprocess(preprocess: &Preprocess, options: &ExtractOptions) -> Result<serde_json::Value> {
    let mut value =
        serde_json::to_value(preprocess).map_err(|e| Error::failed("preprocess", e.to_string()))?;
    if let Some(background) = options.decode.background {
        value["background"] = serde_json::json!(background);
    }
    if options.fast_decode {
        value["fast_decode"] = serde_json::json!(true);
    }
    Ok(value)
}

fn progress_bar(total: u64, done: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} images, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style);
    bar.set_position(done);
    bar.reset_eta();
    bar
}

/// What is to be read, and how: rows of the shard, cut into parts and batches.
struct Plan<'a> {
    source: &'a dyn Source,
    reader: BatchReader,
    on_error: ErrorPolicy,
    dtype: Dtype,
    shard: Shard,
    rows: std::ops::Range<u64>,
    part_rows: u64,
    batch_size: usize,
}

/// Images of consecutive rows of the shard, ready for the model.
struct Batch {
    records: Vec<Record>,
    errors: Vec<Option<String>>,
    /// [n, C, H, W] of the rows without error, one after another.
    pixels: Vec<f32>,
    ends_part: bool,
}

/// Times of the stages that have a thread each.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    /// The model's, waiting for images.
    wait: Duration,
    /// The model's, at work.
    infer: Duration,
    /// The sink's.
    write: Duration,
}

fn run(
    plan: &Plan<'_>,
    model: &mut dyn FeatureModel,
    sink: &mut dyn FeatureSink,
    progress: &ProgressBar,
) -> Result<Times> {
    std::thread::scope(|scope| {
        let (batches_in, batches) = sync_channel(QUEUE);
        let (parts, parts_out) = sync_channel::<PartRows>(1);
        scope.spawn(move || load(plan, &batches_in));
        let written = scope.spawn(move || -> Result<Duration> {
            let mut spent = Duration::ZERO;
            for part in parts_out {
                let start = Instant::now();
                sink.write(part)?;
                spent += start.elapsed();
            }
            Ok(spent)
        });
        let inferred = infer(&batches, plan, model, &parts, progress);
        // Both ends are dropped so that the loader stops on an error and the writer ends when all is written.
        drop(batches);
        drop(parts);
        let written = written
            .join()
            .map_err(|_| Error::failed("writer", "stopped unexpectedly"))?;
        // The writer's error is the cause when it closed the queue under the model.
        let write = written?;
        Ok(Times { write, ..inferred? })
    })
}

fn load(plan: &Plan<'_>, batches: &SyncSender<Batch>) {
    let mut row = plan.rows.start;
    while row < plan.rows.end {
        let part_end = ((row / plan.part_rows + 1) * plan.part_rows).min(plan.rows.end);
        let end = (row + plan.batch_size as u64).min(part_end);
        let batch = load_batch(plan, row..end, end == part_end);
        // A closed queue means that the model has stopped: nothing more is wanted.
        if batches.send(batch).is_err() {
            return;
        }
        row = end;
    }
}

fn load_batch(plan: &Plan<'_>, rows: std::ops::Range<u64>, ends_part: bool) -> Batch {
    let rows: Vec<u64> = rows
        .map(|row| plan.shard.index + row * plan.shard.count)
        .collect();
    let read = plan.reader.read(plan.source, &rows);
    let errors = read.errors.into_iter();
    Batch {
        records: rows.into_iter().map(|row| plan.source.record(row)).collect(),
        errors: errors.map(|error| error.map(|error| error.reason)).collect(),
        pixels: read.pixels,
        ends_part,
    }
}

fn infer(
    batches: &Receiver<Batch>,
    plan: &Plan<'_>,
    model: &mut dyn FeatureModel,
    parts: &SyncSender<PartRows>,
    progress: &ProgressBar,
) -> Result<Times> {
    let n_outputs = model.outputs().len();
    let empty_part = || PartRows {
        values: vec![Vec::new(); n_outputs],
        ..PartRows::default()
    };
    let mut part = empty_part();
    let mut times = Times::default();
    loop {
        let start = Instant::now();
        let Ok(batch) = batches.recv() else { break };
        times.wait += start.elapsed();
        let n_rows = batch.records.len() as u64;
        let ends_part = batch.ends_part;
        times.infer += features(batch, plan, model, &mut part)?;
        if ends_part {
            let full = std::mem::replace(&mut part, empty_part());
            if parts.send(full).is_err() {
                return Err(Error::failed("writer", "stopped; see the error before"));
            }
        }
        progress.inc(n_rows);
    }
    Ok(times)
}

/// Adds the rows of a batch and their features to the part; gives the time that the model took.
fn features(
    mut batch: Batch,
    plan: &Plan<'_>,
    model: &mut dyn FeatureModel,
    part: &mut PartRows,
) -> Result<Duration> {
    let policy = plan.on_error;
    if policy == ErrorPolicy::Fail {
        let mut rows = batch.records.iter().zip(&batch.errors);
        if let Some((record, Some(reason))) = rows.find(|(_, error)| error.is_some()) {
            return Err(failed_row(record, reason));
        }
    }
    let places: Vec<usize> = (0..batch.records.len())
        .filter(|&place| batch.errors[place].is_none())
        .collect();
    let mut took = Duration::ZERO;
    if !places.is_empty() {
        let before: Vec<usize> = part.values.iter().map(Vec::len).collect();
        let start = Instant::now();
        model.run(&batch.pixels, places.len(), &mut part.values)?;
        took = start.elapsed();
        let found = take_unusable(&mut part.values, &before, model.outputs(), plan.dtype);
        for (image, reason) in found {
            batch.errors[places[image]] = Some(reason);
        }
    }
    add_rows(batch, policy, part)?;
    Ok(took)
}

/// The images of which a feature cannot be stored, ascending, with the reason; their values are taken out of every output.
/// `before` is what each output held without them.
fn take_unusable(
    values: &mut [Vec<f32>],
    before: &[usize],
    outputs: &[OutputSpec],
    dtype: Dtype,
) -> Vec<(usize, String)> {
    let mut found = BTreeMap::new();
    for ((values, &before), output) in values.iter().zip(before).zip(outputs) {
        for (image, row) in values[before..].chunks_exact(output.width()).enumerate() {
            if let Some((place, why)) = unusable(dtype, row) {
                found.entry(image).or_insert_with(|| {
                    format!(
                        "output `{}`: {why} at place {place} of {}",
                        output.name,
                        row.len()
                    )
                });
            }
        }
    }
    // From the last, so that the earlier ones stay where they are.
    for &image in found.keys().rev() {
        for ((values, &before), output) in values.iter_mut().zip(before).zip(outputs) {
            let start = before + image * output.width();
            values.drain(start..start + output.width());
        }
    }
    found.into_iter().collect()
}

fn failed_row(record: &Record, reason: &str) -> Error {
    Error::failed(record.path.clone(), format!("{reason} (row {})", record.row))
}

/// Enters the rows of a batch into the part.
fn add_rows(batch: Batch, policy: ErrorPolicy, part: &mut PartRows) -> Result<()> {
    for (record, error) in batch.records.into_iter().zip(batch.errors) {
        let present = error.is_none();
        if let Some(reason) = error {
            if policy == ErrorPolicy::Fail {
                return Err(failed_row(&record, &reason));
            }
            part.errors.push((record.row, record.path.clone(), reason));
            if policy == ErrorPolicy::Skip {
                continue;
            }
        }
        part.rows.push(record.row);
        part.paths.push(record.path);
        part.labels.push(record.label);
        part.present.push(present);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs() -> [OutputSpec; 2] {
        [("cls", vec![2]), ("patch", vec![2, 2])].map(|(name, shape)| OutputSpec {
            name: name.to_owned(),
            shape,
        })
    }

    #[test]
    fn unusable_images_leave_every_output_and_name_the_first_fault() {
        let mut values = [
            vec![9.0, 9.0, 1.0, 1.0, 2.0, f32::NAN, 3.0, 3.0, 4.0, 4.0],
            [
                vec![9.0; 4],
                vec![1.0; 4],
                vec![2.0; 4],
                vec![3.0, 3.0, f32::NEG_INFINITY, 3.0],
                vec![4.0; 4],
            ]
            .concat(),
        ];
        let found = take_unusable(&mut values, &[2, 4], &outputs(), Dtype::F32);
        assert_eq!(
            found,
            [
                (
                    1,
                    "output `cls`: expected finite values, found NaN at place 1 of 2".to_owned()
                ),
                (
                    2,
                    "output `patch`: expected finite values, found -inf at place 2 of 4".to_owned()
                ),
            ]
        );
        assert_eq!(values[0], [9.0, 9.0, 1.0, 1.0, 4.0, 4.0]);
        assert_eq!(values[1], [vec![9.0; 4], vec![1.0; 4], vec![4.0; 4]].concat());
    }

    #[test]
    fn what_f16_cannot_hold_is_unusable_in_f16_alone() {
        let values = || [vec![65_504.0, -65_504.0, 0.0, -65_505.0], vec![0.0; 8]];
        assert!(take_unusable(&mut values(), &[0, 0], &outputs(), Dtype::F32).is_empty());
        let mut halves = values();
        let found = take_unusable(&mut halves, &[0, 0], &outputs(), Dtype::F16);
        assert_eq!(
            found,
            [(
                1,
                "output `cls`: expected values up to 65504 for f16, found -65505 at place 1 of 2".to_owned()
            )]
        );
        assert_eq!(halves[0], [65_504.0, -65_504.0]);
        assert!(
            halves[0]
                .iter()
                .all(|value| half::f16::from_f32(*value).is_finite())
        );
    }
}
