//! Teachers in ONNX files, run by ONNX Runtime: macula's own, or any with one 4-D float input.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::OnnxSettings;
use crate::data::mask::Grid;
use crate::device::Dtype;
use crate::extract::model::{levels, normalisation_of};
use crate::identity::OnnxFiles;
use crate::runtime::{Flavor, OnnxModel, Runtime, RuntimeOptions, SessionOptions, TensorInfo};
use crate::train::config::{DistillConfig, OnnxOutput, TeacherOffer};
use crate::train::distillation::{FrozenTeacher, TeacherFacts, TeacherFeatures, TeacherSize, Wanted};
use crate::{Error, Result};

const CLS: &str = "cls";
const PATCH: &str = "patch";
const PATCH_MEAN: &str = "patch_mean";
const LOGITS: &str = "logits";
/// Side at which outputs are first looked at, where the file takes any.
const USUAL_SIDE: usize = 224;

/// An ONNX file as a teacher.
pub struct OnnxTeacher {
    facts: TeacherFacts,
    session: OnnxModel,
    outputs: Vec<Output>,
    /// Batch that the file fixes, if it does.
    fixed_batch: Option<usize>,
}

/// An output of the file and what it is taken for.
struct Output {
    name: String,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Cls,
    Patch,
    PatchMean,
    Scores,
}

impl OnnxTeacher {
    /// Opens the file at `path` and looks at its outputs for one black image.
    ///
    /// # Errors
    /// A file that is no such model, one that takes images of other than three channels or of unequal sides, outputs that
    /// are none of features, patch tokens and scores.
    pub fn open(path: &Path, config: &DistillConfig, settings: &OnnxSettings) -> Result<Self> {
        let file = path.display().to_string();
        // First: a missing file of external data is named here, whatever the runtime would say.
        let sha256 = OnnxFiles::of(path)?.sha256()?;
        let runtime = Runtime::open(&RuntimeOptions {
            ort_lib: settings.ort_lib.clone(),
            flavor: Flavor::of_device(settings.device),
            ..RuntimeOptions::default()
        })?;
        let session = OnnxModel::open(
            runtime,
            path,
            &SessionOptions {
                device: settings.device,
                threads: settings.threads,
                compute: Dtype::F32,
            },
        )?;
        if let Some(notice) = session.notice() {
            tracing::info!("{notice}");
        }
        let dims = session.image_dims();
        let size = size(&file, &session, &dims)?;
        let outputs = choose(&file, session.outputs(), config.onnx_output)?;
        let mut teacher = Self {
            facts: TeacherFacts {
                offer: TeacherOffer::default(),
                sha256,
                normalisation: normalisation(path, &session, config)?,
                size,
                vit: None,
                heads: None,
                crops: None,
                engine: format!(
                    "ONNX Runtime {} on {}",
                    runtime
                        .library()
                        .version
                        .map_or_else(String::new, |version| version.to_string()),
                    session.providers().join(", ")
                ),
            },
            fixed_batch: dims[0],
            session,
            outputs,
        };
        teacher.facts.offer = teacher.probe(&file, config)?;
        Ok(teacher)
    }

    /// What the outputs are for one black image: a file need not state their shapes.
    fn probe(&mut self, file: &str, config: &DistillConfig) -> Result<TeacherOffer> {
        let side = match self.facts.size {
            TeacherSize::Fixed(side) => side,
            TeacherSize::MultipleOf(step) => match config.teacher_size as usize {
                0 => (USUAL_SIDE / step).max(1) * step,
                side => side,
            },
        };
        let (names, roles) = self.named(|_| true);
        let n = self.fixed_batch.unwrap_or(1);
        let pixels = vec![0f32; n * 3 * side * side];
        let mut offer = TeacherOffer::default();
        for (output, role) in self
            .session
            .run(&pixels, [n, 3, side, side], &names)?
            .iter()
            .zip(roles)
        {
            let wrong = |expected: &str| {
                let reason = format!(
                    "output `{}`: expected {expected}, found shape {:?}",
                    output.name, output.shape
                );
                Error::input(file, reason)
            };
            match (role, output.shape.as_slice()) {
                (Role::Patch, &[batch, tokens, width]) if batch == n => {
                    square(tokens).ok_or_else(|| wrong("a square number of patch tokens"))?;
                    offer.patch = width;
                }
                (Role::Patch, _) => return Err(wrong("patch tokens [batch, N, D]")),
                (Role::Cls, &[batch, width]) if batch == n => offer.cls = width,
                (Role::PatchMean, &[batch, width]) if batch == n => offer.patch_mean = width,
                (Role::Scores, &[batch, width]) if batch == n => offer.classes = width,
                _ => return Err(wrong("one vector an image [batch, D]")),
            }
        }
        if offer.patch > 0 && offer.patch_mean == 0 {
            offer.patch_mean = offer.patch;
        }
        Ok(offer)
    }

