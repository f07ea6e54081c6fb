//! Export with proof: the ONNX file is run beside the candle network on random input and on real images, and reaches
//! its final name only when both agree (`proof`). A file in f16 or int8 is made of the same graph as one in f32 that has been
//! proved so, and is then run beside that one on images of the user's: `calibrate` finds the ranges that int8 needs, `drift`
//! says what the smaller file loses and refuses one that loses too much.

mod calibrate;
mod drift;
mod proof;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use macula_models::onnx::{self, ExportOptions, ImageShape, Numbers, OutputKind};
use macula_models::vit::{InitialWeights, VitConfig, initialise_with};
use macula_models::weights::Checkpoint;
use serde::Serialize;

use crate::data::{self, Preprocess};
use crate::device::Dtype;
use crate::files::refuse_existing;
use crate::runtime::{OnnxModel, Runtime, RuntimeOptions, SessionOptions};
use crate::{Error, Result, rng};
use drift::{Images, OpenFile};

pub use calibrate::LayerLoss;
pub use drift::{DriftReport, LabelledDrift};
pub use proof::Comparison;

/// What a file's matrices can be stored in: f16 is computed with in f32, int8 holds in the products of linear layers.
pub const STORED: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Int8];

/// How a file in f16 or int8 is made and judged.
#[derive(Debug, Clone)]
pub struct QuantizeRequest {
    /// Images for the ranges of int8 and for the comparison, as `--data` names them.
    pub data: String,
    /// Images that ranges are taken from.
    pub calibration_images: usize,
    /// Images that both files are compared on, others than those where there are enough.
    pub compared_images: usize,
    /// Share of the linear layers that stay f32 in int8: those that lose most.
    pub float_layers: f64,
    /// Largest drift allowed: 1 - mean cosine to the f32 features. In f16 also, ten times this for any one image.
    pub max_drift: f64,
}

/// The drift that is allowed where nobody says: f16 rounds weights alone, by less than a thousandth, and was never seen to
/// drift by more than 1e-6; int8 rounds all that goes into a layer.
pub fn default_max_drift(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 1e-5,
        Dtype::Int8 => 0.01,
        Dtype::F32 | Dtype::Bf16 => 0.,
    }
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
    pub quantize: Option<QuantizeRequest>,
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
    /// Every output on every input tried, beside the candle network. Of a file in f16 or int8 these are those of the f32 file
    /// with the same graph.
    pub comparisons: Vec<Comparison>,
    /// How a file in f16 or int8 compares with that f32 one.
    pub drift: Option<DriftReport>,
    /// What each linear layer loses in int8, the largest loss first.
    pub layers: Vec<LayerLoss>,
}

/// Writes a network as an ONNX file: [`onnx::export`], and a damaged one in tests of the proof.
type WriteModel<'a> = &'a dyn Fn(&ExportOptions, &Path) -> Result<()>;

/// Exports `checkpoint` to `path` and compares the file with the candle network.
///
/// # Errors
/// A file that exists without `force`, options that do not fit the network, a deviation above the tolerance or a drift above
/// the limit; no file is left then.
pub fn export(checkpoint: &Checkpoint, request: &ExportRequest, path: &Path) -> Result<ExportSummary> {
    let write = |options: &ExportOptions, path: &Path| {
        onnx::export(&checkpoint.config, &checkpoint.backbone, options, path)?;
        Ok(())
    };
    export_with(checkpoint, request, path, &write)
}

fn export_with(
    checkpoint: &Checkpoint,
    request: &ExportRequest,
    path: &Path,
    write: WriteModel,
) -> Result<ExportSummary> {
    request.dtype.check("dtype", &STORED)?;
    refuse_existing(path, request.force)?;
    let name = path
        .file_name()
        .ok_or_else(|| Error::setting("out", format!("expected a file name, found `{}`", path.display())))?;
    // The model names its data file, so both keep their names and only their folder changes.
    let workshop = macula_files::folder_beside(path).map_err(|e| Error::io(path, e))?;
    let draft = workshop.path().join(name);
    let mut options = ExportOptions::new(request.image);
    options.metadata = metadata(checkpoint, &request.preprocess)?;
    options.outputs = request.outputs.clone();
    if let Some(limit) = request.external_data_over {
        options.external_data_over = limit;
    }
    let mut exporter = Exporter {
        checkpoint,
        request,
        path,
        options,
        write,
    };
    let (comparisons, drift, layers) = match (&request.quantize, request.dtype) {
        (Some(quantize), Dtype::F16 | Dtype::Int8) => exporter.write_quantized(quantize, &draft)?,
        _ => (exporter.write_proved(&draft)?, None, Vec::new()),
    };
    let bytes = bytes_of(&draft)?;
    let external_data = !onnx::data_files(&draft)?.is_empty();
    onnx::move_into_place(&draft, path)?;
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

/// One export under way.
struct Exporter<'a> {
    checkpoint: &'a Checkpoint,
    request: &'a ExportRequest,
    /// What errors are about.
    path: &'a Path,
    options: ExportOptions,
    write: WriteModel<'a>,
}

