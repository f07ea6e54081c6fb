//! What goes into each linear layer on real images: the ranges of an int8 file, and which layers lose most by it.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use macula_models::onnx::numbers::{weight_scales, weight_steps};
use macula_models::onnx::{self, ExportOptions, InputRange, LAYER_INPUT};
use macula_models::weights::Checkpoint;
use rayon::prelude::*;
use serde::Serialize;

use super::open_session;
use crate::runtime::RuntimeOptions;
use crate::{Error, Result};

/// Images run at a time: what goes into all layers of one image is 30 MB for ViT-S.
const BATCH: usize = 4;
/// Share of the values that a range may cut off at each end: outliers would take the resolution of all others.
const CUT: f64 = 1e-4;
/// Rows of a batch that a layer's loss is measured on.
const SAMPLE_ROWS: usize = 32;

/// One linear layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerLoss {
    /// Its name in the file.
    pub layer: String,
    /// Squared error of its output in int8 over the variance of the output, 0 and above.
    pub relative_error: f64,
    /// Whether it is left in f32.
    pub left: bool,
}

/// Ranges of the layers that become int8, and every layer's loss, the largest first.
pub(super) struct Calibration {
    pub ranges: BTreeMap<String, InputRange>,
    pub losses: Vec<LayerLoss>,
}

/// What is known of a layer after some batches.
#[derive(Default)]
struct LayerInputs {
    low: f64,
    high: f64,
    batches: usize,
    rows: Vec<f32>, // [rows, in]
    width: usize,
}

/// Runs `pixels` (`[n, C, H, W]`) through `checkpoint` and leaves the `float_share` of the layers that lose most in f32.
pub(super) fn calibrate(
    checkpoint: &Checkpoint,
    options: &ExportOptions,
    pixels: &[f32],
    image: [usize; 3],
    float_share: f64,
    runtime: &RuntimeOptions,
    threads: usize,
) -> Result<Calibration> {
    let observed = run(checkpoint, options, pixels, image, runtime, threads)?;
    let mut losses: Vec<LayerLoss> = observed
        .par_iter()
        .map(|(layer, observed)| {
            Ok(LayerLoss {
                layer: layer.clone(),
                relative_error: loss(checkpoint, layer, observed)?,
                left: false,
            })
        })
        .collect::<Result<_>>()?;
    losses.sort_by(|a, b| {
        b.relative_error
            .total_cmp(&a.relative_error)
            .then(a.layer.cmp(&b.layer))
    });
    let left = (float_share * losses.len() as f64).ceil() as usize;
    losses.iter_mut().take(left).for_each(|loss| loss.left = true);
    let ranges = losses
        .iter()
        .filter(|loss| !loss.left)
        .filter_map(|loss| Some((loss.layer.clone(), observed.get(&loss.layer)?.range())))
        .collect();
    Ok(Calibration { ranges, losses })
}

fn run(
    checkpoint: &Checkpoint,
    options: &ExportOptions,
    pixels: &[f32],
    [channels, height, width]: [usize; 3],
    runtime: &RuntimeOptions,
    threads: usize,
) -> Result<BTreeMap<String, LayerInputs>> {
    let folder = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let file = folder.path().join("layer-inputs.onnx");
    let options = ExportOptions {
        layer_inputs: true,
        ..options.clone()
    };
    onnx::export(&checkpoint.config, &checkpoint.backbone, &options, &file)?;
    let mut session = open_session(&file, runtime, threads)?;
    let names: Vec<String> = session
        .outputs()
        .iter()
        .map(|output| output.name.clone())
        .filter(|name| name.starts_with(LAYER_INPUT))
        .collect();
    let mut observed: BTreeMap<String, LayerInputs> = BTreeMap::new();
    let plane = channels * height * width;
    for batch in pixels.chunks(BATCH * plane) {
        let shape = [batch.len() / plane, channels, height, width];
        for output in session.run(batch, shape, &names)? {
            let layer = output.name.trim_start_matches(LAYER_INPUT).to_owned();
            let width = output.shape.last().copied().unwrap_or(1);
            observed.entry(layer).or_default().take(&output.data, width);
        }
    }
    Ok(observed)
}

impl LayerInputs {
    fn take(&mut self, values: &[f32], width: usize) {
        let (low, high) = ends(values);
        self.low += f64::from(low);
        self.high += f64::from(high);
        self.batches += 1;
        self.width = width;
        let rows = values.len() / width.max(1);
        let step = rows.div_ceil(SAMPLE_ROWS).max(1);
        for row in values.chunks_exact(width.max(1)).step_by(step) {
            self.rows.extend_from_slice(row);
        }
    }

