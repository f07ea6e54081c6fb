//! An ONNX file run by ONNX Runtime: macula's own, or any that takes images.

use std::path::Path;

use serde_json::json;

use super::preprocess::{Size, check_size, of_file};
use super::tokens::{Part, Tokens};
use super::{FeatureModel, ModelOptions, OpenModel, OutputChoice, PreprocessOverrides};
use crate::data::Preprocess;
use crate::extract::OutputSpec;
use crate::runtime::{OnnxModel, Runtime, RuntimeOptions, SessionOptions, TensorInfo};
use crate::{Error, Result};

/// Output that is the class token.
const CLS: &str = "cls";
/// Outputs whose first token is the class token where a file has no output `cls` (transformers' name).
const TOKENS: &str = "last_hidden_state";
/// What stands for an image where a file has no class token, the first that it has; the last is made of [`TOKENS`].
const INSTEAD_OF_CLS: [&str; 3] = ["image_embeds", "pooler_output", "patch_mean"];

/// Features from an ONNX file.
pub struct OnnxFeatures {
    session: OnnxModel,
    /// The outputs of the graph that are computed.
    names: Vec<String>,
    /// The features that are made of them.
    taken: Vec<Taken>,
    outputs: Vec<OutputSpec>,
    description: serde_json::Value,
    height: usize,
    width: usize,
    /// Batch size that the file fixes, if it does.
    fixed_batch: Option<usize>,
}

/// One output as features are asked for: a part of one of the graph's.
struct Taken {
    name: String,
    /// Place in `names`.
    from: usize,
    part: Part,
}

pub(super) fn open(path: &Path, options: &ModelOptions) -> Result<OpenModel> {
    let file = path.display().to_string();
    let runtime = Runtime::open(&RuntimeOptions {
        ort_lib: options.ort_lib.clone(),
        flavor: options.device.flavor(),
        ..RuntimeOptions::default()
    })?;
    let session_options = SessionOptions {
        device: options.device,
        threads: options.threads,
        compute: options.compute,
    };
    let session = OnnxModel::open(runtime, path, &session_options)?;
    if let Some(notice) = session.notice() {
        tracing::info!("{notice}");
    }
    let [batch, channels, height, width] = session.image_dims();
    if let Some(channels) = channels.filter(|channels| *channels != 3) {
        return Err(Error::input(
            file,
            format!("expected an input of 3 channels, found {channels}"),
        ));
    }
    let preprocess = preprocess_of(path, &session, options, height, width)?;
    check_size(&file, &preprocess, (height, width))?;
    let (height, width) = preprocess.crop.unwrap_or((1, 1));
    let mut model = OnnxFeatures {
        description: json!({
            "kind": "onnx",
            "file": path.file_name().map(|name| name.to_string_lossy()),
            "sha256": crate::files::sha256(path)?,
            "metadata": session.metadata(),
            "runtime": runtime.library().version,
            "providers": session.providers(),
            "compute": options.compute,
        }),
        fixed_batch: batch,
        session,
        names: Vec::new(),
        taken: Vec::new(),
        outputs: Vec::new(),
        height: height as usize,
        width: width as usize,
    };
    model.choose(&file, &options.outputs)?;
    model.probe(&file)?;
    Ok(OpenModel {
        model: Box::new(model),
        preprocess,
    })
}

/// Names of the outputs that can be features.
fn float_outputs(session: &OnnxModel) -> Vec<String> {
    let floats = session.outputs().iter().filter(|output| output.is_float());
    floats.map(|output: &TensorInfo| output.name.clone()).collect()
}

/// Key of an ONNX file's metadata, for messages.
const OWN: &str = "metadata macula.preprocess";

