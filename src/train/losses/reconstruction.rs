//! Crops predicted from their class tokens: how much of the variance of the pixels, or of what [`super::hog`] makes of them, a
//! small network misses. Networks trained to agree on crops alone forget what crops do not share, and on small images that is much
//! of what tells classes apart (ours; after reconstruction beside contrast in Atito et al. 2021, SiT).

use candle_core::{DType, Result, Tensor, bail};

use super::matrix;
use crate::cluster::Ranks;

/// Side in pixels above which crops are averaged down before they are compared.
const MAX_SIDE: usize = 32;
/// Variance of targets below which there is nothing to predict: a tenth of the deviation that pixels and histograms of real
/// images have. Batches below it, of images of one colour for instance, are measured by this instead of by noise.
const MIN_VARIANCE: f64 = 0.01;

/// Side of the reconstruction of crops of `side` pixels: the largest divisor of at most 32.
pub fn reconstruction_side(side: usize) -> usize {
    largest_divisor(side, MAX_SIDE)
}

/// The largest divisor of `side` that is not above `most`.
pub(super) fn largest_divisor(side: usize, most: usize) -> usize {
    let mut divisors = (1..=most.min(side)).rev();
    divisors
        .find(|divisor| side.is_multiple_of(*divisor))
        .unwrap_or(1)
}

/// `crops` [B, C, S, S] as a student is to predict them, averaged to [B, C, s, s] with s of [`reconstruction_side`]; f32, without a
/// gradient.
///
/// # Errors
/// Crops that are not square.
pub fn reduced(crops: &Tensor) -> Result<Tensor> {
    let (_, _, side, width) = crops.dims4()?;
    if side != width {
        bail!("reconstruction: expected square crops, found {side} x {width}")
    }
    let pixels = crops.detach().to_dtype(DType::F32)?;
    match side / reconstruction_side(side) {
        1 => Ok(pixels),
        factor => pixels.avg_pool2d(factor),
    }
}

/// Mean square of what is missing, over the variance around the mean of each channel, which counts as [`MIN_VARIANCE`] at
/// least: 0 for perfect, 1 for predicting the mean.
///
/// `predicted` [B, C s s] is the student's, `targets` [B, C, s, s] has no gradient; `what` names the term. The variance is that of
/// all ranks' targets, by the image, so that the mean over ranks is the loss of all images.
///
/// # Errors
/// Shapes that do not fit, ranks that cannot reach each other.
pub fn reconstruction_loss(
    what: &str,
    predicted: &Tensor,
    targets: &Tensor,
    ranks: &dyn Ranks,
) -> Result<Tensor> {
    let (batch, channels, height, width) = targets.dims4()?;
    let expected = (batch, channels * height * width);
    let found = matrix(what, predicted)?;
    if found != expected {
        bail!("{what}: expected {expected:?} predicted, found {found:?}")
    }
    let targets = targets.detach().reshape((batch, channels, height * width))?;
    let variance = variance_over_ranks(&targets, ranks)?;
    let missing = (predicted.to_dtype(DType::F32)? - targets.reshape(expected)?)?;
    missing.sqr()?.sum_all()?.broadcast_div(&variance)
}

