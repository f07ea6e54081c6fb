//! The proof: an ONNX file beside the candle network, on random input and on real images, at every size tried.

use std::path::Path;

use candle_core::Tensor;
use macula_models::onnx::{self, ImageShape, OutputKind};
use macula_models::vit::{VisionTransformer, VitConfig};
use macula_models::weights::Checkpoint;
use rand::Rng as _;
use serde::Serialize;

use super::{ExportRequest, open_session};
use crate::data::transform::Resize;
use crate::data::{self, BandImage, BatchReader, DecodeOptions, Preprocess};
use crate::runtime::tensors::cosine;
use crate::{Error, Result, rng};

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

/// Compares every output of `file` with the network of `checkpoint`.
pub(super) fn compare(
    checkpoint: &Checkpoint,
    request: &ExportRequest,
    file: &Path,
) -> Result<Vec<Comparison>> {
    let config = &checkpoint.config;
    let device = candle_core::Device::Cpu;
    let network = VisionTransformer::from_tensors(config, &checkpoint.backbone, &device)?;
    let mut session = open_session(file, &request.runtime, request.threads)?;
    let names: Vec<String> = session
        .outputs()
        .iter()
        .map(|output| output.name.clone())
        .collect();
    let kinds = match request.outputs.is_empty() {
        true => OutputKind::defaults(config),
        false => request.outputs.clone(),
    };
    let expected: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    if names != expected {
        let reason = format!("not written: expected the outputs {expected:?}, found {names:?}");
        return Err(Error::failed(file.display().to_string(), reason));
    }
    let mut comparisons = Vec::new();
    for (height, width) in sizes(config, request.image) {
        for (input, pixels) in [
            ("random", random_images(config, height, width, request.seed)),
            ("images", real_images(height, width, &request.preprocess)?),
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
fn real_images(height: usize, width: usize, preprocess: &Preprocess) -> Result<Vec<f32>> {
    let preprocess = Preprocess {
        resize: Some(Resize::Shorter(height.max(width) as u32)),
        crop: Some((height as u32, width as u32)),
        ..preprocess.clone()
    };
    let source = data::open("sample:test")?;
    let Some(bands) = preprocess.bands else {
        return BatchReader::new(&preprocess, &DecodeOptions::default())?.read_all(source.as_ref(), &[0, 1]);
    };
    // There are no bundled images of bands: each band is the grey picture.
    let mut pixels = vec![0.0; 2 * bands.count() * height * width];
    for (row, out) in (0..2).zip(pixels.chunks_exact_mut(bands.count() * height * width)) {
        let image = source.load(row, &DecodeOptions::default())?;
        let image = BandImage::from_rgb(&image, bands.count())
            .ok_or_else(|| Error::failed("export", "the bundled image has no pixels"))?;
        preprocess.write_image(&image.into(), out)?;
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

/// Fails where an output deviates further than `tolerance` of its largest value.
pub(super) fn refuse_deviation(path: &Path, comparisons: &[Comparison], tolerance: f64) -> Result<()> {
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

/// Fails where an image's output has turned from the candle network's by more than `max` (1 - cosine).
pub(super) fn refuse_turn(path: &Path, comparisons: &[Comparison], max: f64) -> Result<()> {
    let turned = |c: &&Comparison| (1. - c.min_cosine).is_nan() || 1. - c.min_cosine > max;
    match comparisons.iter().find(turned) {
        None => Ok(()),
        Some(c) => Err(Error::failed(
            path.display().to_string(),
            format!(
                "not written: output `{}` has a cosine of {:.7} to the candle network's on {} of {}x{}, a drift of {:.2e}, \
                 allowed {max:.0e}",
                c.output,
                c.min_cosine,
                c.input,
                c.height,
                c.width,
                1. - c.min_cosine
            ),
        )),
    }
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
