//! Export with proof: the ONNX file is run beside the candle network on random input and on real images, and reaches
//! its final name only when both agree. A file in f16 or int8 is run beside the f32 file instead, on images of the user's:
//! `calibrate` finds the ranges that int8 needs, `drift` says what the smaller file loses.

mod calibrate;
mod drift;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use candle_core::Tensor;
use macula_models::onnx::{self, ExportOptions, ImageShape, Numbers, OutputKind};
use macula_models::vit::{VisionTransformer, VitConfig};
use macula_models::weights::Checkpoint;
use rand::Rng as _;
use serde::Serialize;

use crate::data::transform::Resize;
use crate::data::{self, DecodeOptions, Preprocess};
use crate::files::refuse_existing;
use crate::runtime::tensors::cosine;
use crate::runtime::{OnnxModel, Precision, Runtime, RuntimeOptions, SessionOptions};
use crate::{Error, Result, rng};
use drift::Images;

pub use calibrate::LayerLoss;
pub use drift::{DriftReport, LabelledDrift};

/// What a file's matrices are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats, computed with in f32.
    F16,
    /// 8-bit integers in the products of linear layers.
    Int8,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        [Self::F32, Self::F16, Self::Int8]
            .into_iter()
            .find(|dtype| dtype.to_string() == text)
            .ok_or_else(|| format!("expected f32, f16 or int8, found `{text}`"))
    }
}

/// How a file in f16 or int8 is made and judged.
#[derive(Debug, Clone)]
pub struct SmallRequest {
    /// Images for the ranges of int8 and for the comparison, as `--data` names them.
    pub data: String,
    /// Images that ranges are taken from.
    pub calibration_images: usize,
    /// Images that both files are compared on, others than those where there are enough.
    pub compared_images: usize,
    /// Share of the linear layers that stay f32 in int8: those that lose most.
    pub float_layers: f64,
    /// Largest drift allowed: 1 - mean cosine to the f32 features.
    pub max_drift: f64,
}

/// How to export.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// Size of the images.
    pub image: ImageShape,
    /// Outputs; empty for cls, patch, patch_mean, and reg where there are registers.
    pub outputs: Vec<OutputKind>,
    /// Preprocessing that goes into the file.
    pub preprocess: Preprocess,
    /// What the matrices are stored in.
    pub dtype: Dtype,
    /// For another type than f32.
    pub small: Option<SmallRequest>,
    /// Largest deviation of an f32 file allowed, relative to the largest value of an output.
    pub tolerance: f64,
    /// Seed of the random test input.
    pub seed: u64,
    /// Replace a file that exists.
    pub force: bool,
    /// Weights above this many bytes go into a second file.
    pub external_data_over: Option<u64>,
    /// Library and threads of the check.
    pub runtime: RuntimeOptions,
    /// Threads of the check; 0 for all cores.
    pub threads: usize,
}

/// How one output compares on one input.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// `random` or `images`.
    pub input: String,
    /// Height of the images.
    pub height: usize,
    /// Width of the images.
    pub width: usize,
    /// The output.
    pub output: String,
    /// Largest absolute deviation.
    pub max_abs: f64,
    /// The same, relative to the largest absolute value of the candle network's output.
    pub max_rel: f64,
    /// Smallest cosine over the images.
    pub min_cosine: f64,
}

/// What was exported, and how it compares.
#[derive(Debug, Clone, Serialize)]
pub struct ExportSummary {
    /// The file.
    pub path: String,
    /// Its size in bytes, with external data.
    pub bytes: u64,
    /// Whether the weights lie in a second file.
    pub external_data: bool,
    /// Scalars in the network.
    pub parameters: usize,
    /// What its matrices are stored in.
    pub dtype: Dtype,
    /// Every output on every input tried.
    pub comparisons: Vec<Comparison>,
    /// How a file in f16 or int8 compares with the f32 one.
    pub drift: Option<DriftReport>,
    /// What each linear layer loses in int8, the largest loss first.
    pub layers: Vec<LayerLoss>,
}