fn preprocess_of(
    path: &Path,
    session: &OnnxModel,
    options: &ModelOptions,
    height: Option<usize>,
    width: Option<usize>,
) -> Result<Preprocess> {
    let file = path.display().to_string();
    let own = session.metadata().get("macula.preprocess");
    let what = format!("{file}: {OWN}");
    let own = own.map(|json| (what.as_str(), json.as_str()));
    let side = |side: Option<usize>| side.unwrap_or(224) as u32;
    let size = Size::Stated(side(height), side(width));
    if !session.takes_levels() {
        return of_file(path, own, size, &options.preprocess);
    }
    let (mean, std) = levels(&file, (options.preprocess.mean, options.preprocess.std))?;
    let flags = PreprocessOverrides {
        mean: Some(mean),
        std: Some(std),
        ..options.preprocess.clone()
    };
    of_file(path, own, size, &flags)
}

/// Mean and deviation that leave levels from 0 to 255 as they are, for a graph of bytes, which normalises by itself.
///
/// # Errors
/// A mean or deviation that flags give.
pub fn levels(file: &str, given: (Option<[f32; 3]>, Option<[f32; 3]>)) -> Result<([f32; 3], [f32; 3])> {
    if given.0.is_some() || given.1.is_some() {
        let reason =
            "takes levels from 0 to 255 (uint8) and normalises them itself: expected no mean or deviation";
        return Err(Error::input(file, reason));
    }
    tracing::info!("{file} takes levels from 0 to 255 (uint8): nothing is normalised before it");
    Ok(([0.0; 3], [1.0 / 255.0; 3]))
}

impl OnnxFeatures {
    /// Decides which features are made of which outputs of the graph, and says what has another name than was asked for.
    fn choose(&mut self, file: &str, choice: &OutputChoice) -> Result<()> {
        let own = float_outputs(&self.session);
        let tokens = match own.iter().any(|name| name == CLS) || !own.iter().any(|name| name == TOKENS) {
            true => None,
            false => Some(self.tokens(file)?),
        };
        let parts: Vec<(&str, Part)> = tokens.as_ref().map(Tokens::parts).unwrap_or_default();
        let derived = parts.iter().map(|(name, _)| (*name).to_owned());
        let derived: Vec<String> = derived.filter(|name| !own.contains(name)).collect();
        let mut available = own.clone();
        available.extend(derived.iter().cloned());
        let names = match choice {
            OutputChoice::Default if !available.iter().any(|name| name == CLS) => {
                let instead = INSTEAD_OF_CLS
                    .iter()
                    .find(|name| available.iter().any(|have| have == *name));
                match instead {
                    Some(name) => vec![(*name).to_owned()],
                    None => choice.choose(file, &available)?,
                }
            }
            _ => choice.choose(file, &available)?,
        };
        for name in &names {
            let (from, part) = match parts.iter().find(|(part, _)| part == name) {
                Some((_, part)) if derived.contains(name) => (TOKENS, *part),
                _ => (name.as_str(), Part::Whole),
            };
            let place = self.names.iter().position(|known| known == from);
            let place = place.unwrap_or_else(|| {
                self.names.push(from.to_owned());
                self.names.len() - 1
            });
            self.taken.push(Taken {
                name: name.clone(),
                from: place,
                part,
            });
        }
        self.say(file, choice, &own, tokens.as_ref());
        Ok(())
    }

    /// The layout of the tokens: its shape on a black image.
    fn tokens(&mut self, file: &str) -> Result<Tokens> {
        let n = self.fixed_batch.unwrap_or(1);
        let results = self.run_black(n, &[TOKENS.to_owned()])?;
        let shape = results.into_iter().next().map(|result| result.shape);
        match shape.as_deref() {
            Some(&[batch, count, width]) if batch == n && count > 0 && width > 0 => {
                Ok(Tokens::new(count, (self.height, self.width)))
            }
            shape => Err(Error::input(
                file,
                format!("output `{TOKENS}`: expected [batch, tokens, width], found {shape:?}"),
            )),
        }
    }