/// This rank's share, by the number of its images, of the sum of squares of `targets` [B, C, N] of all ranks around the means of
/// their channels. In f64, so that how the images are divided among ranks does not show.
fn variance_over_ranks(targets: &Tensor, ranks: &dyn Ranks) -> Result<Tensor> {
    let targets = targets.to_dtype(DType::F64)?;
    let own = targets.elem_count() as f64;
    let all = ranks
        .sum(&Tensor::new(&[own], targets.device())?)?
        .to_vec1::<f64>()?[0];
    let of_channel = all / targets.dim(1)? as f64;
    let mean = (ranks.sum(&targets.sum_keepdim((0, 2))?)? / of_channel)?; // [1, C, 1]
    let squares = targets.broadcast_sub(&mean)?.sqr()?.sum_all()?;
    let squares = ranks.sum(&squares)?.maximum(MIN_VARIANCE * all)?;
    (squares * (own / all))?.to_dtype(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::OneRank;
    use crate::train::testing::{assert_scalar, scalar};
    use candle_core::{Device, Var};

    fn pixel_loss(predicted: &Tensor, crops: &Tensor) -> Result<Tensor> {
        reconstruction_loss("pixels", predicted, &reduced(crops)?, &OneRank)
    }

    fn crops(side: usize) -> Tensor {
        let values: Vec<f32> = (0..2 * 3 * side * side).map(|i| (i as f32 * 0.7).sin()).collect();
        Tensor::from_vec(values, (2, 3, side, side), &Device::Cpu).unwrap()
    }

    #[test]
    fn sides_divide_the_crop() {
        for (side, expected) in [
            (28, 28),
            (32, 32),
            (64, 32),
            (98, 14),
            (224, 32),
            (37, 1),
            (518, 14),
        ] {
            assert_eq!(reconstruction_side(side), expected, "{side}");
        }
    }

    #[test]
    fn perfect_is_nothing_and_the_mean_is_one() {
        let crops = crops(4);
        let flat = crops.reshape((2, 48)).unwrap();
        assert_scalar("perfect", &pixel_loss(&flat, &crops).unwrap(), 0., 1e-9);
        let mean = crops
            .mean_keepdim((0, 2, 3))
            .unwrap()
            .broadcast_as((2, 3, 4, 4))
            .unwrap();
        let mean = mean.reshape((2, 48)).unwrap();
        assert_scalar("mean", &pixel_loss(&mean, &crops).unwrap(), 1., 1e-5);
    }

    #[test]
    fn large_crops_are_averaged() {
        let crops = crops(64);
        let small = crops.avg_pool2d(2).unwrap().reshape((2, 3 * 32 * 32)).unwrap();
        assert_scalar("averaged", &pixel_loss(&small, &crops).unwrap(), 0., 1e-9);
    }

    /// Images of one colour have no variance: what is missing counts in full, and no more than a hundredfold.
    #[test]
    fn flat_images_cannot_make_the_loss_explode() {
        let flat = Tensor::full(-2.1f32, (8, 3, 28, 28), &Device::Cpu).unwrap();
        let predicted = Tensor::zeros((8, 3 * 28 * 28), DType::F32, &Device::Cpu).unwrap();
        assert_scalar(
            "pixels",
            &pixel_loss(&predicted, &flat).unwrap(),
            2.1 * 2.1 / MIN_VARIANCE,
            1e-3,
        );
        let histograms = super::super::hog_targets(&flat).unwrap();
        let size = histograms.elem_count() / 8;
        let predicted = Tensor::full(0.05f32, (8, size), &Device::Cpu).unwrap();
        assert_scalar(
            "hog",
            &reconstruction_loss("hog", &predicted, &histograms, &OneRank).unwrap(),
            0.25,
            1e-3,
        );
        // What real images have is left as it is.
        let wave = crops(28);
        let predicted = Tensor::zeros((2, 3 * 28 * 28), DType::F32, &Device::Cpu).unwrap();
        let mean = wave.mean_keepdim((0, 2, 3)).unwrap();
        let variance = wave
            .broadcast_sub(&mean)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap();
        let expected = scalar(&wave.sqr().unwrap().sum_all().unwrap()) / scalar(&variance);
        assert_scalar("wave", &pixel_loss(&predicted, &wave).unwrap(), expected, 1e-5);
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        gradient_is_right(&crops(2), 1e-3);
        let flat = Tensor::full(0.4f32, (2, 3, 2, 2), &Device::Cpu).unwrap();
        gradient_is_right(&flat, 2e-2);
    }

    fn gradient_is_right(crops: &Tensor, tolerance: f64) {
        let values: Vec<f32> = (0..24).map(|i| (i as f32 * 0.31).cos()).collect();
        let at = |values: &[f32]| {
            let predicted = Tensor::from_slice(values, (2, 12), &Device::Cpu).unwrap();
            scalar(&pixel_loss(&predicted, crops).unwrap())
        };
        let predicted =
            Var::from_tensor(&Tensor::from_slice(&values, (2, 12), &Device::Cpu).unwrap()).unwrap();
        let store = pixel_loss(&predicted, crops).unwrap().backward().unwrap();
        let gradient = store
            .get(&predicted)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        for i in [0, 7, 23] {
            let mut moved = values.clone();
            moved[i] += 1e-2;
            let above = at(&moved);
            moved[i] -= 2e-2;
            let slope = (above - at(&moved)) / 2e-2;
            assert!(
                (slope - f64::from(gradient[i])).abs() < tolerance,
                "{i}: {slope} {}",
                gradient[i]
            );
        }
    }

    #[test]
    fn another_width_is_refused() {
        let predicted = Tensor::zeros((2, 47), DType::F32, &Device::Cpu).unwrap();
        let error = pixel_loss(&predicted, &crops(4)).unwrap_err().to_string();
        assert!(error.contains("expected (2, 48)"), "{error}");
    }
}
