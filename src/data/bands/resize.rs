//! The resize of 8-bit images (`data/resize.rs`) for bands: the same filters and antialiasing by the same weights, sums in f32, no
//! rounding, and one cut-off below 0 and above 1 at the end, which a bicubic filter may overshoot.

use super::add_weighted;
use super::image::{BandImage, values};
use crate::data::resize::{Coefficients, Interpolation, Window, span};

/// The `window` of `source` resized to `width` x `height`, computed alone. `None` when the window is empty or reaches outside, or
/// the result does not fit memory's address range.
pub fn resize_window(
    source: &BandImage,
    width: u32,
    height: u32,
    window: Window,
    filter: Interpolation,
) -> Option<BandImage> {
    let right = window.left.checked_add(window.width)?;
    let bottom = window.top.checked_add(window.height)?;
    if right > width || bottom > height || window.width == 0 || window.height == 0 {
        return None;
    }
    values(window.width, window.height, source.bands())?;
    // A pass that would change nothing is left out.
    let columns = (width != source.width())
        .then(|| weights(source.width(), width, (window.left, window.width), filter));
    let rows = (height != source.height())
        .then(|| weights(source.height(), height, (window.top, window.height), filter));
    let (left, right) = span(columns.as_ref(), window.left, window.width);
    let (top, bottom) = span(rows.as_ref(), window.top, window.height);
    let mut image = source.crop(Window {
        left,
        top,
        width: right - left,
        height: bottom - top,
    })?;
    if columns.is_none() && rows.is_none() {
        return Some(image);
    }
    if let Some(columns) = columns {
        image = horizontal(&image, left as usize, &columns)?;
    }
    if let Some(rows) = rows {
        image = vertical(&image, top as usize, &rows)?;
    }
    for value in image.data_mut() {
        *value = value.clamp(0.0, 1.0);
    }
    Some(image)
}

/// The weights of output samples `first..first + count`.
fn weights(input: u32, output: u32, (first, count): (u32, u32), filter: Interpolation) -> Coefficients<f32> {
    Coefficients::rounded(input, output, (first, count), filter, |weight| weight as f32)
}

/// Filters each row of `source`, whose first column is column `left` of the image: `[h, w, C]` to `[h, outputs, C]`.
fn horizontal(source: &BandImage, left: usize, columns: &Coefficients<f32>) -> Option<BandImage> {
    let (bands, outputs) = (source.bands(), columns.outputs());
    let mut out = vec![0.0; source.height() as usize * outputs * bands];
    for (y, row) in out.chunks_exact_mut(outputs * bands).enumerate() {
        let samples = source.row(y);
        for (place, pixel) in row.chunks_exact_mut(bands).enumerate() {
            let (first, weights) = columns.at(place);
            let taps = samples[(first - left) * bands..].chunks_exact(bands);
            for (tap, &weight) in taps.zip(weights) {
                add_weighted(pixel, tap, weight);
            }
        }
    }
    BandImage::new(outputs as u32, source.height(), bands, out)
}

/// Filters each column of `source`, whose first row is row `top` of the image: `[h, w, C]` to `[outputs, w, C]`.
fn vertical(source: &BandImage, top: usize, rows: &Coefficients<f32>) -> Option<BandImage> {
    let (len, outputs) = (source.width() as usize * source.bands(), rows.outputs());
    let mut out = vec![0.0; outputs * len];
    for (place, row) in out.chunks_exact_mut(len).enumerate() {
        let (first, weights) = rows.at(place);
        for (tap, &weight) in weights.iter().enumerate() {
            add_weighted(row, source.row(first - top + tap), weight);
        }
    }
    BandImage::new(source.width(), outputs as u32, source.bands(), out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image::RgbImage;
    use crate::data::resize;

    /// Smooth and away from black and white, so that neither rounding between the passes nor a cut-off adds up.
    fn smooth(width: u32, height: u32) -> RgbImage {
        let level = |x: u32, y: u32, channel: u32| {
            let phase = f64::from(x) * 0.13 + f64::from(y) * 0.09 + f64::from(channel);
            (128.0 + 70.0 * phase.sin()) as u8
        };
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let data = places.flat_map(|(x, y)| [0, 1, 2].map(|channel| level(x, y, channel)));
        RgbImage::new(width, height, data.collect()).unwrap()
    }

    #[test]
    fn a_resize_is_that_of_eight_bits_but_for_rounding() {
        let image = smooth(61, 47);
        let bands = BandImage::from_rgb(&image, 3).unwrap();
        for (width, height) in [(20, 20), (61, 30), (33, 47), (90, 80), (61, 47), (7, 90)] {
            let window = Window {
                left: 1,
                top: 2,
                width: width - 3,
                height: height - 2,
            };
            for filter in [Interpolation::Bilinear, Interpolation::Bicubic] {
                let expected = resize::resize_window(&image.view(), width, height, window, filter).unwrap();
                let found = resize_window(&bands, width, height, window, filter).unwrap();
                for (found, &expected) in found.data().iter().zip(expected.data()) {
                    let levels = found * 255.0 - f32::from(expected);
                    assert!(levels.abs() < 1.3, "{width}x{height}: {levels}");
                }
            }
        }
    }

    #[test]
    fn a_flat_image_stays_flat_and_overshoot_is_cut_off() {
        let whole = |side| Window {
            left: 0,
            top: 0,
            width: side,
            height: side,
        };
        let flat = BandImage::new(5, 5, 1, vec![0.123_45; 25]).unwrap();
        let found = resize_window(&flat, 13, 13, whole(13), Interpolation::Bicubic).unwrap();
        assert!(found.data().iter().all(|value| (value - 0.123_45).abs() < 1e-6));
        let edge: Vec<f32> = (0..64)
            .map(|place| if place % 8 < 4 { 0.0 } else { 1.0 })
            .collect();
        let edge = BandImage::new(8, 8, 1, edge).unwrap();
        let found = resize_window(&edge, 32, 32, whole(32), Interpolation::Bicubic).unwrap();
        assert!(found.data().iter().all(|value| (0.0..=1.0).contains(value)));
    }

    #[test]
    fn a_step_between_two_pixels_has_the_filters_weights() {
        // Twice as wide: the middle two lie a quarter of a pixel from the edge.
        let step = BandImage::new(2, 1, 1, vec![0.0, 1.0]).unwrap();
        let window = Window {
            left: 0,
            top: 0,
            width: 4,
            height: 1,
        };
        let found = resize_window(&step, 4, 1, window, Interpolation::Bilinear).unwrap();
        assert_eq!(found.data(), [0.0, 0.25, 0.75, 1.0]);
        assert!(resize_window(&step, 3, 1, window, Interpolation::Bilinear).is_none());
    }
}
