//! Models that turn pixels into features: an ONNX file, a checkpoint run by candle, the pixels themselves, or histograms of
//! their gradients.

mod checkpoint;
mod derived;
mod hog;
mod onnx;
mod patches;
mod pixels;
mod preprocess;
mod stated;
mod tokens;

use std::path::{Path, PathBuf};

use super::folder::OutputSpec;
use crate::data::{Preprocess, Source};
use crate::device::{Device, Dtype};
use crate::{Error, Result};

pub use checkpoint::{CheckpointModel, OpenNetwork, default_side, open_network};
pub use derived::DerivedModel;
pub use hog::HogModel;
pub use onnx::{OnnxFeatures, levels};
pub use patches::PatchLayers;
pub use pixels::PixelModel;
pub use preprocess::{PreprocessOverrides, Size, imagenet, normalisation_of, of_checkpoint};
pub use tokens::grid_of;

/// Anything that gives features for a batch of images.
pub trait FeatureModel: Send {
    /// The outputs it gives, in the order of `run`'s buffers.
    fn outputs(&self) -> &[OutputSpec];

    /// What it is, for `meta.json`: kind, file, SHA-256, settings that change its outputs.
    fn describe(&self) -> serde_json::Value;

    /// Appends the outputs of `n` images to `outputs`, one buffer an output.
    ///
    /// `pixels` is `[n, C, H, W]`, already normalised; `n` is at least 1.
    ///
    /// # Errors
    /// What the runtime says.
    fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()>;
}

/// How to open a model.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// Outputs wanted.
    pub outputs: OutputChoice,
    /// Preprocessing given by flags; what is not given comes from the model, then from ImageNet's usual.
    pub preprocess: PreprocessOverrides,
    /// Where to run.
    pub device: Device,
    /// What matrix products are computed in.
    pub compute: Dtype,
    /// Threads of the runtime; 0 for all cores.
    pub threads: usize,
    /// ONNX Runtime library named by the user.
    pub ort_lib: Option<PathBuf>,
    /// What a checkpoint's file does not say.
    pub checkpoint: macula_models::weights::LoadOptions,
}

/// A model and the preprocessing its images need.
pub struct OpenModel {
    /// The model.
    pub model: Box<dyn FeatureModel>,
    /// Pixels to network input.
    pub preprocess: Preprocess,
}

/// Opens `spec` as [`open_as_it_is`]; named outputs may be several side by side (`cls+patch_mean`) or patch tokens pooled by
/// generalised mean (`patch_gem`).
///
/// # Errors
/// As [`open_as_it_is`].
pub fn open(spec: &str, source: &dyn Source, options: &ModelOptions) -> Result<OpenModel> {
    let OutputChoice::Named(names) = &options.outputs else {
        return open_as_it_is(spec, source, options);
    };
    if !derived::is_derived(names) {
        return open_as_it_is(spec, source, options);
    }
    let own = ModelOptions {
        outputs: OutputChoice::Named(derived::bases(names)),
        ..options.clone()
    };
    let OpenModel { model, preprocess } = open_as_it_is(spec, source, &own)?;
    Ok(OpenModel {
        model: Box::new(DerivedModel::new(model, names)?),
        preprocess,
    })
}

/// Opens `spec`: `pixels`, `pixels:rgb`, `pixels:gray`, `hog`, `hog:CELL`, an ONNX file, or a checkpoint (file, Hugging Face folder or
/// run folder). `source` gives the image size to the models without a network.
///
/// # Errors
/// Names the file, what was expected and what was found.
fn open_as_it_is(spec: &str, source: &dyn Source, options: &ModelOptions) -> Result<OpenModel> {
    if let Some(mode) = pixels::parse(spec) {
        return pixels::open(mode?, source, options);
    }
    if let Some(cell) = hog::parse(spec) {
        return hog::open(cell?, source, options);
    }
    let path = Path::new(spec);
    if !path.exists() {
        return Err(Error::input(
            spec,
            "no such file; expected an ONNX file, a checkpoint, `pixels` or `hog`",
        ));
    }
    if is_onnx_name(path) {
        onnx::open(path, options)
    } else {
        checkpoint::open(path, options)
    }
}

/// Whether a file is an ONNX file by its name, in either case.
pub(crate) fn is_onnx_name(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

/// The outputs of [`OutputChoice::Tokens`].
const TOKENS: [&str; 5] = ["cls", "patch_mean", "patch", "embedding", "image_embeds"];

/// Which of a model's outputs to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputChoice {
    /// `cls` where there is one, else `embedding`, else `patch_mean`, else the first.
    Default,
    /// These, in this order.
    Named(Vec<String>),
    /// `cls`, `patch_mean`, `patch`, `embedding` and `image_embeds`, as far as the model has them, else the default.
    Tokens,
    /// What the linear probe's grid can use: `cls`, `patch_mean` and `layer:I.cls`, as far as the model has them.
    Probe,
    /// Patch tokens for dense tasks: those of these blocks, and the class tokens of the same blocks where the model has
    /// them all and they are wanted; the pixels of the pixel model.
    Patches {
        /// Which blocks.
        layers: PatchLayers,
        /// Whether class tokens are wanted.
        cls: bool,
    },
}

impl OutputChoice {
    /// `names`, or the default where there is none.
    pub fn named<S: AsRef<str>>(names: &[S]) -> Self {
        if names.is_empty() {
            return Self::Default;
        }
        Self::Named(names.iter().map(|name| name.as_ref().to_owned()).collect())
    }

    /// The outputs of `available` that are wanted.
    fn choose(&self, file: &str, available: &[String]) -> Result<Vec<String>> {
        let default = || {
            let usual = ["cls", "embedding", "patch_mean"];
            let mut usual = usual
                .iter()
                .filter_map(|usual| available.iter().find(|name| name == usual));
            let default = usual.next().or(available.first());
            default
                .map(|name| vec![name.clone()])
                .ok_or_else(|| Error::input(file, "expected at least one output, found none"))
        };
        match self {
            Self::Default => default(),
            Self::Named(names) => match names.iter().find(|name| !available.contains(name)) {
                Some(missing) => Err(Error::input(
                    file,
                    format!("no output `{missing}`; it has {}", available.join(", ")),
                )),
                None => Ok(names.clone()),
            },
            Self::Tokens => {
                let usual = TOKENS
                    .iter()
                    .filter(|name| available.iter().any(|have| have == *name));
                let usual: Vec<String> = usual.map(|name| (*name).to_owned()).collect();
                if usual.is_empty() { default() } else { Ok(usual) }
            }
            Self::Probe if available.iter().any(|name| name == "cls") => {
                let usable = |name: &String| {
                    name == "cls"
                        || name == "patch_mean"
                        || (name.starts_with("layer:") && name.ends_with(".cls"))
                };
                Ok(available.iter().filter(|name| usable(name)).cloned().collect())
            }
            Self::Probe => default(),
            Self::Patches { layers, cls } => layers.choose(file, available, *cls),
        }
    }
}