    /// Names and roles of the outputs whose role is wanted.
    fn named(&self, wanted: impl Fn(Role) -> bool) -> (Vec<String>, Vec<Role>) {
        let outputs = self.outputs.iter().filter(|output| wanted(output.role));
        outputs.map(|output| (output.name.clone(), output.role)).unzip()
    }

    /// The outputs `names` for `n` images: one buffer each with the shape of its rows.
    fn run(
        &mut self,
        pixels: &[f32],
        n: usize,
        side: usize,
        names: &[String],
    ) -> Result<Vec<(Vec<f32>, Vec<usize>)>> {
        let image = 3 * side * side;
        let step = self.fixed_batch.unwrap_or(n);
        let mut all: Vec<(Vec<f32>, Vec<usize>)> = vec![Default::default(); names.len()];
        for chunk in pixels.chunks(step * image) {
            let images = chunk.len() / image;
            let mut padded = std::borrow::Cow::Borrowed(chunk);
            if images < step {
                padded.to_mut().resize(step * image, 0.);
            }
            let results = self.session.run(&padded, [step, 3, side, side], names)?;
            for (result, (values, shape)) in results.into_iter().zip(&mut all) {
                if result.shape.first() != Some(&step) {
                    let reason = format!("expected {step} rows, found shape {:?}", result.shape);
                    return Err(Error::failed(format!("output `{}`", result.name), reason));
                }
                *shape = result.shape[1..].to_vec();
                let width = result.data.len() / step;
                values.extend_from_slice(&result.data[..images * width]);
            }
        }
        Ok(all)
    }

    fn lacks(&self, what: &str) -> Error {
        let reason = format!("expected {what}, but an ONNX file has no heads");
        Error::input("distill.teacher", reason)
    }
}

/// The sides of images that the file takes.
fn size(file: &str, session: &OnnxModel, dims: &[Option<usize>]) -> Result<TeacherSize> {
    if dims[1].is_some_and(|channels| channels != 3) {
        let reason = format!("expected an input of 3 channels, found {}", session.input());
        return Err(Error::input(file, reason));
    }
    match (dims[2], dims[3]) {
        (Some(height), Some(width)) if height == width => Ok(TeacherSize::Fixed(height)),
        (None, None) => {
            let patch = session.metadata().get("macula.patch_size");
            let patch = patch
                .and_then(|patch| patch.parse().ok())
                .filter(|patch| *patch > 0);
            Ok(TeacherSize::MultipleOf(patch.unwrap_or(1)))
        }
        _ => {
            let reason = format!(
                "expected an input of equal height and width, found {}",
                session.input()
            );
            Err(Error::input(file, reason))
        }
    }
}