    /// Says which output was taken where the user did not name it, and of what a part was made.
    fn say(&mut self, file: &str, choice: &OutputChoice, own: &[String], tokens: Option<&Tokens>) {
        for taken in &self.taken {
            let from = &self.names[taken.from];
            let Some(tokens) = tokens.filter(|_| taken.part != Part::Whole) else {
                continue;
            };
            tracing::info!(
                "{file}: {} is {} of {from}",
                taken.name,
                tokens.describe(taken.part)
            );
            self.description["taken"][&taken.name] =
                json!(format!("{} of {from}", tokens.describe(taken.part)));
        }
        let [taken] = self.taken.as_slice() else { return };
        let others: Vec<&str> = own
            .iter()
            .map(String::as_str)
            .filter(|name| *name != taken.name)
            .collect();
        if *choice == OutputChoice::Default && taken.name != CLS
            || !others.is_empty() && taken.part != Part::Whole
        {
            let others = match others.is_empty() {
                true => "no other".to_owned(),
                false => others.join(", "),
            };
            tracing::info!(
                "{file}: taking output {}; there is {others}, which --output names",
                taken.name
            );
        }
    }

    fn run_black(&mut self, n: usize, names: &[String]) -> Result<Vec<crate::runtime::OutputTensor>> {
        let pixels = vec![0f32; n * 3 * self.height * self.width];
        self.session.run(&pixels, [n, 3, self.height, self.width], names)
    }

    /// Runs one black image to learn the outputs' shapes: a file need not state them, and a dynamic one cannot.
    fn probe(&mut self, file: &str) -> Result<()> {
        let n = self.fixed_batch.unwrap_or(1);
        let results = self.run_black(n, &self.names.clone())?;
        for output in &results {
            if output.shape.first() != Some(&n) || output.data.len() % n != 0 || output.data.is_empty() {
                return Err(Error::input(
                    file,
                    format!(
                        "output `{}`: expected one row an image ([{n}, ..]), found shape {:?}",
                        output.name, output.shape
                    ),
                ));
            }
        }
        for taken in &self.taken {
            let shape = match &results[taken.from].shape[1..] {
                [] => vec![1],
                rest => taken.part.shape(rest),
            };
            self.outputs.push(OutputSpec {
                name: taken.name.clone(),
                shape,
            });
        }
        Ok(())
    }

    fn run_chunk(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        let results = self
            .session
            .run(pixels, [n, 3, self.height, self.width], &self.names)?;
        for ((taken, spec), buffer) in self.taken.iter().zip(&self.outputs).zip(outputs) {
            let result = &results[taken.from];
            let before = buffer.len();
            let fits = result.shape.first() == Some(&n) && result.data.len() % n == 0;
            if fits {
                taken.part.append(&result.data, n, &result.shape, buffer);
            }
            if buffer.len() - before != n * spec.width() {
                return Err(Error::failed(
                    &result.name,
                    format!(
                        "expected {n} x {} values, found shape {:?}",
                        spec.width(),
                        result.shape
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl FeatureModel for OnnxFeatures {
    fn outputs(&self) -> &[OutputSpec] {
        &self.outputs
    }

    fn describe(&self) -> serde_json::Value {
        self.description.clone()
    }

    fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        let Some(fixed) = self.fixed_batch.filter(|fixed| *fixed != n) else {
            return self.run_chunk(pixels, n, outputs);
        };
        let image = 3 * self.height * self.width;
        let widths: Vec<usize> = self.outputs.iter().map(OutputSpec::width).collect();
        for chunk in pixels.chunks(fixed * image) {
            let images = chunk.len() / image;
            let mut padded = chunk.to_vec();
            padded.resize(fixed * image, 0.0);
            let starts: Vec<usize> = outputs.iter().map(Vec::len).collect();
            self.run_chunk(&padded, fixed, outputs)?;
            for ((buffer, start), width) in outputs.iter_mut().zip(starts).zip(&widths) {
                buffer.truncate(start + images * width);
            }
        }
        Ok(())
    }
}
