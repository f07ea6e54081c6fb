//! The mean and the standard deviation of each band of a source, which networks of bands have in the place of ImageNet's.

use rayon::prelude::*;

use super::BandImage;
use crate::data::image::Image;
use crate::data::{DecodeOptions, Source};
use crate::{Error, Result};

/// The most images that are read, spread evenly over a source.
const MOST_IMAGES: u64 = 2000;
/// A deviation that rounding alone may make.
const NOTHING: f64 = 1e-8;

/// What was measured, of values from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct BandStatistics {
    /// The mean of each band.
    pub mean: Vec<f32>,
    /// The standard deviation of each band over all pixels; 1 for a band that is the same everywhere.
    pub std: Vec<f32>,
    /// Bands that are the same everywhere, from 0.
    pub constant: Vec<usize>,
    /// Images that were read.
    pub images: u64,
}

/// Measures the bands of `source`, whose images are decoded with `decode`. Images that cannot be read are left out.
///
/// # Errors
/// No image that can be read; the first one's trouble is told.
pub fn measure(source: &dyn Source, decode: &DecodeOptions) -> Result<BandStatistics> {
    let read = source.len().min(MOST_IMAGES);
    let rows: Vec<u64> = (0..read)
        .map(|place| (u128::from(place) * u128::from(source.len()) / u128::from(read.max(1))) as u64)
        .collect();
    let moments: Vec<_> = rows
        .par_iter()
        .map(|&row| {
            source.load_image(row, decode).map(|image| match image {
                Image::Bands(image) => Some(moments(&image)),
                Image::Rgb(_) => None,
            })
        })
        .collect();
    let (mut all, mut images, mut trouble) = (Vec::new(), 0, None);
    // In the order of the rows, so that threads change nothing.
    for moments in moments {
        match moments {
            Ok(moments) => {
                images += 1;
                merge(&mut all, moments.unwrap_or_default());
            }
            Err(error) => trouble = trouble.or(Some(error)),
        }
    }
    match (all.is_empty(), trouble) {
        (false, _) => Ok(statistics(&all, images)),
        (true, Some(error)) => Err(error.into()),
        (true, None) => Err(Error::input("bands", "expected images of bands, found none")),
    }
}

/// Of one band: how many values, their mean, and the sum of squares around it.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

fn moments(image: &BandImage) -> Vec<Moments> {
    let of_band = |band: usize| {
        let values = || image.band(band).map(f64::from);
        let count = (image.data().len() / image.bands()) as f64;
        let mean = values().sum::<f64>() / count;
        let squares = values().map(|value| (value - mean).powi(2)).sum();
        Moments { count, mean, squares }
    };
    (0..image.bands()).map(of_band).collect()
}

/// Adds those of another image (Chan, Golub and LeVeque 1979).
fn merge(all: &mut Vec<Moments>, image: Vec<Moments>) {
    if all.is_empty() {
        *all = image;
        return;
    }
    for (all, image) in all.iter_mut().zip(image) {
        let count = all.count + image.count;
        let apart = image.mean - all.mean;
        all.mean += apart * image.count / count;
        all.squares += image.squares + apart * apart * all.count * image.count / count;
        all.count = count;
    }
}

fn statistics(all: &[Moments], images: u64) -> BandStatistics {
    let deviations = all.iter().map(|band| (band.squares / band.count).sqrt());
    let deviations: Vec<f64> = deviations.collect();
    let is_constant = |deviation: f64| deviation < NOTHING;
    BandStatistics {
        mean: all.iter().map(|band| band.mean as f32).collect(),
        std: deviations
            .iter()
            .map(|&deviation| {
                if is_constant(deviation) {
                    1.0
                } else {
                    deviation as f32
                }
            })
            .collect(),
        constant: (0..all.len())
            .filter(|&band| is_constant(deviations[band]))
            .collect(),
        images,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_any_sizes_count_by_their_pixels() {
        let values: Vec<f32> = (0..24).map(|place| (place as f32 * 0.7).sin().abs()).collect();
        let image = |width: u32, data: &[f32]| BandImage::new(width, 1, 2, data.to_vec()).unwrap();
        let mut all = Vec::new();
        for part in [image(7, &values[..14]), image(5, &values[14..])] {
            merge(&mut all, moments(&part));
        }
        let found = statistics(&all, 2);
        for band in 0..2 {
            let band_values: Vec<f64> = values
                .iter()
                .skip(band)
                .step_by(2)
                .map(|&v| f64::from(v))
                .collect();
            let mean = band_values.iter().sum::<f64>() / 12.0;
            let variance = band_values
                .iter()
                .map(|value| (value - mean).powi(2))
                .sum::<f64>()
                / 12.0;
            assert!((f64::from(found.mean[band]) - mean).abs() < 1e-7);
            assert!((f64::from(found.std[band]) - variance.sqrt()).abs() < 1e-7);
        }
        assert!(found.constant.is_empty());
    }

    #[test]
    fn a_band_that_is_the_same_everywhere_is_divided_by_one() {
        let image = BandImage::new(2, 1, 2, vec![0.1, 0.3, 0.2, 0.3]).unwrap();
        let mut all = moments(&image);
        merge(&mut all, moments(&image));
        let found = statistics(&all, 2);
        assert_eq!((found.constant, found.std[1]), (vec![1], 1.0));
        assert!((found.std[0] - 0.05).abs() < 1e-7);
    }
}
