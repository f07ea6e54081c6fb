//! `--device auto` where more than one provider can run a model: each runs the same few images, and the fastest of those that
//! agree with the processor's own kernels is taken.

use std::time::Instant;

use super::session::OnnxModel;
use super::tensors::{OutputTensor, cosine};
use crate::{Error, Result};

/// Images of a measurement, where the model leaves the batch open.
const IMAGES: usize = 4;
/// Side of an image where the model leaves it open, a multiple of all common patch sizes.
const SIDE: usize = 224;
/// Least cosine to the outputs of the processor's kernels: what f32 in another order of sums keeps.
const MIN_COSINE: f64 = 0.9999;

/// What a candidate did with the images: images a second, and the least cosine of one to the outputs of the processor's kernels.
#[derive(Debug, Clone, Copy)]
struct Measured {
    rate: f64,
    cosine: f64,
}

/// The fastest of `candidates` whose outputs agree with those of the last, the processor's own, and what is to be said about
/// all of them. The last is taken where nothing can be measured.
pub(super) fn fastest(mut candidates: Vec<OnnxModel>) -> (OnnxModel, Vec<String>) {
    let runs: Vec<Result<(f64, Vec<OutputTensor>)>> = candidates.iter_mut().map(run).collect();
    let expected = match runs.last() {
        Some(Ok((_, outputs))) => Ok(outputs.as_slice()),
        Some(Err(error)) => Err(Error::failed("cpu", error.to_string())),
        None => Err(Error::failed("device auto", "nothing to choose from")),
    };
    let measure = |run: &Result<(f64, Vec<OutputTensor>)>| match (run, &expected) {
        (Ok((rate, found)), Ok(expected)) => Ok(Measured {
            rate: *rate,
            cosine: min_cosine(found, expected),
        }),
        (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
    };
    let measured: Vec<std::result::Result<Measured, String>> = runs.iter().map(measure).collect();
    let providers = candidates.iter().map(OnnxModel::provider);
    let notices = providers
        .zip(&measured)
        .map(|(provider, measured)| match measured {
            Ok(Measured { rate, cosine }) if *cosine < MIN_COSINE => {
                format!(
                    "{provider} {rate:.1} images/s, but a cosine of {cosine:.5} to cpu, expected {MIN_COSINE}"
                )
            }
            Ok(Measured { rate, .. }) => format!("{provider} {rate:.1} images/s"),
            Err(reason) => format!("{provider} was not measured: {reason}"),
        })
        .collect();
    let best = choose(&measured).unwrap_or(candidates.len() - 1);
    (candidates.swap_remove(best), notices)
}

/// The fastest that agrees.
fn choose(measured: &[std::result::Result<Measured, String>]) -> Option<usize> {
    let agreeing = measured.iter().enumerate().filter_map(|(index, measured)| {
        let measured = measured.as_ref().ok()?;
        (measured.cosine >= MIN_COSINE).then_some((index, measured.rate))
    });
    agreeing
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(index, _)| index)
}

/// Runs the model on a few images, twice: the first time it makes its plans. Images a second of the second, and its outputs.
fn run(model: &mut OnnxModel) -> Result<(f64, Vec<OutputTensor>)> {
    let mut shape = [IMAGES, 3, SIDE, SIDE];
    for (size, dim) in shape.iter_mut().zip(model.image_dims()) {
        *size = dim.unwrap_or(*size);
    }
    // Levels where the graph takes levels.
    let (scale, shift) = if model.takes_levels() {
        (127.0, 128.0)
    } else {
        (1.0, 0.0)
    };
    let pixels = (0..shape.iter().product()).map(|index| pixel(index) * scale + shift);
    let pixels: Vec<f32> = pixels.collect();
    model.run(&pixels, shape, &[])?;
    let start = Instant::now();
    let outputs = model.run(&pixels, shape, &[])?;
    Ok((shape[0] as f64 / start.elapsed().as_secs_f64(), outputs))
}

/// Something between -1 and 1 that differs from pixel to pixel and from image to image.
fn pixel(index: usize) -> f32 {
    (index as f32 * 0.37).sin() * (index as f32 * 1e-3).cos()
}

/// The least cosine of one image's values in any output.
fn min_cosine(found: &[OutputTensor], expected: &[OutputTensor]) -> f64 {
    let mut min = 1f64;
    for (found, expected) in found.iter().zip(expected) {
        let images = expected.shape.first().copied().unwrap_or(1).max(1);
        let width = (expected.data.len() / images).max(1);
        if found.data.len() != expected.data.len() {
            return f64::NEG_INFINITY;
        }
        for (a, b) in found.data.chunks(width).zip(expected.data.chunks(width)) {
            // A cosine that is no number agrees with nothing; `min` would pass it over.
            let cosine = if a == b { 1. } else { cosine(a, b) };
            min = if cosine.is_nan() {
                f64::NEG_INFINITY
            } else {
                min.min(cosine)
            };
        }
    }
    min
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rate: f64, cosine: f64) -> std::result::Result<Measured, String> {
        Ok(Measured { rate, cosine })
    }

    #[test]
    fn the_fastest_that_agrees_is_taken() {
        let slow = measured(5., 1.);
        assert_eq!(choose(&[measured(9., 0.99995), slow.clone()]), Some(0));
        assert_eq!(choose(&[measured(9., 0.998), slow.clone()]), Some(1));
        assert_eq!(choose(&[measured(9., f64::NEG_INFINITY), slow.clone()]), Some(1));
        assert_eq!(
            choose(&[Err("no memory".to_owned()), measured(6., 1.), slow]),
            Some(1)
        );
        assert_eq!(choose(&[Err("no memory".to_owned())]), None);
    }

    #[test]
    fn cosines_are_taken_image_by_image() {
        let tensor = |data: &[f32]| OutputTensor {
            name: "cls".to_owned(),
            shape: vec![2, 2],
            data: data.to_vec(),
        };
        let expected = [tensor(&[1., 0., 0., 100.])];
        let min = |data: &[f32]| min_cosine(&[tensor(data)], &expected);
        assert_eq!(min(&[2., 0., 0., 1.]), 1.);
        assert_eq!(min(&[0., 1., 0., 100.]), 0.);
        assert!(min(&[f32::NAN, 0., 0., 100.]) < 0. && min(&[1., 0.]) < 0.);
        let zeros = [tensor(&[0., 0., 0., 0.])];
        assert_eq!(min_cosine(&zeros, &zeros), 1.);
    }
}