/// Exports `checkpoint` to `path` and compares the file with the candle network.
///
/// # Errors
/// A file that exists without `force`, options that do not fit the network, or a deviation above the tolerance; no
/// file is left then.
pub fn export(checkpoint: &Checkpoint, request: &ExportRequest, path: &Path) -> Result<ExportSummary> {
    refuse_existing(path, request.force)?;
    let name = path.file_name().ok_or_else(|| {
        Error::input(
            "--out",
            format!("expected a file name, found `{}`", path.display()),
        )
    })?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // The model names its data file, so both keep their names and only their folder changes.
    let workshop = tempfile::Builder::new()
        .prefix(".exporting-")
        .tempdir_in(folder)
        .map_err(|e| Error::io(folder, e))?;
    let draft = workshop.path().join(name);
    let mut options = ExportOptions::new(request.image);
    options.metadata = metadata(checkpoint, &request.preprocess)?;
    options.outputs = request.outputs.clone();
    if let Some(limit) = request.external_data_over {
        options.external_data_over = limit;
    }
    let (drift, layers) = match (&request.small, request.dtype) {
        (Some(small), Dtype::F16 | Dtype::Int8) => {
            let (drift, layers) = write_small(checkpoint, request, small, &mut options, &draft)?;
            drift::refuse(path, &drift, small.max_drift)?;
            (Some(drift), layers)
        }
        _ => {
            onnx::export(&checkpoint.config, &checkpoint.backbone, &options, &draft)?;
            (None, Vec::new())
        }
    };
    let comparisons = compare(checkpoint, request, &draft)?;
    if drift.is_none() {
        refuse_deviation(path, &comparisons, request.tolerance)?;
    }
    let mut bytes = 0;
    let mut files: Vec<_> = fs::read_dir(workshop.path())
        .and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>())
        .map_err(|e| Error::io(workshop.path(), e))?;
    // The data first: a model without it would be half a file.
    files.sort_by_key(|entry| entry.file_name() == name);
    let external_data = files.len() > 1;
    for file in files {
        let target = folder.join(file.file_name());
        bytes += file.metadata().map_err(|e| Error::io(file.path(), e))?.len();
        fs::rename(file.path(), &target).map_err(|e| Error::io(&target, e))?;
    }
    Ok(ExportSummary {
        path: path.display().to_string(),
        bytes,
        external_data,
        parameters: checkpoint.config.parameter_count(),
        dtype: request.dtype,
        comparisons,
        drift,
        layers,
    })
}

/// Writes the file at `draft` in f16 or int8 and compares it with one in f32, which is written elsewhere.
fn write_small(
    checkpoint: &Checkpoint,
    request: &ExportRequest,
    small: &SmallRequest,
    options: &mut ExportOptions,
    draft: &Path,
) -> Result<(DriftReport, Vec<LayerLoss>)> {
    let elsewhere = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let whole: PathBuf = elsewhere.path().join("f32.onnx");
    onnx::export(&checkpoint.config, &checkpoint.backbone, options, &whole)?;
    let source = data::open(&small.data)?;
    let draw = |range| Images::draw(source.as_ref(), &request.preprocess, range, request.seed);
    let mut layers = Vec::new();
    options.numbers = match request.dtype {
        Dtype::F32 => Numbers::F32,
        Dtype::F16 => Numbers::F16,
        Dtype::Int8 => {
            let images = draw((0, small.calibration_images))?;
            let found = calibrate::calibrate(
                checkpoint,
                options,
                &images.pixels,
                images.shape,
                small.float_layers,
                &request.runtime,
                request.threads,
            )?;
            layers = found.losses;
            Numbers::Int8(found.ranges)
        }
    };
    options
        .metadata
        .insert("macula.dtype".to_owned(), request.dtype.to_string());
    onnx::export(&checkpoint.config, &checkpoint.backbone, options, draft)?;
    let mut of_small = open_session(draft, &request.runtime, request.threads)?;
    let mut of_whole = open_session(&whole, &request.runtime, request.threads)?;
    let outputs: Vec<String> = of_whole
        .outputs()
        .iter()
        .map(|output| output.name.clone())
        .collect();
    let images = draw((small.calibration_images, small.compared_images))?;
    let report = drift::measure(
        (&mut of_small, bytes_of(draft)?),
        (&mut of_whole, bytes_of(&whole)?),
        &outputs,
        &images,
    )?;
    Ok((report, layers))
}

