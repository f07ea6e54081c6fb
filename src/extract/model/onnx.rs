//! An ONNX file run by ONNX Runtime: macula's own, or any with one 4-D float input.

use std::path::Path;

use serde_json::json;

use super::preprocess::{check_size, imagenet};
use super::{FeatureModel, ModelOptions, OpenModel};
use crate::data::Preprocess;
use crate::extract::OutputSpec;
use crate::identity::onnx_sha256;
use crate::runtime::{Dim, OnnxModel, Runtime, RuntimeOptions, SessionOptions, TensorInfo};
use crate::{Error, Result};

/// Features from an ONNX file.
pub struct OnnxFeatures {
    session: OnnxModel,
    names: Vec<String>,
    outputs: Vec<OutputSpec>,
    description: serde_json::Value,
    height: usize,
    width: usize,
    /// Batch size that the file fixes, if it does.
    fixed_batch: Option<usize>,
}

pub(super) fn open(path: &Path, options: &ModelOptions) -> Result<OpenModel> {
    let file = path.display().to_string();
    // First: a missing file of external data is named here, whatever the runtime would say.
    let sha256 = onnx_sha256(path)?;
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
    let dims: Vec<Option<usize>> = session.input().dims.iter().map(Dim::fixed).collect();
    let (height, width) = (dims[2], dims[3]);
    if dims[1].is_some_and(|channels| channels != 3) {
        return Err(Error::input(
            file,
            format!(
                "expected an input of 3 channels, found {}",
                dims[1].unwrap_or_default()
            ),
        ));
    }
    let preprocess = preprocess_of(&file, &session, options, height, width)?;
    check_size(&file, &preprocess, (height, width))?;
    let (height, width) = preprocess.crop.unwrap_or((1, 1));
    let names = options.outputs.choose(&file, &float_outputs(&session))?;
    let mut model = OnnxFeatures {
        description: json!({
            "kind": "onnx",
            "file": path.file_name().map(|name| name.to_string_lossy()),
            "sha256": sha256,
            "metadata": session.metadata(),
            "runtime": runtime.library().version,
            "providers": session.providers(),
            "compute": options.compute,
        }),
        fixed_batch: dims[0],
        session,
        names,
        outputs: Vec::new(),
        height: height as usize,
        width: width as usize,
    };
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

fn preprocess_of(
    file: &str,
    session: &OnnxModel,
    options: &ModelOptions,
    height: Option<usize>,
    width: Option<usize>,
) -> Result<Preprocess> {
    let base = match session.metadata().get("macula.preprocess") {
        Some(text) => Preprocess::from_json(&format!("{file}: metadata macula.preprocess"), text)?,
        None => {
            let side = |side: Option<usize>| side.unwrap_or(224) as u32;
            let base = imagenet(side(height), side(width));
            if options.preprocess == super::PreprocessOverrides::default() {
                tracing::warn!(
                    "{file} does not say how its images are prepared: using ImageNet's, {}",
                    base.to_json()?
                );
            }
            base
        }
    };
    let preprocess = options.preprocess.over(base);
    preprocess.validate()?;
    Ok(preprocess)
}

impl OnnxFeatures {
    /// Runs one black image to learn the outputs' shapes: a file need not state them, and a dynamic one cannot.
    fn probe(&mut self, file: &str) -> Result<()> {
        let n = self.fixed_batch.unwrap_or(1);
        let pixels = vec![0f32; n * 3 * self.height * self.width];
        for output in self
            .session
            .run(&pixels, [n, 3, self.height, self.width], &self.names)?
        {
            if output.shape.first() != Some(&n) || output.data.len() % n != 0 || output.data.is_empty() {
                return Err(Error::input(
                    file,
                    format!(
                        "output `{}`: expected one row an image ([{n}, ..]), found shape {:?}",
                        output.name, output.shape
                    ),
                ));
            }
            let shape = match &output.shape[1..] {
                [] => vec![1],
                rest => rest.to_vec(),
            };
            self.outputs.push(OutputSpec {
                name: output.name,
                shape,
            });
        }
        Ok(())
    }

    fn run_chunk(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        let results = self
            .session
            .run(pixels, [n, 3, self.height, self.width], &self.names)?;
        for ((result, spec), buffer) in results.into_iter().zip(&self.outputs).zip(outputs) {
            if result.data.len() != n * spec.width() {
                return Err(Error::failed(
                    result.name,
                    format!(
                        "expected {n} x {} values, found shape {:?}",
                        spec.width(),
                        result.shape
                    ),
                ));
            }
            buffer.extend_from_slice(&result.data);
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