/// The outputs that are used: those with telling names, or else the first that gives a vector an image.
fn choose(file: &str, outputs: &[TensorInfo], other: OnnxOutput) -> Result<Vec<Output>> {
    let floats: Vec<&TensorInfo> = outputs.iter().filter(|output| output.is_float()).collect();
    let known = [
        (CLS, Role::Cls),
        (PATCH, Role::Patch),
        (PATCH_MEAN, Role::PatchMean),
        (LOGITS, Role::Scores),
    ];
    let named: Vec<Output> = known
        .into_iter()
        .filter(|(name, _)| floats.iter().any(|output| output.name == *name))
        .map(|(name, role)| Output {
            name: name.to_owned(),
            role,
        })
        .collect();
    let has_features = named.iter().any(|output| output.role != Role::Scores);
    if has_features || (!named.is_empty() && other == OnnxOutput::Logits) {
        return Ok(named);
    }
    // A file that does not state a rank may still give vectors: the probe tells.
    let vector = floats.iter().find(|output| output.dims.len() == 2);
    let vector = vector.or_else(|| floats.iter().find(|output| output.dims.is_empty()));
    let vector = vector.ok_or_else(|| {
        let found: Vec<String> = outputs.iter().map(TensorInfo::to_string).collect();
        let reason = format!(
            "expected an output cls, patch, patch_mean or one float vector an image, found {}",
            found.join(" and ")
        );
        Error::input(file, reason)
    })?;
    Ok(vec![Output {
        name: vector.name.clone(),
        role: match other {
            OnnxOutput::Features => Role::Cls,
            OnnxOutput::Logits => Role::Scores,
        },
    }])
}

/// Mean and deviation of its pixels; a graph that takes levels from 0 to 255 leaves nothing to choose.
fn normalisation(path: &Path, session: &OnnxModel, config: &DistillConfig) -> Result<([f32; 3], [f32; 3])> {
    let own = session.metadata().get("macula.preprocess").map(String::as_str);
    let given = (config.teacher_mean, config.teacher_std);
    match session.takes_levels() {
        true => levels(&path.display().to_string(), (&given.0, &given.1)),
        false => normalisation_of(
            path,
            own.map(|json| ("metadata macula.preprocess", json)),
            None,
            given,
        ),
    }
}

/// The side of a square of `tokens`.
fn square(tokens: usize) -> Option<usize> {
    let side = tokens.isqrt();
    (side > 0 && side * side == tokens).then_some(side)
}

impl FrozenTeacher for OnnxTeacher {
    fn facts(&self) -> &TeacherFacts {
        &self.facts
    }

    fn features(&mut self, pixels: &Tensor, wanted: &Wanted) -> Result<TeacherFeatures> {
        let (n, _, side, _) = pixels.dims4()?;
        let has_mean = self.outputs.iter().any(|output| output.role == Role::PatchMean);
        let mean_of_patches = wanted.patch_mean && !has_mean;
        let (names, roles) = self.named(|role| match role {
            Role::Cls => wanted.cls,
            Role::Patch => wanted.patch || mean_of_patches,
            Role::PatchMean => wanted.patch_mean,
            Role::Scores => wanted.scores,
        });
        let values: Vec<f32> = pixels
            .to_device(&Device::Cpu)
            .and_then(|pixels| pixels.flatten_all())
            .and_then(|pixels| pixels.to_vec1())?;
        let mut features = TeacherFeatures::default();
        for ((values, shape), role) in self.run(&values, n, side, &names)?.into_iter().zip(roles) {
            let shape: Vec<usize> = std::iter::once(n).chain(shape).collect();
            let tensor = Tensor::from_vec(values, shape.as_slice(), pixels.device())?;
            match role {
                Role::Cls => features.cls = Some(tensor),
                Role::PatchMean => features.patch_mean = Some(tensor),
                Role::Scores => features.scores = Some(tensor),
                Role::Patch => {
                    if mean_of_patches {
                        features.patch_mean = Some(tensor.mean(1)?);
                    }
                    let side = square(tensor.dim(1)?).ok_or_else(|| {
                        let reason = format!(
                            "expected a square number of patch tokens, found {:?}",
                            tensor.dims()
                        );
                        Error::failed("distill.teacher", reason)
                    })?;
                    let grid = Grid {
                        rows: side,
                        columns: side,
                    };
                    features.patch = wanted.patch.then_some((tensor, grid));
                }
            }
        }
        Ok(features)
    }

    fn cls_logits(&self, _: &Tensor) -> Result<Tensor> {
        Err(self.lacks("a DINO head"))
    }

    fn patch_logits(&self, _: &Tensor) -> Result<Tensor> {
        Err(self.lacks("an iBOT head"))
    }
}