/// Size of a model and of the data file beside it.
fn bytes_of(model: &Path) -> Result<u64> {
    let data = PathBuf::from(format!("{}.data", model.display()));
    let size = |path: &Path| fs::metadata(path).map(|metadata| metadata.len());
    let model_bytes = size(model).map_err(|e| Error::io(model, e))?;
    Ok(model_bytes + size(&data).unwrap_or(0))
}

fn metadata(
    checkpoint: &Checkpoint,
    preprocess: &Preprocess,
) -> Result<std::collections::BTreeMap<String, String>> {
    let json =
        |value: serde_json::Result<String>| value.map_err(|e| Error::failed("metadata", e.to_string()));
    Ok([
        ("macula.arch", json(serde_json::to_string(&checkpoint.config))?),
        ("macula.patch_size", checkpoint.config.patch_size.to_string()),
        ("macula.preprocess", json(serde_json::to_string(preprocess))?),
        ("macula.source_sha256", checkpoint.source_sha256.clone()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into())
}

/// Sizes to try: the fixed one, or for a dynamic file the native size, a larger one that is not square, and a smaller.
fn sizes(config: &VitConfig, image: ImageShape) -> Vec<(usize, usize)> {
    let (patch, native) = (config.patch_size, config.native_grid());
    match image {
        ImageShape::Fixed { height, width } => vec![(height, width)],
        ImageShape::Dynamic => [
            (native, native),
            (native + 2, (native / 2).max(1)),
            ((native / 2).max(1), (native / 2).max(1)),
        ]
        .map(|(rows, columns)| (rows * patch, columns * patch))
        .to_vec(),
    }
}

/// An ONNX file on the processor, by ONNX Runtime's own kernels.
fn open_session(file: &Path, runtime: &RuntimeOptions, threads: usize) -> Result<OnnxModel> {
    let options = SessionOptions {
        device: crate::runtime::Device::Cpu,
        threads,
        compute: Precision::F32,
    };
    OnnxModel::open(Runtime::open(runtime)?, file, &options)
}

fn compare(checkpoint: &Checkpoint, request: &ExportRequest, file: &Path) -> Result<Vec<Comparison>> {
    let config = &checkpoint.config;
    let device = candle_core::Device::Cpu;
    let network = VisionTransformer::from_tensors(config, &checkpoint.backbone, &device)?;
    let mut session = open_session(file, &request.runtime, request.threads)?;
    let names: Vec<String> = session
        .outputs()
        .iter()
        .map(|output| output.name.clone())
        .collect();
    let kinds: Vec<OutputKind> = names
        .iter()
        .map(|name| name.parse())
        .collect::<macula_models::Result<_>>()?;
    let mut comparisons = Vec::new();
    for (height, width) in sizes(config, request.image) {
        for (input, pixels) in [
            ("random", random_images(config, height, width, request.seed)),
            ("images", real_images(config, height, width, &request.preprocess)?),
        ] {
            let n = pixels.len() / (config.in_channels * height * width);
            let shape = [n, config.in_channels, height, width];
            let tensor =
                Tensor::from_slice(&pixels, shape.as_slice(), &device).map_err(macula_models::Error::from)?;
            let expected = onnx::reference_outputs(&network, &tensor, &kinds)?;
            for (output, expected) in session.run(&pixels, shape, &names)?.into_iter().zip(expected) {
                comparisons.push(Comparison {
                    input: input.to_owned(),
                    height,
                    width,
                    ..measure(output.name, &output.data, &expected, n)?
                });
            }
        }
    }
    Ok(comparisons)
}

fn random_images(config: &VitConfig, height: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut rng = rng::stream(seed, "export-check", 0);
    (0..2 * config.in_channels * height * width)
        .map(|_| rng.random_range(-2.0..2.0))
        .collect()
}

/// Two images of the bundled sample, prepared as the file says but at the size under test.
fn real_images(config: &VitConfig, height: usize, width: usize, preprocess: &Preprocess) -> Result<Vec<f32>> {
    let preprocess = Preprocess {
        resize: Some(Resize::Shorter(height.max(width) as u32)),
        crop: Some((height as u32, width as u32)),
        ..preprocess.clone()
    };
    let source = data::open("sample:test")?;
    let plane = config.in_channels * height * width;
    let mut pixels = vec![0f32; 2 * plane];
    for (row, out) in pixels.chunks_exact_mut(plane).enumerate() {
        let image = source.load(row as u64, &DecodeOptions::default())?;
        preprocess.write_tensor(&image, out)?;
    }
    Ok(pixels)
}

fn measure(name: String, found: &[f32], expected: &Tensor, n: usize) -> Result<Comparison> {
    let expected: Vec<f32> = expected
        .flatten_all()
        .and_then(|flat| flat.to_vec1())
        .map_err(macula_models::Error::from)?;
    if found.len() != expected.len() {
        return Err(Error::failed(
            name,
            format!("expected {} values, found {}", expected.len(), found.len()),
        ));
    }
    let pairs = || {
        found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (f64::from(*a), f64::from(*b)))
    };
    let max_abs = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, nan_max);
    let largest = pairs().map(|(_, b)| b.abs()).fold(0.0, nan_max);
    let width = found.len() / n;
    let min_cosine = found
        .chunks_exact(width)
        .zip(expected.chunks_exact(width))
        .map(|(a, b)| cosine(a, b))
        .fold(f64::INFINITY, f64::min);
    Ok(Comparison {
        input: String::new(),
        height: 0,
        width: 0,
        output: name,
        max_abs,
        max_rel: max_abs / largest.max(f64::MIN_POSITIVE),
        min_cosine,
    })
}