    /// The mean of the batches' ranges.
    fn range(&self) -> InputRange {
        let batches = self.batches.max(1) as f64;
        InputRange {
            low: (self.low / batches) as f32,
            high: (self.high / batches) as f32,
        }
    }
}

/// The values below and above which [`CUT`] of all lie.
fn ends(values: &[f32]) -> (f32, f32) {
    let mut values = values.to_vec();
    let cut = (CUT * values.len() as f64) as usize;
    let last = values.len().saturating_sub(1);
    if values.is_empty() {
        return (0., 0.);
    }
    let low = *values.select_nth_unstable_by(cut.min(last), f32::total_cmp).1;
    let high = *values
        .select_nth_unstable_by(last - cut.min(last), f32::total_cmp)
        .1;
    (low, high)
}

/// Squared error of a layer in int8 over its output's variance, on the rows kept.
fn loss(checkpoint: &Checkpoint, layer: &str, observed: &LayerInputs) -> Result<f64> {
    let (weight, inputs) = weight_of(checkpoint, layer)?; // [out, in]
    if inputs != observed.width {
        return Err(Error::failed(
            format!("calibration of {layer}"),
            format!("expected inputs of {inputs} values, found {}", observed.width),
        ));
    }
    let scales = weight_scales(&weight, inputs);
    let steps = weight_steps(&weight, inputs, &scales);
    let range = observed.range();
    let (mut error, mut sum, mut squares, mut count) = (0f64, 0f64, 0f64, 0usize);
    for row in observed.rows.chunks_exact(inputs) {
        let rounded: Vec<f32> = row.iter().map(|&value| range.rounded(value)).collect();
        for ((weight, steps), scale) in weight
            .chunks_exact(inputs)
            .zip(steps.chunks_exact(inputs))
            .zip(&scales)
        {
            let exact: f32 = row.iter().zip(weight).map(|(x, w)| x * w).sum();
            let found: f32 = rounded.iter().zip(steps).map(|(x, q)| x * f32::from(*q)).sum();
            let difference = f64::from(found * scale - exact);
            error += difference * difference;
            sum += f64::from(exact);
            squares += f64::from(exact) * f64::from(exact);
            count += 1;
        }
    }
    let count = count.max(1) as f64;
    let variance = squares / count - (sum / count).powi(2);
    Ok(error / count / variance.max(f64::MIN_POSITIVE))
}

/// The weight `[out, in]` behind a layer of the file. Queries, and keys with values, are parts of one.
fn weight_of(checkpoint: &Checkpoint, layer: &str) -> Result<(Vec<f32>, usize)> {
    let (name, part) = match layer {
        layer if layer.ends_with(".qkv.q") => (layer.trim_end_matches(".q"), Some((0, 1))),
        layer if layer.ends_with(".qkv.kv") => (layer.trim_end_matches(".kv"), Some((1, 2))),
        layer => (layer, None),
    };
    let name = format!("{name}.weight");
    let tensor = checkpoint
        .backbone
        .get(&name)
        .ok_or_else(|| Error::failed(name.clone(), "expected a weight of this name, found none"))?;
    let dim = checkpoint.config.embed_dim;
    let values = || {
        let weight = match part {
            Some((start, count)) => tensor.narrow(0, start * dim, count * dim)?,
            None => tensor.clone(),
        };
        let inputs = weight.dim(1)?;
        let weight = weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        Ok((weight.flatten_all()?.to_vec1()?, inputs))
    };
    values().map_err(|error: candle_core::Error| macula_models::Error::from(error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_are_cut_and_batches_averaged() {
        let mut values: Vec<f32> = (0..20_000).map(|i| i as f32 / 20_000.).collect();
        values[7] = 1e6;
        assert_eq!(ends(&[3., -1., 2.]), (-1., 3.));
        let (low, high) = ends(&values);
        assert!(low < 0.001 && high <= 1., "{low} {high}");
        let mut observed = LayerInputs::default();
        observed.take(&[0., 2.], 2);
        observed.take(&[-2., 4.], 2);
        let range = observed.range();
        assert_eq!((range.low, range.high), (-1., 3.));
        assert_eq!(observed.rows, [0., 2., -2., 4.]);
    }
}
