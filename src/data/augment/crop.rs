//! The random crop of contrastive and self-distillation training: torchvision's `RandomResizedCrop`
//! (pytorch/vision: torchvision/transforms/transforms.py).

use rand::Rng;

use super::{RgbImage, uniform};
use crate::data::resize::{Interpolation, Window, resize};

/// Attempts to find a rectangle inside the image before the centre is taken.
const ATTEMPTS: usize = 10;

/// Draws a rectangle of a `width` x `height` image (at least one pixel): its share of the area uniform in `scale`, the
/// logarithm of its width over height uniform between those of `aspect` (both rising and above 0), its place uniform. Where
/// ten attempts find none that fits, it is the largest centred rectangle whose proportions lie in `aspect`.
pub fn random_window(
    width: u32,
    height: u32,
    scale: [f64; 2],
    aspect: [f64; 2],
    rng: &mut impl Rng,
) -> Window {
    let area = f64::from(width) * f64::from(height);
    let log_aspect = aspect.map(f64::ln);
    for _ in 0..ATTEMPTS {
        let target = area * uniform(scale, rng);
        let proportion = uniform(log_aspect, rng).exp();
        // Rounded half to even as in Python; a size too large for u32 stays too large for the image.
        let columns = (target * proportion).sqrt().round_ties_even() as u32;
        let rows = (target / proportion).sqrt().round_ties_even() as u32;
        if (1..=width).contains(&columns) && (1..=height).contains(&rows) {
            return Window {
                top: rng.random_range(0..=height - rows),
                left: rng.random_range(0..=width - columns),
                width: columns,
                height: rows,
            };
        }
    }
    centred(width, height, aspect)
}

/// The largest centred rectangle whose width over height lies in `aspect`.
fn centred(width: u32, height: u32, aspect: [f64; 2]) -> Window {
    let proportion = f64::from(width) / f64::from(height);
    let side = |exact: f64, max: u32| (exact.round_ties_even() as u32).clamp(1, max);
    let (columns, rows) = if proportion < aspect[0] {
        (width, side(f64::from(width) / aspect[0], height))
    } else if proportion > aspect[1] {
        (side(f64::from(height) * aspect[1], width), height)
    } else {
        (width, height)
    };
    Window {
        left: (width - columns) / 2,
        top: (height - rows) / 2,
        width: columns,
        height: rows,
    }
}

/// The `window` of `image` resized to `size` x `size` pixels; only the window is read. `None` when the window is empty or
/// reaches outside, or `size` is 0.
pub fn resized_crop(image: &RgbImage, window: Window, size: u32, filter: Interpolation) -> Option<RgbImage> {
    let part = image
        .view()
        .crop(window.left, window.top, window.width, window.height)?;
    resize(&part, size, size, filter)
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;
    use crate::rng;

    const ASPECT: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

    #[test]
    fn a_resized_crop_is_torchvisions() {
        let window = Window {
            top: 10,
            left: 20,
            height: 50,
            width: 60,
        };
        let crop = resized_crop(&golden::image("input"), window, 48, Interpolation::Bicubic).unwrap();
        let expected = golden::image("rrc_10_20_50_60_to_48");
        assert_eq!(golden::largest_difference(&crop, &expected), 0);
    }

    #[test]
    fn windows_keep_to_scale_and_proportions() {
        let mut rng = rng::stream(3, "windows", 0);
        let (mut smallest, mut largest, mut places) = (f64::MAX, 0.0_f64, 0.0);
        let draws = 5000;
        for _ in 0..draws {
            let window = random_window(400, 300, [0.05, 0.32], ASPECT, &mut rng);
            assert!(window.left + window.width <= 400 && window.top + window.height <= 300);
            let (columns, rows) = (f64::from(window.width), f64::from(window.height));
            let share = columns * rows / 120_000.0;
            smallest = smallest.min(share);
            largest = largest.max(share);
            // Rounding a side of 60 pixels or more moves the proportions by a fiftieth at most.
            assert!((ASPECT[0] - 0.02..ASPECT[1] + 0.02).contains(&(columns / rows)));
            places += f64::from(window.left) / f64::from(400 - window.width);
        }
        assert!((0.048..0.055).contains(&smallest), "{smallest}");
        assert!((0.315..0.325).contains(&largest), "{largest}");
        assert!((places / f64::from(draws) - 0.5).abs() < 0.02, "{places}");
    }

    #[test]
    fn what_never_fits_takes_the_centre() {
        let mut rng = rng::stream(3, "windows", 0);
        let mut window = |width, height| {
            let window = random_window(width, height, [1.0, 1.0], ASPECT, &mut rng);
            (window.left, window.top, window.width, window.height)
        };
        assert_eq!(window(1000, 10), (493, 0, 13, 10)); // 13.3, offset 493.5
        assert_eq!(window(10, 1000), (0, 493, 10, 13));
        assert_eq!(window(1, 1), (0, 0, 1, 1));
        let whole = centred(100, 100, ASPECT);
        assert_eq!((whole.width, whole.height), (100, 100));
        let narrow = centred(1, 5, [10.0, 20.0]); // a tenth of a row
        assert_eq!((narrow.width, narrow.height), (1, 1));
    }

    #[test]
    fn windows_outside_are_refused() {
        let image = RgbImage::from_grey(2, 2, &[0; 4]).unwrap();
        let window = |left, size| Window {
            left,
            top: 0,
            width: 2,
            height: size,
        };
        assert!(resized_crop(&image, window(1, 1), 4, Interpolation::Bicubic).is_none());
        assert!(resized_crop(&image, window(0, 0), 4, Interpolation::Bicubic).is_none());
        assert!(resized_crop(&image, window(0, 2), 0, Interpolation::Bicubic).is_none());
    }
}