/// The larger value, NaN before all: a network that gives NaN must not pass.
fn nan_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}

fn refuse_deviation(path: &Path, comparisons: &[Comparison], tolerance: f64) -> Result<()> {
    // NaN is a deviation too.
    match comparisons
        .iter()
        .find(|c| c.max_rel.is_nan() || c.max_rel > tolerance)
    {
        None => Ok(()),
        Some(worst) => Err(Error::failed(
            path.display().to_string(),
            format!(
                "not written: output `{}` deviates from the candle network by {:.3e} of its largest value on {} of \
                 {}x{}, allowed {tolerance:.0e}",
                worst.output, worst.max_rel, worst.input, worst.height, worst.width
            ),
        )),
    }
}

/// A network with the initial weights of pretraining, as a checkpoint: what training has to improve on.
///
/// LayerScale starts at 1, as the reference's builder constructs it, and not at training's 1e-5, which would leave the
/// blocks without a visible effect.
///
/// # Errors
/// An unknown architecture, or an image size that does not fit it.
pub fn untrained(config: VitConfig, seed: u64) -> Result<Checkpoint> {
    let config = VitConfig {
        layer_scale: config.layer_scale.map(|_| 1.0),
        ..config
    };
    config.validate()?;
    let backbone = macula_models::vit::initialise(&config, &mut rng::stream(seed, "initialise", 0))?;
    Ok(Checkpoint {
        config,
        backbone,
        heads: Default::default(),
        family: macula_models::weights::Family::Official,
        notices: Vec::new(),
        source_sha256: format!("untrained, seed {seed}"),
        preprocess: None,
    })
}