impl Exporter<'_> {
    /// Writes an f32 file and holds it against the candle network.
    fn write_proved(&self, file: &Path) -> Result<Vec<Comparison>> {
        (self.write)(&self.options, file)?;
        let comparisons = proof::compare(self.checkpoint, self.request, file)?;
        proof::refuse_deviation(self.path, &comparisons, self.request.tolerance)?;
        Ok(comparisons)
    }

    /// Writes the file at `draft` in f16 or int8 and compares it with one in f32, which is written elsewhere and proved first.
    fn write_quantized(
        &mut self,
        quantize: &QuantizeRequest,
        draft: &Path,
    ) -> Result<(Vec<Comparison>, Option<DriftReport>, Vec<LayerLoss>)> {
        let request = self.request;
        let elsewhere = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
        let whole: PathBuf = elsewhere.path().join("f32.onnx");
        let comparisons = self.write_proved(&whole)?;
        let source = data::open(&quantize.data)?;
        let draw = |range| Images::draw(source.as_ref(), &request.preprocess, range, request.seed);
        let mut layers = Vec::new();
        let mut used = 0;
        self.options.numbers = match request.dtype {
            Dtype::F32 | Dtype::Bf16 => Numbers::F32,
            Dtype::F16 => Numbers::F16,
            Dtype::Int8 => {
                used = quantize.calibration_images;
                let images = draw(0..used)?;
                let found = calibrate::calibrate(
                    self.checkpoint,
                    &self.options,
                    &images.pixels,
                    images.shape,
                    quantize.float_layers,
                    &request.runtime,
                    request.threads,
                )?;
                layers = found.losses;
                Numbers::Int8(found.ranges)
            }
        };
        self.options
            .metadata
            .insert("macula.dtype".to_owned(), request.dtype.to_string());
        (self.write)(&self.options, draft)?;
        let open = |path: &Path| {
            Ok::<_, Error>(OpenFile {
                model: open_session(path, &request.runtime, request.threads)?,
                bytes: bytes_of(path)?,
            })
        };
        let (mut of_small, mut of_whole) = (open(draft)?, open(&whole)?);
        let outputs: Vec<String> = of_whole
            .model
            .outputs()
            .iter()
            .map(|output| output.name.clone())
            .collect();
        let images = draw(used..used.saturating_add(quantize.compared_images))?;
        if images.shared {
            tracing::warn!(
                "{}: {} images, no more than the ranges of int8 are taken from: the drift is measured on the same ones and \
                 will be larger on others",
                quantize.data,
                source.len()
            );
        }
        let drift = drift::measure(&mut of_small, &mut of_whole, &outputs, &images)?;
        let of_one = (request.dtype == Dtype::F16).then_some(10. * quantize.max_drift);
        drift::refuse(self.path, &drift, quantize.max_drift, of_one)?;
        if let Some(max) = of_one {
            // At the sizes of a dynamic file too, of which the images have one.
            let beside_candle = proof::compare(self.checkpoint, request, draft)?;
            proof::refuse_turn(self.path, &beside_candle, max)?;
        }
        Ok((comparisons, Some(drift), layers))
    }
}

/// Size of a model and of the data beside it.
fn bytes_of(model: &Path) -> Result<u64> {
    let files = onnx::data_files(model)?;
    std::iter::once(model.to_path_buf())
        .chain(files)
        .map(|file| {
            fs::metadata(&file)
                .map(|file| file.len())
                .map_err(|e| Error::io(file, e))
        })
        .sum()
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

/// An ONNX file on the processor, by ONNX Runtime's own kernels.
fn open_session(file: &Path, runtime: &RuntimeOptions, threads: usize) -> Result<OnnxModel> {
    let options = SessionOptions {
        device: crate::device::Device::Cpu,
        threads,
        compute: Dtype::F32,
    };
    OnnxModel::open(Runtime::open(runtime)?, file, &options)
}

/// A network with the initial weights of pretraining, spread as `spread` says, as a checkpoint: what training has to improve on.
///
/// LayerScale starts at 1, as the reference's builder constructs it, and not at training's 1e-5, which would leave the
/// blocks without a visible effect.
///
/// # Errors
/// An unknown architecture, or an image size that does not fit it.
pub fn untrained(config: VitConfig, spread: InitialWeights, seed: u64) -> Result<Checkpoint> {
    let config = VitConfig {
        layer_scale: config.layer_scale.map(|_| 1.0),
        ..config
    };
    config.validate()?;
    let backbone = initialise_with(&config, spread, &mut rng::stream(seed, "initialise", 0))?;
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
