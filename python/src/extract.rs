//! Feature folders: written by the pipeline of the command, or from rows that others computed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use macula::data;
use macula::device::Dtype;
use macula::extract::folder::{FORMAT_VERSION, FolderWriter, ShardMeta};
use macula::extract::model::{self, DerivedModel, OpenModel};
use macula::extract::{
    ExtractOptions, FeatureModel, FeatureSink as _, Layout, Meta, OutputSpec, PartRows, Shard,
};
use macula::{Error, Result};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::arrays::numbers;
use crate::errors::returned;
use crate::interruptible::{self, stopped};
use crate::pools;
use crate::settings::Settings;

/// Rows of a part of a folder that is collected.
const PART_ROWS: usize = 16_384;

/// A model that can be told to stop, and counts its images.
struct Watched {
    model: Box<dyn FeatureModel>,
    stop: Arc<AtomicBool>,
    images: Arc<AtomicU64>,
}

impl FeatureModel for Watched {
    fn outputs(&self) -> &[OutputSpec] {
        self.model.outputs()
    }

    fn describe(&self) -> serde_json::Value {
        self.model.describe()
    }

    fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        if self.stop.load(Ordering::SeqCst) {
            return Err(stopped());
        }
        self.model.run(pixels, n, outputs)?;
        self.images.fetch_add(n as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Extracts the features of the source `data` into the folder `out`, with settings as JSON. `tick` is called with the number
/// of images so far and of all. Gives a summary as JSON.
#[pyfunction]
#[pyo3(signature = (data, spec, out, settings, tick=None))]
pub fn extract(
    py: Python<'_>,
    data: String,
    spec: String,
    out: PathBuf,
    settings: &str,
    tick: Option<Py<PyAny>>,
) -> PyResult<String> {
    let mut settings = returned(Settings::parse(settings))?;
    let (stop, images, all) = (
        Arc::new(AtomicBool::new(false)),
        Arc::default(),
        AtomicU64::new(0),
    );
    let (stop_model, counted) = (Arc::clone(&stop), Arc::clone(&images));
    let work = || -> Result<String> {
        pools::check_not_forked("extract")?;
        let threads = pools::count(settings.or("threads", 0)?)?;
        let options = settings.model(threads)?;
        let normalize = settings.or("normalize", false)?;
        let extract_options = ExtractOptions {
            batch_size: settings.batch_size()?,
            on_error: settings.on_error()?,
            shard: settings.read::<Shard>("shard")?,
            force: settings.or("force", false)?,
            resume: settings.or("resume", false)?,
            layout: settings.or("layout", Layout::Parquet)?,
            dtype: settings.or("dtype", Dtype::F32)?,
            decode: settings.decode()?,
            fast_decode: settings.or("fast_decode", false)?,
        };
        settings.end()?;
        pools::shared(threads)?.install(|| {
            let source = data::open(&data)?;
            all.store(source.len(), Ordering::Relaxed);
            let OpenModel {
                model: opened,
                preprocess,
            } = model::open(&spec, source.as_ref(), &options)?;
            let mut opened: Box<dyn FeatureModel> = opened;
            if normalize {
                opened = Box::new(DerivedModel::normalized(opened));
            }
            let mut watched = Watched {
                model: opened,
                stop: stop_model,
                images: counted,
            };
            let report =
                macula::extract::extract(source.as_ref(), &mut watched, &preprocess, &extract_options, &out)?;
            Ok(serde_json::json!({
                "n_read": report.n_read,
                "seconds": report.elapsed.as_secs_f64(),
                "data_wait": report.data_wait.as_secs_f64(),
            })
            .to_string())
        })
    };
    let look = tick.map(|tick| Tick { tick });
    let seen = || (images.load(Ordering::Relaxed), all.load(Ordering::Relaxed));
    match look {
        None => interruptible::run(py, None, &stop, work),
        Some(look) => interruptible::run_with(py, &stop, work, |py| look.call(py, seen())),
    }
}

/// Python's function that is told how far work is.
struct Tick {
    tick: Py<PyAny>,
}

impl Tick {
    fn call(&self, py: Python<'_>, seen: (u64, u64)) -> PyResult<()> {
        self.tick.call1(py, seen).map(|_| ())
    }
}

/// Writes the feature folder `out` from rows that others computed: `outputs` are name, shape of a row and values
/// `[n * width]`; `model`, `preprocess` and `source` are JSON for `meta.json`.
#[pyfunction]
#[expect(
    clippy::too_many_arguments,
    reason = "the columns of a folder and what is said of them"
)]
pub fn collect(
    py: Python<'_>,
    out: PathBuf,
    rows: Vec<u64>,
    paths: Vec<String>,
    labels: Vec<Option<String>>,
    outputs: Vec<(String, Vec<usize>, PyBackedBytes)>,
    description: (String, String, String),
    force: bool,
) -> PyResult<()> {
    let columns: Result<Vec<(OutputSpec, &[f32])>> = outputs
        .iter()
        .map(|(name, shape, values)| {
            let (name, shape) = (name.clone(), shape.clone());
            Ok((OutputSpec { name, shape }, numbers(values)?))
        })
        .collect();
    let columns = returned(columns)?;
    returned(pools::check_not_forked("collect"))?;
    returned(py.detach(|| write(out, &rows, &paths, &labels, &columns, &description, force)))
}

fn write(
    out: PathBuf,
    rows: &[u64],
    paths: &[String],
    labels: &[Option<String>],
    columns: &[(OutputSpec, &[f32])],
    (model, preprocess, source): &(String, String, String),
    force: bool,
) -> Result<()> {
    let n = rows.len();
    let fits = |(spec, values): &(OutputSpec, &[f32])| values.len() == n * spec.width() && spec.width() > 0;
    if n == 0 || paths.len() != n || labels.len() != n || columns.is_empty() || !columns.iter().all(fits) {
        return Err(Error::input(
            out.display().to_string(),
            "expected at least one row, and columns of one length",
        ));
    }
    let json = |what: &str, text: &str| {
        serde_json::from_str(text).map_err(|error| Error::input(what, error.to_string()))
    };
    let meta = Meta {
        format_version: FORMAT_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        model: json("model", model)?,
        preprocess: json("preprocess", preprocess)?,
        outputs: columns.iter().map(|(spec, _)| spec.clone()).collect(),
        source: json("source", source)?,
        fingerprint: None,
        n_rows: n as u64,
        shard: ShardMeta { index: 0, count: 1 },
        part_rows: PART_ROWS as u64,
        on_error: "fail".to_owned(),
        layout: Layout::Parquet,
        dtype: Dtype::F32,
        n_written: None,
        n_failed: None,
    };
    let mut writer = FolderWriter::open(&out, meta, force, false)?;
    for first in (0..n).step_by(PART_ROWS) {
        let part = first..(first + PART_ROWS).min(n);
        let values = columns
            .iter()
            .map(|(spec, values)| values[part.start * spec.width()..part.end * spec.width()].to_vec());
        writer.write(PartRows {
            rows: rows[part.clone()].to_vec(),
            paths: paths[part.clone()].to_vec(),
            labels: labels[part.clone()].to_vec(),
            present: vec![true; part.len()],
            values: values.collect(),
            errors: Vec::new(),
        })?;
    }
    writer.finish().map(|_| ())
}
